/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the transport over libm2n share. */
#ifndef MEGASCALE_TRANSPORT_M2N_H
#define MEGASCALE_TRANSPORT_M2N_H

#include <m2n/m2n.h>

#include "owners.h"
#include "transport.h"

enum { TRANSPORT_MAX_ALLOCS = 64 };

/* A micro-batch under way. */
struct transport_flight {
	struct m2n_plan *plan;
	int32_t *ids; /* [max_rows, top_k] of the channel: layer * n_experts + expert */
	uint32_t n_rows;
	int is_orphan; /* an empty round in place of rows whose expert nobody has */
};

struct transport {
	struct transport_params p;
	struct transport_stats stats;
	struct m2n_group *group;
	struct m2n_channel *channel;
	struct m2n_mem *allocs[TRANSPORT_MAX_ALLOCS];
	size_t n_allocs;
	int source, expert;

	struct transport_flight flights[TRANSPORT_MAX_FLIGHTS]; /* attention rank */
	uint64_t n_sent, n_received;
	uint8_t *missing;    /* [max_rows] */
	uint64_t lost_ranks; /* bitmap over expert rank indexes */
	uint64_t incarnations[64];
	struct transport_stall stall;
	int64_t orphan_ns; /* since when nobody has an expert; 0: all have owners */

	uint64_t *live_sources; /* expert rank: mask of dispatch_recv */
	const struct m2n_batch *batch;
	struct transport_part *parts;
	struct transport_work work;
	void *place; /* of its replies, at the sink */

	struct owners_shape shape;
	uint64_t *owners;              /* [n_ids] in force */
	struct m2n_map *map;           /* the same */
	uint64_t next_placement;       /* number of the next switch */
	uint32_t *rows;                /* [n_ids] of the window, that this rank sent */
	float *load;                   /* [n_ids] of all attention ranks */
	struct placement_value *value; /* of the store */
};

int transport_fail(int rc); /* passes libm2n's text on */
/* Which expert ranks are lost, and whether one came back. */
void transport_look_at_peers(struct transport *t);

/* placement.c: who owns which expert. */
int placement_open(struct transport *t);
int placement_linked(struct transport *t); /* the channel is there */
/* To be called before this rank's part in a round. */
int placement_before(struct transport *t, uint64_t round);
void placement_leave(struct transport *t); /* before the channel goes */
void placement_close(struct transport *t);

#endif
