/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The part of NCCL that the backend calls. Declared here, not taken from nccl.h, and opened at run
 * time (libnccl.so.2): a library built without NCCL uses the one that the program has. Results are
 * plain int, communicators plain pointers, streams those of the CUDA driver (which are the
 * runtime's).
 *
 * Source: NCCL user guide, API reference, 2.19 to 2.28; all of this is in 2.19.
 */
#ifndef M2N_BACKEND_NCCL_LIB_H
#define M2N_BACKEND_NCCL_LIB_H

#include <stddef.h>

#define M2N__NCCL_MIN_VERSION 21900 /* as ncclGetVersion() tells it */
#define M2N__NCCL_UNDEFINED (-2147483647 - 1)

enum {
	M2N__NCCL_SUCCESS = 0,
	M2N__NCCL_SYSTEM_ERROR = 2,
	M2N__NCCL_REMOTE_ERROR = 6,
	M2N__NCCL_IN_PROGRESS = 7,

	M2N__NCCL_UINT8 = 1, /* the type of what is sent */
};

struct m2n__nccl_id {
	char bytes[128];
};

/* ncclConfig_t of version 2.19; later ones take it by its size and version. */
struct m2n__nccl_config {
	size_t size;
	unsigned magic;   /* M2N__NCCL_CONFIG_MAGIC */
	unsigned version; /* of this layout */
	int blocking;
	int cga_cluster_size;
	int min_ctas, max_ctas;
	const char *net_name;
	int split_share;
	int traffic_class; /* padding before 2.25 */
};
#define M2N__NCCL_CONFIG_MAGIC 0xcafebeefu

/* clang-format off */
/* X(result, name, parameters) */
#define M2N__NCCL_FUNCTIONS(X) \
	X(int, ncclGetVersion, (int *version)) \
	X(const char *, ncclGetErrorString, (int result)) \
	X(const char *, ncclGetLastError, (void *comm)) \
	X(int, ncclGetUniqueId, (struct m2n__nccl_id *id)) \
	X(int, ncclCommInitRankConfig, (void **comm, int n_ranks, struct m2n__nccl_id id, \
		int rank, struct m2n__nccl_config *config)) \
	X(int, ncclCommGetAsyncError, (void *comm, int *error)) \
	X(int, ncclCommAbort, (void *comm)) \
	X(int, ncclGroupStart, (void)) \
	X(int, ncclGroupEnd, (void)) \
	X(int, ncclSend, (const void *at, size_t n, int type, int peer, void *comm, void *stream)) \
	X(int, ncclRecv, (void *at, size_t n, int type, int peer, void *comm, void *stream))
/* clang-format on */

struct m2n__nccl_lib {
#define M2N__NCCL_POINTER(result, name, params) result(*name) params;
	M2N__NCCL_FUNCTIONS(M2N__NCCL_POINTER)
#undef M2N__NCCL_POINTER
	int version; /* 0: not loaded */
};

/* Filled by m2n__nccl_load(), for the rest of the process. */
extern struct m2n__nccl_lib m2n__nccl;

/* 0, or M2N_ERR_BACKEND: the library is missing, lacks something, or is too old. */
int m2n__nccl_load(void);

/* "2.28.9" of a version number; returns text. */
const char *m2n__nccl_version_text(int version, char text[24]);

/*
 * What NCCL returned, or an asynchronous error, as an error of ours with NCCL's words, also the
 * last ones of the communicator (which may be NULL). M2N_ERR_PEER_LOST when it is the peer's or
 * the network's, else M2N_ERR_BACKEND.
 */
int m2n__nccl_error(int result, void *comm, const char *what);

#endif
