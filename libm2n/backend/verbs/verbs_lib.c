/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opening libibverbs and librdmacm. A failure is not remembered: the next probe tries again.
 */
#include "backend/verbs/verbs_lib.h"

#include <pthread.h>

#include "backend/common/dlib.h"

struct m2n__ibv m2n__ibv;
struct m2n__rdma m2n__rdma;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

#define IBV_SYMBOL(field, symbol) {#symbol, offsetof(struct m2n__ibv, field)},
#define RDMA_SYMBOL(field, symbol) {#symbol, offsetof(struct m2n__rdma, field)},

static const struct m2n__symbol ibv_symbols[] = {M2N_IBV_LIST(IBV_SYMBOL)};
static const struct m2n__symbol rdma_symbols[] = {M2N_RDMA_LIST(RDMA_SYMBOL)};

int m2n__ibv_load(void)
{
	static int is_loaded;
	int rc = 0;

	pthread_mutex_lock(&lock);
	if (!is_loaded)
		rc = m2n__dlib_open("libibverbs.so.1", "libibverbs1", ibv_symbols,
			sizeof(ibv_symbols) / sizeof(ibv_symbols[0]), &m2n__ibv);
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
