/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The inside of the cuda_ipc backend. Host memory, doorbell and sleep are those of an iface of shm
 * that it holds; what it adds is memory on the device.
 *
 * A key of device memory names its process (pid and a random number: a pid alone may be another
 * process's tomorrow, or in another namespace), its device by UUID, and the *source*: what the
 * driver opens the allocations by. Mappings of sources are shared by the whole process, as the
 * driver opens an allocation once for a device.
 */
#ifndef M2N_BACKEND_CUDA_IPC_H
#define M2N_BACKEND_CUDA_IPC_H

#include "backend/backend.h"
#include "mem/cuda.h"

#define IPC_MAX_DEVICES 16  /* of one host that a peer may have */
#define IPC_MAX_SEGMENTS 12 /* allocations that one range of addresses may be made of */
#define IPC_HOST_BLOB_BYTES 160
#define IPC_KEY_MAGIC 0x4b49324dU  /* "M2IK" */
#define IPC_BLOB_MAGIC 0x4249324dU /* "M2IB" */

enum ipc_kind {
	IPC_KIND_HOST = 1,   /* a key of shm follows */
	IPC_KIND_LEGACY = 2, /* an IPC handle: memory of cuMemAlloc() */
	IPC_KIND_FD = 3,     /* file descriptors: memory of cuMemCreate() */
};

/* Devices that this one reaches and that reach it, itself first. */
struct ipc_devices {
	unsigned n;
	int ordinal[IPC_MAX_DEVICES];
	struct m2n__cu_uuid uuid[IPC_MAX_DEVICES];
};

struct ipc_blob {
	uint32_t magic;
	uint32_t n_devices;
	uint64_t host_bytes;
	uint8_t host[IPC_HOST_BLOB_BYTES]; /* shm's blob */
	struct m2n__cu_uuid device[IPC_MAX_DEVICES];
};

struct ipc_segment {
	uint64_t bytes;
	uint64_t inode; /* guards against a descriptor that was closed and reused */
	uint32_t fd;
	uint32_t zero;
};

/* What a mapping is of; compared as bytes. */
struct ipc_source {
	uint64_t nonce;
	uint64_t serial; /* handles and descriptors may look like those of freed memory */
	uint32_t pid;
	uint32_t kind;
	uint32_t n_segments;
	uint32_t zero;
	uint64_t bytes; /* of all allocations together */
	union {
		struct m2n__cu_ipc handle;
		struct ipc_segment segment[IPC_MAX_SEGMENTS];
	} by;
};

struct ipc_key_head {
	uint32_t magic;
	uint32_t kind;
};

struct ipc_key {
	struct ipc_key_head head;
	uint64_t address; /* in the process whose memory it is */
	uint64_t bytes;
	uint64_t offset; /* in the source */
	struct m2n__cu_uuid device;
	struct ipc_source source;
};

struct ipc_iface {
	struct m2n__iface iface;
	struct m2n__iface *host;
	struct ipc_devices devices;
};

struct ipc_ep {
	struct m2n__ep ep;
	struct m2n__ep *host;
};

struct ipc_mr {
	struct m2n__mr mr;
	struct m2n__mr *host; /* NULL: device memory */
	/* Of device memory that was exported: */
	int is_exported;
	uint64_t base; /* of the first allocation */
	struct ipc_source source;
};

struct ipc_mapping;

struct ipc_rmem {
	struct m2n__rmem rmem;
	struct m2n__rmem *host;      /* NULL: device memory */
	struct ipc_mapping *mapping; /* NULL: memory of this process */
	struct m2n__cuda *cuda;      /* the ep may be gone when the key is released */
};

/* The backend that host memory is left to. */
extern const struct m2n__backend_ops *const m2n__ipc_host;

/* device.c */
void m2n__ipc_devices_find(const struct m2n__cuda *cuda, struct ipc_devices *devices);
/* The ordinal of a device in the list, -1: it is not there. */
int m2n__ipc_devices_ordinal(const struct ipc_devices *devices, const struct m2n__cu_uuid *uuid);
/*
 * The allocation that a device address lies in. Inside m2n__cuda_enter_relaxed(). `is_legacy`: an
 * IPC handle names it. -EINVAL: the driver knows of none there.
 */
int m2n__ipc_allocation(
	const struct m2n__cuda *cuda, uint64_t at, uint64_t *base, uint64_t *bytes, int *is_legacy);
/* Is [at, at + bytes) device memory without gaps, and the first allocation's if that is legacy? */
int m2n__ipc_check_range(const struct m2n__cuda *cuda, uint64_t at, uint64_t bytes);
/* Lets kernels of `cuda` reach memory that another device of this process has. */
int m2n__ipc_reach(const struct m2n__cuda *cuda, int ordinal, uint64_t at, uint64_t bytes);

/* source.c: the exporter's side. */
uint32_t m2n__ipc_pid(void);
uint64_t m2n__ipc_nonce(void); /* of this process */
/* Inside m2n__cuda_enter_relaxed(). `base`: the address that offset 0 of the source is at. */
int m2n__ipc_source_make(const struct m2n__cuda *cuda, uint64_t at, uint64_t bytes, uint64_t *base,
	struct ipc_source *source);
void m2n__ipc_source_clear(struct ipc_source *source);

/* mapping.c: the importer's side. An iface is open as long as it may have mappings. */
int m2n__ipc_importer_open(const struct m2n__cuda *cuda);
void m2n__ipc_importer_close(const struct m2n__cuda *cuda);
/* Inside m2n__cuda_enter_relaxed(). */
int m2n__ipc_mapping_get(
	struct m2n__cuda *cuda, const struct ipc_source *source, struct ipc_mapping **mapping);
void m2n__ipc_mapping_put(struct m2n__cuda *cuda, struct ipc_mapping *mapping);
uint64_t m2n__ipc_mapping_at(const struct ipc_mapping *mapping);
uint64_t m2n__ipc_mapping_bytes(const struct ipc_mapping *mapping);

/* memory.c */
int m2n__ipc_reg(struct m2n__iface *iface, const struct m2n__mem *mem, struct m2n__mr **mr);
void m2n__ipc_dereg(struct m2n__mr *mr);
int m2n__ipc_export(struct m2n__mr *mr, size_t offset, size_t bytes, void *key, size_t *key_bytes);
int m2n__ipc_import(struct m2n__ep *ep, const void *key, size_t key_bytes, struct m2n__rmem **rmem);
void m2n__ipc_release(struct m2n__rmem *rmem);

#endif
