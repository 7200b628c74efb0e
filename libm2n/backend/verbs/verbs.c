/* SPDX-License-Identifier: Apache-2.0 */
/*
 * InfiniBand and RoCE by libibverbs: messaging. RDMA writes from the caller's rows straight into
 * the peer's slot, the last with an immediate that raises the peer's signal. No byte is copied and
 * no receive has memory. Here: opening, the address, and the table.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/registry.h"
#include "backend/verbs/verbs.h"
#include "util/error.h"

void m2n__verbs_log(struct verbs_iface *v, enum m2n_log_level level, const char *format, ...)
{
	char text[512];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	v->iface.params.log(v->iface.params.log_arg, level, text);
}

static void verbs_close(struct m2n__iface *iface)
{
	struct verbs_iface *v = (struct verbs_iface *)iface;

	m2n__verbs_cm_stop(v);
	m2n__verbs_flush_close(v);
	for (unsigned i = 0; i < v->n_rails; i++)
		m2n__verbs_rail_close(&v->rails[i]);
	m2n__verbs_sleep_stop(v);
	pthread_mutex_destroy(&v->cm_lock);
	pthread_mutex_destroy(&v->flush_lock);
	free(v);
}

/* What every rail can do; several paths also divide long puts. */
static void set_limits(struct verbs_iface *v)
{
	const struct m2n__options *o = v->options;

	v->iface.max_iov = VERBS_MAX_SGE;
	v->iface.max_bytes = SIZE_MAX;
	for (unsigned i = 0; i < v->n_rails; i++) {
		const struct verbs_rail *rail = &v->rails[i];

		if ((size_t)rail->limits.max_sge < v->iface.max_iov)
			v->iface.max_iov = (size_t)rail->limits.max_sge;
		if (rail->max_message < v->iface.max_bytes)
			v->iface.max_bytes = rail->max_message;
	}
	if (v->n_rails * (unsigned)o->verbs_qps > 1 && o->verbs_stripe < v->iface.max_bytes)
		v->iface.max_bytes = o->verbs_stripe;
	v->iface.max_inline =
		o->verbs_inline < v->iface.max_bytes ? o->verbs_inline : v->iface.max_bytes;
	v->iface.needs_mr = 1;
}

static void tell_choice(struct verbs_iface *v)
{
	for (unsigned i = 0; i < v->n_rails; i++) {
		const struct verbs_rail *rail = &v->rails[i];

		m2n__verbs_log(v, M2N_LOG_INFO,
			"verbs: rail %u is %s:%u, %s, GID index %u, MTU %d, up to %zu pieces a "
			"write",
			i, rail->ctx->device->name, rail->port,
			rail->blob.link_layer == IBV_LINK_LAYER_ETHERNET ? "RoCE" : "InfiniBand",
			rail->gid_index, 128 << rail->blob.mtu, v->iface.max_iov);
	}
}

static int verbs_open(const struct m2n__iface_params *params, struct m2n__iface **iface)
{
	struct verbs_iface *v = calloc(1, sizeof(*v));
	struct verbs_ports ports;
	int rc;

	if (!v)
		return m2n__error(-ENOMEM, "verbs: no memory for the iface");
	v->iface.params = *params;
	v->options = params->options;
	v->kick_fd = -1;
	pthread_mutex_init(&v->cm_lock, NULL);
	pthread_mutex_init(&v->flush_lock, NULL);
	rc = m2n__verbs_ports_choose(v->options, &ports);
	for (unsigned i = 0; !rc && i < ports.n; i++) {
		rc = m2n__verbs_rail_open(v, &v->rails[i], &ports.port[i]);
		v->n_rails += !rc;
	}
	m2n__verbs_ports_free(&ports);
	if (rc) {
		verbs_close(&v->iface);
		return rc;
	}
	set_limits(v);
	m2n__verbs_blob_fill(v);
	tell_choice(v);
	*iface = &v->iface;
	return 0;
}

static int verbs_address(struct m2n__iface *iface, void *blob, size_t *bytes)
{
	struct verbs_iface *v = (struct verbs_iface *)iface;

	if (*bytes < sizeof(v->blob))
		return m2n__error(-ENOSPC, "verbs: no room for the address");
	memcpy(blob, &v->blob, sizeof(v->blob));
	*bytes = sizeof(v->blob);
	return 0;
}

const struct m2n__backend_ops m2n__backend_verbs = {
	.name = "verbs",
	.about = "InfiniBand and RoCE: RDMA writes from the caller's rows, counted by immediates",
	.priority = 50,
	.caps = M2N__CAP_HOST_MEMORY | M2N__CAP_CUDA_MEMORY | M2N__CAP_SLEEP | M2N__CAP_GREETS,
	.probe = m2n__verbs_probe,
	.open = verbs_open,
	.close = verbs_close,
	.address = verbs_address,
	.reaches = m2n__verbs_reaches,
	.connect = m2n__verbs_connect,
	.greeting = m2n__verbs_greeting,
	.meet = m2n__verbs_meet,
	.ready = m2n__verbs_ready,
	.disconnect = m2n__verbs_disconnect,
	.reg = m2n__verbs_reg,
	.dereg = m2n__verbs_dereg,
	.export_key = m2n__verbs_export,
	.import_key = m2n__verbs_import,
	.release_key = m2n__verbs_release,
	.put = m2n__verbs_put,
	.flush = m2n__verbs_flush,
	.arrived = m2n__verbs_arrived,
	.progress = m2n__verbs_progress,
	.check = m2n__verbs_check,
	.flush_device = m2n__verbs_flush_device,
	.arm = m2n__verbs_arm,
	.wait = m2n__verbs_wait,
	.disarm = m2n__verbs_disarm,
};
