/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the verbs backend calls in libibverbs and librdmacm, opened by the loader at the first
 * probe: m2n__ibv.open_device is ibv_open_device. The data path (ibv_post_send, ibv_poll_cq, ...)
 * is inline in the vendor's header and goes to the device's own driver.
 */
#ifndef M2N_BACKEND_VERBS_LIB_H
#define M2N_BACKEND_VERBS_LIB_H

#include <infiniband/verbs.h>
#include <rdma/rdma_cma.h>

/* Wrappers of the header that call a function of the library by its name. */
#undef ibv_get_device_list
#undef ibv_query_port
#undef ibv_reg_mr

/* clang-format off */
/* X(name of the field, symbol) */
#define M2N_IBV_LIST(X) \
	X(get_device_list,       ibv_get_device_list) \
	X(free_device_list,      ibv_free_device_list) \
	X(open_device,           ibv_open_device) \
	X(close_device,          ibv_close_device) \
	X(query_device,          ibv_query_device) \
	X(query_port,            ibv_query_port) \
	X(query_gid_table,       _ibv_query_gid_table) \
	X(get_async_event,       ibv_get_async_event) \
	X(ack_async_event,       ibv_ack_async_event) \
	X(event_type_str,        ibv_event_type_str) \
	X(port_state_str,        ibv_port_state_str) \
	X(wc_status_str,         ibv_wc_status_str) \
	X(alloc_pd,              ibv_alloc_pd) \
	X(dealloc_pd,            ibv_dealloc_pd) \
	X(create_comp_channel,   ibv_create_comp_channel) \
	X(destroy_comp_channel,  ibv_destroy_comp_channel) \
	X(create_cq,             ibv_create_cq) \
	X(resize_cq,             ibv_resize_cq) \
	X(destroy_cq,            ibv_destroy_cq) \
	X(get_cq_event,          ibv_get_cq_event) \
	X(ack_cq_events,         ibv_ack_cq_events) \
	X(create_srq,            ibv_create_srq) \
	X(modify_srq,            ibv_modify_srq) \
	X(destroy_srq,           ibv_destroy_srq) \
	X(create_qp,             ibv_create_qp) \
	X(modify_qp,             ibv_modify_qp) \
	X(destroy_qp,            ibv_destroy_qp) \
	X(reg_mr_iova2,          ibv_reg_mr_iova2) \
	X(reg_dmabuf_mr,         ibv_reg_dmabuf_mr) \
	X(dereg_mr,              ibv_dereg_mr)

#define M2N_RDMA_LIST(X) \
	X(create_event_channel,  rdma_create_event_channel) \
	X(destroy_event_channel, rdma_destroy_event_channel) \
	X(create_id,             rdma_create_id) \
	X(destroy_id,            rdma_destroy_id) \
	X(bind_addr,             rdma_bind_addr) \
	X(listen,                rdma_listen) \
	X(get_src_port,          rdma_get_src_port) \
	X(resolve_addr,          rdma_resolve_addr) \
	X(resolve_route,         rdma_resolve_route) \
	X(connect,               rdma_connect) \
	X(accept,                rdma_accept) \
	X(reject,                rdma_reject) \
	X(establish,             rdma_establish) \
	X(init_qp_attr,          rdma_init_qp_attr) \
	X(get_cm_event,          rdma_get_cm_event) \
	X(ack_cm_event,          rdma_ack_cm_event) \
	X(event_str,             rdma_event_str)
/* clang-format on */

#define M2N_VERBS_POINTER(field, symbol) __typeof__(symbol) *(field);
struct m2n__ibv {
	M2N_IBV_LIST(M2N_VERBS_POINTER)
};
struct m2n__rdma {
	M2N_RDMA_LIST(M2N_VERBS_POINTER)
};
#undef M2N_VERBS_POINTER

extern struct m2n__ibv m2n__ibv;
extern struct m2n__rdma m2n__rdma;

/* Open the libraries, once. 0, or M2N_ERR_BACKEND with the package to install. */
int m2n__ibv_load(void);
int m2n__rdma_load(void);

#endif
