/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A rank that is told what to do: reads commands from standard input, one a line, and prints one
 * line for each thing that happens. Who it is (rank, size, store, backend, address) stands in the
 * environment, as launchers put it there. Its job is that of helpers/job.h, so every row and every
 * output is checked against the oracle wherever the ranks run.
 *
 * A round is a row of steps. A step that times out leaves the round where it is, and the command
 * `go` goes on from there: what a caller does that gives a peer up and tries again.
 * Between commands the rank makes progress, as one that computes would.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "helpers/job_check.h"
#include "helpers/leak.h"

#define MARK_EVERY 64 /* rounds */

enum step { SEND, RECV, ANSWER, REPLY_WAIT, COMBINE, N_STEPS };

static const char *const step_names[N_STEPS] = {
	"dispatch_send", "dispatch_recv", "combine_send", "reply_wait", "combine_recv"};
static const char *const state_names[] = {"idle", "joining", "live", "lost", "left"};

static struct rank self;
static struct job job = {
	.name = "net",
	.n_experts = 12,
	.top_k = 3,
	.n_tokens = 24,
	.row_bytes = 1024,
	.out_row_bytes = 768,
	.dtype = M2N_DTYPE_BF16,
	.depth = 3,
	.in_flight = 1,
	.n_rounds = UINT32_MAX,
	.seed = 60,
	.residual = 1,
};
static struct job_rank jr;
static uint32_t next_round, goal;
static enum step next_step;
static const struct m2n_batch *batch;
static uint8_t *replies; /* of the batch, until they may be reused */
static struct m2n_mem *replies_mem;
static uint64_t digest;
static int was_partial;
static int known_state[JOB_MAX_RANKS];

static int command_open(const char *args)
{
	int status = m2n_ctx_open(NULL, &self.ctx);

	(void)args;
	if (!status)
		status = m2n_group_join(self.ctx, NULL, &self.group);
	if (!status) {
		self.rank = m2n_group_rank(self.group);
		self.n_ranks = m2n_group_size(self.group);
		status = job_open(&jr, &self, &job);
	}
	if (status) {
		printf("failed %d: %s\n", status, m2n_error_text());
		return 0;
	}
	expect_equal(self.n_ranks, job_n_ranks(&job));
	jr.tolerant = job.map == JOB_MAP_REPLICAS;
	printf("opened\n");
	return 0;
}

/* Tells of peers that are not in the state that was told of last. */
static void tell_peers(int all)
{
	struct m2n_peer_attr attr;

	for (int r = 0; r < self.n_ranks; r++) {
		expect_ok(m2n_group_peer(self.group, r, &attr));
		if (all || (int)attr.state != known_state[r])
			printf("peer %d %s %s: %s\n", r, state_names[attr.state],
				attr.backend[0] ? attr.backend : "-", attr.reason);
		known_state[r] = (int)attr.state;
	}
}

static void make_replies(void)
{
	size_t bytes = batch->n_rows * job.out_row_bytes;

	replies = guard_alloc(bytes);
	if (job.registered && bytes)
		expect_ok(m2n_mem_register(self.ctx, replies, bytes, &replies_mem));
	for (uint32_t i = 0; i < batch->n_segments; i++) {
		const struct m2n_segment *segment = &batch->segments[i];

		for (uint32_t r = 0; r < segment->n_rows; r++) {
			const uint8_t *row, *scales;

			job_batch_row(&job, segment, r, &row, &scales);
			job_expert(&job, segment->expert, row, scales,
				replies + (segment->first_row + r) * job.out_row_bytes);
		}
	}
}

static int answer(void)
{
	struct m2n_combine_send_params params = M2N_COMBINE_SEND_PARAMS_INIT;

	if (!replies)
		make_replies();
	params.batch = batch;
	params.rows = replies;
	return m2n_combine_send(jr.channel, &params);
}

static int reply_wait(void)
{
	int status = m2n_reply_wait(jr.channel, M2N_TIMEOUT_DEFAULT);

	if (status < 0)
		return status;
	m2n_mem_deregister(replies_mem);
	guard_free(replies);
	replies_mem = NULL;
	replies = NULL;
	return status;
}

static int combine(void)
{
	struct job_flight *flight = &jr.flight[0];
	int status = job_combine(&jr, next_round);

	if (status >= 0)
		digest = digest * 31 + job_digest(flight->out, jr.n_tokens * job.out_row_bytes);
	return status;
}

static int run_step(enum step step)
{
	switch (step) {
	case SEND:
		return jr.source >= 0 ? job_send(&jr, next_round) : 0;
	case RECV:
		return jr.expert >= 0 ? job_recv_batch(&jr, &batch) : 0;
	case ANSWER:
		return jr.expert >= 0 ? answer() : 0;
	case REPLY_WAIT:
		return jr.expert >= 0 ? reply_wait() : 0;
	default:
		return jr.source >= 0 ? combine() : 0;
	}
}

/* The rest of this round; 0, M2N_PARTIAL, or the error of the step that is to be made again. */
static int run_round(void)
{
	int is_partial = 0;

	for (; next_step < N_STEPS; next_step++) {
		int status = run_step(next_step);

		if (status < 0)
			return status;
		if (status && !is_partial && !was_partial)
			printf("partial %u %s: %s\n", next_round, step_names[next_step],
				m2n_error_text());
		is_partial |= status;
	}
	next_step = SEND;
	next_round++;
	return is_partial;
}

static int command_go(const char *args)
{
	(void)args;
	while (next_round != goal) {
		int status = run_round();

		if (status < 0) {
			printf("%s %u %s: %d: %s\n", status == -ETIMEDOUT ? "timeout" : "error",
				next_round, step_names[next_step], status, m2n_error_text());
			return 0;
		}
		if (status)
			tell_peers(0);
		else if (was_partial)
			printf("whole %u\n", next_round - 1);
		was_partial = status;
		if (next_round % MARK_EVERY == 0)
			printf("at %u\n", next_round);
	}
	printf("done %u digest %016llx missing %llu\n", next_round, (unsigned long long)digest,
		(unsigned long long)(jr.n_missing + jr.n_dropped));
	return 0;
}

static int command_rounds(const char *args)
{
	goal += (uint32_t)atoi(args);
	digest = 0;
	return command_go(args);
}

static int command_peers(const char *args)
{
	(void)args;
	tell_peers(1);
	printf("told\n");
	return 0;
}

static int command_drop(const char *args)
{
	expect_ok(m2n_group_drop(self.group, atoi(args)));
	printf("dropped %d\n", atoi(args));
	return 0;
}

static int command_add(const char *args)
{
	int status = m2n_group_add(self.group, atoi(args), M2N_TIMEOUT_DEFAULT);

	if (status)
		printf("not added %d: %d: %s\n", atoi(args), status, m2n_error_text());
	else
		printf("added %d\n", atoi(args));
	known_state[atoi(args)] = M2N_PEER_LIVE;
	return 0;
}

static int command_admit(const char *args)
{
	expect_ok(m2n_channel_admit(jr.channel, atoi(args), next_round));
	printf("admitted %d\n", atoi(args));
	return 0;
}

static int command_close(const char *args)
{
	struct m2n_channel_attr attr;

	(void)args;
	expect_ok(m2n_channel_query(jr.channel, &attr));
	job_close(&jr);
	rank_close(&self);
	printf("closed staged %llu\n", (unsigned long long)attr.staged_bytes);
	return 1;
}

static const struct command {
	const char *name;
	int (*run)(const char *args); /* 1: the last one */
} commands[] = {
	{"open", command_open},
	{"rounds", command_rounds},
	{"go", command_go},
	{"peers", command_peers},
	{"drop", command_drop},
	{"add", command_add},
	{"admit", command_admit},
	{"close", command_close},
};

static int run_command(char *line)
{
	char *args = strchr(line, ' ');

	if (args)
		*args++ = '\0';
	for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
		if (!strcmp(line, commands[i].name))
			return commands[i].run(args ? args : "");
	}
	rank_fail(__FILE__, __LINE__, "no command '%s'", line);
}

/* The next line without its end, in place; NULL: nobody gives orders any more. */
static char *next_command(void)
{
	static char buffer[256];
	static size_t n, taken;
	struct pollfd in = {.fd = 0, .events = POLLIN};
	char *end;

	memmove(buffer, buffer + taken, n - taken);
	n -= taken;
	while (!(end = memchr(buffer, '\n', n))) {
		ssize_t got;

		if (self.group)
			m2n_ctx_progress(self.ctx);
		if (poll(&in, 1, self.group ? 1 : -1) == 0)
			continue;
		got = read(0, buffer + n, sizeof(buffer) - n);
		if (got <= 0)
			return NULL;
		n += (size_t)got;
	}
	*end = '\0';
	taken = (size_t)(end - buffer) + 1;
	return buffer;
}

static void set_shape(int argc, char **argv)
{
	if (argc < 3) {
		fprintf(stderr,
			"usage: %s N_SOURCES N_EXPERT_RANKS "
			"[classic|registered|replicas|exact]...\n",
			argv[0]);
		exit(2);
	}
	job.n_sources = atoi(argv[1]);
	job.n_expert_ranks = atoi(argv[2]);
	for (int i = 3; i < argc; i++) {
		job.classic |= !strcmp(argv[i], "classic");
		job.registered |= !strcmp(argv[i], "registered");
		if (!strcmp(argv[i], "replicas"))
			job.map = JOB_MAP_REPLICAS;
		if (!strcmp(argv[i], "exact"))
			job.placement = M2N_PLACEMENT_EXACT;
	}
}

int main(int argc, char **argv)
{
	char *line;

	set_shape(argc, argv);
	setvbuf(stdout, NULL, _IOLBF, 0);
	while ((line = next_command())) {
		if (run_command(line))
			return 0;
	}
	return 1;
}
