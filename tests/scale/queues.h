/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What this process holds of RDMA devices, as the kernel counts it (`rdma resource`): the other
 * side of the formulas of docs/scale.md for networks.
 */
#ifndef M2N_TESTS_SCALE_QUEUES_H
#define M2N_TESTS_SCALE_QUEUES_H

#include <stdint.h>

struct queues {
	uint64_t n_qps, n_cqs, n_srqs, n_mrs;
	uint64_t n_cqes;       /* room of all completion queues */
	uint64_t pinned_bytes; /* of all memory regions */
	uint64_t queue_bytes;  /* mapped from devices: send, receive and completion queues */
};

/* 0, or -1: there is no such tool, or it fails. */
int queues_count(struct queues *queues);

#endif
