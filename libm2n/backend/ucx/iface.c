/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The UCX backend's table, and its iface: context and worker of UCX, made by the first connection.
 * What transports and devices UCX uses is for UCX_TLS, UCX_NET_DEVICES and its other variables to
 * say; UCX reads them itself. There is no sleeping: a store that a peer makes through shared
 * memory raises no event of UCX.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <m2n/status.h>

#include "backend/common/gpu_flush.h"
#include "backend/registry.h"
#include "backend/ucx/ucx.h"
#include "util/error.h"
#include "util/options.h"

#define HOST_ID_BYTES 64
#define NEEDED_DESCRIPTORS 48
#define IDLE_TURNS 32     /* calls of progress to one that is made */
#define PROGRESS_TURNS 16 /* of one call, while there is something to do */

struct ucx_blob {
	struct m2n__ucx_seal seal;
	char host_id[HOST_ID_BYTES];
};

struct m2n__iface *m2n__ucx_lock(struct m2n__ucx_iface *u)
{
	pthread_mutex_lock(&u->lock);
	return m2n__ucx_enter(&u->iface);
}

void m2n__ucx_unlock(struct m2n__ucx_iface *u, struct m2n__iface *before)
{
	m2n__ucx_leave(before);
	pthread_mutex_unlock(&u->lock);
}

static int ucx_probe(const struct m2n__options *options)
{
	return strcmp(options->backend, "ucx") == 0 ? m2n__ucx_load() : m2n__ucx_find();
}

static int ucx_open(const struct m2n__iface_params *params, struct m2n__iface **iface)
{
	struct m2n__ucx_iface *u = calloc(1, sizeof(*u));

	if (!u)
		return m2n__error(-ENOMEM, "ucx: no memory for the iface");
	u->iface.params = *params;
	u->iface.max_iov = M2N__UCX_PIECES;
	u->iface.max_bytes = M2N__UCX_MESSAGE_BYTES;
	u->iface.max_inline = SIZE_MAX;
	pthread_mutex_init(&u->lock, NULL);
	*iface = &u->iface;
	return 0;
}

/* UCX ends the process when it runs out of descriptors while it starts. */
static int find_descriptors(void)
{
	int fds[NEEDED_DESCRIPTORS], n = 0, error = 0;

	while (n < NEEDED_DESCRIPTORS && !error) {
		fds[n] = open("/dev/null", O_RDONLY | O_CLOEXEC);
		if (fds[n] < 0)
			error = errno;
		else
			n++;
	}
	while (n > 0)
		close(fds[--n]);
	return error ? m2n__error(-error,
			       "ucx: starting UCX takes up to %d file descriptors: %s; raise "
			       "ulimit "
			       "-n",
			       NEEDED_DESCRIPTORS, strerrordesc_np(error))
		     : 0;
}

static int create_worker(struct m2n__ucx_iface *u)
{
	ucp_worker_params_t params = {
		.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE,
		.thread_mode = UCS_THREAD_MODE_SERIALIZED,
	};
	ucs_status_t status = m2n__ucx.ucp_worker_create(u->context, &params, &u->worker);

	return status ? m2n__ucx_error(status, "making a worker (is there room in /dev/shm?)")
		      : m2n__ucx_listen(u);
}

static int create_context(struct m2n__ucx_iface *u)
{
	ucp_params_t params = {
		.field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_NAME,
		.features = UCP_FEATURE_RMA | UCP_FEATURE_AM,
		.name = "libm2n",
	};
	ucp_context_attr_t attr = {.field_mask = UCP_ATTR_FIELD_MEMORY_TYPES};
	ucp_config_t *config;
	ucs_status_t status;

	status = m2n__ucx.ucp_config_read(NULL, NULL, &config);
	if (status)
		return m2n__ucx_error(status, "reading its variables");
	/* Without it posix and sysv have no endpoints that fail alone: the default would not do. */
	(void)m2n__ucx.ucp_config_modify(config, "MM_ERROR_HANDLING", "y");
	status = m2n__ucx.ucp_init_version(
		UCP_API_MAJOR, UCP_API_MINOR, &params, config, &u->context);
	m2n__ucx.ucp_config_release(config);
	if (status)
		return m2n__ucx_error(status, "starting UCX (look at UCX_TLS and at ucx_info -d)");
	if (m2n__ucx.ucp_context_query(u->context, &attr) == UCS_OK)
		u->has_cuda = attr.memory_types >> UCS_MEMORY_TYPE_CUDA & 1;
	return 0;
}

/* The table that peers raise signals in is the first memory that tells what UCX can reach. */
static int share_signals(struct m2n__ucx_iface *u)
{
	int rc = m2n__ucx_reg(&u->iface, u->iface.params.signal_mem, &u->signal_mr);
	struct m2n__iface *before;

	if (rc || strcmp(u->iface.params.options->backend, "ucx") != 0)
		return rc;
	before = m2n__ucx_lock(u);
	u->is_native = m2n__ucx_make_native(u, (struct m2n__ucx_mr *)u->signal_mr) == 0;
	m2n__ucx_unlock(u, before);
	return 0;
}

int m2n__ucx_start(struct m2n__ucx_iface *u)
{
	struct m2n__iface *before;
	int rc = m2n__ucx_load();

	if (rc || u->signal_mr)
		return rc;
	before = m2n__ucx_lock(u);
	if (!u->worker)
		rc = find_descriptors();
	if (!rc && !u->context)
		rc = create_context(u);
	if (!rc && !u->worker)
		rc = create_worker(u);
	m2n__ucx_unlock(u, before);
	return rc ? rc : share_signals(u);
}

static void ucx_close(struct m2n__iface *iface)
{
	struct m2n__ucx_iface *u = m2n__ucx_iface(iface);
	struct m2n__iface *before;

	m2n__gpu_flush_close(u->gpu_flush);
	if (u->signal_mr)
		m2n__ucx_dereg(u->signal_mr);
	before = m2n__ucx_lock(u);
	if (u->worker)
		m2n__ucx.ucp_worker_destroy(u->worker);
	if (u->context)
		m2n__ucx.ucp_cleanup(u->context);
	m2n__ucx_unlock(u, before);
	pthread_mutex_destroy(&u->lock);
	free(u->regions.entries);
	free(u->tokens.entries);
	free(u);
}

static int ucx_address(struct m2n__iface *iface, void *blob, size_t *bytes)
{
	struct ucx_blob b = {0};

	if (*bytes < sizeof(b))
		return m2n__error(-ENOSPC, "ucx: no room for the address");
	snprintf(b.host_id, sizeof(b.host_id), "%s", iface->params.host_id);
	m2n__ucx_sign(&b, sizeof(b));
	memcpy(blob, &b, sizeof(b));
	*bytes = sizeof(b);
	return 0;
}

/* Whether a transport joins the two hosts shows when they greet. */
static int ucx_reaches(struct m2n__iface *iface, const void *blob, size_t bytes)
{
	(void)iface;
	return bytes == sizeof(struct ucx_blob) &&
	       m2n__ucx_verify(blob, bytes, sizeof(struct ucx_blob), "address") == 0;
}

/* Where peers' stores need no progress, UCX gets it now and then: it costs more than the look. */
static int may_wait(struct m2n__ucx_iface *u)
{
	unsigned n;

	if (atomic_load_explicit(&u->n_busy, memory_order_relaxed))
		return 0;
	n = atomic_load_explicit(&u->n_idle, memory_order_relaxed) + 1;
	atomic_store_explicit(&u->n_idle, n, memory_order_relaxed);
	return n % IDLE_TURNS != 0;
}

static int ucx_progress(struct m2n__iface *iface)
{
	struct m2n__ucx_iface *u = m2n__ucx_iface(iface);
	struct m2n__iface *before;
	int n = 0;

	if (!u->worker || may_wait(u) || pthread_mutex_trylock(&u->lock))
		return 0; /* another thread is at it */
	before = m2n__ucx_enter(iface);
	for (int i = 0; i < PROGRESS_TURNS; i++) {
		unsigned events = m2n__ucx.ucp_worker_progress(u->worker);

		if (!events)
			break;
		n += (int)events;
	}
	m2n__ucx_unlock(u, before);
	return n;
}

/* Settled by the first call. The worker's lock is not held while the driver works. */
static int ucx_flush_device(struct m2n__iface *iface)
{
	struct m2n__ucx_iface *u = m2n__ucx_iface(iface);
	struct m2n__cuda *cuda = iface->params.cuda;
	struct m2n__gpu_flush *flush;
	int rc = 0;

	if (!cuda)
		return m2n__error(-EINVAL, "ucx: a flush, but the context has no CUDA device");
	pthread_mutex_lock(&u->lock);
	if (!u->gpu_flush)
		rc = m2n__gpu_flush_open(cuda, &u->gpu_flush);
	flush = u->gpu_flush;
	pthread_mutex_unlock(&u->lock);
	return rc ? m2n__error_at(rc, "ucx") : m2n__gpu_flush(flush);
}

const struct m2n__backend_ops m2n__backend_ucx = {
	.name = "ucx",
	.about = "UCX: puts over any of its transports, as UCX_TLS says",
	.priority = 30,
	.caps = M2N__CAP_HOST_MEMORY | M2N__CAP_CUDA_MEMORY | M2N__CAP_GREETS,
	.probe = ucx_probe,
	.open = ucx_open,
	.close = ucx_close,
	.address = ucx_address,
	.reaches = ucx_reaches,
	.connect = m2n__ucx_connect,
	.greeting = m2n__ucx_greeting,
	.meet = m2n__ucx_meet,
	.ready = m2n__ucx_ready,
	.disconnect = m2n__ucx_disconnect,
	.reg = m2n__ucx_reg,
	.dereg = m2n__ucx_dereg,
	.export_key = m2n__ucx_export,
	.import_key = m2n__ucx_import,
	.release_key = m2n__ucx_release,
	.put = m2n__ucx_put,
	.flush = m2n__ucx_flush,
	.arrived = m2n__ucx_arrived,
	.progress = ucx_progress,
	.check = m2n__ucx_check,
	.flush_device = ucx_flush_device,
};
