/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What ranks really hold, for the formulas of docs/scale.md: forks the ranks of a channel and
 * prints a line a rank, `key=value` by blanks: what m2n_channel_query_memory() says, pages of its
 * memfds, bytes from malloc, its share of resident memory, sockets, signal words, and the
 * requests that it made to the store; with round=1 also private pages, and the bytes staged, of a
 * round from memory that nobody registered; with queues=1 what it holds of RDMA devices.
 *
 *   scale_ranks M=2 N=4 tokens=64 row=1024 ... [backend=NAME] [query=RANK] [round=1] [queues=1]
 *
 * Ranks 0..M-1 are sources, M..M+N-1 expert ranks; classic=1: every rank has all roles; sinks=S:
 * S ranks more are the sinks. query=RANK only asks m2n_channel_query_memory(), at any size.
 */
#include <errno.h>
#include <inttypes.h>
#include <linux/tcp.h>
#include <malloc.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "conformance/memory_store.h"
#include "core/context.h"
#include "helpers/ranks.h"
#include "scale/queues.h"

#define MAX_FDS 4096
#define N_KEYS (sizeof(keys) / sizeof(keys[0]))
#define LINE_BYTES 1024

static struct shape {
	uint64_t m, n, sinks, classic, tokens, row, scale, out, top_k, experts;
	uint64_t capacity, depth, exact, dedup, reduce, query, round, queues;
} shape = {1, 1, 0, 0, 16, 1024, 0, 0, 2, 4, 0, 3, 0, 0, 0, UINT64_MAX, 0, 0};

static const struct {
	const char *name;
	uint64_t *value;
} keys[] = {
	{"M", &shape.m},
	{"N", &shape.n},
	{"sinks", &shape.sinks},
	{"classic", &shape.classic},
	{"tokens", &shape.tokens},
	{"row", &shape.row},
	{"scale", &shape.scale},
	{"out", &shape.out},
	{"top_k", &shape.top_k},
	{"experts", &shape.experts},
	{"capacity", &shape.capacity},
	{"depth", &shape.depth},
	{"exact", &shape.exact},
	{"dedup", &shape.dedup},
	{"reduce", &shape.reduce},
	{"query", &shape.query},
	{"round", &shape.round},
	{"queues", &shape.queues},
};

/* What a process holds at one moment. */
struct held {
	uint64_t memfd_bytes, n_memfds, n_sockets, heap_bytes, share_bytes, private_bytes;
	uint64_t told_bytes; /* sent by control connections */
};

struct counted_store {
	struct m2n_store_callbacks inner;
	unsigned n_puts, n_gets;
};

static int counted_put(void *arg, const char *key, const void *value, size_t bytes)
{
	struct counted_store *store = arg;

	store->n_puts++;
	return store->inner.put(store->inner.arg, key, value, bytes);
}

static int counted_get(void *arg, const char *key, void *value, size_t *bytes, int64_t timeout_ns)
{
	struct counted_store *store = arg;

	store->n_gets++;
	return store->inner.get(store->inner.arg, key, value, bytes, timeout_ns);
}

static uint64_t proc_bytes(const char *path, const char *key)
{
	FILE *file = fopen(path, "re");
	uint64_t kb = 0;
	char line[256];

	while (file && fgets(line, sizeof(line), file))
		if (strncmp(line, key, strlen(key)) == 0)
			sscanf(line + strlen(key), "%" SCNu64, &kb);
	if (file)
		fclose(file);
	return kb * 1024;
}

static uint64_t sent_by(int fd)
{
	struct tcp_info info = {0};
	socklen_t bytes = sizeof(info);

	if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &bytes))
		return 0;
	return info.tcpi_bytes_sent - info.tcpi_bytes_retrans;
}

static void look(struct held *held)
{
	struct mallinfo2 info = mallinfo2();
	char path[64], name[64];

	memset(held, 0, sizeof(*held));
	held->heap_bytes = info.uordblks + info.hblkhd;
	held->share_bytes = proc_bytes("/proc/self/smaps_rollup", "Pss_Anon:") +
			    proc_bytes("/proc/self/smaps_rollup", "Pss_Shmem:");
	/* what is mapped for this process alone and is not malloc's */
	held->private_bytes = proc_bytes("/proc/self/status", "VmData:") - info.arena - info.hblkhd;
	for (int fd = 0; fd < MAX_FDS; fd++) {
		struct stat st;
		ssize_t n;

		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		n = readlink(path, name, sizeof(name) - 1);
		if (n <= 0 || fstat(fd, &st))
			continue;
		name[n] = '\0';
		if (S_ISSOCK(st.st_mode)) {
			held->n_sockets++;
			held->told_bytes += sent_by(fd);
		}
		if (strncmp(name, "/memfd:m2n", 10) != 0)
			continue;
		held->n_memfds++;
		held->memfd_bytes += (uint64_t)st.st_blocks * 512;
	}
}

static int n_ranks(void)
{
	return (int)(shape.classic ? shape.m : shape.m + shape.n + shape.sinks);
}

static void fill_params(struct m2n_channel_params *p)
{
	static int ranks[1 << 17];

	for (int i = 0; i < 1 << 17; i++)
		ranks[i] = i;
	*p = (struct m2n_channel_params)M2N_CHANNEL_PARAMS_INIT;
	p->name = "scale";
	p->sources = ranks;
	p->n_sources = shape.m;
	p->experts = ranks + (shape.classic ? 0 : shape.m);
	p->n_expert_ranks = shape.n;
	p->sinks = shape.sinks ? ranks + shape.m + shape.n : NULL;
	p->n_sinks = shape.sinks;
	p->n_experts = (uint32_t)shape.experts;
	p->top_k = (uint32_t)shape.top_k;
	p->max_tokens = (uint32_t)shape.tokens;
	p->row_bytes = shape.row;
	p->scale_bytes = shape.scale;
	p->out_row_bytes = shape.out;
	p->placement = shape.exact ? M2N_PLACEMENT_EXACT : M2N_PLACEMENT_SLOT;
	p->dedup = (int)shape.dedup;
	p->reduce_at_expert = (int)shape.reduce;
	p->capacity = (uint32_t)shape.capacity;
	p->depth = (uint32_t)shape.depth;
}

static void print_memory(char *line, int rank, const struct m2n_channel_memory *memory)
{
	snprintf(line, LINE_BYTES,
		"rank=%d dispatch=%zu reply=%zu control=%zu total=%zu staging=%zu made=%zu", rank,
		memory->dispatch_bytes, memory->reply_bytes, memory->control_bytes,
		memory->total_bytes, memory->staging_bytes, memory->made_bytes);
}

static void join(struct rank *rank, struct counted_store *store)
{
	struct m2n_store_callbacks callbacks = M2N_STORE_CALLBACKS_INIT;
	struct m2n_ctx_params ctx = M2N_CTX_PARAMS_INIT;
	struct m2n_group_params params = M2N_GROUP_PARAMS_INIT;

	memory_store_callbacks(rank->shared, &store->inner);
	callbacks.arg = store;
	callbacks.put = counted_put;
	callbacks.get = counted_get;
	ctx.backend = rank->backend;
	ctx.options = rank->options;
	params.rank = rank->rank;
	params.n_ranks = rank->n_ranks;
	params.callbacks = &callbacks;
	expect_ok(m2n_ctx_open(&ctx, &rank->ctx));
	expect_ok(m2n_group_join(rank->ctx, &params, &rank->group));
}

/* A source that is its own sink: every pair to the expert of its number. */
static void play_source(struct m2n_channel *channel, const void *rows, void *out)
{
	struct m2n_dispatch_send_params send = M2N_DISPATCH_SEND_PARAMS_INIT;
	struct m2n_combine_recv_params recv = M2N_COMBINE_RECV_PARAMS_INIT;
	struct m2n_route_params route = M2N_ROUTE_PARAMS_INIT;
	size_t n_pairs = shape.tokens * shape.top_k;
	int32_t *ids = calloc(n_pairs, sizeof(*ids));
	struct m2n_plan *plan;

	expect(ids != NULL);
	for (size_t i = 0; i < n_pairs; i++)
		ids[i] = (int32_t)(i % shape.experts);
	route.n_tokens = (uint32_t)shape.tokens;
	route.expert_ids = ids;
	expect_ok(m2n_plan_create(channel, &plan));
	expect_ok(m2n_plan_route(channel, plan, &route));
	send.plan = plan;
	send.rows = rows;
	recv.plan = plan;
	recv.out = out;
	expect_ok(m2n_dispatch_send(channel, &send));
	expect_ok(m2n_combine_recv(channel, &recv));
	m2n_plan_destroy(plan);
	free(ids);
}

static void play_expert(struct m2n_channel *channel, const void *rows)
{
	struct m2n_combine_send_params reply = M2N_COMBINE_SEND_PARAMS_INIT;

	reply.rows = rows;
	expect_ok(m2n_dispatch_recv(channel, NULL, &reply.batch));
	expect_ok(m2n_combine_send(channel, &reply));
	expect_ok(m2n_reply_wait(channel, M2N_TIMEOUT_DEFAULT));
}

/* One round from memory of malloc; what it made private pages for, and what it staged. */
static void play(struct rank *rank, struct m2n_channel *channel, char *line)
{
	size_t n = strlen(line), bytes = shape.row > shape.out ? shape.row : shape.out;
	void *rows = calloc(shape.m * shape.tokens * shape.top_k, bytes);
	void *out = calloc(shape.tokens, bytes);
	struct m2n_channel_attr attr;
	struct held before, after;

	expect(rows && out);
	look(&before);
	if ((uint64_t)rank->rank < shape.m)
		play_source(channel, rows, out);
	else
		play_expert(channel, rows);
	look(&after);
	expect_ok(m2n_channel_query(channel, &attr));
	snprintf(line + n, LINE_BYTES - n, " private=%" PRIu64 " staged=%" PRIu64,
		after.private_bytes - before.private_bytes, attr.staged_bytes);
	rank_barrier(rank);
	free(rows);
	free(out);
}

static void print_queues(char *line)
{
	size_t n = strlen(line);
	struct queues q;

	expect(queues_count(&q) == 0);
	snprintf(line + n, LINE_BYTES - n,
		" qps=%" PRIu64 " cqs=%" PRIu64 " srqs=%" PRIu64 " mrs=%" PRIu64 " cqes=%" PRIu64
		" pinned=%" PRIu64 " queue_bytes=%" PRIu64,
		q.n_qps, q.n_cqs, q.n_srqs, q.n_mrs, q.n_cqes, q.pinned_bytes, q.queue_bytes);
}

static void measure(struct rank *rank)
{
	char *line = (char *)rank->shared + memory_store_bytes() +
		     (size_t)rank->rank * LINE_BYTES;
	struct counted_store store = {.inner = M2N_STORE_CALLBACKS_INIT};
	struct m2n_channel_memory memory;
	struct m2n_channel_params params;
	struct m2n_channel *channel;
	struct held before, joined, after;
	unsigned n_puts, n_gets;
	size_t n;

	fill_params(&params);
	look(&before); /* stdio and the first readings allocate, too */
	look(&before);
	rank_barrier(rank);
	join(rank, &store);
	rank_barrier(rank);
	look(&joined);
	n_puts = store.n_puts;
	n_gets = store.n_gets;
	expect_ok(m2n_channel_create(rank->group, &params, &channel));
	rank_barrier(rank);
	look(&after);
	rank_barrier(rank);
	expect_ok(m2n_channel_query_memory(&params, rank->rank, &memory));
	print_memory(line, rank->rank, &memory);
	n = strlen(line);
	snprintf(line + n, LINE_BYTES - n,
		" memfd=%" PRIu64 " heap=%" PRIu64 " share=%" PRIu64 " sockets=%" PRIu64
		" memfds=%" PRIu64 " join_memfd=%" PRIu64 " join_heap=%" PRIu64
		" join_sockets=%" PRIu64 " signals=%u puts=%u gets=%u channel_gets=%u"
		" told=%" PRIu64,
		after.memfd_bytes - joined.memfd_bytes, after.heap_bytes - joined.heap_bytes,
		after.share_bytes - before.share_bytes, after.n_sockets - joined.n_sockets,
		after.n_memfds - joined.n_memfds, joined.memfd_bytes - before.memfd_bytes,
		joined.heap_bytes - before.heap_bytes, joined.n_sockets - before.n_sockets,
		rank->ctx->n_signals_used, n_puts, n_gets, store.n_gets - n_gets,
		after.told_bytes);
	if (shape.queues)
		print_queues(line);
	rank_barrier(rank);
	if (shape.round)
		play(rank, channel, line);
	rank_barrier(rank);
	m2n_channel_destroy(channel);
	rank_close(rank);
}

static const char *read_args(int argc, char **argv)
{
	const char *backend = "shm";

	for (int i = 1; i < argc; i++) {
		char *value = strchr(argv[i], '=');
		unsigned k = 0;

		if (!value)
			exit(2);
		*value++ = '\0';
		while (k < N_KEYS && strcmp(keys[k].name, argv[i]) != 0)
			k++;
		if (k < N_KEYS)
			*keys[k].value = strtoull(value, NULL, 10);
		else if (strcmp(argv[i], "backend") == 0)
			backend = value;
		else
			exit(2);
	}
	return backend;
}

int main(int argc, char **argv)
{
	static const char *const options[] = {"HUGE_PAGES=no", NULL};
	struct ranks_opts opts = {.bare = 1, .options = options};
	struct m2n_channel_memory memory;
	struct m2n_channel_params params;
	char line[LINE_BYTES], *shared;
	int status;

	opts.backend = read_args(argc, argv);
	if (shape.query != UINT64_MAX) {
		fill_params(&params);
		status = m2n_channel_query_memory(&params, (int)shape.query, &memory);
		if (status)
			fprintf(stderr, "%s\n", m2n_error_text());
		print_memory(line, (int)shape.query, &memory);
		puts(line);
		return status != 0;
	}
	opts.shared_bytes = memory_store_bytes() + RANKS_MAX * LINE_BYTES;
	shared = malloc(opts.shared_bytes);
	status = shared ? ranks_run_shared(n_ranks(), measure, NULL, &opts, shared) : 1;
	for (int i = 0; i < n_ranks() && !status; i++)
		puts(shared + memory_store_bytes() + (size_t)i * LINE_BYTES);
	free(shared);
	return status;
}
