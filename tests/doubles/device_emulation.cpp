/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Blocks of emulated threads. Each is a fiber with a stack of its own; the scheduler, on the
 * stack of the caller, runs those that can go on, warp by warp, until all have ended. A thread
 * that naps lets the processor go once all others wait or nap.
 *
 * Stacks are kept by the thread that ran kernels until it ends.
 */
#include "device_emulation.h"
#include "device_run.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define STACK_BYTES ((size_t)256 << 10)
#else
#define STACK_BYTES ((size_t)64 << 10)
#endif

#define LANES 32u
#define MAX_THREADS 1024u
#define NONSENSE 0xa5

enum state { READY, AT_WARP, AT_BLOCK, NAPPING, ENDED };

struct fiber {
	void *sp; /* where it stopped */
	enum state state;
	uint64_t waits_for; /* number of an exchange, or of a barrier */
	void *fake;         /* the address sanitizer's */
};

struct warp {
	uint64_t n_done; /* exchanges */
	uint32_t arrived, n_left;
	enum emulated_kind kind;
	uint64_t value[2][LANES]; /* of even and odd exchanges: slow lanes still read the last */
};

struct variable {
	struct variable *next;
	size_t bytes;
	void *room;
};

struct machine {
	struct fiber fiber[MAX_THREADS];
	struct warp warp[MAX_THREADS / LANES];
	uint32_t arrived, n_left; /* at the barrier; threads that have not ended */
	uint64_t n_barriers;
	unsigned now;
	struct fiber scheduler;
	struct variable *variables; /* in shared memory */
	uint8_t *stacks, *shared;
	size_t shared_bytes;
	void (*body)(const void *args);
	const void *args;
	const void *caller_stack;
	size_t caller_bytes;
};

/* Frees a thread's machine when the thread ends; little is thread-local, there is little room. */
struct owner {
	struct machine *machine;

	~owner();
};

__thread struct emulated_thread emulated_now;
static __thread struct machine *machine;
uint64_t m2n_double_block_seed;

owner::~owner()
{
	if (!machine)
		return;
	while (machine->variables) {
		struct variable *v = machine->variables;

		machine->variables = v->next;
		free(v->room);
		free(v);
	}
	munmap(machine->stacks, MAX_THREADS * STACK_BYTES);
	free(machine->shared);
	free(machine);
}

[[noreturn]] static void fail(const char *what)
{
	fprintf(stderr, "emulated GPU: block %u, thread %u: %s\n", emulated_now.block.x,
		emulated_now.thread.x, what);
	abort();
}

/* ---- switching ----------------------------------------------------------------------------- */

/* Saves where this one is and goes on where the other was. */
#if defined(__x86_64__)
extern "C" void m2n_double_switch(void **save, void *load);
asm(".text\n.globl m2n_double_switch\n.hidden m2n_double_switch\n"
    ".type m2n_double_switch, @function\n"
    "m2n_double_switch:\n"
    "	pushq %rbp\n	pushq %rbx\n	pushq %r12\n"
    "	pushq %r13\n	pushq %r14\n	pushq %r15\n"
    "	movq %rsp, (%rdi)\n	movq %rsi, %rsp\n"
    "	popq %r15\n	popq %r14\n	popq %r13\n"
    "	popq %r12\n	popq %rbx\n	popq %rbp\n"
    "	ret\n"
    ".size m2n_double_switch, . - m2n_double_switch\n");

static void *first_frame(uint8_t *stack, void (*entry)(void))
{
	void **sp = (void **)(stack + STACK_BYTES);

	*--sp = NULL; /* entry's return address: there is none; alignment as behind a call */
	*--sp = (void *)entry;
	for (int i = 0; i < 6; i++)
		*--sp = NULL;
	return sp;
}
#else
#include <ucontext.h>
static void m2n_double_switch(void **save, void *load)
{
	ucontext_t here;

	*save = &here;
	swapcontext(&here, (ucontext_t *)load);
}

static void *first_frame(uint8_t *stack, void (*entry)(void))
{
	ucontext_t *at = (ucontext_t *)stack; /* at the end that the stack reaches last */

	getcontext(at);
	at->uc_stack.ss_sp = stack + sizeof(*at);
	at->uc_stack.ss_size = STACK_BYTES - sizeof(*at);
	makecontext(at, entry, 0);
	return at;
}
#endif

static uint8_t *stack_of(struct machine *m, unsigned i)
{
	return m->stacks + i * STACK_BYTES;
}

static void switch_to_scheduler(struct machine *m, struct fiber *self, bool ends)
{
#if defined(__SANITIZE_ADDRESS__)
	__sanitizer_start_switch_fiber(
		ends ? NULL : &self->fake, m->caller_stack, m->caller_bytes);
#else
	(void)ends;
#endif
	m2n_double_switch(&self->sp, m->scheduler.sp);
#if defined(__SANITIZE_ADDRESS__)
	__sanitizer_finish_switch_fiber(self->fake, NULL, NULL);
#endif
}

static void switch_to(struct machine *m, unsigned i)
{
	m->now = i;
	emulated_now.thread.x = i;
#if defined(__SANITIZE_ADDRESS__)
	__sanitizer_start_switch_fiber(&m->scheduler.fake, stack_of(m, i), STACK_BYTES);
#endif
	m2n_double_switch(&m->scheduler.sp, m->fiber[i].sp);
#if defined(__SANITIZE_ADDRESS__)
	__sanitizer_finish_switch_fiber(m->scheduler.fake, NULL, NULL);
#endif
}

/* ---- threads ------------------------------------------------------------------------------- */

static void wait_in(struct machine *m, enum state state, uint64_t number)
{
	struct fiber *self = &m->fiber[m->now];

	self->state = state;
	self->waits_for = number;
	switch_to_scheduler(m, self, false);
	self->state = READY;
}

static void release_warp(struct warp *w)
{
	if (w->n_left && w->arrived == w->n_left) {
		w->arrived = 0;
		w->n_done++;
	}
}

static void release_block(struct machine *m)
{
	if (m->n_left && m->arrived == m->n_left) {
		m->arrived = 0;
		m->n_barriers++;
	}
}

const uint64_t *emulated_exchange(enum emulated_kind kind, uint64_t value)
{
	struct machine *m = machine;
	struct warp *w = &m->warp[m->now / LANES];
	uint64_t number = w->n_done + 1, *values = w->value[number % 2];

	if (w->arrived && w->kind != kind)
		fail("lanes of a warp came to different operations");
	if (!w->arrived)
		memset(values, 0, sizeof(w->value[0]));
	w->kind = kind;
	values[m->now % LANES] = value;
	w->arrived++;
	release_warp(w);
	while (w->n_done < number)
		wait_in(m, AT_WARP, number);
	return values;
}

void emulated_block_sync(void)
{
	struct machine *m = machine;
	uint64_t number = m->n_barriers + 1;

	m->arrived++;
	release_block(m);
	while (m->n_barriers < number)
		wait_in(m, AT_BLOCK, number);
}

void emulated_nap(void)
{
	wait_in(machine, NAPPING, 0);
}

void *emulated_shared(void)
{
	return machine->shared;
}

void *emulated_variable(size_t bytes)
{
	struct variable *v = (struct variable *)malloc(sizeof(*v));

	if (v)
		v->room = aligned_alloc(16, (bytes + 15) / 16 * 16);
	if (!v || !v->room)
		fail("no shared memory");
	v->bytes = bytes;
	memset(v->room, NONSENSE, bytes);
	v->next = machine->variables;
	machine->variables = v;
	return v->room;
}

uint64_t emulated_clock(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void enter(void)
{
	struct machine *m = machine;
	struct fiber *self = &m->fiber[m->now];

#if defined(__SANITIZE_ADDRESS__)
	__sanitizer_finish_switch_fiber(NULL, &m->caller_stack, &m->caller_bytes);
#endif
	m->body(m->args);
	self = &m->fiber[m->now];
	self->state = ENDED;
	m->n_left--;
	m->warp[m->now / LANES].n_left--;
	release_warp(&m->warp[m->now / LANES]);
	release_block(m);
	switch_to_scheduler(m, self, true);
}

/* ---- the scheduler ------------------------------------------------------------------------- */

static bool can_run(const struct machine *m, unsigned i)
{
	const struct fiber *f = &m->fiber[i];

	switch (f->state) {
	case AT_WARP:
		return m->warp[i / LANES].n_done >= f->waits_for;
	case AT_BLOCK:
		return m->n_barriers >= f->waits_for;
	case ENDED:
		return false;
	default:
		return true;
	}
}

/* Runs the lanes of a warp until each naps, ended, or waits for another warp. */
static bool run_warp(struct machine *m, unsigned first, unsigned end)
{
	bool any = false, again = true, napped[LANES] = {false};

	while (again) {
		again = false;
		for (unsigned i = first; i < end; i++) {
			if (napped[i - first] || !can_run(m, i))
				continue;
			switch_to(m, i);
			napped[i - first] = m->fiber[i].state == NAPPING;
			again = any = true;
		}
	}
	return any;
}

static bool any_naps(const struct machine *m, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		if (m->fiber[i].state == NAPPING)
			return true;
	return false;
}

static void start_block(struct machine *m, unsigned n)
{
	m->arrived = 0;
	m->n_left = n;
	m->n_barriers = 0;
	memset(m->warp, 0, sizeof(m->warp));
	for (unsigned i = 0; i < n; i++) {
#if defined(__SANITIZE_ADDRESS__)
		__asan_unpoison_memory_region(stack_of(m, i), STACK_BYTES);
#endif
		m->fiber[i].state = READY;
		m->fiber[i].sp = first_frame(stack_of(m, i), enter);
		m->warp[i / LANES].n_left++;
	}
	if (m->shared)
		memset(m->shared, NONSENSE, m->shared_bytes);
	for (struct variable *v = m->variables; v; v = v->next)
		memset(v->room, NONSENSE, v->bytes);
}

static void run_block(struct machine *m, unsigned n)
{
	unsigned n_naps = 0;

	start_block(m, n);
	while (m->n_left) {
		bool any = false;

		for (unsigned first = 0; first < n; first += LANES)
			any |= run_warp(m, first, first + LANES < n ? first + LANES : n);
		if (!any)
			fail("all threads wait for each other");
		if (!any_naps(m, n))
			continue;
		if (++n_naps < 100)
			sched_yield();
		else
			usleep(50);
	}
}

/* ---- grids --------------------------------------------------------------------------------- */

static void prepare(struct machine *m, unsigned n_threads, size_t shared_bytes)
{
	if (n_threads == 0 || n_threads > MAX_THREADS || n_threads % LANES)
		fail("a block has 32 to 1,024 threads, whole warps");
	free(m->shared);
	m->shared = NULL;
	m->shared_bytes = (shared_bytes + 15) / 16 * 16;
	if (m->shared_bytes)
		m->shared = (uint8_t *)aligned_alloc(16, m->shared_bytes);
	if (m->shared_bytes && !m->shared)
		fail("no shared memory");
}

static struct machine *make_machine(void)
{
	struct machine *m = (struct machine *)calloc(1, sizeof(*m));
	void *at = mmap(NULL, MAX_THREADS * STACK_BYTES, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (!m || at == MAP_FAILED)
		fail("no memory for stacks");
	m->stacks = (uint8_t *)at;
	return m;
}

/* The order of blocks: theirs, or shuffled by a seed. */
static unsigned *order_of(unsigned n)
{
	uint64_t state = __atomic_load_n(&m2n_double_block_seed, __ATOMIC_RELAXED);
	unsigned *order = (unsigned *)malloc(n * sizeof(*order));

	if (!order)
		fail("no memory");
	for (unsigned i = 0; i < n; i++)
		order[i] = i;
	for (unsigned i = n; state && i > 1; i--) {
		unsigned j, at;

		state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
		j = (unsigned)(state >> 33) % i;
		at = order[j];
		order[j] = order[i - 1];
		order[i - 1] = at;
	}
	return order;
}

void m2n_double_run_grid(void (*body)(const void *args), const void *args, unsigned n_blocks,
	unsigned n_threads, size_t shared_bytes)
{
	static thread_local struct owner mine;
	unsigned *order = order_of(n_blocks);

	if (!mine.machine)
		mine.machine = make_machine();
	machine = mine.machine;
	prepare(machine, n_threads, shared_bytes);
	machine->body = body;
	machine->args = args;
	emulated_now.n_threads.x = n_threads;
	emulated_now.n_blocks.x = n_blocks;
	for (unsigned i = 0; i < n_blocks; i++) {
		emulated_now.block.x = order[i];
		run_block(machine, n_threads);
	}
	free(order);
}
