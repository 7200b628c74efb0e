/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The backend contract (backend/backend.h), under every table of the registry and under the
 * interposer, without core: two processes (one for `self`) exchange blobs and keys by hand.
 *
 *   test_backend BACKEND        prints TAP
 *
 * What a peer sends may be anything, so blobs and keys are also cut short and have bits flipped:
 * the answer is an error or something harmless, never a crash.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "backend/registry.h"
#include "helpers/job.h"
#include "side.h"
#include "util/time.h"

/* One write of n bytes at an offset of the peer's memory, visible before the signal. */
static void write_peer(struct side *side, size_t offset, const uint8_t *data, size_t n)
{
	struct m2n__reg reg = {{side->source_mr}};
	const struct m2n__piece pieces[] = {
		{side->source, n / 2, &reg}, {side->source + n / 2, n - n / 2, &reg}};
	struct m2n__put put = {.pieces = pieces,
		.n_pieces = 2,
		.rmem = side->rmem,
		.offset = offset,
		.signal = SIGNAL,
		.raised = side->raised};
	int status;

	if (side->rmem->ptr) {
		_Atomic uint64_t *count = (_Atomic uint64_t *)side->rmem->ptr;

		memcpy((uint8_t *)side->rmem->ptr + offset, data, n);
		atomic_fetch_add(count, 1);
		side->ops.notify(side->ep);
		return;
	}
	memcpy(side->source, data, n);
	while ((status = side->ops.put(side->ep, &put)) == -EAGAIN)
		expect(side->ops.progress(side->iface) >= 0);
	expect_ok(status);
	expect_equal(put.n_signals, 1);
	side->raised++;
	side->source += n;
}

/* Signals seen so far: a word of the region's head, or of the signal table. */
static uint64_t n_signals(struct side *side)
{
	if (side->rmem->ptr)
		return atomic_load((_Atomic uint64_t *)((uint8_t *)side->mem->base + KEY_AT));
	expect(side->ops.progress(side->iface) >= 0);
	return atomic_load(&side->signals[SIGNAL]);
}

static void flush(struct side *side)
{
	int status;

	while ((status = side->ops.flush(side->ep)) == -EAGAIN)
		expect(side->ops.progress(side->iface) >= 0);
	expect_ok(status);
}

#define N_WRITES 32
#define WRITE_BYTES 3001

static void make_bytes(uint64_t seed, uint32_t i, uint8_t *data)
{
	for (size_t b = 0; b < WRITE_BYTES; b++)
		data[b] = (uint8_t)job_random(seed, i, b, 0);
}

static void check_writes(struct rank *rank)
{
	static uint8_t sent[N_WRITES][WRITE_BYTES], want[WRITE_BYTES];
	struct side side;
	const uint8_t *base;

	side_open(&side, rank, side_needs_device(rank->backend) - 1);
	side_connect(&side);
	side_share(&side);
	base = (uint8_t *)side.mem->base + KEY_AT;
	for (uint32_t i = 0; i < N_WRITES; i++) {
		make_bytes((uint64_t)rank->rank, i, sent[i]);
		write_peer(&side, 64 + (size_t)i * WRITE_BYTES, sent[i], WRITE_BYTES);
	}
	flush(&side);
	while (n_signals(&side) < N_WRITES)
		;
	expect_equal(n_signals(&side), N_WRITES);
	for (uint32_t i = 0; i < N_WRITES; i++) {
		make_bytes((uint64_t)side.peer, i, want);
		expect(!memcmp(base + 64 + (size_t)i * WRITE_BYTES, want, WRITE_BYTES));
	}
	for (size_t i = 0; i < KEY_AT; i++)
		expect(((uint8_t *)side.mem->base)[i] == 0);
	for (size_t i = KEY_AT + KEY_SPAN; i < MEM_BYTES; i++)
		expect(((uint8_t *)side.mem->base)[i] == 0);
	side_close(&side);
}

/* A put that does not fit into the memory that was exported is refused. */
static void check_range(struct rank *rank)
{
	static const uint8_t data[64];
	const struct m2n__piece piece = {data, sizeof(data), NULL};
	struct m2n__put put = {
		.pieces = &piece, .n_pieces = 1, .offset = KEY_SPAN - 63, .signal = SIGNAL};
	struct side side;

	side_open(&side, rank, side_needs_device(rank->backend) - 1);
	if (side.ops.caps & M2N__CAP_MAPPED)
		rank_skip("a mapped backend has no put");
	side_connect(&side);
	side_share(&side);
	put.rmem = side.rmem;
	expect_status(-EINVAL, side.ops.put(side.ep, &put));
	put.offset = SIZE_MAX - 10;
	expect_status(-EINVAL, side.ops.put(side.ep, &put));
	flush(&side);
	expect_equal(n_signals(&side), 0);
	side_close(&side);
}

/*
 * Turns: each waits for the other's write, asleep where the backend can. A wake-up that is lost
 * shows as a wait that runs into its time limit.
 */
static void check_wakeups(struct rank *rank)
{
	const int64_t limit_ns = 2000000000;
	uint64_t random = 1;
	struct side side;
	uint8_t byte = 1;

	side_open(&side, rank, side_needs_device(rank->backend) - 1);
	side_connect(&side);
	side_share(&side);
	side.ops.doze(side.iface, 1); /* long before it sleeps, as the contract asks */
	rank_barrier(rank);
	for (uint64_t turn = 1; turn <= 400; turn++) {
		int64_t start = m2n__now_ns();

		side.source = side.source_mem->base; /* it was flushed */
		if (rank->rank == 0) {
			/* From at once to long after the peer has gone to sleep. */
			random = job_random(random, turn, 0, 0);
			for (uint64_t i = random % 20000; i > 0; i--)
				atomic_signal_fence(memory_order_seq_cst);
			write_peer(&side, 64, &byte, 1);
			flush(&side);
		}
		while (n_signals(&side) < turn) {
			uint32_t ticket = side.ops.arm(side.iface);

			if (n_signals(&side) < turn)
				side.ops.wait(side.iface, ticket,
					side.ops.caps & M2N__CAP_MAPPED ? limit_ns : 100000);
			side.ops.disarm(side.iface);
		}
		if (m2n__now_ns() - start >= limit_ns)
			rank_fail(__FILE__, __LINE__, "turn %d: a wake-up was lost", (int)turn);
		if (rank->rank == 1) {
			write_peer(&side, 64, &byte, 1);
			flush(&side);
		}
	}
	side.ops.doze(side.iface, -1);
	side_close(&side);
}

static void try_key(struct side *side, const uint8_t *key, size_t bytes)
{
	uint8_t *copy = malloc(bytes + !bytes); /* exact, for the sanitizer */
	struct m2n__rmem *rmem = NULL;

	memcpy(copy, key, bytes);
	if (side->ops.import_key(side->ep, copy, bytes, &rmem) == 0)
		side->ops.release_key(rmem);
	else
		expect(rmem == NULL && m2n_error_text()[0]);
	free(copy);
}

static void try_blob(struct side *side, const uint8_t *blob, size_t bytes)
{
	uint8_t *copy = malloc(bytes + !bytes);
	struct m2n__ep *ep = NULL;

	memcpy(copy, blob, bytes);
	(void)side->ops.reaches(side->iface, copy, bytes);
	if (side->ops.connect(side->iface, copy, bytes, &ep) == 0)
		side->ops.disconnect(ep);
	else
		expect(ep == NULL);
	free(copy);
}

static void check_hostile(struct rank *rank)
{
	struct side side;
	struct board board;
	size_t key_bytes, blob_bytes;

	side_open(&side, rank, side_needs_device(rank->backend) - 1);
	side_connect(&side);
	side_share(&side);
	board = *side.board;
	key_bytes = board.key_bytes[side.peer];
	blob_bytes = board.blob_bytes[side.peer];
	memset(board.key[side.peer] + key_bytes, 0, M2N__KEY_BYTES - key_bytes);
	for (size_t n = 0; n <= M2N__KEY_BYTES; n++) {
		if (n != key_bytes)
			try_key(&side, board.key[side.peer], n);
	}
	for (size_t n = 0; n < blob_bytes; n++)
		try_blob(&side, board.blob[side.peer], n);
	for (uint32_t i = 0; i < 2000; i++) {
		size_t bit = job_random(11, i, 0, 0) % (key_bytes * 8);

		board.key[side.peer][bit / 8] ^= (uint8_t)(1 << bit % 8);
		try_key(&side, board.key[side.peer], key_bytes);
		if (i % 8)
			continue; /* several flips add up */
		memcpy(board.key[side.peer], side.board->key[side.peer], key_bytes);
		bit = job_random(12, i, 0, 0) % (blob_bytes * 8);
		board.blob[side.peer][bit / 8] ^= (uint8_t)(1 << bit % 8);
		try_blob(&side, board.blob[side.peer], blob_bytes);
		memcpy(board.blob[side.peer], side.board->blob[side.peer], blob_bytes);
	}
	side_close(&side);
}

/* Room that is too small, and memory of another host. */
static void check_room(struct rank *rank)
{
	struct side side;
	uint8_t small[4];
	size_t bytes = sizeof(small);

	side_open(&side, rank, side_needs_device(rank->backend) - 1);
	side_connect(&side);
	side_share(&side);
	expect_status(-ENOSPC, side.ops.address(side.iface, small, &bytes));
	bytes = sizeof(small);
	expect_status(-ENOSPC, side.ops.export_key(side.mr, 0, 64, small, &bytes));
	side_close(&side);
}

static void run_side(struct rank *rank)
{
	side_run(rank, side_needs_device(rank->backend), *(rank_fn *)rank->arg);
}

static int run(int number, const char *backend, const char *name, rank_fn fn)
{
	struct ranks_opts opts = {
		.backend = backend, .bare = 1, .no_leak_check = 1,
		.shared_bytes = sizeof(struct board)};
	int result = ranks_run(strstr(backend, "self") ? 1 : 2, run_side, &fn, &opts);

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
	printf("1..5\n");
	fflush(stdout);
	failed |= run(1, argv[1], "writes arrive, whole, where they should", check_writes);
	failed |= run(2, argv[1], "puts out of range are refused", check_range);
	failed |= run(3, argv[1], "no wake-up is lost", check_wakeups);
	failed |= run(4, argv[1], "blobs and keys cut short and with bits flipped", check_hostile);
	failed |= run(5, argv[1], "room that is too small", check_room);
	return failed;
}
