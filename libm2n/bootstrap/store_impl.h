/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the kinds of store share: how each is opened, and the checks and texts that must be the
 * same for all of them.
 */
#ifndef M2N_STORE_IMPL_H
#define M2N_STORE_IMPL_H

#include "bootstrap/store.h"

int m2n__store_open_tcp(const char *host, uint16_t port, int host_it,
	const struct m2n__auth_key *key, int64_t timeout_ns, struct m2n__store **store);
int m2n__store_open_dir(const char *path, int host_it, struct m2n__store **store);

/* 0, or -EINVAL with the rule in the text: key, timeout, and for put the size of the value. */
int m2n__store_check_put(const char *key, const void *value, size_t bytes, int64_t timeout_ns);
int m2n__store_check_get(
	const char *key, const void *value, const size_t *bytes, int64_t timeout_ns);

/* The results of a get, with their texts. */
int m2n__store_missing(const struct m2n__store *store, const char *key, int64_t timeout_ns);
/* Copies a value that arrived; -ENOSPC when *room is too small, else sets *room to its size. */
int m2n__store_copy_out(const struct m2n__store *store, const char *key, const void *from,
	size_t bytes, void *value, size_t *room);

/* Splits "HOST:PORT" or "[IPV6]:PORT"; 0 or -EINVAL without a text. host may become "". */
int m2n__store_split_address(
	const char *address, char *host, size_t host_bytes, uint16_t *port);
/* Writes tcp://HOST:PORT, IPv6 in brackets. 0 or -ENOSPC. */
int m2n__store_format_url(const char *host, uint16_t port, char *url, size_t url_bytes);

#endif
