/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stand-ins for operations that a backend leaves out, so that callers never test for NULL. The
 * initialiser is positional: a new operation without a stand-in does not compile.
 */
#include <errno.h>
#include <string.h>

#include <m2n/status.h>

#include "backend/backend.h"
#include "util/error.h"

static int no_probe(const struct m2n__options *options)
{
	(void)options;
	return 0;
}

static int no_open(const struct m2n__iface_params *params, struct m2n__iface **iface)
{
	(void)params, (void)iface;
	return m2n__error(-ENOTSUP, "the backend has no open operation");
}

static void no_close(struct m2n__iface *iface)
{
	(void)iface;
}

static int no_address(struct m2n__iface *iface, void *blob, size_t *bytes)
{
	(void)iface, (void)blob;
	*bytes = 0;
	return 0;
}

static int no_reaches(struct m2n__iface *iface, const void *blob, size_t bytes)
{
	(void)iface, (void)blob, (void)bytes;
	return 0;
}

static int no_connect(struct m2n__iface *iface, const void *blob, size_t bytes, struct m2n__ep **ep)
{
	(void)iface, (void)blob, (void)bytes, (void)ep;
	return m2n__error(-ENOTSUP, "the backend has no connect operation");
}

static int no_greeting(struct m2n__ep *ep, void *greeting, size_t *bytes)
{
	(void)ep, (void)greeting;
	*bytes = 0;
	return 0;
}

static int no_meet(struct m2n__ep *ep, const void *greeting, size_t bytes)
{
	(void)ep, (void)greeting, (void)bytes;
	return 0;
}

static int no_ready(struct m2n__ep *ep)
{
	(void)ep;
	return 0;
}

static int no_hear(struct m2n__ep *ep, const void *bytes, size_t n)
{
	(void)bytes;
	return m2n__error(M2N_ERR_PROTOCOL, "a notice of %zu bytes for %s, which takes none", n,
		ep->ops->name);
}

static void no_disconnect(struct m2n__ep *ep)
{
	(void)ep;
}

static int no_reg(struct m2n__iface *iface, const struct m2n__mem *mem, struct m2n__mr **mr)
{
	(void)iface, (void)mem, (void)mr;
	return m2n__error(-ENOTSUP, "the backend cannot register memory");
}

static void no_dereg(struct m2n__mr *mr)
{
	(void)mr;
}

static int no_export(struct m2n__mr *mr, size_t offset, size_t bytes, void *key, size_t *key_bytes)
{
	(void)mr, (void)offset, (void)bytes, (void)key, (void)key_bytes;
	return m2n__error(-ENOTSUP, "the backend cannot export memory");
}

static int no_import(struct m2n__ep *ep, const void *key, size_t key_bytes, struct m2n__rmem **rmem)
{
	(void)ep, (void)key, (void)key_bytes, (void)rmem;
	return m2n__error(-ENOTSUP, "the backend cannot import memory");
}

static void no_release(struct m2n__rmem *rmem)
{
	(void)rmem;
}

static int no_put(struct m2n__ep *ep, struct m2n__put *put)
{
	(void)ep, (void)put;
	return m2n__error(-ENOTSUP, "the backend's peers are mapped, not put to");
}

static int no_flush(struct m2n__ep *ep)
{
	(void)ep;
	return 0;
}

static int no_progress(struct m2n__iface *iface)
{
	(void)iface;
	return 0;
}

static int no_check(struct m2n__ep *ep)
{
	(void)ep;
	return 0;
}

static int no_flush_device(struct m2n__iface *iface)
{
	(void)iface;
	return 0;
}

static void no_notify(struct m2n__ep *ep)
{
	(void)ep;
}

static void no_doze(struct m2n__iface *iface, int change)
{
	(void)iface, (void)change;
}

static uint32_t no_arm(struct m2n__iface *iface)
{
	(void)iface;
	return 0;
}

static void no_wait(struct m2n__iface *iface, uint32_t ticket, int64_t timeout_ns)
{
	(void)iface, (void)ticket, (void)timeout_ns;
}

static void no_disarm(struct m2n__iface *iface)
{
	(void)iface;
}

#define OR(op, stand_in) (ops->op ? ops->op : (stand_in))

const struct m2n__backend_ops *m2n__backend_resolve(
	const struct m2n__backend_ops *ops, struct m2n__backend_ops *storage)
{
	struct m2n__backend_ops resolved = {
		ops->name,
		ops->about,
		ops->priority,
		ops->caps,
		OR(probe, no_probe),
		OR(open, no_open),
		OR(close, no_close),
		OR(address, no_address),
		OR(reaches, no_reaches),
		OR(connect, no_connect),
		OR(greeting, no_greeting),
		OR(meet, no_meet),
		OR(ready, no_ready),
		OR(hear, no_hear),
		OR(disconnect, no_disconnect),
		OR(reg, no_reg),
		OR(dereg, no_dereg),
		OR(export_key, no_export),
		OR(import_key, no_import),
		OR(release_key, no_release),
		OR(put, no_put),
		OR(flush, no_flush),
		OR(arrived, OR(flush, no_flush)),
		OR(progress, no_progress),
		OR(check, no_check),
		OR(flush_device, no_flush_device),
		OR(notify, no_notify),
		OR(doze, no_doze),
		OR(arm, no_arm),
		OR(wait, no_wait),
		OR(disarm, no_disarm),
	};

	memcpy(storage, &resolved, sizeof(resolved));
	return storage;
}
