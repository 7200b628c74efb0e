/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The roofline as a picture: FLOP/s of a GPU over FLOP per byte, both logarithmic. Each side has
 * its own slope, by how many NICs its GPUs have, and its point; a cross where the simulated step
 * puts both together.
 */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "model/error.h"
#include "planner/report.h"

enum { WIDTH = 720, HEIGHT = 440, LEFT = 80, TOP = 40, BOTTOM = 60, RIGHT = 30 };

struct canvas {
	FILE *file;
	double x0, x1, y0, y1; /* decades */
};

static double at_x(const struct canvas *canvas, double intensity)
{
	return LEFT + (log10(intensity) - canvas->x0) / (canvas->x1 - canvas->x0) *
		(WIDTH - LEFT - RIGHT);
}

static double at_y(const struct canvas *canvas, double rate)
{
	return HEIGHT - BOTTOM - (log10(rate) - canvas->y0) / (canvas->y1 - canvas->y0) *
		(HEIGHT - TOP - BOTTOM);
}

static void draw_axes(const struct canvas *c)
{
	for (double x = c->x0; x <= c->x1 + .01; x++)
		fprintf(c->file, "<line x1='%.1f' y1='%d' x2='%.1f' y2='%d' class='grid'/>"
			"<text x='%.1f' y='%d' text-anchor='middle'>%g</text>\n",
			at_x(c, pow(10, x)), TOP, at_x(c, pow(10, x)), HEIGHT - BOTTOM,
			at_x(c, pow(10, x)), HEIGHT - BOTTOM + 18, pow(10, x));
	for (double y = c->y0; y <= c->y1 + .01; y++)
		fprintf(c->file, "<line x1='%d' y1='%.1f' x2='%d' y2='%.1f' class='grid'/>"
			"<text x='%d' y='%.1f' text-anchor='end'>%g T</text>\n", LEFT,
			at_y(c, pow(10, y)), WIDTH - RIGHT, at_y(c, pow(10, y)), LEFT - 8,
			at_y(c, pow(10, y)) + 4, pow(10, y - 12));
	fprintf(c->file, "<text x='%d' y='%d' text-anchor='middle'>FLOP per byte on the network"
		"</text>\n", (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 16);
}

static void draw_side(const struct canvas *c, const char *name, const char *colour, int line,
	double intensity, double turning, double rate, double reached)
{
	double from = pow(10, c->x0), to = pow(10, c->x1);
	double ridge = fmin(fmax(turning, from), to);

	fprintf(c->file, "<polyline fill='none' stroke='%s' stroke-width='2' "
		"points='%.1f,%.1f %.1f,%.1f %.1f,%.1f'/>\n", colour, at_x(c, from),
		at_y(c, rate * fmin(1, from / turning)), at_x(c, ridge),
		at_y(c, rate * fmin(1, ridge / turning)), at_x(c, to),
		at_y(c, rate * fmin(1, to / turning)));
	fprintf(c->file, "<circle cx='%.1f' cy='%.1f' r='5' fill='%s'/>\n", at_x(c, intensity),
		at_y(c, reached), colour);
	fprintf(c->file, "<text x='%d' y='%d' fill='%s' text-anchor='end'>%s: %.0f FLOP/byte, "
		"%.0f TFLOP/s, turning at %.0f</text>\n", WIDTH - RIGHT - 10,
		HEIGHT - BOTTOM - 32 + 18 * line, colour, name, intensity, reached * 1e-12,
		turning);
}

static void draw(const struct canvas *c, const struct planner_args *args,
	const struct plan_point *p)
{
	const struct train_case *job = &args->job;
	const struct pair_roofline *r = &p->roofline;
	double rate = job->flops * job->efficiency;
	double own = job->attention_efficiency > 0 ? job->flops * job->attention_efficiency : rate;

	fprintf(c->file, "<svg xmlns='http://www.w3.org/2000/svg' width='%d' height='%d' "
		"font-family='sans-serif' font-size='12'>\n<style>.grid{stroke:#ddd}</style>\n"
		"<rect width='%d' height='%d' fill='white'/>\n", WIDTH, HEIGHT, WIDTH, HEIGHT);
	draw_axes(c);
	/* A side that the other holds up reaches less than its own roof. */
	draw_side(c, "attention", "#1f77b4", 0, r->intensity_a, r->turning_a, own,
		own * r->compute_a / fmax(r->t_a, r->t_f));
	draw_side(c, "experts", "#d62728", 1, r->intensity_f, r->turning_f, rate,
		rate * r->compute_f / fmax(r->t_a, r->t_f));
	fprintf(c->file, "<text x='%d' y='24'>%s, %g tokens, %zu:%zu %s, %zu:%zu NICs: MFU %.1f %% "
		"by the roofline, %.1f %% simulated</text>\n</svg>\n", LEFT, job->model.name,
		job->seq, p->split.gpus_a, p->split.gpus_f, args->gpu, p->split.nics_a,
		p->split.nics_f, r->mfu * 100, p->step.mfu * 100);
}

int report_svg(const struct planner_args *args, const struct plan_point *point, const char *path)
{
	const struct pair_roofline *r = &point->roofline;
	double rate = args->job.flops * args->job.efficiency;
	double least = fmin(fmin(r->intensity_a, r->intensity_f), fmin(r->turning_a, r->turning_f));
	double most = fmax(fmax(r->intensity_a, r->intensity_f), fmax(r->turning_a, r->turning_f));
	struct canvas canvas = {.x0 = floor(log10(least / 4)), .x1 = ceil(log10(most * 2)),
		.y1 = ceil(log10(rate * 1.2))};
	int failed;

	canvas.y0 = fmin(canvas.y1 - 2, floor(log10(rate * fmin(r->compute_a, r->compute_f) /
		fmax(r->t_a, r->t_f))));
	canvas.file = fopen(path, "we");
	if (!canvas.file)
		return model_fail(-errno, "%s: %s", path, strerror(errno));
	draw(&canvas, args, point);
	failed = ferror(canvas.file);
	if (fclose(canvas.file) || failed)
		return model_fail(-EIO, "%s could not be written", path);
	return 0;
}
