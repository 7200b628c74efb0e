/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where a test's kernels run. The emulation runs a kernel on a thread of its own, so that the
 * test can act while a kernel waits, as it can with a device.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "doubles/device_kernels.h"
#include "doubles/device_launch.h"
#include "mem/cuda.h"

#define GUARD ((size_t)256)
#define GUARD_BYTE 0xc3
#define MAX_BLOCKS 4096
#define EMULATED_PROCESSORS 3

struct launch {
	const struct m2n_double_kernel *kernel;
	const void *args;
	unsigned n_blocks, n_threads;
	size_t shared;
};

static struct m2n__cuda *cuda; /* NULL: the emulation */
static struct {
	uint8_t *at; /* behind the first guard */
	size_t bytes;
} blocks[MAX_BLOCKS];
static size_t n_blocks_used;
static struct launch launched;
static pthread_t runner;

void device_open(void)
{
	if (m2n__cuda_open(0, &cuda) ||
		m2n__cuda_load(cuda, m2n__gpu_image, m2n__gpu_kernel_names)) {
		m2n__cuda_close(cuda);
		cuda = NULL;
	}
	print_message("kernels run on: %s\n", device_name());
}

void device_close(void)
{
	m2n__cuda_close(cuda);
	cuda = NULL;
}

const char *device_name(void)
{
	return cuda ? cuda->name : "the emulation";
}

void *device_alloc(size_t bytes)
{
	size_t all = (bytes + 255) / 256 * 256 + 2 * GUARD;
	void *at = NULL;

	assert_true(n_blocks_used < MAX_BLOCKS);
	if (cuda)
		assert_int_equal(m2n__cuda_pinned_alloc(cuda, all, &at), 0);
	else
		at = aligned_alloc(256, all);
	assert_non_null(at);
	memset(at, GUARD_BYTE, all);
	memset((uint8_t *)at + GUARD, 0, bytes);
	blocks[n_blocks_used].at = (uint8_t *)at + GUARD;
	blocks[n_blocks_used++].bytes = bytes;
	return (uint8_t *)at + GUARD;
}

static void check_guards(const uint8_t *at, size_t bytes)
{
	for (size_t i = 1; i <= GUARD; i++)
		if (at[-(ptrdiff_t)i] != GUARD_BYTE)
			fail_msg("%zu bytes before a block of %zu were written", i, bytes);
	for (size_t i = 0; i < GUARD; i++)
		if (at[bytes + i] != GUARD_BYTE)
			fail_msg("%zu bytes behind a block of %zu were written", i, bytes);
}

void device_free_all(void)
{
	for (size_t i = 0; i < n_blocks_used; i++) {
		check_guards(blocks[i].at, blocks[i].bytes);
		if (cuda)
			m2n__cuda_pinned_free(cuda, blocks[i].at - GUARD);
		else
			free(blocks[i].at - GUARD);
	}
	n_blocks_used = 0;
}

static void *run_emulated(void *arg)
{
	const struct launch *l = arg;

	l->kernel->run(l->args, l->n_blocks, l->n_threads, l->shared);
	return NULL;
}

static void start(enum m2n__gpu_kernel kernel, unsigned n_blocks, unsigned n_threads,
	size_t shared, const void *args)
{
	const struct m2n_double_kernel *k = m2n_double_kernels;

	if (cuda) {
		assert_int_equal(m2n__cuda_enter(cuda), 0);
		assert_int_equal(m2n__cuda_launch(cuda, kernel, n_blocks, n_threads, shared,
					 cuda->stream, args),
			0);
		m2n__cuda_leave(cuda);
		return;
	}
	while (k->name && strcmp(k->name, m2n__gpu_kernel_names[kernel]))
		k++;
	assert_non_null(k->name);
	launched = (struct launch){k, args, n_blocks, n_threads, shared};
	assert_int_equal(pthread_create(&runner, NULL, run_emulated, &launched), 0);
}

void device_finish(void)
{
	if (!cuda) {
		assert_int_equal(pthread_join(runner, NULL), 0);
		return;
	}
	assert_int_equal(m2n__cuda_enter(cuda), 0);
	assert_int_equal(cuda->driver->stream_synchronize(cuda->stream), 0);
	m2n__cuda_leave(cuda);
}

void device_start(enum m2n__gpu_kernel kernel, const struct m2n__gpu_shape *shape, uint32_t n,
	const void *args)
{
	unsigned n_blocks, n_threads;
	size_t shared;

	m2n__gpu_geometry(kernel, shape, n, cuda ? cuda->n_multiprocessors : EMULATED_PROCESSORS,
		&n_blocks, &n_threads, &shared);
	start(kernel, n_blocks, n_threads, shared, args);
}

void device_run(enum m2n__gpu_kernel kernel, const struct m2n__gpu_shape *shape, uint32_t n,
	const void *args)
{
	device_start(kernel, shape, n, args);
	device_finish();
}

void device_run_grid(enum m2n__gpu_kernel kernel, const struct m2n__gpu_shape *shape, uint32_t n,
	unsigned n_blocks, unsigned n_threads, const void *args)
{
	unsigned own_blocks, own_threads;
	size_t shared;

	m2n__gpu_geometry(kernel, shape, n, 1, &own_blocks, &own_threads, &shared);
	start(kernel, n_blocks, n_threads, shared, args);
	device_finish();
}
