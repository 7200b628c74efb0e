/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Device memory between two processes, and between two ifaces of one, through the table of
 * cuda_ipc and without core. On the stand-in of libcuda.so.1 calls of the driver are counted and
 * made to fail; on a GPU those checks are left out.
 *
 *   test_cuda_ipc               prints TAP
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backend/cuda_ipc/cuda_ipc.h"
#include "core/option.h"
#include "doubles/cuda_double.h"
#include "helpers/job.h"
#include "mem/cuda.h"
#include "side.h"

#define VMM_BYTES ((size_t)2 << 20) /* one allocation of cuMemCreate() */

static uint64_t n_calls(const char *symbol)
{
	uint64_t (*calls)(const char *symbol);
	void *found = m2n_double_symbol("m2n_double_calls");

	if (!found)
		return 0;
	memcpy(&calls, &found, sizeof(calls));
	return calls(symbol);
}

static int is_double(void)
{
	return m2n_double_symbol("m2n_double_calls") != NULL;
}

static void make_fail(const char *rules)
{
	int (*fail)(const char *rules);
	void *found = m2n_double_symbol("m2n_double_fail");

	if (!found)
		rank_skip("not the stand-in of libcuda.so.1");
	memcpy(&fail, &found, sizeof(fail));
	expect_equal(fail(rules), 0);
}

static const struct m2n__cuda_driver *driver(const struct side *side)
{
	return side->cuda->driver;
}

/* ---- memory -------------------------------------------------------------------------------- */

/* Device memory, exported at KEY_AT; the other's is imported. */
static void export_device(struct side *side, struct m2n__mem *mem)
{
	struct board *board = side->board;
	int own = side->rank->rank;

	side->mem = mem;
	expect_ok(side->ops.reg(side->iface, mem, &side->mr));
	board->key_bytes[own] = M2N__KEY_BYTES;
	expect_ok(side->ops.export_key(
		side->mr, KEY_AT, KEY_SPAN, board->key[own], &board->key_bytes[own]));
	expect(board->key_bytes[own] <= M2N__KEY_BYTES);
	rank_barrier(side->rank);
}

static void share_device(struct side *side, struct m2n__mem *mem)
{
	struct board *board = side->board;

	export_device(side, mem);
	expect_ok(side->ops.import_key(
		side->ep, board->key[side->peer], board->key_bytes[side->peer], &side->rmem));
	expect_equal(side->rmem->bytes, KEY_SPAN);
	expect(side->rmem->ptr != NULL);
}

static struct m2n__mem *alloc(struct side *side)
{
	struct m2n__mem *mem;

	expect_ok(m2n__mem_alloc_cuda(side->cuda, MEM_BYTES, &mem));
	return mem;
}

/* Two allocations of cuMemCreate() side by side, as expandable segments have them. */
struct vmm {
	m2n__cu_ptr base;
	struct m2n__mem mem;
};

static void vmm_alloc(struct side *side, struct vmm *vmm, int handle_types)
{
	const struct m2n__cuda_driver *d = driver(side);
	struct m2n__cu_alloc_prop prop = {
		.type = 1, .handle_types = handle_types, .location = {1, side->cuda->ordinal}};
	const struct m2n__cu_access access = {{1, side->cuda->ordinal}, 3};
	m2n__cu_handle handle;

	expect_ok(m2n__cuda_enter(side->cuda));
	expect_equal(d->vmm_reserve(&vmm->base, 2 * VMM_BYTES, 0, 0, 0), 0);
	for (unsigned i = 0; i < 2; i++) {
		expect_equal(d->vmm_create(&handle, VMM_BYTES, &prop, 0), 0);
		expect_equal(d->vmm_map(vmm->base + i * VMM_BYTES, VMM_BYTES, 0, handle, 0), 0);
		expect_equal(d->vmm_release(handle), 0);
		expect_equal(d->vmm_access(vmm->base + i * VMM_BYTES, VMM_BYTES, &access, 1), 0);
	}
	m2n__cuda_leave(side->cuda);
	/* The exported range, at KEY_AT, crosses the border. */
	vmm->mem = (struct m2n__mem){.kind = M2N__MEM_CUDA,
		.base = (void *)(uintptr_t)(vmm->base + VMM_BYTES - KEY_AT - KEY_SPAN / 2),
		.bytes = MEM_BYTES,
		.fd = -1,
		.cuda = side->cuda};
}

static void vmm_free(struct side *side, struct vmm *vmm)
{
	const struct m2n__cuda_driver *d = driver(side);

	expect_ok(m2n__cuda_enter(side->cuda));
	for (unsigned i = 0; i < 2; i++)
		expect_equal(d->vmm_unmap(vmm->base + i * VMM_BYTES, VMM_BYTES), 0);
	expect_equal(d->vmm_unreserve(vmm->base, 2 * VMM_BYTES), 0);
	m2n__cuda_leave(side->cuda);
}

/* side_close() for a side whose memory is none of the library's. */
static void close_vmm(struct side *side, struct vmm *vmm)
{
	rank_barrier(side->rank);
	if (side->rmem)
		side->ops.release_key(side->rmem);
	side->ops.dereg(side->mr);
	vmm_free(side, vmm);
	side->rmem = NULL;
	side->mr = NULL;
	side->mem = NULL;
	side_close(side);
}

/* Bytes that depend on who wrote them. */
static void make(uint8_t *data, size_t bytes, int rank)
{
	for (size_t i = 0; i < bytes; i++)
		data[i] = (uint8_t)job_random((uint64_t)rank, 9, i, 0);
}

/*
 * By copies on the device from memory of the own, as kernels would. In halves, here and in
 * expect_bytes(): the border of what vmm_alloc() makes is in the middle, and the stand-in's copies
 * do not cross it.
 */
static void write_device(struct side *side, void *to, size_t bytes, int rank)
{
	uint8_t *data = malloc(bytes);
	struct m2n__mem *from;

	make(data, bytes, rank);
	expect_ok(m2n__mem_alloc_cuda(side->cuda, bytes, &from));
	expect_ok(m2n__cuda_write(side->cuda, from->base, data, bytes));
	expect_ok(m2n__cuda_enter(side->cuda));
	for (size_t at = 0, n = bytes / 2; at < bytes; at += n, n = bytes - at)
		expect_equal(driver(side)->copy_on_device((uintptr_t)to + at,
				     (uintptr_t)from->base + at, n, side->cuda->stream),
			0);
	expect_equal(driver(side)->stream_synchronize(side->cuda->stream), 0);
	m2n__cuda_leave(side->cuda);
	m2n__mem_free(from);
	free(data);
}

static void expect_bytes(struct side *side, const void *at, size_t bytes, int rank)
{
	uint8_t *data = malloc(bytes), *want = malloc(bytes);

	make(want, bytes, rank);
	expect_ok(m2n__cuda_read(side->cuda, data, at, bytes / 2));
	expect_ok(m2n__cuda_read(
		side->cuda, data + bytes / 2, (const uint8_t *)at + bytes / 2, bytes - bytes / 2));
	expect(!memcmp(data, want, bytes));
	free(data);
	free(want);
}

/* Where the peer's key does not reach, nothing changed. */
static void expect_zero(struct side *side, const void *at, size_t bytes)
{
	uint8_t *data = malloc(bytes);

	expect_ok(m2n__cuda_read(side->cuda, data, at, bytes));
	for (size_t i = 0; i < bytes; i++)
		expect_equal(data[i], 0);
	free(data);
}

static void open_connected(struct side *side, struct rank *rank)
{
	side_open(side, rank, 0);
	side_connect(side);
}

/* ---- cases --------------------------------------------------------------------------------- */

static void write_each_other(struct side *side)
{
	uint8_t *base = side->mem->base;

	write_device(side, side->rmem->ptr, KEY_SPAN, side->rank->rank);
	rank_barrier(side->rank);
	expect_bytes(side, base + KEY_AT, KEY_SPAN, side->peer);
}

static void check_legacy(struct rank *rank)
{
	struct side side;

	open_connected(&side, rank);
	share_device(&side, alloc(&side));
	write_each_other(&side);
	expect_zero(&side, side.mem->base, KEY_AT);
	expect_zero(&side, (uint8_t *)side.mem->base + KEY_AT + KEY_SPAN,
		side.mem->bytes - KEY_AT - KEY_SPAN);
	side_close(&side);
}

static void check_vmm(struct rank *rank)
{
	struct side side;
	struct vmm vmm;

	open_connected(&side, rank);
	vmm_alloc(&side, &vmm, M2N__CU_HANDLE_FD);
	share_device(&side, &vmm.mem);
	write_each_other(&side);
	close_vmm(&side, &vmm);
}

/* Host memory over the same connection. */
static void check_host(struct rank *rank)
{
	struct side side;

	open_connected(&side, rank);
	side_share(&side);
	make(side.rmem->ptr, KEY_SPAN, rank->rank);
	rank_barrier(rank);
	make(side.source, KEY_SPAN, side.peer);
	expect(!memcmp((uint8_t *)side.mem->base + KEY_AT, side.source, KEY_SPAN));
	side_close(&side);
}

/* Keys of one allocation share a mapping. */
static void check_cache(struct rank *rank)
{
	struct m2n__rmem *rmem[3];
	size_t key_bytes = M2N__KEY_BYTES;
	uint64_t n_opened, n_closed;
	struct side side;
	void *middle;

	open_connected(&side, rank);
	export_device(&side, alloc(&side));
	expect_ok(side.ops.export_key(side.mr, 512, 1024, side.board->key[rank->rank], &key_bytes));
	rank_barrier(rank);
	n_opened = n_calls("cuIpcOpenMemHandle_v2");
	n_closed = n_calls("cuIpcCloseMemHandle");
	for (unsigned i = 0; i < 3; i++)
		expect_ok(side.ops.import_key(
			side.ep, side.board->key[side.peer], key_bytes, &rmem[i]));
	expect(rmem[0]->ptr == rmem[1]->ptr && rmem[1]->ptr == rmem[2]->ptr);
	middle = rmem[0]->ptr;
	write_device(&side, middle, 1024, rank->rank);
	side.ops.release_key(rmem[1]);
	side.ops.release_key(rmem[0]);
	if (is_double()) {
		expect_equal(n_calls("cuIpcOpenMemHandle_v2") - n_opened, 1);
		expect_equal(n_calls("cuIpcCloseMemHandle") - n_closed, 0);
	}
	expect_bytes(&side, middle, 1024, rank->rank); /* still mapped */
	side.ops.release_key(rmem[2]);
	if (is_double())
		expect_equal(n_calls("cuIpcCloseMemHandle") - n_closed, 1);
	rank_barrier(rank);
	expect_bytes(&side, (uint8_t *)side.mem->base + 512, 1024, side.peer);
	side_close(&side);
}

/* With another rank in the process, what nobody uses is kept, and found again. */
static void check_idle(struct rank *rank)
{
	const uint8_t *key;
	struct side side, other;
	uint64_t n_opened, n_closed;
	size_t key_bytes;

	open_connected(&side, rank);
	side_open(&other, rank, 0);
	export_device(&side, alloc(&side));
	key = side.board->key[side.peer];
	key_bytes = side.board->key_bytes[side.peer];
	n_opened = n_calls("cuIpcOpenMemHandle_v2");
	n_closed = n_calls("cuIpcCloseMemHandle");
	for (int i = 0; i < 3; i++) {
		expect_ok(side.ops.import_key(side.ep, key, key_bytes, &side.rmem));
		side.ops.release_key(side.rmem);
	}
	side.rmem = NULL;
	if (is_double()) {
		expect_equal(n_calls("cuIpcOpenMemHandle_v2") - n_opened, 1);
		expect_equal(n_calls("cuIpcCloseMemHandle") - n_closed, 0);
	}
	side_close(&other);
	side_close(&side);
	if (is_double())
		expect_equal(n_calls("cuIpcCloseMemHandle") - n_closed, 1);
}

/* Rank 1 is killed when rank 0 has mapped its memory; word 0: mapped, word 1: it is dead. */
static void check_killed(struct rank *rank)
{
	int is_vmm = *(int *)rank->arg;
	struct side side;
	struct vmm vmm;
	struct m2n__rmem *late = NULL;
	struct m2n__iface *second;
	uint64_t n_closed;
	int status;

	open_connected(&side, rank);
	if (is_vmm)
		vmm_alloc(&side, &vmm, M2N__CU_HANDLE_FD);
	share_device(&side, is_vmm ? &vmm.mem : alloc(&side));
	if (rank->rank == 1) {
		write_device(&side, (uint8_t *)side.mem->base + KEY_AT, KEY_SPAN, 1);
		word_set(&rank->word[0], 1);
		word_wait(&rank->word[2], 1); /* never: killed */
	}
	word_wait(&rank->word[1], 1);
	expect_bytes(&side, side.rmem->ptr, KEY_SPAN, 1);
	write_device(&side, side.rmem->ptr, KEY_SPAN, 0);
	expect_bytes(&side, side.rmem->ptr, KEY_SPAN, 0);
	/* Another rank in the process: what nobody uses would be kept, were its owner alive. */
	expect_ok(side.ops.open(&side.iface->params, &second));
	n_closed = n_calls(is_vmm ? "cuMemUnmap" : "cuIpcCloseMemHandle");
	side.ops.release_key(side.rmem);
	if (is_double()) /* its memory is wanted back: not kept for later */
		expect_equal(n_calls(is_vmm ? "cuMemUnmap" : "cuIpcCloseMemHandle") - n_closed,
			is_vmm ? 2 : 1);
	status = side.ops.import_key(side.ep, side.board->key[1], side.board->key_bytes[1], &late);
	expect_status(M2N_ERR_PEER_LOST, status);
	expect_text("is gone");
	side.ops.disconnect(side.ep);
	side.ops.dereg(side.mr);
	side.ops.close(second);
	side.ops.close(side.iface);
	if (is_vmm)
		vmm_free(&side, &vmm);
	else
		m2n__mem_free(side.mem);
	m2n__mem_free(side.signal_mem);
	m2n__cuda_close(side.cuda);
	m2n__options_clear(&side.options);
}

static void try(struct side *side, const void *key, size_t bytes, int want, const char *words)
{
	uint8_t *copy = malloc(bytes + !bytes); /* exact, for the sanitizer */
	struct m2n__rmem *rmem = NULL;

	memcpy(copy, key, bytes);
	expect_status(want, side->ops.import_key(side->ep, copy, bytes, &rmem));
	expect(rmem == NULL);
	expect_text(words);
	free(copy);
}

/* Not with a real driver, whose handles are its own to check. */
static void try_flips(struct side *side, const struct ipc_key *good)
{
	for (uint32_t i = 0; is_double() && i < 1000; i++) {
		struct m2n__rmem *rmem = NULL;
		struct ipc_key k = *good;

		for (uint32_t n = 0; n <= i % 3; n++) {
			size_t bit = job_random(21, i, n, 0) % (sizeof(k) * 8);

			((uint8_t *)&k)[bit / 8] ^= (uint8_t)(1 << bit % 8);
		}
		if (side->ops.import_key(side->ep, &k, sizeof(k), &rmem) == 0)
			side->ops.release_key(rmem);
		else
			expect(rmem == NULL && m2n_error_text()[0]);
	}
}

/* A key of the own process is its pointer; one of a process that had its pid is not. */
static void check_own_key(struct side *side)
{
	struct m2n__rmem *rmem = NULL;
	struct ipc_key k;

	memcpy(&k, side->board->key[side->rank->rank], sizeof(k));
	expect_ok(side->ops.import_key(side->ep, &k, sizeof(k), &rmem));
	expect(rmem->ptr == (uint8_t *)side->mem->base + KEY_AT);
	side->ops.release_key(rmem);
	rmem = NULL;
	k.source.nonce ^= 1;
	expect(side->ops.import_key(side->ep, &k, sizeof(k), &rmem) < 0);
	expect(rmem == NULL);
}

static void check_lies(struct rank *rank)
{
	struct ipc_key good, k;
	struct side side;

	open_connected(&side, rank);
	export_device(&side, alloc(&side));
	memcpy(&good, side.board->key[side.peer], sizeof(good));
	for (size_t n = 0; n < sizeof(good); n++)
		try(&side, &good, n, M2N_ERR_PROTOCOL, "key of");
	k = good;
	k.offset = side.mem->bytes - KEY_SPAN + 1;
	try(&side, &k, sizeof(k), M2N_ERR_PROTOCOL, "of memory of process");
	k = good;
	k.offset = UINT64_MAX - 5;
	try(&side, &k, sizeof(k), M2N_ERR_PROTOCOL, "of memory of process");
	k = good;
	k.bytes = side.mem->bytes; /* and the source says that there is so much */
	k.source.bytes = 4 * side.mem->bytes;
	try(&side, &k, sizeof(k), M2N_ERR_PROTOCOL, "of memory of process");
	k = good;
	k.bytes = UINT64_MAX - 4096;
	try(&side, &k, sizeof(k), M2N_ERR_PROTOCOL, "key");
	k = good;
	k.device.bytes[3] ^= 1;
	try(&side, &k, sizeof(k), M2N_ERR_BACKEND, "CUDA_VISIBLE_DEVICES");
	check_own_key(&side);
	k = good; /* memory of the own process that is none of its */
	k.source.pid = (uint32_t)getpid();
	k.source.nonce = m2n__ipc_nonce();
	k.address = 4096;
	try(&side, &k, sizeof(k), M2N_ERR_PROTOCOL, "no device memory");
	k.address = (uintptr_t)side.mem->base + side.mem->bytes - KEY_SPAN + 1;
	try(&side, &k, sizeof(k), -EINVAL, "leave their allocation");
	try_flips(&side, &good);
	side_close(&side);
}

/* What is exported anew is not taken for what was, though the descriptors be the same. */
static void check_serial(struct side *side)
{
	size_t bytes = M2N__KEY_BYTES;
	struct ipc_key first, second;

	memcpy(&first, side->board->key[side->rank->rank], sizeof(first));
	side->ops.dereg(side->mr);
	expect_ok(side->ops.reg(side->iface, side->mem, &side->mr));
	expect_ok(side->ops.export_key(side->mr, KEY_AT, KEY_SPAN, &second, &bytes));
	expect_equal(first.source.by.segment[0].fd, second.source.by.segment[0].fd);
	expect(memcmp(&first.source, &second.source, sizeof(first.source)));
}

static void check_vmm_lies(struct rank *rank)
{
	struct ipc_key good, k;
	struct side side;
	struct vmm vmm;

	open_connected(&side, rank);
	vmm_alloc(&side, &vmm, M2N__CU_HANDLE_FD);
	export_device(&side, &vmm.mem);
	memcpy(&good, side.board->key[side.peer], sizeof(good));
	expect_equal(good.source.n_segments, 2);
	k = good;
	k.offset = 2 * VMM_BYTES - KEY_SPAN + 1;
	try(&side, &k, sizeof(k), M2N_ERR_PROTOCOL, "of memory of process");
	k = good;
	k.source.n_segments = IPC_MAX_SEGMENTS + 1;
	try(&side, &k, sizeof(k), M2N_ERR_PROTOCOL, "allocations");
	k = good;
	k.source.by.segment[1].bytes += VMM_BYTES;
	try(&side, &k, sizeof(k), M2N_ERR_PROTOCOL, "add up");
	k.source.bytes += VMM_BYTES; /* more than the allocation has */
	try(&side, &k, sizeof(k), -EINVAL, "mapping");
	k = good;
	k.source.by.segment[0].fd = 0; /* another file of that process */
	try(&side, &k, sizeof(k), M2N_ERR_PROTOCOL, "not the memory");
	k = good;
	k.source.by.segment[0].fd = 1u << 20;
	try(&side, &k, sizeof(k), M2N_ERR_PEER_LOST, "is gone");
	try_flips(&side, &good);
	rank_barrier(rank);
	check_serial(&side);
	close_vmm(&side, &vmm);
}

/* What reg() and export_key() are given. */
static void check_wrong_memory(struct rank *rank)
{
	struct m2n__mem wrong, *device;
	uint8_t key[M2N__KEY_BYTES];
	size_t key_bytes = sizeof(key);
	void *pinned, *host = malloc(MEM_BYTES);
	struct m2n__mr *mr = NULL;
	struct side side;
	struct vmm vmm;

	open_connected(&side, rank);
	device = alloc(&side);
	wrong = *device;
	wrong.base = host;
	expect_status(-EINVAL, side.ops.reg(side.iface, &wrong, &mr));
	expect_text("it is host memory");
	expect_ok(m2n__cuda_pinned_alloc(side.cuda, MEM_BYTES, &pinned));
	wrong.base = pinned;
	expect_status(-EINVAL, side.ops.reg(side.iface, &wrong, &mr));
	expect_text("pinned host memory");
	m2n__cuda_pinned_free(side.cuda, pinned);
	wrong.base = device->base;
	wrong.bytes = device->bytes + 1;
	expect_status(-EINVAL, side.ops.reg(side.iface, &wrong, &mr));
	expect_text("leave their allocation");
	wrong.bytes = device->bytes;
	wrong.kind = M2N__MEM_HOST;
	expect_status(-EINVAL, side.ops.reg(side.iface, &wrong, &mr));
	expect_text("given as host memory");
	wrong.kind = M2N__MEM_CUDA;
	m2n__mem_free(device);
	expect_status(-EINVAL, side.ops.reg(side.iface, &wrong, &mr));
	expect_text("freed");
	expect(mr == NULL);
	vmm_alloc(&side, &vmm, 0); /* can be used, but not passed */
	expect_ok(side.ops.reg(side.iface, &vmm.mem, &mr));
	if (!is_double()) /* which does not keep what kind of handle was asked for */
		expect_status(-ENOTSUP, side.ops.export_key(mr, 0, 64, key, &key_bytes));
	side.ops.dereg(mr);
	vmm_free(&side, &vmm);
	free(host);
	side_close(&side);
}

/* The driver's refusals, with what to do about them. */
static void check_refused(struct rank *rank)
{
	uint8_t key[M2N__KEY_BYTES];
	size_t key_bytes = sizeof(key);
	struct side side;

	open_connected(&side, rank);
	export_device(&side, alloc(&side));
	make_fail("cuIpcOpenMemHandle_v2:1:801");
	try(&side, side.board->key[side.peer], side.board->key_bytes[side.peer], -ENOTSUP,
		"one PID namespace");
	make_fail("cuIpcOpenMemHandle_v2:1:217");
	try(&side, side.board->key[side.peer], side.board->key_bytes[side.peer], M2N_ERR_BACKEND,
		"topo -p2p");
	make_fail("");
	rank_barrier(rank);
	side.ops.dereg(side.mr);
	expect_ok(side.ops.reg(side.iface, side.mem, &side.mr));
	make_fail("cuIpcGetMemHandle:1:801");
	expect_status(-ENOTSUP, side.ops.export_key(side.mr, 0, 64, key, &key_bytes));
	expect_text("MIG");
	/* Not for good. */
	expect_ok(side.ops.export_key(side.mr, 0, 64, key, &key_bytes));
	side_close(&side);
}

static void need_devices(int n)
{
	const struct m2n__cuda_driver *d;
	int n_devices = 0;

	expect_ok(m2n__cuda_driver(&d));
	expect_equal(d->device_count(&n_devices), 0);
	if (n_devices < n)
		rank_skip("needs two devices (the stand-in: M2N_DOUBLE_DEVICES=2)");
}

/* Ranks as threads: two ifaces of one process. Pointers go as they are. */
static void check_threads(struct rank *rank)
{
	struct m2n__rmem *rmem;
	uint64_t n_opened, n_enabled;
	struct side one, two;
	uint8_t blob[M2N__ADDRESS_BYTES], key[M2N__KEY_BYTES];
	size_t blob_bytes = sizeof(blob), key_bytes = sizeof(key);
	int device = *(int *)rank->arg;

	need_devices(device + 1);
	side_open(&one, rank, 0);
	side_open(&two, rank, device);
	expect_ok(two.ops.address(two.iface, blob, &blob_bytes));
	expect_equal(one.ops.reaches(one.iface, blob, blob_bytes), 1);
	expect_ok(one.ops.connect(one.iface, blob, blob_bytes, &one.ep));
	two.mem = alloc(&two);
	expect_ok(two.ops.reg(two.iface, two.mem, &two.mr));
	expect_ok(two.ops.export_key(two.mr, KEY_AT, KEY_SPAN, key, &key_bytes));
	n_opened = n_calls("cuIpcOpenMemHandle_v2");
	n_enabled = n_calls("cuCtxEnablePeerAccess");
	expect_ok(one.ops.import_key(one.ep, key, key_bytes, &rmem));
	expect(rmem->ptr == (uint8_t *)two.mem->base + KEY_AT);
	expect_equal(rmem->bytes, KEY_SPAN);
	expect_equal(n_calls("cuIpcOpenMemHandle_v2") - n_opened, 0);
	if (is_double())
		expect_equal(n_calls("cuCtxEnablePeerAccess") - n_enabled, device != 0);
	write_device(&one, rmem->ptr, KEY_SPAN, 7);
	expect_bytes(&two, (uint8_t *)two.mem->base + KEY_AT, KEY_SPAN, 7);
	one.ops.release_key(rmem);
	two.ops.dereg(two.mr);
	two.mr = NULL;
	side_close(&two);
	side_close(&one);
}

/* Two devices: where they reach each other, by IPC; where not, both sides say so. */
static void check_two_devices(struct rank *rank)
{
	struct side side;
	uint8_t *blob;
	size_t bytes = M2N__ADDRESS_BYTES;

	need_devices(2);
	side_open(&side, rank, rank->rank);
	side_connect(&side);
	share_device(&side, alloc(&side));
	write_each_other(&side);
	side_close(&side);

	if (!is_double())
		return;
	if (rank->rank == 1)
		make_fail("cuDeviceCanAccessPeer:1+:101");
	side_open(&side, rank, rank->rank);
	if (rank->rank == 1)
		make_fail("");
	blob = side.board->blob[rank->rank];
	expect_ok(side.ops.address(side.iface, blob, &bytes));
	rank_barrier(rank);
	expect_equal(side.ops.reaches(side.iface, side.board->blob[side.peer], bytes), 0);
	side_close(&side);
}

static void check_no_device(struct rank *rank)
{
	struct m2n__iface_params params;
	struct m2n__iface *iface;
	struct side side;

	side_open(&side, rank, 0);
	params = side.iface->params;
	params.cuda = NULL;
	expect_status(M2N_ERR_BACKEND, side.ops.open(&params, &iface));
	expect_text("CUDA_DEVICE");
	side_close(&side);
}

/* ---- the list ------------------------------------------------------------------------------ */

static int report(int number, const char *name, int result)
{
	int is_ok = result == 0 || result == RANKS_SKIP;

	printf("%s %d - %s%s\n", is_ok ? "ok" : "not ok", number, name,
		result == RANKS_SKIP ? " # SKIP see above" : "");
	fflush(stdout);
	return !is_ok;
}

static const struct ranks_opts opts = {
	.backend = "cuda_ipc", .bare = 1, .no_leak_check = 1, .shared_bytes = sizeof(struct board)};

struct run {
	rank_fn fn;
	int arg;
};

static void run_case(struct rank *rank)
{
	struct run *run = rank->arg;

	rank->arg = &run->arg;
	side_run(rank, 1, run->fn);
}

static int run_killed(int is_vmm)
{
	struct run run = {check_killed, is_vmm};
	struct ranks *ranks = ranks_start(2, run_case, &run, &opts);

	if (ranks_wait_word(ranks, 0, 1) == 0) {
		ranks_kill(ranks, 1);
		if (ranks_wait_end(ranks, 1) == 0)
			word_set(&ranks_words(ranks)[1], 1);
	}
	return ranks_finish(ranks);
}

int main(void)
{
	static const struct {
		const char *name;
		rank_fn fn;
		int n, arg;
	} cases[] = {
		{"memory of cuMemAlloc", check_legacy, 2, 0},
		{"memory of cuMemCreate, over a border", check_vmm, 2, 0},
		{"host memory", check_host, 2, 0},
		{"keys of one allocation", check_cache, 2, 0},
		{"mappings that nobody uses", check_idle, 2, 0},
		{"keys that lie", check_lies, 2, 0},
		{"keys with descriptors that lie", check_vmm_lies, 2, 0},
		{"memory of the wrong kind", check_wrong_memory, 2, 0},
		{"the driver refuses", check_refused, 2, 0},
		{"two ranks of one process", check_threads, 1, 0},
		{"two ranks of one process, two devices", check_threads, 1, 1},
		{"two devices", check_two_devices, 2, 0},
		{"no device", check_no_device, 1, 0},
	};
	int n = (int)(sizeof(cases) / sizeof(cases[0])), failed = 0;

	printf("1..%d\n", n + 2);
	fflush(stdout);
	for (int i = 0; i < n; i++) {
		struct run run = {cases[i].fn, cases[i].arg};

		failed |=
			report(i + 1, cases[i].name, ranks_run(cases[i].n, run_case, &run, &opts));
	}
	failed |= report(n + 1, "memory of a killed process", run_killed(0));
	failed |= report(n + 2, "the same, of cuMemCreate", run_killed(1));
	return failed;
}
