/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The part of the CUDA driver interface that libm2n calls. Declared here, not taken from the
 * toolkit, and opened at run time (libcuda.so.1): the same library is built and runs on machines
 * with and without a toolkit, a driver and a GPU. Names of symbols are those that the driver
 * exports (with their _v2), types are the plain ones that its binary interface has.
 *
 * Source: CUDA Driver API reference, 12.4 (what is used last came with 12.0).
 */
#ifndef M2N_CUDA_DRIVER_H
#define M2N_CUDA_DRIVER_H

#include <stddef.h>
#include <stdint.h>

typedef int m2n__cu_result; /* 0: success */
typedef int m2n__cu_device;
typedef uint64_t m2n__cu_ptr; /* an address on the device */
typedef void *m2n__cu_context;
typedef void *m2n__cu_module;
typedef void *m2n__cu_function;
typedef void *m2n__cu_stream;
typedef void *m2n__cu_event;
typedef uint64_t m2n__cu_handle; /* of an allocation without an address */

struct m2n__cu_ipc {
	char bytes[64];
};
struct m2n__cu_uuid {
	char bytes[16];
};

struct m2n__cu_location {
	int type; /* 1: device */
	int id;
};

struct m2n__cu_alloc_prop {
	int type;         /* 1: pinned */
	int handle_types; /* 1: POSIX file descriptor */
	struct m2n__cu_location location;
	void *win32;
	struct {
		unsigned char compression, gpu_direct_rdma;
		unsigned short usage;
		unsigned char reserved[4];
	} flags;
};

struct m2n__cu_access {
	struct m2n__cu_location location;
	int flags; /* 3: read and write */
};

/* Results that are told apart. */
enum {
	M2N__CU_SUCCESS = 0,
	M2N__CU_INVALID_VALUE = 1,
	M2N__CU_OUT_OF_MEMORY = 2,
	M2N__CU_NOT_INITIALIZED = 3,
	M2N__CU_DEINITIALIZED = 4,
	M2N__CU_NO_DEVICE = 100,
	M2N__CU_INVALID_DEVICE = 101,
	M2N__CU_INVALID_IMAGE = 200,
	M2N__CU_INVALID_CONTEXT = 201,
	M2N__CU_ALREADY_MAPPED = 208,
	M2N__CU_NO_BINARY_FOR_GPU = 209,
	M2N__CU_PEER_ACCESS_UNSUPPORTED = 217,
	M2N__CU_UNSUPPORTED_PTX = 222, /* newer than the driver */
	M2N__CU_INVALID_HANDLE = 400,
	M2N__CU_ILLEGAL_STATE = 401,
	M2N__CU_NOT_FOUND = 500,
	M2N__CU_NOT_READY = 600,
	M2N__CU_ILLEGAL_ADDRESS = 700,
	M2N__CU_PEER_ACCESS_ALREADY_ENABLED = 704,
	M2N__CU_NOT_PERMITTED = 800,
	M2N__CU_NOT_SUPPORTED = 801,
	M2N__CU_SYSTEM_NOT_READY = 802,
	M2N__CU_DRIVER_MISMATCH = 803,
	M2N__CU_CAPTURE_UNSUPPORTED = 900,
	M2N__CU_CAPTURE_INVALIDATED = 901,
	M2N__CU_CAPTURE_MERGE = 902,
	M2N__CU_CAPTURE_UNMATCHED = 903,
	M2N__CU_CAPTURE_UNJOINED = 904,
	M2N__CU_CAPTURE_ISOLATION = 905,
	M2N__CU_CAPTURE_IMPLICIT = 906,
	M2N__CU_CAPTURED_EVENT = 907,
	M2N__CU_CAPTURE_WRONG_THREAD = 908,
};

/* Device attributes, pointer attributes, flags. */
enum {
	M2N__CU_DEV_MULTIPROCESSORS = 16,
	M2N__CU_DEV_CAN_MAP_HOST_MEMORY = 19,
	M2N__CU_DEV_UNIFIED_ADDRESSING = 41,
	M2N__CU_DEV_MAJOR = 75,
	M2N__CU_DEV_MINOR = 76,
	M2N__CU_DEV_VMM = 102,
	M2N__CU_DEV_HANDLE_FD = 103,
	M2N__CU_DEV_GPU_DIRECT_RDMA = 116,
	M2N__CU_DEV_GPU_DIRECT_FLUSH = 117,    /* bit 0: cuFlushGPUDirectRDMAWrites() */
	M2N__CU_DEV_GPU_DIRECT_ORDERING = 118, /* 0 none, 100 owner, 200 all devices */
	M2N__CU_DEV_DMA_BUF = 124,

	M2N__CU_PTR_MEMORY_TYPE = 2, /* 1 host, 2 device */
	M2N__CU_PTR_IS_LEGACY_IPC = 10,
	M2N__CU_PTR_SYNC_MEMOPS = 6,
	M2N__CU_PTR_DEVICE_ORDINAL = 9,
	M2N__CU_PTR_ALLOWED_HANDLES = 14,
	M2N__CU_PTR_IS_MANAGED = 8,

	M2N__CU_FUNC_REGISTERS = 4,
	M2N__CU_STREAM_NON_BLOCKING = 1,
	M2N__CU_EVENT_DISABLE_TIMING = 2,
	M2N__CU_HOST_PORTABLE = 1,
	M2N__CU_HOST_MAPPED = 2,
	M2N__CU_IPC_LAZY_PEER_ACCESS = 1,
	M2N__CU_HANDLE_FD = 1,
	M2N__CU_RANGE_HANDLE_DMA_BUF = 1,
	M2N__CU_FLUSH_TARGET_CURRENT_CTX = 0,
	M2N__CU_FLUSH_TO_OWNER = 100,
	M2N__CU_FLUSH_TO_ALL = 200,
	M2N__CU_WAIT_GEQ = 0,
	M2N__CU_WAIT_FLUSH = 1 << 30,
	M2N__CU_CAPTURE_NONE = 0,
	M2N__CU_CAPTURE_ACTIVE = 1,
	M2N__CU_CAPTURE_SPOILED = 2,
	M2N__CU_CAPTURE_MODE_GLOBAL = 0,
	M2N__CU_CAPTURE_MODE_THREAD = 1,
	M2N__CU_CAPTURE_MODE_RELAXED = 2,
};

/* clang-format off */
/* X(field, exported name, parameters): all return m2n__cu_result. */
#define M2N__CUDA_DRIVER(X) M2N__CUDA_DRIVER_REQUIRED(X) M2N__CUDA_DRIVER_OPTIONAL(X)
#define M2N__CUDA_DRIVER_REQUIRED(X) \
	X(init, "cuInit", (unsigned flags)) \
	X(driver_version, "cuDriverGetVersion", (int *version)) \
	X(error_name, "cuGetErrorName", (m2n__cu_result error, const char **text)) \
	X(error_string, "cuGetErrorString", (m2n__cu_result error, const char **text)) \
	X(device_count, "cuDeviceGetCount", (int *count)) \
	X(device_get, "cuDeviceGet", (m2n__cu_device *device, int ordinal)) \
	X(device_name, "cuDeviceGetName", (char *name, int length, m2n__cu_device device)) \
	X(device_uuid, "cuDeviceGetUuid_v2", (struct m2n__cu_uuid *uuid, m2n__cu_device device)) \
	X(device_attribute, "cuDeviceGetAttribute", (int *value, int attribute, m2n__cu_device device)) \
	X(device_can_access_peer, "cuDeviceCanAccessPeer", (int *can, m2n__cu_device device, m2n__cu_device peer)) \
	X(primary_retain, "cuDevicePrimaryCtxRetain", (m2n__cu_context *context, m2n__cu_device device)) \
	X(primary_release, "cuDevicePrimaryCtxRelease_v2", (m2n__cu_device device)) \
	X(ctx_push, "cuCtxPushCurrent_v2", (m2n__cu_context context)) \
	X(ctx_pop, "cuCtxPopCurrent_v2", (m2n__cu_context *context)) \
	X(ctx_get_current, "cuCtxGetCurrent", (m2n__cu_context *context)) \
	X(ctx_get_device, "cuCtxGetDevice", (m2n__cu_device *device)) \
	X(ctx_synchronize, "cuCtxSynchronize", (void)) \
	X(ctx_enable_peer, "cuCtxEnablePeerAccess", (m2n__cu_context peer, unsigned flags)) \
	X(module_load, "cuModuleLoadData", (m2n__cu_module *module, const void *image)) \
	X(module_unload, "cuModuleUnload", (m2n__cu_module module)) \
	X(module_function, "cuModuleGetFunction", (m2n__cu_function *function, m2n__cu_module module, const char *name)) \
	X(func_attribute, "cuFuncGetAttribute", (int *value, int attribute, m2n__cu_function function)) \
	X(launch, "cuLaunchKernel", (m2n__cu_function function, unsigned grid_x, unsigned grid_y, unsigned grid_z, \
		unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes, m2n__cu_stream stream, \
		void **params, void **extra)) \
	X(mem_alloc, "cuMemAlloc_v2", (m2n__cu_ptr *at, size_t bytes)) \
	X(mem_free, "cuMemFree_v2", (m2n__cu_ptr at)) \
	X(mem_info, "cuMemGetInfo_v2", (size_t *free_bytes, size_t *total)) \
	X(mem_range, "cuMemGetAddressRange_v2", (m2n__cu_ptr *base, size_t *bytes, m2n__cu_ptr at)) \
	X(host_alloc, "cuMemHostAlloc", (void **at, size_t bytes, unsigned flags)) \
	X(host_free, "cuMemFreeHost", (void *at)) \
	X(host_device_ptr, "cuMemHostGetDevicePointer_v2", (m2n__cu_ptr *device, void *host, unsigned flags)) \
	X(memset_async, "cuMemsetD8Async", (m2n__cu_ptr at, unsigned char value, size_t bytes, m2n__cu_stream stream)) \
	X(copy_to_device, "cuMemcpyHtoDAsync_v2", (m2n__cu_ptr to, const void *from, size_t bytes, m2n__cu_stream stream)) \
	X(copy_to_host, "cuMemcpyDtoHAsync_v2", (void *to, m2n__cu_ptr from, size_t bytes, m2n__cu_stream stream)) \
	X(copy_on_device, "cuMemcpyDtoDAsync_v2", (m2n__cu_ptr to, m2n__cu_ptr from, size_t bytes, m2n__cu_stream stream)) \
	X(pointer_attribute, "cuPointerGetAttribute", (void *value, int attribute, m2n__cu_ptr at)) \
	X(pointer_set_attribute, "cuPointerSetAttribute", (const void *value, int attribute, m2n__cu_ptr at)) \
	X(stream_create, "cuStreamCreate", (m2n__cu_stream *stream, unsigned flags)) \
	X(stream_create_priority, "cuStreamCreateWithPriority", (m2n__cu_stream *stream, unsigned flags, int priority)) \
	X(stream_priorities, "cuCtxGetStreamPriorityRange", (int *least, int *greatest)) \
	X(stream_destroy, "cuStreamDestroy_v2", (m2n__cu_stream stream)) \
	X(stream_query, "cuStreamQuery", (m2n__cu_stream stream)) \
	X(stream_synchronize, "cuStreamSynchronize", (m2n__cu_stream stream)) \
	X(stream_wait_event, "cuStreamWaitEvent", (m2n__cu_stream stream, m2n__cu_event event, unsigned flags)) \
	X(stream_is_capturing, "cuStreamIsCapturing", (m2n__cu_stream stream, int *status)) \
	X(stream_wait_value, "cuStreamWaitValue64_v2", (m2n__cu_stream stream, m2n__cu_ptr at, uint64_t value, unsigned flags)) \
	X(stream_write_value, "cuStreamWriteValue64_v2", (m2n__cu_stream stream, m2n__cu_ptr at, uint64_t value, unsigned flags)) \
	X(capture_mode, "cuThreadExchangeStreamCaptureMode", (int *mode)) \
	X(stream_begin_capture, "cuStreamBeginCapture_v2", (m2n__cu_stream stream, int mode)) \
	X(stream_end_capture, "cuStreamEndCapture", (m2n__cu_stream stream, void **graph)) \
	X(graph_instantiate, "cuGraphInstantiateWithFlags", (void **exec, void *graph, unsigned long long flags)) \
	X(graph_launch, "cuGraphLaunch", (void *exec, m2n__cu_stream stream)) \
	X(graph_exec_destroy, "cuGraphExecDestroy", (void *exec)) \
	X(graph_destroy, "cuGraphDestroy", (void *graph)) \
	X(event_create, "cuEventCreate", (m2n__cu_event *event, unsigned flags)) \
	X(event_destroy, "cuEventDestroy_v2", (m2n__cu_event event)) \
	X(event_record, "cuEventRecord", (m2n__cu_event event, m2n__cu_stream stream)) \
	X(event_query, "cuEventQuery", (m2n__cu_event event)) \
	X(event_synchronize, "cuEventSynchronize", (m2n__cu_event event)) \
	X(event_elapsed, "cuEventElapsedTime", (float *ms, m2n__cu_event from, m2n__cu_event to)) \
	X(ipc_get, "cuIpcGetMemHandle", (struct m2n__cu_ipc *handle, m2n__cu_ptr at)) \
	X(ipc_open, "cuIpcOpenMemHandle_v2", (m2n__cu_ptr *at, struct m2n__cu_ipc handle, unsigned flags)) \
	X(ipc_close, "cuIpcCloseMemHandle", (m2n__cu_ptr at)) \
	X(vmm_granularity, "cuMemGetAllocationGranularity", (size_t *bytes, const struct m2n__cu_alloc_prop *prop, int option)) \
	X(vmm_create, "cuMemCreate", (m2n__cu_handle *handle, size_t bytes, const struct m2n__cu_alloc_prop *prop, \
		unsigned long long flags)) \
	X(vmm_release, "cuMemRelease", (m2n__cu_handle handle)) \
	X(vmm_reserve, "cuMemAddressReserve", (m2n__cu_ptr *at, size_t bytes, size_t align, m2n__cu_ptr hint, \
		unsigned long long flags)) \
	X(vmm_unreserve, "cuMemAddressFree", (m2n__cu_ptr at, size_t bytes)) \
	X(vmm_map, "cuMemMap", (m2n__cu_ptr at, size_t bytes, size_t offset, m2n__cu_handle handle, unsigned long long flags)) \
	X(vmm_unmap, "cuMemUnmap", (m2n__cu_ptr at, size_t bytes)) \
	X(vmm_access, "cuMemSetAccess", (m2n__cu_ptr at, size_t bytes, const struct m2n__cu_access *access, size_t n)) \
	X(vmm_retain, "cuMemRetainAllocationHandle", (m2n__cu_handle *handle, void *at)) \
	X(vmm_export, "cuMemExportToShareableHandle", (void *fd, m2n__cu_handle handle, int type, unsigned long long flags)) \
	X(vmm_import, "cuMemImportFromShareableHandle", (m2n__cu_handle *handle, void *fd, int type))
/* Fields that may be NULL: some platforms' drivers lack them. */
#define M2N__CUDA_DRIVER_OPTIONAL(X) \
	X(func_load, "cuFuncLoad", (m2n__cu_function function)) /* 12.4 */ \
	X(range_handle, "cuMemGetHandleForAddressRange", (void *handle, m2n__cu_ptr at, size_t bytes, int type, \
		unsigned long long flags)) \
	X(flush_rdma_writes, "cuFlushGPUDirectRDMAWrites", (int target, int scope))
/* clang-format on */

struct m2n__cuda_driver {
#define M2N__CUDA_FIELD(field, symbol, params) m2n__cu_result(*field) params;
	M2N__CUDA_DRIVER(M2N__CUDA_FIELD)
#undef M2N__CUDA_FIELD
};

#endif
