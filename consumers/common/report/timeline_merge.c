/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Timelines of several ranks in one Chrome trace and one picture, and the communication that no
 * computation hides.
 */
#include "timeline_read.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/error.h"

static void write_chrome(FILE *file, const struct tracks *all)
{
	fprintf(file, "{\"displayTimeUnit\": \"ns\", \"traceEvents\": [\n");
	for (size_t i = 0; i < all->n; i++) {
		const struct track *t = &all->list[i];

		fprintf(file,
			"%s{\"ph\": \"M\", \"name\": \"process_name\", \"pid\": %d, \"args\": "
			"{\"name\": \"rank %d %s\"}}",
			i ? ",\n" : "", t->rank, t->rank, t->name);
		for (size_t j = 0; j < t->n; j++) {
			const struct track_span *s = &t->spans[j];

			fprintf(file,
				",\n{\"ph\": \"X\", \"name\": \"%s\", \"cat\": \"%s\", "
				"\"pid\": %d, \"tid\": %u, \"ts\": %.3f, \"dur\": %.3f, "
				"\"args\": {\"layer\": %u, \"micro_batch\": %u}}",
				s->label, timeline_kind_name(s->kind), t->rank, s->lane,
				(double)(s->begin - all->begin) / 1e3,
				(double)(s->end - s->begin) / 1e3, s->layer, s->micro_batch);
		}
	}
	fprintf(file, "\n]}\n");
}

static int finish(FILE *file, const char *path)
{
	int failed = ferror(file);

	return fclose(file) || failed ? model_fail(-EIO, "%s: cannot be written", path) : 0;
}

int timeline_merge(const char *const *paths, size_t n, const char *chrome_path,
	const char *svg_path, const char *title, double at, int64_t window_ns)
{
	struct tracks all;
	FILE *file;
	int rc = tracks_read(paths, n, &all);

	if (!rc && chrome_path) {
		file = fopen(chrome_path, "we");
		if (file)
			write_chrome(file, &all);
		rc = file ? finish(file, chrome_path)
			  : model_fail(-errno, "%s: %s", chrome_path, strerror(errno));
	}
	if (!rc && svg_path) {
		file = fopen(svg_path, "we");
		if (file)
			timeline_write_svg(file, &all, title, at, window_ns);
		rc = file ? finish(file, svg_path)
			  : model_fail(-errno, "%s: %s", svg_path, strerror(errno));
	}
	tracks_free(&all);
	return rc;
}

/* Begin or end of a span of lane 0. */
struct edge {
	int64_t at;
	int computing, exchanging; /* +1 or -1 */
};

static int by_time(const void *a, const void *b)
{
	const struct edge *x = a, *y = b;

	return (x->at > y->at) - (x->at < y->at);
}

static size_t list_edges(const struct tracks *all, struct edge *edges, int64_t *from, int64_t *to)
{
	size_t n = 0;

	*from = INT64_MAX;
	*to = INT64_MIN;
	for (size_t i = 0; i < all->n; i++)
		for (size_t j = 0; j < all->list[i].n; j++) {
			const struct track_span *s = &all->list[i].spans[j];
			int computing = s->kind == TIMELINE_COMPUTE;
			int exchanging = s->kind == TIMELINE_SEND || s->kind == TIMELINE_WAIT;

			if (s->lane)
				continue;
			edges[n++] = (struct edge){s->begin, computing, exchanging};
			edges[n++] = (struct edge){s->end, -computing, -exchanging};
			*from = computing && s->begin < *from ? s->begin : *from;
			*to = computing && s->end > *to ? s->end : *to;
		}
	return n;
}

int timeline_exposed(const char *const *paths, size_t n, double *share)
{
	struct tracks all;
	struct edge *edges = NULL;
	size_t n_edges = 0;
	int64_t from, to, exposed = 0, last = 0;
	int computing = 0, exchanging = 0, rc = tracks_read(paths, n, &all);

	for (size_t i = 0; !rc && i < n; i++)
		n_edges += 2 * all.list[i].n;
	if (!rc && !(edges = malloc((n_edges + 1) * sizeof(*edges))))
		rc = model_fail(-ENOMEM, "no memory for %zu spans", n_edges / 2);
	if (!rc) {
		n_edges = list_edges(&all, edges, &from, &to);
		qsort(edges, n_edges, sizeof(*edges), by_time);
		for (size_t i = 0; i < n_edges; last = edges[i++].at) {
			if (!computing && exchanging && last >= from && edges[i].at <= to)
				exposed += edges[i].at - last;
			computing += edges[i].computing;
			exchanging += edges[i].exchanging;
		}
		*share = to > from ? (double)exposed / (double)(to - from) : 0;
	}
	free(edges);
	tracks_free(&all);
	return rc;
}
