/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The key-value exchange that ranks find each other by: put a value under a key, get a value and
 * wait until it is there. Three kinds behind one struct: a TCP server that one rank (or a
 * launcher) hosts, a directory on a shared file system, and the user's callbacks.
 *
 * Values are small (up to M2N__STORE_VALUE_MAX bytes); a later put replaces the value. Keys are
 * printable ASCII without spaces, up to M2N__STORE_KEY_MAX bytes; '/' is allowed.
 * A store is used by one thread at a time.
 */
#ifndef M2N_STORE_H
#define M2N_STORE_H

#include <stddef.h>
#include <stdint.h>

#include <m2n/store.h>

#include "bootstrap/auth.h"

#define M2N__STORE_KEY_MAX 200
#define M2N__STORE_VALUE_MAX 65536

struct m2n__store;

struct m2n__store_ops {
	/*
	 * Timeout 0 in put or get: no waiting beyond one exchange with the server, which is itself
	 * bounded. A closed or lying server: M2N_ERR_STORE, M2N_ERR_PROTOCOL.
	 */
	int (*put)(struct m2n__store *store, const char *key, const void *value, size_t bytes,
		int64_t timeout_ns);
	/*
	 * Waits until the key is there; -ETIMEDOUT (the text names key and store) when it never is;
	 * timeout 0: -EAGAIN at once. *bytes: room on entry, size on return; -ENOSPC when too
	 * small.
	 */
	int (*get)(struct m2n__store *store, const char *key, void *value, size_t *bytes,
		int64_t timeout_ns);
	void (*close)(struct m2n__store *store);
};

struct m2n__store {
	const struct m2n__store_ops *ops;
	char url[256];
	/* The local address that reaches the store ("" when unknown): good to publish to peers. */
	char local_addr[64];
};

/*
 * Opens a store by URL: "tcp://HOST:PORT" (host names, IPv4, [IPv6]) or "dir:PATH" (made when
 * missing, mode 0700). `host_it`: for tcp, serve it in this process when the address is ours
 * and the port is free (a thread that sleeps in poll() until the store is closed). key: NULL = no
 * secret; both sides of a TCP store prove theirs to each other, M2N_ERR_AUTH names the address.
 * A directory must belong to this user and be writable by no one else; that is its protection,
 * no secret is asked for. With `host_it` its keys, and the directory once it is empty, are
 * removed at close, as a TCP store's keys end with its host. Port 0 with host_it: any free port,
 * store->url tells. M2N_ERR_VERSION: the store's server is of another wire version.
 * -EINVAL with the accepted forms in the text for a URL that cannot be read.
 */
int m2n__store_open(const char *url, int host_it, const struct m2n__auth_key *key,
	int64_t timeout_ns, struct m2n__store **store);
/* A store of the user's functions, which are borrowed until close. -EINVAL: one is missing. */
int m2n__store_open_callbacks(
	const struct m2n_store_callbacks *callbacks, struct m2n__store **store);
/* Takes NULL. */
void m2n__store_close(struct m2n__store *store);

/*
 * A TCP store server alone, for launchers and tests. port 0 = any; the bound one is returned.
 * host NULL or "": every address of this machine. key NULL: no secret. -EADDRINUSE,
 * -EADDRNOTAVAIL, M2N_ERR_STORE.
 */
struct m2n__store_server;
int m2n__store_server_start(const char *host, uint16_t port, const struct m2n__auth_key *key,
	struct m2n__store_server **server, uint16_t *bound_port);
/* The same with another time in which a client must have proven itself (10 s in the one above). */
int m2n__store_server_start_tuned(const char *host, uint16_t port,
	const struct m2n__auth_key *key, int64_t handshake_ns, struct m2n__store_server **server,
	uint16_t *bound_port);
/* Closes all connections and forgets all keys; the thread has ended on return. Takes NULL. */
void m2n__store_server_stop(struct m2n__store_server *server);

#endif
