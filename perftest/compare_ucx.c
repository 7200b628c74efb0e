/* SPDX-License-Identifier: Apache-2.0 */
/*
 * UCX between the same two processes, on its shared-memory transport or what UCX_TLS says: the data
 * is put into the peer's memory, which UCX allocated, then a fence, then a flag. The receiver looks
 * at the flag and drives the worker's progress, in shared memory only now and then, as a program
 * on UCX would. Addresses and keys go through the page.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <ucp/api/ucp.h>

#include "core/option.h"
#include "message.h"

/* What one side tells the other; in page_extra(), one for each. */
struct card {
	_Atomic uint64_t n_settled; /* requests of both sides that its side has finished */
	uint64_t base;
	uint64_t address_bytes, key_bytes;
	char bytes[UCX_EXTRA_BYTES / 2 - 4 * sizeof(uint64_t)]; /* address, then key */
};

struct flag {
	alignas(128) _Atomic uint64_t number;
};

struct ucx_link {
	struct perf_rank *rank;
	uint32_t depth;
	uint64_t slot_bytes;
	unsigned looks;        /* at the flag between two calls of progress */
	ucp_context_h context;
	ucp_worker_h worker;
	ucp_mem_h mem;
	ucp_ep_h ep;
	ucp_rkey_h key;
	char *base;            /* own memory: flags, then slots */
	uint64_t remote_base;
	struct card *mine, *theirs;
	uint64_t n_sent, n_received, n_settled;
	uint64_t numbers[64];  /* flags on their way */
};

bool ucx_link_built(void)
{
	return true;
}

static void check(struct ucx_link *link, ucs_status_t status, const char *what)
{
	char text[160];

	if (status == UCS_OK)
		return;
	snprintf(text, sizeof(text), "UCX yardstick: %s: %s", what, ucs_status_string(status));
	perf_rank_fail(link->rank, 0, text);
}

static void open_worker(struct ucx_link *link)
{
	ucp_params_t params = {.field_mask = UCP_PARAM_FIELD_FEATURES, .features = UCP_FEATURE_RMA};
	ucp_worker_params_t worker = {.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE,
		.thread_mode = UCS_THREAD_MODE_SINGLE};
	ucp_config_t *config;

	check(link, ucp_config_read(NULL, NULL, &config), "ucp_config_read");
	/* The library's own backend takes what UCX finds, when it is what is measured. */
	const char *backend = link->rank->args->backend;
	bool shared_memory = m2n__getenv(NULL, "UCX_TLS") == NULL &&
			     (backend == NULL || strcmp(backend, "ucx") != 0);
	if (shared_memory)
		check(link, ucp_config_modify(config, "TLS", "posix,self"), "TLS=posix,self");
	link->looks = shared_memory ? 64 : 1;
	check(link, ucp_init(&params, config, &link->context), "ucp_init");
	ucp_config_release(config);
	check(link, ucp_worker_create(link->context, &worker, &link->worker), "ucp_worker_create");
}

static void open_memory(struct ucx_link *link)
{
	ucp_mem_map_params_t params = {
		.field_mask = UCP_MEM_MAP_PARAM_FIELD_LENGTH | UCP_MEM_MAP_PARAM_FIELD_FLAGS,
		.length = link->depth * (link->slot_bytes + sizeof(struct flag)),
		.flags = UCP_MEM_MAP_ALLOCATE};
	ucp_mem_attr_t attr = {.field_mask = UCP_MEM_ATTR_FIELD_ADDRESS};

	check(link, ucp_mem_map(link->context, &params, &link->mem), "ucp_mem_map");
	check(link, ucp_mem_query(link->mem, &attr), "ucp_mem_query");
	link->base = attr.address;
	memset(link->base, 0, params.length);
}

static void publish(struct ucx_link *link, struct card *card)
{
	ucp_address_t *address;
	size_t address_bytes, key_bytes;
	void *key;

	check(link, ucp_worker_get_address(link->worker, &address, &address_bytes),
		"ucp_worker_get_address");
	check(link, ucp_rkey_pack(link->context, link->mem, &key, &key_bytes), "ucp_rkey_pack");
	if (address_bytes + key_bytes > sizeof(card->bytes))
		perf_rank_fail(link->rank, 0, "UCX yardstick: address too long");
	card->base = (uint64_t)(uintptr_t)link->base;
	card->address_bytes = address_bytes;
	card->key_bytes = key_bytes;
	memcpy(card->bytes, address, address_bytes);
	memcpy(card->bytes + address_bytes, key, key_bytes);
	ucp_worker_release_address(link->worker, address);
	ucp_rkey_buffer_release(key);
}

static void connect_peer(struct ucx_link *link, const struct card *card)
{
	ucp_ep_params_t params = {.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS,
		.address = (const ucp_address_t *)card->bytes};

	check(link, ucp_ep_create(link->worker, &params, &link->ep), "ucp_ep_create");
	check(link,
		ucp_ep_rkey_unpack(link->ep, card->bytes + card->address_bytes, &link->key),
		"ucp_ep_rkey_unpack");
	link->remote_base = card->base;
}

struct ucx_link *ucx_link_open(struct perf_rank *rank, uint64_t size_max, uint32_t depth)
{
	struct card *cards = page_extra(rank->page);
	int me = rank->source >= 0 ? 0 : 1;
	struct ucx_link *link = calloc(1, sizeof(*link));

	if (link == NULL)
		perf_rank_fail(rank, 0, "UCX yardstick: no memory");
	link->rank = rank;
	link->mine = &cards[me];
	link->theirs = &cards[1 - me];
	link->depth = depth;
	link->slot_bytes = (size_max + 127) & ~UINT64_C(127);
	open_worker(link);
	open_memory(link);
	publish(link, link->mine);
	perf_rank_barrier(rank);
	connect_peer(link, link->theirs);
	perf_rank_barrier(rank);
	return link;
}

/* Drives progress until a request is done. */
static void finish(struct ucx_link *link, ucs_status_ptr_t request, const char *what)
{
	if (!UCS_PTR_IS_PTR(request)) {
		check(link, UCS_PTR_STATUS(request), what);
		return;
	}
	while (ucp_request_check_status(request) == UCS_INPROGRESS) {
		ucp_worker_progress(link->worker);
		if (atomic_load(&link->rank->page->abort))
			_exit(3);
	}
	check(link, ucp_request_check_status(request), what);
	ucp_request_free(request);
}

/* Drives progress until a request of either side is done. */
static void finish_both(struct ucx_link *link, ucs_status_ptr_t request, const char *what)
{
	finish(link, request, what);
	atomic_store(&link->mine->n_settled, ++link->n_settled);
	while (atomic_load(&link->theirs->n_settled) < link->n_settled) {
		ucp_worker_progress(link->worker);
		if (atomic_load(&link->rank->page->abort))
			_exit(3);
	}
}

void ucx_link_settle(struct ucx_link *link)
{
	ucp_request_param_t param = {0};

	finish_both(link, ucp_worker_flush_nbx(link->worker, &param), "ucp_worker_flush_nbx");
}

void ucx_link_close(struct ucx_link *link)
{
	ucp_request_param_t param = {0};

	if (link == NULL)
		return;
	ucx_link_settle(link);
	perf_rank_barrier(link->rank);
	ucp_rkey_destroy(link->key);
	finish_both(link, ucp_ep_close_nbx(link->ep, &param), "ucp_ep_close_nbx");
	perf_rank_barrier(link->rank);
	ucp_mem_unmap(link->context, link->mem);
	ucp_worker_destroy(link->worker);
	ucp_cleanup(link->context);
	free(link);
}

void ucx_link_put(struct ucx_link *link, const void *data, uint64_t size)
{
	ucp_request_param_t param = {0};
	uint64_t slot = link->n_sent % link->depth;
	uint64_t flags_bytes = link->depth * sizeof(struct flag);
	uint64_t *number = &link->numbers[slot];

	finish(link,
		ucp_put_nbx(link->ep, data, size,
			link->remote_base + flags_bytes + slot * link->slot_bytes, link->key,
			&param),
		"ucp_put_nbx");
	check(link, ucp_worker_fence(link->worker), "ucp_worker_fence");
	*number = ++link->n_sent;
	finish(link,
		ucp_put_nbx(link->ep, number, sizeof(*number),
			link->remote_base + slot * sizeof(struct flag), link->key, &param),
		"ucp_put_nbx");
}

void ucx_link_get(struct ucx_link *link, uint64_t size)
{
	uint64_t slot = link->n_received % link->depth;
	struct flag *flag = (struct flag *)link->base + slot;
	unsigned n_looks = 0;

	link->n_received++;
	while (atomic_load_explicit(&flag->number, memory_order_acquire) < link->n_received) {
		if (++n_looks % link->looks != 0)
			continue;
		ucp_worker_progress(link->worker);
		if (atomic_load(&link->rank->page->abort))
			_exit(3);
	}
	message_touch(
		link->base + link->depth * sizeof(struct flag) + slot * link->slot_bytes, size);
}
