/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Yardsticks that are programs: ib_write_bw, ib_send_bw, ib_write_lat and ib_send_lat of Debian's
 * package perftest, ucx_perftest of ucx-utils. In each alternation the expert rank of a pair starts
 * a server on a free port, and the source of the pair the client, between the same devices, with
 * the size that is measured; the client's figure is parsed and noted in the page. For bandwidth
 * every source has a pair with every expert rank, all at once; else there is one pair. Both sides
 * meet in the group's store, so that hosts may differ.
 */
#ifndef PERF_COMPARE_TOOL_H
#define PERF_COMPARE_TOOL_H

#include "page.h"
#include "rank.h"

#define TOOL_COMMAND_BYTES PERF_TEXT_BYTES
#define TOOL_MAX_PEERS 64 /* that a rank runs tools with at once */

/* What is to be run: m2n's own options of the network as the ib tools take them. */
struct tool_task {
	enum perf_kind kind;
	const char *host; /* NULL: as server */
	uint16_t port;
	uint64_t size;
	uint64_t n_iters;
	uint64_t n_warmup;
	uint64_t measured_s; /* 0: n_iters count, else seconds between margins */
	uint64_t margin_s;
	uint64_t n_qps;
	char device[64]; /* "": the tool's choice */
	char ib_port[8], gid_index[8], mtu[8], service_level[8],
		traffic_class[8]; /* "": not given */
};

struct tool_command {
	char text[TOOL_COMMAND_BYTES];
	char *argv[48];
};

/* The command line of a task. */
void tool_command_make(const struct tool_task *task, struct tool_command *command);
/*
 * The figure in a tool's output. False: there is none. 0: the tool could not tell; perftest's do
 * not know the clock's frequency on a machine that was busy when they began.
 */
bool tool_output_parse(const struct tool_task *task, const char *text, struct page_figure *figure);

/* "ib_write_bw", and of ucx_perftest the test as *how, else NULL. */
const char *perf_tool_name(enum perf_kind kind, const char **how);
/* Sources that run clients at once; their GB/s are summed. */
uint64_t perf_tool_sources(const struct perf_args *args);
/* Adds the series of all such yardsticks that were asked for. */
void perf_tool_add(struct perf_job *job);

/* One alternation; all ranks. A tool that does not run is named once and left out. */
void perf_tool_batch(struct perf_rank *rank, unsigned series, uint32_t rep);

#endif
