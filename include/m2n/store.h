/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The bootstrap store: the key-value exchange that the ranks of a group find each other by.
 *
 * Most programs need nothing of this: a group is joined with a store's URL, "tcp://HOST:PORT" (rank
 * 0 hosts it) or "dir:PATH" (a directory that all ranks see), and the URL comes from the launcher.
 * Here is what the others need: a TCP store that outlives or precedes the ranks, hosted by a
 * launcher, and a store made of the program's own functions, for one that has an exchange already
 * (etcd, Redis, MPI, torch's store).
 *
 * A TCP store with a secret lets nobody in who does not know it, and its clients do not talk to a
 * server that does not; the secret itself is never sent. What is stored is not encrypted. Without a
 * secret everybody who reaches the port can read and write: use one, or a private network.
 */
#ifndef M2N_PUBLIC_STORE_H
#define M2N_PUBLIC_STORE_H

#include <stddef.h>
#include <stdint.h>

#include <m2n/export.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
 * A store made of the program's functions. Keys are printable ASCII without spaces, up to 200
 * bytes; '/' occurs. Values have up to 65,536 bytes and may be empty.
 *
 * put: stores value[bytes] under the key; a later put replaces it. Returns 0 or a negative code.
 * get: waits up to timeout_ns until the key is there, then copies its value. *bytes: room on
 * entry, size on return. Returns 0; -ETIMEDOUT when the key never came; with timeout_ns 0: -EAGAIN
 * at once when it is not there; -ENOSPC when the room is too small; another negative code when
 * the exchange is broken.
 *
 * Ownership: key and value are borrowed for the call; arg and the functions must stay valid until
 * the group that uses them is left. Thread-safety: called by one thread at a time, the one that is
 * inside the libm2n call that needs the store. The functions must not call libm2n. Blocking: put
 * may block as long as the exchange takes, get up to its timeout (INT64_MAX: no limit). Ordering:
 * a value must be seen by every get that starts after its put returned.
 */
struct m2n_store_callbacks {
	size_t size; /* of this struct, as the program was compiled */
	void *arg;
	int (*put)(void *arg, const char *key, const void *value, size_t bytes);
	int (*get)(void *arg, const char *key, void *value, size_t *bytes, int64_t timeout_ns);
};

#define M2N_STORE_CALLBACKS_INIT \
	{ \
		sizeof(struct m2n_store_callbacks), NULL, NULL, NULL \
	}

/* A TCP store's server: one thread that sleeps while nobody asks. Opaque. */
struct m2n_store_server;

/*
 * Starts a TCP store's server in this process, for ranks of this or other processes.
 *
 * listen: "HOST:PORT" with a name, an IPv4 or a bracketed IPv6 address of this machine; an empty
 * HOST is every address, PORT 0 any free one. secret: the shared secret, NULL or "" for none;
 * read during the call only. url, url_bytes: gets the URL for the ranks, terminated; 256 bytes are
 * always enough. With an empty HOST the URL names this machine by its host name. server: the
 * running server; the caller owns it.
 *
 * Returns 0; -EINVAL: listen cannot be read or an argument is NULL; -ENOSPC: url is too small;
 * -EADDRINUSE: the port is taken; -EADDRNOTAVAIL: not an address of this machine; -ENOMEM; or
 * M2N_ERR_STORE: the system refuses. On failure nothing runs and the outputs are untouched.
 * Thread-safe. Blocks only while a name is looked up. A process forked afterwards has no server.
 */
M2N_API int m2n_store_server_start(const char *listen, const char *secret, char *url,
	size_t url_bytes, struct m2n_store_server **server);

/*
 * Ends the server: its clients' connections close, its keys are gone. Takes NULL. Returns when the
 * thread has ended, which is at once. Call it once per server; thread-safe between servers.
 */
M2N_API void m2n_store_server_stop(struct m2n_store_server *server);

#ifdef __cplusplus
}
#endif
#endif
