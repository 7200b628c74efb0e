/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Timelines of all ranks, read back from their files. Every field is checked: a file may be of a
 * rank that died while it wrote.
 */
#ifndef REPORT_TIMELINE_READ_H
#define REPORT_TIMELINE_READ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "timeline.h"

enum { TIMELINE_MAX_LANES = 64 };

struct track_span {
	int64_t begin, end; /* 0 <= begin <= end */
	unsigned kind, lane, layer, micro_batch;
	char label[32];
};

struct track {
	int rank;
	char name[32];
	struct track_span *spans;
	size_t n, room;
	uint64_t n_lost; /* spans that the recorder had no room for */
	unsigned n_lanes;
};

struct tracks {
	struct track *list;
	size_t n;
	int64_t begin, end; /* of all spans; both 0 if there is none */
};

/* 0 or a negative errno with a text; all is to be freed in both cases. */
int tracks_read(const char *const *paths, size_t n, struct tracks *all);
void tracks_free(struct tracks *all);

const char *timeline_kind_name(unsigned kind);
void timeline_write_svg(
	FILE *file, const struct tracks *all, const char *title, double at, int64_t window_ns);

#endif
