/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What tests may ask of the stand-in of libcuda.so.1 and tell it, beside the driver's own
 * functions. A program does not link it: m2n_double_symbol() finds it once the library under test
 * has loaded it, and finds nothing on the real driver. docs/testing.md lists the environment.
 */
#ifndef M2N_DOUBLES_CUDA_DOUBLE_H
#define M2N_DOUBLES_CUDA_DOUBLE_H

#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>

/* Since the process began; copies and fills of a graph count each time that it is launched. */
struct m2n_double_counters {
	uint64_t n_to_device, to_device_bytes; /* cuMemcpyHtoD */
	uint64_t n_to_host, to_host_bytes;     /* cuMemcpyDtoH */
	uint64_t n_on_device, on_device_bytes; /* cuMemcpyDtoD */
	uint64_t n_fills, fill_bytes;          /* cuMemset */
	uint64_t n_launches;                   /* of kernels, those of graphs too */
	uint64_t n_graph_launches;
	uint64_t n_host_waits; /* calls in which the host waits for the device; frees wait, too */
};

/* Kernels that the stand-in has of its own, for tests of streams and of itself. */
struct m2n_double_fill_args { /* "m2n_double_fill": n words at `at` become value, value + 1 ... */
	uint64_t at, n;
	uint32_t value, reserved;
};
struct m2n_double_add_args { /* "m2n_double_add": n words at `to` grow by those at `from` */
	uint64_t to, from, n;
};
struct m2n_double_await_args { /* "m2n_double_await": until the u64 at `at` is >= value */
	uint64_t at, value;
};

/* The functions; call them as M2N_DOUBLE(m2n_double_blocks)(). */
void m2n_double_read_counters(struct m2n_double_counters *counters);
/* Calls of a driver function so far, by exported name; UINT64_MAX: no such function. */
uint64_t m2n_double_calls(const char *symbol);
/*
 * Calls that are to fail: "symbol:n", "symbol:n:result" or "symbol:n+:result", separated by commas;
 * n counts from the next call on, + means that one and all later ones; the result is 2
 * (out of memory) unless given. NULL or "" forgets all. 0, or -1: not understood.
 * Results 700-799 stick to the process as with the driver, until "" takes them back.
 */
int m2n_double_fail(const char *rules);
/*
 * Calls that do nothing and succeed, to show that they are needed: "name:n" or "name:n+", where the
 * name is a driver's function without outputs (cuStreamWaitEvent, cuEventRecord ...) or a kernel.
 * In a capture the call counts, not the launches of the graph.
 */
int m2n_double_leave_out(const char *rules);
/* Blocks of device memory, pinned memory and mappings of other processes' that are alive. */
size_t m2n_double_blocks(void);

static inline void *m2n_double_symbol(const char *name)
{
	void *handle = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD);
	void *symbol = handle ? dlsym(handle, name) : NULL;

	if (handle)
		dlclose(handle);
	return symbol;
}
#define M2N_DOUBLE(function) ((__typeof__(&(function)))m2n_double_symbol(#function))

#endif
