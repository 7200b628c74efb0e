/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Devices, memory and kernels of mem/cuda.h, on the stand-in of the driver: what is promised,
 * every refusal with the words that the user needs, and that captures of other threads go on.
 */
#include "cuda_helpers.h"

#include <errno.h>
#include <link.h>
#include <pthread.h>

#include "mem/cuda.h"

static const char *program;
static const char image[] = "anything but NULL";
static const char *const names[] = {"m2n_double_fill", "m2n_double_add", "m2n_double_await", NULL};

/* ---- opening ---- */

static int take_loads(struct dl_phdr_info *info, size_t bytes, void *n)
{
	(void)bytes;
	*(unsigned long long *)n = info->dlpi_adds;
	return 1;
}

/* Libraries that were ever loaded. */
static unsigned long long count_loads(void)
{
	unsigned long long n = 0;

	dl_iterate_phdr(take_loads, &n);
	return n;
}

static void opens(void)
{
	const struct m2n__cuda_driver *driver;
	struct m2n__cuda *cuda, *again, *none = NULL;
	unsigned long long n_loads;

	n_loads = count_loads();
	check(m2n__cuda_current() == -1 && count_loads() == n_loads); /* it looked */
	check(!m2n__cuda_driver(&driver));
	check(m2n__cuda_current() == -1);
	check(!m2n__cuda_open(1, &cuda));
	check(cuda->ordinal == 1 && cuda->driver == driver && cuda->context && cuda->stream);
	check(!strcmp(cuda->name, "CUDA double") && !memcmp(cuda->uuid.bytes, "double 1", 8));
	check(cuda->major == 9 && cuda->minor == 0 && cuda->n_multiprocessors == 4);
	check(cuda->driver_version == 12040);
	check(cuda->has_fd_handles && cuda->has_dma_buf && cuda->needs_flush && cuda->can_flush);
	check(!cuda->module);
	check(!m2n__cuda_open(1, &again) && again->context == cuda->context);
	check(m2n__cuda_current() == -1);
	check(!m2n__cuda_enter(cuda) && m2n__cuda_current() == 1);
	m2n__cuda_leave(cuda);
	check(m2n__cuda_current() == -1);
	check(m2n__cuda_open(2, &none) == -EINVAL && !none);
	check_text("no device 2: there are 2");
	check(m2n__cuda_open(-1, &none) == -EINVAL && !none);
	m2n__cuda_close(again);
	check(!m2n__cuda_enter(cuda)); /* the first holds the context */
	m2n__cuda_leave(cuda);
	m2n__cuda_close(cuda);
	m2n__cuda_close(NULL);
}

static void knows_what_is_missing(void)
{
	struct m2n__cuda *cuda = open_device(0);

	check(!cuda->has_fd_handles && !cuda->has_dma_buf && !cuda->needs_flush);
	check(!cuda->can_flush);
	m2n__cuda_close(cuda);
}

static void needs_unified_addressing(void)
{
	struct m2n__cuda *cuda = NULL;

	check(m2n__cuda_open(0, &cuda) == M2N_ERR_BACKEND && !cuda);
	check_text("no unified addressing");
}

static void refuses_old_driver(void)
{
	struct m2n__cuda *cuda = NULL;

	for (int i = 0; i < 2; i++) {
		check(m2n__cuda_open(0, &cuda) == M2N_ERR_BACKEND && !cuda);
		check_text("11.4");
		check_text("12.0 is needed");
		check_text("install");
	}
}

static void says_no_device(void)
{
	struct m2n__cuda *cuda = NULL;

	check(m2n__cuda_open(0, &cuda) == M2N_ERR_BACKEND && !cuda);
	check_text("CUDA_ERROR_NO_DEVICE");
	check_text("nvidia-smi");
}

/* This program again, as the loader finds the library: where LD_LIBRARY_PATH says, or nowhere. */
static void run_again(const char *mode, const char *path)
{
	if (path)
		setenv("LD_LIBRARY_PATH", path, 1);
	else
		unsetenv("LD_LIBRARY_PATH");
	execl(program, program, mode, NULL);
	check(!"execl");
}

static void says_no_library(void)
{
	run_again("no-library", NULL);
}

static void says_missing_symbol(void)
{
	run_again("missing-symbol", getenv("M2N_DOUBLE_PARTIAL"));
}

static int without_library(void)
{
	const struct m2n__cuda_driver *driver = NULL;

	check(m2n__cuda_current() == -1);
	if (!m2n__cuda_driver(&driver)) {
		fprintf(stderr, "this machine has a driver\n");
		return 0;
	}
	check(m2n__cuda_driver(&driver) == M2N_ERR_BACKEND && !driver);
	fprintf(stderr, "%s\n", m2n_error_text());
	check_text("libcuda.so.1");
	check_text("install NVIDIA's driver");
	return 0;
}

static int with_part_of_library(void)
{
	const struct m2n__cuda_driver *driver = NULL;

	check(m2n__cuda_driver(&driver) == M2N_ERR_BACKEND && !driver);
	check_text("has no cuInit");
	check_text("12.0 or newer");
	check(m2n__cuda_current() == -1);
	return 0;
}

static void ends_with_fork(void)
{
	struct m2n__cuda *cuda = open_device(0);
	struct m2n__mem *mem = NULL;
	int status;
	pid_t pid = fork();

	check(pid >= 0);
	if (!pid) {
		check(m2n__mem_alloc_cuda(cuda, 1, &mem) == M2N_ERR_BACKEND && !mem);
		check_text("CUDA_ERROR_NOT_INITIALIZED");
		m2n__cuda_close(cuda);
		exit(0);
	}
	check(waitpid(pid, &status, 0) == pid && !status);
	m2n__cuda_close(cuda);
}

/* Each call of the driver fails once in opening: an error, nothing left, and the next one works. */
static void open_survives_errors(void)
{
	static const char *const calls[] = {"cuDeviceGetCount:1:999", "cuDeviceGet:1:101",
		"cuDeviceGetName:1:999", "cuDeviceGetUuid_v2:1:999", "cuDevicePrimaryCtxRetain:1",
		"cuCtxPushCurrent_v2:1:201", "cuStreamCreate:1"};
	static const int codes[] = {M2N_ERR_BACKEND, -EINVAL, M2N_ERR_BACKEND, M2N_ERR_BACKEND,
		-ENOMEM, M2N_ERR_BACKEND, -ENOMEM};
	const struct m2n__cuda_driver *driver;
	struct m2n__cuda *cuda = open_device(0);
	m2n__cu_context context;

	m2n__cuda_close(cuda);
	for (unsigned i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
		cuda = NULL;
		fail_next(calls[i]);
		check(m2n__cuda_open(0, &cuda) == codes[i] && !cuda);
		/* The context is gone: retained once, it is released once. */
		cuda = open_device(0);
		driver = cuda->driver;
		context = cuda->context;
		m2n__cuda_close(cuda);
		check(m2n__cuda_current() == -1);
		check(driver->ctx_push(context) == M2N__CU_INVALID_CONTEXT);
	}
	fail_next("");
}

/* ---- kernels ---- */

static void loads_and_launches(void)
{
	struct m2n__cuda *cuda = open_device(0);
	struct m2n_double_fill_args args = {.n = 1000, .value = 7};
	struct m2n__mem *mem;
	uint32_t got[1001];
	m2n__cu_stream stream;

	check(!m2n__mem_alloc_cuda(cuda, sizeof(got), &mem));
	check(m2n__cuda_launch(cuda, 0, 1, 32, 0, NULL, &args) == -EINVAL);
	check_text("no kernel 0 is loaded");
	check(!m2n__cuda_load(cuda, image, names) && cuda->module && cuda->kernels[2]);
	check(!cuda->kernels[3]);
	check(!m2n__cuda_load(cuda, image, names)); /* once is enough */
	check(M2N_DOUBLE(m2n_double_calls)("cuModuleLoadData") == 1);
	args.at = (uintptr_t)mem->base;
	check(!m2n__cuda_enter(cuda));
	stream = new_stream(cuda, M2N__CU_STREAM_NON_BLOCKING);
	check(!m2n__cuda_launch(cuda, 0, 4, 256, 1024, stream, &args));
	args.value = 0; /* the call has taken it */
	check_cu(cuda->driver->stream_synchronize(stream));
	check(!m2n__cuda_read(cuda, got, mem->base, sizeof(got)));
	for (unsigned i = 0; i < 1000; i++)
		check(got[i] == 7 + i);
	check(got[1000] == 0);
	check(m2n__cuda_launch(cuda, 0, 1, 2048, 0, stream, &args) == -EINVAL);
	check_text("1 blocks of 2048 threads: CUDA_ERROR_INVALID_VALUE (invalid argument)");
	check_cu(cuda->driver->stream_destroy(stream));
	check(m2n__cuda_launch(cuda, 0, 1, 32, 0, stream, &args) == -EINVAL);
	check_text("CUDA_ERROR_INVALID_HANDLE");
	check(m2n__cuda_launch(cuda, 3, 1, 32, 0, NULL, &args) == -EINVAL);
	check(m2n__cuda_launch(cuda, 1u << 31, 1, 32, 0, NULL, &args) == -EINVAL);
	m2n__cuda_leave(cuda);
	m2n__mem_free(mem);
	m2n__cuda_close(cuda);
}

static void load_refuses(void)
{
	static const char *const wrong[] = {"m2n_double_fill", "no_such_kernel", NULL};
	struct m2n__cuda *cuda = open_device(0);
	const char *many[M2N__CUDA_MAX_KERNELS + 2] = {NULL};

	check(m2n__cuda_load(cuda, image, wrong) == M2N_ERR_BACKEND);
	check_text("kernel no_such_kernel: CUDA_ERROR_NOT_FOUND");
	check(!cuda->module && !cuda->kernels[0]);
	check(m2n__cuda_load(cuda, NULL, wrong) == M2N_ERR_BACKEND && !cuda->module);
	check_text("without nvcc");
	for (unsigned i = 0; i < 3; i++) {
		static const char *const calls[] = {"cuModuleGetFunction:2:999",
			"cuFuncLoad:2:999", "cuFuncGetAttribute:3:999"};

		fail_next(calls[i]); /* code is loaded here, not in a launch */
		check(m2n__cuda_load(cuda, image, names) == M2N_ERR_BACKEND && !cuda->module);
	}
	fail_next("cuModuleLoadData:1:218");
	check(m2n__cuda_load(cuda, NULL, names) == M2N_ERR_BACKEND && !cuda->module);
	check_text("without nvcc");
	for (unsigned i = 0; i <= M2N__CUDA_MAX_KERNELS; i++)
		many[i] = names[0];
	check(m2n__cuda_load(cuda, image, many) == -EINVAL && !cuda->module);
	fail_next("cuModuleLoadData:1:209");
	check(m2n__cuda_load(cuda, image, names) == M2N_ERR_BACKEND && !cuda->module);
	check_text("compute capability 9.0");
	check_text("CUDA_ERROR_NO_BINARY_FOR_GPU");
	check(!m2n__cuda_load(cuda, image, names));
	m2n__cuda_close(cuda);
}

/* A kernel went wrong: every later call says so. */
static void broken_device(void)
{
	struct m2n__cuda *cuda = open_device(0);
	struct m2n_double_fill_args args = {0};
	struct m2n__mem *mem = NULL;

	check(!m2n__cuda_load(cuda, image, names) && !m2n__cuda_enter(cuda));
	fail_next("cuLaunchKernel:1:700");
	check(m2n__cuda_launch(cuda, 0, 1, 1, 0, NULL, &args) == M2N_ERR_BACKEND);
	check_text("CUDA_ERROR_ILLEGAL_ADDRESS");
	check(m2n__mem_alloc_cuda(cuda, 1, &mem) == M2N_ERR_BACKEND && !mem);
	check_text("illegal memory access");
	m2n__cuda_close(cuda); /* as far as it goes */
}

/* ---- memory ---- */

static void allocates(void)
{
	struct m2n__cuda *cuda = open_device(0);
	struct m2n__mem *mem = NULL, *second;
	unsigned char *got = malloc(4 * MIB);
	void *base;

	check(m2n__mem_alloc_cuda(cuda, 0, &mem) == -EINVAL && !mem);
	check(!m2n__mem_alloc_cuda(cuda, 3 * MIB, &mem));
	check(mem->kind == M2N__MEM_CUDA && mem->cuda == cuda && mem->fd == -1);
	check(mem->bytes == 4 * MIB && mem->committed == mem->bytes);
	memset(got, 1, 4 * MIB);
	check(!m2n__cuda_read(cuda, got, mem->base, 4 * MIB));
	for (size_t i = 0; i < 4 * MIB; i++)
		check(!got[i]);
	check(m2n__cuda_pointer(cuda, mem->base, NULL) == M2N__POINTER_DEVICE);
	check(!m2n__mem_alloc_cuda(cuda, 1, &second) && second->bytes == 2 * MIB);
	base = mem->base;
	m2n__mem_free(mem);
	check(m2n__cuda_pointer(cuda, base, NULL) == M2N__POINTER_HOST);
	m2n__mem_free(second);
	check(n_blocks() == 0);
	free(got);
	m2n__cuda_close(cuda);
}

static void runs_out_of_memory(void)
{
	struct m2n__cuda *cuda = open_device(0);
	struct m2n__mem *mem, *more = NULL;
	void *at = NULL;

	check(!m2n__mem_alloc_cuda(cuda, 5 * MIB, &mem)); /* of 8 */
	check(m2n__mem_alloc_cuda(cuda, 3 * MIB, &more) == -ENOMEM && !more);
	check_text("no memory for 4194304 bytes on cuda 0 (CUDA double): 2097152 of 8388608 bytes");
	check(m2n__mem_alloc_cuda(cuda, SIZE_MAX, &more) == -ENOMEM && !more);
	check(m2n__mem_alloc_cuda(cuda, SIZE_MAX / 2 - 1, &more) == -ENOMEM && !more);
	fail_next("cuMemHostAlloc:1");
	check(m2n__cuda_pinned_alloc(cuda, 4096, &at) == -ENOMEM && !at);
	check_text("4096 pinned bytes");
	check(!m2n__mem_alloc_cuda(cuda, 2 * MIB, &more)); /* nothing was lost */
	m2n__mem_free(more);
	/* Half-way: the block is given back. */
	fail_next("cuMemsetD8Async:1:999,cuStreamSynchronize:2:999");
	check(m2n__mem_alloc_cuda(cuda, 1, &more) == M2N_ERR_BACKEND);
	check_text("zeroing");
	check(!m2n__mem_alloc_cuda(cuda, 2 * MIB, &more));
	m2n__mem_free(more);
	m2n__mem_free(mem);
	check(n_blocks() == 0);
	m2n__cuda_close(cuda);
}

static void pins(void)
{
	struct m2n__cuda *cuda = open_device(0);
	unsigned char *at = NULL;
	void *none = NULL;

	check(m2n__cuda_pinned_alloc(cuda, 0, &none) == -EINVAL && !none);
	check(!m2n__cuda_pinned_alloc(cuda, 10000, (void **)&at) && at);
	for (unsigned i = 0; i < 10000; i++)
		check(!at[i]);
	check(m2n__cuda_pointer(cuda, at + 9999, NULL) == M2N__POINTER_PINNED);
	m2n__cuda_pinned_free(cuda, at);
	m2n__cuda_pinned_free(cuda, NULL);
	fail_next("cuMemHostGetDevicePointer_v2:1:1");
	check(m2n__cuda_pinned_alloc(cuda, 1, &none) == M2N_ERR_BACKEND && !none);
	check(n_blocks() == 0);
	m2n__cuda_close(cuda);
}

static uint64_t n_waits(void)
{
	struct m2n_double_counters counters;

	M2N_DOUBLE(m2n_double_read_counters)(&counters);
	return counters.n_host_waits;
}

/* Ranks as threads: a kernel of one waits for a peer; the other frees, allocates and closes. */
static void others_do_not_wait(void)
{
	struct m2n__cuda *cuda = open_device(0), *other = open_device(0);
	struct m2n_double_await_args args = {.value = 1};
	struct m2n__mem *mem, *again;
	unsigned char *pinned, bytes[64];
	m2n__cu_stream stream;
	uint64_t waits;
	void *gate, *base;

	check(!m2n__cuda_load(cuda, image, names) && !m2n__cuda_load(other, image, names));
	check(cuda->module == other->module && cuda->kernels[2] == other->kernels[2]);
	check(M2N_DOUBLE(m2n_double_calls)("cuModuleLoadData") == 1);
	check(!m2n__cuda_pinned_alloc(other, 8, &gate));
	args.at = (uintptr_t)gate;
	check(!m2n__cuda_enter(other));
	stream = new_stream(other, M2N__CU_STREAM_NON_BLOCKING);
	check(!m2n__cuda_launch(other, 2, 1, 32, 0, stream, &args));

	check(!m2n__mem_alloc_cuda(cuda, 3 * MIB, &mem));
	check(!m2n__cuda_pinned_alloc(cuda, 100, (void **)&pinned));
	memset(pinned, 7, 100);
	memset(bytes, 7, sizeof(bytes));
	check(!m2n__cuda_write(cuda, mem->base, bytes, sizeof(bytes)));
	base = mem->base;
	waits = n_waits();
	m2n__mem_free(mem);
	m2n__cuda_pinned_free(cuda, pinned);
	check(n_waits() == waits);
	check(!m2n__mem_alloc_cuda(cuda, 4 * MIB, &again) && again->base == base);
	check(!m2n__mem_alloc_cuda(cuda, 2 * MIB, &mem) && mem->base != base);
	check(!m2n__cuda_read(cuda, bytes, base, sizeof(bytes)));
	for (unsigned i = 0; i < sizeof(bytes); i++)
		check(!bytes[i]);
	base = pinned;
	check(!m2n__cuda_pinned_alloc(cuda, 200, (void **)&pinned) && pinned == base);
	for (unsigned i = 0; i < 200; i++)
		check(!pinned[i]);
	waits = n_waits();
	m2n__cuda_pinned_free(cuda, pinned);
	m2n__mem_free(mem);
	m2n__mem_free(again);
	m2n__cuda_close(cuda);
	check(n_waits() == waits && other->driver->stream_query(stream) == M2N__CU_NOT_READY);

	*(_Atomic uint64_t *)gate = 1;
	check_cu(other->driver->stream_synchronize(stream));
	m2n__cuda_pinned_free(other, gate); /* kept, too: its own kernels may be waiting */
	check(n_waits() == waits + 1);
	m2n__cuda_leave(other);
	m2n__cuda_close(other);
	check(n_waits() == waits + 5 && n_blocks() == 0);
}

/* What is kept is in nobody's way. */
static void gives_back_when_short(void)
{
	struct m2n__cuda *cuda = open_device(0), *other = open_device(0), *third;
	struct m2n__mem *mem;

	check(!m2n__cuda_load(cuda, image, names));
	check(!m2n__mem_alloc_cuda(cuda, 2 * MIB, &mem));
	m2n__mem_free(mem);
	check(n_blocks() == 1);
	m2n__cuda_trim(cuda);
	check(n_blocks() == 0);
	check(!m2n__cuda_load(other, image, names));
	for (unsigned i = 1; i <= 3; i++) {
		check(!m2n__mem_alloc_cuda(i & 1 ? cuda : other, i * 2 * MIB, &mem)); /* of 8 */
		m2n__mem_free(mem);
	}
	check(!m2n__mem_alloc_cuda(cuda, 8 * MIB, &mem));
	check(n_blocks() == 1);
	m2n__mem_free(mem);
	m2n__cuda_close(cuda);
	check(n_blocks() == 1);
	third = open_device(0); /* has none */
	m2n__cuda_close(other);
	check(n_blocks() == 0);
	m2n__cuda_close(third);
}

static void tells_pointers_apart(void)
{
	struct m2n__cuda *cuda = open_device(0), *other = open_device(1);
	struct m2n__mem *mem, *theirs;
	int on_stack, ordinal = -7;
	void *pinned;

	check(!m2n__mem_alloc_cuda(cuda, 1, &mem) && !m2n__mem_alloc_cuda(other, 1, &theirs));
	check(!m2n__cuda_pinned_alloc(other, 1, &pinned));
	check(m2n__cuda_pointer(cuda, &on_stack, &ordinal) == M2N__POINTER_HOST && ordinal == -7);
	check(m2n__cuda_pointer(cuda, NULL, NULL) == M2N__POINTER_HOST);
	check(m2n__cuda_pointer(cuda, mem->base, &ordinal) == M2N__POINTER_DEVICE && !ordinal);
	check(m2n__cuda_pointer(cuda, (char *)mem->base + 2 * MIB - 1, NULL) ==
		M2N__POINTER_DEVICE);
	check(m2n__cuda_pointer(cuda, (char *)mem->base + 2 * MIB, NULL) == M2N__POINTER_HOST);
	check(m2n__cuda_pointer(cuda, theirs->base, &ordinal) == M2N__POINTER_OTHER);
	check(ordinal == 1);
	check(m2n__cuda_pointer(cuda, pinned, &ordinal) == M2N__POINTER_PINNED && ordinal == 1);
	m2n__cuda_pinned_free(other, pinned);
	m2n__mem_free(mem);
	m2n__mem_free(theirs);
	m2n__cuda_close(cuda);
	m2n__cuda_close(other);
}

static void refuse(struct m2n__cuda *cuda, void *at, size_t bytes, const char *part)
{
	struct m2n__mem *mem = NULL;

	check(m2n__mem_wrap_cuda(cuda, at, bytes, &mem) == -EINVAL && !mem);
	check_text(part);
}

static void wraps(void)
{
	struct m2n__cuda *cuda = open_device(0), *other = open_device(1);
	const struct m2n__cuda_driver *d = cuda->driver;
	struct m2n__mem *mem;
	m2n__cu_ptr at, theirs;
	void *pinned, *malloced = malloc(100);
	int on_stack;

	check(!m2n__cuda_enter(other));
	check_cu(d->mem_alloc(&theirs, 1000));
	m2n__cuda_leave(other);
	check(!m2n__cuda_enter(cuda));
	check_cu(d->mem_alloc(&at, 1000));
	check(!m2n__mem_wrap_cuda(cuda, (void *)(uintptr_t)at, 1000, &mem));
	check(mem->kind == M2N__MEM_CUDA && mem->bytes == 1000 && mem->cuda == cuda);
	m2n__mem_free(mem); /* stays the user's */
	check(!m2n__mem_wrap_cuda(cuda, (void *)(uintptr_t)(at + 1), 999, &mem));
	m2n__mem_free(mem);
	refuse(cuda, (void *)(uintptr_t)at, 1001, "ends after 1000");
	refuse(cuda, (void *)(uintptr_t)(at + 1), 1000, "ends after 999");
	refuse(cuda, (void *)(uintptr_t)at, SIZE_MAX, "");
	refuse(cuda, (void *)(uintptr_t)at, 0, "0 bytes");
	refuse(cuda, NULL, 10, "");
	refuse(cuda, &on_stack, 4, "is host memory");
	refuse(cuda, malloced, 100, "is host memory");
	check(!m2n__cuda_pinned_alloc(cuda, 100, &pinned));
	refuse(cuda, pinned, 100, "pinned host memory");
	m2n__cuda_pinned_free(cuda, pinned);
	refuse(cuda, (void *)(uintptr_t)theirs, 1000, "memory of cuda 1, not of cuda 0");
	check_cu(d->mem_free(at));
	refuse(cuda, (void *)(uintptr_t)at, 1000, "freed");
	m2n__cuda_leave(cuda);
	free(malloced);
	m2n__cuda_close(cuda);
	m2n__cuda_close(other);
}

/* As PyTorch's expandable segments do: one range of addresses, memory in pieces. */
static void wraps_pieces(void)
{
	const struct m2n__cu_alloc_prop prop = {.type = 1, .handle_types = M2N__CU_HANDLE_FD,
		.location = {.type = 1}};
	const struct m2n__cu_access access = {.location = {.type = 1}, .flags = 3};
	struct m2n__cuda *cuda = open_device(0);
	const struct m2n__cuda_driver *d = cuda->driver;
	struct m2n__mem *mem;
	m2n__cu_handle handle;
	m2n__cu_ptr at;

	check(!m2n__cuda_enter(cuda));
	check_cu(d->vmm_reserve(&at, 8 * MIB, 0, 0, 0));
	for (unsigned i = 0; i < 3; i++) {
		check_cu(d->vmm_create(&handle, 2 * MIB, &prop, 0));
		check_cu(d->vmm_map(at + i * 2 * MIB, 2 * MIB, 0, handle, 0));
		check_cu(d->vmm_access(at + i * 2 * MIB, 2 * MIB, &access, 1));
		check_cu(d->vmm_release(handle));
	}
	check(!m2n__mem_wrap_cuda(cuda, (void *)(uintptr_t)(at + 100), 6 * MIB - 100, &mem));
	m2n__mem_free(mem);
	refuse(cuda, (void *)(uintptr_t)(at + 100), 6 * MIB, "ends after 6291356");
	for (unsigned i = 0; i < 3; i++)
		check_cu(d->vmm_unmap(at + i * 2 * MIB, 2 * MIB));
	refuse(cuda, (void *)(uintptr_t)at, 1, "freed");
	check_cu(d->vmm_unreserve(at, 8 * MIB));
	m2n__cuda_leave(cuda);
	m2n__cuda_close(cuda);
}

static void writes_and_reads(void)
{
	struct m2n__cuda *cuda = open_device(0);
	struct m2n_double_counters before, after;
	unsigned char from[5000], to[5000];
	struct m2n__mem *mem;

	check(!m2n__mem_alloc_cuda(cuda, sizeof(from), &mem));
	for (unsigned i = 0; i < sizeof(from); i++)
		from[i] = (unsigned char)(i * 7);
	M2N_DOUBLE(m2n_double_read_counters)(&before);
	check(!m2n__cuda_write(cuda, (char *)mem->base + 3, from, sizeof(from)));
	memset(to, 0, sizeof(to));
	check(!m2n__cuda_read(cuda, to, (char *)mem->base + 3, sizeof(to)));
	check(!memcmp(from, to, sizeof(to)));
	M2N_DOUBLE(m2n_double_read_counters)(&after);
	check(after.n_to_device == before.n_to_device + 1);
	check(after.to_device_bytes == before.to_device_bytes + sizeof(from));
	check(after.n_to_host == before.n_to_host + 1);
	check(after.to_host_bytes == before.to_host_bytes + sizeof(from));
	check(m2n__cuda_write(cuda, (char *)mem->base + 2 * MIB - 1, from, 2) == -EINVAL);
	check_text("writing 2 bytes");
	check(m2n__cuda_read(cuda, to, to, 2) == -EINVAL);
	fail_next("cuStreamSynchronize:1:719");
	check(m2n__cuda_write(cuda, mem->base, from, 1) == M2N_ERR_BACKEND);
	fail_next("");
	m2n__mem_free(mem);
	m2n__cuda_close(cuda);
}

/* The thread's own context comes back, also when a call fails. */
static void restores_context(void)
{
	struct m2n__cuda *cuda = open_device(0), *other = open_device(1);
	struct m2n__mem *mem, *none;
	char byte = 0;
	void *pinned;

	check(!m2n__cuda_enter(other));
	check(!m2n__mem_alloc_cuda(cuda, 1, &mem) && m2n__cuda_current() == 1);
	check(!m2n__cuda_write(cuda, mem->base, &byte, 1) && m2n__cuda_current() == 1);
	check(!m2n__cuda_read(cuda, &byte, mem->base, 1) && m2n__cuda_current() == 1);
	check(m2n__cuda_read(cuda, &byte, NULL, 1) && m2n__cuda_current() == 1);
	check(m2n__mem_wrap_cuda(cuda, &byte, 1, &none) && m2n__cuda_current() == 1);
	check(!m2n__cuda_pinned_alloc(cuda, 1, &pinned) && m2n__cuda_current() == 1);
	m2n__cuda_pinned_free(cuda, pinned);
	check(m2n__cuda_current() == 1);
	check(!m2n__cuda_load(cuda, image, names) && m2n__cuda_current() == 1);
	fail_next("cuMemAlloc_v2:1");
	check(m2n__mem_alloc_cuda(cuda, 1, &none) == -ENOMEM && m2n__cuda_current() == 1);
	m2n__mem_free(mem);
	check(m2n__cuda_current() == 1);
	m2n__cuda_close(cuda);
	check(m2n__cuda_current() == 1);
	m2n__cuda_leave(other);
	check(m2n__cuda_current() == -1);
	m2n__cuda_close(other);
}

static void *use_all(void *arg)
{
	static const char *const none[] = {NULL};
	struct m2n__cuda *cuda = arg;
	struct m2n__mem *mem;
	uint64_t value = 5;
	void *pinned;

	for (unsigned i = 0; i < 20; i++) {
		check(!m2n__mem_alloc_cuda(cuda, 100, &mem));
		check(!m2n__cuda_write(cuda, mem->base, &value, sizeof(value)));
		value = 0;
		check(!m2n__cuda_read(cuda, &value, mem->base, sizeof(value)) && value == 5);
		check(!m2n__cuda_pinned_alloc(cuda, 100, &pinned));
		check(!m2n__cuda_load(cuda, NULL, none));
		m2n__cuda_pinned_free(cuda, pinned);
		m2n__mem_free(mem);
	}
	return NULL;
}

/* Everything at once from several threads, while one captures in the strictest mode. */
static void leaves_captures_alone(void)
{
	struct m2n__cuda *cuda = open_device(0);
	const struct m2n__cuda_driver *d = cuda->driver;
	pthread_t threads[3];
	m2n__cu_stream stream;
	m2n__cu_ptr at = 0;
	void *graph = NULL;

	check(!m2n__cuda_enter(cuda));
	stream = new_stream(cuda, M2N__CU_STREAM_NON_BLOCKING);
	check_cu(d->stream_begin_capture(stream, M2N__CU_CAPTURE_MODE_GLOBAL));
	for (unsigned i = 0; i < 3; i++)
		check(!pthread_create(&threads[i], NULL, use_all, cuda));
	use_all(cuda);
	for (unsigned i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
	check_cu(d->stream_end_capture(stream, &graph));
	check_cu(d->graph_destroy(graph));
	/* It could have gone wrong: the driver's own call does. */
	check_cu(d->stream_begin_capture(stream, M2N__CU_CAPTURE_MODE_GLOBAL));
	check(d->mem_alloc(&at, 100) == M2N__CU_CAPTURE_UNSUPPORTED);
	check(d->stream_end_capture(stream, &graph) == M2N__CU_CAPTURE_INVALIDATED && !graph);
	m2n__cuda_leave(cuda);
	m2n__cuda_close(cuda);
}

static void launch_in_spoiled_capture(void)
{
	struct m2n__cuda *cuda = open_device(0);
	const struct m2n__cuda_driver *d = cuda->driver;
	struct m2n_double_fill_args args = {0};
	m2n__cu_stream stream;
	void *graph = NULL;

	check(!m2n__cuda_load(cuda, image, names) && !m2n__cuda_enter(cuda));
	stream = new_stream(cuda, 0);
	check_cu(d->stream_begin_capture(stream, M2N__CU_CAPTURE_MODE_RELAXED));
	check(m2n__cuda_launch(cuda, 0, 1, 1, 0, NULL, &args) == -EINVAL);
	check_text("CUDA_ERROR_STREAM_CAPTURE_IMPLICIT");
	check(m2n__cuda_launch(cuda, 0, 1, 1, 0, stream, &args) == -EINVAL);
	check_text("CUDA_ERROR_STREAM_CAPTURE_INVALIDATED");
	check(d->stream_end_capture(stream, &graph) == M2N__CU_CAPTURE_INVALIDATED);
	check(!m2n__cuda_launch(cuda, 0, 1, 1, 0, stream, &args)); /* all is well again */
	m2n__cuda_leave(cuda);
	m2n__cuda_close(cuda);
}

/* What of all this holds on the real driver, too. */
static void real_device(void)
{
	struct m2n__cuda *cuda = open_device(0);
	struct m2n__mem *mem, *part;
	uint64_t value = 77, got = 0, *pinned;
	void *base;

	check(cuda->name[0] && cuda->major >= 7 && cuda->n_multiprocessors > 0);
	check(cuda->driver_version >= M2N__CUDA_MIN_DRIVER && m2n__cuda_current() == -1);
	check(!m2n__mem_alloc_cuda(cuda, MIB, &mem));
	base = mem->base;
	check(!m2n__cuda_write(cuda, (char *)base + 8, &value, 8));
	check(!m2n__cuda_read(cuda, &got, (char *)base + 8, 8) && got == 77);
	check(!m2n__cuda_read(cuda, &got, base, 8) && got == 0);
	check(m2n__cuda_pointer(cuda, base, NULL) == M2N__POINTER_DEVICE);
	check(m2n__cuda_pointer(cuda, &value, NULL) == M2N__POINTER_HOST);
	check(!m2n__cuda_pinned_alloc(cuda, 8, &base));
	pinned = base;
	check(*pinned == 0 && m2n__cuda_pointer(cuda, base, NULL) == M2N__POINTER_PINNED);
	refuse(cuda, base, 8, "pinned host memory");
	m2n__cuda_pinned_free(cuda, base);
	refuse(cuda, &value, 8, "is host memory");
	base = mem->base;
	check(!m2n__mem_wrap_cuda(cuda, (char *)base + 5, 100, &part));
	m2n__mem_free(part);
	refuse(cuda, base, 2 * MIB + 1, "ends after 2097152");
	m2n__mem_free(mem);
	refuse(cuda, base, 8, "freed");
	check(m2n__cuda_current() == -1);
	m2n__cuda_close(cuda);
}

/* clang-format off */
static struct cuda_case cases[] = {
	{"opens a device", opens, {"M2N_DOUBLE_DEVICES=2"}, 0},
	{"knows what a device lacks", knows_what_is_missing, {"M2N_DOUBLE_ATTRIBUTES=102=0,117=0,118=200,124=0"}, 0},
	{"needs unified addressing", needs_unified_addressing, {"M2N_DOUBLE_ATTRIBUTES=41=0"}, 0},
	{"refuses an old driver", refuses_old_driver, {"M2N_DOUBLE_DRIVER_VERSION=11040"}, 0},
	{"says that there is no device", says_no_device, {"M2N_DOUBLE_DEVICES=0"}, 0},
	{"says that there is no library", says_no_library, {NULL}, 0},
	{"says which symbol is missing", says_missing_symbol, {NULL}, 0},
	{"a fork ends it", ends_with_fork, {NULL}, 0},
	{"opening survives every error", open_survives_errors, {NULL}, 0},
	{"loads and launches kernels", loads_and_launches, {NULL}, 0},
	{"loading refuses", load_refuses, {NULL}, 0},
	{"a broken device says so", broken_device, {NULL}, 0},
	{"a device, real or not", real_device, {NULL}, 1},
	{"allocates zeroed memory", allocates, {NULL}, 1},
	{"runs out of memory with figures", runs_out_of_memory, {"M2N_DOUBLE_DEVICE_MEMORY=8388608"}, 0},
	{"pins memory", pins, {NULL}, 0},
	{"others do not wait for a kernel", others_do_not_wait, {NULL}, 0},
	{"gives back when memory is short", gives_back_when_short, {"M2N_DOUBLE_DEVICE_MEMORY=8388608"}, 0},
	{"tells pointers apart", tells_pointers_apart, {"M2N_DOUBLE_DEVICES=2"}, 0},
	{"wraps the user's memory", wraps, {"M2N_DOUBLE_DEVICES=2"}, 0},
	{"wraps memory in pieces", wraps_pieces, {NULL}, 1},
	{"writes and reads", writes_and_reads, {"M2N_DOUBLE_DELAY_US=200"}, 0},
	{"restores the context", restores_context, {"M2N_DOUBLE_DEVICES=2"}, 0},
	{"leaves captures alone", leaves_captures_alone, {"M2N_DOUBLE_DELAY_US=20"}, 1},
	{"launches in a spoiled capture", launch_in_spoiled_capture, {NULL}, 0},
};
/* clang-format on */

int main(int argc, char **argv)
{
	program = argv[0];
	if (argc == 2 && !strcmp(argv[1], "no-library"))
		return without_library();
	if (argc == 2 && !strcmp(argv[1], "missing-symbol"))
		return with_part_of_library();
	return run_cases("cuda", cases, sizeof(cases) / sizeof(cases[0]), 0);
}
