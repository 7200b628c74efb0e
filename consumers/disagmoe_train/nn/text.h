/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Training data: any file, a token is a byte. The end of the file is held back for evaluation.
 * Which bytes a sequence of a step has depends on the seed, the step and the sequence's number in
 * the step only, so that every rank finds its sequences alone, on any distribution, and a resumed
 * run goes on with the data that it would have had.
 */
#ifndef NN_TEXT_H
#define NN_TEXT_H

#include <stddef.h>
#include <stdint.h>

struct nn_text {
	char *path;
	unsigned char *bytes; /* mapped */
	size_t n_bytes;
	size_t n_train; /* bytes before those that are held back */
	uint32_t seq_len;
	uint64_t digest; /* of all bytes */
};

/*
 * held_back: share of the bytes. Both parts need seq_len + 1 bytes. 0; -EINVAL (too short: the text
 * names the sizes); an errno of opening the file.
 */
int nn_text_open(const char *path, uint32_t seq_len, double held_back, struct nn_text **text);
void nn_text_close(struct nn_text *text);
/* ids, targets: [seq_len] */
void nn_text_sequence(const struct nn_text *text, uint64_t seed, uint64_t step, uint32_t seq,
	uint32_t *ids, uint32_t *targets);
/* How many sequences one after another the held-back bytes hold; at least 1. */
size_t nn_text_held_back(const struct nn_text *text);
/* seq: below that number. With fewer evaluated, take evenly spaced ones. */
void nn_text_held_back_sequence(const struct nn_text *text, size_t seq, uint32_t *ids,
	uint32_t *targets);

#endif
