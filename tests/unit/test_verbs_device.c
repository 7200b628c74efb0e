/* SPDX-License-Identifier: Apache-2.0 */
/*
 * GPU memory in the verbs backend, without a GPU and without a NIC: the driver and libibverbs are
 * tables of functions in this file, which note what they are asked and refuse what they are told
 * to. What is shown: which range and offset a dma-buf is asked for, what follows a refusal, what
 * the log and the errors say, and that the processor never reads such memory.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include <m2n/status.h>

#include "backend/verbs/verbs.h"
#include "mem/cuda_shared.h"

#define PAGE ((uint64_t)4096)
#define BASE (UINT64_C(0x7f0000000000) + 3 * PAGE + 0x200)
#define BYTES ((size_t)10000)
#define MAX_NOTED 8

static struct {
	/* what to refuse */
	int range_result, pcie_result, dmabuf_error, peer_error;
	int peer_error_from; /* of this call of it on */
	/* what was asked */
	unsigned n_ranges, n_dmabufs, n_peers, n_deregs, n_lines, n_sync;
	uint64_t at, bytes, offset, iova;
	unsigned long long flags;
	int fd, is_entered;
	int access;
	char line[MAX_NOTED][512];
	unsigned send_flags, n_sends;
	/* the loopback */
	unsigned n_flushes, n_things, n_reads, n_states; /* things: queues and queue pairs */
	int modify_error, read_is_lost;
	enum ibv_wc_status read_status;
	uint64_t remote_addr;
	uint32_t rkey, to_qp;
} fake;

/* ---- the driver ---------------------------------------------------------------------------- */

static m2n__cu_result ctx_push(m2n__cu_context context)
{
	(void)context;
	fake.is_entered++;
	return 0;
}

static m2n__cu_result ctx_pop(m2n__cu_context *context)
{
	*context = NULL;
	fake.is_entered--;
	return 0;
}

static m2n__cu_result error_text(m2n__cu_result error, const char **text)
{
	*text = error == M2N__CU_NOT_SUPPORTED ? "CUDA_ERROR_NOT_SUPPORTED" : "CUDA_ERROR";
	return 0;
}

static uint64_t device_word; /* the only memory that is allocated */

static m2n__cu_result mem_alloc(m2n__cu_ptr *at, size_t bytes)
{
	(void)bytes;
	*at = (uintptr_t)&device_word;
	return 0;
}

static m2n__cu_result mem_free(m2n__cu_ptr at)
{
	assert_true(at == (uintptr_t)&device_word);
	return 0;
}

static m2n__cu_result fill(m2n__cu_ptr at, unsigned char value, size_t bytes, m2n__cu_stream stream)
{
	(void)at, (void)value, (void)bytes, (void)stream;
	return 0;
}

static m2n__cu_result on_stream(m2n__cu_stream stream)
{
	(void)stream;
	return 0;
}

static m2n__cu_result flush_rdma_writes(int target, int scope)
{
	(void)target, (void)scope;
	assert_int_equal(fake.is_entered, 1);
	fake.n_flushes++;
	return 0;
}

static m2n__cu_result capture_mode(int *mode)
{
	(void)mode;
	return 0;
}

static m2n__cu_result set_attribute(const void *value, int attribute, m2n__cu_ptr at)
{
	assert_int_equal(attribute, M2N__CU_PTR_SYNC_MEMOPS);
	assert_int_equal(*(const unsigned *)value, 1);
	assert_true((at == BASE || at == (uintptr_t)&device_word) && fake.is_entered);
	fake.n_sync++;
	return 0;
}

static m2n__cu_result range_handle(
	void *handle, m2n__cu_ptr at, size_t bytes, int type, unsigned long long flags)
{
	int fd;

	assert_int_equal(type, M2N__CU_RANGE_HANDLE_DMA_BUF);
	assert_true(fake.is_entered);
	fake.n_ranges++;
	fake.at = at;
	fake.bytes = bytes;
	fake.flags = flags;
	if (flags && fake.pcie_result)
		return fake.pcie_result;
	if (fake.range_result)
		return fake.range_result;
	fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	fake.fd = fd;
	memcpy(handle, &fd, sizeof(fd));
	return 0;
}

static const struct m2n__cuda_driver driver = {
	.ctx_push = ctx_push,
	.ctx_pop = ctx_pop,
	.error_name = error_text,
	.error_string = error_text,
	.pointer_set_attribute = set_attribute,
	.range_handle = range_handle,
	.mem_alloc = mem_alloc,
	.mem_free = mem_free,
	.memset_async = fill,
	.stream_synchronize = on_stream,
	.capture_mode = capture_mode,
	.flush_rdma_writes = flush_rdma_writes,
};

/* ---- libibverbs ---------------------------------------------------------------------------- */

static struct ibv_mr *new_mr(int error)
{
	struct ibv_mr *mr = error ? NULL : calloc(1, sizeof(*mr));

	errno = error;
	return mr;
}

static struct ibv_mr *reg_dmabuf_mr(
	struct ibv_pd *pd, uint64_t offset, size_t bytes, uint64_t iova, int fd, int access)
{
	(void)pd;
	assert_int_equal(fd, fake.fd);
	assert_true(fcntl(fd, F_GETFD) >= 0); /* still open */
	assert_int_equal(iova == BASE ? BYTES : bytes, bytes);
	fake.n_dmabufs++;
	fake.offset = offset;
	fake.iova = iova;
	fake.access = access;
	return new_mr(fake.dmabuf_error);
}

static struct ibv_mr *reg_mr_iova2(
	struct ibv_pd *pd, void *base, size_t bytes, uint64_t iova, unsigned access)
{
	(void)pd;
	assert_true((uintptr_t)base == iova && bytes);
	fake.access = (int)access;
	return new_mr((int)++fake.n_peers > fake.peer_error_from ? fake.peer_error : 0);
}

static int dereg_mr(struct ibv_mr *mr)
{
	fake.n_deregs++;
	free(mr);
	return 0;
}

static int post_send(struct ibv_qp *qp, struct ibv_send_wr *wr, struct ibv_send_wr **bad)
{
	(void)qp, (void)bad;
	if (wr->opcode == IBV_WR_RDMA_READ) {
		assert_int_equal(wr->sg_list->length, 8);
		fake.n_reads++;
		fake.remote_addr = wr->wr.rdma.remote_addr;
		fake.rkey = wr->wr.rdma.rkey;
	} else {
		fake.n_sends++;
		fake.send_flags = wr->send_flags;
	}
	return 0;
}

static int poll_cq(struct ibv_cq *cq, int n, struct ibv_wc *wc)
{
	assert_int_equal(n, 1);
	assert_non_null(cq);
	memset(wc, 0, sizeof(*wc));
	wc->status = fake.read_status;
	return fake.read_is_lost ? 0 : 1;
}

static struct ibv_cq *create_cq(
	struct ibv_context *context, int n, void *arg, struct ibv_comp_channel *channel, int vector)
{
	struct ibv_cq *cq = calloc(1, sizeof(*cq));

	(void)n, (void)arg, (void)channel, (void)vector;
	cq->context = context;
	fake.n_things++;
	return cq;
}

static int destroy_cq(struct ibv_cq *cq)
{
	free(cq);
	fake.n_things--;
	return 0;
}

static struct ibv_qp *create_qp(struct ibv_pd *pd, struct ibv_qp_init_attr *attr)
{
	struct ibv_qp *qp = calloc(1, sizeof(*qp));

	(void)pd;
	assert_int_equal(attr->qp_type, IBV_QPT_RC);
	qp->context = attr->send_cq->context;
	qp->qp_num = 40 + fake.n_things++;
	return qp;
}

static int destroy_qp(struct ibv_qp *qp)
{
	free(qp);
	fake.n_things--;
	return 0;
}

static int modify_qp(struct ibv_qp *qp, struct ibv_qp_attr *attr, int mask)
{
	fake.n_states++;
	if (attr->qp_state == IBV_QPS_RTR) {
		assert_int_equal(attr->dest_qp_num, qp->qp_num); /* itself */
		assert_true(attr->max_dest_rd_atomic);
	}
	if (attr->qp_state == IBV_QPS_INIT)
		assert_true(attr->qp_access_flags & IBV_ACCESS_REMOTE_READ);
	assert_true(mask & IBV_QP_STATE);
	return attr->qp_state == IBV_QPS_RTR ? fake.modify_error : 0;
}

static const char *wc_status_str(enum ibv_wc_status status)
{
	return status == IBV_WC_REM_ACCESS_ERR ? "remote access error" : "?";
}

/* ---- a backend with two rails -------------------------------------------------------------- */

static struct verbs_iface iface;
static struct m2n__options options = {.verbs_relaxed_ordering = 1};
static struct m2n__cuda cuda;
static struct m2n__mem mem;

static void take_line(void *arg, enum m2n_log_level level, const char *line)
{
	(void)arg;
	assert_int_equal(level, M2N_LOG_INFO);
	assert_true(fake.n_lines < MAX_NOTED);
	snprintf(fake.line[fake.n_lines++], sizeof(fake.line[0]), "%s", line);
}

static int setup(void **state)
{
	static struct ibv_device devices[2] = {{.name = "mlx5_0"}, {.name = "mlx5_1"}};
	static struct ibv_context contexts[2];

	(void)state;
	memset(&fake, 0, sizeof(fake));
	fake.fd = -1;
	m2n__ibv.reg_dmabuf_mr = reg_dmabuf_mr;
	m2n__ibv.reg_mr_iova2 = reg_mr_iova2;
	m2n__ibv.dereg_mr = dereg_mr;
	m2n__ibv.create_cq = create_cq;
	m2n__ibv.destroy_cq = destroy_cq;
	m2n__ibv.create_qp = create_qp;
	m2n__ibv.destroy_qp = destroy_qp;
	m2n__ibv.modify_qp = modify_qp;
	m2n__ibv.wc_status_str = wc_status_str;
	memset(&iface, 0, sizeof(iface));
	iface.iface.params.log = take_line;
	iface.options = &options;
	iface.is_started = 1;
	pthread_mutex_init(&iface.flush_lock, NULL);
	iface.n_rails = 2;
	for (unsigned i = 0; i < 2; i++) {
		contexts[i].device = &devices[i];
		contexts[i].ops.post_send = post_send;
		contexts[i].ops.poll_cq = poll_cq;
		iface.rails[i].ctx = &contexts[i];
	}
	cuda = (struct m2n__cuda){
		.driver = &driver, .name = "GPU", .has_dma_buf = 1, .driver_version = 12040};
	mem = (struct m2n__mem){.kind = M2N__MEM_CUDA,
		.base = (void *)(uintptr_t)BASE,
		.bytes = BYTES,
		.fd = -1,
		.cuda = &cuda};
	return 0;
}

static int reg(struct m2n__mr **mr)
{
	int rc = m2n__verbs_reg(&iface.iface, &mem, mr);

	assert_int_equal(fake.is_entered, 0);
	/* The registration holds the memory, not a descriptor. */
	assert_true(fake.fd < 0 || fcntl(fake.fd, F_GETFD) < 0);
	return rc;
}

static void register_once(void)
{
	struct m2n__mr *mr;

	assert_int_equal(reg(&mr), 0);
	m2n__verbs_dereg(mr);
}

static void test_dma_buf(void **state)
{
	(void)state;
	register_once();
	assert_int_equal(fake.n_ranges, 1);
	assert_int_equal(fake.n_dmabufs, 2); /* rails */
	assert_int_equal(fake.n_peers, 0);
	assert_int_equal(fake.n_deregs, 2);
	assert_int_equal(fake.n_sync, 1);
	/* Whole pages that hold the memory, and where it begins in them. */
	assert_true(fake.at == BASE - 0x200);
	assert_true(fake.bytes == 3 * PAGE);
	assert_true(fake.offset == 0x200 && fake.iova == BASE);
	assert_int_equal(fake.flags, 0);
	assert_true(fake.access & IBV_ACCESS_REMOTE_WRITE);
	assert_true(fake.access & IBV_ACCESS_RELAXED_ORDERING);
	assert_int_equal(fake.n_lines, 2);
	assert_string_equal(fake.line[0], "verbs: mlx5_0 registers GPU memory by dma-buf");
	register_once();
	assert_int_equal(fake.n_lines, 2); /* told once */
}

static void test_pcie_mapping(void **state)
{
	(void)state;
	cuda.driver_version = 13000;
	register_once();
	assert_int_equal(fake.n_ranges, 1);
	assert_int_equal(fake.flags, 1);
	fake.pcie_result = M2N__CU_NOT_SUPPORTED;
	register_once();
	assert_int_equal(fake.n_ranges, 3);
	assert_int_equal(fake.flags, 0);
	assert_int_equal(fake.n_peers, 0);
}

static void test_driver_refuses(void **state)
{
	(void)state;
	fake.range_result = M2N__CU_NOT_SUPPORTED;
	register_once();
	assert_int_equal(fake.n_dmabufs, 0);
	assert_int_equal(fake.n_peers, 2);
	assert_int_equal(fake.n_lines, 2);
	assert_non_null(strstr(fake.line[1], "mlx5_1 registers GPU memory by nvidia-peermem, not "
					     "by dma-buf: "));
	assert_non_null(strstr(fake.line[1], "CUDA_ERROR_NOT_SUPPORTED"));
}

static void test_device_without(void **state)
{
	(void)state;
	cuda.has_dma_buf = 0;
	register_once();
	assert_int_equal(fake.n_ranges, 0);
	assert_int_equal(fake.n_peers, 2);
	assert_non_null(strstr(fake.line[0], "open kernel modules"));
}

static void test_nic_refuses(void **state)
{
	(void)state;
	fake.dmabuf_error = EOPNOTSUPP;
	register_once();
	assert_int_equal(fake.n_dmabufs, 2);
	assert_int_equal(fake.n_peers, 2);
	assert_non_null(strstr(fake.line[0], "ibv_reg_dmabuf_mr: Operation not supported"));
}

static void test_both_refuse(void **state)
{
	struct m2n__mr *mr = NULL;

	(void)state;
	fake.dmabuf_error = EOPNOTSUPP;
	fake.peer_error = EFAULT;
	fake.peer_error_from = 1; /* the first rail has it */
	assert_int_equal(reg(&mr), -ENOTSUP);
	assert_null(mr);
	assert_int_equal(fake.n_deregs, 1);
	assert_non_null(strstr(m2n_error_text(), "mlx5_1"));
	assert_non_null(strstr(m2n_error_text(), "ibv_reg_dmabuf_mr: Operation not supported"));
	assert_non_null(strstr(m2n_error_text(), "By peer memory: Bad address"));
	assert_non_null(strstr(m2n_error_text(), "nvidia-peermem"));
	fake.peer_error = ENOMEM;
	fake.peer_error_from = 0;
	assert_int_equal(reg(&mr), -ENOMEM);
}

static void test_no_device(void **state)
{
	struct m2n__mr *mr;

	(void)state;
	mem.cuda = NULL;
	assert_int_equal(reg(&mr), -EINVAL);
	assert_non_null(strstr(m2n_error_text(), "CUDA_DEVICE"));
	iface.iface.params.cuda = &cuda;
	register_once();
}

/* A small put is copied by the processor, unless that cannot read it. */
static void test_inline(void **state)
{
	struct verbs_ep *e = calloc(1, sizeof(*e) + sizeof(e->paths[0]));
	struct ibv_qp qp = {.context = iface.rails[0].ctx};
	struct verbs_rmem rmem = {.rmem.bytes = 4096};
	static uint64_t word;
	struct m2n__reg known = {{NULL}};
	const struct m2n__piece pieces[] = {{&word, 8, NULL}, {(void *)(uintptr_t)BASE, 8, &known}};
	struct m2n__put put = {.pieces = pieces, .n_pieces = 1, .rmem = &rmem.rmem, .signal = 0};

	(void)state;
	iface.iface.max_inline = 64;
	iface.iface.max_iov = 4;
	iface.iface.max_bytes = 1 << 20;
	assert_int_equal(reg(&known.mr[0]), 0);
	e->ep.iface = &iface.iface;
	e->n_rails = e->n_paths = e->n_qps = 1;
	e->depth = 64;
	e->state = VERBS_READY;
	e->paths[0] = (struct verbs_path){.ep = e, .rail = &iface.rails[0], .qp = &qp, .uid = 1};
	assert_int_equal(m2n__verbs_put(&e->ep, &put), 0);
	assert_true(fake.send_flags & IBV_SEND_INLINE);
	assert_int_equal(m2n__verbs_flush(&e->ep), 0);
	put = (struct m2n__put){.pieces = pieces, .n_pieces = 2, .rmem = &rmem.rmem, .signal = 0};
	assert_int_equal(m2n__verbs_put(&e->ep, &put), 0);
	assert_int_equal(fake.n_sends, 2);
	assert_false(fake.send_flags & IBV_SEND_INLINE);
	assert_int_equal(m2n__verbs_flush(&e->ep), -EAGAIN); /* the device still reads it */
	m2n__verbs_dereg(known.mr[0]);
	free(e);
}

/* A read of a word of the device on each rail; made once, thrown away when it fails. */
static void test_loopback(void **state)
{
	(void)state;
	assert_int_equal(m2n__verbs_flush_device(&iface.iface), -EINVAL);
	iface.iface.params.cuda = &cuda;
	cuda.needs_flush = 1;
	assert_int_equal(m2n__cuda_share(&cuda), 0);
	assert_int_equal(m2n__verbs_flush_device(&iface.iface), 0);
	assert_non_null(strstr(fake.line[0], "a read over a loopback"));
	assert_int_equal(fake.n_things, 4);
	assert_int_equal(fake.n_states, 6);
	assert_int_equal(fake.n_reads, 2);
	assert_true(fake.remote_addr == (uintptr_t)&device_word);
	assert_int_equal(m2n__verbs_flush_device(&iface.iface), 0);
	assert_int_equal(fake.n_states, 6);
	assert_int_equal(fake.n_reads, 4);
	fake.read_status = IBV_WC_REM_ACCESS_ERR;
	assert_int_equal(m2n__verbs_flush_device(&iface.iface), M2N_ERR_BACKEND);
	assert_non_null(strstr(m2n_error_text(), "remote access error"));
	assert_int_equal(fake.n_things, 0);
	fake.read_status = IBV_WC_SUCCESS;
	assert_int_equal(m2n__verbs_flush_device(&iface.iface), 0);
	fake.read_is_lost = 1;
	assert_int_equal(m2n__verbs_flush_device(&iface.iface), M2N_ERR_BACKEND);
	assert_non_null(strstr(m2n_error_text(), "timed out"));
	fake.read_is_lost = 0;
	fake.modify_error = EINVAL;
	assert_int_equal(m2n__verbs_flush_device(&iface.iface), M2N_ERR_BACKEND);
	assert_non_null(strstr(m2n_error_text(), "connecting"));
	fake.modify_error = 0;
	assert_int_equal(m2n__verbs_flush_device(&iface.iface), 0);
	m2n__verbs_flush_close(&iface);
	m2n__cuda_unshare(&cuda);
	assert_int_equal(fake.n_things, 0);
	assert_null(iface.loopback);
}

/* Where the device or its driver does it, no queue pair is made. */
static void test_flush(void **state)
{
	(void)state;
	iface.iface.params.cuda = &cuda;
	cuda.can_flush = 1;
	assert_int_equal(m2n__verbs_flush_device(&iface.iface), 0);
	assert_non_null(strstr(fake.line[0], "none"));
	assert_int_equal(fake.n_flushes, 0);
	m2n__verbs_flush_close(&iface);
	cuda.needs_flush = 1;
	assert_int_equal(m2n__verbs_flush_device(&iface.iface), 0);
	assert_int_equal(m2n__verbs_flush_device(&iface.iface), 0);
	assert_non_null(strstr(fake.line[1], "driver"));
	assert_int_equal(fake.n_flushes, 2);
	assert_int_equal(fake.n_lines, 2);
	assert_int_equal(fake.n_things, 0);
	m2n__verbs_flush_close(&iface);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(test_dma_buf, setup),
		cmocka_unit_test_setup(test_pcie_mapping, setup),
		cmocka_unit_test_setup(test_driver_refuses, setup),
		cmocka_unit_test_setup(test_device_without, setup),
		cmocka_unit_test_setup(test_nic_refuses, setup),
		cmocka_unit_test_setup(test_both_refuse, setup),
		cmocka_unit_test_setup(test_no_device, setup),
		cmocka_unit_test_setup(test_inline, setup),
		cmocka_unit_test_setup(test_loopback, setup),
		cmocka_unit_test_setup(test_flush, setup),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
