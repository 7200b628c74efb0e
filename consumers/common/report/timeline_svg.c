/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The picture. Every rank has a row for itself and thin ones below it for what is under way.
 * Colours are micro-batches: full for computation, pale for rows handed over, hatched for waiting;
 * grey is having nothing to do. A span says layer and micro-batch where it is wide enough, and
 * everything when pointed at. Spans that would hide behind each other in a fraction of a pixel are
 * left out, so that the picture of a long run stays small.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "timeline_read.h"

enum { LEFT = 130, RIGHT = 24, WIDTH = 1200, TOP = 68, ROW = 28, THIN = 8, GAP = 10, FOOT = 44 };
enum { N_COLOURS = 8 };

#define LETTER 5.6 /* width of one in a span's label */
#define HAIR 0.2   /* pixels; what is narrower is drawn once in such a width */

static const char *const colours[N_COLOURS] = {
	"#1f77b4", "#ff7f0e", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#17becf", "#bcbd22"};

struct picture {
	FILE *file;
	int64_t from, to;
	double scale; /* pixels in a ns */
	int height;   /* where the rows end */
};

static void write_text(FILE *file, const char *text)
{
	for (; *text; text++) {
		if (*text == '<')
			fputs("&lt;", file);
		else if (*text == '>')
			fputs("&gt;", file);
		else if (*text == '&')
			fputs("&amp;", file);
		else if ((unsigned char)*text >= ' ')
			fputc(*text, file);
	}
}

static double place(const struct picture *p, int64_t at)
{
	return LEFT + (double)(at - p->from) * p->scale;
}

static void fill(char paint[64], const struct track_span *s)
{
	unsigned colour = s->micro_batch % N_COLOURS;

	if (s->kind == TIMELINE_IDLE)
		snprintf(paint, 64, "fill=\"#e4e4e4\"");
	else if (s->lane)
		snprintf(paint, 64, "fill=\"%s\" fill-opacity=\"0.55\"", colours[colour]);
	else if (s->kind == TIMELINE_WAIT)
		snprintf(paint, 64, "fill=\"url(#wait%u)\"", colour);
	else
		snprintf(paint, 64, "fill=\"%s\"%s", colours[colour],
			s->kind == TIMELINE_SEND ? " fill-opacity=\"0.45\"" : "");
}

/* label, layer and micro-batch; less of it where that does not fit. */
static void draw_label(
	const struct picture *p, const struct track_span *s, double x, int y, double width)
{
	char text[64];

	if (s->lane || s->kind > TIMELINE_SEND)
		return;
	snprintf(text, sizeof(text), "%s %u/%u", s->label, s->layer, s->micro_batch);
	if (LETTER * (double)(strlen(text) + 1) > width)
		snprintf(text, sizeof(text), "%u/%u", s->layer, s->micro_batch);
	if (LETTER * (double)(strlen(text) + 1) > width)
		return;
	fprintf(p->file,
		"<text x=\"%.2f\" y=\"%d\" font-size=\"10\" text-anchor=\"middle\" fill=\"%s\">",
		x + width / 2, y + ROW / 2 + 3, s->kind == TIMELINE_COMPUTE ? "white" : "#333");
	write_text(p->file, text);
	fprintf(p->file, "</text>\n");
}

/* The part of the span that lies in the window. */
static void draw_span(const struct picture *p, const struct track_span *s, int y, double *drawn)
{
	int64_t begin = s->begin > p->from ? s->begin : p->from;
	int64_t end = s->end < p->to ? s->end : p->to;
	double x = place(p, begin), width = (double)(end - begin) * p->scale;
	char paint[64];

	if (begin >= end || (width < HAIR && x + width < drawn[s->lane] + HAIR))
		return;
	drawn[s->lane] = x + width;
	if (s->lane)
		y += ROW + (int)(s->lane - 1) * THIN;
	fill(paint, s);
	fprintf(p->file, "<rect x=\"%.2f\" y=\"%d\" width=\"%.2f\" height=\"%d\" %s><title>", x, y,
		width > HAIR ? width : HAIR, s->lane ? THIN - 2 : ROW - 2, paint);
	write_text(p->file, s->label);
	fprintf(p->file, " (%s), layer %u, micro-batch %u: %.1f us</title></rect>\n",
		timeline_kind_name(s->kind), s->layer, s->micro_batch,
		(double)(s->end - s->begin) / 1e3);
	draw_label(p, s, x, y, width);
}

static int height_of(const struct track *t)
{
	return ROW + (t->n_lanes > 1 ? (int)(t->n_lanes - 1) * THIN : 0) + GAP;
}

/* 1, 2 or 5 times a power of ten: about ten marks. */
static int64_t axis_step(int64_t ns)
{
	for (int64_t power = 1;; power *= 10)
		for (int digit = 1; digit <= 5; digit += digit == 1 ? 1 : 3)
			if (digit * power >= ns / 10)
				return digit * power;
}

static void draw_axis(const struct picture *p, int64_t origin)
{
	int64_t first = p->from - origin, last = p->to - origin, step = axis_step(last - first);
	int digits = 6; /* of ms */

	for (int64_t rest = step; rest % 10 == 0 && digits; rest /= 10)
		digits--;
	for (int64_t i = (first + step - 1) / step; i <= last / step; i++) {
		double x = place(p, i * step + origin);

		fprintf(p->file,
			"<line x1=\"%.2f\" y1=\"%d\" x2=\"%.2f\" y2=\"%d\" stroke=\"#ddd\"/>\n"
			"<text x=\"%.2f\" y=\"%d\" text-anchor=\"middle\">%.*f</text>\n",
			x, TOP - 6, x, p->height, x, p->height + 15, digits,
			(double)(i * step) / 1e6);
	}
	fprintf(p->file,
		"<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">ms since the start</text>\n",
		LEFT + WIDTH / 2, p->height + 33);
}

static void draw_key(FILE *file, double *x, const char *paint, const char *text)
{
	fprintf(file,
		"<rect x=\"%.0f\" y=\"34\" width=\"16\" height=\"12\" %s/>\n"
		"<text x=\"%.0f\" y=\"44\">%s</text>\n",
		*x, paint, *x + 21, text);
	*x += 21 + 6.6 * (double)strlen(text) + 16;
}

/* Micro-batches that there are, then what the shades mean. */
static void draw_legend(FILE *file, unsigned n_micro_batches)
{
	char paint[64], text[40];
	double x = LEFT;

	for (unsigned i = 0; i < n_micro_batches && i < N_COLOURS; i++) {
		snprintf(paint, sizeof(paint), "fill=\"%s\"", colours[i]);
		snprintf(text, sizeof(text), n_micro_batches > N_COLOURS ? "%u, %u, ..." : "%u", i,
			i + N_COLOURS);
		draw_key(file, &x, paint, text);
	}
	fprintf(file, "<text x=\"10\" y=\"44\">micro-batch</text>\n");
	x += 16;
	draw_key(file, &x, "fill=\"#555\"", "computes");
	draw_key(file, &x, "fill=\"#555\" fill-opacity=\"0.45\"", "sends");
	draw_key(file, &x, "fill=\"url(#wait)\"", "waits");
	draw_key(file, &x, "fill=\"#e4e4e4\"", "has nothing to do");
	fprintf(file,
		"<text x=\"%.0f\" y=\"44\">thin: under way; numbers: layer/micro-batch</text>\n",
		x);
}

static void define_hatch(FILE *file, const char *name, const char *colour)
{
	fprintf(file,
		"<pattern id=\"%s\" width=\"5\" height=\"5\" patternUnits=\"userSpaceOnUse\" "
		"patternTransform=\"rotate(45)\"><rect width=\"5\" height=\"5\" fill=\"white\"/>"
		"<line x1=\"0\" y1=\"0\" x2=\"0\" y2=\"5\" stroke=\"%s\" stroke-width=\"3\" "
		"stroke-opacity=\"0.7\"/></pattern>\n",
		name, colour);
}

static void open_picture(const struct picture *p, const char *title, uint64_t n_lost)
{
	char name[16];

	fprintf(p->file,
		"<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" "
		"font-family=\"sans-serif\" font-size=\"12\">\n<defs>\n",
		LEFT + WIDTH + RIGHT, p->height + FOOT);
	define_hatch(p->file, "wait", "#555");
	for (unsigned i = 0; i < N_COLOURS; i++) {
		snprintf(name, sizeof(name), "wait%u", i);
		define_hatch(p->file, name, colours[i]);
	}
	fprintf(p->file, "</defs>\n<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n"
			 "<text x=\"10\" y=\"20\" font-size=\"15\">");
	write_text(p->file, title);
	if (n_lost)
		fprintf(p->file, " (%" PRIu64 " later spans had no room)", n_lost);
	fprintf(p->file, "</text>\n");
}

static void draw_track(const struct picture *p, const struct track *t, int y)
{
	double drawn[TIMELINE_MAX_LANES] = {0};

	fprintf(p->file, "<text x=\"10\" y=\"%d\">%d ", y + ROW / 2 + 3, t->rank);
	write_text(p->file, t->name);
	fprintf(p->file, "</text>\n");
	for (size_t i = 0; i < t->n; i++)
		draw_span(p, &t->spans[i], y, drawn);
}

static unsigned count_micro_batches(const struct tracks *all)
{
	unsigned n = 0;

	for (size_t i = 0; i < all->n; i++)
		for (size_t j = 0; j < all->list[i].n; j++)
			if (all->list[i].spans[j].micro_batch >= n)
				n = all->list[i].spans[j].micro_batch + 1;
	return n;
}

void timeline_write_svg(
	FILE *file, const struct tracks *all, const char *title, double at, int64_t window_ns)
{
	struct picture p = {.file = file, .from = all->begin, .to = all->end, .height = TOP};
	uint64_t n_lost = 0;
	int y = TOP;

	if (window_ns > 0 && window_ns < p.to - p.from) {
		p.from += (int64_t)(at * (double)(p.to - p.from - window_ns));
		p.to = p.from + window_ns;
	}
	if (p.to == p.from) /* no length, or nothing at all */
		p.from--;
	p.scale = WIDTH / (double)(p.to - p.from);
	for (size_t i = 0; i < all->n; i++) {
		p.height += height_of(&all->list[i]);
		n_lost += all->list[i].n_lost;
	}
	open_picture(&p, title, n_lost);
	draw_legend(file, count_micro_batches(all));
	draw_axis(&p, all->begin);
	for (size_t i = 0; i < all->n; y += height_of(&all->list[i++]))
		draw_track(&p, &all->list[i], y);
	fprintf(file, "</svg>\n");
}
