/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What bw and lat share: an exchange from each source to each expert rank and back, messages of
 * one size, a check of their bytes, and the bare yardstick between two processes.
 */
#ifndef PERF_MESSAGE_H
#define PERF_MESSAGE_H

#include "rank.h"

struct ucx_link;

struct message {
	struct perf_rank *rank;
	struct m2n_exchange *exchange;
	int first_peer, last_peer; /* group ranks of the other role: [first, last) */
	char *data;                /* [size_max] what is sent */
	struct m2n_mem *mem;
	uint64_t size;             /* now */
	uint32_t n_case;
	struct m2n_counters before; /* sent to all peers when this case began */
	uint64_t n_sent;           /* by the yardstick, for its flags */
	uint64_t n_received;
	bool credits;              /* the yardstick's receiver gives slots back */
	struct ucx_link *ucx;      /* NULL without */
};

void message_open(struct message *message, struct perf_rank *rank);
void message_close(struct message *message);
/* Before and after a case: its size, checks of the data, what its transfers cost. */
void message_begin(struct message *message, size_t n_case, uint64_t size, uint32_t n_messages);
void message_end(struct message *message);
/* Sends a message of `size` both ways between all pairs and checks every byte. */
void message_check(struct message *message, unsigned generation);

static inline void message_put(struct message *message, int peer)
{
	struct m2n_iov iov = {message->data, message->size};

	perf_rank_check(message->rank,
		m2n_exchange_put(message->exchange, peer, &iov, 1, M2N_TIMEOUT_DEFAULT),
		"m2n_exchange_put");
}

/* A receiver that uses what it got: its first and last byte. */
static inline void message_touch(const void *data, size_t bytes)
{
	const volatile char *text = data;

	(void)text[0];
	(void)text[bytes - 1];
}

static inline void message_take(struct message *message, int peer)
{
	const void *data;
	size_t bytes;

	perf_rank_check(message->rank,
		m2n_exchange_get(message->exchange, peer, M2N_TIMEOUT_DEFAULT, &data, &bytes),
		"m2n_exchange_get");
	message_touch(data, bytes);
}

static inline void message_release(struct message *message, int peer)
{
	perf_rank_check(message->rank, m2n_exchange_release(message->exchange, peer),
		"m2n_exchange_release");
}

static inline void message_get(struct message *message, int peer)
{
	message_take(message, peer);
	message_release(message, peer);
}

struct page_stamp *message_stamp(struct message *message, unsigned series, int64_t iter);

/* Series, cases, body and shared memory of a job of messages; as perf_test_ops.prepare(). */
bool message_prepare(struct perf_job *job, void (*body)(struct perf_rank *), bool with_stream,
	char *text, size_t text_bytes);

/* Allocates job->bounce for the bare yardstick. False: m2n_error_text(). */
bool bare_map(struct perf_job *job);
/* To the other process: a line with data and flag in one, or data, then a flag; never waits. */
void bare_put(struct message *message, bool nt);
/* Waits for the next one and touches it; gives its slot back. */
void bare_get(struct message *message);
/* Waits until fewer than `depth` messages are not taken yet. */
void bare_wait_credit(struct message *message);

/* UCX between the same two processes: put and flag. */
struct ucx_link *ucx_link_open(struct perf_rank *rank, uint64_t size_max, uint32_t depth);
void ucx_link_close(struct ucx_link *link);
/* Puts data into slot number % depth of the peer, and a flag behind it. */
void ucx_link_put(struct ucx_link *link, const void *data, uint64_t size);
/* Waits for the next message and touches it. */
void ucx_link_get(struct ucx_link *link, uint64_t size);
/*
 * Both sides: drives progress until all that was put has arrived on either. Some transports move
 * the other side's bytes only in here.
 */
void ucx_link_settle(struct ucx_link *link);
/* Whether this build has UCX. */
bool ucx_link_built(void);
/* Bytes of page_extra() that ucx_link_open() wants. */
#define UCX_EXTRA_BYTES (2u << 16)

#endif
