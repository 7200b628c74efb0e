/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Groups of the stand-in of libnccl.so.2: gathered between ncclGroupStart() and ncclGroupEnd() of a
 * thread, joined and put on the stream by a job, moved by the communicator's thread when the
 * stream has come to them.
 *
 * On a wire: the sender's head and bytes, for each transfer; the receiver's number when it has
 * them. A head of another size than the receiver expects is an error on both sides.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "doubles/nccl_state.h"

#define EAGER_BYTES 4096 /* every second send up to this is done before it is received */
#define REFUSED UINT64_MAX
#define LOOK_MS 2

struct head {
	uint64_t number, bytes;
};

static THREAD_LOCAL int depth;
static THREAD_LOCAL struct {
	struct comm *comm;
	struct group *group;
} gathered[8];
static THREAD_LOCAL int n_gathered, gather_error;

static unsigned fail_at, fail_seen;
static int fail_result;

__attribute__((visibility("default"))) void m2n_double_nccl_fail(unsigned n, int result)
{
	pthread_mutex_lock(&nccl_lock);
	fail_at = n;
	fail_seen = 0;
	fail_result = result;
	pthread_mutex_unlock(&nccl_lock);
}

__attribute__((visibility("default"))) void m2n_double_nccl_read(
	struct m2n_double_nccl_counters *counters)
{
	pthread_mutex_lock(&nccl_lock);
	*counters = nccl_counters;
	pthread_mutex_unlock(&nccl_lock);
}

static int shall_fail(void)
{
	int result = 0;

	pthread_mutex_lock(&nccl_lock);
	if (fail_at && ++fail_seen == fail_at) {
		result = fail_result;
		fail_at = 0;
	}
	pthread_mutex_unlock(&nccl_lock);
	return result;
}

void nccl_group_free(struct group *group)
{
	if (group)
		free(group->ops);
	free(group);
}

/* ---- moving bytes -------------------------------------------------------------------------- */

/* One step of a transfer; 1: moved, 0: would wait, -1: the wire is broken. */
static int part(int fd, int is_send, void *bytes, size_t n, size_t *moved)
{
	uint8_t *at = (uint8_t *)bytes + *moved;
	ssize_t got = is_send ? send(fd, at, n - *moved, MSG_DONTWAIT | MSG_NOSIGNAL)
			      : recv(fd, at, n - *moved, MSG_DONTWAIT);

	if (got > 0) {
		*moved += (size_t)got;
		return 1;
	}
	return got < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : -1;
}

/* Numbers that came back on a sender's wire. */
static int take_acks(struct wire *wire)
{
	uint64_t number;
	int moved = 0;

	for (;;) {
		ssize_t got = recv(wire->fd, &number, sizeof(number), MSG_DONTWAIT | MSG_PEEK);

		if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR))
			return -1;
		if (got < (ssize_t)sizeof(number))
			return moved;
		got = recv(wire->fd, &number, sizeof(number), MSG_DONTWAIT);
		if (number == REFUSED)
			return -2;
		wire->n_acked = number;
		moved = 1;
	}
}

enum { HEAD, BYTES, ACK, OVER };

static int step_send(struct op *op, struct wire *wire)
{
	struct head head = {op->number, op->bytes};
	int n = take_acks(wire);

	if (n < 0)
		return n;
	if (op->step == HEAD) {
		n = part(wire->fd, 1, &head, sizeof(head), &op->moved);
		if (op->moved == sizeof(head))
			op->step = BYTES, op->moved = 0;
	} else if (op->step == BYTES) {
		n = part(wire->fd, 1, op->at, op->bytes, &op->moved);
		if (op->moved == op->bytes)
			op->step = op->bytes <= EAGER_BYTES && op->number % 2 ? OVER : ACK;
	} else if (wire->n_acked >= op->number) {
		op->step = OVER;
		n = 1;
	}
	return n;
}

static int step_recv(struct op *op, struct wire *wire)
{
	uint64_t refused = REFUSED;
	struct head head;
	ssize_t got;
	int n = 1;

	if (op->step == HEAD) {
		got = recv(wire->fd, &head, sizeof(head), MSG_DONTWAIT | MSG_PEEK);
		if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR))
			return -1;
		if (got < (ssize_t)sizeof(head))
			return 0;
		recv(wire->fd, &head, sizeof(head), MSG_DONTWAIT);
		op->step = BYTES;
		if (head.bytes == op->bytes && head.number == op->number)
			return 1;
		send(wire->fd, &refused, sizeof(refused), MSG_DONTWAIT | MSG_NOSIGNAL);
		return -2;
	}
	if (op->step == BYTES) {
		n = part(wire->fd, 0, op->at, op->bytes, &op->moved);
		if (op->moved < op->bytes)
			return n;
		/* 8 bytes always fit: the sender reads them before it sends more */
		if (send(wire->fd, &op->number, 8, MSG_DONTWAIT | MSG_NOSIGNAL) != 8)
			return -1;
		op->step = OVER;
	}
	return n;
}

/* Only the first on each wire moves: those to one peer are in order. */
static int is_behind(const struct group *group, unsigned i)
{
	for (unsigned k = 0; k < i; k++)
		if (group->ops[k].step != OVER && group->ops[k].peer == group->ops[i].peer &&
			group->ops[k].is_send == group->ops[i].is_send)
			return 1;
	return 0;
}

/* To its own rank: the receive of the same number is in the same group. */
static void copy_to_self(struct comm *comm, struct group *group, struct op *op)
{
	for (unsigned i = 0; i < group->n_ops; i++) {
		struct op *to = &group->ops[i];

		if (to->peer != comm->rank || to->is_send || to->number != op->number)
			continue;
		memcpy(to->at, op->at, op->bytes);
		to->step = op->step = OVER;
	}
}

/* Each send to the own rank has its receive in the group, and the reverse. */
static int check_self(struct comm *comm, const struct group *group)
{
	for (unsigned i = 0; i < group->n_ops; i++) {
		const struct op *op = &group->ops[i];
		int n = op->peer != comm->rank;

		for (unsigned k = 0; k < group->n_ops && !n; k++) {
			const struct op *to = &group->ops[k];

			n = to->peer == op->peer && to->is_send != op->is_send &&
			    to->number == op->number && to->bytes == op->bytes;
		}
		if (!n)
			return nccl_fail(comm, NCCL_INVALID_USAGE,
				"a send to the own rank without its receive in the group");
	}
	return 0;
}

static int step_all(struct comm *comm, struct group *group, int *is_over)
{
	int moved = 0;

	*is_over = 1;
	for (unsigned i = 0; i < group->n_ops; i++) {
		struct op *op = &group->ops[i];
		struct wire *wire = &comm->wires[op->peer][!op->is_send];
		int n;

		if (op->peer == comm->rank && op->is_send && op->step != OVER)
			copy_to_self(comm, group, op);
		if (op->step == OVER || op->peer == comm->rank)
			continue;
		*is_over = 0;
		if (is_behind(group, i))
			continue;
		n = op->is_send ? step_send(op, wire) : step_recv(op, wire);
		if (n < 0)
			return n == -2 ? nccl_fail(comm, NCCL_INVALID_USAGE,
						"a send and its receive differ in size")
				       : nccl_fail(comm, M2N__NCCL_REMOTE_ERROR,
						"connection closed by remote peer");
		moved |= n;
		if (op->step == OVER && (n = shall_fail()))
			return nccl_fail(comm, n, "injected by the test");
	}
	return moved ? 0 : -1;
}

static void wait_wires(struct comm *comm, const struct group *group)
{
	struct pollfd fds[MAX_RANKS * 2];
	nfds_t n = 0;

	for (unsigned i = 0; i < group->n_ops && n < MAX_RANKS * 2; i++) {
		const struct op *op = &group->ops[i];

		if (op->step == OVER || is_behind(group, i))
			continue;
		fds[n].fd = comm->wires[op->peer][!op->is_send].fd;
		fds[n++].events = op->is_send && op->step != ACK ? POLLOUT | POLLIN : POLLIN;
	}
	poll(fds, n, LOOK_MS);
}

static int move_group(struct comm *comm, struct group *group)
{
	int is_over = 0;

	while (!is_over) {
		int result = step_all(comm, group, &is_over);

		if (atomic_load(&comm->is_aborted))
			return NCCL_INTERNAL_ERROR;
		if (result > 0)
			return result;
		if (result < 0 && !is_over)
			wait_wires(comm, group);
	}
	return 0;
}

static struct group *next_group(struct comm *comm)
{
	struct group *group;

	pthread_mutex_lock(&comm->lock);
	while (!comm->groups && !atomic_load(&comm->is_aborted))
		pthread_cond_wait(&comm->wake, &comm->lock);
	group = comm->groups;
	if (group && !atomic_load(&comm->is_aborted)) {
		comm->groups = group->next;
		if (!comm->groups)
			comm->groups_end = &comm->groups;
	} else {
		group = NULL;
	}
	pthread_mutex_unlock(&comm->lock);
	return group;
}

void *nccl_move(void *arg)
{
	const struct timespec nap = {0, 20000};
	struct comm *comm = arg;
	struct group *group;
	int result = 0;

	for (uint64_t n = 1; !result && (group = next_group(comm)); n++) {
		while (atomic_load(&comm->words[8 * STARTED]) < n &&
			!atomic_load(&comm->is_aborted))
			nanosleep(&nap, NULL);
		if (!atomic_load(&comm->is_aborted))
			result = move_group(comm, group);
		nccl_group_free(group);
		if (result) /* what is on the stream stays there until the communicator ends */
			nccl_settle(comm, result);
		else
			atomic_store(&comm->words[8 * FINISHED], n);
	}
	return NULL;
}

/* ---- putting groups on streams ------------------------------------------------------------- */

/* The first transfer between two ranks waits until both have called for it. */
static int join_peers(struct comm *comm, const struct group *group)
{
	for (int pass = 0; pass < 2; pass++) { /* say to all, then listen to all */
		for (unsigned i = 0; i < group->n_ops; i++) {
			const struct op *op = &group->ops[i];
			struct wire *wire = &comm->wires[op->peer][!op->is_send];
			uint8_t word = 'j';
			int rc = 0;

			if (wire->is_joined != pass || op->peer == comm->rank)
				continue;
			rc = pass ? nccl_read(comm, wire->fd, &word, 1)
				  : nccl_write(comm, wire->fd, &word, 1);
			if (rc)
				return rc;
			wire->is_joined++;
		}
	}
	return 0;
}

static int enqueue(struct comm *comm, struct group *group)
{
	const struct m2n__cuda_driver *driver = nccl_driver();
	void *stream = group->ops[0].stream;
	uint64_t words = (uintptr_t)comm->words, n = comm->n_groups + 1;
	m2n__cu_context none;
	int rc = driver->ctx_push(comm->context);

	if (!rc)
		rc = driver->stream_write_value(stream, words + 64 * STARTED, n, 0);
	if (!rc)
		rc = driver->stream_wait_value(stream, words + 64 * FINISHED, n, M2N__CU_WAIT_GEQ);
	if (!rc)
		rc = driver->stream_write_value(stream, words + 64 * LEFT, n, 0);
	driver->ctx_pop(&none);
	if (rc) {
		nccl_group_free(group);
		return nccl_fail(comm, NCCL_CUDA_ERROR, "Cuda failure %d", rc);
	}
	pthread_mutex_lock(&comm->lock);
	comm->n_groups = n;
	*comm->groups_end = group;
	comm->groups_end = &group->next;
	pthread_cond_signal(&comm->wake);
	pthread_mutex_unlock(&comm->lock);
	return 0;
}

static void *launch(void *arg)
{
	struct comm *comm = arg;
	struct group *group = comm->job_group;
	int result = check_self(comm, group);

	if (!result)
		result = join_peers(comm, group);
	if (result)
		nccl_group_free(group);
	else
		result = enqueue(comm, group);
	nccl_settle(comm, result);
	return NULL;
}

static struct group *group_of(struct comm *comm)
{
	struct group *group;

	for (int i = 0; i < n_gathered; i++)
		if (gathered[i].comm == comm)
			return gathered[i].group;
	group = n_gathered < 8 ? calloc(1, sizeof(*group)) : NULL;
	if (!group)
		return NULL;
	gathered[n_gathered].comm = comm;
	gathered[n_gathered++].group = group;
	return group;
}

static int check_op(struct comm *comm, const struct group *group, const void *at, size_t n,
	int type, int peer, const void *stream)
{
	const struct m2n__cuda_driver *driver = nccl_driver();
	m2n__cu_ptr base;
	size_t bytes;
	int async;

	ncclCommGetAsyncError(comm, &async);
	if (async)
		return nccl_fail(
			comm, NCCL_INVALID_USAGE, "the communicator is in progress, or broken");
	if (peer < 0 || peer >= comm->n_ranks || type != M2N__NCCL_UINT8)
		return nccl_fail(comm, NCCL_INVALID_ARGUMENT, "peer %d, type %d", peer, type);
	if (!n || driver->mem_range(&base, &bytes, (uintptr_t)at) ||
		(uintptr_t)at + n > base + bytes)
		return nccl_fail(
			comm, NCCL_INVALID_ARGUMENT, "%zu bytes at %p: not the device's", n, at);
	if (group->n_ops == MAX_OPS || (group->n_ops && group->ops[0].stream != stream))
		return nccl_fail(comm, NCCL_INVALID_USAGE, "too many operations, or two streams");
	return 0;
}

static int add(
	struct comm *comm, int is_send, uint8_t *at, size_t n, int type, int peer, void *stream)
{
	struct group *group = comm ? group_of(comm) : NULL;
	struct wire *wire;
	struct op *ops;
	int rc;

	if (!group)
		return gather_error = nccl_fail(comm, NCCL_INVALID_ARGUMENT, "no communicator");
	rc = check_op(comm, group, at, n, type, peer, stream);
	ops = rc ? NULL : realloc(group->ops, (group->n_ops + 1) * sizeof(*ops));
	if (!ops)
		return gather_error = rc ? rc : NCCL_INTERNAL_ERROR;
	wire = &comm->wires[peer][!is_send];
	group->ops = ops;
	ops[group->n_ops++] = (struct op){.is_send = is_send,
		.peer = peer,
		.at = at,
		.bytes = n,
		.number = ++wire->n_begun,
		.stream = stream};
	return 0;
}

int ncclGroupStart(void)
{
	depth++;
	return 0;
}

static void count(const struct group *group)
{
	pthread_mutex_lock(&nccl_lock);
	nccl_counters.n_groups++;
	for (unsigned i = 0; i < group->n_ops; i++) {
		nccl_counters.n_sends += group->ops[i].is_send != 0;
		nccl_counters.n_recvs += !group->ops[i].is_send;
	}
	pthread_mutex_unlock(&nccl_lock);
}

int ncclGroupEnd(void)
{
	int result = gather_error;

	if (!depth)
		return nccl_fail(NULL, NCCL_INVALID_USAGE, "ncclGroupEnd without ncclGroupStart");
	if (--depth)
		return 0;
	for (int i = 0; i < n_gathered; i++) {
		struct comm *comm = gathered[i].comm;
		int rc;

		if (gather_error || !gathered[i].group->n_ops) {
			nccl_group_free(gathered[i].group);
			continue;
		}
		count(gathered[i].group);
		comm->job_group = gathered[i].group;
		rc = nccl_start_job(comm, launch);
		result = rc ? rc : result;
	}
	n_gathered = gather_error = 0;
	return result;
}

static int one(
	struct comm *comm, int is_send, uint8_t *at, size_t n, int type, int peer, void *stream)
{
	int rc, ended;

	ncclGroupStart();
	rc = add(comm, is_send, at, n, type, peer, stream);
	ended = ncclGroupEnd();
	return rc ? rc : ended;
}

int ncclSend(const void *at, size_t n, int type, int peer, void *comm, void *stream)
{
	return one(comm, 1, (uint8_t *)(uintptr_t)at, n, type, peer, stream);
}

int ncclRecv(void *at, size_t n, int type, int peer, void *comm, void *stream)
{
	return one(comm, 0, at, n, type, peer, stream);
}
