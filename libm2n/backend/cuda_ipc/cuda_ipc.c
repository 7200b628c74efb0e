/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ranks of one host with a GPU each, or several on one: device memory by CUDA IPC handles and VMM
 * file descriptors, plain pointers between ranks of one process. Mapped: kernels store to the
 * peer's memory, and no processor takes part.
 *
 * Two ranks have one connection for all their channels, so host memory goes here too; an iface of
 * shm that is opened inside does it. A peer is reached when shm reaches it and the two devices
 * reach each other; both sides compute that from the same two blobs, and so agree.
 */
#include "backend/cuda_ipc/cuda_ipc.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backend/registry.h"
#include "util/error.h"

#define DRIVER_FOLDER "/proc/driver/nvidia"
#define WSL_DEVICE "/dev/dxg"

const struct m2n__backend_ops *const m2n__ipc_host = &m2n__backend_shm;

static struct m2n__iface *host_iface(struct m2n__iface *iface)
{
	return ((struct ipc_iface *)iface)->host;
}

static int ipc_open(const struct m2n__iface_params *params, struct m2n__iface **iface)
{
	struct ipc_iface *ipc;
	int rc;

	if (!params->cuda && access(DRIVER_FOLDER, F_OK) && access(WSL_DEVICE, F_OK))
		return m2n__error(M2N_ERR_BACKEND,
			"cuda_ipc: this context has no CUDA device (option CUDA_DEVICE), and "
			"NVIDIA's "
			"driver is not loaded on this machine: there is no " DRIVER_FOLDER);
	if (!params->cuda)
		return m2n__error(M2N_ERR_BACKEND,
			"cuda_ipc: this context has no CUDA device: option CUDA_DEVICE says none, "
			"or auto in a program that had not used CUDA yet; set CUDA_DEVICE to the "
			"device's number");
	ipc = calloc(1, sizeof(*ipc));
	if (!ipc)
		return m2n__error(-ENOMEM, "cuda_ipc: no memory for the iface");
	rc = m2n__ipc_importer_open(params->cuda);
	if (rc)
		goto free_iface;
	rc = m2n__ipc_host->open(params, &ipc->host);
	if (rc)
		goto close_importer;
	ipc->host->ops = m2n__ipc_host;
	ipc->iface.params = *params;
	m2n__ipc_devices_find(params->cuda, &ipc->devices);
	*iface = &ipc->iface;
	return 0;
close_importer:
	m2n__ipc_importer_close(params->cuda);
free_iface:
	free(ipc);
	return rc;
}

static void ipc_close(struct m2n__iface *iface)
{
	m2n__ipc_host->close(host_iface(iface));
	m2n__ipc_importer_close(iface->params.cuda);
	free(iface);
}

static int ipc_address(struct m2n__iface *iface, void *blob, size_t *bytes)
{
	struct ipc_iface *ipc = (struct ipc_iface *)iface;
	size_t host_bytes = IPC_HOST_BLOB_BYTES;
	struct ipc_blob b;
	int rc;

	if (*bytes < sizeof(b))
		return m2n__error(-ENOSPC, "cuda_ipc: no room for the address");
	memset(&b, 0, sizeof(b));
	b.magic = IPC_BLOB_MAGIC;
	b.n_devices = ipc->devices.n;
	memcpy(b.device, ipc->devices.uuid, ipc->devices.n * sizeof(b.device[0]));
	rc = m2n__ipc_host->address(ipc->host, b.host, &host_bytes);
	if (rc)
		return rc;
	b.host_bytes = host_bytes;
	memcpy(blob, &b, sizeof(b));
	*bytes = sizeof(b);
	return 0;
}

static int read_blob(const void *blob, size_t bytes, struct ipc_blob *b)
{
	if (bytes != sizeof(*b))
		return m2n__error(M2N_ERR_PROTOCOL, "cuda_ipc: address of %zu bytes, expected %zu",
			bytes, sizeof(*b));
	memcpy(b, blob, sizeof(*b));
	if (b->magic != IPC_BLOB_MAGIC || b->n_devices < 1 || b->n_devices > IPC_MAX_DEVICES ||
		b->host_bytes > sizeof(b->host))
		return m2n__error(M2N_ERR_PROTOCOL, "cuda_ipc: address with fields out of range");
	return 0;
}

/* Each side's list has the other's device. */
static int see_each_other(const struct ipc_devices *mine, const struct ipc_blob *theirs)
{
	int seen = 0;

	for (unsigned i = 0; i < theirs->n_devices; i++)
		seen |= !memcmp(&theirs->device[i], &mine->uuid[0], sizeof(mine->uuid[0]));
	return seen && m2n__ipc_devices_ordinal(mine, &theirs->device[0]) >= 0;
}

static int ipc_reaches(struct m2n__iface *iface, const void *blob, size_t bytes)
{
	struct ipc_iface *ipc = (struct ipc_iface *)iface;
	struct ipc_blob b;

	return read_blob(blob, bytes, &b) == 0 && see_each_other(&ipc->devices, &b) &&
	       m2n__ipc_host->reaches(ipc->host, b.host, b.host_bytes);
}

static int ipc_connect(
	struct m2n__iface *iface, const void *blob, size_t bytes, struct m2n__ep **ep)
{
	struct ipc_blob b;
	struct ipc_ep *e;
	int rc = read_blob(blob, bytes, &b);

	if (rc)
		return rc;
	e = calloc(1, sizeof(*e));
	if (!e)
		return m2n__error(-ENOMEM, "cuda_ipc: no memory for a connection");
	rc = m2n__ipc_host->connect(host_iface(iface), b.host, b.host_bytes, &e->host);
	if (rc) {
		free(e);
		return rc;
	}
	e->host->ops = m2n__ipc_host;
	e->ep.iface = iface;
	*ep = &e->ep;
	return 0;
}

static void ipc_disconnect(struct m2n__ep *ep)
{
	m2n__ipc_host->disconnect(((struct ipc_ep *)ep)->host);
	free(ep);
}

static void ipc_notify(struct m2n__ep *ep)
{
	m2n__ipc_host->notify(((struct ipc_ep *)ep)->host);
}

static void ipc_doze(struct m2n__iface *iface, int change)
{
	m2n__ipc_host->doze(host_iface(iface), change);
}

static uint32_t ipc_arm(struct m2n__iface *iface)
{
	return m2n__ipc_host->arm(host_iface(iface));
}

static void ipc_wait(struct m2n__iface *iface, uint32_t ticket, int64_t timeout_ns)
{
	m2n__ipc_host->wait(host_iface(iface), ticket, timeout_ns);
}

static void ipc_disarm(struct m2n__iface *iface)
{
	m2n__ipc_host->disarm(host_iface(iface));
}

const struct m2n__backend_ops m2n__backend_cuda_ipc = {
	.name = "cuda_ipc",
	.about = "ranks of one host with GPUs: kernels store straight into the peer's memory",
	.priority = 95,
	.caps = M2N__CAP_MAPPED | M2N__CAP_HOST_MEMORY | M2N__CAP_CUDA_MEMORY | M2N__CAP_SLEEP,
	.open = ipc_open,
	.close = ipc_close,
	.address = ipc_address,
	.reaches = ipc_reaches,
	.connect = ipc_connect,
	.disconnect = ipc_disconnect,
	.reg = m2n__ipc_reg,
	.dereg = m2n__ipc_dereg,
	.export_key = m2n__ipc_export,
	.import_key = m2n__ipc_import,
	.release_key = m2n__ipc_release,
	.notify = ipc_notify,
	.doze = ipc_doze,
	.arm = ipc_arm,
	.wait = ipc_wait,
	.disarm = ipc_disarm,
};
