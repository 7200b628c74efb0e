/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opening the CUDA driver. libcuda.so.1 comes with the kernel module, not with the toolkit, and
 * is there only where a GPU may be: so it is opened when a program first asks for a device, and
 * stays open, since CUDA cannot be taken back from a process.
 *
 * Every symbol of the list is in 12.0, so that the version, asked first, is what an older driver
 * is refused with.
 */
#include "mem/cuda.h"

#include <dlfcn.h>
#include <pthread.h>
#include <string.h>

#include "util/error.h"

#define LIBRARY "libcuda.so.1"

struct symbol {
	const char *name;
	size_t offset; /* in struct m2n__cuda_driver */
	int is_optional;
};

#define REQUIRED(field, symbol, params) {symbol, offsetof(struct m2n__cuda_driver, field), 0},
#define OPTIONAL(field, symbol, params) {symbol, offsetof(struct m2n__cuda_driver, field), 1},

static const struct symbol symbols[] = {
	M2N__CUDA_DRIVER_REQUIRED(REQUIRED)
	M2N__CUDA_DRIVER_OPTIONAL(OPTIONAL)
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct m2n__cuda_driver driver;
static int is_open;

static int check_version(void *handle)
{
	m2n__cu_result (*get)(int *) = NULL;
	void *symbol = dlsym(handle, "cuDriverGetVersion");
	int version = 0;

	memcpy(&get, &symbol, sizeof(get));
	if (!get || get(&version))
		return m2n__error(M2N_ERR_BACKEND, "cuda: " LIBRARY " does not tell its version; "
			"reinstall NVIDIA's driver");
	if (version < M2N__CUDA_MIN_DRIVER)
		return m2n__error(M2N_ERR_BACKEND, "cuda: the driver is for CUDA %d.%d and %d.%d "
			"is needed; install a newer driver of NVIDIA's", version / 1000,
			version % 1000 / 10, M2N__CUDA_MIN_DRIVER / 1000,
			M2N__CUDA_MIN_DRIVER % 1000 / 10);
	return 0;
}

static int look_up(void *handle)
{
	for (size_t i = 0; i < sizeof(symbols) / sizeof(symbols[0]); i++) {
		void *symbol = dlsym(handle, symbols[i].name);

		if (!symbol && !symbols[i].is_optional)
			return m2n__error(M2N_ERR_BACKEND, "cuda: " LIBRARY " has no %s; install "
				"a driver of NVIDIA's for CUDA %d.%d or newer", symbols[i].name,
				M2N__CUDA_MIN_DRIVER / 1000, M2N__CUDA_MIN_DRIVER % 1000 / 10);
		memcpy((char *)&driver + symbols[i].offset, &symbol, sizeof(symbol));
	}
	return 0;
}

/* What to do about results of cuInit(). */
static const char *remedy(m2n__cu_result result)
{
	switch (result) {
	case M2N__CU_NOT_INITIALIZED:
		return "; a process that forks must not have used CUDA before";
	case M2N__CU_NO_DEVICE:
		return "; see nvidia-smi, and CUDA_VISIBLE_DEVICES";
	case M2N__CU_SYSTEM_NOT_READY:
		return "; is nvidia-fabricmanager running?";
	case M2N__CU_DRIVER_MISMATCH:
		return "; the kernel module is of another version: load the right one, or reboot";
	default:
		return "; see nvidia-smi";
	}
}

static int open_driver(void)
{
	void *handle = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
	const char *name = NULL, *text = NULL;
	m2n__cu_result result;
	int ret;

	if (!handle)
		return m2n__error(M2N_ERR_BACKEND, "cuda: " LIBRARY " cannot be loaded: %s; "
			"install NVIDIA's driver", dlerror());
	ret = check_version(handle);
	if (!ret)
		ret = look_up(handle);
	if (ret) {
		dlclose(handle);
		return ret;
	}
	result = driver.init(0);
	if (!result) {
		is_open = 1;
		return 0;
	}
	driver.error_name(result, &name);
	driver.error_string(result, &text);
	return m2n__error(M2N_ERR_BACKEND, "cuda: cuInit: %s (%s)%s", name ? name :
		"unknown result", text ? text : "?", remedy(result));
}

int m2n__cuda_driver(const struct m2n__cuda_driver **out)
{
	int ret = 0;

	pthread_mutex_lock(&lock);
	if (!is_open)
		ret = open_driver();
	pthread_mutex_unlock(&lock);
	if (!ret)
		*out = &driver;
	return ret;
}

/* Looks for a library that somebody else has loaded: loading it here would cost a program that
 * has nothing to do with CUDA a second and some memory. */
int m2n__cuda_current(void)
{
	void *handle = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD);
	m2n__cu_result (*get_context)(m2n__cu_context *) = NULL;
	m2n__cu_result (*get_device)(m2n__cu_device *) = NULL;
	m2n__cu_context context = NULL;
	m2n__cu_device device = -1;
	void *symbol;

	if (!handle)
		return -1;
	symbol = dlsym(handle, "cuCtxGetCurrent");
	memcpy(&get_context, &symbol, sizeof(symbol));
	symbol = dlsym(handle, "cuCtxGetDevice");
	memcpy(&get_device, &symbol, sizeof(symbol));
	/* A device's handle is its ordinal: the driver promises it nowhere, NCCL and UCX rely on
	 * it. */
	if (!get_context || !get_device || get_context(&context) || !context || get_device(&device))
		device = -1;
	dlclose(handle);
	return device;
}
