/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ranks joined by the NCCL backend: what core does, by hand.
 */
#include "mesh.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "doubles/nccl_double.h"

#define RING 64

struct notice {
	size_t bytes;
	uint8_t body[M2N__NOTICE_BYTES];
};

struct ring { /* one sender, one receiver */
	_Atomic uint32_t head, tail, is_held;
	struct notice notices[RING];
};

struct greeting {
	size_t bytes;
	uint8_t body[1024];
};

struct key {
	size_t bytes;
	uint8_t body[M2N__KEY_BYTES];
};

struct mesh_board {
	struct greeting greetings[MESH_RANKS][MESH_RANKS]; /* [from][to] */
	struct key keys[MESH_RANKS];
	struct ring rings[MESH_RANKS][MESH_RANKS];
};

size_t mesh_shared_bytes(void)
{
	return sizeof(struct mesh_board);
}

int mesh_is_double(void)
{
	return m2n_double_nccl_symbol("m2n_double_nccl_fail") != NULL;
}

void mesh_share_gpu(const struct rank *rank)
{
	char host[16];

	if (mesh_is_double())
		return;
	snprintf(host, sizeof(host), "m2n-test-%d", rank->rank);
	setenv("NCCL_HOSTID", host, 1);
	setenv("NCCL_NET", "Socket", 1);
	setenv("NCCL_SOCKET_IFNAME", "lo", 1);
}

static int say(void *arg, struct m2n__ep *ep, const void *bytes, size_t n)
{
	struct mesh *mesh = arg;
	struct link *link = ep->owner;
	struct ring *ring = &mesh->board->rings[mesh->rank->rank][link->peer];
	uint32_t head = atomic_load(&ring->head);
	struct notice *notice = &ring->notices[head % RING];

	expect(n <= M2N__NOTICE_BYTES);
	expect(head - atomic_load(&ring->tail) < RING);
	notice->bytes = n;
	memcpy(notice->body, bytes, n);
	atomic_store(&ring->head, head + 1);
	return 0;
}

void mesh_hold(struct mesh *mesh, int peer, int hold)
{
	atomic_store(&mesh->board->rings[mesh->rank->rank][peer].is_held, (uint32_t)hold);
}

static const char *no_environment(void *arg, const char *name)
{
	(void)arg, (void)name;
	return NULL;
}

static void no_log(void *arg, enum m2n_log_level level, const char *line)
{
	(void)arg, (void)level, (void)line;
}

void mesh_open(struct mesh *mesh, struct rank *rank)
{
	static char *const no_list[] = {NULL};
	struct m2n__iface_params params;
	char warning[128];

	memset(mesh, 0, sizeof(*mesh));
	mesh->rank = rank;
	mesh->board = rank->shared;
	m2n__backend_resolve(&m2n__backend_nccl, &mesh->ops);
	expect_ok(m2n__options_parse(&mesh->options, "nccl", NULL, no_list, no_environment, NULL,
		warning, sizeof(warning)));
	if (m2n__cuda_open(0, &mesh->cuda))
		rank_skip(m2n_error_text());
	if (mesh->ops.probe(&mesh->options))
		rank_skip(m2n_error_text());
	mesh_share_gpu(rank);
	expect_ok(m2n__mem_alloc(
		MESH_SIGNALS * 8, MESH_SIGNALS * 8, M2N__HUGE_NO, &mesh->signal_mem));
	mesh->signals = mesh->signal_mem->base;
	params = (struct m2n__iface_params){.options = &mesh->options,
		.log = no_log,
		.host_id = "host",
		.signals = mesh->signals,
		.signal_mem = mesh->signal_mem,
		.n_signals = MESH_SIGNALS,
		.cuda = mesh->cuda,
		.say = say,
		.say_arg = mesh};
	expect_ok(mesh->ops.open(&params, &mesh->iface));
	mesh->iface->ops = &mesh->ops;
}

static void connect_one(struct mesh *mesh, int peer)
{
	struct greeting *own = &mesh->board->greetings[mesh->rank->rank][peer];
	struct link *link = &mesh->links[peer];
	uint8_t blob[M2N__ADDRESS_BYTES];
	size_t bytes = sizeof(blob);

	expect_ok(mesh->ops.address(mesh->iface, blob, &bytes));
	expect(mesh->ops.reaches(mesh->iface, blob, bytes));
	expect_ok(mesh->ops.connect(mesh->iface, blob, bytes, &link->ep));
	link->mesh = mesh;
	link->peer = peer;
	link->ep->ops = &mesh->ops;
	link->ep->owner = link;
	own->bytes = sizeof(own->body);
	expect_ok(mesh->ops.greeting(link->ep, own->body, &own->bytes));
}

int mesh_try_connect(struct mesh *mesh)
{
	int own = mesh->rank->rank, n = mesh->rank->n_ranks, left, rc;

	for (int peer = 0; peer < n; peer++)
		if (peer != own || n == 1)
			connect_one(mesh, peer);
	rank_barrier(mesh->rank);
	for (int peer = 0; peer < n; peer++) {
		const struct greeting *g = &mesh->board->greetings[peer][own];

		rc = mesh->links[peer].ep
			     ? mesh->ops.meet(mesh->links[peer].ep, g->body, g->bytes)
			     : 0;
		if (rc)
			return rc;
	}
	do {
		left = 0;
		mesh_turn(mesh);
		for (int peer = 0; peer < n; peer++) {
			rc = mesh->links[peer].ep ? mesh->ops.ready(mesh->links[peer].ep) : 0;
			left += rc == -EAGAIN;
			if (rc && rc != -EAGAIN)
				return rc;
		}
	} while (left);
	return 0;
}

void mesh_connect(struct mesh *mesh)
{
	expect_ok(mesh_try_connect(mesh));
}

void mesh_share(struct mesh *mesh)
{
	struct key *own = &mesh->board->keys[mesh->rank->rank];

	expect_ok(m2n__mem_alloc_cuda(mesh->cuda, MESH_MEM, &mesh->mem));
	expect_ok(m2n__mem_alloc_cuda(mesh->cuda, MESH_MEM, &mesh->source));
	expect_ok(mesh->ops.reg(mesh->iface, mesh->mem, &mesh->mr));
	expect_ok(mesh->ops.reg(mesh->iface, mesh->source, &mesh->source_mr));
	mesh->source_reg.mr[0] = mesh->source_mr;
	own->bytes = sizeof(own->body);
	expect_ok(mesh->ops.export_key(
		mesh->mr, MESH_KEY_AT, MESH_KEY_BYTES, own->body, &own->bytes));
	rank_barrier(mesh->rank);
	for (int peer = 0; peer < mesh->rank->n_ranks; peer++)
		if (mesh->links[peer].ep)
			expect_ok(mesh->ops.import_key(mesh->links[peer].ep,
				mesh->board->keys[peer].body, mesh->board->keys[peer].bytes,
				&mesh->links[peer].rmem));
}

static void hear(struct mesh *mesh, int peer)
{
	struct ring *ring = &mesh->board->rings[peer][mesh->rank->rank];
	uint32_t tail = atomic_load(&ring->tail);

	while (!atomic_load(&ring->is_held) && tail != atomic_load(&ring->head)) {
		const struct notice *notice = &ring->notices[tail % RING];

		if (mesh->links[peer].ep)
			expect_ok(mesh->ops.hear(
				mesh->links[peer].ep, notice->body, notice->bytes));
		atomic_store(&ring->tail, ++tail);
	}
}

void mesh_turn(struct mesh *mesh)
{
	int n = mesh->ops.progress(mesh->iface);

	expect(n >= 0);
	for (int peer = 0; peer < mesh->rank->n_ranks; peer++)
		hear(mesh, peer);
	if (!n)
		sched_yield();
}

int mesh_try_put(struct mesh *mesh, int peer, size_t from, size_t n, unsigned n_pieces, size_t to,
	uint32_t signal)
{
	struct m2n__piece pieces[80];
	struct m2n__put put = {.pieces = pieces,
		.n_pieces = n_pieces,
		.rmem = mesh->links[peer].rmem,
		.offset = to,
		.signal = signal};
	size_t each = n_pieces ? n / n_pieces : 0;
	int rc;

	for (unsigned i = 0; i < n_pieces; i++)
		pieces[i] = (struct m2n__piece){(uint8_t *)mesh->source->base + from + i * each,
			i + 1 < n_pieces ? each : n - i * each, &mesh->source_reg};
	rc = mesh->ops.put(mesh->links[peer].ep, &put);
	if (!rc)
		expect_equal(put.n_signals, signal == M2N__SIGNAL_NONE ? 0
						    : n_pieces        ? (n_pieces + 31) / 32
								      : 1);
	return rc;
}

void mesh_put(struct mesh *mesh, int peer, size_t from, size_t n, unsigned n_pieces, size_t to,
	uint32_t signal)
{
	int rc;

	while ((rc = mesh_try_put(mesh, peer, from, n, n_pieces, to, signal)) == -EAGAIN)
		mesh_turn(mesh);
	expect_ok(rc);
}

void mesh_await(struct mesh *mesh, uint32_t signal, uint64_t value)
{
	while (atomic_load_explicit(&mesh->signals[signal], memory_order_acquire) < value)
		mesh_turn(mesh);
}

void mesh_flush(struct mesh *mesh, int peer)
{
	int rc;

	while ((rc = mesh->ops.flush(mesh->links[peer].ep)) == -EAGAIN)
		mesh_turn(mesh);
	expect_ok(rc);
}

void mesh_disconnect(struct mesh *mesh, int peer)
{
	struct link *link = &mesh->links[peer];

	if (link->rmem)
		mesh->ops.release_key(link->rmem);
	if (link->ep)
		mesh->ops.disconnect(link->ep);
	link->rmem = NULL;
	link->ep = NULL;
}

void mesh_close(struct mesh *mesh)
{
	for (int peer = 0; peer < mesh->rank->n_ranks; peer++)
		mesh_disconnect(mesh, peer);
	if (mesh->mr)
		mesh->ops.dereg(mesh->mr);
	if (mesh->source_mr)
		mesh->ops.dereg(mesh->source_mr);
	mesh->ops.close(mesh->iface);
	m2n__mem_free(mesh->mem);
	m2n__mem_free(mesh->source);
	m2n__mem_free(mesh->signal_mem);
	m2n__cuda_close(mesh->cuda);
	m2n__options_clear(&mesh->options);
}
