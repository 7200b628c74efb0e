/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The inside of a channel: two exchanges (dispatch: sources -> expert ranks, reply: expert ranks
 * -> sinks) and, for exact placement, a third (grant: expert ranks -> sources); the state of the
 * rounds in flight on each side; the expert maps.
 *
 * A dispatch slot's payload is, each part aligned to a cache line:
 *
 *   counts   u32 [n_local]       rows per local expert
 *   index    u32 [n_rows]        dedup: which travelling row each row is
 *   weights  f32 [n_rows]        reduce_at_expert
 *   scales   [n_sent, scale_bytes]
 *   rows     [n_sent, row_bytes]
 *
 * With exact placement scales and rows go to the expert rank's region instead, at the places that
 * the grant names. Replies go to the sink's region at the place that the dispatch head named, in
 * the order of the rows: mirror addressing.
 */
#ifndef M2N_CORE_CHANNEL_H
#define M2N_CORE_CHANNEL_H

#include <m2n/round.h>

#include "core/link.h"
#include "route/plan.h"

#define M2N__MAX_DEPTH 64
#define M2N__MAX_TOP_K 64

/* Offsets of the parts behind a head. */
struct m2n__layout {
	size_t index, weights, scales, rows, end;
};

/* slot = round % depth without a division while rounds are taken in order. */
struct m2n__ring {
	uint64_t round;
	uint32_t slot;
};

/* A round at its source (and at its sink, when that is the source). */
struct m2n__open {
	uint64_t round;
	int busy;       /* sent, replies not all taken */
	uint32_t place; /* region slot of the replies */
	uint64_t *part; /* bitmap over expert ranks that got a head */
	uint64_t *answered;
	uint64_t *refused;   /* expert ranks that had no room (exact placement, drop) */
	uint64_t *ungranted; /* exact placement: rows not sent yet */
	atomic_uint n_ungranted;   /* written under m2n__grants_lock() */
	struct m2n_dispatch_send_params send; /* for those rows; pointers are the caller's */
	/* Messaging: of the caller's rows and scales; `make`: they go through staging instead. */
	const struct m2n__reg *rows_reg, *scales_reg;
	int make;
};

/* One source's share of a batch. */
struct m2n__share {
	int state; /* SHARE_* */
	uint32_t n_rows, n_sent;
	uint32_t sink;
	uint32_t n_laid;        /* rows that have their segment */
	uint32_t segment;       /* its first one in the batch, plus 1; 0: it has no rows */
	uint32_t *link;         /* where the next one's number goes */
	uint64_t place;         /* in the sink's region */
	const uint8_t *payload; /* in the slot */
	const uint8_t *rows, *scales;
	const uint32_t *index; /* dedup: in the slot; else NULL */
	uint32_t region_row;   /* exact placement with dedup: first row in the region */
	uint8_t *reply_place;  /* that the application was given, at the sink; NULL: none */
};

enum m2n__share_state {
	SHARE_AWAITED = 0,
	SHARE_HEAD = 1, /* exact placement: counts are known, rows are not here */
	SHARE_PRESENT = 2,
	SHARE_ABSENT = 3,  /* masked, lost, or not admitted */
	SHARE_REFUSED = 4, /* no room for its rows */
	SHARE_LOST = 5,    /* lost after it was granted a place */
};

/* A round at an expert rank. */
struct m2n__batch {
	struct m2n_batch pub;
	int held;
	uint32_t n_local;
	uint32_t n_present, n_present_rows; /* sources whose rows are here */
	struct m2n__share *shares;          /* [n_sources] */
	uint32_t *counts;                   /* [max_local, n_sources] */
	uint32_t *first;              /* [max_local, n_sources] first row in the batch's order */
	uint32_t *expert_rows;        /* [max_local] */
	struct m2n_segment *segments; /* [max_local * n_sources] */
	uint32_t *next_segment; /* [max_local * n_sources] of the same source, plus 1; 0: none */
	uint64_t *missing;      /* bitmap over sources */
	uint32_t place;         /* exact placement: region slot of the rows */
	int has_places;         /* some share has a reply_place */
};

/*
 * The maps of a channel, newest first. Read without a lock: a node never changes once it is
 * published, and it outlives every round that can still be in flight when it falls out of use.
 */
struct m2n__map_use {
	struct m2n_map *map;
	uint64_t first_round;
	struct m2n__map_use *older;
};

struct m2n__gpu;

struct m2n_channel {
	struct m2n__gpu *gpu; /* in CUDA memory: its part on the device; else NULL */
	struct m2n_group *group;
	struct m2n_ctx *ctx;
	struct m2n_channel_params p; /* lists are copies; zeros are filled in */
	char name[16];
	char title[40];
	int own_sinks; /* the sinks are the sources */
	int self_source, self_expert, self_sink;
	int *ranks; /* the lists behind p.sources, p.experts, p.sinks */
	uint32_t n_words_experts, n_words_sources; /* of bitmaps */
	uint32_t slot_rows;   /* travelling rows that a dispatch slot holds (slot placement) */
	uint32_t region_rows; /* rows of a region slot (exact placement) */
	uint32_t reply_rows;  /* rows of a region slot of replies */
	uint32_t max_local, max_instances;
	size_t n_values; /* of an output row */
	_Atomic(struct m2n__map_use *) maps;
	unsigned shape_map; /* where the newest map's digest is in the shape */
	struct m2n_exchange *dispatch, *reply, *grant;
	struct m2n_channel *next_exact;

	/* source and own sink; one thread */
	_Alignas(64) _Atomic uint64_t next_send;
	uint64_t next_combine;
	struct m2n__ring send_ring, combine_ring;
	struct m2n__open *open; /* [depth] */
	uint8_t **row_base;     /* [n_experts] where a rank's rows go, shifted to its first row */
	uint8_t **scale_base;
	uint8_t *scratch; /* one row, cast or weighted */
	uint8_t *scratch_scales;
	struct m2n__piece *pieces; /* messaging: gather list */
	struct m2n__shared made_rows; /* messaging: [depth] rows as they travel, if made */
	size_t made_bytes;            /* of one round */
	atomic_flag granting; /* exact placement: one thread at a time answers grants */

	/* sinks that are not the sources */
	uint64_t *sink_round;    /* [n_sources] next to combine */
	uint64_t *sink_answered; /* [n_sources * depth, words] */
	uint64_t *sink_owed;     /* [n_sources * depth] round + 1 whose credits wait; 0: none */

	/* expert; one thread */
	_Alignas(64) _Atomic uint64_t next_recv;
	struct m2n__ring recv_ring;
	struct m2n__batch *batches; /* [depth] */
	int recv_phase;             /* exact placement: 0 heads, 1 bodies */
	struct m2n__piece *reply_pieces; /* messaging: gather list of this side */
	struct m2n__shared made_replies; /* messaging: [depth, n_sources] replies, if made */
	uint32_t n_with_places;     /* batches whose replies the application may be writing */
	uint32_t *reduce_first;     /* reduce_at_expert: CSR over unique rows */
	uint32_t *reduce_row;
};

static inline uint32_t m2n__ring_slot(struct m2n__ring *ring, uint64_t round, uint32_t depth)
{
	if (round == ring->round + 1)
		ring->slot = ring->slot + 1 == depth ? 0 : ring->slot + 1;
	else if (round != ring->round)
		ring->slot = (uint32_t)(round % depth); /* a jump: start, replay, replacement */
	ring->round = round;
	return ring->slot;
}

/* Bytes of the cache lines that n bytes take. */
static inline size_t m2n__lines(size_t n)
{
	return (n + M2N__CACHE_LINE - 1) & ~(size_t)(M2N__CACHE_LINE - 1);
}

static inline void m2n__layout(const struct m2n_channel *ch, uint32_t n_local, uint32_t n_rows,
	uint32_t n_sent, struct m2n__layout *l)
{
	l->index = l->weights = l->scales = m2n__lines(n_local * sizeof(uint32_t));
	if (ch->p.dedup)
		l->weights = l->scales = l->index + m2n__lines(n_rows * sizeof(uint32_t));
	if (ch->p.reduce_at_expert)
		l->scales = l->weights + m2n__lines(n_rows * sizeof(float));
	l->rows = l->end = l->scales;
	if (ch->p.placement == M2N_PLACEMENT_SLOT) {
		l->rows += m2n__lines(n_sent * ch->p.scale_bytes);
		l->end = l->rows + n_sent * ch->p.row_bytes;
	}
}

/* The map of a round; borrowed for the call. */
static inline struct m2n_map *m2n__channel_map(struct m2n_channel *ch, uint64_t round)
{
	/* A5: pairs with R5 in m2n_channel_set_map(). */
	const struct m2n__map_use *use = atomic_load_explicit(&ch->maps, memory_order_acquire);

	while (use->first_round > round && use->older)
		use = use->older;
	return use->map;
}
int m2n__channel_use_map(struct m2n_channel *ch, struct m2n_map *map, uint64_t first_round);
/* Expert ranks that the next round can use: links up. bitmap [n_words_experts]. */
void m2n__channel_live(struct m2n_channel *ch, uint64_t round, uint64_t *bitmap);

/* Checks params and fills what follows from them; pure. */
int m2n__channel_derive(const struct m2n_channel_params *params, struct m2n_channel *ch);
void m2n__channel_release_lists(struct m2n_channel *ch);
void m2n__channel_specs(struct m2n_channel *ch, struct m2n__exchange_spec *dispatch,
	struct m2n__exchange_spec *reply, struct m2n__exchange_spec *grant);
/* Allocates the states of rounds; returns bytes, or with `alloc` 0 only counts. */
int m2n__channel_alloc(struct m2n_channel *ch, size_t *bytes);
void m2n__channel_free(struct m2n_channel *ch);

/* Staging for the replies to one source; allocated when first needed. NULL: out of memory. */
uint8_t *m2n__replies_staging(struct m2n_channel *ch, uint32_t round_slot, uint32_t source);

/* Exact placement: a round that ended waits for no grant any more. */
void m2n__forget_grants(struct m2n_channel *ch, struct m2n__open *open);
/* Exact placement: who sends rows or heads holds this, but not while it waits for a peer. */
void m2n__grants_lock(struct m2n_channel *ch);
void m2n__grants_unlock(struct m2n_channel *ch);
/* Exact placement: answers grants that came; any call may make this progress. */
void m2n__send_granted(struct m2n_channel *ch);

/* A region slot that nobody writes to: `prefer`, or a spare one. -ENOBUFS with text. */
int m2n__region_pick_free(struct m2n_exchange *x, uint32_t prefer, uint32_t *place);
static inline int m2n__region_pick(struct m2n_exchange *x, uint32_t prefer, uint32_t *place)
{
	*place = prefer;
	return x->quarantine[prefer] ? m2n__region_pick_free(x, prefer, place) : 0;
}
/* Lost peers that are still alive may write to this region slot for a while. */
void m2n__region_quarantine(struct m2n_exchange *x, uint32_t place);
int m2n__region_quarantined(struct m2n_exchange *x, uint32_t place);

static inline int m2n__bit(const uint64_t *bitmap, uint32_t i)
{
	return bitmap[i >> 6] >> (i & 63) & 1;
}

static inline void m2n__bit_set(uint64_t *bitmap, uint32_t i)
{
	bitmap[i >> 6] |= UINT64_C(1) << (i & 63);
}

static inline void m2n__bit_clear(uint64_t *bitmap, uint32_t i)
{
	bitmap[i >> 6] &= ~(UINT64_C(1) << (i & 63));
}

/*
 * A host channel's address must be the host's: what is on a device would be a fault. 0, or -EINVAL
 * that names what. Only contexts with a device can tell, and need to.
 */
int m2n__host_pointer(const struct m2n_channel *ch, const char *what, const void *at);
static inline int m2n__check_host(
	const struct m2n_channel *ch, const char *what, const void *at)
{
	return ch->ctx->cuda && at ? m2n__host_pointer(ch, what, at) : 0;
}

/* Copies rows, streaming or through the caches. */
static inline void m2n__move(
	const struct m2n_channel *ch, int stream, void *dst, const void *src, size_t bytes)
{
	if (stream)
		ch->ctx->kernels->stream(dst, src, bytes);
	else
		ch->ctx->kernels->copy(dst, src, bytes);
}

#endif
