/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads what timeline_save() wrote, line by line, so that a broken line is named by its number.
 */
#include "timeline_read.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "model/error.h"

static int add_span(struct track *t, const struct track_span *span)
{
	if (t->n == t->room) {
		size_t room = t->room * 2 + 1024;
		struct track_span *more = realloc(t->spans, room * sizeof(*more));

		if (!more)
			return model_fail(-ENOMEM, "no memory for a timeline of %zu spans", room);
		t->spans = more;
		t->room = room;
	}
	t->spans[t->n++] = *span;
	t->n_lanes = span->lane >= t->n_lanes ? span->lane + 1 : t->n_lanes;
	return 0;
}

/* What can stand in JSON and XML between quotes; XML's own signs are escaped by who writes it. */
static int is_word(const char *text)
{
	for (; *text; text++)
		if (*text <= ' ' || *text > '~' || *text == '"' || *text == '\\')
			return 0;
	return 1;
}

static int is_whole(const struct track_span *s)
{
	return s->kind < TIMELINE_KINDS && s->lane < TIMELINE_MAX_LANES && s->begin >= 0 &&
	       s->end >= s->begin && is_word(s->label);
}

static int read_head(const char *line, struct track *t, size_t *n_spans)
{
	return sscanf(line, "%d %31s %zu %" SCNu64, &t->rank, t->name, n_spans, &t->n_lost) == 4 &&
	       is_word(t->name) && strchr(line, '\n');
}

static int read_track(const char *path, struct track *t)
{
	FILE *file = fopen(path, "re");
	struct track_span s;
	char line[256];
	size_t n_spans;
	int rc = 0;

	if (!file)
		return model_fail(-errno, "%s: %s", path, strerror(errno));
	if (!fgets(line, sizeof(line), file) || !read_head(line, t, &n_spans))
		rc = model_fail(-EINVAL, "%s: no timeline", path);
	for (int n = 2; !rc && fgets(line, sizeof(line), file); n++) {
		if (sscanf(line, "%" SCNd64 " %" SCNd64 " %u %u %u %u %31s", &s.begin, &s.end,
			    &s.kind, &s.lane, &s.layer, &s.micro_batch, s.label) != 7 ||
			!is_whole(&s) || !strchr(line, '\n'))
			rc = model_fail(-EINVAL, "%s: line %d is no span", path, n);
		else
			rc = add_span(t, &s);
	}
	if (!rc && t->n != n_spans)
		rc = model_fail(-EINVAL, "%s: has %zu of %zu spans", path, t->n, n_spans);
	fclose(file);
	return rc;
}

void tracks_free(struct tracks *all)
{
	for (size_t i = 0; all->list && i < all->n; i++)
		free(all->list[i].spans);
	free(all->list);
	all->list = NULL;
}

int tracks_read(const char *const *paths, size_t n, struct tracks *all)
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
			const struct track_span *s = &t->spans[j];

			all->begin = s->begin < all->begin ? s->begin : all->begin;
			all->end = s->end > all->end ? s->end : all->end;
		}
	}
	if (all->begin > all->end)
		all->begin = all->end = 0;
	return rc;
}

const char *timeline_kind_name(unsigned kind)
{
	static const char *const names[TIMELINE_KINDS] = {"compute", "send", "wait", "idle"};

	return names[kind];
}
