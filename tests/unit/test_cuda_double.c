/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The stand-in of the CUDA driver itself: that it orders what the driver orders and nothing else
 * (a wait that is left out shows), that it refuses what the driver refuses, and that memory goes
 * from process to process. The oracle is the driver's documentation, and the driver where there is
 * one: some cases run there always, all that can with the argument `all`.
 */
#include "cuda_helpers.h"
#include "cuda_ptx.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include "doubles/device_kernels.h"

static struct m2n__cuda *cuda;
static const struct m2n__cuda_driver *d;
static m2n__cu_function fill, add, await;

/* Device 0, current for good, and the stand-in's own kernels. */
static void begin(void)
{
	m2n__cu_module module;

	cuda = open_device(0);
	d = cuda->driver;
	check(!m2n__cuda_enter(cuda));
	check_cu(d->module_load(&module, double_kernels_ptx));
	check_cu(d->module_function(&fill, module, "m2n_double_fill"));
	check_cu(d->module_function(&add, module, "m2n_double_add"));
	check_cu(d->module_function(&await, module, "m2n_double_await"));
}

static void finish(void)
{
	m2n__cuda_leave(cuda);
	m2n__cuda_close(cuda);
	check(n_blocks() == 0);
}

static m2n__cu_result launch(m2n__cu_function function, m2n__cu_stream stream, void *args)
{
	return d->launch(function, 1, 1, 1, 32, 1, 1, 0, stream, &args, NULL);
}

static m2n__cu_result launch_fill(m2n__cu_stream stream, m2n__cu_ptr at, uint64_t n,
	uint32_t value)
{
	struct m2n_double_fill_args args = {.at = at, .n = n, .value = value};

	return launch(fill, stream, &args);
}

static m2n__cu_result launch_add(m2n__cu_stream stream, m2n__cu_ptr to, m2n__cu_ptr from)
{
	struct m2n_double_add_args args = {.to = to, .from = from, .n = 1};

	return launch(add, stream, &args);
}

static m2n__cu_event new_event(unsigned flags)
{
	m2n__cu_event event;

	check_cu(d->event_create(&event, flags));
	return event;
}

static m2n__cu_ptr new_words(size_t n)
{
	m2n__cu_ptr at;

	check_cu(d->mem_alloc(&at, n * 4));
	check_cu(d->memset_async(at, 0, n * 4, cuda->stream));
	check_cu(d->stream_synchronize(cuda->stream));
	return at;
}

static uint32_t word(m2n__cu_ptr at)
{
	uint32_t value = 0;

	check(!m2n__cuda_read(cuda, &value, (void *)(uintptr_t)at, 4));
	return value;
}

/* ---- order ---- */

enum order {
	UNORDERED,
	BY_EVENT,
	BY_VALUE,
	BY_SYNC,
	BY_NULL_STREAM,   /* is second */
	FROM_NULL_STREAM, /* is first */
	IN_ONE_STREAM,
};

/* One stream writes i, another takes it: how often was it not there yet? */
static unsigned count_wrong(enum order order, unsigned n_rounds)
{
	int has_null = order == BY_NULL_STREAM || order == FROM_NULL_STREAM;
	unsigned flags = has_null ? 0 : M2N__CU_STREAM_NON_BLOCKING, n_wrong = 0;
	m2n__cu_stream first = order == FROM_NULL_STREAM ? NULL : new_stream(cuda, flags);
	m2n__cu_stream second = order == BY_NULL_STREAM ? NULL :
		order == IN_ONE_STREAM ? first : new_stream(cuda, flags);
	m2n__cu_event event = new_event(M2N__CU_EVENT_DISABLE_TIMING);
	m2n__cu_ptr at = new_words(4);

	for (uint32_t i = 1; i <= n_rounds; i++) {
		check_cu(launch_fill(first, at, 1, i));
		if (order == BY_EVENT) {
			check_cu(d->event_record(event, first));
			check_cu(d->stream_wait_event(second, event, 0));
		} else if (order == BY_VALUE) {
			check_cu(d->stream_write_value(first, at + 8, i, 0));
			check_cu(d->stream_wait_value(second, at + 8, i, M2N__CU_WAIT_GEQ));
		} else if (order == BY_SYNC) {
			check_cu(d->stream_synchronize(first));
		}
		check_cu(d->memset_async(at + 4, 0, 4, second));
		check_cu(launch_add(second, at + 4, at));
		check_cu(d->ctx_synchronize());
		n_wrong += word(at + 4) != i;
	}
	if (first)
		check_cu(d->stream_destroy(first));
	if (second && second != first)
		check_cu(d->stream_destroy(second));
	check_cu(d->event_destroy(event));
	check_cu(d->mem_free(at));
	return n_wrong;
}

static void shows_missing_order(void)
{
	begin();
	check(count_wrong(UNORDERED, 200) > 10);
	finish();
}

static void keeps_order(void)
{
	begin();
	for (int order = BY_EVENT; order <= IN_ONE_STREAM; order++)
		check(count_wrong((enum order)order, 100) == 0);
	finish();
}

/* A blocking stream waits for the NULL stream and it for them; a non-blocking one does not. */
static void null_stream(void)
{
	struct m2n_double_await_args args = {.value = 1};
	m2n__cu_stream blocking, apart;
	_Atomic uint64_t *gate;
	void *pinned;

	begin();
	blocking = new_stream(cuda, 0);
	apart = new_stream(cuda, M2N__CU_STREAM_NON_BLOCKING);
	check(!m2n__cuda_pinned_alloc(cuda, 8, &pinned));
	gate = pinned;
	args.at = (uintptr_t)gate;
	check_cu(launch(await, blocking, &args));
	check_cu(d->memset_async((uintptr_t)gate, 0, 8, NULL)); /* behind it: closes the gate */
	check_cu(launch_fill(apart, (uintptr_t)gate, 0, 0)); /* touches nothing */
	check_cu(d->stream_synchronize(apart));
	check(d->stream_query(NULL) == M2N__CU_NOT_READY);
	check(d->stream_query(blocking) == M2N__CU_NOT_READY);
	*gate = 1;
	check_cu(d->stream_synchronize((void *)1)); /* another name of the NULL stream */
	check(*gate == 0);
	args.value = 0;
	check_cu(launch(await, NULL, &args));
	check_cu(d->stream_synchronize(blocking));
	m2n__cuda_pinned_free(cuda, pinned);
	finish();
}

static void events(void)
{
	struct m2n_double_await_args args = {.value = 1};
	m2n__cu_event from, to, other, lost;
	_Atomic uint64_t *gate;
	m2n__cu_stream stream;
	float ms = -1;
	void *pinned;

	begin();
	stream = new_stream(cuda, M2N__CU_STREAM_NON_BLOCKING);
	from = new_event(0);
	to = new_event(0);
	other = new_event(M2N__CU_EVENT_DISABLE_TIMING);
	check(!m2n__cuda_pinned_alloc(cuda, 8, &pinned));
	gate = pinned;
	args.at = (uintptr_t)gate;
	check_cu(d->event_query(from)); /* never recorded */
	check_cu(d->event_synchronize(from));
	check_cu(d->stream_wait_event(stream, from, 0));
	check(d->event_elapsed(&ms, from, to) == M2N__CU_INVALID_HANDLE);
	check_cu(d->event_record(from, stream));
	check_cu(launch(await, stream, &args));
	check_cu(d->event_record(to, stream));
	check_cu(d->event_record(other, stream));
	check_cu(d->event_synchronize(from));
	check(d->event_query(to) == M2N__CU_NOT_READY);
	check(d->event_elapsed(&ms, from, to) == M2N__CU_NOT_READY);
	lost = new_event(0);
	check_cu(d->event_record(lost, stream));
	check_cu(d->stream_wait_event(stream, lost, 0));
	check_cu(d->event_destroy(lost)); /* in use */
	check(!on_double() || d->event_query(lost) == M2N__CU_INVALID_HANDLE);
	*gate = 1;
	check_cu(d->event_synchronize(to));
	check_cu(d->event_elapsed(&ms, from, to));
	check(ms >= 0);
	check(d->event_elapsed(&ms, from, other) == M2N__CU_INVALID_HANDLE);
	check_cu(d->stream_destroy(stream));
	check_cu(d->event_destroy(from));
	check_cu(d->event_destroy(to));
	check_cu(d->event_destroy(other));
	m2n__cuda_pinned_free(cuda, pinned);
	finish();
}

/* A stream that is destroyed does what it was told; a free waits for it. */
static void destroys_late(void)
{
	struct m2n_double_counters before, after;
	m2n__cu_stream stream;
	m2n__cu_ptr at;
	void *pinned;

	begin();
	check(!m2n__cuda_pinned_alloc(cuda, 4, &pinned));
	at = new_words(1);
	for (uint32_t i = 1; i <= 20; i++) {
		stream = new_stream(cuda, M2N__CU_STREAM_NON_BLOCKING);
		check_cu(launch_fill(stream, at, 1, i));
		check_cu(d->copy_to_host(pinned, at, 4, stream));
		if (i == 20) {
			M2N_DOUBLE(m2n_double_read_counters)(&before);
			check_cu(d->mem_free(at));
			M2N_DOUBLE(m2n_double_read_counters)(&after);
			check(after.n_host_waits == before.n_host_waits + 1);
		} else {
			check_cu(d->ctx_synchronize());
		}
		check(*(uint32_t *)pinned == i);
		check_cu(d->stream_destroy(stream));
		check(d->stream_query(stream) == M2N__CU_INVALID_HANDLE);
	}
	m2n__cuda_pinned_free(cuda, pinned);
	finish();
}

/* ---- capture ---- */

/* add 1, then on two streams at once: a = 10 * (a's base), b from a; joined, then summed. */
static void replays_graphs(void)
{
	m2n__cu_stream first, second;
	m2n__cu_event fork_event, join_event;
	void *graph, *exec;
	int status;
	m2n__cu_ptr w; /* one, counter, copy, sum */

	begin();
	first = new_stream(cuda, M2N__CU_STREAM_NON_BLOCKING);
	second = new_stream(cuda, M2N__CU_STREAM_NON_BLOCKING);
	fork_event = new_event(M2N__CU_EVENT_DISABLE_TIMING);
	join_event = new_event(M2N__CU_EVENT_DISABLE_TIMING);
	w = new_words(4);
	check_cu(launch_fill(first, w, 1, 1));
	check_cu(d->stream_begin_capture(first, M2N__CU_CAPTURE_MODE_GLOBAL));
	check_cu(d->stream_is_capturing(first, &status));
	check(status == M2N__CU_CAPTURE_ACTIVE);
	check_cu(launch_add(first, w + 4, w));
	check_cu(d->event_record(fork_event, first));
	check_cu(d->stream_wait_event(second, fork_event, 0));
	check_cu(d->stream_is_capturing(second, &status));
	check(status == M2N__CU_CAPTURE_ACTIVE);
	check_cu(d->copy_on_device(w + 8, w + 4, 4, second));
	check_cu(launch_add(second, w + 8, w));
	check_cu(d->event_record(join_event, second));
	check_cu(launch_add(first, w + 12, w + 4));
	check_cu(d->stream_wait_event(first, join_event, 0));
	check_cu(launch_add(first, w + 12, w + 8));
	check_cu(d->stream_end_capture(first, &graph));
	check_cu(d->stream_is_capturing(second, &status));
	check(status == M2N__CU_CAPTURE_NONE);
	check_cu(d->stream_synchronize(first));
	check(word(w + 4) == 0); /* captured, not done */
	check_cu(d->graph_instantiate(&exec, graph, 0));
	check_cu(d->graph_destroy(graph));
	for (unsigned i = 0; i < 30; i++) /* launches of one graph follow each other */
		check_cu(d->graph_launch(exec, i & 1 ? first : second));
	check_cu(d->graph_exec_destroy(exec)); /* in use */
	check_cu(d->ctx_synchronize());
	check(word(w + 4) == 30 && word(w + 8) == 31);
	check(word(w + 12) == 30 * 31 / 2 + 30 * 31 / 2 + 30);
	check(!on_double() || d->graph_launch(exec, first) == M2N__CU_INVALID_VALUE);
	check_cu(d->mem_free(w));
	check_cu(d->event_destroy(fork_event));
	check_cu(d->event_destroy(join_event));
	finish();
}

/* Without the join inside a graph its branches race, as streams do. */
static void graphs_show_missing_order(void)
{
	m2n__cu_stream first, second;
	m2n__cu_event event;
	unsigned n_wrong = 0;
	void *graph, *exec;
	m2n__cu_ptr w;

	begin();
	first = new_stream(cuda, M2N__CU_STREAM_NON_BLOCKING);
	second = new_stream(cuda, M2N__CU_STREAM_NON_BLOCKING);
	event = new_event(0);
	w = new_words(2);
	check_cu(d->stream_begin_capture(first, M2N__CU_CAPTURE_MODE_THREAD));
	check_cu(d->event_record(event, first));
	check_cu(d->stream_wait_event(second, event, 0));
	check_cu(launch_fill(first, w, 1, 5));
	check_cu(launch_add(second, w + 4, w));
	check_cu(d->event_record(event, second));
	check_cu(d->stream_wait_event(first, event, 0));
	check_cu(d->stream_end_capture(first, &graph));
	check_cu(d->graph_instantiate(&exec, graph, 0));
	for (unsigned i = 0; i < 100; i++) {
		check_cu(d->memset_async(w, 0, 8, first));
		check_cu(d->graph_launch(exec, first));
		check_cu(d->stream_synchronize(first));
		n_wrong += word(w + 4) != 5;
	}
	check(n_wrong > 5);
	check_cu(d->graph_exec_destroy(exec));
	check_cu(d->graph_destroy(graph));
	check_cu(d->mem_free(w));
	check_cu(d->event_destroy(event));
	finish();
}

static void end_spoiled(m2n__cu_stream stream)
{
	void *graph = &graph;
	int status;

	check_cu(d->stream_is_capturing(stream, &status));
	check(status == M2N__CU_CAPTURE_SPOILED);
	check(d->stream_end_capture(stream, &graph) == M2N__CU_CAPTURE_INVALIDATED && !graph);
}

struct capture_test {
	m2n__cu_stream s, other, blocking;
	m2n__cu_event event, inside; /* event: recorded in `other`, outside a capture */
	m2n__cu_ptr at;
};

static struct capture_test begin_capture_test(void)
{
	struct capture_test t;

	begin();
	t.s = new_stream(cuda, M2N__CU_STREAM_NON_BLOCKING);
	t.other = new_stream(cuda, M2N__CU_STREAM_NON_BLOCKING);
	t.blocking = new_stream(cuda, 0);
	t.event = new_event(0);
	t.inside = new_event(0);
	t.at = new_words(1);
	check_cu(d->event_record(t.event, t.other));
	return t;
}

static void finish_capture_test(const struct capture_test *t)
{
	check_cu(d->mem_free(t->at)); /* nobody captures any more */
	check_cu(d->event_destroy(t->event));
	check_cu(d->event_destroy(t->inside));
	finish();
}

static void calls_spoil_captures(void)
{
	const int mode = M2N__CU_CAPTURE_MODE_GLOBAL;
	struct capture_test t = begin_capture_test();
	void *graph;

	check(d->stream_begin_capture(NULL, mode) == M2N__CU_CAPTURE_UNSUPPORTED);
	check(d->stream_end_capture(t.s, &graph) == M2N__CU_ILLEGAL_STATE);
	check_cu(d->stream_begin_capture(t.s, mode));
	check(d->stream_begin_capture(t.s, mode) == M2N__CU_ILLEGAL_STATE);
	check(d->stream_synchronize(t.s) == M2N__CU_CAPTURE_UNSUPPORTED);
	check(launch_fill(t.s, t.at, 1, 1) == M2N__CU_CAPTURE_INVALIDATED);
	end_spoiled(t.s);
	check_cu(d->stream_begin_capture(t.s, mode));
	check(d->stream_query(t.s) == M2N__CU_CAPTURE_UNSUPPORTED);
	end_spoiled(t.s);
	check_cu(d->stream_begin_capture(t.s, mode));
	check(d->stream_synchronize(t.other) == M2N__CU_CAPTURE_UNSUPPORTED);
	end_spoiled(t.s);
	check_cu(d->stream_begin_capture(t.s, mode));
	check(d->mem_free(t.at) == M2N__CU_CAPTURE_UNSUPPORTED);
	end_spoiled(t.s);

	check_cu(d->stream_begin_capture(t.s, M2N__CU_CAPTURE_MODE_RELAXED));
	check_cu(d->stream_synchronize(t.other));
	check_cu(d->event_record(t.inside, t.s));
	check(d->event_query(t.inside) == M2N__CU_CAPTURED_EVENT);
	check(d->event_synchronize(t.inside) == M2N__CU_CAPTURED_EVENT);
	check_cu(d->stream_end_capture(t.s, &graph));
	check_cu(d->graph_destroy(graph));
	check(d->stream_wait_event(t.other, t.inside, 0) == M2N__CU_CAPTURED_EVENT);

	check_cu(d->stream_begin_capture(t.s, mode));
	check_cu(d->stream_destroy(t.s));
	finish_capture_test(&t);
}

static void dependencies_spoil_captures(void)
{
	const int mode = M2N__CU_CAPTURE_MODE_GLOBAL;
	struct capture_test t = begin_capture_test();
	void *graph;

	check_cu(d->stream_begin_capture(t.s, mode));
	check(d->stream_wait_event(t.s, t.event, 0) == M2N__CU_CAPTURE_ISOLATION);
	end_spoiled(t.s);

	for (int at_end = 0; at_end < 2; at_end++) { /* a branch that does not come back */
		check_cu(d->stream_begin_capture(t.s, mode));
		check_cu(d->event_record(t.inside, t.s));
		check_cu(d->stream_wait_event(t.other, t.inside, 0));
		check_cu(launch_fill(t.other, t.at, 1, 1));
		if (at_end) {
			check(d->stream_end_capture(t.s, &graph) == M2N__CU_CAPTURE_UNJOINED);
			check(!graph);
		} else {
			check(d->stream_end_capture(t.other, &graph) == M2N__CU_CAPTURE_UNMATCHED);
			end_spoiled(t.s);
		}
	}

	check_cu(d->stream_begin_capture(t.s, mode)); /* two captures */
	check_cu(d->stream_begin_capture(t.other, mode));
	check_cu(d->event_record(t.inside, t.s));
	check(d->stream_wait_event(t.other, t.inside, 0) == M2N__CU_CAPTURE_MERGE);
	end_spoiled(t.s);
	end_spoiled(t.other);

	check_cu(d->stream_begin_capture(t.blocking, mode));
	check(launch_fill(NULL, t.at, 1, 1) == M2N__CU_CAPTURE_IMPLICIT);
	end_spoiled(t.blocking);
	check_cu(d->stream_begin_capture(t.s, mode)); /* a non-blocking one does not mind */
	check_cu(launch_fill(NULL, t.at, 1, 9));
	check_cu(d->stream_end_capture(t.s, &graph));
	check_cu(d->graph_destroy(graph));
	check_cu(d->stream_synchronize(NULL));
	check(word(t.at) == 9);
	finish_capture_test(&t);
}

/* ---- memory ---- */

static void checks_ranges(void)
{
	const size_t bytes = 1000;
	size_t n, free_before, free_after, total;
	char host[8] = {0};
	m2n__cu_ptr at, base;

	begin();
	check_cu(d->mem_info(&free_before, &total));
	check_cu(d->mem_alloc(&at, bytes));
	check_cu(d->mem_info(&free_after, &total));
	check(free_before - free_after == bytes && at % 256 == 0);
	check_cu(d->mem_range(&base, &n, at + 999));
	check(base == at && n == bytes);
	check(d->mem_range(&base, &n, at + 1000) == M2N__CU_INVALID_VALUE);
	check(d->memset_async(at, 0, bytes + 1, NULL) == M2N__CU_INVALID_VALUE);
	check(d->memset_async((uintptr_t)host, 0, 1, NULL) == M2N__CU_INVALID_VALUE);
	check(d->copy_to_device(at + 993, host, 8, NULL) == M2N__CU_INVALID_VALUE);
	check(d->copy_to_host(host, at + 993, 8, NULL) == M2N__CU_INVALID_VALUE);
	check(d->copy_on_device(at, (uintptr_t)host, 8, NULL) == M2N__CU_INVALID_VALUE);
	check(d->stream_wait_value(NULL, (uintptr_t)host, 1, 0) == M2N__CU_INVALID_VALUE);
	check(d->stream_write_value(NULL, at + 4, 1, 0) == M2N__CU_INVALID_VALUE);
	check(d->mem_free(at + 256) == M2N__CU_INVALID_VALUE);
	check(d->host_free((void *)(uintptr_t)at) == M2N__CU_INVALID_VALUE);
	check_cu(d->mem_free(at));
	check(d->mem_free(at) == M2N__CU_INVALID_VALUE);
	check(d->memset_async(at, 0, 1, NULL) == M2N__CU_INVALID_VALUE);
	check_cu(d->mem_info(&free_after, &total));
	check(free_before == free_after);
	finish();
}

/* Stray accesses of a kernel end the process: behind a block, and in one that was freed. */
static void stray_kernel(uint64_t n, int is_freed)
{
	int status;
	pid_t pid;

	fflush(NULL);
	pid = fork();
	check(pid >= 0);
	if (!pid) {
		m2n__cu_ptr at;

		begin();
		check_cu(d->mem_alloc(&at, 1024));
		if (is_freed)
			check_cu(d->mem_free(at));
		dup2(open("/dev/null", O_WRONLY), STDERR_FILENO); /* a sanitizer's report */
		setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
		check_cu(launch_fill(NULL, at, n, 0));
		d->ctx_synchronize();
		_exit(0);
	}
	check(waitpid(pid, &status, 0) == pid);
	check(n == 256 && !is_freed ? status == 0 : status != 0);
}

static void stray_kernels_fault(void)
{
	stray_kernel(256, 0);
	stray_kernel(257, 0);
	stray_kernel(1, 1);
}

struct passed {
	struct m2n__cu_ipc ipc;
	m2n__cu_ptr at;
};

static void pass(int fd, const void *bytes, size_t n)
{
	check(write(fd, bytes, n) == (ssize_t)n);
}

static void take(int fd, void *bytes, size_t n)
{
	check(read(fd, bytes, n) == (ssize_t)n);
}

/* The owner: device memory with 41, 42, ...; frees nothing, ends when it is told. */
static void own(int fd)
{
	struct passed passed;
	char byte;

	begin();
	check_cu(d->mem_alloc(&passed.at, 3000 * 4));
	check_cu(launch_fill(NULL, passed.at, 3000, 41));
	check_cu(d->ctx_synchronize());
	check_cu(d->ipc_get(&passed.ipc, passed.at + 100)); /* of the block that it is in */
	check(d->ipc_open(&(m2n__cu_ptr){0}, passed.ipc, M2N__CU_IPC_LAZY_PEER_ACCESS) ==
		M2N__CU_INVALID_CONTEXT);
	pass(fd, &passed, sizeof(passed));
	take(fd, &byte, 1);
	check(word(passed.at + 4) == 1042);
	pass(fd, &byte, 1);
	for (;;)
		pause();
}

static void passes_memory(void)
{
	struct passed passed;
	m2n__cu_ptr at, again;
	int fds[2], status;
	unsigned type;
	size_t n;
	pid_t pid;

	check(!socketpair(AF_UNIX, SOCK_STREAM, 0, fds));
	fflush(NULL);
	pid = fork();
	check(pid >= 0);
	if (!pid)
		own(fds[0]);
	close(fds[0]);
	take(fds[1], &passed, sizeof(passed));
	begin();
	check(d->ipc_open(&at, passed.ipc, 0) == M2N__CU_INVALID_VALUE);
	check_cu(d->ipc_open(&at, passed.ipc, M2N__CU_IPC_LAZY_PEER_ACCESS));
	check_cu(d->ipc_open(&again, passed.ipc, M2N__CU_IPC_LAZY_PEER_ACCESS));
	check(at == again && word(at) == 41 && word(at + 2999 * 4) == 41 + 2999);
	check_cu(d->mem_range(NULL, &n, at));
	check(n == 3000 * 4);
	check_cu(d->pointer_attribute(&type, M2N__CU_PTR_MEMORY_TYPE, at));
	check(type == 2 && d->ipc_get(&passed.ipc, at) == M2N__CU_INVALID_VALUE);
	check(d->mem_free(at) == M2N__CU_INVALID_VALUE);
	check_cu(launch_fill(NULL, at + 4, 1, 1042));
	check_cu(d->ctx_synchronize());
	pass(fds[1], "", 1);
	take(fds[1], &(char){0}, 1);
	kill(pid, SIGKILL);
	check(waitpid(pid, &status, 0) == pid);
	check(word(at + 4) == 1042); /* outlives its owner */
	check_cu(launch_fill(NULL, at, 3000, 0));
	check_cu(d->ctx_synchronize());
	check_cu(d->ipc_close(at));
	check_cu(d->ipc_open(&again, passed.ipc, M2N__CU_IPC_LAZY_PEER_ACCESS)); /* still open */
	check(again == at);
	check_cu(d->ipc_close(at));
	check_cu(d->ipc_close(at));
	check(d->ipc_close(at) == M2N__CU_INVALID_VALUE);
	check(d->ipc_open(&at, passed.ipc, M2N__CU_IPC_LAZY_PEER_ACCESS) == M2N__CU_INVALID_HANDLE);
	close(fds[1]);
	finish();
}

static const struct m2n__cu_alloc_prop prop = {.type = 1, .handle_types = M2N__CU_HANDLE_FD,
	.location = {.type = 1}};
static const struct m2n__cu_access both_ways = {.location = {.type = 1}, .flags = 3};

/* Maps a handle; the mapping keeps the memory. */
static m2n__cu_ptr map_handle(m2n__cu_handle handle)
{
	m2n__cu_ptr at;

	check_cu(d->vmm_reserve(&at, 2 * MIB, 0, 0, 0));
	check(at % (2 * MIB) == 0);
	check_cu(d->vmm_map(at, 2 * MIB, 0, handle, 0));
	check(d->vmm_map(at, 2 * MIB, 0, handle, 0) == M2N__CU_INVALID_VALUE);
	check_cu(d->vmm_access(at, 2 * MIB, &both_ways, 1));
	check_cu(d->vmm_release(handle));
	return at;
}

static void unmap_handle(m2n__cu_ptr at)
{
	check(d->vmm_unreserve(at, 2 * MIB) == M2N__CU_INVALID_VALUE);
	check_cu(d->vmm_unmap(at, 2 * MIB));
	check_cu(d->vmm_unreserve(at, 2 * MIB));
}

/* fd -1: receives one. */
static int pass_fd(int socket, int fd)
{
	char byte = 0;
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = {{0}};
	struct iovec one = {&byte, 1};
	struct msghdr msg = {.msg_iov = &one, .msg_iovlen = 1, .msg_control = &control,
		.msg_controllen = sizeof(control)};
	struct cmsghdr *head = CMSG_FIRSTHDR(&msg);

	if (fd < 0) {
		check(recvmsg(socket, &msg, MSG_CMSG_CLOEXEC) == 1);
		memcpy(&fd, CMSG_DATA(head), sizeof(fd));
		return fd;
	}
	head->cmsg_level = SOL_SOCKET;
	head->cmsg_type = SCM_RIGHTS;
	head->cmsg_len = CMSG_LEN(sizeof(fd));
	memcpy(CMSG_DATA(head), &fd, sizeof(fd));
	check(sendmsg(socket, &msg, 0) == 1);
	return fd;
}

static void own_handle(int socket)
{
	m2n__cu_handle handle, same;
	m2n__cu_ptr at;
	unsigned allowed;
	struct m2n__cu_ipc ipc;
	char byte;
	int fd;

	begin();
	check_cu(d->vmm_create(&handle, 2 * MIB, &prop, 0));
	at = map_handle(handle);
	check_cu(launch_fill(NULL, at, 10, 7));
	check_cu(d->ctx_synchronize());
	check_cu(d->pointer_attribute(&allowed, M2N__CU_PTR_ALLOWED_HANDLES, at));
	check(allowed == M2N__CU_HANDLE_FD && d->ipc_get(&ipc, at) == M2N__CU_INVALID_VALUE);
	check_cu(d->vmm_retain(&same, (void *)(uintptr_t)at));
	check_cu(d->vmm_export(&fd, same, M2N__CU_HANDLE_FD, 0));
	check_cu(d->vmm_release(same));
	pass_fd(socket, fd);
	take(socket, &byte, 1);
	check(word(at + 4) == 80);
	unmap_handle(at);
	close(fd);
	finish();
	exit(0);
}

static void passes_handles(void)
{
	int fds[2], status, fd, again;
	m2n__cu_handle handle;
	m2n__cu_ptr at;
	char path[64];
	pid_t pid;

	check(!socketpair(AF_UNIX, SOCK_STREAM, 0, fds));
	fflush(NULL);
	pid = fork();
	check(pid >= 0);
	if (!pid)
		own_handle(fds[0]);
	close(fds[0]);
	fd = pass_fd(fds[1], -1);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	again = open(path, O_RDWR | O_CLOEXEC);
	begin();
	check(d->vmm_import(&handle, (void *)(intptr_t)again, M2N__CU_HANDLE_FD));
	check(d->vmm_import(&handle, (void *)(intptr_t)fds[1], M2N__CU_HANDLE_FD));
	check_cu(d->vmm_import(&handle, (void *)(intptr_t)fd, M2N__CU_HANDLE_FD));
	close(fd);
	at = map_handle(handle);
	check(word(at) == 7 && word(at + 36) == 16);
	check_cu(launch_fill(NULL, at + 4, 1, 80));
	check_cu(d->ctx_synchronize());
	pass(fds[1], "", 1);
	check(waitpid(pid, &status, 0) == pid && !status);
	check(word(at + 4) == 80);
	unmap_handle(at);
	close(fds[1]);
	close(again);
	finish();
}

static void hands_out_dma_bufs(void)
{
	m2n__cu_ptr at;
	int fd = -1;
	void *pinned;

	begin();
	check_cu(d->mem_alloc(&at, MIB));
	check_cu(d->range_handle(&fd, at, MIB, M2N__CU_RANGE_HANDLE_DMA_BUF, 0));
	check(fd >= 0 && fcntl(fd, F_GETFD) == FD_CLOEXEC);
	close(fd);
	check(d->range_handle(&fd, at + 512, 4096, M2N__CU_RANGE_HANDLE_DMA_BUF, 0) ==
		M2N__CU_INVALID_VALUE);
	check(d->range_handle(&fd, at, MIB + 4096, M2N__CU_RANGE_HANDLE_DMA_BUF, 0) ==
		M2N__CU_INVALID_VALUE);
	check(!m2n__cuda_pinned_alloc(cuda, 4096, &pinned));
	check(d->range_handle(&fd, (uintptr_t)pinned, 4096, M2N__CU_RANGE_HANDLE_DMA_BUF, 0) ==
		M2N__CU_INVALID_VALUE);
	check_cu(d->flush_rdma_writes(M2N__CU_FLUSH_TARGET_CURRENT_CTX, M2N__CU_FLUSH_TO_OWNER));
	m2n__cuda_pinned_free(cuda, pinned);
	check_cu(d->mem_free(at));
	finish();
}

/* ---- the rest ---- */

static void peers(void)
{
	m2n__cu_context other;
	int can;

	begin();
	check_cu(d->device_can_access_peer(&can, 0, 1));
	check(can == 1);
	check_cu(d->primary_retain(&other, 1));
	check_cu(d->ctx_enable_peer(other, 0));
	check(d->ctx_enable_peer(other, 0) == M2N__CU_PEER_ACCESS_ALREADY_ENABLED);
	check(d->ctx_enable_peer(cuda->context, 0) == M2N__CU_PEER_ACCESS_UNSUPPORTED);
	check_cu(d->primary_release(1));
	check(d->ctx_push(other) == M2N__CU_INVALID_CONTEXT);
	check(d->primary_release(1) == M2N__CU_INVALID_CONTEXT);
	check(d->launch(fill, 0, 1, 1, 1, 1, 1, 0, NULL, (void *[]){&can}, NULL) ==
		M2N__CU_INVALID_VALUE);
	finish();
	check(m2n__cuda_current() == -1);
}

static void counts_and_fails(void)
{
	struct m2n_double_counters c;
	m2n__cu_ptr at, none;

	check(!m2n_double_symbol("cuInit"));
	begin(); /* the environment: the first fill and the third allocation fail */
	check(d->mem_info(&(size_t){0}, &(size_t){0}) == 0);
	check_cu(d->mem_alloc(&at, 64));
	check(d->memset_async(at, 0, 64, NULL) == 999);
	check_cu(d->memset_async(at, 0, 64, NULL));
	check_cu(d->mem_alloc(&none, 64));
	check_cu(d->mem_free(none));
	check(d->mem_alloc(&none, 64) == M2N__CU_OUT_OF_MEMORY);
	check_cu(d->mem_alloc(&none, 64));
	check_cu(d->mem_free(none));
	fail_next("cuMemAlloc_v2:2+:1");
	check_cu(d->mem_alloc(&none, 64));
	check_cu(d->mem_free(none));
	check(d->mem_alloc(&none, 64) == 1 && d->mem_alloc(&none, 64) == 1);
	check(M2N_DOUBLE(m2n_double_fail)("cuNothing:1") == -1);
	check(M2N_DOUBLE(m2n_double_fail)("cuInit") == -1);
	check(M2N_DOUBLE(m2n_double_calls)("cuMemAlloc_v2") == 7);
	check(M2N_DOUBLE(m2n_double_calls)("cuNothing") == UINT64_MAX);
	check_cu(d->copy_on_device(at, at + 32, 32, NULL));
	check_cu(launch_fill(NULL, at, 1, 1));
	check_cu(d->ctx_synchronize());
	M2N_DOUBLE(m2n_double_read_counters)(&c);
	check(c.n_fills == 1 && c.fill_bytes == 64 && c.n_on_device == 1);
	check(c.on_device_bytes == 32 && c.n_launches == 1 && !c.n_to_host && !c.n_to_device);
	check(c.n_host_waits == 4); /* frees, too */
	check_cu(d->mem_free(at));
	finish();
}

/* What is left out returns success, and what it was for goes wrong. */
static void leaves_out(void)
{
	int (*leave_out)(const char *);
	m2n__cu_ptr at;

	begin(); /* the environment: the second fill of the stand-in */
	leave_out = M2N_DOUBLE(m2n_double_leave_out);
	at = new_words(2);
	for (unsigned i = 0; i < 2; i++)
		check_cu(launch_fill(NULL, at + 4 * i, 1, 5));
	check_cu(d->stream_synchronize(NULL));
	check(word(at) == 5 && word(at + 4) == 0);
	check(!leave_out("cuStreamWaitEvent:1+,m2n_double_add:3"));
	check(count_wrong(BY_EVENT, 100) > 5);
	check(!leave_out("cuEventRecord:1+"));
	check(count_wrong(BY_EVENT, 100) > 5);
	check(!leave_out(NULL));
	check(count_wrong(BY_EVENT, 100) == 0);
	check(leave_out("cuEventRecord") == -1);
	check_cu(d->mem_free(at));
	finish();
}

/* A program may end while streams have work. */
static void ends_with_work(void)
{
	m2n__cu_ptr at;

	begin();
	check_cu(d->mem_alloc(&at, 400));
	for (unsigned i = 0; i < 100; i++)
		check_cu(launch_fill(i & 1 ? NULL : cuda->stream, at, 100, i));
	check_cu(d->stream_wait_value(NULL, at, 1u << 31, 0)); /* never comes */
}

#define SLOW "M2N_DOUBLE_DELAY_US=100"
/* clang-format off */
static struct cuda_case cases[] = {
	{"a missing order shows", shows_missing_order, {SLOW}, 0},
	{"a missing order shows with another seed", shows_missing_order, {SLOW, "M2N_DOUBLE_SEED=77"}, 0},
	{"what is ordered stays so", keeps_order, {SLOW}, 1},
	{"the NULL stream and blocking ones", null_stream, {SLOW}, 1},
	{"events", events, {SLOW}, 1},
	{"streams end late, frees wait", destroys_late, {SLOW}, 0},
	{"graphs", replays_graphs, {SLOW}, 1},
	{"a missing order in a graph shows", graphs_show_missing_order, {SLOW}, 0},
	{"calls spoil captures", calls_spoil_captures, {NULL}, 0},
	{"dependencies spoil captures", dependencies_spoil_captures, {NULL}, 0},
	{"ranges are checked", checks_ranges, {NULL}, 0},
	{"stray kernels fault", stray_kernels_fault, {NULL}, 0},
	{"memory of another process", passes_memory, {NULL}, 0},
	{"handles of another process", passes_handles, {NULL}, 1},
	{"dma-bufs", hands_out_dma_bufs, {NULL}, 0},
	{"peers", peers, {"M2N_DOUBLE_DEVICES=2"}, 0},
	{"counters and errors", counts_and_fails, {"M2N_DOUBLE_FAIL=cuMemAlloc_v2:3,cuMemsetD8Async:1:999"}, 0},
	{"calls and kernels are left out", leaves_out, {SLOW, "M2N_DOUBLE_LEAVE_OUT=m2n_double_fill:2"}, 0},
	{"ends with work to do", ends_with_work, {SLOW}, 0},
};
/* clang-format on */

int main(int argc, char **argv)
{
	return run_cases("cuda double", cases, sizeof(cases) / sizeof(cases[0]),
		argc == 2 && !strcmp(argv[1], "all"));
}
