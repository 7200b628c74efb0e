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
	X(BACKEND,    backend,    text,   "auto",  "auto|NAME,NAME...|fault:NAME", "", \
	  "Backends to use, by commas (auto: all); each peer gets the best that reaches it.") \
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
	X(CUDA_DEVICE, cuda_device, text, "auto", "auto|none|0..", "", \
	  "GPU of this context; auto: the calling thread's, in a program that uses CUDA already.") \
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
	X(VERBS_DEVICES, verbs_devices, text, "", "NAME[:PORT],...", "", \
	  "Ports that backend verbs uses, one rail each; empty: the best active one.") \
	X(VERBS_CONNECT, verbs_connect, choice, "cm", "cm|exchange", "", \
	  "Connections by librdmacm (addresses, routing) or by what ranks tell each other.") \
	X(VERBS_GID_INDEX, verbs_gid_index, int, "-1", "-1..255", "", \
	  "Index of the port's GID; -1: RoCE v2 with IPv4, else RoCE v2, else the first.") \
	X(VERBS_MTU, verbs_mtu, choice, "auto", "auto|256|512|1024|2048|4096", "bytes", \
	  "Path MTU at most; auto: the ports'. The smaller of both sides is used.") \
	X(VERBS_TC, verbs_tc, int, "-1", "-1..255", "", \
	  "Traffic class (RoCE: DSCP * 4) of what this rank sends; -1: the route's, else 0.") \
	X(VERBS_SL, verbs_sl, int, "-1", "-1..15", "", \
	  "Service level (RoCE: the VLAN's priority) of what this rank sends; -1: the route's, else 0.") \
	X(VERBS_REPLY_TC, verbs_reply_tc, int, "-1", "-1..255", "", \
	  "Traffic class of this rank's acknowledgements, on a second QP; -1: same QP and class.") \
	X(VERBS_REPLY_SL, verbs_reply_sl, int, "-1", "-1..15", "", \
	  "Service level of this rank's acknowledgements, on a second QP; -1: same QP and level.") \
	X(VERBS_QPS, verbs_qps, int, "1", "1..16", "", \
	  "Queue pairs to each peer on each rail; the smaller number of both sides is used.") \
	X(VERBS_STRIPE, verbs_stripe, size, "64K", "4K..1G", "bytes", \
	  "Longest write when there are several rails or queue pairs to a peer.") \
	X(VERBS_TIMEOUT, verbs_timeout, int, "14", "1..31", "4.096 us * 2^N", \
	  "How long a queue pair waits for an acknowledgement before it sends again.") \
	X(VERBS_RETRIES, verbs_retries, int, "6", "0..7", "", \
	  "How often it sends again before the peer is lost; Soft-RoCE takes 7 for ever.") \
	X(VERBS_RELAXED_ORDERING, verbs_relaxed_ordering, bool, "yes", "no|yes", "", \
	  "Devices may write a row's bytes to memory in any order; signals stay behind them.") \
	X(VERBS_INLINE, verbs_inline, size, "256", "0..1K", "bytes", \
	  "Puts up to this are copied into the work request and need no registration.") \
	X(VERBS_RECVS, verbs_recvs, int, "4096", "64..1048576", "", \
	  "Receives for signals on each rail, shared by all peers.") \
	X(VERBS_SQ, verbs_sq, int, "64", "8..32768", "", \
	  "Work requests under way on each queue pair.") \
	X(UCX_STORE, ucx_store, size, "1G", "0..1T", "bytes", \
	  "Longest piece that this rank stores itself where UCX has the peer's memory mapped.") \
	X(NCCL_CTAS, nccl_ctas, int, "2", "1..32", "", \
	  "Blocks on the GPU that NCCL may use for each direction of each connection.") \
	X(KEEPALIVE,  keepalive_ns, time, "10s",   "2s..1h", "", \
	  "A host that is silent on a control connection for this long is lost.")
/* clang-format on */

#endif
