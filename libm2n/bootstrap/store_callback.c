/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A store of the user's functions. What they return is checked like a peer's word: a size above
 * the room, or a code that is no result, becomes M2N_ERR_STORE.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "bootstrap/store_impl.h"
#include "util/error.h"

struct callback_store {
	struct m2n__store base;
	struct m2n_store_callbacks callbacks;
};

static int callback_put(struct m2n__store *store, const char *key, const void *value, size_t bytes,
	int64_t timeout_ns)
{
	struct callback_store *s = (struct callback_store *)store;
	int status = m2n__store_check_put(key, value, bytes, timeout_ns);

	if (status)
		return status;
	status = s->callbacks.put(s->callbacks.arg, key, value, bytes);
	if (status)
		return m2n__error(status < 0 ? status : M2N_ERR_STORE,
			"the store's put callback returned %d (%s) for key '%s'", status,
			m2n_strerror(status), key);
	return 0;
}

static int callback_get(
	struct m2n__store *store, const char *key, void *value, size_t *bytes, int64_t timeout_ns)
{
	struct callback_store *s = (struct callback_store *)store;
	int status = m2n__store_check_get(key, value, bytes, timeout_ns);
	size_t got;

	if (status)
		return status;
	got = *bytes;
	status = s->callbacks.get(s->callbacks.arg, key, value, &got, timeout_ns);
	if (status == -ETIMEDOUT || status == -EAGAIN)
		return m2n__store_missing(store, key, timeout_ns);
	if (status)
		return m2n__error(status < 0 ? status : M2N_ERR_STORE,
			"the store's get callback returned %d (%s) for key '%s'", status,
			m2n_strerror(status), key);
	if (got > *bytes)
		return m2n__error(M2N_ERR_STORE,
			"the store's get callback says key '%s' has %zu bytes, in room for %zu",
			key, got, *bytes);
	*bytes = got;
	return 0;
}

static void callback_close(struct m2n__store *store)
{
	free(store);
}

static const struct m2n__store_ops callback_ops = {
	.put = callback_put, .get = callback_get, .close = callback_close};

/* Bytes of a newer program's struct that this library does not know must be zero. */
static int has_unknown(const struct m2n_store_callbacks *callbacks)
{
	const char *bytes = (const char *)callbacks;

	for (size_t i = sizeof(*callbacks); i < callbacks->size; i++)
		if (bytes[i])
			return 1;
	return 0;
}

int m2n__store_open_callbacks(
	const struct m2n_store_callbacks *callbacks, struct m2n__store **store)
{
	struct callback_store *s;

	if (!callbacks || callbacks->size < sizeof(size_t) || has_unknown(callbacks))
		return m2n__error(-EINVAL,
			"store callbacks: NULL, without M2N_STORE_CALLBACKS_INIT, or with fields "
			"that this library does not know");
	s = calloc(1, sizeof(*s));
	if (!s)
		return m2n__error(-ENOMEM, "no memory for a store");
	memcpy(&s->callbacks, callbacks,
		callbacks->size < sizeof(*callbacks) ? callbacks->size : sizeof(*callbacks));
	if (!s->callbacks.put || !s->callbacks.get) {
		free(s);
		return m2n__error(-EINVAL, "store callbacks: put and get must both be given");
	}
	s->base.ops = &callback_ops;
	strcpy(s->base.url, "callbacks");
	*store = &s->base;
	return 0;
}
