/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Timelines of several ranks in one Chrome trace and one picture, and the communication that no
 * computation hides. In the picture every rank has a row for itself and thin ones below it for what
 * is under way; colours are micro-batches, what is no computation is pale.
 */
#include "timeline.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/error.h"

enum { MAX_LANES = 8, LEFT = 110, WIDTH = 1200, TOP = 40, ROW = 26, THIN = 9, GAP = 8 };

struct span {
	int64_t begin, end;
	unsigned kind, lane, layer, micro_batch;
	char label[32];
};

struct track {
	int rank;
	char name[32];
	struct span *spans;
	size_t n, room;
	unsigned n_lanes;
};

struct tracks {
	struct track *list;
	size_t n;
	int64_t begin, end; /* of all spans */
};

static const char *const kind_names[TIMELINE_KINDS] = {"compute", "send", "wait", "idle"};
static const char *const colours[] = {"#1f77b4", "#ff7f0e", "#2ca02c", "#9467bd"};

static int add_span(struct track *t, const struct span *span)
{
	if (t->n == t->room) {
		size_t room = t->room * 2 + 1024;
		struct span *more = realloc(t->spans, room * sizeof(*more));

		if (!more)
			return model_fail(-ENOMEM, "no memory for a timeline of %zu spans", room);
		t->spans = more;
		t->room = room;
	}
	t->spans[t->n++] = *span;
	return 0;
}

static int read_track(const char *path, struct track *t)
{
	FILE *file = fopen(path, "re");
	struct span s;
	int rc = 0;

	if (!file)
		return model_fail(-errno, "%s: %s", path, strerror(errno));
	if (fscanf(file, "%d %31s", &t->rank, t->name) != 2)
		rc = model_fail(-EINVAL, "%s: no timeline", path);
	while (!rc && fscanf(file, "%" SCNd64 " %" SCNd64 " %u %u %u %u %31s", &s.begin, &s.end,
			      &s.kind, &s.lane, &s.layer, &s.micro_batch, s.label) == 7) {
		if (s.kind >= TIMELINE_KINDS || s.lane >= MAX_LANES || s.end < s.begin)
			rc = model_fail(-EINVAL, "%s: a span is broken", path);
		else
			rc = add_span(t, &s);
		t->n_lanes = s.lane >= t->n_lanes ? s.lane + 1 : t->n_lanes;
	}
	fclose(file);
	return rc;
}

static void free_tracks(struct tracks *all)
{
	for (size_t i = 0; all->list && i < all->n; i++)
		free(all->list[i].spans);
	free(all->list);
}

static int read_all(const char *const *paths, size_t n, struct tracks *all)
{
	int rc = 0;

	*all = (struct tracks){.n = n, .begin = INT64_MAX, .end = INT64_MIN};
	all->list = calloc(n ? n : 1, sizeof(*all->list));
	if (!all->list)
		return model_fail(-ENOMEM, "no memory for %zu timelines", n);
	for (size_t i = 0; !rc && i < n; i++) {
		const struct track *t = &all->list[i];

		rc = read_track(paths[i], &all->list[i]);
		for (size_t j = 0; j < t->n; j++) {
			all->begin =
				t->spans[j].begin < all->begin ? t->spans[j].begin : all->begin;
			all->end = t->spans[j].end > all->end ? t->spans[j].end : all->end;
		}
	}
	if (!rc && all->begin > all->end)
		all->begin = all->end = 0;
	return rc;
}

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
			const struct span *s = &t->spans[j];

			fprintf(file,
				",\n{\"ph\": \"X\", \"name\": \"%s\", \"cat\": \"%s\", \"pid\": "
				"%d, "
				"\"tid\": %u, \"ts\": %.3f, \"dur\": %.3f, \"args\": {\"layer\": "
				"%u, "
				"\"micro_batch\": %u}}",
				s->label, kind_names[s->kind], t->rank, s->lane,
				(double)(s->begin - all->begin) / 1e3,
				(double)(s->end - s->begin) / 1e3, s->layer, s->micro_batch);
		}
	}
	fprintf(file, "\n]}\n");
}

/* A rectangle of the part of the span that lies in the window. */
static void draw_span(FILE *file, const struct span *s, int64_t from, int64_t to, int y, int height)
{
	int64_t begin = s->begin > from ? s->begin : from, end = s->end < to ? s->end : to;
	double scale = WIDTH / (double)(to - from);
	const char *colour = s->kind == TIMELINE_WAIT && !s->lane ? "#d62728"
			     : s->kind == TIMELINE_IDLE           ? "#cccccc"
								  : colours[s->micro_batch % 4];
	double opacity = s->lane                       ? 0.45
			 : s->kind == TIMELINE_COMPUTE ? 1
			 : s->kind == TIMELINE_SEND    ? 0.6
						       : 0.25;

	if (begin >= end)
		return;
	fprintf(file,
		"<rect x=\"%.2f\" y=\"%d\" width=\"%.2f\" height=\"%d\" fill=\"%s\" "
		"fill-opacity=\"%.2f\"><title>%s, layer %u, micro-batch %u: %.1f "
		"us</title></rect>\n",
		LEFT + (double)(begin - from) * scale, y, (double)(end - begin) * scale, height,
		colour, opacity, s->label, s->layer, s->micro_batch,
		(double)(s->end - s->begin) / 1e3);
}

static int height_of(const struct track *t)
{
	return ROW + (t->n_lanes > 1 ? (int)(t->n_lanes - 1) * THIN : 0) + GAP;
}

static void write_svg(
	FILE *file, const struct tracks *all, const char *title, double at, int64_t window_ns)
{
	int64_t from = all->begin, to = all->end;
	int y = TOP, height = TOP + 40;

	if (window_ns && window_ns < to - from) {
		from += (int64_t)(at * (double)(to - from - window_ns));
		to = from + window_ns;
	}
	to += to == from;
	for (size_t i = 0; i < all->n; i++)
		height += height_of(&all->list[i]);
	fprintf(file,
		"<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" "
		"font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%%\" "
		"height=\"100%%\" "
		"fill=\"white\"/>\n<text x=\"10\" y=\"20\" font-size=\"14\">%s</text>\n",
		LEFT + WIDTH + 20, height, title);
	for (size_t i = 0; i < all->n; i++) {
		const struct track *t = &all->list[i];

		fprintf(file, "<text x=\"10\" y=\"%d\">%d %s</text>\n", y + 17, t->rank, t->name);
		for (size_t j = 0; j < t->n; j++) {
			const struct span *s = &t->spans[j];

			draw_span(file, s, from, to,
				s->lane ? y + ROW + (int)(s->lane - 1) * THIN : y,
				s->lane ? THIN - 2 : ROW - 2);
		}
		y += height_of(t);
	}
	fprintf(file,
		"<text x=\"%d\" y=\"%d\">%.1f us; full colours: computation of a micro-batch, "
		"pale: rows handed over, red: waiting, thin: rows with the other "
		"side</text>\n</svg>\n",
		LEFT, y + 20, (double)(to - from) / 1e3);
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
	int rc = read_all(paths, n, &all);

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
			write_svg(file, &all, title, at, window_ns);
		rc = file ? finish(file, svg_path)
			  : model_fail(-errno, "%s: %s", svg_path, strerror(errno));
	}
	free_tracks(&all);
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
			const struct span *s = &all->list[i].spans[j];
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
	int computing = 0, exchanging = 0, rc = read_all(paths, n, &all);

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
	free_tracks(&all);
	return rc;
}
