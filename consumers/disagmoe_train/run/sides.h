/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The operations of a pass, by kind of rank. Those that wait for others return -EAGAIN for
 * timeout_ns 0 when something is not there yet; nothing is lost then, and they are called again.
 */
#ifndef RUN_SIDES_H
#define RUN_SIDES_H

#include "run/trainer.h"

/* attention_side.c */
int attention_open(struct trainer *t);
void attention_close(struct trainer *t);
void attention_begin(struct trainer *t);
int attention_forward(struct trainer *t, uint32_t layer, uint32_t micro, int64_t timeout_ns);
/* Final norm, head and loss; also backward unless the pass only evaluates. */
int attention_head(struct trainer *t, uint32_t micro, int64_t timeout_ns);
/* weights: WEIGHTS_LATER ... */
int attention_backward(
	struct trainer *t, uint32_t layer, uint32_t micro, int weights, int64_t timeout_ns);
int attention_weights(struct trainer *t, uint32_t layer, uint32_t micro);

/* expert_side.c */
int experts_open(struct trainer *t);
void experts_close(struct trainer *t);
void experts_begin(struct trainer *t);
int experts_forward(struct trainer *t, uint32_t layer, uint32_t micro, int64_t timeout_ns);
int experts_backward(
	struct trainer *t, uint32_t layer, uint32_t micro, int weights, int64_t timeout_ns);
int experts_weights(struct trainer *t, uint32_t layer, uint32_t micro);

/* pass.c: all operations of this rank. */
enum { WEIGHTS_LATER, WEIGHTS_AFTER, WEIGHTS_FIRST };
int pass_run(struct trainer *t);

/* trainer.c: what the time since the last span went to. */
void trainer_span(struct trainer *t, enum timeline_kind kind, const char *label, uint32_t layer,
	uint32_t micro);
/* Sequences of this attention rank in a micro-batch, and the first one's number in the pass. */
uint32_t trainer_sequences(const struct trainer *t, uint32_t micro, uint32_t *first);
/* ids and targets of them: [n_seqs * seq_len]. */
void trainer_tokens(const struct trainer *t, uint32_t micro, uint32_t *ids, uint32_t *targets);

#endif
