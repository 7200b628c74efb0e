/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Loading NCCL, and the one place that turns its results into errors.
 */
#include "backend/nccl/lib.h"

#include <pthread.h>
#include <stdio.h>

#include <m2n/status.h>

#include "backend/common/dlib.h"
#include "util/error.h"

#define LIBRARY "libnccl.so.2"
#define PACKAGE "NVIDIA's package libnccl2 (NCCL 2.19 or newer)"

struct m2n__nccl_lib m2n__nccl;

const char *m2n__nccl_version_text(int version, char text[24])
{
	snprintf(text, 24, "%d.%d.%d", version / 10000, version / 100 % 100, version % 100);
	return text;
}

static int load(void)
{
#define NCCL_SYMBOL(result, name, params) {#name, offsetof(struct m2n__nccl_lib, name)},
	static const struct m2n__symbol symbols[] = {M2N__NCCL_FUNCTIONS(NCCL_SYMBOL)};
#undef NCCL_SYMBOL
	struct m2n__nccl_lib lib;
	char found[24], least[24];
	int rc, version = 0;

	rc = m2n__dlib_open(LIBRARY, PACKAGE, symbols, sizeof(symbols) / sizeof(symbols[0]), &lib);
	if (rc)
		return m2n__error_at(rc, "nccl");
	if (lib.ncclGetVersion(&version) != M2N__NCCL_SUCCESS || version < M2N__NCCL_MIN_VERSION)
		return m2n__error(M2N_ERR_BACKEND,
			"nccl: %s is version %s, %s or newer is needed (communicators that do not "
			"block); install a newer one, or let LD_LIBRARY_PATH name it",
			LIBRARY, m2n__nccl_version_text(version, found),
			m2n__nccl_version_text(M2N__NCCL_MIN_VERSION, least));
	lib.version = version;
	m2n__nccl = lib;
	return 0;
}

int m2n__nccl_load(void)
{
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	int rc = 0;

	pthread_mutex_lock(&lock);
	if (!m2n__nccl.version)
		rc = load();
	pthread_mutex_unlock(&lock);
	return rc;
}

int m2n__nccl_error(int result, void *comm, const char *what)
{
	int is_peers = result == M2N__NCCL_REMOTE_ERROR || result == M2N__NCCL_SYSTEM_ERROR;
	const char *words = m2n__nccl.ncclGetLastError(comm);

	return m2n__error(is_peers ? M2N_ERR_PEER_LOST : M2N_ERR_BACKEND, "nccl: %s: %s%s%s", what,
		m2n__nccl.ncclGetErrorString(result), words && words[0] ? "; " : "",
		words ? words : "");
}
