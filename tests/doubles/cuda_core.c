/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stand-in of libcuda.so.1: start, devices, contexts, modules, injected errors and counters.
 *
 * Like the driver it has one state for a process, which a fork() ends: in the child every call
 * fails. The environment is read by cuInit(); nothing is done before that.
 */
#include "doubles/cuda_state.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_DEPTH 16
#define MAX_RULES 32
#define DEFAULT_BYTES ((uint64_t)8 << 30)

extern const struct m2n_double_kernel weak_kernels[] __asm__("m2n_double_kernels")
	__attribute__((weak));

EXPORT void m2n_double_counters_read(struct m2n_double_counters *) __asm__(
	"m2n_double_read_counters");
EXPORT uint64_t m2n_double_calls_of(const char *) __asm__("m2n_double_calls");
EXPORT int m2n_double_fail_on(const char *) __asm__("m2n_double_fail");
EXPORT int m2n_double_leave_out_of(const char *) __asm__("m2n_double_leave_out");

#define LEFT_OUT (-1) /* instead of a result */

/* Of the calls of a driver's function, or of the launches of a kernel, the nth, or all from it. */
struct rule {
	char name[64];
	uint64_t n, n_seen;
	int and_later;
	m2n__cu_result result;
};

struct rules {
	struct rule rules[MAX_RULES];
	_Atomic unsigned n;
};

struct module {
	struct context *context;
	struct module *next;
};

pthread_mutex_t double_lock = PTHREAD_MUTEX_INITIALIZER;
struct settings double_settings;
struct context double_contexts[MAX_DEVICES];
struct m2n_double_counters double_counters;

static const char *const symbols[] = {
#define SYMBOL(field, symbol, params) symbol,
	M2N__CUDA_DRIVER(SYMBOL)
#undef SYMBOL
};
static _Atomic uint64_t calls[N_FUNCTIONS];
static struct rules failing, left_out;
static _Atomic int sticky, is_ready;
atomic_int double_was_forked;
static struct module *modules;
static THREAD_LOCAL struct context *stack[MAX_DEPTH];
static THREAD_LOCAL unsigned depth;

uint64_t double_random(uint64_t *state)
{
	uint64_t x = *state += 0x9e3779b97f4a7c15;

	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
	x = (x ^ x >> 27) * 0x94d049bb133111eb;
	return x ^ x >> 31;
}

int64_t double_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* What the rules say of a call of `name`; 0: nothing. */
static m2n__cu_result apply(struct rules *rules, const char *name)
{
	m2n__cu_result result = 0;

	for (unsigned i = 0; i < rules->n; i++) {
		struct rule *r = &rules->rules[i];

		if (strcmp(r->name, name))
			continue;
		r->n_seen++;
		if (!result && (r->and_later ? r->n_seen >= r->n : r->n_seen == r->n))
			result = r->result;
	}
	return result;
}

m2n__cu_result double_enter(enum fn fn)
{
	m2n__cu_result result = 0;

	calls[fn]++;
	if (fn == FN_driver_version || fn == FN_error_name || fn == FN_error_string)
		return 0;
	if (double_was_forked || (fn != FN_init && !is_ready))
		result = M2N__CU_NOT_INITIALIZED;
	if (!result && (failing.n || left_out.n || sticky)) {
		LOCKED();
		result = apply(&failing, symbols[fn]);
		if (result >= 700 && result < 800)
			sticky = result;
		if (!result)
			result = sticky;
		if (!result)
			result = apply(&left_out, symbols[fn]);
	}
	return result;
}

static int fn_of(const char *symbol)
{
	for (int i = 0; i < N_FUNCTIONS; i++)
		if (!strcmp(symbols[i], symbol))
			return i;
	return -1;
}

/* "name:n", "name:n+", with ":result" behind for those that fail. */
static int parse_rule(const char *text, m2n__cu_result result, struct rule *rule)
{
	const char *colon = strchr(text, ':');
	size_t length = colon ? (size_t)(colon - text) : sizeof(rule->name);
	char *end;

	*rule = (struct rule){.result = result};
	if (length >= sizeof(rule->name))
		return -1;
	memcpy(rule->name, text, length);
	rule->n = strtoull(colon + 1, &end, 10);
	if (end == colon + 1)
		return -1;
	if (*end == '+') {
		rule->and_later = 1;
		end++;
	}
	if (*end == ':' && result != LEFT_OUT)
		rule->result = (m2n__cu_result)strtol(end + 1, &end, 10);
	return *end && *end != ',' ? -1 : 0;
}

static int parse_rules(const char *text, m2n__cu_result result, struct rules *rules)
{
	rules->n = 0;
	while (text && *text) {
		struct rule *r = &rules->rules[rules->n];

		if (rules->n == MAX_RULES || parse_rule(text, result, r) ||
			(result != LEFT_OUT && fn_of(r->name) < 0))
			return -1;
		rules->n++;
		text = strchr(text, ',');
		text += text != NULL;
	}
	return 0;
}

int m2n_double_fail_on(const char *text)
{
	LOCKED();
	sticky = 0;
	return parse_rules(text, M2N__CU_OUT_OF_MEMORY, &failing);
}

int m2n_double_leave_out_of(const char *text)
{
	LOCKED();
	return parse_rules(text, LEFT_OUT, &left_out);
}

uint64_t m2n_double_calls_of(const char *symbol)
{
	int fn = fn_of(symbol);

	return fn < 0 ? UINT64_MAX : calls[fn];
}

void m2n_double_counters_read(struct m2n_double_counters *counters)
{
	LOCKED();
	*counters = double_counters;
}

static uint64_t number(const char *name, uint64_t otherwise)
{
	const char *text = getenv(name);

	return text && *text ? strtoull(text, NULL, 0) : otherwise;
}

static void note_fork(void)
{
	double_was_forked = 1;
}

static void read_rules(const char *name, m2n__cu_result result, struct rules *rules)
{
	const char *text = getenv(name);

	if (text && parse_rules(text, result, rules)) {
		fprintf(stderr, "cuda double: %s=%s is not understood\n", name, text);
		abort();
	}
}

static void read_settings(void)
{
	uint64_t n = number("M2N_DOUBLE_DEVICES", 1);

	double_settings = (struct settings){
		.n_devices = (int)(n < MAX_DEVICES ? n : MAX_DEVICES),
		.seed = number("M2N_DOUBLE_SEED", 1),
		.delay_us = number("M2N_DOUBLE_DELAY_US", 0),
		.device_bytes = number("M2N_DOUBLE_DEVICE_MEMORY", DEFAULT_BYTES),
	};
	read_rules("M2N_DOUBLE_FAIL", M2N__CU_OUT_OF_MEMORY, &failing);
	read_rules("M2N_DOUBLE_LEAVE_OUT", LEFT_OUT, &left_out);
	for (int i = 0; i < MAX_DEVICES; i++)
		double_contexts[i].ordinal = i;
	pthread_atfork(NULL, NULL, note_fork);
}

m2n__cu_result m2n_double_init(unsigned flags)
{
	static int is_prepared;

	pthread_mutex_lock(&double_lock);
	if (!is_prepared)
		read_settings();
	is_prepared = 1;
	pthread_mutex_unlock(&double_lock);
	ENTER(init);
	if (flags)
		return M2N__CU_INVALID_VALUE;
	if (!double_settings.n_devices)
		return M2N__CU_NO_DEVICE;
	is_ready = 1;
	return 0;
}

m2n__cu_result m2n_double_driver_version(int *version)
{
	ENTER(driver_version);
	*version = (int)number("M2N_DOUBLE_DRIVER_VERSION", 12040);
	return 0;
}

static const struct {
	m2n__cu_result result;
	const char *name, *text;
} errors[] = {
	{0, "CUDA_SUCCESS", "no error"},
	{1, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
	{2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
	{3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
	{4, "CUDA_ERROR_DEINITIALIZED", "driver shutting down"},
	{100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
	{101, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
	{200, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
	{201, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
	{208, "CUDA_ERROR_ALREADY_MAPPED", "resource already mapped"},
	{209, "CUDA_ERROR_NO_BINARY_FOR_GPU",
		"no kernel image is available for execution on the device"},
	{217, "CUDA_ERROR_PEER_ACCESS_UNSUPPORTED", "peer access is not supported"},
	{400, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
	{401, "CUDA_ERROR_ILLEGAL_STATE",
		"the operation cannot be performed in the present state"},
	{500, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
	{600, "CUDA_ERROR_NOT_READY", "device not ready"},
	{700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
	{704, "CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED", "peer access is already enabled"},
	{719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
	{800, "CUDA_ERROR_NOT_PERMITTED", "operation not permitted"},
	{801, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
	{900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
		"operation not permitted when stream is capturing"},
	{901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
		"operation failed due to a previous error during capture"},
	{902, "CUDA_ERROR_STREAM_CAPTURE_MERGE", "operation would result in a merge of separate "
		"capture sequences"},
	{903, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "capture was not ended in the same stream as "
		"it began"},
	{904, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED",
		"capturing stream has unjoined work"},
	{905, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION",
		"dependency created on uncaptured work in another stream"},
	{906, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT",
		"operation would make the legacy stream depend on a capturing blocking stream"},
	{907, "CUDA_ERROR_CAPTURED_EVENT",
		"operation not permitted on an event last recorded in a capturing stream"},
	{908, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD",
		"attempt to terminate a thread-local capture sequence from another thread"},
};

static m2n__cu_result error_text(m2n__cu_result error, int is_name, const char **text)
{
	for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++)
		if (errors[i].result == error) {
			*text = is_name ? errors[i].name : errors[i].text;
			return 0;
		}
	*text = NULL;
	return M2N__CU_INVALID_VALUE;
}

m2n__cu_result m2n_double_error_name(m2n__cu_result error, const char **text)
{
	ENTER(error_name);
	return error_text(error, 1, text);
}

m2n__cu_result m2n_double_error_string(m2n__cu_result error, const char **text)
{
	ENTER(error_string);
	return error_text(error, 0, text);
}

static int is_device(m2n__cu_device device)
{
	return device >= 0 && device < double_settings.n_devices;
}

m2n__cu_result m2n_double_device_count(int *count)
{
	ENTER(device_count);
	*count = double_settings.n_devices;
	return 0;
}

m2n__cu_result m2n_double_device_get(m2n__cu_device *device, int ordinal)
{
	ENTER(device_get);
	if (!is_device(ordinal))
		return M2N__CU_INVALID_DEVICE;
	*device = ordinal;
	return 0;
}

m2n__cu_result m2n_double_device_name(char *name, int length, m2n__cu_device device)
{
	ENTER(device_name);
	if (!is_device(device))
		return M2N__CU_INVALID_DEVICE;
	snprintf(name, (size_t)length, "CUDA double");
	return 0;
}

m2n__cu_result m2n_double_device_uuid(struct m2n__cu_uuid *uuid, m2n__cu_device device)
{
	ENTER(device_uuid);
	if (!is_device(device))
		return M2N__CU_INVALID_DEVICE;
	memset(uuid, 0, sizeof(*uuid));
	snprintf(uuid->bytes, sizeof(uuid->bytes), "double %d", device % MAX_DEVICES);
	return 0;
}

/* M2N_DOUBLE_ATTRIBUTES="41=0,124=0" */
static int overridden(int attribute, int value)
{
	const char *text = getenv("M2N_DOUBLE_ATTRIBUTES");
	int at, to, n;

	while (text && sscanf(text, "%d=%d%n", &at, &to, &n) == 2) {
		if (at == attribute)
			return to;
		text += n;
		text += *text == ',';
	}
	return value;
}

m2n__cu_result m2n_double_device_attribute(int *value, int attribute, m2n__cu_device device)
{
	ENTER(device_attribute);
	if (!is_device(device))
		return M2N__CU_INVALID_DEVICE;
	switch (attribute) {
	case M2N__CU_DEV_MULTIPROCESSORS:
		*value = 4;
		break;
	case M2N__CU_DEV_MAJOR:
		*value = 9;
		break;
	case M2N__CU_DEV_MINOR:
	case M2N__CU_DEV_GPU_DIRECT_ORDERING:
		*value = 0;
		break;
	case M2N__CU_DEV_CAN_MAP_HOST_MEMORY:
	case M2N__CU_DEV_UNIFIED_ADDRESSING:
	case M2N__CU_DEV_VMM:
	case M2N__CU_DEV_HANDLE_FD:
	case M2N__CU_DEV_GPU_DIRECT_RDMA:
	case M2N__CU_DEV_GPU_DIRECT_FLUSH:
	case M2N__CU_DEV_DMA_BUF:
		*value = 1;
		break;
	default:
		return M2N__CU_INVALID_VALUE;
	}
	*value = overridden(attribute, *value);
	return 0;
}

m2n__cu_result m2n_double_device_can_access_peer(int *can, m2n__cu_device device,
	m2n__cu_device peer)
{
	ENTER(device_can_access_peer);
	if (!is_device(device) || !is_device(peer))
		return M2N__CU_INVALID_DEVICE;
	*can = device != peer && number("M2N_DOUBLE_PEER", 1);
	return 0;
}

/* ---- contexts ---- */

static struct context *alive(m2n__cu_context handle)
{
	for (int i = 0; i < double_settings.n_devices; i++)
		if (handle == &double_contexts[i])
			return double_contexts[i].refs ? handle : NULL;
	return NULL;
}

struct context *double_context(void)
{
	return depth ? alive(stack[depth - 1]) : NULL;
}

m2n__cu_result m2n_double_primary_retain(m2n__cu_context *context, m2n__cu_device device)
{
	ENTER(primary_retain);
	LOCKED();
	if (!is_device(device))
		return M2N__CU_INVALID_DEVICE;
	double_contexts[device].refs++;
	*context = &double_contexts[device];
	return 0;
}

m2n__cu_result m2n_double_primary_release(m2n__cu_device device)
{
	struct context *context;

	ENTER(primary_release);
	LOCKED();
	if (!is_device(device))
		return M2N__CU_INVALID_DEVICE;
	context = &double_contexts[device];
	if (!context->refs)
		return M2N__CU_INVALID_CONTEXT;
	if (--context->refs)
		return 0;
	double_end_streams(context);
	double_free_blocks(context);
	for (struct module **at = &modules; *at;) {
		struct module *m = *at;

		if (m->context != context) {
			at = &m->next;
			continue;
		}
		*at = m->next;
		free(m);
	}
	return 0;
}

m2n__cu_result m2n_double_ctx_push(m2n__cu_context context)
{
	ENTER(ctx_push);
	LOCKED();
	if (!alive(context))
		return M2N__CU_INVALID_CONTEXT;
	if (depth == MAX_DEPTH)
		return M2N__CU_INVALID_VALUE;
	stack[depth++] = context;
	return 0;
}

m2n__cu_result m2n_double_ctx_pop(m2n__cu_context *context)
{
	ENTER(ctx_pop);
	if (!depth)
		return M2N__CU_INVALID_CONTEXT;
	depth--;
	if (context)
		*context = stack[depth];
	return 0;
}

m2n__cu_result m2n_double_ctx_get_current(m2n__cu_context *context)
{
	ENTER(ctx_get_current);
	*context = depth ? stack[depth - 1] : NULL;
	return 0;
}

m2n__cu_result m2n_double_ctx_get_device(m2n__cu_device *device)
{
	struct context *context;

	ENTER(ctx_get_device);
	LOCKED();
	context = double_context();
	if (!context)
		return M2N__CU_INVALID_CONTEXT;
	*device = context->ordinal;
	return 0;
}

m2n__cu_result m2n_double_ctx_synchronize(void)
{
	struct context *context;
	m2n__cu_result result;

	ENTER(ctx_synchronize);
	LOCKED();
	context = double_context();
	if (!context)
		return M2N__CU_INVALID_CONTEXT;
	result = double_unsafe();
	if (result)
		return result;
	double_counters.n_host_waits++;
	double_await_context(context);
	return 0;
}

m2n__cu_result m2n_double_ctx_enable_peer(m2n__cu_context peer, unsigned flags)
{
	struct context *context, *other;

	ENTER(ctx_enable_peer);
	LOCKED();
	context = double_context();
	other = alive(peer);
	if (!context || !other)
		return M2N__CU_INVALID_CONTEXT;
	if (flags)
		return M2N__CU_INVALID_VALUE;
	if (context == other || !number("M2N_DOUBLE_PEER", 1))
		return M2N__CU_PEER_ACCESS_UNSUPPORTED;
	if (context->peers >> other->ordinal & 1)
		return M2N__CU_PEER_ACCESS_ALREADY_ENABLED;
	context->peers |= 1u << other->ordinal;
	return 0;
}

/* ---- modules and launches ---- */

/* Relaxed: tests leave orders out on purpose, which the thread sanitizer must not call a race. */
static void run_fill(const void *args, unsigned n_blocks, unsigned n_threads, size_t shared_bytes)
{
	const struct m2n_double_fill_args *a = args;
	uint32_t *to = (uint32_t *)(uintptr_t)a->at;

	(void)n_blocks, (void)n_threads, (void)shared_bytes;
	for (uint64_t i = 0; i < a->n; i++)
		__atomic_store_n(&to[i], a->value + (uint32_t)i, __ATOMIC_RELAXED);
}

static void run_add(const void *args, unsigned n_blocks, unsigned n_threads, size_t shared_bytes)
{
	const struct m2n_double_add_args *a = args;
	const uint32_t *from = (const uint32_t *)(uintptr_t)a->from;
	uint32_t *to = (uint32_t *)(uintptr_t)a->to;

	(void)n_blocks, (void)n_threads, (void)shared_bytes;
	for (uint64_t i = 0; i < a->n; i++)
		__atomic_store_n(&to[i], to[i] + __atomic_load_n(&from[i], __ATOMIC_RELAXED),
			__ATOMIC_RELAXED);
}

static void run_await(const void *args, unsigned n_blocks, unsigned n_threads, size_t shared_bytes)
{
	const struct m2n_double_await_args *a = args;
	const struct work work = {.kind = WORK_AWAIT_VALUE, .to = a->at, .value = a->value};

	(void)n_blocks, (void)n_threads, (void)shared_bytes;
	double_run(&work, NULL);
}

static const struct m2n_double_kernel own_kernels[] = {
	{"m2n_double_fill", sizeof(struct m2n_double_fill_args), run_fill},
	{"m2n_double_add", sizeof(struct m2n_double_add_args), run_add},
	{"m2n_double_await", sizeof(struct m2n_double_await_args), run_await},
	{NULL, 0, NULL},
};

m2n__cu_result m2n_double_module_load(m2n__cu_module *module, const void *image)
{
	struct module *m;

	ENTER(module_load);
	LOCKED();
	if (!double_context())
		return M2N__CU_INVALID_CONTEXT;
	if (!image)
		return M2N__CU_INVALID_VALUE;
	m = malloc(sizeof(*m));
	if (!m)
		return M2N__CU_OUT_OF_MEMORY;
	*m = (struct module){.context = double_context(), .next = modules};
	modules = m;
	*module = m;
	return 0;
}

m2n__cu_result m2n_double_module_unload(m2n__cu_module module)
{
	ENTER(module_unload);
	LOCKED();
	for (struct module **at = &modules; *at; at = &(*at)->next)
		if (*at == module) {
			struct module *m = *at;

			*at = m->next;
			free(m);
			return 0;
		}
	return M2N__CU_INVALID_HANDLE;
}

static const struct m2n_double_kernel *find(const struct m2n_double_kernel *table,
	const char *name)
{
	for (; table && table->name; table++)
		if (!strcmp(table->name, name))
			return table;
	return NULL;
}

m2n__cu_result m2n_double_module_function(m2n__cu_function *function, m2n__cu_module module,
	const char *name)
{
	const struct m2n_double_kernel *kernel = find(own_kernels, name);
	const struct module *m;

	ENTER(module_function);
	LOCKED();
	for (m = modules; m && m != module; m = m->next)
		;
	if (!m)
		return M2N__CU_INVALID_HANDLE;
	if (!kernel)
		kernel = find(weak_kernels, name);
	if (!kernel)
		return M2N__CU_NOT_FOUND;
	memcpy(function, &kernel, sizeof(kernel));
	return 0;
}

m2n__cu_result m2n_double_func_load(m2n__cu_function function)
{
	ENTER(func_load);
	return function ? 0 : M2N__CU_INVALID_HANDLE;
}

m2n__cu_result m2n_double_func_attribute(int *value, int attribute, m2n__cu_function function)
{
	ENTER(func_attribute);
	if (!function)
		return M2N__CU_INVALID_HANDLE;
	*value = attribute == M2N__CU_FUNC_REGISTERS ? 32 : 0;
	return 0;
}

m2n__cu_result m2n_double_launch(m2n__cu_function function, unsigned grid_x, unsigned grid_y,
	unsigned grid_z, unsigned block_x, unsigned block_y, unsigned block_z,
	unsigned shared_bytes, m2n__cu_stream handle, void **params, void **extra)
{
	const struct m2n_double_kernel *kernel = function;
	struct work work = {.kind = WORK_KERNEL, .kernel = kernel};
	struct stream *stream;

	ENTER(launch);
	LOCKED();
	if (!double_context())
		return M2N__CU_INVALID_CONTEXT;
	stream = double_stream(handle);
	if (!kernel || !stream || stream->context != double_context())
		return M2N__CU_INVALID_HANDLE;
	if (!grid_x || grid_y != 1 || grid_z != 1 || !block_x || block_y != 1 || block_z != 1 ||
		block_x > 1024 || shared_bytes > 227 * 1024 || !params || extra)
		return M2N__CU_INVALID_VALUE;
	if (left_out.n && apply(&left_out, kernel->name))
		return 0;
	work.args = malloc(kernel->args_bytes);
	if (!work.args)
		return M2N__CU_OUT_OF_MEMORY;
	memcpy(work.args, params[0], kernel->args_bytes);
	work.n_blocks = grid_x;
	work.n_threads = block_x;
	work.shared_bytes = shared_bytes;
	return double_submit(stream, &work);
}
