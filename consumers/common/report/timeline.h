/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a rank does when: spans in memory that is taken at open, so that recording costs two looks
 * at the clock. Files of several ranks become one Chrome trace (chrome://tracing, Perfetto) and one
 * picture on which the overlap of micro-batches can be seen.
 */
#ifndef REPORT_TIMELINE_H
#define REPORT_TIMELINE_H

#include <stddef.h>
#include <stdint.h>
#include <time.h>

enum timeline_kind {
	TIMELINE_COMPUTE,
	TIMELINE_SEND, /* handing rows over */
	TIMELINE_WAIT, /* for rows or replies: communication and the others' time that shows */
	TIMELINE_IDLE, /* nothing to do */
	TIMELINE_KINDS,
};

struct timeline_span {
	int64_t begin_ns, end_ns; /* CLOCK_MONOTONIC */
	const char *label;        /* constant, one word */
	uint16_t kind, lane;      /* lane 0: what the rank does; others: what is under way */
	uint32_t layer, micro_batch;
};

struct timeline;

/* Room for n_spans; later ones are counted only. NULL: no memory. name: of the rank, up to 31. */
struct timeline *timeline_open(const char *name, int rank, size_t n_spans);
void timeline_close(struct timeline *timeline);

static inline int64_t timeline_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * INT64_C(1000000000) + ts.tv_nsec;
}

/* Ends now; returns now, where the next one may begin. NULL: only the time. */
int64_t timeline_add(struct timeline *timeline, struct timeline_span span);

struct timeline_total {
	int64_t ns[TIMELINE_KINDS];
	uint64_t n[TIMELINE_KINDS];
	uint64_t n_lost; /* spans that had no room */
};
/* Of all spans of lane 0, those without room too. */
void timeline_totals(const struct timeline *timeline, struct timeline_total *total);

/* One file for each rank, to be merged where all can be read. 0 or a negative errno with a text. */
int timeline_save(const struct timeline *timeline, const char *path);
/*
 * Files of n ranks into a Chrome trace and an SVG; either path may be NULL. The picture shows the
 * window_ns that begin at the share `at` (0 to 1) of the whole time; window_ns 0: all of it.
 */
int timeline_merge(const char *const *paths, size_t n, const char *chrome_path,
	const char *svg_path, const char *title, double at, int64_t window_ns);
/*
 * Communication that shows: the share of the time, from the first span of kind compute in any rank
 * to the last one, in which some rank sends or waits and none computes. *share: 0 to 1.
 */
int timeline_exposed(const char *const *paths, size_t n, double *share);

#endif
