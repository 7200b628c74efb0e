/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The GPUs of this machine, as libm2n sees them: each with what decides how its memory can be
 * reached, and whether the kernels of this build run on it. Where there is none, why.
 */
#include "info_gpu.h"

#include <stdio.h>
#include <string.h>

#include <m2n/status.h>

#include "info_devices.h"
#include "kernel/gpu.h"
#include "mem/cuda.h"

struct m2n__cuda *info_gpu_enter(void)
{
	struct m2n__cuda *cuda = NULL;

	if (m2n__cuda_open(0, &cuda) != 0)
		return NULL;
	if (m2n__cuda_enter(cuda) == 0)
		return cuda;
	m2n__cuda_close(cuda);
	return NULL;
}

void info_gpu_leave(struct m2n__cuda *cuda)
{
	if (cuda == NULL)
		return;
	m2n__cuda_leave(cuda);
	m2n__cuda_close(cuda);
}

static void put_uuid(json_t *row, const struct m2n__cuda *cuda)
{
	char text[48] = "GPU-";
	size_t used = 4;

	for (unsigned i = 0; i < sizeof(cuda->uuid.bytes); i++)
		used += (size_t)snprintf(text + used, sizeof(text) - used, "%s%02x",
			i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "",
			(unsigned char)cuda->uuid.bytes[i]);
	info_put(row, "uuid", info_text(text));
}

static void put_memory(json_t *row, const struct m2n__cuda *cuda)
{
	size_t free_bytes = 0, total = 0;

	if (m2n__cuda_enter(cuda) == 0) {
		if (cuda->driver->mem_info(&free_bytes, &total) != M2N__CU_SUCCESS)
			free_bytes = total = 0;
		m2n__cuda_leave(cuda);
	}
	info_put(row, "memory_bytes", json_integer((json_int_t)total));
	info_put(row, "memory_free_bytes", json_integer((json_int_t)free_bytes));
}

static json_t *get_device(int ordinal)
{
	json_t *row = info_need(json_object());
	struct m2n__cuda *cuda = NULL;
	int status = m2n__cuda_open(ordinal, &cuda);
	char capability[16];

	info_put(row, "ordinal", json_integer(ordinal));
	info_put(row, "error", status != 0 ? info_text(m2n_error_text()) : json_null());
	if (status != 0)
		return row;
	snprintf(capability, sizeof(capability), "%d.%d", cuda->major, cuda->minor);
	info_put(row, "name", info_text(cuda->name));
	info_put(row, "compute_capability", info_text(capability));
	info_put(row, "multiprocessors", json_integer(cuda->n_multiprocessors));
	put_uuid(row, cuda);
	put_memory(row, cuda);
	info_put(row, "fd_handles", json_boolean(cuda->has_fd_handles));
	info_put(row, "dma_buf", json_boolean(cuda->has_dma_buf));
	info_put(row, "needs_flush", json_boolean(cuda->needs_flush));
	info_put(row, "can_flush", json_boolean(cuda->can_flush));
	status = m2n__cuda_load(cuda, m2n__gpu_image, m2n__gpu_kernel_names);
	info_put(row, "kernels_error", status != 0 ? info_text(m2n_error_text()) : json_null());
	m2n__cuda_close(cuda);
	return row;
}

json_t *info_gpus(void)
{
	json_t *info = info_need(json_object()), *devices = info_need(json_array());
	const struct m2n__cuda_driver *driver = NULL;
	int version = 0, n = 0, status = m2n__cuda_driver(&driver);
	char text[32];

	info_put(info, "kernels_built", json_boolean(m2n__gpu_image != NULL));
	info_put(info, "error", status != 0 ? info_text(m2n_error_text()) : json_null());
	if (status == 0 && driver->driver_version(&version) == M2N__CU_SUCCESS) {
		snprintf(text, sizeof(text), "%d.%d", version / 1000, version % 1000 / 10);
		info_put(info, "driver_version", info_text(text));
	} else {
		info_put(info, "driver_version", json_null());
	}
	if (status == 0 && driver->device_count(&n) != M2N__CU_SUCCESS)
		n = 0;
	for (int i = 0; i < n; i++)
		json_array_append_new(devices, get_device(i));
	info_put(info, "devices", devices);
	return info;
}

static const char *text_of(const json_t *object, const char *name)
{
	const char *text = json_string_value(json_object_get(object, name));

	return text ? text : "";
}

static long long number_of(const json_t *object, const char *name)
{
	return json_integer_value(json_object_get(object, name));
}

static const char *yes_no(const json_t *row, const char *name)
{
	return json_is_true(json_object_get(row, name)) ? "yes" : "no";
}

static void print_device(const json_t *row)
{
	char name[32];

	snprintf(name, sizeof(name), "GPU %lld", number_of(row, "ordinal"));
	if (text_of(row, "error")[0]) {
		printf("  %-12s not usable: %s\n", name, text_of(row, "error"));
		return;
	}
	printf("  %-12s %s, compute capability %s, %lld multiprocessors, %lld of %lld MiB free\n",
		name, text_of(row, "name"), text_of(row, "compute_capability"),
		number_of(row, "multiprocessors"), number_of(row, "memory_free_bytes") >> 20,
		number_of(row, "memory_bytes") >> 20);
	printf("  %-12s %s\n", "", text_of(row, "uuid"));
	printf("  %-12s memory as file descriptors: %s; dma-buf: %s; a NIC's writes need a flush: "
	       "%s, which the driver has: %s\n",
		"", yes_no(row, "fd_handles"), yes_no(row, "dma_buf"), yes_no(row, "needs_flush"),
		yes_no(row, "can_flush"));
	if (text_of(row, "kernels_error")[0])
		printf("  %-12s no kernels: %s\n", "", text_of(row, "kernels_error"));
}

void info_print_gpus(const json_t *info)
{
	const json_t *devices = json_object_get(info, "devices"), *row;
	size_t i;

	printf("\nGPUs\n");
	printf("  %-12s %s\n", "kernels",
		json_is_true(json_object_get(info, "kernels_built"))
			? "built"
			: "not built: libm2n was configured without nvcc or with -Dcuda=disabled");
	if (text_of(info, "driver_version")[0])
		printf("  %-12s for CUDA %s\n", "driver", text_of(info, "driver_version"));
	if (text_of(info, "error")[0])
		printf("  %-12s %s\n", "none", text_of(info, "error"));
	json_array_foreach(devices, i, row) print_device(row);
}
