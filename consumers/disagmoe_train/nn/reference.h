/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Training in one process: the calls of layer.h in a row. It is what a distributed run is compared
 * with, and what finite differences are taken of.
 */
#ifndef NN_REFERENCE_H
#define NN_REFERENCE_H

#include "nn/layer.h"
#include "nn/optimizer.h"
#include "nn/settings.h"
#include "nn/text.h"

struct nn_reference {
	struct nn_settings settings;
	struct nn_params *params;
	struct nn_work *work;
	uint32_t n_seqs; /* of a micro-batch */
	void *memory;
	struct nn_attention_record *attention; /* [n_layers] */
	struct nn_expert_record *experts;      /* [n_layers, n_experts] */
	void **expert_memory;                  /* [n_layers] of a layer's experts together */
	struct nn_head_record head;
	float *replies;   /* [n_layers, n_rows, top_k, hidden] */
	float *d_replies; /* [n_rows, top_k, hidden] */
	float *d_rows, *dx, *d_weights;
	uint32_t *ids, *targets; /* [n_rows] */
	float *batch;     /* [2, n_rows * top_k, hidden]: rows of one expert, and its replies */
};

struct nn_step_result {
	double loss;      /* mean cross entropy, nats per token */
	double balance;   /* mean over sequences of the sum over layers, 1 per layer at balance */
	double grad_norm; /* before clipping */
	double learning_rate;
};
/* -EDOM with the text of a step whose gradients are no numbers, which must not be applied. */
int nn_no_gradient(uint64_t step, double loss);

/* Fills the parameters by settings->seed. 0; -EINVAL; -ENOMEM. */
int nn_reference_open(const struct nn_settings *settings, struct nn_reference **reference);
void nn_reference_close(struct nn_reference *reference);

/* Forward of settings' micro-batch of sequences in reference->ids; logits are in head.logits. */
void nn_reference_forward(struct nn_reference *reference);
/*
 * Forward and backward of one micro-batch (reference->ids, targets), adding gradients of
 * loss_scale * cross entropy sum + balance_scale * balance sum. The sums come back.
 */
void nn_reference_backward(struct nn_reference *reference, double loss_scale,
	double balance_scale, double *loss_sum, double *balance_sum);
/*
 * Loss and gradients of step `step`, all micro-batches; parameters stay. -EDOM: the loss or the
 * gradients' norm is no number; the text names the step, counted from 1, and of the loss the first
 * layer whose values are none.
 */
int nn_reference_gradients(struct nn_reference *reference, const struct nn_text *text,
	uint64_t step, struct nn_step_result *result);
/* The same, then clipping and AdamW. */
int nn_reference_step(struct nn_reference *reference, const struct nn_text *text, uint64_t step,
	struct nn_step_result *result);
/* Mean cross entropy of up to max_seqs held-back sequences, evenly spaced (0: all of them). */
double nn_reference_evaluate(struct nn_reference *reference, const struct nn_text *text,
	size_t max_seqs);
/*
 * Continues a prompt with the likeliest tokens, by the forward of training: tokens: [n_prompt +
 * n_new], the first n_prompt given. -EINVAL: more than seq_len tokens, or none given.
 */
int nn_reference_generate(struct nn_reference *reference, uint32_t *tokens, size_t n_prompt,
	size_t n_new);

#endif
