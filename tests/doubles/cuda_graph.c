/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stand-in of libcuda.so.1: capture of streams and graphs.
 *
 * A capture (session) spans the stream where it began and those that joined it through events.
 * Work becomes nodes with the nodes that they follow; a launch runs the nodes of each stream on a
 * thread, as far as others let it. What would spoil a capture in the driver spoils it here, with
 * the same result: waiting for work outside or from outside, calls that synchronise, branches that
 * do not come back.
 */
#include "doubles/cuda_state.h"

#include <stdlib.h>
#include <string.h>

static struct session *sessions;
static struct graph *graphs;
static struct exec *execs;
static uint64_t n_sessions_ever;
static THREAD_LOCAL int thread_mode; /* cuThreadExchangeStreamCaptureMode() */

static void clear_nodes(struct graph *graph)
{
	for (unsigned i = 0; i < graph->n; i++) {
		free(graph->nodes[i].work.args);
		free(graph->nodes[i].deps.nodes);
		if (graph->nodes[i].work.exec)
			double_exec_put(graph->nodes[i].work.exec);
	}
	free(graph->nodes);
	*graph = (struct graph){0};
}

static int add_node_dep(struct deps *deps, unsigned node)
{
	unsigned *nodes;

	for (unsigned i = 0; i < deps->n; i++)
		if (deps->nodes[i] == node)
			return 0;
	nodes = realloc(deps->nodes, (deps->n + 1) * sizeof(*nodes));
	if (!nodes)
		return -1;
	deps->nodes = nodes;
	nodes[deps->n++] = node;
	return 0;
}

static int merge_deps(struct deps *deps, const struct deps *more)
{
	int ret = 0;

	for (unsigned i = 0; i < more->n && !ret; i++)
		ret = add_node_dep(deps, more->nodes[i]);
	return ret;
}

static void end_session(struct session *session)
{
	struct session **at = &sessions;

	while (*at != session)
		at = &(*at)->next;
	*at = session->next;
	for (struct stream *s = double_streams; s; s = s->next)
		if (s->session == session) {
			s->session = NULL;
			s->deps.n = 0;
		}
	clear_nodes(&session->graph);
	free(session);
}

void double_leave_session(struct stream *stream)
{
	struct session *session = stream->session;

	stream->session = NULL;
	if (session && session->origin == stream)
		end_session(session);
	else if (session)
		session->is_invalid = 1;
}

m2n__cu_result double_capture(struct stream *stream, const struct work *work)
{
	struct session *session = stream->session;
	struct graph *graph = &session->graph;
	struct node *nodes = session->is_invalid ? NULL :
		realloc(graph->nodes, (graph->n + 1) * sizeof(*nodes));

	if (!nodes) {
		free(work->args);
		if (work->exec)
			double_exec_put(work->exec);
		return session->is_invalid ? M2N__CU_CAPTURE_INVALIDATED : M2N__CU_OUT_OF_MEMORY;
	}
	graph->nodes = nodes;
	nodes[graph->n] = (struct node){.work = *work, .lane = stream->lane, .deps = stream->deps};
	stream->deps = (struct deps){0};
	return add_node_dep(&stream->deps, graph->n++) ? M2N__CU_OUT_OF_MEMORY : 0;
}

m2n__cu_result double_capture_event(struct stream *stream, struct event *event)
{
	if (stream->session->is_invalid)
		return M2N__CU_CAPTURE_INVALIDATED;
	event->session = stream->session->number;
	event->deps.n = 0;
	return merge_deps(&event->deps, &stream->deps) ? M2N__CU_OUT_OF_MEMORY : 0;
}

m2n__cu_result double_capture_wait(struct stream *stream, struct event *event)
{
	struct session *of_event;

	for (of_event = sessions; of_event && of_event->number != event->session;)
		of_event = of_event->next;
	if (stream->session && stream->session->is_invalid)
		return M2N__CU_CAPTURE_INVALIDATED;
	if (!event->session) {
		if (!event->op) /* never recorded: nothing to wait for */
			return 0;
		stream->session->is_invalid = 1;
		return M2N__CU_CAPTURE_ISOLATION;
	}
	if (!of_event) {
		if (stream->session)
			stream->session->is_invalid = 1;
		return M2N__CU_CAPTURED_EVENT;
	}
	if (of_event->is_invalid)
		return M2N__CU_CAPTURE_INVALIDATED;
	if (stream->session && stream->session != of_event) {
		stream->session->is_invalid = of_event->is_invalid = 1;
		return M2N__CU_CAPTURE_MERGE;
	}
	if (stream->is_null) {
		of_event->is_invalid = 1;
		return M2N__CU_CAPTURE_UNSUPPORTED;
	}
	if (!stream->session) {
		stream->session = of_event;
		stream->lane = of_event->graph.n_lanes++;
		stream->deps.n = 0;
	}
	return merge_deps(&stream->deps, &event->deps) ? M2N__CU_OUT_OF_MEMORY : 0;
}

m2n__cu_result double_unsafe(void)
{
	m2n__cu_result result = 0;

	if (thread_mode == M2N__CU_CAPTURE_MODE_RELAXED)
		return 0;
	for (struct session *s = sessions; s; s = s->next) {
		int is_own = pthread_equal(s->thread, pthread_self());

		if (s->mode == M2N__CU_CAPTURE_MODE_RELAXED ||
			(!is_own && (s->mode == M2N__CU_CAPTURE_MODE_THREAD ||
					    thread_mode == M2N__CU_CAPTURE_MODE_THREAD)))
			continue;
		s->is_invalid = 1;
		result = M2N__CU_CAPTURE_UNSUPPORTED;
	}
	return result;
}

m2n__cu_result double_unsafe_for(struct stream *stream)
{
	if (stream->session) {
		stream->session->is_invalid = 1;
		return M2N__CU_CAPTURE_UNSUPPORTED;
	}
	return stream->is_null && double_unsafe_null(stream->context) ? M2N__CU_CAPTURE_IMPLICIT :
									double_unsafe();
}

m2n__cu_result double_unsafe_null(struct context *context)
{
	m2n__cu_result result = 0;

	for (struct stream *s = double_streams; s; s = s->next)
		if (s->context == context && s->is_blocking && s->session) {
			s->session->is_invalid = 1;
			result = M2N__CU_CAPTURE_IMPLICIT;
		}
	return result;
}

m2n__cu_result m2n_double_capture_mode(int *mode)
{
	int before = thread_mode;

	ENTER(capture_mode);
	if (*mode < M2N__CU_CAPTURE_MODE_GLOBAL || *mode > M2N__CU_CAPTURE_MODE_RELAXED)
		return M2N__CU_INVALID_VALUE;
	thread_mode = *mode;
	*mode = before;
	return 0;
}

m2n__cu_result m2n_double_stream_is_capturing(m2n__cu_stream handle, int *status)
{
	const struct stream *s;

	ENTER(stream_is_capturing);
	LOCKED();
	s = double_stream(handle);
	if (!s)
		return M2N__CU_INVALID_HANDLE;
	*status = M2N__CU_CAPTURE_NONE;
	if (s->session)
		*status = s->session->is_invalid ? M2N__CU_CAPTURE_SPOILED :
						   M2N__CU_CAPTURE_ACTIVE;
	return 0;
}

m2n__cu_result m2n_double_stream_begin_capture(m2n__cu_stream handle, int mode)
{
	struct session *session;
	struct stream *s;

	ENTER(stream_begin_capture);
	LOCKED();
	s = double_stream(handle);
	if (!s)
		return M2N__CU_INVALID_HANDLE;
	if (s->is_null)
		return M2N__CU_CAPTURE_UNSUPPORTED;
	if (s->session)
		return M2N__CU_ILLEGAL_STATE;
	if (mode < M2N__CU_CAPTURE_MODE_GLOBAL || mode > M2N__CU_CAPTURE_MODE_RELAXED)
		return M2N__CU_INVALID_VALUE;
	session = calloc(1, sizeof(*session));
	if (!session)
		return M2N__CU_OUT_OF_MEMORY;
	*session = (struct session){
		.number = ++n_sessions_ever,
		.mode = mode,
		.thread = pthread_self(),
		.origin = s,
		.graph.n_lanes = 1,
		.next = sessions,
	};
	sessions = session;
	s->session = session;
	s->lane = 0;
	s->deps.n = 0;
	return 0;
}

/* Do all branches lead to what the origin has seen? Nodes follow only earlier ones. */
static int is_joined(const struct session *session)
{
	const struct graph *graph = &session->graph;
	const struct deps *end = &session->origin->deps;
	char *is_seen = calloc(graph->n + 1, 1);
	int ret = is_seen != NULL;

	if (!ret)
		return 0;
	for (unsigned i = 0; i < end->n; i++)
		is_seen[end->nodes[i]] = 1;
	for (unsigned i = graph->n; i-- > 0;) {
		ret &= is_seen[i];
		for (unsigned d = 0; is_seen[i] && d < graph->nodes[i].deps.n; d++)
			is_seen[graph->nodes[i].deps.nodes[d]] = 1;
	}
	free(is_seen);
	return ret;
}

m2n__cu_result m2n_double_stream_end_capture(m2n__cu_stream handle, void **graph)
{
	m2n__cu_result result = 0;
	struct session *session;
	struct stream *s;
	struct graph *g;

	ENTER(stream_end_capture);
	LOCKED();
	s = double_stream(handle);
	session = s ? s->session : NULL;
	*graph = NULL;
	if (!session)
		return s ? M2N__CU_ILLEGAL_STATE : M2N__CU_INVALID_HANDLE;
	if (session->mode != M2N__CU_CAPTURE_MODE_RELAXED &&
		!pthread_equal(session->thread, pthread_self()))
		return M2N__CU_CAPTURE_WRONG_THREAD;
	if (session->origin != s)
		result = M2N__CU_CAPTURE_UNMATCHED;
	else if (session->is_invalid)
		result = M2N__CU_CAPTURE_INVALIDATED;
	else if (!is_joined(session))
		result = M2N__CU_CAPTURE_UNJOINED;
	if (result == M2N__CU_CAPTURE_UNMATCHED) {
		session->is_invalid = 1;
		return result;
	}
	g = result ? NULL : malloc(sizeof(*g));
	if (g) {
		*g = session->graph;
		session->graph = (struct graph){0};
		g->next = graphs;
		graphs = g;
		*graph = g;
	}
	end_session(session);
	return g || result ? result : M2N__CU_OUT_OF_MEMORY;
}

/* ---- graphs ---- */

static int copy_node(struct node *to, const struct node *from)
{
	*to = *from;
	to->deps = (struct deps){0};
	to->work.args = NULL;
	if (from->work.exec)
		from->work.exec->refs++;
	if (from->work.kernel) {
		to->work.args = malloc(from->work.kernel->args_bytes);
		if (!to->work.args)
			return -1;
		memcpy(to->work.args, from->work.args, from->work.kernel->args_bytes);
	}
	return merge_deps(&to->deps, &from->deps);
}

static int copy_graph(struct graph *to, const struct graph *from)
{
	*to = (struct graph){.n_lanes = from->n_lanes};
	to->nodes = calloc(from->n + 1, sizeof(struct node));
	if (!to->nodes)
		return -1;
	while (to->n < from->n) {
		to->n++;
		if (copy_node(&to->nodes[to->n - 1], &from->nodes[to->n - 1]))
			return -1;
	}
	return 0;
}

m2n__cu_result m2n_double_graph_instantiate(void **exec, void *graph, unsigned long long flags)
{
	struct exec *e;
	struct graph *g;

	ENTER(graph_instantiate);
	LOCKED();
	for (g = graphs; g && g != graph;)
		g = g->next;
	if (!g || flags)
		return M2N__CU_INVALID_VALUE;
	e = calloc(1, sizeof(*e));
	if (!e)
		return M2N__CU_OUT_OF_MEMORY;
	e->refs = 1;
	if (copy_graph(&e->graph, g)) {
		double_exec_put(e);
		return M2N__CU_OUT_OF_MEMORY;
	}
	e->next = execs;
	execs = e;
	*exec = e;
	return 0;
}

void double_exec_put(struct exec *exec)
{
	struct op *last = exec->last;

	if (--exec->refs)
		return;
	clear_nodes(&exec->graph);
	free(exec);
	double_op_put(last);
}

m2n__cu_result m2n_double_graph_exec_destroy(void *exec)
{
	struct exec **at = &execs, *e;

	ENTER(graph_exec_destroy);
	LOCKED();
	while (*at && *at != exec)
		at = &(*at)->next;
	e = *at;
	if (!e)
		return M2N__CU_INVALID_VALUE;
	*at = e->next;
	double_exec_put(e);
	return 0;
}

m2n__cu_result m2n_double_graph_destroy(void *graph)
{
	struct graph **at = &graphs, *g;

	ENTER(graph_destroy);
	LOCKED();
	while (*at && *at != graph)
		at = &(*at)->next;
	g = *at;
	if (!g)
		return M2N__CU_INVALID_VALUE;
	*at = g->next;
	clear_nodes(g);
	free(g);
	return 0;
}

m2n__cu_result m2n_double_graph_launch(void *exec, m2n__cu_stream handle)
{
	struct work work = {.kind = WORK_GRAPH};
	struct stream *s;

	ENTER(graph_launch);
	LOCKED();
	s = double_stream(handle);
	if (!s)
		return M2N__CU_INVALID_HANDLE;
	for (work.exec = execs; work.exec && work.exec != exec;)
		work.exec = work.exec->next;
	if (!work.exec)
		return M2N__CU_INVALID_VALUE;
	work.exec->refs++;
	return double_submit(s, &work);
}

/* A launch that runs. */
struct run {
	const struct graph *graph;
	char *is_done; /* by node; under the lock */
};

struct lane {
	struct run *run;
	unsigned number;
	uint64_t random;
	pthread_t thread;
};

static void run_lane(struct lane *lane)
{
	struct run *run = lane->run;

	for (unsigned i = 0; i < run->graph->n; i++) {
		const struct node *node = &run->graph->nodes[i];

		if (node->lane != lane->number)
			continue;
		pthread_mutex_lock(&double_lock);
		for (unsigned d = 0; d < node->deps.n; d++)
			while (!run->is_done[node->deps.nodes[d]])
				double_wait_signal();
		pthread_mutex_unlock(&double_lock);
		double_delay(&lane->random);
		double_run(&node->work, &lane->random);
		pthread_mutex_lock(&double_lock);
		run->is_done[i] = 1;
		double_signal();
		pthread_mutex_unlock(&double_lock);
	}
}

static void *lane_main(void *arg)
{
	run_lane(arg);
	return NULL;
}

/* All lanes but the first have threads for as long as the launch runs. */
void double_run_graph(struct exec *exec, uint64_t *random)
{
	unsigned n_lanes = exec->graph.n_lanes;
	struct run run = {.graph = &exec->graph, .is_done = calloc(exec->graph.n + 1, 1)};
	struct lane *lanes = calloc(n_lanes, sizeof(*lanes));

	if (!run.is_done || !lanes)
		abort();
	for (unsigned i = 0; i < n_lanes; i++)
		lanes[i] = (struct lane){&run, i, double_random(random), pthread_self()};
	for (unsigned i = 1; i < n_lanes; i++)
		if (pthread_create(&lanes[i].thread, NULL, lane_main, &lanes[i]))
			abort();
	run_lane(&lanes[0]);
	for (unsigned i = 1; i < n_lanes; i++)
		pthread_join(lanes[i].thread, NULL);
	free(lanes);
	free(run.is_done);
}
