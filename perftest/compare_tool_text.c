/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The texts of other people's programs: the command lines that they are given and the tables that
 * they print.
 *
 * ib_write_bw, ib_send_bw and the two for latency: after a line "#bytes ..." one line of numbers
 * for a size. With --report_gbits bandwidth is in 10^9 bits. ucx_perftest -f: one line of numbers
 * at the end, its MB are 2^20 bytes.
 */
#include <ctype.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "compare_tool.h"

#define MAX_COLUMNS 10

static void add(struct tool_command *command, const char *form, ...)
	__attribute__((format(printf, 2, 3)));

static void add(struct tool_command *command, const char *form, ...)
{
	size_t used = strlen(command->text);
	va_list list;

	if (used > 0 && used + 1 < sizeof(command->text))
		command->text[used++] = ' ';
	va_start(list, form);
	vsnprintf(command->text + used, sizeof(command->text) - used, form, list);
	va_end(list);
}

static void add_given(struct tool_command *command, const char *form, const char *value)
{
	char word[80];

	if (value[0] == '\0')
		return;
	snprintf(word, sizeof(word), "%s%s", form, value);
	add(command, "%s", word);
}

static void add_ib(const struct tool_task *task, struct tool_command *command)
{
	add(command, "-F");
	add_given(command, "-d ", task->device);
	add_given(command, "-i ", task->ib_port);
	add_given(command, "-x ", task->gid_index);
	add_given(command, "-m ", task->mtu);
	add_given(command, "--sl=", task->service_level);
	add_given(command, "--tclass=", task->traffic_class);
	if (task->kind == PERF_IB_WRITE_BW || task->kind == PERF_IB_SEND_BW) {
		add(command, "--report_gbits");
		if (task->n_qps > 1)
			add(command, "-q %" PRIu64, task->n_qps);
	}
	add(command, "-s %" PRIu64, task->size);
	if (task->measured_s > 0)
		add(command, "-D %" PRIu64 " -f %" PRIu64, task->measured_s + 2 * task->margin_s,
			task->margin_s);
	else
		add(command, "-n %" PRIu64, task->n_iters);
}

void tool_command_make(const struct tool_task *task, struct tool_command *command)
{
	const char *how;
	const char *name = perf_tool_name(task->kind, &how);
	static char words[TOOL_COMMAND_BYTES]; /* a rank is one thread */
	unsigned n = 0;

	command->text[0] = '\0';
	add(command, "%s", name);
	if (how == NULL)
		add_ib(task, command);
	else if (task->host != NULL)
		add(command, "-t %s -s %" PRIu64 " -n %" PRIu64 " -w %" PRIu64 " -f", how,
			task->size, task->n_iters, task->n_warmup);
	add(command, "-p %u", task->port);
	if (task->host != NULL)
		add(command, "%s", task->host);
	memcpy(words, command->text, sizeof(words));
	for (char *at = words, *word; n + 1 < sizeof(command->argv) / sizeof(command->argv[0]) &&
				      (word = strtok_r(at, " ", &at)) != NULL;)
		command->argv[n++] = word;
	command->argv[n] = NULL;
}

/* The numbers of a line; 0 when it has anything else. */
static unsigned read_columns(const char *line, double columns[MAX_COLUMNS])
{
	unsigned n = 0;

	for (;;) {
		char *stop;
		while (*line == ' ' || *line == '\t' || *line == '\r')
			line++;
		if (*line == '\n' || *line == '\0')
			return n;
		double value = strtod(line, &stop);
		if (stop == line || n == MAX_COLUMNS || value < 0 ||
			(*stop != '\0' && !isspace((unsigned char)*stop)))
			return 0;
		columns[n++] = value;
		line = stop;
	}
}

/* Of two printed numbers with their last digits: whether the first is the more exact one. */
static bool finer(double a, double digit_a, double b, double digit_b)
{
	return a * digit_b > b * digit_a;
}

static bool parse_row(
	const struct tool_task *task, const double *columns, unsigned n, struct page_figure *figure)
{
	double size = (double)task->size;
	double rate, gbps;

	switch (task->kind) {
	case PERF_IB_SEND_BW:
	case PERF_IB_WRITE_BW: /* bytes, iterations, peak, average Gb/s, Mpps */
		if (n != 5 || columns[0] != size)
			return false;
		gbps = columns[3] / 8;
		rate = columns[4] * size / 1000;
		figure->value = finer(columns[4], 1e-6, columns[3], 0.01) ? rate : gbps;
		if (task->measured_s > 0 && figure->value <= 0)
			figure->value = columns[1] * size / (double)task->measured_s / 1e9;
		break;
	case PERF_IB_WRITE_LAT: /* bytes, iterations, min, max, typical, avg, dev, 99, 99.9 % */
	case PERF_IB_SEND_LAT:
		if (n != 9 || columns[0] != size)
			return false;
		figure->value = columns[4];
		figure->p99 = columns[7];
		break;
	case PERF_UCP_PUT_BW: /* iterations, us: 50 %, avg, all; MB/s: avg, all; 1/s: avg, all */
		if (n != 8)
			return false;
		gbps = columns[5] * 1048576 / 1e9;
		rate = columns[7] * size / 1e9;
		figure->value = finer(columns[7], 1, columns[5], 0.01) ? rate : gbps;
		break;
	case PERF_UCP_PUT_LAT:
		if (n != 8)
			return false;
		figure->value = columns[1];
		break;
	default:
		return false;
	}
	if (!isfinite(figure->value) || !isfinite(figure->p99))
		*figure = (struct page_figure){0, 0};
	return true;
}

bool tool_output_parse(const struct tool_task *task, const char *text, struct page_figure *figure)
{
	bool found = false;

	for (const char *line = text; line != NULL; line = strchr(line, '\n')) {
		double columns[MAX_COLUMNS];
		if (*line == '\n')
			line++;
		unsigned n = read_columns(line, columns);
		struct page_figure one = {0, 0};
		if (n > 0 && parse_row(task, columns, n, &one)) {
			*figure = one;
			found = true;
		}
	}
	return found;
}
