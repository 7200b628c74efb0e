/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What does not depend on the kind of store: URLs, checks of arguments, the texts of common
 * results, and the public functions around a server.
 */
#include "bootstrap/store.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bootstrap/store_impl.h"
#include "util/error.h"
#include "wire/store_wire.h"

_Static_assert(M2N__STORE_KEY_MAX == M2N__STORE_WIRE_KEY_MAX, "keys of store and wire");
_Static_assert(M2N__STORE_VALUE_MAX == M2N__STORE_WIRE_VALUE_MAX, "values of store and wire");

#define URL_BYTES sizeof(((struct m2n__store *)0)->url)
#define FORMS "tcp://HOST:PORT (name, IPv4 or [IPv6]; port 1 to 65535) or dir:PATH"

static int parse_port(const char *text, uint16_t *port)
{
	unsigned value = 0;

	if (!text[0] || strlen(text) > 5)
		return -EINVAL;
	for (; *text; text++) {
		if (*text < '0' || *text > '9')
			return -EINVAL;
		value = value * 10 + (unsigned)(*text - '0');
	}
	if (value > 65535)
		return -EINVAL;
	*port = (uint16_t)value;
	return 0;
}

int m2n__store_split_address(const char *address, char *host, size_t host_bytes, uint16_t *port)
{
	const char *colon = strrchr(address, ':');
	const char *end = colon;
	size_t bytes;

	if (!colon || parse_port(colon + 1, port))
		return -EINVAL;
	if (address[0] == '[') {
		address++;
		end = colon - 1;
		if (end <= address || *end != ']')
			return -EINVAL;
	} else if (memchr(address, ':', (size_t)(colon - address))) {
		return -EINVAL;
	}
	bytes = (size_t)(end - address);
	if (bytes >= host_bytes || memchr(address, '/', bytes) || memchr(address, ']', bytes))
		return -EINVAL;
	memcpy(host, address, bytes);
	host[bytes] = '\0';
	return 0;
}

int m2n__store_format_url(const char *host, uint16_t port, char *url, size_t url_bytes)
{
	const char *format = strchr(host, ':') ? "tcp://[%s]:%u" : "tcp://%s:%u";
	int n = snprintf(url, url_bytes, format, host, (unsigned)port);

	return n < 0 || (size_t)n >= url_bytes ? -ENOSPC : 0;
}

static int check_key_and_timeout(const char *key, int64_t timeout_ns)
{
	if (m2n__store_key_check(key, key ? strnlen(key, M2N__STORE_KEY_MAX + 1) : 0))
		return m2n__error(-EINVAL,
			"store key '%.210s': must be 1 to %d printable ASCII characters without "
			"spaces",
			key ? key : "(NULL)", M2N__STORE_KEY_MAX);
	if (timeout_ns < 0)
		return m2n__error(-EINVAL, "store key '%s': the timeout must not be negative", key);
	return 0;
}

int m2n__store_check_put(const char *key, const void *value, size_t bytes, int64_t timeout_ns)
{
	if (bytes > M2N__STORE_VALUE_MAX || (bytes && !value))
		return m2n__error(-EINVAL, "store value of %zu bytes: must be 0 to %d bytes", bytes,
			M2N__STORE_VALUE_MAX);
	return check_key_and_timeout(key, timeout_ns);
}

int m2n__store_check_get(
	const char *key, const void *value, const size_t *bytes, int64_t timeout_ns)
{
	if (!bytes || (*bytes && !value))
		return m2n__error(-EINVAL, "store get: no room for the value");
	return check_key_and_timeout(key, timeout_ns);
}

int m2n__store_missing(const struct m2n__store *store, const char *key, int64_t timeout_ns)
{
	if (timeout_ns == 0)
		return m2n__error(-EAGAIN, "key '%s' is not in store %s yet", key, store->url);
	return m2n__error(-ETIMEDOUT, "key '%s' did not appear in store %s within %lld ms", key,
		store->url, (long long)(timeout_ns / 1000000));
}

int m2n__store_copy_out(const struct m2n__store *store, const char *key, const void *from,
	size_t bytes, void *value, size_t *room)
{
	if (bytes > *room)
		return m2n__error(-ENOSPC,
			"key '%s' in store %s has %zu bytes, there is room for %zu", key,
			store->url, bytes, *room);
	if (bytes)
		memcpy(value, from, bytes);
	*room = bytes;
	return 0;
}

int m2n__store_open(const char *url, int host_it, const struct m2n__auth_key *key,
	int64_t timeout_ns, struct m2n__store **store)
{
	static const struct m2n__auth_key no_secret;
	char host[URL_BYTES];
	uint16_t port;

	if (!url || strnlen(url, URL_BYTES) == URL_BYTES)
		return m2n__error(-EINVAL, "store URL %s: must be " FORMS ", up to %zu bytes",
			url ? "is too long" : "is missing", URL_BYTES - 1);
	if (timeout_ns < 0)
		return m2n__error(-EINVAL, "store %s: the timeout must not be negative", url);
	if (!strncmp(url, "dir:", 4) && url[4])
		return m2n__store_open_dir(url + 4, host_it, store);
	if (strncmp(url, "tcp://", 6) ||
		m2n__store_split_address(url + 6, host, sizeof(host), &port) || !host[0] ||
		(!port && !host_it))
		return m2n__error(-EINVAL, "store URL '%s': must be " FORMS, url);
	return m2n__store_open_tcp(host, port, host_it, key ? key : &no_secret, timeout_ns, store);
}

void m2n__store_close(struct m2n__store *store)
{
	if (store)
		store->ops->close(store);
}

/* The public face of a server. */
struct m2n_store_server {
	struct m2n__store_server *inner;
};

int m2n_store_server_start(const char *listen, const char *secret, char *url, size_t url_bytes,
	struct m2n_store_server **server)
{
	char host[URL_BYTES], name[URL_BYTES], text[URL_BYTES];
	struct m2n__auth_key key;
	struct m2n_store_server *s;
	uint16_t port;
	int status;

	if (!listen || !url || !server ||
		m2n__store_split_address(listen, host, sizeof(host), &port))
		return m2n__error(-EINVAL,
			"store server: listen '%s' must be HOST:PORT or [IPV6]:PORT, url and "
			"server "
			"not NULL",
			listen ? listen : "(NULL)");
	s = calloc(1, sizeof(*s));
	if (!s)
		return m2n__error(-ENOMEM, "no memory for a store server");
	status = m2n__auth_key_derive(secret, &key);
	if (status)
		goto free_server;
	status = m2n__store_server_start(host, port, &key, &s->inner, &port);
	explicit_bzero(&key, sizeof(key));
	if (status)
		goto free_server;
	if (!host[0] &&
		(gethostname(name, sizeof(name)) || memchr(name, '\0', sizeof(name)) == NULL))
		strcpy(name, "localhost");
	status = m2n__store_format_url(host[0] ? host : name, port, text, sizeof(text));
	if (status || strlen(text) >= url_bytes) {
		status = m2n__error(
			-ENOSPC, "store server: its URL needs more than %zu bytes", url_bytes);
		goto stop;
	}
	strcpy(url, text);
	*server = s;
	return 0;
stop:
	m2n__store_server_stop(s->inner);
free_server:
	free(s);
	return status;
}

void m2n_store_server_stop(struct m2n_store_server *server)
{
	if (!server)
		return;
	m2n__store_server_stop(server->inner);
	free(server);
}
