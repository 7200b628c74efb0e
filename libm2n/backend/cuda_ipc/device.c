/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Devices that reach each other, and what lies at a device address. Access between two devices
 * may in theory be allowed in one direction only: both are asked for.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "backend/cuda_ipc/cuda_ipc.h"
#include "util/error.h"

static int reach_each_other(
	const struct m2n__cuda_driver *driver, m2n__cu_device one, m2n__cu_device other)
{
	int there = 0, back = 0;

	return !driver->device_can_access_peer(&there, one, other) && there &&
	       !driver->device_can_access_peer(&back, other, one) && back;
}

void m2n__ipc_devices_find(const struct m2n__cuda *cuda, struct ipc_devices *devices)
{
	const struct m2n__cuda_driver *driver = cuda->driver;
	m2n__cu_device device;
	int n = 0;

	devices->n = 1;
	devices->ordinal[0] = cuda->ordinal;
	devices->uuid[0] = cuda->uuid;
	if (driver->device_count(&n))
		return;
	for (int i = 0; i < n && devices->n < IPC_MAX_DEVICES; i++) {
		if (i == cuda->ordinal || driver->device_get(&device, i) ||
			!reach_each_other(driver, cuda->device, device) ||
			driver->device_uuid(&devices->uuid[devices->n], device))
			continue;
		devices->ordinal[devices->n++] = i;
	}
}

int m2n__ipc_devices_ordinal(const struct ipc_devices *devices, const struct m2n__cu_uuid *uuid)
{
	for (unsigned i = 0; i < devices->n; i++)
		if (!memcmp(&devices->uuid[i], uuid, sizeof(*uuid)))
			return devices->ordinal[i];
	return -1;
}

int m2n__ipc_allocation(
	const struct m2n__cuda *cuda, uint64_t at, uint64_t *base, uint64_t *bytes, int *is_legacy)
{
	const struct m2n__cuda_driver *driver = cuda->driver;
	uint64_t legacy = 0; /* more than any driver's type of this attribute */
	m2n__cu_ptr from = 0;
	size_t n = 0;
	int rc = driver->mem_range(&from, &n, at);

	if (rc || at < from || at - from >= n)
		return m2n__error(-EINVAL,
			"cuda_ipc: no device memory at %#" PRIx64 ": it was freed, or it is not "
			"memory of device %d (%s)",
			at, cuda->ordinal, cuda->name);
	rc = driver->pointer_attribute(&legacy, M2N__CU_PTR_IS_LEGACY_IPC, at);
	if (rc)
		return m2n__cuda_error(
			cuda, rc, "cuda_ipc: what kind of memory is at %#" PRIx64, at);
	*base = from;
	*bytes = n;
	*is_legacy = legacy != 0;
	return 0;
}

int m2n__ipc_check_range(const struct m2n__cuda *cuda, uint64_t at, uint64_t bytes)
{
	uint64_t base = 0, n = 0, left = bytes, next = at;
	int is_legacy = 0, rc;

	for (;;) {
		rc = m2n__ipc_allocation(cuda, next, &base, &n, &is_legacy);
		if (rc)
			return rc;
		if (left <= n - (next - base))
			return 0;
		/* Neighbours of cuMemAlloc() have nothing to do with each other. */
		if (is_legacy)
			return m2n__error(-EINVAL,
				"cuda_ipc: %" PRIu64 " bytes at %#" PRIx64
				" leave their allocation "
				"of %" PRIu64 " bytes at %#" PRIx64,
				bytes, at, n, base);
		left -= n - (next - base);
		next = base + n;
	}
}

/* Memory of cuMemCreate() is reached by whom its mappings allow. */
static int allow(const struct m2n__cuda *cuda, uint64_t at, uint64_t bytes)
{
	const struct m2n__cu_access access = {{1, cuda->ordinal}, 3};
	uint64_t base = 0, n = 0;
	int is_legacy, rc;

	for (uint64_t next = at; next - at < bytes; next = base + n) {
		rc = m2n__ipc_allocation(cuda, next, &base, &n, &is_legacy);
		if (rc)
			return rc;
		rc = cuda->driver->vmm_access(base, n, &access, 1);
		if (rc)
			return m2n__cuda_error(cuda, rc,
				"cuda_ipc: device %d may not reach memory at %#" PRIx64,
				cuda->ordinal, base);
	}
	return 0;
}

int m2n__ipc_reach(const struct m2n__cuda *cuda, int ordinal, uint64_t at, uint64_t bytes)
{
	const struct m2n__cuda_driver *driver = cuda->driver;
	uint64_t base = 0, n = 0;
	m2n__cu_context context;
	m2n__cu_device device;
	int is_legacy, rc;

	if (ordinal == cuda->ordinal)
		return 0;
	rc = m2n__ipc_allocation(cuda, at, &base, &n, &is_legacy);
	if (rc)
		return rc;
	if (!is_legacy)
		return allow(cuda, at, bytes);
	rc = driver->device_get(&device, ordinal);
	if (!rc)
		rc = driver->primary_retain(&context, device);
	if (rc)
		return m2n__cuda_error(cuda, rc, "cuda_ipc: device %d", ordinal);
	rc = driver->ctx_enable_peer(context, 0);
	driver->primary_release(device); /* whose memory it is holds it as well */
	if (rc && rc != M2N__CU_PEER_ACCESS_ALREADY_ENABLED)
		return m2n__cuda_error(cuda, rc,
			"cuda_ipc: device %d cannot reach device %d (nvidia-smi topo -p2p r shows "
			"which can); give ranks devices that can, or another backend",
			cuda->ordinal, ordinal);
	return 0;
}
