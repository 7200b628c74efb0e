/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Exchanges from the inside: links to peers with slots, credits and signals. The public exchange
 * and both directions of a channel are made of these.
 *
 * A receiver owns, for each sender, `n_slots` slots of a head (one cache line) and slot_bytes of
 * payload; and, where it is asked for, a *region* that all its senders may write to at places it
 * granted. A sender may write a slot when its credit came back: an own word for each slot that
 * the receiver stores to (explicit), or by knowledge of the owner (implied: a reply).
 *
 * Links come up and go down under the context's lock; the data path reads `up` (acquire) once per
 * call and works on what it saw. Memory of a peer that went stays mapped until the exchange is
 * destroyed, so a call that was under way writes into memory that nobody reads.
 */
#ifndef M2N_CORE_LINK_H
#define M2N_CORE_LINK_H

#include <m2n/exchange.h>

#include "core/group.h"
#include "core/wait.h"
#include "wire/slot_seal.h"

#define M2N__SHAPE_MAX 24
#define M2N__EXCHANGE_NAME 32
#define M2N__ROUND_UNKNOWN (UINT64_MAX - 1) /* first round of a link: a START frame will tell */

/* What both sides of a link must agree on; names for the error text. */
struct m2n__shape {
	unsigned n;
	const char *name[M2N__SHAPE_MAX]; /* constants */
	uint64_t value[M2N__SHAPE_MAX];
};
void m2n__shape_add(struct m2n__shape *shape, const char *name, uint64_t value);

struct m2n__exchange_spec {
	const char *name;   /* unique in the group */
	const char *title;  /* for errors: "channel 'moe'" */
	const int *send_to; /* group ranks */
	size_t n_send;
	const int *recv_from;
	size_t n_recv;
	uint32_t n_slots;    /* per sender */
	size_t slot_bytes;   /* payload behind a head */
	size_t stage_bytes;  /* of it: what a messaging sender stages (not rows) */
	size_t region_bytes; /* of one region slot; 0: no region */
	uint32_t n_region_slots;
	uint32_t
		n_spare_slots; /* address space for region slots that a lost peer may still write */
	int explicit_credits;
	enum m2n__mem_kind memory; /* of slots, region and staging */
	int in_order; /* slots are released in turn: one number is the credit of all */
	struct m2n__shape shape;
	_Atomic uint64_t *tx_round; /* the owner's next round to send; NULL: starts at 0 again */
};

struct m2n__tally { /* one writer; read from anywhere */
	_Atomic uint64_t n_rounds, n_rows, bytes, wait_ns, n_puts, staged_bytes;
};

/*
 * Whom a link belongs to: one exchange of one process. A process that closes its exchange and
 * makes another of that name does not get the link of the first: that one's end is final.
 */
struct m2n__bond {
	uint64_t incarnation; /* of the process that was linked last; 0: none */
	uint64_t instance;    /* its exchange; 0: none */
	int is_over;          /* it was closed */
};

struct m2n__tx {
	atomic_int up;
	struct m2n__peer *peer;
	struct m2n__ep *ep;       /* to be used by who saw `up` and said so (enter) */
	uint8_t *slots;  /* mapped: the peer's slots for us; NULL: messaging */
	uint8_t *region; /* mapped: the peer's region */
	struct m2n__rmem *slots_rmem, *region_rmem;
	uint32_t signal0;          /* messaging: the peer's signal words for us, two a slot */
	uint64_t *raised;          /* [2 * n_slots] what was added to them */
	_Atomic uint64_t *credits; /* [n_slots * credit_step] ours: round + 1 that was released */
	uint64_t *sent;            /* [n_slots] round + 1 that the slot was filled with; 0: free */
	_Atomic uint64_t first_round; /* the process behind the link gets rounds from here on */
	uint64_t seq;             /* public exchange: messages sent */
	uint32_t slot;            /* public exchange: of the next message */
	_Atomic uint64_t released; /* in_order: of our messages, as heads of theirs said */
	struct m2n__rx *twin;      /* the same peer's, NULL: it sends nothing */
	struct m2n__shared stage;  /* messaging: [n_slots] heads and staged payload */
	struct m2n__shared bounce; /* [n_slots] payload of memory that is not registered */
	atomic_int prepared;       /* our side is fresh and the peer was told */
	uint64_t own_id, peer_id;  /* of our LINK frame, and of the peer's that was taken */
	struct m2n__bond bond;
	int was_linked;
	int has_come; /* linked, with the process and exchange that bond names */
	struct m2n__tally tally;
};

struct m2n__rx {
	atomic_int up;
	struct m2n__peer *peer;
	struct m2n__ep *ep;
	uint8_t *slots; /* our memory */
	int mapped;
	uint32_t signal0; /* our words, two a slot: heads, bodies */
	int has_signals;
	uint64_t *head_seen, *body_seen; /* [n_slots] counts taken so far */
	_Atomic uint64_t *credits;       /* mapped: the sender's words; NULL: messaging */
	struct m2n__rmem *credits_rmem;
	struct m2n__shared stage; /* messaging: [n_slots] credit words on their way, one more */
	struct m2n__shared area;  /* after a replacement: slots of their own */
	_Atomic uint64_t first_round;
	_Atomic uint64_t admitted; /* what the application said of a new process's first round */
	atomic_int returning;      /* that process is connected again, its rounds go on */
	_Atomic uint64_t n_released; /* in_order: of the peer's messages */
	atomic_uint owed;            /* of those, not told yet */
	atomic_uint is_unpaid;       /* of those, some were carried at most */
	/* in_order: the last message was longer than a few lines. While the writer is at a payload
	 * that is, behind the head, the signal's line is better left to it. */
	int head_first;
	unsigned n_looks; /* in_order: at a slot, between two steps of a wait */
	struct m2n__tx *twin;        /* the same peer's, NULL: nothing is sent to it */
	uint64_t seq;  /* public exchange: messages taken */
	uint32_t slot; /* public exchange: of the next message */
	int held;
	atomic_int prepared;      /* our side is fresh and the peer was told */
	uint64_t own_id, peer_id; /* of our LINK frame, and of the peer's that was taken */
	struct m2n__bond bond;
	int was_linked;
	int has_come; /* linked, with the process and exchange that bond names */
	int starting;      /* linked; up when the START frame comes */
	atomic_int untold; /* public exchange: a process was lost, no call has said so yet */
	struct m2n__tally tally;
};

struct m2n__garbage {
	struct m2n__garbage *next;
	struct m2n__rmem *rmem;
	struct m2n__shared area;
	uint32_t signal0, n_signals;
};

struct m2n__gpu_links;

struct m2n_exchange {
	struct m2n_exchange *next;
	struct m2n__gpu_links *gpu; /* in CUDA memory: its links on the device; else NULL */
	struct m2n_group *group;
	struct m2n_ctx *ctx;
	struct m2n__exchange_spec spec; /* its lists are copies */
	char name[M2N__EXCHANGE_NAME];
	char title[64];
	uint64_t instance;  /* tells it from this process's others of that name */
	size_t stride;      /* bytes from slot to slot */
	size_t area_stride; /* bytes from sender to sender */
	size_t credit_step; /* words from credit to credit: a line each, while they are few */
	size_t n_tx, n_rx;
	int *ranks; /* of tx, then of rx: what the lists of spec point to */
	struct m2n__tx *tx;
	struct m2n__rx *rx;
	struct m2n__shared area, region, credits;
	uint64_t *quarantine; /* [region and spare slots] connection that must end first; 0 */
	struct m2n__garbage *garbage;
	atomic_uint busy[3]; /* calls that are writing into peers' memory, by m2n__writer */
	int error;           /* a disagreement found by a LINK frame */
	int error_rank;
	int connected;      /* all links were up: rounds may be under way */
	atomic_int linking; /* a link's first round is being fixed: a sender waits a moment */
	int unflushed;      /* at close: what was put to a lost peer is still under way */
	struct m2n__piece *pieces; /* public exchange: gather list of a put */
	size_t room_pieces;
	char error_text[256];
};

int m2n__exchange_open(struct m2n_group *group, const struct m2n__exchange_spec *spec,
	struct m2n_exchange **exchange);
/* Waits until every link is up. 0 or a negative code with the ranks in the text. */
int m2n__exchange_connect(struct m2n_exchange *exchange, int64_t timeout_ns);
/* Bytes of receive space, region and words that an exchange of this spec allocates. */
void m2n__exchange_sizes(
	const struct m2n__exchange_spec *spec, size_t *area, size_t *region, size_t *words);

/* core/credit.c: in_order, messaging. */
void m2n__credit_owe(struct m2n_exchange *x, struct m2n__rx *rx); /* one more was released */
uint64_t m2n__credit_carry(struct m2n__rx *rx); /* for a head */
void m2n__credit_forget(struct m2n_exchange *x, struct m2n__rx *rx);

/* core/link_frame.c. Under lock. */
int m2n__link_send(struct m2n_exchange *exchange, struct m2n__peer *peer, struct m2n__tx *tx,
	struct m2n__rx *rx);
void m2n__link_take_pending(struct m2n_exchange *exchange, struct m2n__peer *peer);

/* core/link_end.c: memory that peers may still write to outlives its exchange. Under lock. */
/* Says UNLINK to all peers, and buries the exchange's memory until they answered. */
void m2n__link_goodbye(struct m2n_exchange *exchange);
/* An UNLINK came and was acted on: the answer goes when nothing is on its way any more. */
void m2n__link_unlink(struct m2n__peer *peer, const char *name, uint64_t instance);
/* A peer answered for an exchange of ours; 0: it is gone. */
void m2n__link_unlinked(struct m2n_group *group, int rank, uint64_t instance);
/* UNLINK, UNLINKED and START: a name and two numbers. */
void m2n__link_say(struct m2n__peer *peer, enum m2n__frame_type type, const char *name,
	uint64_t first, uint64_t second);

/* Keeps memory until the exchange is closed and no peer can write to it. Empties *area. */
void m2n__exchange_keep(struct m2n_exchange *x, struct m2n__shared *area);
void m2n__exchange_keep_key(struct m2n_exchange *x, struct m2n__rmem **rmem);
/* Frees what was kept: what a node names, or all nodes. */
void m2n__garbage_empty(struct m2n_ctx *ctx, struct m2n__garbage *garbage);
void m2n__garbage_free(struct m2n_ctx *ctx, struct m2n__garbage *garbage);

static inline struct m2n__tx *m2n__tx_of(struct m2n_exchange *x, const struct m2n__peer *peer)
{
	for (size_t i = 0; i < x->n_tx; i++)
		if (x->tx[i].peer == peer)
			return &x->tx[i];
	return NULL;
}

static inline struct m2n__rx *m2n__rx_of(struct m2n_exchange *x, const struct m2n__peer *peer)
{
	for (size_t i = 0; i < x->n_rx; i++)
		if (x->rx[i].peer == peer)
			return &x->rx[i];
	return NULL;
}

static inline size_t m2n__credit_step(const struct m2n__exchange_spec *spec)
{
	return spec->n_slots <= 64 ? M2N__CACHE_LINE / sizeof(uint64_t) : 1;
}

static inline size_t m2n__credit_bytes(const struct m2n__exchange_spec *spec)
{
	return spec->n_slots * m2n__credit_step(spec) * sizeof(uint64_t);
}

/* A link came up or went down. Under lock. */
void m2n__exchange_changed(struct m2n_exchange *x);

/* core/link_move.c: what rounds do with links. `i` indexes tx or rx. */

static inline struct m2n__slot_head *m2n__rx_head(
	const struct m2n_exchange *x, const struct m2n__rx *rx, uint32_t slot)
{
	return (struct m2n__slot_head *)(rx->slots + slot * x->stride);
}

/* Messaging: has a head's word been raised that was not taken yet? */
static inline int m2n__rx_counted(
	const struct m2n_exchange *x, const struct m2n__rx *rx, uint32_t slot)
{
	/* A2: pairs with the backend's release of the signal word. */
	return atomic_load_explicit(&x->ctx->signals[rx->signal0 + 2 * slot],
		       memory_order_acquire) != rx->head_seen[slot];
}

/* Messaging: has the head of `round` arrived, by its count or by its seal? */
int m2n__rx_told(
	const struct m2n_exchange *x, const struct m2n__rx *rx, uint32_t slot, uint64_t round);

/* Has the head of `round` arrived in `slot`? */
static inline int m2n__rx_ready(
	const struct m2n_exchange *x, const struct m2n__rx *rx, uint32_t slot, uint64_t round)
{
	struct m2n__slot_head *head = m2n__rx_head(x, rx, slot);

	/* A1: pairs with R1 in m2n__tx_signal(). */
	if (rx->mapped)
		return atomic_load_explicit(&head->signal, memory_order_acquire) == round + 1;
	return m2n__rx_told(x, rx, slot, round);
}

/*
 * Messaging, after m2n__rx_ready(): have all transfers that the head counts arrived? With mapped
 * peers the signal comes last, so they have.
 */
static inline int m2n__rx_whole(
	const struct m2n_exchange *x, const struct m2n__rx *rx, uint32_t slot)
{
	return rx->mapped || atomic_load_explicit(&x->ctx->signals[rx->signal0 + 2 * slot + 1],
				     memory_order_acquire) -
					     rx->body_seen[slot] >=
				     m2n__rx_head(x, rx, slot)->n_body_puts;
}

/*
 * Exact placement: has the body of a round whose head came before arrived? Mapped: its own word.
 * Messaging: a second signal of the head's word says that n_body_puts is final.
 */
static inline int m2n__rx_body_ready(
	const struct m2n_exchange *x, const struct m2n__rx *rx, uint32_t slot, uint64_t round)
{
	/* A3: pairs with R3 in m2n__tx_body_signal(). */
	if (rx->mapped)
		return atomic_load_explicit(
			       &m2n__rx_head(x, rx, slot)->body, memory_order_acquire) == round + 1;
	return atomic_load_explicit(
		       &x->ctx->signals[rx->signal0 + 2 * slot], memory_order_acquire) -
			       rx->head_seen[slot] >=
		       2 &&
	       m2n__rx_whole(x, rx, slot);
}

void m2n__rx_take_counts(
	struct m2n_exchange *x, struct m2n__rx *rx, uint32_t slot, uint32_t n_heads);
/* Takes the signals of a round that is complete; the slot still holds its bytes. */
static inline void m2n__rx_take(
	struct m2n_exchange *x, struct m2n__rx *rx, uint32_t slot, uint32_t n_heads)
{
	if (!rx->mapped)
		m2n__rx_take_counts(x, rx, slot, n_heads);
}
/* Explicit credit: the slot may be written again. */
void m2n__rx_credit(struct m2n_exchange *x, struct m2n__rx *rx, uint32_t slot, uint64_t round);

/* in_order, messaging: this side is about to sleep until the sender's message `seq` comes. */
void m2n__rx_await(struct m2n_exchange *x, struct m2n__rx *rx, uint64_t seq);

/* Does the peer sleep until this message comes, as far as it told? */
static inline int m2n__tx_awaited(const struct m2n__tx *tx, uint64_t seq)
{
	return atomic_load_explicit(&tx->credits[1], memory_order_relaxed) == seq + 1;
}

/* in_order, messaging: how many messages the peer has released, as far as it told. */
static inline uint64_t m2n__tx_released(const struct m2n__tx *tx)
{
	/* A11: pairs with R11 in m2n__credit_carry(). */
	uint64_t paid = atomic_load_explicit(&tx->credits[0], memory_order_acquire);
	uint64_t carried = atomic_load_explicit(&tx->released, memory_order_acquire);

	return paid > carried ? paid : carried;
}

/* May the slot be written? */
static inline int m2n__tx_free(const struct m2n_exchange *x, struct m2n__tx *tx, uint32_t slot)
{
	if (tx->sent[slot] == 0)
		return 1;
	if (!x->spec.explicit_credits)
		return 0;
	if (x->spec.in_order && !tx->slots) {
		if (tx->sent[slot] > m2n__tx_released(tx))
			return 0;
		tx->sent[slot] = 0;
		return 1;
	}
	/* A4: pairs with R4 in m2n__rx_credit(). */
	if (atomic_load_explicit(&tx->credits[slot * x->credit_step], memory_order_acquire) !=
		tx->sent[slot])
		return 0;
	tx->sent[slot] = 0;
	return 1;
}

/*
 * Marks that a call writes into peers' memory, so that connections are not closed under it. Each
 * side of an exchange is one thread's, so plain stores do; m2n__group_is_idle() makes up for the
 * missing fence by a barrier in all threads (membarrier).
 */
enum m2n__writer {
	M2N__WRITER_TX = 0,
	M2N__WRITER_RX = 1,
	M2N__WRITER_GRANT = 2,
	M2N__WRITER_PLACE = 3, /* the application, between calls: m2n_reply_place() */
	M2N__N_WRITERS
};

static inline void m2n__exchange_enter(struct m2n_exchange *x, enum m2n__writer who)
{
	atomic_store_explicit(&x->busy[who], 1, memory_order_relaxed);
	atomic_signal_fence(memory_order_seq_cst);
}

static inline void m2n__exchange_exit(struct m2n_exchange *x, enum m2n__writer who)
{
	atomic_store_explicit(&x->busy[who], 0, memory_order_release);
}

static inline int m2n__tx_up(const struct m2n__tx *tx)
{
	return atomic_load_explicit(&tx->up, memory_order_acquire);
}

/* Not up yet, but the peer is there and will be: calls may wait. */
static inline int m2n__link_coming(const atomic_int *prepared, const struct m2n__peer *peer)
{
	return atomic_load_explicit(prepared, memory_order_relaxed) &&
	       atomic_load_explicit(&peer->state, memory_order_relaxed) == M2N_PEER_LIVE;
}

/* Does the process behind the link get this round? */
static inline int m2n__tx_gets(const struct m2n__tx *tx, uint64_t round)
{
	return m2n__tx_up(tx) &&
	       atomic_load_explicit(&tx->first_round, memory_order_relaxed) <= round;
}

static inline int m2n__rx_up(const struct m2n__rx *rx)
{
	return atomic_load_explicit(&rx->up, memory_order_acquire);
}

/* Does the process behind the link send this round? */
static inline int m2n__rx_gets(const struct m2n__rx *rx, uint64_t round)
{
	return m2n__rx_up(rx) &&
	       atomic_load_explicit(&rx->first_round, memory_order_relaxed) <= round;
}

/*
 * Not up yet, but it will be: its process was here before and will say where its rounds go on, or
 * the application has admitted the new one to this round.
 */
static inline int m2n__rx_comes(const struct m2n__rx *rx, uint64_t round)
{
	int state = atomic_load_explicit(&rx->peer->state, memory_order_relaxed);

	return !m2n__rx_up(rx) && (state == M2N_PEER_LIVE || state == M2N_PEER_JOINING) &&
	       (atomic_load_explicit(&rx->returning, memory_order_relaxed) ||
		       atomic_load_explicit(&rx->admitted, memory_order_relaxed) <= round);
}

static inline struct m2n__slot_head *m2n__tx_head(
	const struct m2n_exchange *x, const struct m2n__tx *tx, uint32_t slot)
{
	return (struct m2n__slot_head *)(tx->slots + slot * x->stride);
}

/*
 * Publishes the head of a round for a mapped peer; payload and other fields of the head were
 * written before. Does not wake the peer: m2n__tx_notify() does.
 */
static inline void m2n__tx_signal(
	const struct m2n_exchange *x, struct m2n__tx *tx, uint32_t slot, uint64_t round)
{
	tx->sent[slot] = round + 1;
	/* R1: payload and fields before the signal, pairs with A1. */
	atomic_store_explicit(&m2n__tx_head(x, tx, slot)->signal, round + 1, memory_order_release);
}

/*
 * Messaging: writes head and the joined pieces behind it. `head` is copied. The pieces are kept
 * until flush. Pieces beyond what one transfer takes go first; n_body_puts counts their signals.
 * 0, or M2N_ERR_PEER_LOST.
 */
int m2n__tx_put_slot(struct m2n_exchange *x, struct m2n__tx *tx, uint32_t slot, uint64_t round,
	struct m2n__slot_head *head, const struct m2n__piece *pieces, size_t n);
/*
 * Messaging, CUDA memory: body_bytes of the staged region, then head_bytes of the staged slot, as
 * they lie on the device. 0, or M2N_ERR_PEER_LOST.
 */
int m2n__tx_put_device(struct m2n_exchange *x, struct m2n__tx *tx, uint32_t slot,
	size_t head_bytes, size_t body_at, size_t body_bytes);
/*
 * Messaging: a message of at most the link's max_sealed that the peer will find by its seal. Its
 * payload is staged; `head` is completed and copied. 0, or M2N_ERR_PEER_LOST.
 */
int m2n__tx_put_sealed(struct m2n_exchange *x, struct m2n__tx *tx, uint32_t slot, uint64_t round,
	struct m2n__slot_head *head);
/* Messaging: writes the joined pieces to the peer's region; adds the number of signals. */
int m2n__tx_put_region(struct m2n_exchange *x, struct m2n__tx *tx, uint32_t slot, size_t offset,
	const struct m2n__piece *pieces, size_t n, uint32_t *n_puts);
/* Exact placement: the body of the round is complete; messaging: n_puts signals made it. */
int m2n__tx_body_signal(
	struct m2n_exchange *x, struct m2n__tx *tx, uint32_t slot, uint64_t round, uint32_t n_puts);
/* Bytes from one staged head to the next (messaging). */
static inline size_t m2n__stage_stride(const struct m2n__exchange_spec *spec)
{
	return (sizeof(struct m2n__slot_head) + spec->stage_bytes + M2N__CACHE_LINE - 1) &
	       ~(size_t)(M2N__CACHE_LINE - 1);
}
/* Payload staging of a slot (messaging): stage_bytes behind a staged head. */
uint8_t *m2n__tx_stage(struct m2n_exchange *x, struct m2n__tx *tx, uint32_t slot);
/* Room for a slot's payload in registered memory. NULL with text: out of memory. */
uint8_t *m2n__tx_bounce(struct m2n_exchange *x, struct m2n__tx *tx, uint32_t slot);

static inline void m2n__tx_notify(struct m2n__tx *tx)
{
	tx->ep->ops->notify(tx->ep);
}

static inline void m2n__tally_add(_Atomic uint64_t *counter, uint64_t n)
{
	/* one writer: no locked instruction needed */
	atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + n,
		memory_order_relaxed);
}
void m2n__tally_read(const struct m2n__tally *tally, struct m2n_counters *counters);

/* Waits until all transfers to the peer are done. 0, -EAGAIN, -ETIMEDOUT, M2N_ERR_PEER_LOST. */
int m2n__tx_flush(struct m2n_exchange *x, struct m2n__tx *tx, int64_t timeout_ns);

#endif
