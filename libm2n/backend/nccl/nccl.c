/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The NCCL backend's table, and its iface. It moves CUDA memory only, and is used only when it is
 * asked for: by the measure of latency every other way to a GPU is shorter. What transports NCCL
 * uses is for its own variables to say.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include <m2n/status.h>

#include "backend/nccl/nccl.h"
#include "backend/registry.h"
#include "util/error.h"
#include "util/options.h"

struct nccl_blob {
	struct m2n__nccl_seal seal;
};

static int nccl_probe(const struct m2n__options *options)
{
	if (strcmp(options->backend, "auto") == 0)
		return m2n__error(M2N_ERR_BACKEND,
			"nccl: used only when it is asked for (BACKEND=nccl, or a list with it)");
	return m2n__nccl_load();
}

static int nccl_open(const struct m2n__iface_params *params, struct m2n__iface **iface)
{
	struct m2n__nccl_iface *u;
	int rc = m2n__nccl_load();

	if (rc)
		return rc;
	if (!params->cuda)
		return m2n__error(M2N_ERR_BACKEND,
			"nccl: the context has no CUDA device (option CUDA_DEVICE); this backend "
			"moves CUDA memory only");
	u = calloc(1, sizeof(*u));
	if (!u)
		return m2n__error(-ENOMEM, "nccl: no memory for the iface");
	u->iface.params = *params;
	u->iface.max_iov = M2N__NCCL_IOV;
	u->iface.max_bytes = SIZE_MAX;
	u->iface.max_inline = SIZE_MAX;
	u->cuda = params->cuda;
	if (getrandom(&u->id, sizeof(u->id), 0) != sizeof(u->id)) {
		free(u);
		return m2n__error(M2N_ERR_BACKEND, "nccl: no random number from the kernel");
	}
	pthread_mutex_init(&u->lock, NULL);
	pthread_mutex_init(&u->enders_lock, NULL);
	*iface = &u->iface;
	return 0;
}

static void nccl_close(struct m2n__iface *iface)
{
	struct m2n__nccl_iface *u = m2n__nccl_iface(iface);
	int mode;

	m2n__nccl_reap(u, 1);
	if (u->warm && m2n__cuda_enter_relaxed(u->cuda, &mode) == 0) {
		u->cuda->driver->mem_free(u->warm);
		m2n__cuda_leave_relaxed(u->cuda, &mode);
	}
	pthread_mutex_destroy(&u->enders_lock);
	pthread_mutex_destroy(&u->lock);
	free(u);
}

/* Who can be reached is for NCCL to find out: the blob only says that NCCL is there. */
static int nccl_address(struct m2n__iface *iface, void *blob, size_t *bytes)
{
	struct nccl_blob b = {{0, 0}};

	(void)iface;
	if (*bytes < sizeof(b))
		return m2n__error(-ENOSPC, "nccl: no room for the address");
	m2n__nccl_sign(&b, sizeof(b));
	memcpy(blob, &b, sizeof(b));
	*bytes = sizeof(b);
	return 0;
}

static int nccl_reaches(struct m2n__iface *iface, const void *blob, size_t bytes)
{
	(void)iface;
	return m2n__nccl_verify(blob, bytes, sizeof(struct nccl_blob), "address") == 0;
}

static int nccl_progress(struct m2n__iface *iface)
{
	struct m2n__nccl_iface *u = m2n__nccl_iface(iface);
	int n = 0, mode;

	if (!atomic_load_explicit(&u->n_active, memory_order_relaxed))
		return 0;
	if (pthread_mutex_trylock(&u->lock))
		return 0; /* another thread is at it */
	if (m2n__cuda_enter_relaxed(u->cuda, &mode) == 0) {
		for (struct m2n__nccl_ep *e = u->eps; e; e = e->next)
			if (e->is_active)
				n += m2n__nccl_ep_progress(e);
		m2n__cuda_leave_relaxed(u->cuda, &mode);
	}
	pthread_mutex_unlock(&u->lock);
	return n;
}

const struct m2n__backend_ops m2n__backend_nccl = {
	.name = "nccl",
	.about = "NCCL: grouped sends and receives of CUDA memory; only when asked for",
	.priority = 10,
	.caps = M2N__CAP_CUDA_MEMORY | M2N__CAP_GREETS | M2N__CAP_NOTICES,
	.probe = nccl_probe,
	.open = nccl_open,
	.close = nccl_close,
	.address = nccl_address,
	.reaches = nccl_reaches,
	.connect = m2n__nccl_connect,
	.greeting = m2n__nccl_greeting,
	.meet = m2n__nccl_meet,
	.ready = m2n__nccl_ready,
	.hear = m2n__nccl_hear,
	.disconnect = m2n__nccl_disconnect,
	.reg = m2n__nccl_reg,
	.dereg = m2n__nccl_dereg,
	.export_key = m2n__nccl_export,
	.import_key = m2n__nccl_import,
	.release_key = m2n__nccl_release,
	.put = m2n__nccl_put,
	.flush = m2n__nccl_flush,
	.arrived = m2n__nccl_arrived,
	.progress = nccl_progress,
	.check = m2n__nccl_check,
};
