/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opening libibverbs and librdmacm. A failure is not remembered: the next probe tries again. But
 * libibverbs remembers: it reads its list of drivers once, and a process that had too few
 * descriptors then has no devices for good. So there has to be room for its files before.
 */
#include "backend/verbs/verbs_lib.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "backend/common/dlib.h"
#include "util/error.h"

#define N_FILES 8 /* that libibverbs has open at a time, and some more */

struct m2n__ibv m2n__ibv;
struct m2n__rdma m2n__rdma;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

#define IBV_SYMBOL(field, symbol) {#symbol, offsetof(struct m2n__ibv, field)},
#define RDMA_SYMBOL(field, symbol) {#symbol, offsetof(struct m2n__rdma, field)},

static const struct m2n__symbol ibv_symbols[] = {M2N_IBV_LIST(IBV_SYMBOL)};
static const struct m2n__symbol rdma_symbols[] = {M2N_RDMA_LIST(RDMA_SYMBOL)};

static int check_descriptors(void)
{
	int fds[N_FILES], n = 0, error = 0;

	while (n < N_FILES && !error) {
		fds[n] = open("/", O_PATH | O_CLOEXEC);
		error = fds[n] < 0 ? errno : 0;
		n += !error;
	}
	while (n)
		close(fds[--n]);
	return error ? m2n__error(-error, "verbs: no %d file descriptors for libibverbs: %s",
			       N_FILES, strerrordesc_np(error))
		     : 0;
}

int m2n__ibv_load(void)
{
	static int is_loaded;
	int rc = 0, n;

	pthread_mutex_lock(&lock);
	if (!is_loaded)
		rc = check_descriptors();
	if (!is_loaded && !rc)
		rc = m2n__dlib_open("libibverbs.so.1", "libibverbs1", ibv_symbols,
			sizeof(ibv_symbols) / sizeof(ibv_symbols[0]), &m2n__ibv);
	if (!is_loaded && !rc)
		m2n__ibv.free_device_list(m2n__ibv.get_device_list(&n));
	is_loaded |= !rc;
	pthread_mutex_unlock(&lock);
	return rc;
}

int m2n__rdma_load(void)
{
	static int is_loaded;
	int rc = 0;

	pthread_mutex_lock(&lock);
	if (!is_loaded)
		rc = m2n__dlib_open("librdmacm.so.1", "librdmacm1", rdma_symbols,
			sizeof(rdma_symbols) / sizeof(rdma_symbols[0]), &m2n__rdma);
	is_loaded |= !rc;
	pthread_mutex_unlock(&lock);
	return rc;
}
