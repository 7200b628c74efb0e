/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Exchange: plain bytes between peers over slots, credits and signals; no tokens, no experts.
 * What dispatch and combine are built on, and what pipelines use for side-cars.
 *
 * For each pair (sender, receiver) messages arrive in the order they were put. The receiver owns
 * `depth` slots of max_bytes for each sender; a put fills the next one, and waits when all are
 * full until the receiver has released one (credit).
 */
#ifndef M2N_EXCHANGE_H
#define M2N_EXCHANGE_H

#include <m2n/counters.h>
#include <m2n/group.h>

#ifdef __cplusplus
extern "C" {
#endif

struct m2n_exchange;

struct m2n_exchange_params {
	size_t size;
	const char *name;     /* up to 23 characters; the same on both sides of a link */
	const int *send_to;   /* [n_send] group ranks, distinct; the own rank is allowed */
	size_t n_send;
	const int *recv_from; /* [n_recv] */
	size_t n_recv;
	size_t max_bytes;     /* of one message; both sides of a link must agree */
	uint32_t depth;       /* slots per sender, 1..64; both sides must agree */
	int64_t timeout_ns;   /* for connecting */
};
#define M2N_EXCHANGE_PARAMS_INIT \
	{sizeof(struct m2n_exchange_params), NULL, NULL, 0, NULL, 0, 0, 2, M2N_TIMEOUT_DEFAULT}

/*
 * Creates an exchange and waits until its links are up. params is borrowed for the call.
 *
 * Returns 0; -EINVAL; -ENOMEM; M2N_ERR_SHAPE (both ranks and both values in the text);
 * -ETIMEDOUT (the ranks that did not come); M2N_ERR_PEER_LOST. On failure nothing is left.
 */
M2N_API int m2n_exchange_create(struct m2n_group *group, const struct m2n_exchange_params *params,
	struct m2n_exchange **exchange);
M2N_API void m2n_exchange_destroy(struct m2n_exchange *exchange);

/*
 * Sends one message: the pieces of iov, joined, to group rank `peer`.
 *
 * The pieces may be reused when m2n_exchange_flush() returned 0 (for mapped peers: at once).
 * Returns 0; -EAGAIN or -ETIMEDOUT (no slot free; nothing was queued); M2N_ERR_PEER_LOST;
 * -EINVAL (not a peer of this exchange); -EMSGSIZE. One thread may send while another receives.
 */
M2N_API int m2n_exchange_put(struct m2n_exchange *exchange, int peer, const struct m2n_iov *iov,
	size_t n_iov, int64_t timeout_ns);

/* Waits until the pieces of all puts to `peer` may be reused. 0, -EAGAIN, -ETIMEDOUT, PEER_LOST. */
M2N_API int m2n_exchange_flush(struct m2n_exchange *exchange, int peer, int64_t timeout_ns);

/*
 * Receives the next message of group rank `peer`, in place: *data stays valid until
 * m2n_exchange_release(). One message per peer is held at a time.
 * Returns 0; -EAGAIN; -ETIMEDOUT; M2N_ERR_PEER_LOST (everything that had arrived
 * was taken; said once also when the rank was replaced meanwhile, before the new messages);
 * M2N_ERR_PROTOCOL; -EINVAL; -EBUSY (the last one was not released).
 */
M2N_API int m2n_exchange_get(struct m2n_exchange *exchange, int peer, int64_t timeout_ns,
	const void **data, size_t *bytes);
/* Gives the held message's slot back. -EINVAL when none is held. */
M2N_API int m2n_exchange_release(struct m2n_exchange *exchange, int peer);

/* Counters of one peer, both directions. -EINVAL: not a peer. Thread-safe. */
M2N_API int m2n_exchange_counters(struct m2n_exchange *exchange, int peer,
	struct m2n_counters *sent, struct m2n_counters *received);

#ifdef __cplusplus
}
#endif
#endif
