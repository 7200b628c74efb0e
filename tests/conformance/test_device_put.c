/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Device memory over a messaging backend (backend/backend.h), without core: two processes put from
 * memory of their device into that of the other's. Nothing of it may pass through host memory,
 * which shows on a GPU: the stand-in's memory is the host's. There it shows that the path works.
 *
 *   test_device_put BACKEND     prints TAP
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "helpers/job.h"
#include "mem/cuda.h"
#include "side.h"

#define N_ROUNDS 20
#define HEAD_BYTES 64
#define ROW_BYTES 7168
#define N_ROWS 12

static const size_t round_bytes = HEAD_BYTES + (size_t)N_ROWS * ROW_BYTES;

static void make(uint8_t *data, size_t bytes, int rank, uint32_t round)
{
	for (size_t i = 0; i < bytes; i++)
		data[i] = (uint8_t)job_random((uint64_t)rank, round, i, 3);
}

/* Device memory to be written to, and to send from; the head comes out of host memory. */
static void share_device(struct side *side)
{
	struct board *board = side->board;
	int own = side->rank->rank;

	expect_ok(m2n__mem_alloc_cuda(side->cuda, round_bytes, &side->mem));
	expect_ok(m2n__mem_alloc_cuda(side->cuda, round_bytes, &side->source_mem));
	if (side->ops.reg(side->iface, side->mem, &side->mr))
		rank_skip(m2n_error_text());
	expect_ok(side->ops.reg(side->iface, side->source_mem, &side->source_mr));
	board->key_bytes[own] = M2N__KEY_BYTES;
	expect_ok(side->ops.export_key(
		side->mr, 0, round_bytes, board->key[own], &board->key_bytes[own]));
	rank_barrier(side->rank);
	expect_ok(side->ops.import_key(
		side->ep, board->key[side->peer], board->key_bytes[side->peer], &side->rmem));
	expect(side->rmem->ptr == NULL);
}

static void open_device(struct side *side, struct rank *rank)
{
	side_open(side, rank, 0);
	if (!(side->ops.caps & M2N__CAP_CUDA_MEMORY) || side->ops.caps & M2N__CAP_MAPPED)
		rank_skip("the backend puts no device memory");
	side_connect(side);
	share_device(side);
}

static void progress(struct side *side)
{
	expect(side->ops.progress(side->iface) >= 0);
}

/* A small head of host memory, then rows backwards in device memory, so that none are joined. */
static void put_round(struct side *side, uint32_t round)
{
	static uint8_t data[HEAD_BYTES + N_ROWS * ROW_BYTES];
	struct m2n__reg reg = {{side->source_mr}};
	uint8_t *from = side->source_mem->base;
	struct m2n__piece pieces[N_ROWS];
	struct m2n__put put = {.pieces = pieces,
		.n_pieces = N_ROWS,
		.rmem = side->rmem,
		.offset = HEAD_BYTES,
		.signal = SIGNAL,
		.raised = side->raised};
	int status;

	make(data, round_bytes, side->rank->rank, round);
	expect_ok(m2n__cuda_write(side->cuda, from, data, round_bytes));
	for (size_t i = 0; i < N_ROWS; i++)
		pieces[i] = (struct m2n__piece){
			from + HEAD_BYTES + (N_ROWS - 1 - i) * ROW_BYTES, ROW_BYTES, &reg};
	while ((status = side->ops.put(side->ep, &put)) == -EAGAIN)
		progress(side);
	expect_ok(status);
	side->raised += put.n_signals;
	/* A small put of device memory, which must not be inline. */
	pieces[0] = (struct m2n__piece){from, HEAD_BYTES, &reg};
	put = (struct m2n__put){.pieces = pieces,
		.n_pieces = 1,
		.rmem = side->rmem,
		.signal = SIGNAL,
		.raised = side->raised};
	while ((status = side->ops.put(side->ep, &put)) == -EAGAIN)
		progress(side);
	expect_ok(status);
	side->raised += put.n_signals;
	while ((status = side->ops.flush(side->ep)) == -EAGAIN)
		progress(side);
	expect_ok(status);
}

static void expect_round(struct side *side, uint32_t round)
{
	static uint8_t want[HEAD_BYTES + N_ROWS * ROW_BYTES], got[sizeof(want)];

	make(want, sizeof(want), side->peer, round);
	expect_ok(m2n__cuda_read(side->cuda, got, side->mem->base, sizeof(got)));
	expect(!memcmp(got, want, HEAD_BYTES));
	for (size_t i = 0; i < N_ROWS; i++)
		expect(!memcmp(got + HEAD_BYTES + i * ROW_BYTES,
			want + HEAD_BYTES + (N_ROWS - 1 - i) * ROW_BYTES, ROW_BYTES));
}

static void run_rounds(struct side *side, int flushes)
{
	for (uint32_t round = 0; round < N_ROUNDS; round++) {
		put_round(side, round);
		while (atomic_load(&side->signals[SIGNAL]) < side->raised)
			progress(side);
		if (flushes)
			expect_ok(side->ops.flush_device(side->iface));
		expect_round(side, round);
		rank_barrier(side->rank);
	}
}

static void check_put(struct rank *rank)
{
	struct side side;

	open_device(&side, rank);
	run_rounds(&side, 0);
	side_close(&side);
}

static void check_flush(struct rank *rank)
{
	struct side side;

	open_device(&side, rank);
	run_rounds(&side, 1);
	side_close(&side);
}

static void run_case(struct rank *rank)
{
	side_run(rank, 1, *(rank_fn *)rank->arg);
}

static int run(int number, const char *backend, const char *name, rank_fn fn)
{
	struct ranks_opts opts = {.backend = backend,
		.bare = 1,
		.no_leak_check = 1,
		.shared_bytes = sizeof(struct board)};
	int result = ranks_run(2, run_case, &fn, &opts);

	printf("%s %d - %s%s\n", result == 0 || result == RANKS_SKIP ? "ok" : "not ok", number,
		name, result == RANKS_SKIP ? " # SKIP see above" : "");
	fflush(stdout);
	return result != 0 && result != RANKS_SKIP;
}

int main(int argc, char **argv)
{
	int failed = 0;

	if (argc != 2) {
		fprintf(stderr, "usage: %s BACKEND\n", argv[0]);
		return 2;
	}
	printf("1..2\n");
	fflush(stdout);
	failed |= run(1, argv[1], "device memory to device memory", check_put);
	failed |= run(2, argv[1], "the same with a flush", check_flush);
	return failed;
}
