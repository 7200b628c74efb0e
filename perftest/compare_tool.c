/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs the yardsticks that are programs. Per pair and alternation: the expert rank starts the
 * server and, when it listens, puts its address and port into the group's store; all ranks meet, so
 * that the pairs run at once; the source runs the client and puts whether that went well, which
 * tells the expert rank to wait for its server or to end it. What fails is named once and its pair
 * not tried again; figures that are missing leave the yardstick out of the report.
 */
#include "compare_tool.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/group.h"
#include "tool_child.h"

#define TENTH_NS INT64_C(100000000)
#define MAX_RAILS 8
/* Pairs that are to run at once are timed for so long after all have begun. */
#define CROWD_S 2
#define MAX_MARGIN_S 8 /* a rank starts its pairs one after another */

static const struct tool {
	unsigned compare; /* the yardstick's bit */
	enum perf_test test;
	enum perf_kind kind;
	const char *name, *how, *package;
} tools[] = {
	{PERF_COMPARE_IB_WRITE_BW, PERF_BW, PERF_IB_WRITE_BW, "ib_write_bw", NULL, "perftest"},
	{PERF_COMPARE_IB_WRITE_BW, PERF_INIT, PERF_IB_WRITE_BW, "ib_write_bw", NULL, "perftest"},
	{PERF_COMPARE_IB_WRITE_LAT, PERF_LAT, PERF_IB_WRITE_LAT, "ib_write_lat", NULL, "perftest"},
	{PERF_COMPARE_IB_SEND_BW, PERF_BW, PERF_IB_SEND_BW, "ib_send_bw", NULL, "perftest"},
	{PERF_COMPARE_IB_SEND_LAT, PERF_LAT, PERF_IB_SEND_LAT, "ib_send_lat", NULL, "perftest"},
	{PERF_COMPARE_UCX_PERFTEST, PERF_BW, PERF_UCP_PUT_BW, "ucx_perftest", "ucp_put_bw",
		"ucx-utils"},
	{PERF_COMPARE_UCX_PERFTEST, PERF_LAT, PERF_UCP_PUT_LAT, "ucx_perftest", "ucp_put_lat",
		"ucx-utils"},
};
#define N_TOOLS (sizeof(tools) / sizeof(tools[0]))

/* This rank and one of the other side. */
struct pair {
	unsigned peer; /* index among sources or expert ranks */
	unsigned n_rails;
	struct tool_task tasks[MAX_RAILS];
	struct tool_child children[MAX_RAILS];
};

/* One alternation of one yardstick, as this rank sees it. */
struct batch {
	struct perf_rank *rank;
	const struct tool *tool;
	unsigned series;
	uint32_t rep;
	bool client;
	unsigned self; /* index of this rank on its side */
	unsigned n_pairs;
	struct pair *pairs; /* those that have not failed */
};

static bool failed[PERF_MAX_SERIES][TOOL_MAX_PEERS]; /* the pair does not try again */
static bool said[PERF_MAX_SERIES];

static const struct tool *tool_of(enum perf_kind kind)
{
	unsigned i = 0;

	while (i < N_TOOLS - 1 && tools[i].kind != kind)
		i++;
	return &tools[i];
}

const char *perf_tool_name(enum perf_kind kind, const char **how)
{
	*how = tool_of(kind)->how;
	return tool_of(kind)->name;
}

uint64_t perf_tool_sources(const struct perf_args *args)
{
	return args->test == PERF_BW ? args->n_sources : 1;
}

static uint64_t expert_ranks(const struct perf_args *args)
{
	return args->test == PERF_BW ? args->n_expert_ranks : 1;
}

void perf_tool_add(struct perf_job *job)
{
	for (unsigned i = 0; i < N_TOOLS; i++)
		if ((job->args->compare & tools[i].compare) && job->args->test == tools[i].test)
			perf_job_add(job, tools[i].kind);
}

static bool *failed_of(const struct batch *batch, const struct pair *pair)
{
	return &failed[batch->series][pair->peer];
}

/* Says once what is wrong; the run goes on without the yardstick. */
static void give_up(struct batch *batch, const struct pair *pair, int status, const char *text)
{
	struct page_rank *result = page_rank(batch->rank->page, (uint32_t)batch->rank->rank);

	*failed_of(batch, pair) = true;
	if (said[batch->series])
		return;
	said[batch->series] = true;
	if (result->tool_status != 1)
		result->tool_status = (uint32_t)status;
	fprintf(stderr, "m2n_perf: --compare: %s %s; it is left out\n", batch->tool->name, text);
}

static void give_up_start(struct batch *batch, const struct pair *pair, int error)
{
	char text[128];

	if (error == ENOENT)
		snprintf(text, sizeof(text), "is not installed (Debian package %s)",
			batch->tool->package);
	else
		snprintf(text, sizeof(text), "cannot be started: %s", strerror(error));
	give_up(batch, pair, error == ENOENT ? 2 : 1, text);
}

static unsigned source_of(const struct batch *batch, const struct pair *pair)
{
	return batch->client ? batch->self : pair->peer;
}

static unsigned expert_of(const struct batch *batch, const struct pair *pair)
{
	return batch->client ? pair->peer : batch->self;
}

static void give_up_child(struct batch *batch, const struct pair *pair, unsigned rail)
{
	const char *role = batch->client ? "client" : "server";
	char words[256], text[320];

	tool_child_last_words(&pair->children[rail], words, sizeof(words));
	snprintf(text, sizeof(text), "(%s of source %u and expert rank %u) failed: %s", role,
		source_of(batch, pair), expert_of(batch, pair),
		words[0] != '\0' ? words : "it said nothing");
	give_up(batch, pair, 1, text);
}

/* An option of the library as text; "" when it has no such option, or the value stands for auto. */
static void read_option(struct perf_rank *rank, const char *name, char *value, size_t bytes)
{
	if (m2n_ctx_option(rank->ctx, name, value, bytes, NULL) != 0 ||
		strcmp(value, "auto") == 0 || strcmp(value, "-1") == 0)
		value[0] = '\0';
}

/* Classes and levels of which 0 is what everybody takes. */
static void read_class(struct perf_rank *rank, const char *name, char *value, size_t bytes)
{
	read_option(rank, name, value, bytes);
	if (strcmp(value, "0") == 0)
		value[0] = '\0';
}

static void read_ib_options(struct batch *batch, struct pair *pair, struct tool_task *task)
{
	struct perf_rank *rank = batch->rank;
	char devices[512], n_qps[16];
	char *at = devices;

	read_option(rank, "VERBS_GID_INDEX", task->gid_index, sizeof(task->gid_index));
	read_option(rank, "VERBS_MTU", task->mtu, sizeof(task->mtu));
	read_class(rank, "VERBS_SL", task->service_level, sizeof(task->service_level));
	read_class(rank, "VERBS_TC", task->traffic_class, sizeof(task->traffic_class));
	read_option(rank, "VERBS_QPS", n_qps, sizeof(n_qps));
	task->n_qps = n_qps[0] != '\0' ? strtoull(n_qps, NULL, 10) : 1;
	if (rank->args->test == PERF_INIT)
		task->n_qps *= rank->args->n_sources * rank->args->n_expert_ranks;
	read_option(rank, "VERBS_DEVICES", devices, sizeof(devices));
	for (const char *word; (word = strtok_r(at, ", ", &at)) != NULL;) {
		struct tool_task *rail = &pair->tasks[pair->n_rails++];
		*rail = *task;
		snprintf(rail->device, sizeof(rail->device), "%.*s", (int)strcspn(word, ":"), word);
		if (strchr(word, ':') != NULL)
			snprintf(rail->ib_port, sizeof(rail->ib_port), "%s", strchr(word, ':') + 1);
		/* Only bandwidth adds up over rails. */
		if (rank->args->test != PERF_BW || pair->n_rails == MAX_RAILS)
			break;
	}
}

/* As many messages as ours moves in an alternation; what the tools need at least. */
static void fill_tasks(struct batch *batch, struct pair *pair)
{
	struct perf_rank *rank = batch->rank;
	uint64_t n_each = expert_ranks(rank->args);
	struct tool_task task = {.kind = batch->tool->kind, .size = rank->size};
	int64_t first, last;

	perf_batch(rank->args, batch->rep, &first, &last);
	task.n_iters = (uint64_t)(last - first) * rank->n_messages;
	task.n_iters = task.n_iters > 100 ? task.n_iters : 100;
	task.n_warmup = task.n_iters > 200 ? task.n_iters / 20 : 10;
	if (perf_tool_sources(rank->args) * n_each > 1) {
		task.measured_s = CROWD_S;
		task.margin_s = n_each / 2 < MAX_MARGIN_S ? 1 + n_each / 2 : MAX_MARGIN_S;
	}
	if (rank->args->test == PERF_INIT) {
		task.size = 64;
		task.n_iters = 5;
	}
	if (batch->tool->how == NULL)
		read_ib_options(batch, pair, &task);
	if (pair->n_rails == 0)
		pair->tasks[pair->n_rails++] = task;
}

/* The store's key for what one side of the pair tells the other. */
static void make_key(
	const struct batch *batch, const struct pair *pair, const char *side, char key[64])
{
	snprintf(key, 64, "m2n_perf/tool/%u/%u/%u/%u.%u/%s", batch->series, batch->rank->n_case,
		batch->rep, source_of(batch, pair), expert_of(batch, pair), side);
}

static void tell(struct batch *batch, const struct pair *pair, const char *side, const char *text)
{
	char key[64];

	make_key(batch, pair, side, key);
	perf_rank_check(batch->rank,
		m2n_group_put(batch->rank->group, key, text, strlen(text) + 1, M2N_TIMEOUT_DEFAULT),
		"m2n_group_put");
}

/* What the other side said. False: nothing yet after this time. */
static bool hear(struct batch *batch, const struct pair *pair, const char *side, int64_t timeout_ns,
	char *text, size_t text_bytes)
{
	char key[64];
	size_t bytes = text_bytes - 1;

	make_key(batch, pair, side, key);
	int status = m2n_group_get(batch->rank->group, key, text, &bytes, timeout_ns);
	if (status == -EAGAIN || status == -ETIMEDOUT)
		return false;
	perf_rank_check(batch->rank, status, "m2n_group_get");
	text[bytes] = '\0';
	return true;
}

/* Leaves when the run is given up, with the children. */
static void check_abort(struct batch *batch)
{
	if (atomic_load(&batch->rank->page->abort))
		_exit(3);
}

static int64_t deadline_of(const struct batch *batch)
{
	/* Before the run's own patience ends. */
	return perf_now() + (int64_t)batch->rank->args->timeout_s * 750000000;
}

/* Starts one server on a free port; somebody else may take the port first. */
static bool start_server(struct batch *batch, struct pair *pair, unsigned rail)
{
	struct tool_child *child = &pair->children[rail];
	int64_t deadline = deadline_of(batch);

	for (unsigned attempt = 0; attempt < 3; attempt++) {
		struct tool_command command;
		pair->tasks[rail].port = tool_free_port();
		tool_command_make(&pair->tasks[rail], &command);
		int error = tool_child_start(child, command.argv);
		if (error != 0) {
			give_up_start(batch, pair, error);
			return false;
		}
		while (!tool_child_watch(child, 2)) {
			if (tool_port_listens(pair->tasks[rail].port))
				return true;
			check_abort(batch);
			if (perf_now() > deadline)
				tool_child_stop(child);
		}
	}
	give_up_child(batch, pair, rail);
	return false;
}

static void stop_all(struct pair *pair)
{
	for (unsigned rail = 0; rail < pair->n_rails; rail++)
		tool_child_stop(&pair->children[rail]);
}

static void open_servers(struct batch *batch, struct pair *pair)
{
	char text[256];
	size_t used;

	snprintf(text, sizeof(text), "%s", batch->rank->group->record.address);
	for (unsigned rail = 0; rail < pair->n_rails; rail++) {
		if (!start_server(batch, pair, rail)) {
			stop_all(pair);
			tell(batch, pair, "server", "!");
			return;
		}
		used = strlen(text);
		snprintf(text + used, sizeof(text) - used, " %u", pair->tasks[rail].port);
	}
	tell(batch, pair, "server", text);
}

/* Servers end by themselves when their clients do. */
static void close_servers(struct batch *batch, struct pair *pair)
{
	char text[8] = "";
	bool heard = false;
	bool ended = false;

	while (!heard || (!ended && text[0] != '!')) {
		ended = true;
		for (unsigned rail = 0; rail < pair->n_rails; rail++)
			ended &= tool_child_watch(&pair->children[rail], heard ? 2000 : 500);
		check_abort(batch);
		if (!heard)
			heard = hear(
				batch, pair, "client", ended ? TENTH_NS : 0, text, sizeof(text));
		else
			break;
	}
	stop_all(pair);
	if (text[0] == '!')
		*failed_of(batch, pair) = true;
}

/* Adds the figures of all rails of a pair. False: one said nothing. */
static bool add_figures(struct batch *batch, struct pair *pair, struct page_figure *sum)
{
	for (unsigned rail = 0; rail < pair->n_rails; rail++) {
		const struct tool_child *child = &pair->children[rail];
		struct page_figure one = {0, 0};
		if (!tool_child_succeeded(child) ||
			!tool_output_parse(&pair->tasks[rail], child->text, &one)) {
			give_up_child(batch, pair, rail);
			return false;
		}
		if (one.value <= 0 && batch->rank->args->test != PERF_INIT)
			return false;
		sum->value += one.value;
		sum->p99 = one.p99;
	}
	return true;
}

/* A tool may fail to tell in one alternation, not in all. */
static void check_told(struct batch *batch)
{
	struct perf_rank *rank = batch->rank;
	const struct page_figure *figures =
		page_figures(rank->page, (uint32_t)rank->rank, rank->n_case, batch->series);

	for (uint32_t rep = 0; rep <= batch->rep; rep++)
		if (figures[rep].value > 0)
			return;
	if (batch->rep + 1 == rank->args->n_reps && batch->n_pairs > 0)
		give_up(batch, &batch->pairs[0], 1, "reported 0 in every alternation");
}

/* The figures of all pairs of a source. */
static void note_figures(struct batch *batch, double wall_us)
{
	struct perf_rank *rank = batch->rank;
	struct page_figure sum = {0, 0};
	bool whole = batch->n_pairs == expert_ranks(rank->args);

	for (unsigned i = 0; i < batch->n_pairs; i++)
		whole &= !*failed_of(batch, &batch->pairs[i]) &&
			 add_figures(batch, &batch->pairs[i], &sum);
	if (rank->args->test == PERF_INIT)
		sum.value = wall_us;
	if (whole)
		page_figures(rank->page, (uint32_t)rank->rank, rank->n_case,
			batch->series)[batch->rep] = sum;
	check_told(batch);
}

static bool start_client(struct batch *batch, struct pair *pair, unsigned rail, const char *host)
{
	char *text = batch->rank->page->commands[batch->series];
	struct tool_command command;

	pair->tasks[rail].host = host;
	tool_command_make(&pair->tasks[rail], &command);
	pair->tasks[rail].host = NULL; /* it is the caller's, and in the command by now */
	if (batch->self == 0 && pair->peer == 0 && rail == 0)
		snprintf(text, PERF_TEXT_BYTES, "%s", command.text);
	int error = tool_child_start(&pair->children[rail], command.argv);
	if (error != 0)
		give_up_start(batch, pair, error);
	return error == 0;
}

static void start_clients(struct batch *batch, struct pair *pair)
{
	char text[256] = "!";
	char *at = text;

	while (!hear(batch, pair, "server", TENTH_NS, text, sizeof(text)))
		check_abort(batch);
	const char *host = strtok_r(at, " ", &at);
	unsigned n_rails = 0;
	if (host == NULL || host[0] == '!') { /* said there */
		*failed_of(batch, pair) = true;
		host = NULL;
	}
	for (const char *word;
		host != NULL && n_rails < pair->n_rails && (word = strtok_r(at, " ", &at)) != NULL;
		n_rails++) {
		pair->tasks[n_rails].port = (uint16_t)strtoul(word, NULL, 10);
		if (!start_client(batch, pair, n_rails, host))
			break;
	}
	pair->n_rails = n_rails;
}

static void run_clients(struct batch *batch)
{
	int64_t deadline = deadline_of(batch), start = perf_now();

	for (unsigned i = 0; i < batch->n_pairs; i++)
		start_clients(batch, &batch->pairs[i]);
	for (unsigned i = 0; i < batch->n_pairs; i++) {
		struct pair *pair = &batch->pairs[i];
		for (unsigned rail = 0; rail < pair->n_rails; rail++) {
			while (!tool_child_watch(&pair->children[rail], 100)) {
				check_abort(batch);
				if (perf_now() > deadline)
					tool_child_stop(&pair->children[rail]);
			}
		}
	}
	note_figures(batch, (double)(perf_now() - start) / 1000);
	for (unsigned i = 0; i < batch->n_pairs; i++)
		tell(batch, &batch->pairs[i], "client",
			*failed_of(batch, &batch->pairs[i]) ? "!" : "done");
}

/* The pairs of this rank that have not failed. */
static void fill_pairs(struct batch *batch)
{
	const struct perf_args *args = batch->rank->args;
	uint64_t n_own = batch->client ? perf_tool_sources(args) : expert_ranks(args);
	uint64_t n_peers = batch->client ? expert_ranks(args) : perf_tool_sources(args);

	batch->pairs = calloc(n_peers, sizeof(*batch->pairs));
	if (batch->pairs == NULL)
		perf_rank_check(batch->rank, -ENOMEM, "calloc");
	for (unsigned peer = 0; peer < n_peers && batch->self < n_own; peer++) {
		struct pair *pair = &batch->pairs[batch->n_pairs];
		pair->peer = peer;
		if (*failed_of(batch, pair))
			continue;
		fill_tasks(batch, pair);
		batch->n_pairs++;
	}
}

void perf_tool_batch(struct perf_rank *rank, unsigned series, uint32_t rep)
{
	struct batch batch = {.rank = rank,
		.series = series,
		.rep = rep,
		.tool = tool_of(rank->job->kinds[series]),
		.client = rank->source >= 0};
	int64_t first, last;

	batch.self = (unsigned)(batch.client ? rank->source : rank->expert);
	fill_pairs(&batch);
	perf_rank_barrier(rank);
	for (unsigned i = 0; i < batch.n_pairs && !batch.client; i++)
		open_servers(&batch, &batch.pairs[i]);
	perf_rank_barrier(rank);
	if (batch.client)
		run_clients(&batch);
	for (unsigned i = 0; i < batch.n_pairs && !batch.client; i++)
		if (!*failed_of(&batch, &batch.pairs[i]))
			close_servers(&batch, &batch.pairs[i]);
	perf_rank_barrier(rank);
	free(batch.pairs);
	perf_batch(rank->args, rep, &first, &last);
	for (int64_t i = first; i < last; i++)
		perf_rank_step(rank);
}
