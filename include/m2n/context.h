/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Context: one per process and device. Holds options, opened backends, registered memory and
 * the means of progress. Every other object hangs off one.
 */
#ifndef M2N_CONTEXT_H
#define M2N_CONTEXT_H

#include <m2n/export.h>
#include <m2n/log.h>
#include <m2n/status.h>
#include <m2n/types.h>

#ifdef __cplusplus
extern "C" {
#endif

struct m2n_ctx;

struct m2n_ctx_params {
	size_t size;                /* sizeof(struct m2n_ctx_params) */
	const char *backend;        /* option BACKEND; NULL: the default, "auto" */
	const char *const *options; /* "NAME=value" texts ended by NULL; NULL: none */
	m2n_log_fn log;             /* NULL: no sink */
	void *log_arg;
};
#define M2N_CTX_PARAMS_INIT {sizeof(struct m2n_ctx_params), NULL, NULL, NULL, NULL}

/*
 * Opens a context. Options come from the environment (M2N_NAME), over `options` and `backend`,
 * over the defaults; m2n_info -c lists them.
 *
 * params: NULL = M2N_CTX_PARAMS_INIT; borrowed for the call.
 * Returns 0; -EINVAL (params of another size with a tail that is not zero); M2N_ERR_OPTION (the
 * text names option, value and range); M2N_ERR_BACKEND (a forced backend cannot be used here,
 * with the reason); -ENOMEM. `*ctx` is owned by the caller until m2n_ctx_close().
 * Thread-safe. Does not block.
 */
M2N_API int m2n_ctx_open(const struct m2n_ctx_params *params, struct m2n_ctx **ctx);

/*
 * Closes a context. Groups and memory must be gone first; what is still there is closed with a
 * warning in the log. NULL is allowed. Not safe beside other calls on the context.
 */
M2N_API void m2n_ctx_close(struct m2n_ctx *ctx);

/*
 * Makes progress on everything of the context: arrivals, control connections, lost peers.
 * Calls that wait do it themselves; a rank that computes for long may call it now and then.
 * Returns the number of events seen, 0 when there were none. Thread-safe, never blocks.
 */
M2N_API int m2n_ctx_progress(struct m2n_ctx *ctx);

/* One backend as this context sees it. Texts are constant while the context is open. */
struct m2n_backend_attr {
	const char *name;   /* "self", "shm", ... */
	const char *about;  /* one line */
	int usable;         /* 1: opened and ready */
	const char *reason; /* why not, or which device; "" when there is nothing to say */
};

/* Backend number `index` from 0. -ENOENT past the end. Thread-safe. */
M2N_API int m2n_ctx_backend_at(struct m2n_ctx *ctx, unsigned index, struct m2n_backend_attr *attr);

/* One option: the row of the table, and the value in force. */
struct m2n_option_attr {
	const char *name;          /* without M2N_ */
	const char *type;          /* "bool", "int", "size", "time", "text", "choice" */
	const char *default_value; /* as text */
	const char *range;         /* accepted values, as text */
	const char *unit;          /* "" for none */
	const char *about;         /* one sentence */
};

/* Option number `index` from 0. -ENOENT past the end. Thread-safe. */
M2N_API int m2n_option_at(unsigned index, struct m2n_option_attr *attr);

/*
 * The value of option `name` in this context as text into value[bytes], and where it came from
 * ("environment", "params", "default") into *origin (may be NULL; constant).
 * -ENOENT: no such option; -ENOSPC: `bytes` too small. Thread-safe. Secrets print as "***".
 */
M2N_API int m2n_ctx_option(struct m2n_ctx *ctx, const char *name, char *value, size_t bytes,
	const char **origin);

/* Version of the library as text, e.g. "0.1.0", and of the wire as a number. */
M2N_API const char *m2n_version(void);
M2N_API unsigned m2n_wire_version(void);

#ifdef __cplusplus
}
#endif
#endif
