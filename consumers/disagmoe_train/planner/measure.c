/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Measures the calls of nn/layer.h as a rank makes them: forward through a few layers, backward
 * through them the other way, so that weights and activations come from where a run finds them.
 * Times are medians of the thread's CPU time; other load on the machine shows little.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cblas.h>

#include "model/error.h"
#include "nn/optimizer.h"
#include "nn/reference.h"
#include "planner/machine.h"

enum { MAX_LAYERS = 4, REPEATS = 9, STREAM_BYTES = 32 << 20, PRODUCT = 384 };

struct samples {
	double us[REPEATS * MAX_LAYERS];
	size_t n;
};

static double now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	return (double)ts.tv_sec * 1e6 + (double)ts.tv_nsec * 1e-3;
}

static void note(struct samples *samples, double *begin)
{
	double now = now_us();

	if (samples->n < REPEATS * MAX_LAYERS)
		samples->us[samples->n++] = now - *begin;
	*begin = now_us();
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double median(struct samples *samples)
{
	if (!samples->n)
		return 0;
	qsort(samples->us, samples->n, sizeof(samples->us[0]), by_value);
	return samples->us[samples->n / 2];
}

/* A one-process model of a few layers is what is measured with; its arrays are at hand. */
static int open_model(const struct nn_settings *settings, uint32_t n_seqs,
	struct nn_reference **model)
{
	struct nn_settings own = *settings;
	int rc;

	if (own.config.n_layers > MAX_LAYERS)
		own.config.n_layers = MAX_LAYERS;
	own.step_seqs = n_seqs;
	own.n_micro_batches = 1;
	rc = nn_reference_open(&own, model);
	for (size_t i = 0; !rc && i < (*model)->head.n_rows; i++)
		(*model)->ids[i] = (*model)->targets[i] = (uint32_t)(i * 7 % own.config.vocab_size);
	return rc;
}

static void attend(struct nn_reference *m, struct samples *samples)
{
	const struct model_config *c = &m->settings.config;
	size_t n = m->head.n_rows * c->hidden_size;
	double begin;

	nn_embedding_forward(m->params, m->ids, m->head.n_rows, m->attention[0].x);
	begin = now_us();
	for (uint32_t layer = 0; layer < c->n_layers; layer++) {
		nn_attention_forward(m->params, m->work, layer, &m->attention[layer]);
		nn_attention_balance_loss(c, &m->attention[layer]);
		note(&samples[MACHINE_FORWARD], &begin);
		memcpy(layer + 1 < c->n_layers ? m->attention[layer + 1].x : m->head.x,
			m->attention[layer].y, n * sizeof(float));
		begin = now_us();
	}
	memcpy(m->dx, m->head.x, n * sizeof(float));
	memcpy(m->d_rows, m->head.x, n * sizeof(float));
	for (uint32_t layer = c->n_layers; layer-- > 0;) {
		begin = now_us();
		nn_attention_backward_input(m->params, m->work, layer, &m->attention[layer],
			m->d_rows, m->d_weights, m->dx, m->settings.balance, m->dx);
		note(&samples[MACHINE_BACKWARD], &begin);
		nn_attention_backward_weights(m->params, m->work, layer, &m->attention[layer]);
		note(&samples[MACHINE_WEIGHTS], &begin);
	}
}

static int measure_attention(const struct nn_settings *settings, uint32_t n_seqs,
	struct machine *machine)
{
	struct machine_points *points = &machine->attention;
	struct samples samples[MACHINE_N_PARTS] = {{.n = 0}}, head[2] = {{.n = 0}};
	struct nn_reference *m;
	int rc = open_model(settings, n_seqs, &m);
	double begin;

	if (rc)
		return rc;
	attend(m, samples);
	memset(samples, 0, sizeof(samples)); /* memory is touched for the first time */
	for (int i = 0; i < REPEATS; i++) {
		attend(m, samples);
		begin = now_us();
		nn_head_forward(m->params, m->work, &m->head, m->targets);
		nn_head_backward_input(m->params, m->work, &m->head, m->targets, 1, m->dx);
		note(&head[0], &begin);
		nn_head_backward_weights(m->params, m->work, &m->head);
		note(&head[1], &begin);
	}
	points->size[points->n] = n_seqs;
	for (int part = 0; part < MACHINE_N_PARTS; part++)
		points->us[points->n][part] = median(&samples[part]);
	points->n++;
	machine->head_us = median(&head[0]) / n_seqs;
	machine->head_weights_us = median(&head[1]) / n_seqs;
	nn_reference_close(m);
	return 0;
}

/* All experts of a layer, one after the other, with n_rows each. */
static void apply_experts(struct nn_reference *m, size_t n_rows, char *memory, float *rows,
	struct samples *samples)
{
	const struct model_config *c = &m->settings.config;
	size_t h = c->hidden_size, bytes = nn_expert_record_bytes(c, n_rows);
	struct nn_expert_record *e = m->experts;
	double begin;

	for (uint32_t i = 0; i < c->n_layers * c->n_experts; i++)
		nn_expert_record_init(c, n_rows, memory + i * bytes, &e[i]);
	for (uint32_t layer = 0; layer < c->n_layers; layer++) {
		begin = now_us();
		for (uint32_t i = 0; i < c->n_experts; i++)
			nn_expert_forward(m->params, m->work, layer, i,
				&e[layer * c->n_experts + i], rows, n_rows, h, rows + n_rows * h,
				h);
		note(&samples[MACHINE_FORWARD], &begin);
	}
	for (uint32_t layer = c->n_layers; layer-- > 0;) {
		begin = now_us();
		for (uint32_t i = 0; i < c->n_experts; i++)
			nn_expert_backward_input(m->params, m->work, layer, i,
				&e[layer * c->n_experts + i], 0, rows, n_rows, h,
				rows + n_rows * h, h);
		note(&samples[MACHINE_BACKWARD], &begin);
		for (uint32_t i = 0; i < c->n_experts; i++)
			nn_expert_backward_weights(m->params, m->work, layer, i,
				&e[layer * c->n_experts + i]);
		note(&samples[MACHINE_WEIGHTS], &begin);
	}
}

static int measure_experts(const struct nn_settings *settings, size_t n_rows,
	struct machine *machine)
{
	struct machine_points *points = &machine->expert;
	struct samples samples[MACHINE_N_PARTS] = {{.n = 0}};
	const struct model_config *c;
	struct nn_reference *m;
	void *memory = NULL;
	float *rows;
	int rc = open_model(settings, 1, &m);

	if (rc)
		return rc;
	c = &m->settings.config;
	rows = calloc(2 * n_rows * c->hidden_size, sizeof(*rows));
	if (!rows || posix_memalign(&memory, 64, nn_expert_record_bytes(c, n_rows) * c->n_layers *
		c->n_experts))
		rc = model_fail(-ENOMEM, "no memory for %zu rows", n_rows);
	for (size_t i = 0; !rc && i < n_rows * c->hidden_size; i++)
		rows[i] = (float)(i % 13) * 0.1f - 0.6f;
	if (!rc)
		apply_experts(m, n_rows, memory, rows, samples);
	memset(samples, 0, sizeof(samples));
	for (int i = 0; !rc && i < REPEATS; i++)
		apply_experts(m, n_rows, memory, rows, samples);
	points->size[points->n] = (double)n_rows;
	for (int part = 0; part < MACHINE_N_PARTS; part++)
		points->us[points->n][part] = median(&samples[part]) / c->n_experts;
	points->n += !rc;
	free(rows);
	free(memory);
	nn_reference_close(m);
	return rc;
}

/* What a step does with all values of a rank. */
static int measure_values(const struct nn_settings *settings, struct machine *machine)
{
	struct samples samples[3] = {{.n = 0}};
	struct nn_reference *m;
	int rc = open_model(settings, 1, &m);
	double begin, millions, sum = 0;

	if (rc)
		return rc;
	millions = (double)m->params->n_values * 1e-6;
	for (int i = 0; i <= REPEATS; i++) {
		begin = now_us();
		nn_params_zero_grads(m->params);
		note(&samples[0], &begin);
		sum += nn_params_square_sum(m->params);
		note(&samples[1], &begin);
		nn_adamw_step(m->params, settings, (uint64_t)i, nn_clip_factor(sum, 1));
		note(&samples[2], &begin);
	}
	machine->zero_us = median(&samples[0]) / millions;
	machine->norm_us = median(&samples[1]) / millions;
	machine->update_us = median(&samples[2]) / millions;
	nn_reference_close(m);
	return 0;
}

/* Rows that are copied to others' memory, and replies that are kept and added. */
static int measure_bytes(struct machine *machine)
{
	size_t n = STREAM_BYTES / sizeof(float);
	float *from = calloc(n, sizeof(*from)), *to = calloc(n, sizeof(*to)), out[1024] = {0};
	struct samples samples[2] = {{.n = 0}};
	double begin;

	if (!from || !to) {
		free(from);
		free(to);
		return model_fail(-ENOMEM, "no memory");
	}
	memset(from, 1, STREAM_BYTES);
	memset(to, 1, STREAM_BYTES);
	for (int i = 0; i < REPEATS; i++) {
		begin = now_us();
		memcpy(to, from, STREAM_BYTES);
		note(&samples[0], &begin);
		for (size_t row = 0; row + 1024 <= n; row += 1024) {
			memcpy(to + row, from + row, 1024 * sizeof(float));
			for (size_t j = 0; j < 1024; j++)
				out[j] += 0.5f * from[row + j];
		}
		note(&samples[1], &begin);
		from[i] += out[i];
	}
	machine->copy_us = median(&samples[0]) / (STREAM_BYTES * 1e-6);
	machine->combine_us = median(&samples[1]) / (STREAM_BYTES * 1e-6);
	free(from);
	free(to);
	return 0;
}

static int measure_rate(struct machine *machine)
{
	size_t n = (size_t)PRODUCT * PRODUCT;
	float *a = calloc(3 * n, sizeof(*a));
	struct samples samples = {.n = 0};
	double begin;

	if (!a)
		return model_fail(-ENOMEM, "no memory");
	for (size_t i = 0; i < 2 * n; i++)
		a[i] = (float)(i % 11);
	for (int i = 0; i <= REPEATS; i++) {
		begin = now_us();
		cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, PRODUCT, PRODUCT, PRODUCT, 1,
			a, PRODUCT, a + n, PRODUCT, 0, a + 2 * n, PRODUCT);
		note(&samples, &begin);
	}
	machine->gflops = 2e-3 * (double)n * PRODUCT / median(&samples);
	free(a);
	return 0;
}

static void set_model(const struct nn_settings *settings, struct machine *machine)
{
	const struct model_config *c = &settings->config;

	*machine = (struct machine){.layers = c->n_layers, .hidden = c->hidden_size,
		.intermediate = c->intermediate_size, .heads = c->n_heads,
		.kv_heads = c->n_kv_heads, .head_dim = c->head_dim, .experts = c->n_experts,
		.top_k = c->top_k, .vocab = c->vocab_size, .seq = settings->seq_len};
}

int machine_measure(const struct nn_settings *settings, uint32_t max_seqs, struct machine *machine)
{
	const struct model_config *c = &settings->config;
	size_t rows = (size_t)max_seqs * settings->seq_len * c->top_k / c->n_experts;
	int rc = 0;

	set_model(settings, machine);
	for (uint32_t n = 1; !rc && n <= max_seqs; n = n < max_seqs && 2 * n > max_seqs ?
		max_seqs : 2 * n)
		rc = measure_attention(settings, n, machine);
	/* From few rows to twice the even load of an expert. */
	for (size_t n = 4; !rc && machine->expert.n < 12; n *= 2) {
		rc = measure_experts(settings, n, machine);
		if (n >= 2 * rows)
			break;
	}
	if (!rc)
		rc = measure_values(settings, machine);
	if (!rc)
		rc = measure_bytes(machine);
	return rc ? rc : measure_rate(machine);
}
