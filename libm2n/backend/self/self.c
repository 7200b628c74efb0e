/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The backend of a rank to itself: a peer's memory is the own memory, a key is an address. Mapped.
 * The blob names process and instance, so that no other process's blob is taken for the own.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "backend/registry.h"
#include "util/error.h"

struct self_key {
	uint64_t address;
	uint64_t bytes;
};

struct self_iface {
	struct m2n__iface iface;
	struct {
		uint64_t pid;
		uint64_t nonce;
	} blob;
};

static int self_open(const struct m2n__iface_params *params, struct m2n__iface **iface)
{
	struct self_iface *self = calloc(1, sizeof(*self));

	if (!self)
		return m2n__error(-ENOMEM, "self: no memory for the iface");
	self->iface.params = *params;
	self->blob.pid = (uint64_t)getpid();
	if (getrandom(&self->blob.nonce, sizeof(self->blob.nonce), 0) < 0)
		self->blob.nonce = (uintptr_t)self;
	*iface = &self->iface;
	return 0;
}

static void self_close(struct m2n__iface *iface)
{
	free(iface);
}

static int self_address(struct m2n__iface *iface, void *blob, size_t *bytes)
{
	struct self_iface *self = (struct self_iface *)iface;

	if (*bytes < sizeof(self->blob))
		return m2n__error(-ENOSPC, "self: no room for the address");
	memcpy(blob, &self->blob, sizeof(self->blob));
	*bytes = sizeof(self->blob);
	return 0;
}

static int self_reaches(struct m2n__iface *iface, const void *blob, size_t bytes)
{
	struct self_iface *self = (struct self_iface *)iface;

	return bytes == sizeof(self->blob) && memcmp(blob, &self->blob, bytes) == 0;
}

static int self_connect(
	struct m2n__iface *iface, const void *blob, size_t bytes, struct m2n__ep **ep)
{
	if (!self_reaches(iface, blob, bytes))
		return m2n__error(-EINVAL, "self: the address is another process's");
	*ep = calloc(1, sizeof(**ep));
	if (!*ep)
		return m2n__error(-ENOMEM, "self: no memory for the connection");
	(*ep)->iface = iface;
	return 0;
}

static void self_disconnect(struct m2n__ep *ep)
{
	free(ep);
}

static int self_reg(struct m2n__iface *iface, const struct m2n__mem *mem, struct m2n__mr **mr)
{
	*mr = calloc(1, sizeof(**mr));
	if (!*mr)
		return m2n__error(-ENOMEM, "self: no memory for a registration");
	(*mr)->iface = iface;
	(*mr)->mem = mem;
	return 0;
}

static void self_dereg(struct m2n__mr *mr)
{
	free(mr);
}

static int self_export(
	struct m2n__mr *mr, size_t offset, size_t bytes, void *key, size_t *key_bytes)
{
	struct self_key k = {(uintptr_t)mr->mem->base + offset, bytes};

	if (*key_bytes < sizeof(k))
		return m2n__error(-ENOSPC, "self: no room for the key");
	memcpy(key, &k, sizeof(k));
	*key_bytes = sizeof(k);
	return 0;
}

static int self_import(
	struct m2n__ep *ep, const void *key, size_t key_bytes, struct m2n__rmem **rmem)
{
	struct self_key k;

	if (key_bytes != sizeof(k))
		return m2n__error(M2N_ERR_PROTOCOL, "self: key of %zu bytes, expected %zu",
			key_bytes, sizeof(k));
	memcpy(&k, key, sizeof(k));
	*rmem = calloc(1, sizeof(**rmem));
	if (!*rmem)
		return m2n__error(-ENOMEM, "self: no memory for a key");
	(*rmem)->ep = ep;
	(*rmem)->ptr = (void *)(uintptr_t)k.address;
	(*rmem)->bytes = k.bytes;
	return 0;
}

static void self_release(struct m2n__rmem *rmem)
{
	free(rmem);
}

const struct m2n__backend_ops m2n__backend_self = {
	.name = "self",
	.about = "a rank to itself: plain memory",
	.priority = 100,
	.caps = M2N__CAP_MAPPED | M2N__CAP_HOST_MEMORY | M2N__CAP_CUDA_MEMORY,
	.open = self_open,
	.close = self_close,
	.address = self_address,
	.reaches = self_reaches,
	.connect = self_connect,
	.disconnect = self_disconnect,
	.reg = self_reg,
	.dereg = self_dereg,
	.export_key = self_export,
	.import_key = self_import,
	.release_key = self_release,
};
