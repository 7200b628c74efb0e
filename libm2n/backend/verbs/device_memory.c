/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Registration of GPU memory, for the device to read and write it over PCIe without the host. Two
 * ways: the GPU's driver exports the range as a dma-buf, which the kernel's RDMA core imports; or
 * the module nvidia-peermem lets the usual registration take device addresses. The first is the
 * way of current kernels and drivers, the second is for those that lack it. Which one it is, and
 * why not the other, is told once for each rail.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "backend/common/gpu_flush.h"
#include "backend/verbs/verbs.h"
#include "mem/cuda.h"
#include "util/error.h"

#define PCIE_MAPPING 1            /* CU_MEM_RANGE_FLAG_DMA_BUF_MAPPING_TYPE_PCIE */
#define PCIE_MAPPING_DRIVER 12080 /* that knows it */
#define PEER_MODULE "/sys/module/nvidia_peermem"
#define WHY_BYTES 192

/* What the driver exported of a memory, or why it did not. */
struct dma_buf {
	int fd;
	uint64_t offset; /* of the memory in it */
	char why[WHY_BYTES];
};

/* A dma-buf has whole pages of the host. */
static void export_dma_buf(
	const struct m2n__cuda *cuda, const struct m2n__mem *mem, struct dma_buf *buf)
{
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), at = (uintptr_t)mem->base;
	uint64_t from = at / page * page, end = (at + mem->bytes + page - 1) / page * page;
	unsigned flags = cuda->driver_version >= PCIE_MAPPING_DRIVER ? PCIE_MAPPING : 0;
	int rc;

	buf->offset = at - from;
	rc = cuda->driver->range_handle(
		&buf->fd, from, end - from, M2N__CU_RANGE_HANDLE_DMA_BUF, flags);
	/* Where the GPU hangs on another bus there is no mapping by PCIe. */
	if (rc && flags)
		rc = cuda->driver->range_handle(
			&buf->fd, from, end - from, M2N__CU_RANGE_HANDLE_DMA_BUF, 0);
	if (!rc)
		return;
	buf->fd = -1;
	(void)m2n__cuda_error(cuda, rc, "the driver exports no dma-buf");
	snprintf(buf->why, sizeof(buf->why), "%s", m2n_error_text());
}

static int prepare(const struct m2n__cuda *cuda, const struct m2n__mem *mem, struct dma_buf *buf)
{
	int rc = m2n__cuda_enter(cuda);

	if (rc)
		return m2n__error_at(rc, "verbs: GPU memory at %p", mem->base);
	if (cuda->has_dma_buf)
		export_dma_buf(cuda, mem, buf);
	else
		snprintf(buf->why, sizeof(buf->why),
			"device %d (%s) exports no dma-buf: that takes the open kernel modules of "
			"a driver from 11.7 on",
			cuda->ordinal, cuda->name);
	m2n__cuda_leave(cuda);
	return 0;
}

static void tell(
	struct verbs_iface *v, struct verbs_rail *rail, enum verbs_gpu way, const char *why)
{
	if (rail->told_gpu & 1u << way)
		return;
	rail->told_gpu |= 1u << way;
	m2n__verbs_log(v, M2N_LOG_INFO, "verbs: %s registers GPU memory by %s%s%s",
		rail->ctx->device->name, way == VERBS_GPU_DMA_BUF ? "dma-buf" : "nvidia-peermem",
		*why ? ", not by dma-buf: " : "", why);
}

static int refuse(
	const struct verbs_rail *rail, const struct m2n__mem *mem, const char *why, int error)
{
	int is_loaded = access(PEER_MODULE, F_OK) == 0;

	return m2n__error(error == ENOMEM ? -ENOMEM : -ENOTSUP,
		"verbs: %s: %zu bytes of GPU memory at %p cannot be registered. By dma-buf: %s "
		"(takes Linux 5.12, rdma-core 34, an mlx5 device). By peer memory: %s; %s",
		rail->ctx->device->name, mem->bytes, mem->base, why, strerrordesc_np(error),
		is_loaded ? "nvidia-peermem is loaded; is the GPU's BAR1 full (nvidia-smi -q)?"
			  : "load nvidia-peermem (modprobe nvidia-peermem)");
}

static int register_rail(struct verbs_iface *v, struct verbs_rail *rail, const struct m2n__mem *mem,
	int access, const struct dma_buf *buf, struct ibv_mr **mr)
{
	uint64_t at = (uintptr_t)mem->base;
	char why[WHY_BYTES] = "";

	*mr = NULL;
	if (buf->fd >= 0) {
		*mr = m2n__ibv.reg_dmabuf_mr(
			rail->pd, buf->offset, mem->bytes, at, buf->fd, access);
		if (!*mr)
			snprintf(why, sizeof(why), "ibv_reg_dmabuf_mr: %s", strerrordesc_np(errno));
	} else {
		memcpy(why, buf->why, sizeof(why));
	}
	if (*mr) {
		tell(v, rail, VERBS_GPU_DMA_BUF, why);
		return 0;
	}
	*mr = m2n__ibv.reg_mr_iova2(rail->pd, mem->base, mem->bytes, at, (unsigned)access);
	if (!*mr)
		return refuse(rail, mem, why, errno);
	tell(v, rail, VERBS_GPU_PEER_MEMORY, why);
	return 0;
}

int m2n__verbs_reg_device(
	struct verbs_iface *v, const struct m2n__mem *mem, int access, struct verbs_mr *m)
{
	const struct m2n__cuda *cuda = mem->cuda ? mem->cuda : v->iface.params.cuda;
	struct dma_buf buf = {.fd = -1};
	int rc;

	if (!cuda)
		return m2n__error(-EINVAL,
			"verbs: GPU memory at %p, but the context has no CUDA device: set "
			"CUDA_DEVICE",
			mem->base);
	m2n__gpu_order_copies(cuda, mem);
	rc = prepare(cuda, mem, &buf);
	for (unsigned i = 0; !rc && i < v->n_rails; i++)
		rc = register_rail(v, &v->rails[i], mem, access, &buf, &m->rail[i]);
	if (buf.fd >= 0)
		close(buf.fd); /* the registration holds the memory */
	return rc;
}
