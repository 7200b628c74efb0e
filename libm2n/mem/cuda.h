/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One CUDA device of a context: the driver's functions, the device's primary context (shared with
 * the CUDA runtime and so with every framework), the kernels' module, and a stream of the
 * library's own for control data.
 *
 * Device memory is struct m2n__mem of kind M2N__MEM_CUDA; `base` is a device address. Pinned
 * memory is host memory that the device reads and writes; unified addressing gives it one
 * address on both sides, and a device without it is refused.
 *
 * Every function makes the device's context current for its own duration and restores what was.
 * All are thread-safe. None is called on the data path but m2n__cuda_launch().
 */
#ifndef M2N_CUDA_H
#define M2N_CUDA_H

#include "mem/cuda_driver.h"
#include "mem/mem.h"

#define M2N__CUDA_MIN_DRIVER 12000 /* 12.0, as cuDriverGetVersion() tells it */
#define M2N__CUDA_MAX_KERNELS 32

struct m2n__cuda_shared;

struct m2n__cuda {
	const struct m2n__cuda_driver *driver; /* of the process; never unloaded */
	int ordinal;
	m2n__cu_device device;
	m2n__cu_context context;
	struct m2n__cu_uuid uuid;
	char name[64];
	int major, minor; /* compute capability */
	int n_multiprocessors;
	int driver_version;
	int has_fd_handles;    /* VMM memory can be passed as a file descriptor */
	int has_dma_buf;       /* cuMemGetHandleForAddressRange() */
	int needs_flush;       /* writes of a NIC are not ordered for kernels of this device */
	int can_flush;         /* cuFlushGPUDirectRDMAWrites() works */
	m2n__cu_module module; /* NULL until m2n__cuda_load() */
	m2n__cu_function kernels[M2N__CUDA_MAX_KERNELS];
	m2n__cu_stream stream; /* non-blocking, for control data */
	struct m2n__cuda_shared *shared; /* with others in this process */
};

/*
 * Opens the driver. 0; M2N_ERR_BACKEND with the reason and the remedy (no library, no device,
 * driver older than M2N__CUDA_MIN_DRIVER). `*driver` is constant.
 */
int m2n__cuda_driver(const struct m2n__cuda_driver **driver);
/* Has this process used CUDA already? Then the ordinal of the calling thread's device, else -1. */
int m2n__cuda_current(void);
/*
 * Opens device `ordinal`. 0; -EINVAL (no such device, the range in the text); M2N_ERR_BACKEND
 * (device without unified addressing, driver as above); -ENOMEM.
 */
int m2n__cuda_open(int ordinal, struct m2n__cuda **cuda);
/* NULL is allowed. Waits for the device only when nobody else in the process has kernels on it. */
void m2n__cuda_close(struct m2n__cuda *cuda);

/*
 * Loads an image (fatbin, NULL-terminated names) and looks up its kernels. 0; M2N_ERR_BACKEND
 * (image NULL: built without nvcc; no code for this device, with its compute capability). Once
 * loaded, later calls do nothing.
 */
int m2n__cuda_load(struct m2n__cuda *cuda, const void *image, const char *const *names);

/*
 * The driver's result as an error of ours, with its name and words behind `what`: -ENOMEM; -EINVAL
 * for a wrong value, handle or state (captures too); -ENOTSUP; else M2N_ERR_BACKEND.
 */
int m2n__cuda_error(const struct m2n__cuda *cuda, m2n__cu_result result, const char *what, ...)
	__attribute__((format(printf, 3, 4)));

/* Makes the device's context current; leave() restores. 0 or an error with text. */
int m2n__cuda_enter(const struct m2n__cuda *cuda);
void m2n__cuda_leave(const struct m2n__cuda *cuda);
/*
 * The same for what must not disturb a stream capture, of this thread or another: what the driver
 * calls potentially unsafe (queries of events, allocations) would invalidate it. `mode` is kept
 * for leave.
 */
int m2n__cuda_enter_relaxed(const struct m2n__cuda *cuda, int *mode);
void m2n__cuda_leave_relaxed(const struct m2n__cuda *cuda, int *mode);

/*
 * Queues kernel number `kernel` of m2n__cuda_load() with one struct as its parameter. Inside
 * enter/leave. 0; M2N_ERR_BACKEND with the driver's words; in a capture -EINVAL when the driver
 * says that it cannot be captured.
 */
int m2n__cuda_launch(const struct m2n__cuda *cuda, unsigned kernel, unsigned n_blocks,
	unsigned n_threads, size_t shared_bytes, void *stream, const void *args);

/*
 * Device memory, zeroed before the call returns; can be passed to other processes, so it has whole
 * blocks of 2 MiB to itself. -ENOMEM with size, free and total; -EINVAL for 0. The driver's free
 * waits for all kernels, also for one that waits for us; so, while anybody in the process has
 * kernels loaded, m2n__mem_free() keeps the memory for the next who asks for as much: no kernel may
 * use it any more. m2n__cuda_trim() gives it back.
 */
int m2n__mem_alloc_cuda(struct m2n__cuda *cuda, size_t bytes, struct m2n__mem **mem);
/*
 * The user's device memory. -EINVAL: not an address of this device (host memory, another device,
 * freed: the text says which), or the range leaves its allocation.
 */
int m2n__mem_wrap_cuda(struct m2n__cuda *cuda, void *base, size_t bytes, struct m2n__mem **mem);
/* Pinned host memory, zeroed, at the same address on the device. -ENOMEM; -EINVAL for 0. Given
 * back as device memory is. */
int m2n__cuda_pinned_alloc(struct m2n__cuda *cuda, size_t bytes, void **at);
void m2n__cuda_pinned_free(struct m2n__cuda *cuda, void *at); /* NULL is allowed */

/* Gives kept memory to the driver. Waits for the device: not under a lock that progress needs. */
void m2n__cuda_trim(struct m2n__cuda *cuda);

enum m2n__pointer {
	M2N__POINTER_HOST = 0,  /* pageable memory, or unknown to CUDA */
	M2N__POINTER_PINNED = 1,
	M2N__POINTER_DEVICE = 2, /* of this device */
	M2N__POINTER_OTHER = 3, /* of another device */
};
/* What an address is; *ordinal (may be NULL): of its device. A look-up in the driver: ~100 ns. */
enum m2n__pointer m2n__cuda_pointer(const struct m2n__cuda *cuda, const void *at, int *ordinal);

/*
 * Copies control data (link tables, maps) between host and device in order on the library's own
 * stream, and waits. Never payload. 0 or an error with text. Allowed while others capture.
 */
int m2n__cuda_write(struct m2n__cuda *cuda, void *to, const void *from, size_t bytes);
int m2n__cuda_read(struct m2n__cuda *cuda, void *to, const void *from, size_t bytes);

#endif
