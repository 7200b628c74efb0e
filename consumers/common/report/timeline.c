/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Recording, and the files of single ranks: a line with the rank, its name, the number of spans and
 * of those that had no room, then one line for each span,
 *
 *     BEGIN_NS END_NS KIND LANE LAYER MICRO_BATCH LABEL
 *
 * A rank's own time is lane 0. Other lanes show what is under way meanwhile and are in no total.
 */
#include "timeline.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/error.h"

struct timeline {
	char name[32];
	int rank;
	struct timeline_span *spans;
	size_t n_spans, room;
	struct timeline_total total;
};

struct timeline *timeline_open(const char *name, int rank, size_t n_spans)
{
	struct timeline *t = calloc(1, sizeof(*t));

	if (!t)
		return NULL;
	snprintf(t->name, sizeof(t->name), "%s", name);
	t->rank = rank;
	t->room = n_spans;
	t->spans = malloc((n_spans ? n_spans : 1) * sizeof(*t->spans));
	if (!t->spans) {
		free(t);
		return NULL;
	}
	return t;
}

void timeline_close(struct timeline *t)
{
	if (!t)
		return;
	free(t->spans);
	free(t);
}

int64_t timeline_add(struct timeline *t, struct timeline_span span)
{
	span.end_ns = timeline_now();
	if (!t)
		return span.end_ns;
	if (span.lane == 0) {
		t->total.ns[span.kind] += span.end_ns - span.begin_ns;
		t->total.n[span.kind]++;
	}
	if (t->n_spans < t->room)
		t->spans[t->n_spans++] = span;
	else
		t->total.n_lost++;
	return span.end_ns;
}

void timeline_totals(const struct timeline *t, struct timeline_total *total)
{
	*total = t->total;
}

int timeline_save(const struct timeline *t, const char *path)
{
	FILE *file = fopen(path, "we");
	int rc = 0;

	if (!file)
		return model_fail(-errno, "%s: %s", path, strerror(errno));
	fprintf(file, "%d %s %zu %" PRIu64 "\n", t->rank, t->name, t->n_spans, t->total.n_lost);
	for (size_t i = 0; i < t->n_spans; i++) {
		const struct timeline_span *s = &t->spans[i];

		fprintf(file, "%" PRId64 " %" PRId64 " %u %u %u %u %s\n", s->begin_ns, s->end_ns,
			s->kind, s->lane, s->layer, s->micro_batch, s->label);
	}
	if (ferror(file))
		rc = model_fail(-EIO, "%s: cannot be written", path);
	if (fclose(file) && !rc)
		rc = model_fail(-errno, "%s: %s", path, strerror(errno));
	return rc;
}
