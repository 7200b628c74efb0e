/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Group: the ranks that can reach each other; membership and liveness.
 *
 * Joining publishes this rank's address in the bootstrap store and returns; connections to peers
 * are made when a channel or exchange first needs them. Nothing is collective. A peer whose
 * process ends, whose host vanishes or whose link breaks becomes *lost*: calls that involve it
 * name it, everybody else goes on. A new process that joins with the same rank replaces it.
 */
#ifndef M2N_GROUP_H
#define M2N_GROUP_H

#include <m2n/context.h>
#include <m2n/store.h>

#ifdef __cplusplus
extern "C" {
#endif

struct m2n_group;

struct m2n_group_params {
	size_t size;
	const char *name;   /* tells groups on one store apart; NULL: option GROUP */
	int rank;           /* -1: from the launcher */
	int n_ranks;        /* -1: from the launcher */
	const char *store;  /* URL; NULL: option STORE, else the launcher's */
	const struct m2n_store_callbacks *callbacks; /* used instead of a URL when not NULL */
	const char *secret; /* NULL: option SECRET, else none; proven, never sent */
	int64_t timeout_ns; /* for reaching the store */
};
#define M2N_GROUP_PARAMS_INIT \
	{sizeof(struct m2n_group_params), NULL, -1, -1, NULL, NULL, NULL, M2N_TIMEOUT_DEFAULT}

/*
 * Joins a group. When the rank was there before (a lost process), this one replaces it. A rank
 * that is not below n_ranks makes the group larger: peers reach it by m2n_group_add() or by
 * naming it in a channel.
 *
 * Returns 0; -EINVAL (rank or size unknown or out of range: the text says which variables were
 * looked at); M2N_ERR_STORE, M2N_ERR_AUTH, -ETIMEDOUT (store not reached); M2N_ERR_BACKEND.
 * `*group` is owned by the caller until m2n_group_leave(). Blocks for the store at most.
 */
M2N_API int m2n_group_join(struct m2n_ctx *ctx, const struct m2n_group_params *params,
	struct m2n_group **group);

/* Leaves: peers see this rank as left, not lost. Channels and exchanges must be destroyed first. */
M2N_API void m2n_group_leave(struct m2n_group *group);

/* This rank, and the number of ranks as joined. Thread-safe. */
M2N_API int m2n_group_rank(const struct m2n_group *group);
M2N_API int m2n_group_size(const struct m2n_group *group);

enum m2n_peer_state {
	M2N_PEER_IDLE = 0,    /* no connection was needed yet */
	M2N_PEER_JOINING = 1, /* being connected */
	M2N_PEER_LIVE = 2,
	M2N_PEER_LOST = 3,
	M2N_PEER_LEFT = 4,
};

struct m2n_peer_attr {
	enum m2n_peer_state state;
	const char *backend; /* "" before it is connected; constant */
	char reason[128];    /* why lost; "" otherwise */
	uint64_t incarnation; /* changes when the rank is replaced */
};

/* State of a peer as known now, after a look at the control connections. -EINVAL: no such rank. */
M2N_API int m2n_group_peer(struct m2n_group *group, int rank, struct m2n_peer_attr *attr);

/*
 * Gives a peer up: it becomes lost here at once, and sees this rank as lost when it next looks.
 * For peers that are alive but do not answer. 0, also when it was lost already; -EINVAL.
 */
M2N_API int m2n_group_drop(struct m2n_group *group, int rank);

/*
 * Connects to a peer now: one that is idle; the process that replaces a lost one; a lost one that
 * is still alive, when its link is back, or after it was dropped; or, with rank >= size, one that
 * makes the group larger. Channels that include the rank link again. Of two processes that lost
 * each other either may call this, the lower or the higher rank, and both may; its rounds go on
 * where it is (only a new process needs m2n_channel_admit()).
 * 0; -ETIMEDOUT (nobody with that rank came); M2N_ERR_AUTH; M2N_ERR_VERSION; M2N_ERR_BACKEND (no
 * backend reaches it, or the connection cannot be made: the text says why); -EINVAL.
 */
M2N_API int m2n_group_add(struct m2n_group *group, int rank, int64_t timeout_ns);

/*
 * Small values for the application's own agreements, in the group's store: a key of up to 100
 * printable characters, a value of up to 60,000 bytes. get waits until the key is there;
 * *bytes is the room on entry and the size on return.
 * 0; -ETIMEDOUT; -EAGAIN (timeout 0 and not there); -ENOSPC; M2N_ERR_STORE; -EINVAL.
 */
M2N_API int m2n_group_put(struct m2n_group *group, const char *key, const void *value,
	size_t bytes, int64_t timeout_ns);
M2N_API int m2n_group_get(struct m2n_group *group, const char *key, void *value, size_t *bytes,
	int64_t timeout_ns);

#ifdef __cplusplus
}
#endif
#endif
