/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The device of a test process. Blocks are kept in a list with their sizes, so that guards are
 * checked when one is freed. Spaces belong to a thread: ranks may be threads.
 */
#include "helpers/device.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "doubles/cuda_double.h"

#define GUARD_BYTES 256
#define GUARD_BYTE 0xa5
#define FILL_BYTE 0xdb

struct block {
	uint8_t *base; /* what the caller has: a device address */
	size_t bytes;
	struct block *next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct m2n__cuda *cuda;
static struct block *blocks;
static _Atomic uint64_t own_bytes; /* copied between host and device by this file */
static _Thread_local int in_use;

int device_open(void)
{
	const struct m2n__cuda_driver *driver;
	m2n__cu_ptr warm;
	int status = m2n__cuda_driver(&driver);

	if (status == 0 && !cuda)
		status = m2n__cuda_open(0, &cuda);
	if (status)
		return status;
	device_use();
	/* What the driver makes with the first work of a process, it keeps. */
	device_expect(mem_alloc(&warm, 1));
	device_expect(memset_async(warm, 0, 1, NULL));
	device_expect(stream_synchronize(NULL));
	device_expect(mem_free(warm));
	return 0;
}

void device_use(void)
{
	if (in_use)
		return;
	device_expect(ctx_push(cuda->context));
	in_use = 1;
}

const struct m2n__cuda *device_cuda(void)
{
	return cuda;
}

const struct m2n__cuda_driver *device_driver(void)
{
	return cuda->driver;
}

void device_check(const char *file, int line, const char *call, m2n__cu_result result)
{
	const char *name = NULL, *text = NULL;

	if (!result)
		return;
	(void)cuda->driver->error_name(result, &name);
	(void)cuda->driver->error_string(result, &text);
	rank_fail(file, line, "%s = %d (%s: %s)", call, result, name ? name : "?",
		text ? text : "?");
}

static m2n__cu_ptr address(const void *at)
{
	return (m2n__cu_ptr)(uintptr_t)at;
}

void *device_alloc(size_t bytes)
{
	struct block *block = malloc(sizeof(*block));
	m2n__cu_ptr at;

	if (!block)
		abort();
	device_use();
	device_expect(mem_alloc(&at, bytes + 2 * GUARD_BYTES));
	device_expect(memset_async(at, GUARD_BYTE, bytes + 2 * GUARD_BYTES, NULL));
	if (bytes)
		device_expect(memset_async(at + GUARD_BYTES, FILL_BYTE, bytes, NULL));
	device_expect(stream_synchronize(NULL));
	block->base = (uint8_t *)(uintptr_t)(at + GUARD_BYTES);
	block->bytes = bytes;
	pthread_mutex_lock(&lock);
	block->next = blocks;
	blocks = block;
	pthread_mutex_unlock(&lock);
	return block->base;
}

static struct block *take_block(const void *base)
{
	struct block **at = &blocks, *block;

	pthread_mutex_lock(&lock);
	while (*at && (*at)->base != base)
		at = &(*at)->next;
	block = *at;
	if (block)
		*at = block->next;
	pthread_mutex_unlock(&lock);
	return block;
}

static void check_guard(const struct block *block, const uint8_t *at, const char *where)
{
	uint8_t guard[GUARD_BYTES];

	device_download(guard, at, sizeof(guard), NULL);
	for (size_t i = 0; i < sizeof(guard); i++) {
		if (guard[i] != GUARD_BYTE)
			rank_fail(__FILE__, __LINE__,
				"device: written %s an output of %zu (byte %zu)", where,
				block->bytes, i);
	}
}

void device_free(void *base)
{
	struct block *block;

	if (!base)
		return;
	block = take_block(base);
	expect(block != NULL);
	check_guard(block, block->base - GUARD_BYTES, "before");
	check_guard(block, block->base + block->bytes, "past");
	device_expect(mem_free(address(block->base) - GUARD_BYTES));
	free(block);
}

void *device_stream(void)
{
	void *stream;

	device_use();
	device_expect(stream_create(&stream, M2N__CU_STREAM_NON_BLOCKING));
	return stream;
}

void device_stream_end(void *stream)
{
	if (stream)
		device_expect(stream_destroy(stream));
}

void device_sync(void *stream)
{
	device_use();
	device_expect(stream_synchronize(stream));
}

void device_upload(void *to, const void *from, size_t bytes, void *stream)
{
	device_use();
	if (!bytes)
		return;
	atomic_fetch_add(&own_bytes, bytes);
	device_expect(copy_to_device(address(to), from, bytes, stream));
}

void device_fill(void *to, int value, size_t bytes, void *stream)
{
	device_use();
	if (bytes)
		device_expect(memset_async(address(to), (unsigned char)value, bytes, stream));
}

void device_copy(void *to, const void *from, size_t bytes, void *stream)
{
	device_use();
	if (bytes)
		device_expect(copy_on_device(address(to), address(from), bytes, stream));
}

void device_download(void *to, const void *from, size_t bytes, void *stream)
{
	device_use();
	if (bytes) {
		atomic_fetch_add(&own_bytes, bytes);
		device_expect(copy_to_host(to, address(from), bytes, stream));
	}
	device_sync(stream);
}

void device_order(void *first, void *second)
{
	void *event;

	device_use();
	device_expect(event_create(&event, M2N__CU_EVENT_DISABLE_TIMING));
	device_expect(event_record(event, first));
	device_expect(stream_wait_event(second, event, 0));
	device_expect(event_destroy(event));
}

void device_capture(void *stream, int mode)
{
	device_use();
	device_expect(stream_begin_capture(stream, mode));
}

void *device_capture_end(void *stream)
{
	void *graph, *exec;

	device_expect(stream_end_capture(stream, &graph));
	expect(graph != NULL);
	device_expect(graph_instantiate(&exec, graph, 0));
	device_expect(graph_destroy(graph));
	return exec;
}

void device_launch(void *graph, void *stream)
{
	device_use();
	device_expect(graph_launch(graph, stream));
}

void device_graph_end(void *graph)
{
	device_expect(graph_exec_destroy(graph));
}

uint64_t device_foreign_bytes(void)
{
	void (*read_counters)(struct m2n_double_counters *counters);
	struct m2n_double_counters counters;
	void *symbol = m2n_double_symbol("m2n_double_read_counters");

	if (!symbol)
		return 0;
	memcpy(&read_counters, &symbol, sizeof(symbol));
	read_counters(&counters);
	return counters.to_device_bytes + counters.to_host_bytes - atomic_load(&own_bytes);
}

/* ---- space --------------------------------------------------------------------------------- */

#define MAX_COPIES 64

static _Thread_local struct copy {
	const void *array;
	void *fetch_to; /* NULL: in only */
	void *device;
	size_t bytes;
} copies[MAX_COPIES];
static _Thread_local unsigned n_copies;

static struct copy *copy_of(const void *array, size_t bytes)
{
	struct copy *copy = copies;

	while (copy < copies + n_copies && (copy->array != array || copy->bytes != bytes))
		copy++;
	if (copy == copies + n_copies) {
		expect(n_copies < MAX_COPIES);
		*copy = (struct copy){array, NULL, device_alloc(bytes), bytes};
		n_copies++;
	}
	return copy;
}

const void *space_in(struct rank *rank, const void *array, size_t bytes)
{
	struct copy *copy;

	if (rank->memory == M2N_MEMORY_HOST || !array)
		return array;
	copy = copy_of(array, bytes);
	device_upload(copy->device, array, bytes, NULL);
	device_sync(NULL); /* the caller may change the array */
	return copy->device;
}

void *space_out(struct rank *rank, void *array, size_t bytes)
{
	struct copy *copy;

	if (rank->memory == M2N_MEMORY_HOST || !array)
		return array;
	copy = copy_of(array, bytes);
	device_upload(copy->device, array, bytes, NULL);
	device_sync(NULL);
	copy->fetch_to = array;
	return copy->device;
}

void space_fetch(struct rank *rank)
{
	if (rank->memory == M2N_MEMORY_HOST)
		return;
	for (unsigned i = 0; i < n_copies; i++) {
		if (copies[i].fetch_to)
			device_download(copies[i].fetch_to, copies[i].device, copies[i].bytes,
				NULL);
		copies[i].fetch_to = NULL;
	}
}

void space_end(struct rank *rank)
{
	(void)rank;
	for (unsigned i = 0; i < n_copies; i++)
		device_free(copies[i].device);
	n_copies = 0;
}
