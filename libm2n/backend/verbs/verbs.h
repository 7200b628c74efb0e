/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The inside of the verbs backend. An iface has *rails* (a port of a device that is in use, with
 * one completion queue and one shared receive queue), an ep has *paths* (one RC queue pair each):
 * M2N_VERBS_QPS on every rail that both sides have. Rail i of one side talks to rail i of the
 * other.
 *
 * Locks: a rail's lock guards its completion queue, its receives and its table of paths; an ep's
 * lock its send queues; the iface's cm_lock all of librdmacm. Order: cm_lock, rail, ep. Nobody
 * waits for a rail's lock on the data path: who does not get it leaves the work to the holder.
 */
#ifndef M2N_BACKEND_VERBS_H
#define M2N_BACKEND_VERBS_H

#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>

#include "backend/backend.h"
#include "backend/verbs/lock.h"
#include "backend/verbs/verbs_lib.h"
#include "util/options.h"

#define VERBS_MAX_RAILS 8
#define VERBS_MAX_QPS 16
#define VERBS_MAX_PATHS (VERBS_MAX_RAILS * VERBS_MAX_QPS)
#define VERBS_MAX_SGE 32
#define VERBS_TOKEN_BYTES 16
#define VERBS_WHY_BYTES 256
#define VERBS_CONNECT_CM 0 /* position in M2N_VERBS_CONNECT's list of words */

/* One rail as the peers see it: part of the address blob. */
struct verbs_rail_blob {
	uint8_t gid[16];
	uint16_t lid;
	uint8_t link_layer; /* IBV_LINK_LAYER_* */
	uint8_t gid_type;   /* IBV_GID_TYPE_* */
	uint8_t mtu;        /* enum ibv_mtu: the largest that this side sends and takes */
	uint8_t zero[3];
};

struct verbs_blob {
	uint32_t magic;
	uint8_t n_rails;
	uint8_t n_qps;     /* per rail and direction */
	uint8_t is_paired; /* wants one queue pair for each direction */
	uint8_t is_cm;     /* connects through librdmacm */
	uint64_t nonce;    /* tells one iface from every other */
	struct verbs_rail_blob rails[VERBS_MAX_RAILS];
};

/* What the two ends of a connection tell each other before it is made. */
struct verbs_greeting {
	uint32_t magic;
	uint16_t n_paths;
	uint8_t is_cm;
	uint8_t zero;
	uint8_t token[VERBS_TOKEN_BYTES]; /* what a caller of this side has to say */
	struct {
		uint8_t ip[16]; /* IPv6, or IPv4-mapped: where this rail listens */
		uint16_t port;  /* host order */
		uint16_t zero;
	} rails[VERBS_MAX_RAILS];
	struct {
		uint32_t qp_num;
		uint32_t psn; /* of the first packet that this side sends */
	} paths[2 * VERBS_MAX_PATHS];
};

struct verbs_key {
	uint64_t address;
	uint64_t bytes;
	uint32_t magic;
	uint32_t n_rails;
	uint32_t rkey[VERBS_MAX_RAILS];
};

struct verbs_port {
	struct ibv_device *device;
	unsigned number;
};

struct verbs_ports {
	struct ibv_device **list; /* of libibverbs; freed by m2n__verbs_ports_free() */
	unsigned n;
	struct verbs_port port[VERBS_MAX_RAILS];
};

union verbs_address {
	struct sockaddr any;
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
};

/* How GPU memory is registered. */
enum verbs_gpu {
	VERBS_GPU_DMA_BUF,
	VERBS_GPU_PEER_MEMORY,
};

struct verbs_iface;
struct verbs_ep;
struct verbs_loopback;
struct m2n__gpu_flush;

struct verbs_rail {
	struct verbs_iface *iface;
	struct ibv_context *ctx;
	unsigned port;
	unsigned gid_index;
	unsigned interface; /* index of the network interface; 0: unknown */
	struct verbs_rail_blob blob;
	struct ibv_device_attr limits;
	size_t max_message;
	/* from the first connect() on */
	struct ibv_pd *pd;
	struct ibv_comp_channel *channel;
	struct ibv_cq *cq;
	struct ibv_srq *srq;
	struct rdma_cm_id *listener;
	union verbs_address cm_address; /* it listens at, without the port */
	struct verbs_lock lock;
	unsigned n_recvs;          /* room of the SRQ */
	unsigned n_taken;          /* receives used up and not yet posted again */
	unsigned n_cqes;           /* of the CQ that paths and receives may need at worst */
	struct verbs_path **paths; /* hash table by qp_num */
	unsigned n_paths, n_buckets;
	unsigned told_gpu; /* bit per enum verbs_gpu that the log has */
};

struct verbs_path {
	struct verbs_ep *ep;
	struct verbs_rail *rail;
	unsigned rail_idx;
	struct ibv_qp *qp;
	uint32_t uid; /* never 0, never used again soon: the upper half of wr_id */
	uint32_t psn;
	/* the send queue; under the ep's lock */
	uint64_t n_posted, n_marked;      /* work requests; up to the last signalled one */
	uint64_t n_borrowed;              /* up to the last one that reads the caller's bytes */
	struct ibv_send_wr *first, *last; /* to be posted at the end of a batch */
	_Atomic uint64_t n_done;          /* up to the last acknowledged one */
	/* librdmacm; under cm_lock */
	struct rdma_cm_id *id;
	int cm_state;
	unsigned n_tries;
};

enum verbs_state {
	VERBS_NEW = 0,
	VERBS_READY,
};

struct verbs_ep {
	struct m2n__ep ep;
	struct verbs_lock lock;
	struct verbs_blob peer;
	int is_self, is_cm;
	unsigned n_rails; /* that both sides have */
	unsigned n_paths; /* to send on */
	unsigned n_qps;   /* all queue pairs: n_paths, or twice as many when paired */
	unsigned rotor;   /* path of the next put */
	unsigned depth;   /* of every send queue */
	atomic_int state;
	atomic_int breaking; /* somebody writes `why` */
	atomic_int status;   /* 0, or why it is broken */
	char why[VERBS_WHY_BYTES];
	struct verbs_ep *next; /* of the iface; under cm_lock */
	uint8_t token[VERBS_TOKEN_BYTES], peer_token[VERBS_TOKEN_BYTES];
	unsigned n_open; /* paths that librdmacm has connected */
	int is_met, is_calling;
	int64_t cm_deadline_ns;
	struct verbs_path paths[];
};

struct verbs_iface {
	struct m2n__iface iface;
	const struct m2n__options *options;
	unsigned n_rails;
	atomic_int is_started;
	struct verbs_blob blob;
	struct verbs_rail rails[VERBS_MAX_RAILS];
	uint32_t next_uid;
	atomic_uint n_idle; /* calls of progress() since it last looked for rare events */
	/* connections; rdma_cm */
	pthread_mutex_t cm_lock;
	struct verbs_ep *eps;
	struct rdma_event_channel *cm_channel;
	atomic_uint n_calling; /* connections that librdmacm has not made yet */
	unsigned n_strangers;
	/* sleep.c */
	int kick_fd;
	atomic_uint generation, n_armed, n_followers;
	atomic_int is_led, is_polling;
	/* loopback.c; under flush_lock */
	pthread_mutex_t flush_lock;
	int is_flush_chosen;
	struct m2n__gpu_flush *gpu_flush;
	struct verbs_loopback *loopback;
};

struct verbs_mr {
	struct m2n__mr mr;
	int is_read_only;
	int is_device; /* GPU memory: the processor cannot read it */
	struct ibv_mr *rail[VERBS_MAX_RAILS];
};

struct verbs_rmem {
	struct m2n__rmem rmem;
	uint64_t address;
	uint32_t rkey[VERBS_MAX_RAILS];
};

void m2n__verbs_log(struct verbs_iface *v, enum m2n_log_level level, const char *format, ...)
	__attribute__((cold, format(printf, 3, 4)));

/* device.c: the ports that the options name, or the best. Errors say what there is. */
int m2n__verbs_ports_choose(const struct m2n__options *options, struct verbs_ports *ports);
void m2n__verbs_ports_free(struct verbs_ports *ports);
int m2n__verbs_probe(const struct m2n__options *options);

/* gid.c: fills gid, gid_type and the rail's gid_index. */
int m2n__verbs_gid_choose(const struct m2n__options *options, struct verbs_rail *rail,
	const struct ibv_port_attr *attr);
/* 1: an IPv4 address in IPv6 form. */
int m2n__verbs_is_ipv4(const uint8_t *gid);

/* rail.c */
int m2n__verbs_rail_open(
	struct verbs_iface *v, struct verbs_rail *rail, const struct verbs_port *port);
int m2n__verbs_rail_start(struct verbs_rail *rail);
void m2n__verbs_rail_close(struct verbs_rail *rail);
/* Room for the completions of a path, and its place in the table. */
int m2n__verbs_rail_add(struct verbs_rail *rail, struct verbs_path *path);
void m2n__verbs_rail_remove(struct verbs_rail *rail, struct verbs_path *path);
struct verbs_path *m2n__verbs_rail_find(struct verbs_rail *rail, uint32_t qp_num);
/* Posts the receives that were used up. Under the rail's lock. */
int m2n__verbs_rail_restock(struct verbs_rail *rail);

/* qp.c */
int m2n__verbs_qp_create(struct verbs_iface *v, struct verbs_path *path);
void m2n__verbs_qp_destroy(struct verbs_path *path);
/* To the end: the peer's queue pair is known. */
int m2n__verbs_qp_connect(struct verbs_path *path, uint32_t peer_qp_num, uint32_t peer_psn);
/* By what librdmacm knows of the connection. */
int m2n__verbs_qp_follow(struct verbs_path *path);

/* connect.c */
void m2n__verbs_blob_fill(struct verbs_iface *v);
/* The peer's queue pair that path i of ours talks to; the same the other way. */
unsigned m2n__verbs_partner(const struct verbs_ep *e, unsigned i);
int m2n__verbs_reaches(struct m2n__iface *iface, const void *blob, size_t bytes);
int m2n__verbs_connect(
	struct m2n__iface *iface, const void *blob, size_t bytes, struct m2n__ep **ep);
int m2n__verbs_greeting(struct m2n__ep *ep, void *greeting, size_t *bytes);
int m2n__verbs_meet(struct m2n__ep *ep, const void *greeting, size_t bytes);
int m2n__verbs_ready(struct m2n__ep *ep);
void m2n__verbs_disconnect(struct m2n__ep *ep);
int m2n__verbs_check(struct m2n__ep *ep);
/* The connection is of no use any more. The first call's text is kept. */
void m2n__verbs_break(struct verbs_ep *ep, const char *format, ...)
	__attribute__((cold, format(printf, 2, 3)));

/* memory.c */
int m2n__verbs_reg(struct m2n__iface *iface, const struct m2n__mem *mem, struct m2n__mr **mr);
void m2n__verbs_dereg(struct m2n__mr *mr);
int m2n__verbs_export(
	struct m2n__mr *mr, size_t offset, size_t bytes, void *key, size_t *key_bytes);
int m2n__verbs_import(
	struct m2n__ep *ep, const void *key, size_t key_bytes, struct m2n__rmem **rmem);
void m2n__verbs_release(struct m2n__rmem *rmem);
/* What peers may do with registered memory: enum ibv_access_flags. */
int m2n__verbs_access(const struct verbs_iface *v);

/* device_memory.c: GPU memory on every rail. What was registered before an error is in `m`. */
int m2n__verbs_reg_device(
	struct verbs_iface *v, const struct m2n__mem *mem, int access, struct verbs_mr *m);

/* loopback.c */
int m2n__verbs_flush_device(struct m2n__iface *iface);
void m2n__verbs_flush_close(struct verbs_iface *v);

/* put.c */
int m2n__verbs_put(struct m2n__ep *ep, struct m2n__put *put);
int m2n__verbs_flush(struct m2n__ep *ep);
int m2n__verbs_arrived(struct m2n__ep *ep);

/* progress.c */
int m2n__verbs_progress(struct m2n__iface *iface);

/* event.c: what comes rarely (ports, devices, queues). Under no lock. */
void m2n__verbs_look(struct verbs_iface *v);

/* cm.c: connections by librdmacm. Under the context's lock unless it says otherwise. */
int m2n__verbs_cm_start(struct verbs_iface *v);
void m2n__verbs_cm_stop(struct verbs_iface *v);
/* Where this side's rails listen, for the greeting. */
void m2n__verbs_cm_describe(struct verbs_iface *v, struct verbs_greeting *greeting);
/* The peer's greeting is known: the side with the smaller token calls. */
int m2n__verbs_cm_meet(struct verbs_ep *e, const struct verbs_greeting *greeting);
void m2n__verbs_cm_leave(struct verbs_ep *e);
/* Moves what has come; `wait`: also when another thread is at it. Any thread. */
void m2n__verbs_cm_progress(struct verbs_iface *v, int wait);
/* Breaks a connection whose time is over. */
void m2n__verbs_cm_expire(struct verbs_ep *e);
/* -1: librdmacm is not in use. */
int m2n__verbs_cm_fd(struct verbs_iface *v);

/* sleep.c */
int m2n__verbs_sleep_start(struct verbs_iface *v);
void m2n__verbs_sleep_stop(struct verbs_iface *v);
/* Signals were raised: whoever armed and may have missed them wakes. */
void m2n__verbs_kick(struct verbs_iface *v);
uint32_t m2n__verbs_arm(struct m2n__iface *iface);
void m2n__verbs_wait(struct m2n__iface *iface, uint32_t ticket, int64_t timeout_ns);
void m2n__verbs_disarm(struct m2n__iface *iface);

#endif
