/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A text file as tokens.
 */
#include "nn/text.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "model/error.h"

static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15u;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return x ^ x >> 31;
}

static uint64_t digest_of(const unsigned char *bytes, size_t n_bytes)
{
	uint64_t digest = mix(n_bytes);

	for (size_t i = 0; i < n_bytes; i++)
		digest = (digest ^ bytes[i]) * 0x100000001b3u;
	return digest;
}

static int map_file(const char *path, struct nn_text *text)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC), rc = 0;
	struct stat stat;
	void *map;

	if (fd < 0)
		return model_fail(-errno, "%s: %s", path, strerror(errno));
	if (fstat(fd, &stat) != 0)
		rc = model_fail(-errno, "%s: %s", path, strerror(errno));
	else if (!S_ISREG(stat.st_mode))
		rc = model_fail(-EINVAL, "%s: is no file to train on", path);
	else
		text->n_bytes = (size_t)stat.st_size;
	if (!rc && text->n_bytes > 0) {
		map = mmap(NULL, text->n_bytes, PROT_READ, MAP_PRIVATE, fd, 0);
		if (map == MAP_FAILED)
			rc = model_fail(-errno, "%s: %s", path, strerror(errno));
		else
			text->bytes = map;
	}
	close(fd);
	return rc;
}

static int split(struct nn_text *text, double held_back)
{
	size_t held, need = (size_t)text->seq_len + 1;

	if (!(held_back > 0) || !(held_back < 1))
		return model_fail(-EINVAL, "a share of %g cannot be held back; above 0, below 1",
			held_back);
	held = (size_t)((double)text->n_bytes * held_back);
	text->n_train = text->n_bytes - held;
	if (text->n_train < need)
		return model_fail(-EINVAL, "%s: %zu bytes, of which %zu are trained on; a sequence "
			"of %u tokens needs %zu", text->path, text->n_bytes, text->n_train,
			text->seq_len, need);
	if (held < need)
		return model_fail(-EINVAL, "%s: %zu of %zu bytes are held back; a sequence of %u "
			"tokens needs %zu: take a longer text, shorter sequences or a larger share",
			text->path, held, text->n_bytes, text->seq_len, need);
	return 0;
}

int nn_text_open(const char *path, uint32_t seq_len, double held_back, struct nn_text **text)
{
	struct nn_text *opened = calloc(1, sizeof(*opened));
	int rc = -ENOMEM;

	if (opened)
		opened->path = strdup(path);
	if (!opened || !opened->path) {
		model_fail(rc, "no memory for the name of a text");
	} else {
		opened->seq_len = seq_len;
		rc = map_file(path, opened);
	}
	if (!rc)
		rc = split(opened, held_back);
	if (rc) {
		nn_text_close(opened);
		return rc;
	}
	opened->digest = digest_of(opened->bytes, opened->n_bytes);
	*text = opened;
	return 0;
}

void nn_text_close(struct nn_text *text)
{
	if (!text)
		return;
	if (text->bytes)
		munmap(text->bytes, text->n_bytes);
	free(text->path);
	free(text);
}

static void take(const struct nn_text *text, size_t start, uint32_t *ids, uint32_t *targets)
{
	for (size_t i = 0; i < text->seq_len; i++) {
		ids[i] = text->bytes[start + i];
		targets[i] = text->bytes[start + i + 1];
	}
}

void nn_text_sequence(const struct nn_text *text, uint64_t seed, uint64_t step, uint32_t seq,
	uint32_t *ids, uint32_t *targets)
{
	uint64_t places = text->n_train - text->seq_len;

	take(text, mix(mix(mix(seed) ^ step) ^ seq) % places, ids, targets);
}

size_t nn_text_held_back(const struct nn_text *text)
{
	return (text->n_bytes - text->n_train - 1) / text->seq_len;
}

void nn_text_held_back_sequence(const struct nn_text *text, size_t seq, uint32_t *ids,
	uint32_t *targets)
{
	take(text, text->n_train + seq * text->seq_len, ids, targets);
}
