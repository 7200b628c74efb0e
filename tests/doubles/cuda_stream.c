/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stand-in of libcuda.so.1: streams, events and copies.
 *
 * A stream is a thread with a queue. Work depends only on what it must: what is before it in its
 * stream, events that the stream waits for, and between the NULL stream and blocking ones. Before
 * each piece of work a thread may dawdle for a random moment (M2N_DOUBLE_SEED,
 * M2N_DOUBLE_DELAY_US): what the program forgot to order comes in any order then. Copies never
 * stage pageable memory, and are never done when the call returns: programs may not rely on it.
 *
 * Threads are detached: a stream may be destroyed while it has work, also by the program's end.
 */
#include "doubles/cuda_state.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>

#define END_NS ((int64_t)2000000000) /* that the program's end waits for work */

struct stream *double_streams;
unsigned double_n_threads;

static pthread_cond_t signal_cond = PTHREAD_COND_INITIALIZER;
static struct event *events;
static uint64_t n_streams_ever;
static atomic_int is_ending;

void double_signal(void)
{
	pthread_cond_broadcast(&signal_cond);
}

void double_wait_signal(void)
{
	pthread_cond_wait(&signal_cond, &double_lock);
}

struct op *double_op_get(struct op *op)
{
	op->refs++;
	return op;
}

/* Done work holds nothing: a graph and its last launch would hold each other, and a stream's last
 * work all that was ever before it. */
static void let_go(struct op *op)
{
	for (unsigned i = 0; i < op->n_deps; i++)
		double_op_put(op->deps[i]);
	op->n_deps = 0;
	if (op->work.exec)
		double_exec_put(op->work.exec);
	op->work.exec = NULL;
	free(op->deps);
	op->deps = NULL;
	free(op->work.args);
	op->work.args = NULL;
}

void double_op_put(struct op *op)
{
	if (!op || --op->refs)
		return;
	let_go(op);
	free(op);
}

/* Takes the reference. */
static void await_and_put(struct op *op)
{
	while (!op->done)
		double_wait_signal();
	double_op_put(op);
}

void double_await(struct op *op)
{
	await_and_put(double_op_get(op));
}

void double_await_context(struct context *context)
{
	struct op *tails[64];
	unsigned n;

	do {
		n = 0;
		for (struct stream *s = double_streams; s; s = s->next)
			if (s->context == context && s->tail && !s->tail->done && n < 64)
				tails[n++] = double_op_get(s->tail);
		for (unsigned i = 0; i < n; i++)
			await_and_put(tails[i]);
	} while (n == 64);
}

void double_delay(uint64_t *random)
{
	int64_t end;

	if (!double_settings.delay_us || !(double_random(random) & 1))
		return;
	end = double_now_ns() +
		(int64_t)(double_random(random) % (double_settings.delay_us * 1000));
	while (double_now_ns() < end && !is_ending)
		sched_yield();
}

/*
 * A copy engine stores words whole: control words that kernels read meanwhile are old or new.
 */
static void copy(void *to, const void *from, size_t bytes)
{
	const uint32_t *words = from;

	if (bytes > 64 || (bytes | (uintptr_t)to | (uintptr_t)from) & 3) {
		memmove(to, from, bytes);
		return;
	}
	for (size_t i = 0; i < bytes / sizeof(*words); i++)
		__atomic_store_n((uint32_t *)to + i, words[i], __ATOMIC_RELAXED);
}

void double_run(const struct work *w, uint64_t *random)
{
	void *to = (void *)(uintptr_t)w->to;

	switch (w->kind) {
	case WORK_NOTHING:
		break;
	case WORK_KERNEL:
		w->kernel->run(w->args, w->n_blocks, w->n_threads, w->shared_bytes);
		break;
	case WORK_FILL:
		memset(to, (int)w->value, w->bytes);
		break;
	case WORK_COPY:
		copy(to, (const void *)(uintptr_t)w->from, w->bytes);
		break;
	case WORK_AWAIT_VALUE:
		while ((int64_t)(__atomic_load_n((uint64_t *)to, __ATOMIC_ACQUIRE) -
				w->value) < 0 && !is_ending)
			sched_yield();
		break;
	case WORK_WRITE_VALUE:
		__atomic_store_n((uint64_t *)to, w->value, __ATOMIC_RELEASE);
		break;
	case WORK_GRAPH:
		double_run_graph(w->exec, random);
		break;
	}
}

/* The head of the queue, with the lock, which is let go while it runs. */
static void run_head(struct stream *s)
{
	struct op *op = s->head;

	for (unsigned i = 0; i < op->n_deps; i++)
		while (!op->deps[i]->done)
			double_wait_signal();
	pthread_mutex_unlock(&double_lock);
	double_delay(&s->random);
	double_run(&op->work, &s->random);
	pthread_mutex_lock(&double_lock);
	op->done = 1;
	op->done_ns = double_now_ns();
	s->head = op->next;
	let_go(op);
	double_op_put(op);
	double_signal();
}

static void *stream_main(void *arg)
{
	struct stream *s = arg;

	pthread_mutex_lock(&double_lock);
	for (;;) {
		while (!s->head && !s->is_ending)
			pthread_cond_wait(&s->wake, &double_lock);
		if (!s->head)
			break;
		run_head(s);
	}
	double_op_put(s->tail);
	pthread_cond_destroy(&s->wake);
	free(s->deps.nodes);
	free(s);
	double_n_threads--;
	double_signal();
	pthread_mutex_unlock(&double_lock);
	return NULL;
}

static struct stream *start_stream(struct context *context, int is_blocking)
{
	struct stream *s = calloc(1, sizeof(*s));
	pthread_attr_t attr;
	pthread_t thread;
	int failed;

	if (!s)
		return NULL;
	s->context = context;
	s->is_blocking = is_blocking;
	s->random = double_settings.seed * 0x100000001b3 + n_streams_ever++;
	pthread_cond_init(&s->wake, NULL);
	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	failed = pthread_create(&thread, &attr, stream_main, s);
	pthread_attr_destroy(&attr);
	if (failed) {
		pthread_cond_destroy(&s->wake);
		free(s);
		return NULL;
	}
	double_n_threads++;
	s->next = double_streams;
	double_streams = s;
	return s;
}

static void end_stream(struct stream *s)
{
	struct stream **at = &double_streams;

	while (*at != s)
		at = &(*at)->next;
	*at = s->next;
	double_leave_session(s);
	s->is_ending = 1;
	pthread_cond_signal(&s->wake);
}

void double_end_streams(struct context *context)
{
	double_await_context(context);
	for (struct stream *s = double_streams, *next; s; s = next) {
		next = s->next;
		if (s->context == context)
			end_stream(s);
	}
	context->null_stream = NULL;
}

/* The program ends: what still runs may use memory that goes away. A kernel that never ends is
 * left alone. */
__attribute__((destructor)) static void end_program(void)
{
	int64_t end = double_now_ns() + END_NS;

	if (!double_settings.n_devices || double_was_forked)
		return;
	is_ending = 1;
	pthread_mutex_lock(&double_lock);
	while (double_streams)
		end_stream(double_streams);
	while (double_n_threads && double_now_ns() < end) {
		struct timespec until;

		clock_gettime(CLOCK_REALTIME, &until);
		until.tv_sec++;
		pthread_cond_timedwait(&signal_cond, &double_lock, &until);
	}
	pthread_mutex_unlock(&double_lock);
}

struct stream *double_stream(m2n__cu_stream handle)
{
	struct context *context = double_context();

	if (!handle || handle == (void *)1) { /* CU_STREAM_LEGACY */
		if (context && !context->null_stream) {
			context->null_stream = start_stream(context, 1);
			if (context->null_stream)
				context->null_stream->is_null = 1;
		}
		return context ? context->null_stream : NULL;
	}
	for (struct stream *s = double_streams; s; s = s->next)
		if (s == handle && !s->is_null)
			return s;
	return NULL;
}

static int add_dep(struct op *op, struct op *dep)
{
	struct op **deps;

	if (!dep || dep->done)
		return 0;
	deps = realloc(op->deps, (op->n_deps + 1) * sizeof(struct op *));
	if (!deps)
		return -1;
	op->deps = deps;
	deps[op->n_deps++] = double_op_get(dep);
	return 0;
}

/* The NULL stream and the blocking ones of its context wait for each other. */
static int add_null_deps(struct op *op, const struct stream *stream)
{
	const struct stream *null_stream = stream->context->null_stream;
	int ret = 0;

	if (!stream->is_blocking || !null_stream)
		return 0;
	if (!stream->is_null)
		return add_dep(op, null_stream->tail);
	for (struct stream *s = double_streams; s && !ret; s = s->next)
		if (s->is_blocking && !s->is_null && s->context == stream->context)
			ret = add_dep(op, s->tail);
	return ret;
}

void double_count(const struct work *w)
{
	struct m2n_double_counters *c = &double_counters;

	switch (w->kind) {
	case WORK_KERNEL:
		c->n_launches++;
		break;
	case WORK_FILL:
		c->n_fills++;
		c->fill_bytes += w->bytes;
		break;
	case WORK_COPY:
		c->n_to_device += w->direction == TO_DEVICE;
		c->to_device_bytes += w->direction == TO_DEVICE ? w->bytes : 0;
		c->n_to_host += w->direction == TO_HOST;
		c->to_host_bytes += w->direction == TO_HOST ? w->bytes : 0;
		c->n_on_device += w->direction == ON_DEVICE;
		c->on_device_bytes += w->direction == ON_DEVICE ? w->bytes : 0;
		break;
	case WORK_GRAPH:
		c->n_graph_launches++;
		for (unsigned i = 0; i < w->exec->graph.n; i++)
			double_count(&w->exec->graph.nodes[i].work);
		break;
	default:
		break;
	}
}

/* Queues work (taken) behind what is there, and behind `dep`. */
static m2n__cu_result queue(struct stream *s, const struct work *work, struct op *dep)
{
	struct op *op = calloc(1, sizeof(*op));

	if (!op) {
		free(work->args);
		if (work->exec)
			double_exec_put(work->exec);
		return M2N__CU_OUT_OF_MEMORY;
	}
	op->refs = 1;
	op->work = *work;
	if (add_dep(op, dep) || add_null_deps(op, s)) {
		double_op_put(op);
		return M2N__CU_OUT_OF_MEMORY;
	}
	double_count(work);
	if (s->head)
		s->last->next = op;
	else
		s->head = op;
	s->last = op;
	double_op_put(s->tail);
	s->tail = double_op_get(op);
	if (work->exec) {
		double_op_put(work->exec->last);
		work->exec->last = double_op_get(op);
	}
	pthread_cond_signal(&s->wake);
	return 0;
}

m2n__cu_result double_submit(struct stream *stream, const struct work *work)
{
	m2n__cu_result result = stream->is_null ? double_unsafe_null(stream->context) : 0;

	if (result) {
		free(work->args);
		if (work->exec)
			double_exec_put(work->exec);
		return result;
	}
	if (stream->session)
		return double_capture(stream, work);
	return queue(stream, work, work->exec ? work->exec->last : NULL);
}

/* ---- streams ---- */

static m2n__cu_result create(m2n__cu_stream *stream, unsigned flags)
{
	struct stream *s;

	if (!double_context())
		return M2N__CU_INVALID_CONTEXT;
	if (flags & ~(unsigned)M2N__CU_STREAM_NON_BLOCKING)
		return M2N__CU_INVALID_VALUE;
	s = start_stream(double_context(), !(flags & M2N__CU_STREAM_NON_BLOCKING));
	if (!s)
		return M2N__CU_OUT_OF_MEMORY;
	*stream = s;
	return 0;
}

m2n__cu_result m2n_double_stream_create(m2n__cu_stream *stream, unsigned flags)
{
	ENTER(stream_create);
	LOCKED();
	return create(stream, flags);
}

/* Priorities are taken, as the driver does, and change nothing. */
m2n__cu_result m2n_double_stream_create_priority(
	m2n__cu_stream *stream, unsigned flags, int priority)
{
	(void)priority;
	ENTER(stream_create_priority);
	LOCKED();
	return create(stream, flags);
}

m2n__cu_result m2n_double_stream_priorities(int *least, int *greatest)
{
	ENTER(stream_priorities);
	*least = 0;
	*greatest = -5;
	return 0;
}

m2n__cu_result m2n_double_stream_destroy(m2n__cu_stream handle)
{
	struct stream *s;

	ENTER(stream_destroy);
	LOCKED();
	s = handle ? double_stream(handle) : NULL;
	if (!s || s->is_null)
		return M2N__CU_INVALID_HANDLE;
	end_stream(s);
	return 0;
}

m2n__cu_result m2n_double_stream_query(m2n__cu_stream handle)
{
	struct stream *s;
	m2n__cu_result result;

	ENTER(stream_query);
	LOCKED();
	s = double_stream(handle);
	if (!s)
		return M2N__CU_INVALID_HANDLE;
	result = double_unsafe_for(s);
	if (result)
		return result;
	return s->tail && !s->tail->done ? M2N__CU_NOT_READY : 0;
}

m2n__cu_result m2n_double_stream_synchronize(m2n__cu_stream handle)
{
	struct stream *s;
	m2n__cu_result result;

	ENTER(stream_synchronize);
	LOCKED();
	s = double_stream(handle);
	if (!s)
		return M2N__CU_INVALID_HANDLE;
	result = double_unsafe_for(s);
	if (result)
		return result;
	double_counters.n_host_waits++;
	if (s->tail)
		double_await(s->tail);
	return 0;
}

static m2n__cu_result value_op(m2n__cu_stream handle, m2n__cu_ptr at, uint64_t value,
	enum work_kind kind)
{
	struct work work = {.kind = kind, .to = at, .value = value};
	struct stream *s = double_stream(handle);

	if (!s)
		return M2N__CU_INVALID_HANDLE;
	if (at % sizeof(uint64_t) || !double_is_range(at, sizeof(uint64_t)))
		return M2N__CU_INVALID_VALUE;
	return double_submit(s, &work);
}

m2n__cu_result m2n_double_stream_wait_value(m2n__cu_stream stream, m2n__cu_ptr at, uint64_t value,
	unsigned flags)
{
	ENTER(stream_wait_value);
	LOCKED();
	if ((flags & ~(unsigned)M2N__CU_WAIT_FLUSH) != M2N__CU_WAIT_GEQ)
		return M2N__CU_NOT_SUPPORTED;
	return value_op(stream, at, value, WORK_AWAIT_VALUE);
}

m2n__cu_result m2n_double_stream_write_value(m2n__cu_stream stream, m2n__cu_ptr at, uint64_t value,
	unsigned flags)
{
	ENTER(stream_write_value);
	LOCKED();
	if (flags)
		return M2N__CU_NOT_SUPPORTED;
	return value_op(stream, at, value, WORK_WRITE_VALUE);
}

/* ---- events ---- */

static struct event *event_of(m2n__cu_event handle)
{
	struct event *e;

	for (e = events; e && e != handle; e = e->next)
		;
	return e;
}

m2n__cu_result m2n_double_event_create(m2n__cu_event *event, unsigned flags)
{
	struct event *e;

	ENTER(event_create);
	LOCKED();
	if (!double_context())
		return M2N__CU_INVALID_CONTEXT;
	e = calloc(1, sizeof(*e));
	if (!e)
		return M2N__CU_OUT_OF_MEMORY;
	e->has_time = !(flags & M2N__CU_EVENT_DISABLE_TIMING);
	e->next = events;
	events = e;
	*event = e;
	return 0;
}

m2n__cu_result m2n_double_event_destroy(m2n__cu_event handle)
{
	struct event **at = &events, *e;

	ENTER(event_destroy);
	LOCKED();
	while (*at && *at != handle)
		at = &(*at)->next;
	e = *at;
	if (!e)
		return M2N__CU_INVALID_HANDLE;
	*at = e->next;
	double_op_put(e->op);
	free(e->deps.nodes);
	free(e);
	return 0;
}

m2n__cu_result m2n_double_event_record(m2n__cu_event event, m2n__cu_stream stream)
{
	const struct work work = {.kind = WORK_NOTHING};
	struct event *e;
	struct stream *s;
	m2n__cu_result result;

	ENTER(event_record);
	LOCKED();
	e = event_of(event);
	s = double_stream(stream);
	if (!e || !s)
		return M2N__CU_INVALID_HANDLE;
	if (s->session)
		return double_capture_event(s, e);
	result = double_submit(s, &work);
	if (result)
		return result;
	double_op_put(e->op);
	e->op = double_op_get(s->tail);
	e->session = 0;
	return 0;
}

m2n__cu_result m2n_double_stream_wait_event(m2n__cu_stream stream, m2n__cu_event event,
	unsigned flags)
{
	const struct work work = {.kind = WORK_NOTHING};
	struct event *e;
	struct stream *s;

	ENTER(stream_wait_event);
	LOCKED();
	e = event_of(event);
	s = double_stream(stream);
	if (!e || !s)
		return M2N__CU_INVALID_HANDLE;
	if (flags)
		return M2N__CU_INVALID_VALUE;
	if (s->session || e->session)
		return double_capture_wait(s, e);
	return e->op ? queue(s, &work, e->op) : 0;
}

m2n__cu_result m2n_double_event_query(m2n__cu_event event)
{
	struct event *e;
	m2n__cu_result result;

	ENTER(event_query);
	LOCKED();
	e = event_of(event);
	if (!e)
		return M2N__CU_INVALID_HANDLE;
	if (e->session)
		return M2N__CU_CAPTURED_EVENT;
	result = double_unsafe();
	if (result)
		return result;
	return e->op && !e->op->done ? M2N__CU_NOT_READY : 0;
}

m2n__cu_result m2n_double_event_synchronize(m2n__cu_event event)
{
	struct event *e;
	m2n__cu_result result;

	ENTER(event_synchronize);
	LOCKED();
	e = event_of(event);
	if (!e)
		return M2N__CU_INVALID_HANDLE;
	if (e->session)
		return M2N__CU_CAPTURED_EVENT;
	result = double_unsafe();
	if (result)
		return result;
	double_counters.n_host_waits++;
	if (e->op)
		double_await(e->op);
	return 0;
}

m2n__cu_result m2n_double_event_elapsed(float *ms, m2n__cu_event from, m2n__cu_event to)
{
	const struct event *a, *b;

	ENTER(event_elapsed);
	LOCKED();
	a = event_of(from);
	b = event_of(to);
	if (!a || !b || !a->has_time || !b->has_time || !a->op || !b->op)
		return M2N__CU_INVALID_HANDLE;
	if (!a->op->done || !b->op->done)
		return M2N__CU_NOT_READY;
	*ms = (float)((double)(b->op->done_ns - a->op->done_ns) / 1e6);
	return 0;
}

/* ---- fills and copies ---- */

static m2n__cu_result move(m2n__cu_stream handle, const struct work *work)
{
	int checks_to = work->kind == WORK_FILL || work->direction != TO_HOST;
	int checks_from = work->kind == WORK_COPY && work->direction != TO_DEVICE;
	struct stream *s = double_stream(handle);

	if (!double_context())
		return M2N__CU_INVALID_CONTEXT;
	if (!s)
		return M2N__CU_INVALID_HANDLE;
	if (!work->bytes)
		return 0;
	if ((checks_to && !double_is_range(work->to, work->bytes)) ||
		(checks_from && !double_is_range(work->from, work->bytes)) || !work->to ||
		(work->kind == WORK_COPY && !work->from))
		return M2N__CU_INVALID_VALUE;
	return double_submit(s, work);
}

m2n__cu_result m2n_double_memset_async(m2n__cu_ptr at, unsigned char value, size_t bytes,
	m2n__cu_stream stream)
{
	const struct work work = {.kind = WORK_FILL, .to = at, .value = value, .bytes = bytes};

	ENTER(memset_async);
	LOCKED();
	return move(stream, &work);
}

m2n__cu_result m2n_double_copy_to_device(m2n__cu_ptr to, const void *from, size_t bytes,
	m2n__cu_stream stream)
{
	const struct work work = {.kind = WORK_COPY, .direction = TO_DEVICE, .to = to,
		.from = (uintptr_t)from, .bytes = bytes};

	ENTER(copy_to_device);
	LOCKED();
	return move(stream, &work);
}

m2n__cu_result m2n_double_copy_to_host(void *to, m2n__cu_ptr from, size_t bytes,
	m2n__cu_stream stream)
{
	const struct work work = {.kind = WORK_COPY, .direction = TO_HOST, .to = (uintptr_t)to,
		.from = from, .bytes = bytes};

	ENTER(copy_to_host);
	LOCKED();
	return move(stream, &work);
}

m2n__cu_result m2n_double_copy_on_device(m2n__cu_ptr to, m2n__cu_ptr from, size_t bytes,
	m2n__cu_stream stream)
{
	const struct work work = {.kind = WORK_COPY, .direction = ON_DEVICE, .to = to, .from = from,
		.bytes = bytes};

	ENTER(copy_on_device);
	LOCKED();
	return move(stream, &work);
}
