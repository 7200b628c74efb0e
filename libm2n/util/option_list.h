/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The options, one row each: X(NAME, field, type, default, range, unit, sentence).
 * Types: bool (int), int (int64_t), size (size_t), time (int64_t ns), text (char *),
 * choice (int: position in the range's list). The parser, m2n_info -c and the manual read it.
 * A range of "LOW..HIGH" is in the type's text form; a choice lists its words by '|'.
 */
#ifndef M2N_OPTION_LIST_H
#define M2N_OPTION_LIST_H

/* clang-format off */
#define M2N_OPTION_LIST(X) \
	X(BACKEND,    backend,    text,   "auto",  "auto|self|shm|..., fault:NAME", "", \
	  "Backend for all peers; auto picks the best that reaches each.") \
	X(TIMEOUT,    timeout_ns, time,   "30s",   "1ms..1h", "", \
	  "Default deadline of calls that wait.") \
	X(LOG,        log_level,  choice, "off",   "off|error|warn|info|debug|trace", "", \
	  "Log lines on standard error, up to this level.") \
	X(SPIN,       spin_ns,    time,   "20us",  "0..1s", "", \
	  "How long a wait spins before it yields the processor; 0 when ranks outnumber cores.") \
	X(YIELD,      yield_ns,   time,   "50us",  "0..1s", "", \
	  "How long a wait yields before it sleeps.") \
	X(NT_BYTES,   nt_bytes,   size,   "1M",  "0..1T", "bytes", \
	  "Rounds that write more than this to a peer use non-temporal stores.") \
	X(KERNELS,    kernels,    text,   "auto",  "auto|scalar|avx2|avx512", "", \
	  "Row kernels; auto picks the fastest that the processor has.") \
	X(HUGE_PAGES, huge_pages, choice, "try",   "no|try|yes", "", \
	  "Huge pages for slots and for m2n_mem_alloc(); yes fails without them.") \
	X(SIGNALS,    n_signals,  int,    "65536", "64..16777216", "", \
	  "Words in the signal table of messaging backends; two for each slot.") \
	X(FAULT,      fault,      text,   "",      "drop=P,delay=TIME,reorder=P,fail=P,truncate=P,seed=N", "", \
	  "What the fault interposer does (BACKEND=fault:NAME).") \
	X(GROUP,      group,      text,   "m2n",   "1..63 characters", "", \
	  "Name of the group where the call gives none and the launcher none.") \
	X(RANK,       rank,       int,    "-1",    "-1..1048575", "", \
	  "Rank of this process; -1: from the launcher.") \
	X(SIZE,       n_ranks,    int,    "-1",    "-1..1048576", "", \
	  "Number of ranks; -1: from the launcher.") \
	X(STORE,      store,      text,   "",      "tcp://HOST:PORT or dir:PATH", "", \
	  "Where ranks find each other; empty: from the launcher.") \
	X(SECRET,     secret,     text,   "",      "any text", "", \
	  "Shared secret that ranks prove to each other and never send; empty: none.") \
	X(ADDRESS,    address,    text,   "",      "an address of this host", "", \
	  "Address that peers connect to; empty: the one that reaches the store.") \
	X(HOST_ID,    host_id,    text,   "",      "any text", "", \
	  "Equal on ranks that share memory; empty: from the kernel's boot id and namespaces.") \
	X(KEEPALIVE,  keepalive_ns, time, "10s",   "2s..1h", "", \
	  "A host that is silent on a control connection for this long is lost.")
/* clang-format on */

#endif
