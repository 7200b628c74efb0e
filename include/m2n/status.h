/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Results of calls.
 *
 * Every call that can fail returns an int: 0, or a documented positive condition (the call did
 * its work, something about it is worth knowing), or a negative code. Negative codes below 1000
 * are errno values (-EINVAL: bad argument, nothing done; -EAGAIN: refused for now, nothing
 * queued; -ETIMEDOUT: the deadline passed; -ENOMEM; -ENOTSUP), those from 1000 on are listed
 * here. m2n_strerror() turns a code into a constant text; m2n_error_text() gives the details of
 * the last failure in the calling thread: which object, which peer, which round, what was
 * expected, what was found, and the remedy.
 */
#ifndef M2N_STATUS_H
#define M2N_STATUS_H

#include <m2n/export.h>

#ifdef __cplusplus
extern "C" {
#endif

/* X(NAME, code, text): one list makes the enum, the texts and the manual. */
/* clang-format off */
#define M2N_STATUS_LIST(X) \
	X(PEER_LOST,    1000, "a peer is lost: its process, host or link is gone") \
	X(SHAPE,        1002, "two ranks disagree on the shape of a channel or exchange") \
	X(PROTOCOL,     1003, "a peer sent something that the protocol does not allow") \
	X(AUTH,         1004, "the peer does not know the shared secret") \
	X(VERSION,      1005, "the peer speaks another wire version") \
	X(CAPACITY,     1006, "more rows than the channel's capacity") \
	X(BACKEND,      1007, "the backend cannot be used here") \
	X(OPTION,       1008, "an option has a value that cannot be read or is out of range") \
	X(STORE,        1009, "the bootstrap store failed") \
	X(MAP,          1010, "two ranks use different expert maps for one round")
/* clang-format on */

enum m2n_status {
	M2N_OK = 0,
	/* The call did its work for some peers or rows only; the call says how to learn which. */
	M2N_PARTIAL = 1,
#define M2N_STATUS_ENUM(name, code, text) M2N_ERR_##name = -(code),
	M2N_STATUS_LIST(M2N_STATUS_ENUM)
#undef M2N_STATUS_ENUM
};

/*
 * A constant English text for a result: positive conditions, errno values and the codes above.
 * Unknown codes give "unknown status". Never NULL. Thread-safe.
 */
M2N_API const char *m2n_strerror(int status);

/*
 * What went wrong in the last call of this thread that returned a negative code or M2N_PARTIAL.
 * The text belongs to the thread and stays until its next failing call; "" when there was none.
 */
M2N_API const char *m2n_error_text(void);

#ifdef __cplusplus
}
#endif
#endif
