/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opening and closing of contexts: options, log, kernels, the host's identity, the signal table,
 * and one iface of every backend that is usable and asked for.
 */
#include "core/context.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/registry.h"
#include "core/gpu.h"
#include "core/group.h"
#include "mem/cuda.h"
#include "util/error.h"
#include "util/time.h"

int m2n__params_read(
	void *copy, size_t copy_bytes, const void *init, const void *params, const char *what)
{
	size_t size;

	memcpy(copy, init, copy_bytes);
	if (!params)
		return 0;
	memcpy(&size, params, sizeof(size));
	if (size < sizeof(size) || size > 65536)
		return m2n__error(-EINVAL,
			"%s.size is %zu; start from the INIT macro, which sets it to %zu", what,
			size, copy_bytes);
	for (size_t i = copy_bytes; i < size; i++)
		if (((const char *)params)[i])
			return m2n__error(-EINVAL,
				"%s.size is %zu, this library knows %zu bytes and byte %zu is not "
				"zero: "
				"the program was built for a newer libm2n",
				what, size, copy_bytes, i);
	memcpy(copy, params, size < copy_bytes ? size : copy_bytes);
	memcpy(copy, &copy_bytes, sizeof(copy_bytes));
	return 0;
}

/* Same value in processes that share memory: kernel boot and PID namespace. */
static void find_host_id(struct m2n_ctx *ctx)
{
	char boot[40] = "unknown";
	struct stat st;
	int fd;

	if (ctx->options.host_id[0]) {
		snprintf(ctx->host_id, sizeof(ctx->host_id), "%s", ctx->options.host_id);
		return;
	}
	fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
	if (fd >= 0) {
		ssize_t n = read(fd, boot, 36);

		boot[n > 0 ? n : 0] = '\0';
		close(fd);
	}
	if (stat("/proc/self/ns/pid", &st))
		st.st_ino = 0;
	snprintf(ctx->host_id, sizeof(ctx->host_id), "%s.%lu", boot, (unsigned long)st.st_ino);
}

static void log_line(void *arg, enum m2n_log_level level, const char *line)
{
	struct m2n_ctx *ctx = arg;

	m2n__log(&ctx->log, level, "%s", line);
}

static int open_backend(struct m2n_ctx *ctx, const struct m2n__backend_ops *ops)
{
	unsigned index = ctx->n_backends++;
	struct m2n__backend *b = &ctx->backends[index];
	struct m2n__iface_params params = {
		.options = &ctx->options,
		.log = log_line,
		.log_arg = ctx,
		.index = index,
		.host_id = ctx->host_id,
		.signals = ctx->signals,
		.signal_mem = ctx->signal_mem,
		.n_signals = (uint32_t)ctx->options.n_signals,
		.cuda = ctx->cuda,
		.kernels = ctx->kernels,
		.say = m2n__notice_say,
		.say_arg = ctx,
	};
	int rc;

	m2n__backend_resolve(ops, &b->ops);
	rc = b->ops.probe(&ctx->options);
	if (!rc)
		rc = b->ops.open(&params, &b->iface);
	if (rc) {
		b->iface = NULL;
		snprintf(b->reason, sizeof(b->reason), "%s", m2n_error_text());
		return rc;
	}
	b->iface->ops = &b->ops;
	return 0;
}

static const struct m2n__backend_ops *find_backend(const char *name, size_t length)
{
	for (unsigned i = 0; m2n__backends[i]; i++)
		if (strlen(m2n__backends[i]->name) == length &&
			memcmp(m2n__backends[i]->name, name, length) == 0)
			return m2n__backends[i];
	return NULL;
}

static int no_such_backend(const char *name, size_t length)
{
	char names[128] = "";
	size_t at = 0;

	for (unsigned i = 0; m2n__backends[i]; i++)
		at += (size_t)snprintf(
			names + at, sizeof(names) - at, ", %s", m2n__backends[i]->name);
	return m2n__error(M2N_ERR_BACKEND,
		"backend '%.*s' is not in this build; there are: auto%s, fault:NAME", (int)length,
		name, names);
}

static int open_interposer(struct m2n_ctx *ctx, const char *inner)
{
	/* The interposer's inner table must outlive the context: one, as the header says. Ranks may
	 * be threads that open theirs side by side. */
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	static const struct m2n__backend_ops *wrapped;
	static struct m2n__backend_ops fault_inner;
	const struct m2n__backend_ops *ops = find_backend(inner, strlen(inner));

	if (!ops || !(ops->caps & M2N__CAP_MAPPED))
		return ops ? m2n__error(M2N_ERR_BACKEND, "fault: '%s' is not a mapped backend",
				     inner)
			   : no_such_backend(inner, strlen(inner));
	pthread_mutex_lock(&lock);
	if (wrapped != ops)
		m2n__fault_wrap(m2n__backend_resolve(ops, &fault_inner));
	wrapped = ops;
	pthread_mutex_unlock(&lock);
	return open_backend(ctx, &m2n__backend_fault);
}

/* Is the backend in a list of names, by commas? All names must be known. */
static int is_wanted(const char *list, const struct m2n__backend_ops *ops)
{
	int wanted = 0;

	for (;;) {
		size_t n = strcspn(list, ",");

		if (!find_backend(list, n))
			return no_such_backend(list, n);
		wanted |= find_backend(list, n) == ops;
		if (!list[n])
			return wanted;
		list += n + 1;
	}
}

static int open_backends(struct m2n_ctx *ctx)
{
	const char *want = ctx->options.backend;
	int is_auto = strcmp(want, "auto") == 0;

	if (strncmp(want, "fault:", 6) == 0)
		return open_interposer(ctx, want + 6);
	for (unsigned i = 0; m2n__backends[i]; i++) {
		int wanted = is_auto ? 1 : is_wanted(want, m2n__backends[i]), rc;
		struct m2n__backend *b;

		if (wanted < 0)
			return wanted;
		if (wanted) {
			rc = open_backend(ctx, m2n__backends[i]);
			if (rc && !is_auto)
				return rc;
			continue;
		}
		b = &ctx->backends[ctx->n_backends++];
		m2n__backend_resolve(m2n__backends[i], &b->ops);
		snprintf(b->reason, sizeof(b->reason), "BACKEND is '%s'", want);
	}
	return 0;
}

static void log_choice(struct m2n_ctx *ctx)
{
	char line[2048];
	size_t at = 0;

	for (unsigned i = 0; i < ctx->n_backends && at < sizeof(line); i++)
		at += (size_t)snprintf(line + at, sizeof(line) - at, "%s%s%s%s", i ? "; " : "",
			ctx->backends[i].ops.name, ctx->backends[i].iface ? "" : ": not used, ",
			ctx->backends[i].reason);
	m2n__log(&ctx->log, M2N_LOG_INFO, "kernels %s; backends %s", ctx->kernels->name, line);
}

static int bad_device(const struct m2n_ctx *ctx)
{
	return m2n__error(M2N_ERR_OPTION,
		"option CUDA_DEVICE: '%s'; accepted: auto, none, or a device's number from 0",
		ctx->options.cuda_device);
}

/* The GPU: the one that is asked for must be there, another may be missing. */
static int open_device(struct m2n_ctx *ctx)
{
	const char *want = ctx->options.cuda_device;
	int is_auto = strcmp(want, "auto") == 0, ordinal = -1, rc;
	char *end;

	if (is_auto) {
		ordinal = m2n__cuda_current();
	} else if (strcmp(want, "none") != 0) {
		long n = strtol(want, &end, 10);

		if (end == want || *end || n < 0 || n > 1023)
			return bad_device(ctx);
		ordinal = (int)n;
	}
	if (ordinal < 0) {
		snprintf(ctx->cuda_reason, sizeof(ctx->cuda_reason), "%s",
			is_auto ? "the context has no CUDA device: option CUDA_DEVICE is 'auto', "
				  "and this thread had none when the context was opened; make a "
				  "device current before, or set CUDA_DEVICE to its number"
				: "the context has no CUDA device: option CUDA_DEVICE is 'none'");
		return 0;
	}
	rc = m2n__cuda_open(ordinal, &ctx->cuda);
	if (!rc)
		return 0;
	ctx->cuda = NULL;
	snprintf(ctx->cuda_reason, sizeof(ctx->cuda_reason), "%s", m2n_error_text());
	return is_auto ? 0 : rc;
}

static int open_parts(struct m2n_ctx *ctx)
{
	size_t bytes = (size_t)ctx->options.n_signals * sizeof(uint64_t);
	const char *kernels = ctx->options.kernels;
	int rc;

	ctx->kernels = m2n__kernels_select(strcmp(kernels, "auto") == 0 ? NULL : kernels);
	if (!ctx->kernels)
		return m2n__error(M2N_ERR_OPTION,
			"option KERNELS: '%s' is unknown or this processor lacks it; accepted: "
			"auto, "
			"scalar, avx2, avx512",
			kernels);
	find_host_id(ctx);
	ctx->spin_ns = ctx->options.spin_ns;
	/* Only messaging backends use the table: address space until one is started. */
	rc = m2n__mem_alloc(bytes, 0, M2N__HUGE_NO, &ctx->signal_mem);
	if (rc)
		return rc;
	ctx->signals = ctx->signal_mem->base;
	rc = open_device(ctx);
	if (!rc)
		rc = open_backends(ctx);
	if (!rc)
		log_choice(ctx);
	return rc;
}

int m2n_ctx_open(const struct m2n_ctx_params *params, struct m2n_ctx **ctx_out)
{
	static const struct m2n_ctx_params init = M2N_CTX_PARAMS_INIT;
	char warning[256] = "";
	struct m2n_ctx_params p;
	pthread_mutexattr_t recursive;
	struct m2n_ctx *ctx;
	int rc;

	rc = m2n__params_read(&p, sizeof(p), &init, params, "m2n_ctx_params");
	if (rc)
		return rc;
	if (!ctx_out)
		return m2n__error(-EINVAL, "m2n_ctx_open: ctx is NULL");
	ctx = calloc(1, sizeof(*ctx));
	if (!ctx)
		return m2n__error(-ENOMEM, "no memory for a context");
	pthread_mutexattr_init(&recursive);
	pthread_mutexattr_settype(&recursive, PTHREAD_MUTEX_RECURSIVE);
	pthread_mutex_init(&ctx->lock, &recursive);
	pthread_mutexattr_destroy(&recursive);
	pthread_mutex_init(&ctx->notice_lock, NULL);
	ctx->notices_end = &ctx->notices;
	rc = m2n__options_parse(&ctx->options, p.backend, p.options, m2n__environment(),
		m2n__getenv, NULL, warning, sizeof(warning));
	if (!rc) {
		ctx->log.sink = p.log;
		ctx->log.sink_arg = p.log_arg;
		ctx->log.stderr_level = ctx->options.log_level;
		ctx->log.level = p.log ? M2N_LOG_TRACE : ctx->options.log_level;
		if (warning[0])
			m2n__log(&ctx->log, M2N_LOG_WARN, "%s", warning);
		rc = open_parts(ctx);
	}
	if (rc) {
		m2n_ctx_close(ctx);
		return rc;
	}
	*ctx_out = ctx;
	return 0;
}

void m2n_ctx_close(struct m2n_ctx *ctx)
{
	if (!ctx)
		return;
	if (ctx->groups)
		m2n__log(&ctx->log, M2N_LOG_WARN, "context closed with a group still joined");
	while (ctx->groups)
		m2n_group_leave(ctx->groups);
	m2n__gpu_progress_stop(ctx);
	m2n__graves_free(ctx);
	m2n__mems_close(ctx);
	for (unsigned i = 0; i < ctx->n_backends; i++)
		if (ctx->backends[i].iface)
			ctx->backends[i].ops.close(ctx->backends[i].iface);
	m2n__mem_free(ctx->signal_mem);
	m2n__cuda_close(ctx->cuda);
	free(ctx->free_signals);
	m2n__options_clear(&ctx->options);
	pthread_mutex_destroy(&ctx->notice_lock);
	pthread_mutex_destroy(&ctx->lock);
	free(ctx);
}

int m2n__ctx_lock(struct m2n_ctx *ctx)
{
	return pthread_mutex_lock(&ctx->lock);
}

void m2n__ctx_unlock(struct m2n_ctx *ctx)
{
	pthread_mutex_unlock(&ctx->lock);
}

int m2n__ctx_poll(struct m2n_ctx *ctx)
{
	int n = m2n__ctx_progress(ctx);

	m2n__grants_poll(ctx);
	if (pthread_mutex_trylock(&ctx->lock))
		return n; /* another thread is at it */
	for (struct m2n_group *group = ctx->groups; group; group = group->next)
		n += m2n__group_poll(group);
	pthread_mutex_unlock(&ctx->lock);
	return n;
}

int m2n__ctx_poll_sometimes(struct m2n_ctx *ctx, int64_t now_ns)
{
	int64_t last = atomic_load_explicit(&ctx->last_poll_ns, memory_order_relaxed);

	if (now_ns - last < 1000000 &&
		!atomic_load_explicit(&ctx->notices_matter, memory_order_relaxed))
		return 0;
	atomic_store_explicit(&ctx->last_poll_ns, now_ns, memory_order_relaxed);
	return m2n__ctx_poll(ctx);
}

int m2n_ctx_progress(struct m2n_ctx *ctx)
{
	return ctx ? m2n__ctx_poll(ctx) : 0;
}

int m2n_ctx_backend_at(struct m2n_ctx *ctx, unsigned index, struct m2n_backend_attr *attr)
{
	if (!ctx || !attr)
		return m2n__error(-EINVAL, "m2n_ctx_backend_at: ctx or attr is NULL");
	if (index >= ctx->n_backends)
		return -ENOENT;
	attr->name = ctx->backends[index].ops.name;
	attr->about = ctx->backends[index].ops.about;
	attr->usable = ctx->backends[index].iface != NULL;
	attr->reason = ctx->backends[index].reason;
	return 0;
}

int m2n_ctx_option(
	struct m2n_ctx *ctx, const char *name, char *value, size_t bytes, const char **origin)
{
	if (!ctx || !name || !value)
		return m2n__error(-EINVAL, "m2n_ctx_option: ctx, name or value is NULL");
	return m2n__options_format(&ctx->options, name, value, bytes, origin);
}

int m2n__signal_alloc(struct m2n_ctx *ctx, uint32_t n, uint32_t *first)
{
	for (uint32_t i = 0; i < ctx->n_free_signals; i++) {
		struct m2n__signal_range *r = &ctx->free_signals[i];

		if (r->n != n)
			continue;
		*first = r->first;
		*r = ctx->free_signals[--ctx->n_free_signals];
		for (uint32_t k = 0; k < n; k++)
			atomic_store_explicit(&ctx->signals[*first + k], 0, memory_order_relaxed);
		return 0;
	}
	if (n > (uint32_t)ctx->options.n_signals - ctx->n_signals_used)
		return m2n__error(-ENOMEM,
			"the signal table is full: %u words used, %u more wanted, option SIGNALS "
			"is %ld",
			ctx->n_signals_used, n, (long)ctx->options.n_signals);
	*first = ctx->n_signals_used;
	ctx->n_signals_used += n;
	return 0;
}

void m2n__signal_free(struct m2n_ctx *ctx, uint32_t first, uint32_t n)
{
	struct m2n__signal_range *grown =
		realloc(ctx->free_signals, (ctx->n_free_signals + 1) * sizeof(*grown));

	if (!grown)
		return; /* the range stays unused; nothing else is harmed */
	ctx->free_signals = grown;
	grown[ctx->n_free_signals++] = (struct m2n__signal_range){first, n};
}
