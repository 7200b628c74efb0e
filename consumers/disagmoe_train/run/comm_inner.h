/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of comm share. */
#ifndef RUN_COMM_INNER_H
#define RUN_COMM_INNER_H

#include "run/comm.h"

enum {
	COMM_REPORT_BYTES = 1024,
	COMM_SUM_BYTES = 1 << 20, /* of a message of sums, at most */
};

struct comm {
	struct comm_params p;
	uint32_t max_rows;                      /* of this rank in a micro-batch */
	struct m2n_channel *own[FLOW_WAYS];     /* of this group */
	struct m2n_channel *before[FLOW_WAYS];  /* of the group before; with p == 1 the same */
	struct m2n_exchange *beside[FLOW_WAYS]; /* residuals, gradients; attention ranks */
	int peer_to[FLOW_WAYS], peer_from[FLOW_WAYS]; /* of these */
	struct m2n_exchange *sums;                    /* inside an attention group of several */
	struct m2n_exchange *control;                 /* with rank 0; there are several ranks */
	size_t packed_bytes, bytes;
	struct m2n_mem **mems;
	size_t n_mems;
};

/* Attention ranks only: makes both exchanges beside the channels, and the one for sums. */
int comm_open_beside(struct comm *comm);
int comm_open_control(struct comm *comm);
/* libm2n's text becomes ours. */
int comm_fail(int rc);

#endif
