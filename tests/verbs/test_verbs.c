/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The verbs backend, what the contract alone does not show: errors that say what there is and what
 * to do, puts over several rails and queue pairs, a full send queue, callers that know no token, a
 * cable that is cut. Without core; prints TAP. Runs in the guest of tests/vm, as root, where rxe0
 * on eth0 and rxe1 on eth1 are joined by a cable.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/registry.h"
#include "core/option.h"
#include "helpers/job.h"
#include "helpers/ranks.h"
#include "util/time.h"
#include "verbs/pair.h"

static void run_command(const char *command)
{
	expect_equal(system(command), 0);
}

/* The backend as these options have it, opened: 0 or the error. */
static int try_open(const char *const *options)
{
	struct pair p;
	int status = pair_try_open(&p, NULL, options);

	if (!status)
		pair_close(&p);
	return status;
}

static void check_names(struct rank *rank)
{
	(void)rank;
	expect_status(M2N_ERR_BACKEND, try_open((const char *[]){"VERBS_DEVICES=none0", NULL}));
	expect_text("'none0', which does not exist");
	expect_text("rxe0:1 ACTIVE");
	expect_text("rxe1:1 ACTIVE");
	expect_status(M2N_ERR_BACKEND, try_open((const char *[]){"VERBS_DEVICES=rxe1:2", NULL}));
	expect_text("'rxe1:2', which does not exist");
	expect_status(
		M2N_ERR_OPTION, try_open((const char *[]){"VERBS_DEVICES=rxe0,rxe0:1,rxe0,rxe0,"
							  "rxe0,rxe0,rxe0,rxe0,rxe0",
					NULL}));
	expect_text("more than 8 ports");
	expect_status(M2N_ERR_OPTION,
		try_open((const char *[]){"VERBS_DEVICES=rxe0", "VERBS_GID_INDEX=200", NULL}));
	expect_text("M2N_VERBS_GID_INDEX is 200, but rxe0:1 has:");
	expect_text("::ffff:10.77.0.1 RoCE v2");
	expect_ok(try_open((const char *[]){"VERBS_DEVICES=rxe1:1,rxe0", NULL}));
}

static void check_port_down(struct rank *rank)
{
	(void)rank;
	run_command("ip link set eth0 down");
	expect_status(M2N_ERR_BACKEND, try_open((const char *[]){"VERBS_DEVICES=rxe0", NULL}));
	expect_text("port 'rxe0' is not active");
	expect_text("rxe0:1 DOWN");
	expect_status(M2N_ERR_BACKEND, try_open((const char *[]){NULL}));
	expect_text("no port is active");
	run_command("ip link set eth0 up");
	while (try_open((const char *[]){NULL}) != 0)
		usleep(1000); /* the interface comes up by itself */
}

static void check_permission(struct rank *rank)
{
	const char *options[] = {"VERBS_DEVICES=rxe0", NULL};

	(void)rank;
	expect_ok(try_open(options)); /* the libraries are there */
	expect_ok(chmod("/dev/infiniband/rdma_cm", 0600));
	expect_ok(chmod("/dev/infiniband/uverbs0", 0600));
	expect_ok(setresuid(65534, 65534, 0));
	expect_status(M2N_ERR_BACKEND, try_open(options));
	expect_text("/dev/infiniband/uverbs0 cannot be opened: Permission denied");
	expect_ok(setresuid(0, 0, 0));
	expect_ok(chmod("/dev/infiniband/uverbs0", 0666));
	expect_ok(setresuid(65534, 65534, 0));
	expect_status(M2N_ERR_BACKEND, try_open(options));
	expect_text("/dev/infiniband/rdma_cm cannot be opened: Permission denied");
	expect_text("or set M2N_VERBS_CONNECT=exchange");
	expect_ok(setresuid(0, 0, 0));
	expect_ok(chmod("/dev/infiniband/rdma_cm", 0666));
}

static void check_registration(struct rank *rank)
{
	const struct rlimit small = {65536, 65536};
	struct m2n__mem unmapped = {.bytes = 1 << 20, .fd = -1},
			readable = {.bytes = 4096, .fd = -1};
	struct m2n__mem *mem;
	struct m2n__mr *mr = NULL;
	char key[M2N__KEY_BYTES];
	size_t key_bytes = sizeof(key);
	struct pair p;

	pair_open(&p, rank, (const char *[]){NULL});
	pair_connect(&p);
	unmapped.base = mmap(NULL, 1 << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	expect_ok(munmap(unmapped.base, 1 << 20));
	expect_status(-EFAULT, p.ops.reg(p.iface, &unmapped, &mr));
	expect_text("not all of it is mapped");
	/* Rows may be sent from what can only be read, but nobody is told to write there. */
	readable.base = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	expect_ok(p.ops.reg(p.iface, &readable, &mr));
	expect_status(-EACCES, p.ops.export_key(mr, 0, 4096, key, &key_bytes));
	p.ops.dereg(mr);
	expect_ok(m2n__mem_alloc(1 << 20, 1 << 20, M2N__HUGE_NO, &mem));
	expect_ok(setrlimit(RLIMIT_MEMLOCK, &small));
	expect_ok(seteuid(65534)); /* without the capability that lifts the limit */
	expect_status(-ENOMEM, p.ops.reg(p.iface, mem, &mr));
	expect_text("the locked-memory limit is 65536 bytes");
	expect_text("1048576");
	expect_text("ulimit -l");
	expect_ok(seteuid(0));
	expect_ok(p.ops.reg(p.iface, mem, &mr));
	p.ops.dereg(mr);
	m2n__mem_free(mem);
	pair_close(&p);
}

/* Pieces of `bytes` each, apart from each other; sent, counted, and found at the peer. */
static void send_pieces(
	struct pair *p, size_t n_pieces, size_t bytes, uint32_t n_posted, uint32_t n_signals)
{
	struct m2n__reg reg = {{p->source_mr}};
	struct m2n__piece *pieces = calloc(n_pieces, sizeof(*pieces));
	const uint8_t *got = (uint8_t *)p->mem->base;
	uint8_t *source = p->source_mem->base;
	uint64_t before = atomic_load(&p->signals[PAIR_SIGNAL]);
	struct m2n__put put = {.pieces = pieces,
		.n_pieces = n_pieces,
		.rmem = p->rmem,
		.offset = 8,
		.signal = PAIR_SIGNAL};

	for (size_t i = 0; i < n_pieces; i++) {
		pieces[i] = (struct m2n__piece){source + i * (bytes + 1), bytes, &reg};
		for (size_t b = 0; b < bytes; b++)
			source[i * (bytes + 1) + b] =
				(uint8_t)job_random(n_pieces, (uint64_t)p->rank->rank, i, b % 16);
	}
	rank_barrier(p->rank);
	pair_put(p, &put);
	expect_equal(put.n_posted, n_posted);
	expect_equal(put.n_signals, n_signals);
	/* Only progress() can have seen that the bytes were sent. */
	if (n_pieces * bytes > p->iface->max_inline)
		expect_status(-EAGAIN, p->ops.flush(p->ep));
	pair_flush(p);
	while (atomic_load(&p->signals[PAIR_SIGNAL]) < before + n_signals)
		expect(p->ops.progress(p->iface) >= 0);
	for (size_t i = 0; i < n_pieces * bytes; i++)
		expect_equal(got[8 + i], (uint8_t)job_random(n_pieces, (uint64_t)p->peer, i / bytes,
						 i % bytes % 16));
	rank_barrier(p->rank); /* the peer looked too */
	expect_equal(atomic_load(&p->signals[PAIR_SIGNAL]), before + n_signals);
	free(pieces);
}

static void check_one_path(struct rank *rank)
{
	struct pair p;
	size_t max;

	pair_open(&p, rank, (const char *[]){"VERBS_INLINE=0", NULL});
	pair_connect(&p);
	pair_share(&p);
	max = p.iface->max_iov;
	send_pieces(&p, 1, 100, 1, 1);
	send_pieces(&p, 0, 0, 1, 1); /* a signal alone */
	send_pieces(&p, max, 50, 1, 1);
	send_pieces(&p, max + 1, 50, 2, 1);
	send_pieces(&p, 5 * max, 50, 5, 1);
	send_pieces(&p, 1, 100000, 1, 1);
	pair_close(&p);
}

static void check_inline(struct rank *rank)
{
	struct pair p;
	uint8_t data[256];
	const struct m2n__piece pieces[] = {{data, 100, NULL}, {data + 100, 156, NULL}},
				longer = {data, 257, NULL};
	struct m2n__put put = {.pieces = pieces, .n_pieces = 2, .signal = PAIR_SIGNAL};

	pair_open(&p, rank, (const char *[]){"VERBS_INLINE=256", NULL});
	pair_connect(&p);
	pair_share(&p);
	expect_equal(p.iface->max_inline, 256);
	for (int turn = 1; turn <= 300; turn++) {
		put.n_pieces = 2;
		put.pieces = pieces;
		put.next_piece = put.next_byte = put.next_offset = 0;
		put.rmem = p.rmem;
		memset(data, turn, sizeof(data));
		pair_put(&p, &put);
		memset(data, 0, sizeof(data)); /* it was copied */
		while (atomic_load(&p.signals[PAIR_SIGNAL]) < (uint64_t)turn)
			expect(p.ops.progress(p.iface) >= 0);
		for (int i = 0; i < 256; i++)
			expect_equal(((uint8_t *)p.mem->base)[i], (uint8_t)turn);
		rank_barrier(rank);
	}
	expect_ok(p.ops.flush(p.ep)); /* nothing of ours is borrowed */
	pair_arrived(&p);
	put = (struct m2n__put){.pieces = &longer, .n_pieces = 1, .rmem = p.rmem, .signal = 1};
	expect_status(-EINVAL, p.ops.put(p.ep, &put));
	expect_text("not registered");
	pair_close(&p);
}

static void check_less_inline(struct rank *rank)
{
	struct pair p;

	pair_open(&p, rank, (const char *[]){"VERBS_INLINE=1K", NULL});
	pair_connect(&p);
	pair_share(&p);
	expect(p.iface->max_inline >= 256 && p.iface->max_inline < 1024);
	expect(strstr(pair_last_log, "M2N_VERBS_INLINE"));
	send_pieces(&p, 1, p.iface->max_inline, 1, 1);
	send_pieces(&p, 1, p.iface->max_inline + 1, 1, 1);
	pair_close(&p);
}

/* Each sleeps until the other's put: one that is not woken runs into its time limit. */
static void check_sleep(struct rank *rank)
{
	const int64_t limit_ns = 5000000000;
	const uint8_t byte = 1;
	const struct m2n__piece piece = {&byte, 1, NULL};
	struct pair p;

	pair_open(&p, rank, (const char *[]){NULL});
	pair_connect(&p);
	pair_share(&p);
	for (uint64_t turn = 1; turn <= 200; turn++) {
		struct m2n__put put = {
			.pieces = &piece, .n_pieces = 1, .rmem = p.rmem, .signal = PAIR_SIGNAL};
		int64_t start = m2n__now_ns();

		if (rank->rank == 0)
			pair_put(&p, &put);
		while (atomic_load(&p.signals[PAIR_SIGNAL]) < turn) {
			uint32_t ticket = p.ops.arm(p.iface);

			expect(p.ops.progress(p.iface) >= 0);
			if (atomic_load(&p.signals[PAIR_SIGNAL]) < turn)
				p.ops.wait(p.iface, ticket, limit_ns);
			p.ops.disarm(p.iface);
			expect(p.ops.progress(p.iface) >= 0);
		}
		expect(m2n__now_ns() - start < limit_ns);
		if (rank->rank == 1)
			pair_put(&p, &put);
	}
	pair_close(&p);
}

static void check_many_paths(struct rank *rank)
{
	const char *options[] = {"VERBS_DEVICES=rxe0,rxe1", "VERBS_QPS=3", "VERBS_STRIPE=4K",
		"VERBS_REPLY_TC=32", NULL};
	struct pair p;

	pair_open(&p, rank, options);
	expect_equal(p.iface->max_bytes, 4096);
	pair_connect(&p);
	pair_share(&p);
	send_pieces(&p, 1, 4096, 1, 1);
	send_pieces(&p, 1, 4097, 2, 2);
	send_pieces(&p, 4, 5000, 5, 5);
	send_pieces(&p, 1, 6 * 4096, 6, 6);
	send_pieces(&p, 1, 100000, 25, 6);
	send_pieces(&p, 2 * p.iface->max_iov, 20, 2, 2);
	pair_close(&p);
}

static void check_full_queue(struct rank *rank)
{
	struct pair p;

	pair_open(&p, rank,
		(const char *[]){"VERBS_SQ=8", "VERBS_CONNECT=exchange", "VERBS_RECVS=64", NULL});
	pair_connect(&p);
	pair_share(&p);
	send_pieces(&p, 60 * p.iface->max_iov, 40, 60, 1);
	expect(p.n_again > 0);
	/* More signals than receives: they are given back in time. */
	for (int i = 0; i < 200; i++)
		send_pieces(&p, 1, 300, 1, 1);
	pair_close(&p);
}

/* A caller that knows no token is rejected; the connection that is there goes on. */
static void check_stranger(struct rank *rank)
{
	struct pair p, stranger;
	int status;

	pair_open(&p, rank, (const char *[]){NULL});
	pair_connect(&p);
	pair_share(&p);
	stranger = p;
	pair_greet(&stranger);
	stranger.greeting[PAIR_TOKEN_AT] ^= 1;
	expect_ok(p.ops.meet(stranger.ep, stranger.greeting, stranger.greeting_bytes));
	do {
		status = p.ops.ready(stranger.ep);
		if (status && status != -EAGAIN)
			word_set(&rank->word[40], 1);
	} while (status == -EAGAIN && !atomic_load(&rank->word[40]));
	expect(status);
	rank_barrier(rank);
	if (status != -EAGAIN) {
		expect_equal(status, M2N_ERR_PEER_LOST);
		expect_text("the peer rejected the call");
		expect_equal(atomic_load(&p.iface->n_broken), 1);
	} else {
		expect(strstr(pair_last_log, "rejected a connection from 10.77.0.1"));
	}
	p.ops.disconnect(stranger.ep);
	expect_ok(p.ops.check(p.ep));
	send_pieces(&p, 3, 1000, 1, 1);
	pair_close(&p);
}

struct cut {
	const char *option, *command, *mend, *text;
};

static const struct cut cable = {
	"VERBS_CONNECT=cm", "ip link set eth0 down", "ip link set eth0 up", "rxe0:1 (down)"};
static const struct cut silence = {"VERBS_CONNECT=exchange",
	"tc qdisc add dev eth0 root netem loss 100%", "tc qdisc del dev eth0 root",
	"retries are spent"};

/* Greetings with a bit flipped, and cut short: an error or something that never gets ready. */
static void check_greetings(struct rank *rank)
{
	const struct cut *cut = rank->arg; /* its option only */
	struct pair p, other;

	pair_open(&p, rank, (const char *[]){cut->option, "VERBS_QPS=2", NULL});
	pair_connect(&p);
	pair_share(&p);
	other = p;
	pair_greet(&other);
	p.ops.disconnect(other.ep);
	for (uint32_t i = 0; i < 300; i++) {
		uint8_t *greeting = malloc(other.greeting_bytes);
		size_t n = other.greeting_bytes;
		size_t bit = job_random(13, i, (uint64_t)rank->rank, 0) % (8 * (i % 2 ? 400 : n));
		int status;

		memcpy(greeting, other.greeting, n);
		greeting[bit / 8] ^= (uint8_t)(1 << bit % 8);
		expect_ok(p.ops.connect(
			p.iface, p.board->blob[p.peer], p.board->blob_bytes[p.peer], &other.ep));
		expect_status(M2N_ERR_PROTOCOL, p.ops.meet(other.ep, greeting, i));
		status = p.ops.meet(other.ep, greeting, n);
		for (int turn = 0; turn < 20 && !status; turn++) {
			status = p.ops.ready(other.ep);
			status = status == -EAGAIN ? 0 : status;
			expect(p.ops.progress(p.iface) >= 0);
		}
		p.ops.disconnect(other.ep);
		free(greeting);
	}
	rank_barrier(rank);
	expect_ok(p.ops.check(p.ep));
	send_pieces(&p, 3, 1000, 1, 1);
	pair_close(&p);
}

/* Each side on its own device: what is between them fails under a put, and is mended. */
static void check_cut(struct rank *rank)
{
	const struct cut *cut = rank->arg;
	const char *options[] = {rank->rank ? "VERBS_DEVICES=rxe1" : "VERBS_DEVICES=rxe0",
		cut->option, "VERBS_TIMEOUT=12", "VERBS_RETRIES=2", NULL};
	struct pair p;

	pair_open(&p, rank, options);
	pair_connect(&p);
	pair_share(&p);
	send_pieces(&p, 10, 1000, 1, 1);
	if (rank->rank == 0) {
		struct m2n__reg reg = {{p.source_mr}};
		struct m2n__piece piece = {p.source_mem->base, 1000, &reg};
		struct m2n__put put = {
			.pieces = &piece, .n_pieces = 1, .rmem = p.rmem, .signal = PAIR_SIGNAL};

		run_command(cut->command);
		expect_ok(p.ops.put(p.ep, &put));
		while (!atomic_load(&p.iface->n_broken))
			expect(p.ops.progress(p.iface) >= 0);
		expect_status(M2N_ERR_PEER_LOST, p.ops.check(p.ep));
		expect_text(cut->text);
		expect_status(M2N_ERR_PEER_LOST, p.ops.flush(p.ep));
		put.next_piece = put.next_byte = put.next_offset = 0;
		expect_status(M2N_ERR_PEER_LOST, p.ops.put(p.ep, &put));
		run_command(cut->mend);
	}
	rank_barrier(rank);
	p.ops.release_key(p.rmem);
	p.ops.disconnect(p.ep);
	pair_connect(&p);
	pair_import(&p);
	send_pieces(&p, 20, 1000, 1, 1);
	pair_close(&p);
}

static int n_cases, failed;

static void run(int n_ranks, const char *name, rank_fn fn, const struct cut *cut)
{
	struct ranks_opts opts = {.bare = 1, .shared_bytes = sizeof(struct pair_board)};
	struct cut copy = cut ? *cut : cable;
	int result = ranks_run(n_ranks, fn, &copy, &opts);

	if (result && cut) /* for the next case */
		failed |= system(cut->mend) != 0;
	failed |= result != 0 && result != RANKS_SKIP;
	printf("%s %d - %s%s\n", result == 0 || result == RANKS_SKIP ? "ok" : "not ok", ++n_cases,
		name, result == RANKS_SKIP ? " # SKIP see above" : "");
	fflush(stdout);
}

int main(void)
{
	printf("1..15\n");
	fflush(stdout);
	run(1, "ports and addresses that do not exist", check_names, NULL);
	run(1, "a port that is down", check_port_down, NULL);
	run(1, "no permission", check_permission, NULL);
	run(2, "memory that cannot be registered", check_registration, NULL);
	run(2, "one path: as few writes as can be, one signal", check_one_path, NULL);
	run(2, "inline puts", check_inline, NULL);
	run(2, "less inline than asked for", check_less_inline, NULL);
	run(2, "asleep until a put comes", check_sleep, NULL);
	run(2, "two rails, three queue pairs, a class for the way back", check_many_paths, NULL);
	run(2, "a full send queue", check_full_queue, NULL);
	run(2, "a caller that knows no token", check_stranger, NULL);
	run(2, "greetings with bits flipped, cm", check_greetings, &cable);
	run(2, "greetings with bits flipped, exchange", check_greetings, &silence);
	run(2, "a cable cut under a put, and mended", check_cut, &cable);
	run(2, "nothing arrives any more, and does again", check_cut, &silence);
	return failed;
}
