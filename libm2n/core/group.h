/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The inside of a group: peers, their control connections, and the exchanges that hang off them.
 *
 * Everything here is the control plane: it runs under the context's lock, from waits that found
 * nothing and from m2n_ctx_progress(), never from a round that goes on promptly. What the data
 * path reads of a peer (its state) is atomic.
 *
 * Who calls whom: the lower rank calls the higher one, and a rank that replaces a lost one calls
 * everybody. A lost process that is to be added again is called by whoever wants it. When both
 * call at once the lower rank's call stands.
 */
#ifndef M2N_CORE_GROUP_H
#define M2N_CORE_GROUP_H

#include <m2n/group.h>

#include "bootstrap/store.h"
#include "core/context.h"
#include "core/record.h"
#include "wire/control_wire.h"

#define M2N__MAX_RANKS (1 << 20)

struct m2n__conn;
struct m2n_exchange;

struct m2n__peer {
	struct m2n_group *group;
	int rank;
	_Atomic int state; /* enum m2n_peer_state */
	int wanted;        /* an exchange or a call needs it connected */
	int fatal;         /* why connecting cannot work: a status; 0: keep trying */
	char fatal_text[256];
	char reason[128];
	uint64_t incarnation; /* of the process that is or was there; 0: none yet */
	struct m2n__conn *conn;
	struct m2n__ep *ep;
	int connecting;   /* the ep is there, but not ready: greetings are under way */
	int met;          /* the peer's greeting came */
	int is_doubtful;  /* its connection ended before it said anything */
	unsigned backend; /* index in the context */
	int same_host;
	int64_t retry_ns;
};

/* A LINK frame that came before the exchange it names was created. */
struct m2n__pending {
	struct m2n__pending *next;
	int rank;
	size_t bytes;
	uint8_t body[];
};

struct m2n__old_ep { /* connections of lost processes; links may still point at their memory */
	struct m2n__old_ep *next;
	struct m2n__ep *ep;
};

struct m2n_group {
	struct m2n_group *next;
	struct m2n_ctx *ctx;
	char name[64];
	int rank;
	int n_ranks; /* as joined */
	int n_peers; /* room in peers: grows with ranks >= n_ranks */
	struct m2n__peer **peers;
	struct m2n__store *store;
	struct m2n__auth_key key;
	struct m2n__record record; /* the own one */
	int replacing;
	int epoll_fd;
	int listen_fd;
	struct m2n__conn *conns;
	struct m2n__pending *pending;
	unsigned n_pending;
	struct m2n__old_ep *old_eps;
	struct m2n_exchange *exchanges;
	struct m2n__grave *graves;
	struct m2n__answer *answers;
	uint64_t next_conn_id, next_link_id, next_instance;
	unsigned n_to_dial; /* peers that drive() must look at */
	unsigned n_connecting;
	unsigned n_retries; /* peers to be called again in a moment */
	unsigned n_broken; /* of all backends' connections, when they were last looked at */
};

/* The peer of a rank, made when it is new; NULL with -EINVAL's or -ENOMEM's text. Under lock. */
struct m2n__peer *m2n__group_peer(struct m2n_group *group, int rank);
/* Events on control connections, and calls that are due. Under lock. */
int m2n__group_poll(struct m2n_group *group);
/* Asks for a peer to be connected; the calls are made by m2n__group_poll(). Under lock. */
void m2n__peer_want(struct m2n__peer *peer);
/* The peer cannot be used any more: state, reason, its links go down. Under lock. */
void m2n__peer_lost(struct m2n__peer *peer, enum m2n_peer_state state, const char *reason);
/* A peer that was being connected is no more there. Under lock. */
void m2n__peer_gone(struct m2n__peer *peer, const char *reason);
/* Looks, sleeps for a moment on the control connections, looks again. Takes the lock itself. */
void m2n__group_wait(struct m2n_group *group, int max_ms);
#define M2N__GROUP_NAP_MS 20
/*
 * Closes connections of lost peers that take part in messaging, when no call uses them: what
 * such a peer had put must not arrive later. (What is mapped stays: stores to it harm nobody.)
 */
void m2n__old_eps_close(struct m2n_group *group);
/* Sends a frame to a peer; one that cannot take it is lost. Under lock. */
void m2n__peer_send(
	struct m2n__peer *peer, enum m2n__frame_type type, const void *body, size_t bytes);
/* Why a link to the peer is down; constant while it is. */
const char *m2n__peer_reason(const struct m2n__peer *peer);
/* A call that needs the peer now: 0, or its fatal status with text, or PEER_LOST with reason. */
int m2n__peer_status(struct m2n__peer *peer);

/* The store's key of a rank's address record. */
void m2n__peer_key(const struct m2n_group *group, int rank, char key[M2N__STORE_KEY_MAX]);
/* Processes of this host that are connected: more or less by `change`. */
void m2n__count_local(struct m2n_ctx *ctx, int change);

/* core/control.c: connections. All under lock. */
int m2n__control_open(struct m2n_group *group, const char *address);
void m2n__control_close(struct m2n_group *group);
int m2n__control_dial(struct m2n__peer *peer, const struct m2n__record *record);
int m2n__control_poll(struct m2n_group *group);
/* Ends a connection. With `linger` it stays half open until the peer's end was seen. */
void m2n__conn_end(struct m2n__conn *conn, int linger);
/* Does a connection up to number `id` still wait for the end of a peer that we gave up? */
int m2n__conn_lingers(struct m2n_group *group, uint64_t id);
void m2n__conn_send(
	struct m2n__conn *conn, enum m2n__frame_type type, const void *body, size_t bytes);
/* Ends a connection with a word on why: the error text. */
void m2n__conn_reject(struct m2n__conn *conn, int status);

/* core/group.c, called by control.c. */
/* Proven and agreed: choose a backend, connect, bring links up. 0 or a status for a REJECT. */
int m2n__peer_opened(
	struct m2n__peer *peer, struct m2n__conn *conn, const struct m2n__record *record);

/* The peer's greeting. 0, or an error: the peer cannot be connected. */
int m2n__peer_greeted(struct m2n__peer *peer, const void *greeting, size_t bytes);

/* core/notice.c: what backends tell each other. A peer's notice; 0, or its error. Under lock. */
int m2n__peer_noticed(struct m2n__peer *peer, const void *notice, size_t bytes);
/* Forgets notices to peers of a group that is left. Under lock. */
void m2n__notices_forget(struct m2n_group *group);

/* core/link.c, called by group.c and control.c. */
void m2n__exchange_peer_live(struct m2n_exchange *exchange, struct m2n__peer *peer);
void m2n__exchange_peer_lost(struct m2n_exchange *exchange, struct m2n__peer *peer);
void m2n__exchange_forget_ep(struct m2n_exchange *exchange, const struct m2n__ep *ep);
/* A LINK or UNLINK frame. 0, or M2N_ERR_PROTOCOL: the peer is then lost. */
int m2n__link_frame(
	struct m2n__peer *peer, enum m2n__frame_type type, const uint8_t *body, size_t bytes);
/* Drops LINK frames of a process that went. Under lock. */
void m2n__group_forget(struct m2n_group *group, int rank);
void m2n__exchange_close(struct m2n_exchange *exchange);
struct m2n_exchange *m2n__exchange_next(struct m2n_exchange *exchange);
/* core/credit.c: pays credits that are owed. Under lock. */
void m2n__credits_poll(struct m2n_group *group);

/* core/link_end.c: memory of exchanges that were closed. */
void m2n__graves_poll(struct m2n_group *group);
/* What still waits is left to the context. */
void m2n__graves_close(struct m2n_group *group);
void m2n__graves_free(struct m2n_ctx *ctx);
/* May a connection be closed: is no call writing into a peer's memory right now? */
int m2n__group_is_idle(struct m2n_group *group);

#endif
