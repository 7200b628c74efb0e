/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The NCCL backend on the stand-ins of libnccl and libcuda, without core: data, order, windows,
 * rings of senders, errors, death of a peer, and notices that lie. Prints TAP.
 *
 *   test_nccl [NUMBER]    all cases, or one
 *
 * The stand-in is told by the environment which NCCL it is; ranks share its GPU as NCCL 2.30 lets
 * them, unless a case takes that back. Cases that tell it nothing else also run on a GPU.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/nccl/lib.h"
#include "doubles/cuda_double.h"
#include "doubles/nccl_double.h"
#include "helpers/job.h"
#include "mesh.h"

static uint8_t byte_of(int from, int to, size_t at)
{
	return (uint8_t)job_random((uint64_t)from, (uint64_t)to, at / 8, 0);
}

/* The source's [at, at + n) becomes what `from` sends to `to`, numbered from `first` on. */
static void fill(struct mesh *mesh, int to, size_t at, size_t n, size_t first)
{
	uint8_t *bytes = malloc(n);

	for (size_t i = 0; i < n; i++)
		bytes[i] = byte_of(mesh->rank->rank, to, first + i);
	expect_ok(m2n__cuda_write(mesh->cuda, (uint8_t *)mesh->source->base + at, bytes, n));
	free(bytes);
}

static void expect_bytes(struct mesh *mesh, int from, size_t at, size_t n, size_t first)
{
	uint8_t *bytes = malloc(n);

	expect_ok(m2n__cuda_read(
		mesh->cuda, bytes, (uint8_t *)mesh->mem->base + MESH_KEY_AT + at, n));
	for (size_t i = 0; i < n; i++)
		if (bytes[i] != byte_of(from, mesh->rank->rank, first + i))
			rank_fail(__FILE__, __LINE__, "byte %zu from rank %d", first + i, from);
	free(bytes);
}

static void expect_zeros(struct mesh *mesh, size_t at, size_t n)
{
	uint8_t *bytes = malloc(n);

	expect_ok(m2n__cuda_read(mesh->cuda, bytes, (uint8_t *)mesh->mem->base + at, n));
	for (size_t i = 0; i < n; i++)
		expect(bytes[i] == 0);
	free(bytes);
}

static void need_double(struct rank *rank)
{
	(void)rank;
	if (m2n__nccl_load())
		rank_skip(m2n_error_text());
	if (!mesh_is_double())
		rank_skip("not the stand-in of libnccl.so.2");
}

static void begin(struct mesh *mesh, struct rank *rank)
{
	mesh_open(mesh, rank);
	mesh_connect(mesh);
	mesh_share(mesh);
}

/* Nothing that NCCL or the device had is left. */
static void end(struct mesh *mesh)
{
	void (*read_counters)(struct m2n_double_nccl_counters *);
	struct m2n_double_nccl_counters counters;
	size_t (*n_blocks)(void);
	void *symbol = m2n_double_nccl_symbol("m2n_double_nccl_read");

	rank_barrier(mesh->rank);
	mesh_close(mesh);
	if (!symbol)
		return; /* not the stand-in */
	memcpy(&read_counters, &symbol, sizeof(symbol));
	read_counters(&counters);
	expect_equal(counters.n_comms, 0);
	symbol = m2n_double_symbol("m2n_double_blocks");
	memcpy(&n_blocks, &symbol, sizeof(symbol));
	expect_equal(n_blocks(), 0);
}

#define SPAN ((size_t)200000)

/* All to all at once, sizes from one byte up, pieces from one to more than one put holds. */
static void check_data(struct rank *rank)
{
	static const unsigned n_pieces[] = {1, 2, 3, 32, 33, 70};
	uint64_t n_raised[MESH_RANKS] = {0};
	struct mesh mesh;
	size_t at = 0;

	begin(&mesh, rank);
	for (int peer = 0; peer < rank->n_ranks; peer++)
		if (peer != rank->rank)
			fill(&mesh, peer, (size_t)peer * SPAN, SPAN, 0);
	for (unsigned turn = 0; at < SPAN; turn++) {
		size_t n = 1 + job_random(7, turn, 0, 0) % 20000;
		unsigned pieces = n_pieces[turn % 6];

		n = n < SPAN - at ? n : SPAN - at;
		pieces = pieces < n ? pieces : 1;
		for (int peer = 0; peer < rank->n_ranks; peer++) {
			if (peer == rank->rank)
				continue;
			mesh_put(&mesh, peer, (size_t)peer * SPAN + at, n, pieces,
				(size_t)rank->rank * SPAN + at, (uint32_t)rank->rank);
			n_raised[peer] += (pieces + 31) / 32;
		}
		at += n;
	}
	for (int peer = 0; peer < rank->n_ranks; peer++) {
		if (peer == rank->rank)
			continue;
		/* the peer made as many puts as we did */
		mesh_await(&mesh, (uint32_t)peer, n_raised[peer]);
		expect_equal(mesh.signals[peer], n_raised[peer]);
		expect_bytes(&mesh, peer, (size_t)peer * SPAN, SPAN, 0);
		mesh_flush(&mesh, peer);
	}
	expect_zeros(&mesh, 0, MESH_KEY_AT);
	expect_zeros(&mesh, MESH_KEY_AT + (size_t)rank->rank * SPAN, SPAN);
	expect_zeros(&mesh, MESH_MEM - MESH_KEY_AT, MESH_KEY_AT);
	while (rank->word[0] < (uint32_t)rank->n_ranks) {
		static int is_told;

		if (!is_told++)
			word_add(&rank->word[0], 1);
		mesh_turn(&mesh);
	}
	end(&mesh);
}

/* One puts again and again to one place from one place, which it changes after each flush. */
static void check_flush(struct rank *rank)
{
	struct mesh mesh;
	int peer = !rank->rank;

	begin(&mesh, rank);
	for (unsigned turn = 1; turn <= 60; turn++) {
		size_t n = turn % 3 ? 100 : 50000;

		if (rank->rank == 0) {
			fill(&mesh, peer, 0, n, turn);
			mesh_put(&mesh, peer, 0, n, 2, turn % 2 * SPAN, 3);
			mesh_flush(&mesh, peer);
			fill(&mesh, peer, 0, n, turn + 1000);
			mesh_await(&mesh, 4, turn);
		} else {
			mesh_await(&mesh, 3, turn);
			expect_bytes(&mesh, peer, turn % 2 * SPAN, n, turn);
			mesh_put(&mesh, peer, 0, 1, 1, 0, 4);
		}
	}
	while (rank->rank == 1 && mesh.ops.arrived(mesh.links[peer].ep) == -EAGAIN)
		mesh_turn(&mesh);
	word_add(&rank->word[1], 1);
	while (rank->word[1] < 2)
		mesh_turn(&mesh);
	end(&mesh);
}

/* A receiver that does not look: puts are refused for the time being, none is lost. */
static void check_window(struct rank *rank)
{
	unsigned n_puts = 0, n_refused = 0;
	struct mesh mesh;
	int peer = !rank->rank;

	begin(&mesh, rank);
	if (rank->rank == 1) {
		word_wait(&rank->word[2], 1); /* not a turn until the sender is stuck */
	} else {
		fill(&mesh, peer, 0, SPAN, 0);
		while (n_refused < 1000) {
			int rc = mesh_try_put(&mesh, peer, n_puts * 8, 8, 1, n_puts * 8, 9);

			n_puts += rc == 0;
			n_refused += rc == -EAGAIN;
			expect(rc == 0 || rc == -EAGAIN);
			expect(n_puts < 4000);
			mesh_turn(&mesh);
		}
		expect(n_puts >= 8);
		expect_equal(mesh.ops.arrived(mesh.links[peer].ep), -EAGAIN);
		atomic_store(&rank->word[3], n_puts);
		word_set(&rank->word[2], 1);
	}
	if (rank->rank == 1) {
		mesh_await(&mesh, 9, atomic_load(&rank->word[3]));
		expect_bytes(&mesh, peer, 0, atomic_load(&rank->word[3]) * 8, 0);
	}
	while (rank->rank == 0 && mesh.ops.arrived(mesh.links[peer].ep) == -EAGAIN)
		mesh_turn(&mesh);
	word_add(&rank->word[1], 1);
	while (rank->word[1] < 2)
		mesh_turn(&mesh);
	end(&mesh);
}

static void check_refused(struct rank *rank)
{
	static const uint8_t host[64];
	const struct m2n__piece piece = {host, sizeof(host), NULL};
	struct m2n__put put = {.pieces = &piece, .n_pieces = 1, .signal = 5};
	uint8_t key[M2N__KEY_BYTES];
	size_t bytes = sizeof(key);
	struct m2n__mr *mr;
	struct mesh mesh;
	int peer = !rank->rank;

	begin(&mesh, rank);
	put.rmem = mesh.links[peer].rmem;
	expect_status(-EINVAL, mesh.ops.put(mesh.links[peer].ep, &put));
	expect_text("CUDA");
	expect_status(-EINVAL, mesh_try_put(&mesh, peer, 0, 64, 1, MESH_KEY_BYTES - 63, 5));
	expect_status(-EINVAL, mesh_try_put(&mesh, peer, 0, 64, 1, SIZE_MAX - 10, 5));
	expect_ok(mesh.ops.reg(mesh.iface, mesh.signal_mem, &mr)); /* known, not exported */
	expect_status(-ENOTSUP, mesh.ops.export_key(mr, 0, 64, key, &bytes));
	expect_text("BACKEND=");
	mesh.ops.dereg(mr);
	expect_ok(mesh.ops.flush(mesh.links[peer].ep));
	expect_equal(mesh.signals[5], 0);
	end(&mesh);
}

static void check_self(struct rank *rank)
{
	struct mesh mesh;

	begin(&mesh, rank);
	fill(&mesh, 0, 0, SPAN, 0);
	for (unsigned i = 0; i < 100; i++)
		mesh_put(&mesh, 0, i * 2000, 2000, 3, i * 2000, 1);
	mesh_await(&mesh, 1, 100);
	expect_bytes(&mesh, 0, 0, SPAN, 0);
	mesh_flush(&mesh, 0);
	expect_ok(mesh.ops.arrived(mesh.links[0].ep));
	end(&mesh);
}

/*
 * A death while its messages are under way, on both lanes: the others go on. Each source has a
 * place of its own at the target.
 */
static void check_death(struct rank *rank)
{
	size_t own = (size_t)(rank->rank + 1) * SPAN;
	struct mesh mesh;
	int other = !rank->rank, status;

	begin(&mesh, rank);
	if (rank->rank == 2) {
		for (unsigned i = 0; i < 6; i++) {
			(void)mesh_try_put(&mesh, 0, 0, 90000, 1, own, 2);
			mesh_turn(&mesh);
		}
		word_wait(&rank->word[4], 2);
		rank_die();
	}
	for (unsigned i = 0; i < 6; i++) {
		(void)mesh_try_put(&mesh, 2, 3 * SPAN, 90000, 2, own, (uint32_t)rank->rank);
		mesh_turn(&mesh);
	}
	word_add(&rank->word[4], 1);
	while (!mesh.ops.check(mesh.links[2].ep)) {
		(void)mesh_try_put(&mesh, 2, 3 * SPAN, 90000, 2, own, (uint32_t)rank->rank);
		mesh_turn(&mesh);
	}
	expect_status(M2N_ERR_PEER_LOST, mesh.ops.flush(mesh.links[2].ep));
	/* a send that finds the communicator broken gets NCCL's own word for it */
	status = mesh.ops.check(mesh.links[2].ep);
	expect(status == M2N_ERR_PEER_LOST || status == M2N_ERR_BACKEND);
	expect_status(M2N_ERR_PEER_LOST, mesh_try_put(&mesh, 2, 0, 8, 1, 0, 2));
	expect(mesh.iface->n_broken == 1);
	fill(&mesh, other, 0, SPAN, 0);
	mesh_put(&mesh, other, 0, SPAN / 2, 3, 0, 7); /* before the lost one is closed, and after */
	mesh_await(&mesh, 7, 1);
	mesh_disconnect(&mesh, 2);
	mesh_put(&mesh, other, SPAN / 2, SPAN / 2, 3, SPAN / 2, 7);
	mesh_await(&mesh, 7, 2);
	expect_bytes(&mesh, other, 0, SPAN, 0);
	expect_ok(mesh.ops.check(mesh.links[other].ep));
	word_add(&rank->word[5], 1);
	while (rank->word[5] < 2)
		mesh_turn(&mesh);
	mesh_close(&mesh);
}

/* Closed with sends that nobody takes on the device, and receives that nobody fills. */
static void check_abort(struct rank *rank)
{
	struct mesh mesh;
	int peer = !rank->rank;

	begin(&mesh, rank);
	mesh_hold(&mesh, peer, 1);
	for (unsigned i = 0; i < 4; i++) {
		mesh_put(&mesh, peer, 0, 90000, 1, 0, 2);
		for (int k = 0; k < 50; k++)
			mesh_turn(&mesh);
	}
	expect_equal(mesh.ops.flush(mesh.links[peer].ep), -EAGAIN);
	end(&mesh);
}

static void check_injected(struct rank *rank)
{
	void *symbol;
	void (*fail)(unsigned n, int result);
	struct mesh mesh;
	int peer = !rank->rank;

	need_double(rank);
	begin(&mesh, rank);
	symbol = m2n_double_nccl_symbol("m2n_double_nccl_fail");
	memcpy(&fail, &symbol, sizeof(symbol));
	rank_barrier(rank);
	if (rank->rank == 0) {
		fail(3, 1);
		for (unsigned i = 0; i < 5; i++)
			mesh_put(&mesh, peer, 0, 8, 1, 0, 2);
		while (mesh.ops.flush(mesh.links[peer].ep) == -EAGAIN)
			mesh_turn(&mesh);
		expect_status(M2N_ERR_BACKEND, mesh.ops.check(mesh.links[peer].ep));
		expect_text("unhandled cuda error; injected by the test");
		expect_status(M2N_ERR_PEER_LOST, mesh.ops.flush(mesh.links[peer].ep));
	}
	word_add(&rank->word[1], 1);
	while (rank->word[1] < 2)
		mesh_turn(&mesh);
	end(&mesh);
}

static void check_one_gpu(struct rank *rank)
{
	struct mesh mesh;

	need_double(rank);
	setenv("NCCL_MULTI_RANK_GPU_ENABLE", "0", 1);
	mesh_open(&mesh, rank);
	expect_status(M2N_ERR_BACKEND, mesh_try_connect(&mesh));
	expect_text("Duplicate GPU");
	expect_text("NCCL_MULTI_RANK_GPU_ENABLE=1");
	end(&mesh);
}

static void check_one_gpu_older(struct rank *rank)
{
	struct mesh mesh;

	setenv("M2N_DOUBLE_NCCL_VERSION", "22809", 1); /* before it is loaded */
	need_double(rank);
	mesh_open(&mesh, rank);
	expect_status(M2N_ERR_BACKEND, mesh_try_connect(&mesh));
	expect_text("NCCL_HOSTID");
	end(&mesh);
}

static void check_host_ids(struct rank *rank)
{
	struct mesh mesh;

	setenv("M2N_DOUBLE_NCCL_VERSION", "22809", 1);
	setenv("NCCL_HOSTID", rank->rank ? "a" : "b", 1);
	begin(&mesh, rank);
	end(&mesh);
}

/* What a loaded library is too old for, and two that differ. */
static void check_versions(struct rank *rank)
{
	const char *own = rank->rank ? "23007" : "22904";
	struct mesh mesh;

	setenv("M2N_DOUBLE_NCCL_VERSION", "21805", 1);
	memset(&mesh, 0, sizeof(mesh));
	m2n__backend_resolve(&m2n__backend_nccl, &mesh.ops);
	mesh.options.backend = (char[]){"auto"};
	expect_status(M2N_ERR_BACKEND, mesh.ops.probe(&mesh.options));
	expect_text("asked for");
	mesh.options.backend = (char[]){"shm,nccl"};
	if (mesh.ops.probe(&mesh.options) == 0)
		rank_skip("not the stand-in of libnccl.so.2");
	expect_text("2.18.5");
	expect_text("2.19.0");
	setenv("M2N_DOUBLE_NCCL_VERSION", own, 1);
	mesh_open(&mesh, rank);
	expect_status(M2N_ERR_BACKEND, mesh_try_connect(&mesh));
	expect_text("2.29.4");
	expect_text("2.30.7");
	end(&mesh);
}

/* Notices that lie: the answer is an error, or what an honest one could have said. */
static void check_hostile(struct rank *rank)
{
	uint8_t notice[64] = {1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0};
	struct mesh mesh;

	begin(&mesh, rank);
	for (uint32_t i = 0; i < 20000; i++) {
		uint8_t lie[sizeof(notice)];
		size_t n = job_random(3, i, 0, 0) % sizeof(lie);
		uint8_t *copy = malloc(n + !n); /* exact, for the sanitizer */

		memcpy(lie, notice, sizeof(lie));
		/* region 1 or so, an offset of more than there is, few pieces */
		for (size_t k = 16; k < sizeof(lie); k++)
			lie[k] = (uint8_t)(job_random(3, i, 1, k) % 5 ? 0 : job_random(3, i, 2, k));
		for (int k = 0; k < 2; k++)
			lie[job_random(4, i, (uint64_t)k, 0) % 16] ^=
				(uint8_t)(job_random(5, i, (uint64_t)k, 0) % 4);
		memcpy(copy, lie, n);
		if (mesh.ops.hear(mesh.links[!rank->rank].ep, copy, n))
			expect(m2n_error_text()[0]);
		free(copy);
	}
	expect_zeros(&mesh, 0, MESH_MEM);
	end(&mesh);
}

struct test {
	const char *name;
	rank_fn fn;
	int n_ranks;
};

static int run(int number, const struct test *test)
{
	struct ranks_opts opts = {
		.backend = "nccl", .bare = 1, .shared_bytes = mesh_shared_bytes()};
	int result;

	setenv("M2N_DOUBLE_NCCL_VERSION", "23007", 1);
	setenv("NCCL_MULTI_RANK_GPU_ENABLE", "1", 1);
	result = ranks_run(test->n_ranks, test->fn, NULL, &opts);
	printf("%s %d - %s%s\n", result == 0 || result == RANKS_SKIP ? "ok" : "not ok", number,
		test->name, result == RANKS_SKIP ? " # SKIP see above" : "");
	fflush(stdout);
	return result != 0 && result != RANKS_SKIP;
}

int main(int argc, char **argv)
{
	static const struct test tests[] = {
		{"data arrives, whole, where it should: 2 ranks", check_data, 2},
		{"data arrives, whole, where it should: 4 ranks, all at once", check_data, 4},
		{"bytes may be reused after a flush", check_flush, 2},
		{"a receiver that does not look", check_window, 2},
		{"puts and exports that are refused", check_refused, 2},
		{"to itself", check_self, 1},
		{"a peer's death, others go on", check_death, 3},
		{"closed in the middle", check_abort, 2},
		{"an error that NCCL tells later", check_injected, 2},
		{"two ranks on one GPU without leave", check_one_gpu, 2},
		{"two ranks on one GPU, older NCCL", check_one_gpu_older, 2},
		{"two ranks on one GPU, other host ids", check_host_ids, 2},
		{"versions", check_versions, 2},
		{"notices that lie", check_hostile, 2},
	};
	int n = (int)(sizeof(tests) / sizeof(tests[0])), failed = 0;

	printf("1..%d\n", n);
	fflush(stdout);
	for (int i = 0; i < n; i++)
		if (argc < 2 || atoi(argv[1]) == i + 1)
			failed |= run(i + 1, &tests[i]);
	return failed;
}
