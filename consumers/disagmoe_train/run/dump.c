/* SPDX-License-Identifier: Apache-2.0 */
/* Lines of a rank's file begin with layer and token in fixed width: text sorts as numbers. */
#include "run/dump.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model/error.h"

struct dump {
	FILE *file;
	char path[4096];
	uint32_t top_k;
};

static void part_path(const char *path, int rank, char part[4096])
{
	snprintf(part, 4096, "%s.part-%d", path, rank);
}

int dump_open(const char *path, int rank, const struct model_config *config, struct dump **dump)
{
	struct dump *d = calloc(1, sizeof(*d));

	if (!d)
		return model_fail(-ENOMEM, "no memory");
	part_path(path, rank, d->path);
	d->top_k = config->top_k;
	d->file = fopen(d->path, "we");
	if (!d->file) {
		model_fail(-errno, "%s: %s", d->path, strerror(errno));
		free(d);
		return -EIO;
	}
	*dump = d;
	return 0;
}

void dump_add(struct dump *d, uint32_t layer, uint32_t first_seq,
	const struct nn_attention_record *record)
{
	size_t seq_len = record->n_seqs ? record->n_rows / record->n_seqs : 1;

	for (size_t row = 0; row < record->n_rows; row++) {
		const int32_t *ids = record->ids + row * d->top_k;
		const float *weights = record->weights + row * d->top_k;
		size_t seq = first_seq + row / seq_len;

		fprintf(d->file, "%05u,%010zu,%zu", layer, first_seq * seq_len + row, seq);
		for (uint32_t k = 0; k < d->top_k; k++)
			fprintf(d->file, ",%d", ids[k]);
		for (uint32_t k = 0; k < d->top_k; k++)
			fprintf(d->file, ",%.6g", (double)weights[k]);
		fputc('\n', d->file);
	}
}

int dump_close(struct dump *d)
{
	int failed = ferror(d->file), rc;

	failed |= fclose(d->file);
	rc = failed ? model_fail(-EIO, "%s: cannot be written", d->path) : 0;
	free(d);
	return rc;
}

struct lines {
	char **list;
	size_t n, room;
};

static int add_line(struct lines *lines, char *line)
{
	if (lines->n == lines->room) {
		size_t room = lines->room ? 2 * lines->room : 1024;
		char **list = realloc(lines->list, room * sizeof(*list));

		if (!list)
			return -ENOMEM;
		lines->list = list;
		lines->room = room;
	}
	lines->list[lines->n] = strdup(line);
	return lines->list[lines->n] ? (int)(lines->n++, 0) : -ENOMEM;
}

/* A rank of FFN has no file. */
static int read_lines(const char *path, int rank, struct lines *lines)
{
	char part[4096], *line = NULL;
	size_t room = 0;
	FILE *file;
	int rc = 0;

	part_path(path, rank, part);
	file = fopen(part, "re");
	if (!file)
		return errno == ENOENT ? 0 : -errno;
	while (!rc && getline(&line, &room, file) > 0)
		rc = add_line(lines, line);
	free(line);
	fclose(file);
	unlink(part);
	return rc;
}

static int by_text(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static int write_lines(const char *path, const struct lines *lines, uint32_t top_k)
{
	FILE *file = fopen(path, "we");
	int failed;

	if (!file)
		return model_fail(-errno, "%s: %s", path, strerror(errno));
	fputs("layer,token,rank_hint", file);
	for (uint32_t k = 0; k < top_k; k++)
		fprintf(file, ",expert%u", k);
	for (uint32_t k = 0; k < top_k; k++)
		fprintf(file, ",weight%u", k);
	fputc('\n', file);
	for (size_t i = 0; i < lines->n; i++) {
		char *rest;
		unsigned long layer = strtoul(lines->list[i], &rest, 10);
		unsigned long token = strtoul(rest + 1, &rest, 10);

		fprintf(file, "%lu,%lu%s", layer, token, rest);
	}
	failed = ferror(file);
	failed |= fclose(file);
	return failed ? model_fail(-EIO, "%s: cannot be written", path) : 0;
}

int dump_merge(const char *path, int n_ranks, const struct model_config *config)
{
	struct lines lines = {0};
	int rc = 0;

	for (int i = 0; !rc && i < n_ranks; i++)
		rc = read_lines(path, i, &lines);
	if (rc)
		model_fail(rc, "%s: %s", path, strerror(-rc));
	if (!rc && lines.n)
		qsort(lines.list, lines.n, sizeof(*lines.list), by_text);
	if (!rc)
		rc = write_lines(path, &lines, config->top_k);
	for (size_t i = 0; i < lines.n; i++)
		free(lines.list[i]);
	free(lines.list);
	return rc;
}
