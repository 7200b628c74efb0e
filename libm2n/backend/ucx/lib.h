/* SPDX-License-Identifier: Apache-2.0 */
/*
 * UCX's libraries, opened when a connection first needs them. Loading libucs patches libc's memory
 * functions and takes over signals, so a process that never sends over UCX must not load it: the
 * probe only looks whether the library is there. Its log lines go to the log of the context whose
 * call made them, never to the standard output.
 */
#ifndef M2N_BACKEND_UCX_LIB_H
#define M2N_BACKEND_UCX_LIB_H

#include <ucp/api/ucp.h>

#include "backend/backend.h"

/* clang-format off */
#define M2N__UCX_FUNCTIONS(X) \
	X(ucp_get_version) \
	X(ucp_config_read) \
	X(ucp_config_modify) \
	X(ucp_config_release) \
	X(ucp_init_version) \
	X(ucp_cleanup) \
	X(ucp_context_query) \
	X(ucp_worker_create) \
	X(ucp_worker_destroy) \
	X(ucp_worker_get_address) \
	X(ucp_worker_release_address) \
	X(ucp_worker_query) \
	X(ucp_worker_progress) \
	X(ucp_worker_fence) \
	X(ucp_ep_create) \
	X(ucp_ep_close_nbx) \
	X(ucp_ep_flush_nbx) \
	X(ucp_ep_print_info) \
	X(ucp_ep_rkey_unpack) \
	X(ucp_rkey_destroy) \
	X(ucp_rkey_ptr) \
	X(ucp_rkey_pack) \
	X(ucp_rkey_buffer_release) \
	X(ucp_mem_map) \
	X(ucp_mem_unmap) \
	X(ucp_mem_query) \
	X(ucp_put_nbx) \
	X(ucp_am_send_nbx) \
	X(ucp_worker_set_am_recv_handler) \
	X(ucp_request_free) \
	X(ucs_status_string)
/* clang-format on */

struct m2n__ucx_lib {
#define M2N__UCX_POINTER(name) typeof(&name) name;
	M2N__UCX_FUNCTIONS(M2N__UCX_POINTER)
#undef M2N__UCX_POINTER
	unsigned version; /* major << 16 | minor << 8 | release */
};

/* Filled by m2n__ucx_load(). */
extern struct m2n__ucx_lib m2n__ucx;

/* Can it be loaded, as far as one sees without loading it? 0 or M2N_ERR_BACKEND. */
int m2n__ucx_find(void);
/* Loads it, once in a process. 0 or M2N_ERR_BACKEND with the remedy. */
int m2n__ucx_load(void);

/*
 * Around calls into UCX: what it logs in this thread meanwhile goes to the iface's log. enter()
 * returns what leave() takes.
 */
struct m2n__iface *m2n__ucx_enter(struct m2n__iface *iface);
void m2n__ucx_leave(struct m2n__iface *before);

/* Sets the error text to "ucx: WHAT: UCX's words" and returns our code for it. */
int m2n__ucx_error(ucs_status_t status, const char *what);

#endif
