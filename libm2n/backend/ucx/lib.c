/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Finding, loading and taming UCX's libraries. libucs installs handlers for SIGSEGV and others
 * when it is loaded: they are given back at once, unless the user asked UCX for something other
 * than its default, or somebody else in the process had loaded it before.
 */
#include "backend/ucx/lib.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <m2n/status.h>
#include <ucs/debug/log_def.h>

#include "backend/common/dlib.h"
#include "util/error.h"

#define LIBRARY "libucp.so.0"
#define PACKAGE "libucx0 (UCX 1.10 or newer)"
#define LOADER_CACHE "/etc/ld.so.cache"

struct m2n__ucx_lib m2n__ucx;

/* Of libucs, which has no stable interface: done without where they are not. */
struct tamer {
	typeof(&ucs_log_push_handler) ucs_log_push_handler;
	void (*ucs_debug_disable_signals)(void);
	ucs_status_t (*ucs_global_opts_get_value)(const char *name, char *value, size_t room);
};

static _Thread_local struct m2n__iface *calling;

struct m2n__iface *m2n__ucx_enter(struct m2n__iface *iface)
{
	struct m2n__iface *before = calling;

	calling = iface;
	return before;
}

void m2n__ucx_leave(struct m2n__iface *before)
{
	calling = before;
}

/* Lines below a warning exist only when the user asked UCX for them: they stay UCX's. */
static ucs_log_func_rc_t take_log_line(const char *file, unsigned line, const char *function,
	ucs_log_level_t level, const ucs_log_component_config_t *component, const char *format,
	va_list args)
{
	char text[512];
	int n;

	(void)file, (void)line, (void)function, (void)component;
	if (!calling || level > UCS_LOG_LEVEL_WARN)
		return UCS_LOG_FUNC_RC_CONTINUE;
	n = snprintf(text, sizeof(text), "ucx: ");
	vsnprintf(text + n, sizeof(text) - (size_t)n, format, args);
	calling->params.log(calling->params.log_arg, M2N_LOG_WARN, text);
	return level == UCS_LOG_LEVEL_FATAL ? UCS_LOG_FUNC_RC_CONTINUE : UCS_LOG_FUNC_RC_STOP;
}

/* Is there a library of this name that the loader would find? Looks at names, loads nothing. */
static int is_in_cache(const char *library)
{
	static const size_t part = 1 << 16;
	size_t n = strlen(library) + 1, kept = 0, got;
	FILE *file = fopen(LOADER_CACHE, "re");
	char *bytes = malloc(part + n);
	int found = 0;

	while (file && bytes && !found && (got = fread(bytes + kept, 1, part, file))) {
		found = memmem(bytes, kept + got, library, n) != NULL;
		/* A name may lie across two parts. */
		got += kept;
		kept = got < n ? got : n;
		memmove(bytes, bytes + got - kept, kept);
	}
	free(bytes);
	if (file)
		fclose(file);
	return found;
}

static int is_in_search_path(const char *library)
{
	void *program = dlopen(NULL, RTLD_LAZY);
	Dl_serinfo size, *dirs = NULL;
	char path[4096];
	int found = 0;

	if (program && dlinfo(program, RTLD_DI_SERINFOSIZE, &size) == 0)
		dirs = malloc(size.dls_size);
	if (dirs && (dirs->dls_size = size.dls_size, dirs->dls_cnt = size.dls_cnt,
			    dlinfo(program, RTLD_DI_SERINFO, dirs) == 0)) {
		for (unsigned i = 0; i < dirs->dls_cnt && !found; i++) {
			snprintf(path, sizeof(path), "%s/%s", dirs->dls_serpath[i].dls_name,
				library);
			found = access(path, R_OK) == 0;
		}
	}
	free(dirs);
	if (program)
		dlclose(program);
	return found;
}

int m2n__ucx_find(void)
{
	if (is_in_search_path(LIBRARY) || is_in_cache(LIBRARY))
		return 0;
	return m2n__ucx_load(); /* for the loader's own words, or a place not thought of */
}

static void tame(int keep_signals)
{
	static const struct m2n__symbol symbols[] = {
		{"ucs_log_push_handler", offsetof(struct tamer, ucs_log_push_handler)},
		{"ucs_debug_disable_signals", offsetof(struct tamer, ucs_debug_disable_signals)},
		{"ucs_global_opts_get_value", offsetof(struct tamer, ucs_global_opts_get_value)},
	};
	char wanted[64] = "";
	struct tamer t;

	if (m2n__dlib_open("libucs.so.0", PACKAGE, symbols, 3, &t))
		return;
	t.ucs_log_push_handler(take_log_line);
	if (keep_signals || t.ucs_global_opts_get_value("HANDLE_ERRORS", wanted, sizeof(wanted)))
		return;
	if (strcmp(wanted, "bt") == 0 || strcmp(wanted, "none") == 0)
		t.ucs_debug_disable_signals();
}

static int load(void)
{
#define UCX_SYMBOL(name) {#name, offsetof(struct m2n__ucx_lib, name)},
	static const struct m2n__symbol symbols[] = {M2N__UCX_FUNCTIONS(UCX_SYMBOL)};
#undef UCX_SYMBOL
	void *before = dlopen(LIBRARY, RTLD_LAZY | RTLD_NOLOAD);
	unsigned major, minor, release;
	struct m2n__ucx_lib lib;
	int rc = m2n__dlib_open(
		LIBRARY, PACKAGE, symbols, sizeof(symbols) / sizeof(symbols[0]), &lib);

	if (rc)
		return rc;
	lib.ucp_get_version(&major, &minor, &release);
	lib.version = major << 16 | minor << 8 | release;
	tame(before != NULL);
	m2n__ucx = lib;
	return 0;
}

int m2n__ucx_load(void)
{
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	int rc = 0;

	pthread_mutex_lock(&lock);
	if (!m2n__ucx.version)
		rc = load();
	pthread_mutex_unlock(&lock);
	return rc;
}

int m2n__ucx_error(ucs_status_t status, const char *what)
{
	const char *words = m2n__ucx.ucs_status_string(status);

	switch (status) {
	case UCS_ERR_NO_MEMORY:
		return m2n__error(-ENOMEM, "ucx: %s: %s", what, words);
	case UCS_ERR_UNREACHABLE:
	case UCS_ERR_NO_DEVICE:
		return m2n__error(M2N_ERR_BACKEND,
			"ucx: %s: %s; no transport of UCX joins the two ranks: look at UCX_TLS and "
			"UCX_NET_DEVICES on both, and at ucx_info -d",
			what, words);
	case UCS_ERR_CONNECTION_RESET:
	case UCS_ERR_ENDPOINT_TIMEOUT:
	case UCS_ERR_NOT_CONNECTED:
	case UCS_ERR_REJECTED:
	case UCS_ERR_CANCELED:
		return m2n__error(M2N_ERR_PEER_LOST, "ucx: %s: %s", what, words);
	default:
		return m2n__error(M2N_ERR_BACKEND, "ucx: %s: %s", what, words);
	}
}
