/* SPDX-License-Identifier: Apache-2.0 */
/*
 * GPU memory in the UCX backend, without a GPU and without UCX's CUDA part: UCX is a table of
 * functions in this file. What is shown: UCX is told the kind of each memory, and nothing lets
 * the processor touch GPU memory, neither stores, nor messages out of it, nor messages into it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include <m2n/status.h>

#include "backend/ucx/ucx.h"

#define BASE ((void *)(uintptr_t)UINT64_C(0x7f0000000000)) /* the processor would die there */
#define BYTES ((size_t)4096)

static struct {
	ucs_memory_type_t mapped_as, put_as;
	uint64_t put_mask;
	unsigned n_puts, n_ptrs, n_messages;
	ucp_am_recv_callback_t take[4];
	void *arg;
} fake;

static struct m2n__ucx_iface iface;
static struct m2n__ucx_ep ep;
static struct m2n__ucx_note notes[8];
static _Atomic uint64_t signals[8], peer_signals[8];
static struct m2n__mem device = {.kind = M2N__MEM_CUDA, .base = BASE, .bytes = BYTES, .fd = -1};

static ucs_status_t mem_map(
	ucp_context_h context, const ucp_mem_map_params_t *params, ucp_mem_h *memh)
{
	(void)context;
	assert_true(params->field_mask & UCP_MEM_MAP_PARAM_FIELD_MEMORY_TYPE);
	fake.mapped_as = params->memory_type;
	*memh = (ucp_mem_h)&fake;
	return UCS_OK;
}

static ucs_status_t mem_unmap(ucp_context_h context, ucp_mem_h memh)
{
	(void)context, (void)memh;
	return UCS_OK;
}

static ucs_status_t rkey_pack(ucp_context_h context, ucp_mem_h memh, void **rkey, size_t *bytes)
{
	(void)context, (void)memh;
	*rkey = &fake;
	*bytes = 16;
	return UCS_OK;
}

static void rkey_release(void *rkey)
{
	(void)rkey;
}

static ucs_status_t rkey_unpack(ucp_ep_h ucp_ep, const void *rkey, ucp_rkey_h *out)
{
	(void)ucp_ep, (void)rkey;
	*out = (ucp_rkey_h)&fake;
	return UCS_OK;
}

static void rkey_destroy(ucp_rkey_h rkey)
{
	(void)rkey;
}

static ucs_status_t rkey_ptr(ucp_rkey_h rkey, uint64_t at, void **ptr)
{
	(void)rkey;
	fake.n_ptrs++;
	*ptr = (void *)(uintptr_t)at;
	return UCS_OK;
}

static ucs_status_ptr_t put_nbx(ucp_ep_h ucp_ep, const void *data, size_t bytes, uint64_t to,
	ucp_rkey_h rkey, const ucp_request_param_t *param)
{
	(void)ucp_ep, (void)to, (void)rkey, (void)bytes;
	fake.n_puts++;
	if (data == BASE) {
		fake.put_mask = param->op_attr_mask;
		fake.put_as = param->memory_type;
	}
	return NULL;
}

static ucs_status_t fence(ucp_worker_h worker)
{
	(void)worker;
	return UCS_OK;
}

static ucs_status_ptr_t am_send(ucp_ep_h ucp_ep, unsigned id, const void *head, size_t head_bytes,
	const void *data, size_t bytes, const ucp_request_param_t *param)
{
	(void)ucp_ep, (void)id, (void)head, (void)head_bytes, (void)data, (void)bytes, (void)param;
	fake.n_messages++;
	return NULL;
}

static ucs_status_t set_handler(ucp_worker_h worker, const ucp_am_handler_param_t *param)
{
	(void)worker;
	fake.take[param->id] = param->cb;
	fake.arg = param->arg;
	return UCS_OK;
}

static int setup(void **state)
{
	(void)state;
	memset(&fake, 0, sizeof(fake));
	m2n__ucx.ucp_mem_map = mem_map;
	m2n__ucx.ucp_mem_unmap = mem_unmap;
	m2n__ucx.ucp_rkey_pack = rkey_pack;
	m2n__ucx.ucp_rkey_buffer_release = rkey_release;
	m2n__ucx.ucp_ep_rkey_unpack = rkey_unpack;
	m2n__ucx.ucp_rkey_destroy = rkey_destroy;
	m2n__ucx.ucp_rkey_ptr = rkey_ptr;
	m2n__ucx.ucp_put_nbx = put_nbx;
	m2n__ucx.ucp_worker_fence = fence;
	m2n__ucx.ucp_am_send_nbx = am_send;
	m2n__ucx.ucp_worker_set_am_recv_handler = set_handler;
	memset(&iface, 0, sizeof(iface));
	pthread_mutex_init(&iface.lock, NULL);
	iface.has_cuda = 1;
	iface.iface.params.signals = signals;
	iface.iface.params.n_signals = 8;
	memset(&ep, 0, sizeof(ep));
	ep.ep.iface = &iface.iface;
	ep.ucp_ep = (ucp_ep_h)&fake;
	ep.is_direct = 1;
	ep.n_signals = 8;
	for (size_t i = 0; i < 8; i++)
		notes[i] = (struct m2n__ucx_note){.next = i < 7 ? &notes[i + 1] : NULL, .ep = &ep};
	ep.free_notes = &notes[0];
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	pthread_mutex_destroy(&iface.lock);
	free(iface.regions.entries);
	free(iface.tokens.entries);
	return 0;
}

static void test_kind(void **state)
{
	struct m2n__mem host = {.kind = M2N__MEM_HOST, .base = notes, .bytes = 64, .fd = -1};
	struct m2n__mr *mr;

	(void)state;
	assert_int_equal(m2n__ucx_reg(&iface.iface, &device, &mr), 0);
	assert_int_equal(fake.mapped_as, UCS_MEMORY_TYPE_CUDA);
	m2n__ucx_dereg(mr);
	assert_int_equal(m2n__ucx_reg(&iface.iface, &host, &mr), 0);
	assert_int_equal(fake.mapped_as, UCS_MEMORY_TYPE_HOST);
	m2n__ucx_dereg(mr);
	iface.has_cuda = 0;
	assert_int_equal(m2n__ucx_reg(&iface.iface, &device, &mr), -ENOTSUP);
	assert_non_null(strstr(m2n_error_text(), "UCX_TLS"));
}

/* A key of GPU memory, of a peer whose host memory is mapped here. */
static void test_import(void **state)
{
	uint8_t key[M2N__KEY_BYTES];
	size_t bytes = sizeof(key);
	struct m2n__rmem *rmem = NULL;
	struct m2n__mr *mr;

	(void)state;
	ep.signals = peer_signals;
	assert_int_equal(m2n__ucx_reg(&iface.iface, &device, &mr), 0);
	assert_int_equal(m2n__ucx_export(mr, 0, BYTES, key, &bytes), 0);
	assert_int_equal(m2n__ucx_import(&ep.ep, key, bytes, &rmem), 0);
	assert_int_equal(fake.n_ptrs, 0);
	assert_null(((struct m2n__ucx_rmem *)rmem)->ptr);
	m2n__ucx_release(rmem);
	rmem = NULL;
	ep.is_direct = 0;
	assert_int_equal(m2n__ucx_import(&ep.ep, key, bytes, &rmem), -ENOTSUP);
	assert_non_null(strstr(m2n_error_text(), "reaches GPU memory"));
	assert_null(rmem);
	m2n__ucx_dereg(mr);
}

static void test_put(void **state)
{
	static uint8_t peer[BYTES];
	struct m2n__ucx_rmem rmem = {.rmem = {.ep = &ep.ep, .bytes = BYTES}, .ptr = peer};
	struct m2n__reg reg = {{NULL}};
	const struct m2n__piece piece = {BASE, 8, &reg};
	struct m2n__put put = {.pieces = &piece, .n_pieces = 1, .rmem = &rmem.rmem, .signal = 1};

	(void)state;
	ep.signals = peer_signals; /* small pieces of host memory would be stored */
	assert_int_equal(m2n__ucx_reg(&iface.iface, &device, &reg.mr[0]), 0);
	assert_int_equal(m2n__ucx_put(&ep.ep, &put), 0);
	assert_int_equal(fake.n_puts, 2); /* and the signal */
	assert_true(fake.put_mask & UCP_OP_ATTR_FIELD_MEMORY_TYPE);
	assert_true(fake.put_mask & UCP_OP_ATTR_FIELD_MEMH);
	assert_int_equal(fake.put_as, UCS_MEMORY_TYPE_CUDA);
	ep.is_direct = 0;
	put = (struct m2n__put){.pieces = &piece, .n_pieces = 1, .rmem = &rmem.rmem, .signal = 1};
	assert_int_equal(m2n__ucx_put(&ep.ep, &put), -ENOTSUP);
	assert_int_equal(fake.n_messages, 0);
	m2n__ucx_dereg(reg.mr[0]);
}

/* Into host memory it is taken, into GPU memory dropped. */
static void test_message(void **state)
{
	static uint8_t bytes[64];
	struct m2n__mem host = {.kind = M2N__MEM_HOST, .base = bytes, .bytes = 64, .fd = -1};
	struct m2n__ucx_head head = {.bytes = 4, .signal = 2};
	const ucp_am_recv_param_t param = {0};
	struct m2n__mr *mr;
	char data[4] = "abc";

	(void)state;
	memset(signals, 0, sizeof(signals));
	assert_int_equal(m2n__ucx_listen(&iface), 0);
	assert_int_equal(m2n__ucx_table_add(&iface.tokens, &ep, &head.token), 0);
	assert_int_equal(m2n__ucx_reg(&iface.iface, &host, &mr), 0);
	head.region = ((struct m2n__ucx_mr *)mr)->region;
	assert_int_equal(fake.take[1](fake.arg, &head, sizeof(head), data, 4, &param), UCS_OK);
	assert_int_equal(signals[2], 1);
	assert_memory_equal(bytes, data, 4);
	m2n__ucx_dereg(mr);
	assert_int_equal(m2n__ucx_reg(&iface.iface, &device, &mr), 0);
	head.region = ((struct m2n__ucx_mr *)mr)->region;
	assert_int_equal(fake.take[1](fake.arg, &head, sizeof(head), data, 4, &param), UCS_OK);
	assert_int_equal(signals[2], 1);
	m2n__ucx_dereg(mr);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_kind, setup, teardown),
		cmocka_unit_test_setup_teardown(test_import, setup, teardown),
		cmocka_unit_test_setup_teardown(test_put, setup, teardown),
		cmocka_unit_test_setup_teardown(test_message, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
