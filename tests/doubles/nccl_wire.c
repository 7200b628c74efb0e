/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How the ranks of a communicator of the stand-in find each other: rank 0 listens at the abstract
 * Unix address in the id; the others call it and tell who they are; it checks them and gives
 * everybody the addresses of all. Then each rank calls those below it, once for each direction.
 * All waits are short and look whether the communicator was aborted.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "doubles/nccl_state.h"

#define MAGIC 0x6e63636cu
#define LOOK_MS 5
#define PATIENCE_MS 20000 /* for a rank that does not come */
#define NAME_BYTES 64

struct hello {
	uint32_t magic;
	int32_t version, n_ranks, rank;
	struct m2n__cu_uuid uuid;
	char host[64];
	char name[NAME_BYTES]; /* where this rank listens */
};

struct answer {
	uint32_t magic;
	int32_t result;
	char text[128];
	char names[MAX_RANKS][NAME_BYTES];
};

struct call {
	uint32_t magic;
	int32_t rank;
	int32_t is_send; /* of the caller */
};

static int64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* Waits for a moment; 0, or the result of a communicator that was aborted. */
static int look(struct comm *comm, int fd, short events)
{
	struct pollfd p = {.fd = fd, .events = events};

	poll(&p, fd >= 0, LOOK_MS);
	return atomic_load(&comm->is_aborted)
		       ? nccl_fail(comm, NCCL_INTERNAL_ERROR, "aborted")
		       : 0;
}

int nccl_read(struct comm *comm, int fd, void *bytes, size_t n)
{
	uint8_t *at = bytes;

	while (n) {
		ssize_t got = recv(fd, at, n, MSG_DONTWAIT);

		if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR))
			return nccl_fail(comm, M2N__NCCL_REMOTE_ERROR,
				"connection closed by remote peer");
		if (got > 0) {
			at += got;
			n -= (size_t)got;
			continue;
		}
		if (look(comm, fd, POLLIN))
			return NCCL_INTERNAL_ERROR;
	}
	return 0;
}

int nccl_write(struct comm *comm, int fd, const void *bytes, size_t n)
{
	const uint8_t *at = bytes;

	while (n) {
		ssize_t put = send(fd, at, n, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (put < 0 && errno != EAGAIN && errno != EINTR)
			return nccl_fail(comm, M2N__NCCL_REMOTE_ERROR,
				"connection closed by remote peer");
		if (put > 0) {
			at += put;
			n -= (size_t)put;
			continue;
		}
		if (look(comm, fd, POLLOUT))
			return NCCL_INTERNAL_ERROR;
	}
	return 0;
}

static socklen_t make_address(const char *name, struct sockaddr_un *address)
{
	memset(address, 0, sizeof(*address));
	address->sun_family = AF_UNIX;
	snprintf(address->sun_path + 1, sizeof(address->sun_path) - 1, "%s", name);
	return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name));
}

static int listen_at(const char *name)
{
	struct sockaddr_un address;
	socklen_t bytes = make_address(name, &address);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd >= 0 &&
		(bind(fd, (struct sockaddr *)&address, bytes) || listen(fd, 2 * MAX_RANKS))) {
		close(fd);
		fd = -1;
	}
	return fd;
}

static int accept_one(struct comm *comm, int listener)
{
	int64_t deadline = now_ms() + PATIENCE_MS;

	for (;;) {
		int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

		if (fd >= 0)
			return fd;
		if (look(comm, listener, POLLIN))
			return -1;
		if (now_ms() > deadline) {
			nccl_fail(comm, M2N__NCCL_SYSTEM_ERROR, "no rank calls");
			return -1;
		}
	}
}

/* Calls until somebody listens there. */
static int call_one(struct comm *comm, const char *name)
{
	int64_t deadline = now_ms() + PATIENCE_MS;
	struct sockaddr_un address;
	socklen_t bytes = make_address(name, &address);

	for (;;) {
		int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

		if (fd < 0)
			break;
		if (!connect(fd, (struct sockaddr *)&address, bytes))
			return fd;
		close(fd);
		if (look(comm, -1, 0))
			return -1;
		if (now_ms() > deadline)
			break;
	}
	nccl_fail(comm, M2N__NCCL_SYSTEM_ERROR, "connect to %s failed", name);
	return -1;
}

static int is_allowed_on_one_gpu(const struct hello *a, const struct hello *b)
{
	const char *enabled = getenv("NCCL_MULTI_RANK_GPU_ENABLE");

	return strcmp(a->host, b->host) != 0 ||
	       (a->version >= 23000 && enabled && strcmp(enabled, "1") == 0);
}

/* What rank 0 finds wrong with what the others said. */
static void judge(const struct hello *hellos, int n, struct answer *answer)
{
	answer->result = 0;
	for (int i = 0; i < n; i++) {
		if (hellos[i].n_ranks != n || hellos[i].version != hellos[0].version) {
			answer->result = NCCL_INVALID_USAGE;
			snprintf(answer->text, sizeof(answer->text), "rank %d differs", i);
		}
		for (int k = 0; k < i; k++) {
			if (memcmp(&hellos[i].uuid, &hellos[k].uuid, sizeof(hellos[i].uuid)) ||
				is_allowed_on_one_gpu(&hellos[i], &hellos[k]))
				continue;
			answer->result = NCCL_INVALID_USAGE;
			snprintf(answer->text, sizeof(answer->text),
				"Duplicate GPU detected : rank %d and rank %d both on one", k, i);
		}
		memcpy(answer->names[i], hellos[i].name, NAME_BYTES);
	}
}

static int gather(struct comm *comm, const struct hello *own, struct answer *answer)
{
	struct hello hellos[MAX_RANKS] = {{0}}, hello;
	int fds[MAX_RANKS], n = 1, rc = 0;
	int root = listen_at(comm->id.bytes);

	if (root < 0)
		return nccl_fail(comm, M2N__NCCL_SYSTEM_ERROR, "bind to %s failed", comm->id.bytes);
	hellos[0] = *own;
	for (int i = 0; i < MAX_RANKS; i++)
		fds[i] = -1;
	while (n < comm->n_ranks && !rc) {
		int fd = accept_one(comm, root);

		rc = fd < 0 ? M2N__NCCL_SYSTEM_ERROR : nccl_read(comm, fd, &hello, sizeof(hello));
		if (!rc && (hello.magic != MAGIC || hello.rank <= 0 ||
				   hello.rank >= comm->n_ranks || fds[hello.rank] >= 0))
			rc = nccl_fail(comm, NCCL_INVALID_USAGE, "rank %d twice", hello.rank);
		if (rc) {
			if (fd >= 0)
				close(fd);
			break;
		}
		hellos[hello.rank] = hello;
		fds[hello.rank] = fd;
		n++;
	}
	if (!rc)
		judge(hellos, comm->n_ranks, answer);
	for (int i = 1; i < MAX_RANKS; i++) {
		if (fds[i] >= 0 && !rc)
			rc = nccl_write(comm, fds[i], answer, sizeof(*answer));
		if (fds[i] >= 0)
			close(fds[i]);
	}
	close(root);
	return rc;
}

static int ask(struct comm *comm, const struct hello *own, struct answer *answer)
{
	int fd = call_one(comm, comm->id.bytes), rc;

	if (fd < 0)
		return M2N__NCCL_SYSTEM_ERROR;
	rc = nccl_write(comm, fd, own, sizeof(*own));
	if (!rc)
		rc = nccl_read(comm, fd, answer, sizeof(*answer));
	close(fd);
	return rc;
}

/* The wires to ranks below by calling, to those above by being called. */
static int mesh(struct comm *comm, int listener, const struct answer *answer)
{
	int n = 2 * (comm->n_ranks - 1 - comm->rank);

	for (int peer = 0; peer < comm->rank; peer++) {
		for (int is_send = 0; is_send < 2; is_send++) {
			struct call call = {MAGIC, comm->rank, is_send};
			int fd = call_one(comm, answer->names[peer]);

			comm->wires[peer][!is_send].fd = fd;
			if (fd < 0 || nccl_write(comm, fd, &call, sizeof(call)))
				return M2N__NCCL_SYSTEM_ERROR;
		}
	}
	while (n--) {
		struct call call;
		int fd = accept_one(comm, listener);

		if (fd < 0)
			return M2N__NCCL_SYSTEM_ERROR;
		if (nccl_read(comm, fd, &call, sizeof(call)) || call.magic != MAGIC ||
			call.rank <= comm->rank || call.rank >= comm->n_ranks) {
			close(fd);
			return nccl_fail(comm, M2N__NCCL_SYSTEM_ERROR, "a stranger called");
		}
		comm->wires[call.rank][call.is_send].fd = fd;
	}
	return 0;
}

int nccl_wires_open(struct comm *comm)
{
	const char *host = getenv("NCCL_HOSTID");
	struct answer answer = {.magic = MAGIC};
	struct hello own = {.magic = MAGIC,
		.n_ranks = comm->n_ranks,
		.rank = comm->rank,
		.uuid = comm->uuid};
	int listener, rc;

	ncclGetVersion(&own.version);
	snprintf(own.host, sizeof(own.host), "%s", host ? host : "");
	snprintf(own.name, sizeof(own.name), "%.50s.%d", comm->id.bytes, comm->rank);
	listener = listen_at(own.name);
	if (listener < 0)
		return nccl_fail(comm, M2N__NCCL_SYSTEM_ERROR, "bind to %s failed", own.name);
	rc = comm->rank ? ask(comm, &own, &answer) : gather(comm, &own, &answer);
	if (!rc && answer.result)
		rc = nccl_fail(comm, answer.result, "%s", answer.text);
	if (!rc)
		rc = mesh(comm, listener, &answer);
	close(listener);
	return rc;
}

void nccl_wires_close(struct comm *comm)
{
	for (int peer = 0; peer < MAX_RANKS; peer++)
		for (int i = 0; i < 2; i++)
			if (comm->wires[peer][i].fd >= 0)
				close(comm->wires[peer][i].fd);
}
