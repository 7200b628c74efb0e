/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a training rank computes: the forward is that of the served model; results do not depend on
 * how sequences and rows are cut; AdamW, schedule and clipping against numbers of numpy; a text is
 * learned. Gradients have a test of their own, test_gradients.py.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model/error.h"
#include "model/reference.h"
#include "nn/reference.h"

static const char text_path[] = M2N_SOURCE_ROOT "/tests/data/text_small.txt";

static struct nn_settings tiny(void)
{
	struct nn_settings settings;

	assert_int_equal(nn_settings_named("tiny", &settings), 0);
	return settings;
}

static struct nn_reference *open_reference(const struct nn_settings *settings)
{
	struct nn_reference *reference;

	if (nn_reference_open(settings, &reference) != 0)
		fail_msg("%s", model_error());
	return reference;
}

static struct nn_text *open_text(const struct nn_settings *settings)
{
	struct nn_text *text;

	if (nn_text_open(text_path, settings->seq_len, settings->held_back, &text) != 0)
		fail_msg("%s", model_error());
	return text;
}

/* The model that is served, from the trainer's parameters. */
static struct model *served(const struct nn_params *params)
{
	struct model_weights_params all = {.parts = MODEL_PART_ALL};
	struct model_weights *weights;
	struct model *model;

	assert_int_equal(model_weights_create(&params->config, &all, &weights), 0);
	for (size_t i = 0; i < params->n; i++)
		memcpy(weights->owned[i], params->list[i].value, weights->tensors[i].bytes);
	assert_int_equal(model_create(weights, 0, &model), 0);
	return model;
}

static void forward_is_the_served_model(void **state)
{
	struct nn_settings settings = tiny();
	struct nn_reference *r;
	struct nn_text *text = open_text(&settings);
	struct model_reference *run;
	struct model *model;
	size_t vocab = settings.config.vocab_size, seq_len = settings.seq_len;
	float *logits = malloc(seq_len * vocab * sizeof(float)), max = 0;

	(void)state;
	settings.config.sliding_window = 20;
	r = open_reference(&settings);
	model = served(r->params);
	assert_int_equal(model_reference_open(model, MODEL_F32, seq_len, 8, &run), 0);
	for (uint32_t seq = 0; seq < r->n_seqs; seq++)
		nn_text_sequence(text, 1, 2, seq, r->ids + seq * seq_len,
			r->targets + seq * seq_len);
	nn_reference_forward(r);
	for (uint32_t seq = 0; seq < r->n_seqs; seq++) {
		struct model_sequence sequence = {0};
		struct model_span span = {&sequence, seq_len};
		const float *got = r->head.logits + seq * seq_len * vocab;

		assert_int_equal(model_reference_step(run, &span, 1, r->ids + seq * seq_len), 0);
		model_logits(model, run->scratch, run->x, seq_len, logits);
		for (size_t i = 0; i < seq_len * vocab; i++)
			max = fmaxf(max, fabsf(logits[i]));
		for (size_t i = 0; i < seq_len * vocab; i++)
			assert_true(fabsf(got[i] - logits[i]) <= 1e-5f * max);
		model_sequence_release(run->cache, &sequence);
	}
	model_reference_close(run);
	model_close(model);
	nn_text_close(text);
	nn_reference_close(r);
	free(logits);
}

/* The largest difference of a tensor's gradients over its largest gradient. */
static double grad_error(const struct nn_param *a, const struct nn_param *b)
{
	double max = 0, error = 0;

	for (size_t i = 0; i < a->n_values; i++) {
		max = fmax(max, fabs((double)a->grad[i]));
		error = fmax(error, fabs((double)a->grad[i] - b->grad[i]));
	}
	return max > 0 ? error / max : error;
}

/* Micro-batches of one sequence and of all: the same loss, routing and gradients. */
static void micro_batches_do_not_matter(void **state)
{
	struct nn_settings settings = tiny();
	struct nn_text *text = open_text(&settings);
	struct nn_step_result whole_result, cut_result;
	struct nn_reference *whole, *cut;

	(void)state;
	settings.balance = 0.3;
	settings.n_micro_batches = 1;
	whole = open_reference(&settings);
	settings.n_micro_batches = settings.step_seqs;
	cut = open_reference(&settings);
	assert_int_equal(nn_reference_gradients(whole, text, 5, &whole_result), 0);
	assert_int_equal(nn_reference_gradients(cut, text, 5, &cut_result), 0);
	assert_true(fabs(whole_result.loss - cut_result.loss) < 1e-12);
	assert_true(fabs(whole_result.balance - cut_result.balance) < 1e-12);
	assert_true(fabs(whole_result.grad_norm / cut_result.grad_norm - 1) < 1e-6);
	for (size_t i = 0; i < whole->params->n; i++)
		assert_true(grad_error(&whole->params->list[i], &cut->params->list[i]) < 1e-5);
	/* The last sequence is the cut run's last micro-batch: the same bits forward. */
	for (uint32_t layer = 0; layer < settings.config.n_layers; layer++) {
		size_t n = settings.seq_len * settings.config.top_k;
		const struct nn_attention_record *a = &whole->attention[layer];

		assert_memory_equal(a->ids + (settings.step_seqs - 1) * n,
			cut->attention[layer].ids, n * sizeof(int32_t));
		assert_memory_equal(a->weights + (settings.step_seqs - 1) * n,
			cut->attention[layer].weights, n * sizeof(float));
	}
	nn_reference_close(whole);
	nn_reference_close(cut);
	nn_text_close(text);
}

static void fill(float *values, size_t n)
{
	for (size_t i = 0; i < n; i++)
		values[i] = (float)((i * 2654435761u >> 7) % 2001) / 1000 - 1;
}

/* Forward in three pieces, backward in two others, against one piece. */
static void pieces_of_an_expert_do_not_matter(void **state)
{
	enum { N = 21, H = 32, ROOM = 36 };
	static const size_t forward[] = {0, 3, 16, N}, backward[] = {0, 9, N};
	struct nn_settings settings = tiny();
	struct nn_reference *r = open_reference(&settings), *other = open_reference(&settings);
	struct nn_expert_record one, cut;
	float rows[N * ROOM], out[2][N * ROOM], d_rows[2][N * ROOM];
	void *memory[2];

	(void)state;
	fill(rows, N * ROOM);
	for (int i = 0; i < 2; i++) {
		memory[i] = malloc(nn_expert_record_bytes(&settings.config, N));
		nn_expert_record_init(&settings.config, N, memory[i], i ? &cut : &one);
	}
	nn_expert_forward(r->params, r->work, 1, 2, &one, rows, N, ROOM, out[0], ROOM);
	for (int i = 0; i < 3; i++)
		nn_expert_forward(r->params, r->work, 1, 2, &cut, rows + forward[i] * ROOM,
			forward[i + 1] - forward[i], ROOM, out[1] + forward[i] * ROOM, ROOM);
	assert_int_equal(cut.n_rows, N);
	nn_expert_backward_input(r->params, r->work, 1, 2, &one, 0, rows, N, ROOM, d_rows[0], ROOM);
	for (int i = 1; i >= 0; i--)
		nn_expert_backward_input(r->params, r->work, 1, 2, &cut, backward[i],
			rows + backward[i] * ROOM, backward[i + 1] - backward[i], ROOM,
			d_rows[1] + backward[i] * ROOM, ROOM);
	nn_expert_backward_weights(r->params, r->work, 1, 2, &one);
	nn_expert_backward_weights(other->params, other->work, 1, 2, &cut);
	for (size_t row = 0; row < N; row++) {
		assert_memory_equal(out[0] + row * ROOM, out[1] + row * ROOM, H * sizeof(float));
		for (size_t i = row * ROOM; i < row * ROOM + H; i++)
			assert_true(fabsf(d_rows[0][i] - d_rows[1][i]) < 1e-7f);
	}
	for (size_t i = 0; i < r->params->n; i++)
		assert_true(grad_error(&r->params->list[i], &other->params->list[i]) < 1e-6);
	assert_true(nn_params_square_sum(r->params) > 0);
	free(memory[0]);
	free(memory[1]);
	nn_reference_close(r);
	nn_reference_close(other);
}

/* Layer 1's attention, the head, and expert 3 of every layer. */
static int some_parts(void *arg, enum nn_part part, uint32_t layer, uint32_t expert)
{
	(void)arg;
	return (part == NN_ATTENTION && layer == 1) || part == NN_HEAD ||
		(part == NN_EXPERT && expert == 3);
}

static void parts_are_of_one_model(void **state)
{
	struct nn_settings settings = tiny();
	struct nn_params *all, *some;
	size_t n = 0;

	(void)state;
	assert_int_equal(nn_params_create(&settings.config, NULL, NULL, &all), 0);
	assert_int_equal(nn_params_create(&settings.config, some_parts, NULL, &some), 0);
	nn_params_fill(all, 7);
	nn_params_fill(some, 7);
	assert_int_equal(some->n, 7 + 2 + 2 * 3);
	for (size_t i = 0; i < all->n; i++) {
		const struct nn_param *param = &all->list[i];
		const struct nn_param *found = nn_params_find(some, param->name);

		assert_int_equal(found != NULL,
			some_parts(NULL, param->part, param->layer, param->expert));
		assert_ptr_equal(some->by_index[i], found);
		if (!found)
			continue;
		assert_memory_equal(found->value, param->value, param->n_values * sizeof(float));
		assert_ptr_equal(found->value, some->values + n);
		n += found->n_values;
	}
	assert_int_equal(n, some->n_values);
	assert_int_equal(nn_params_count(&settings.config, some_parts, NULL), n);
	assert_int_equal(nn_params_count(&settings.config, NULL, NULL), all->n_values);
	nn_params_fill(some, 8);
	assert_memory_not_equal(nn_params_expert(some, 0, 3, 2)->value,
		nn_params_expert(all, 0, 3, 2)->value, 64);
	nn_params_destroy(all);
	nn_params_destroy(some);
}

/* Three steps on three values; expected by numpy in double precision. */
static void check_adamw(int decays, const double *expected1, const double *expected3)
{
	static const float grads[3][3] = {{0.2f, -0.04f, 6.0f}, {-0.6f, 0.0f, 2.0f},
		{0.1f, 0.8f, -4.0f}};
	float value[3] = {0.5f, -1.25f, 2.0f}, grad[3], m[3] = {0}, v[3] = {0};
	static const double m3[] = {-0.0139, 0.03838, 0.133};
	static const double v3[] = {0.00485125, 0.00801805, 0.653625};
	struct nn_param param = {.n_dims = 1, .n_values = 3, .decays = decays, .value = value,
		.grad = grad, .m = m, .v = v};
	struct nn_params params = {.list = &param, .n = 1, .n_values = 3};
	struct nn_settings settings = tiny();

	settings.learning_rate = 0.01;
	settings.warmup_steps = 4;
	settings.weight_decay = 0.1;
	for (uint64_t step = 0; step < 3; step++) {
		memcpy(grad, grads[step], sizeof(grad));
		nn_adamw_step(&params, &settings, step, 0.5);
		assert_memory_equal(grad, grads[step], sizeof(grad));
		for (int i = 0; i < 3 && step == 0; i++)
			assert_true(fabs(value[i] - expected1[i]) < 3e-7);
	}
	for (int i = 0; i < 3; i++) {
		assert_true(fabs(value[i] - expected3[i]) < 3e-7);
		assert_true(fabs(m[i] - m3[i]) < 1e-7);
		assert_true(fabs(v[i] - v3[i]) < 1e-7);
	}
}

static void adamw_is_what_numpy_says(void **state)
{
	static const double decayed1[] = {0.497375, -1.2471875, 1.997};
	static const double decayed3[] = {0.50128394, -1.24671811, 1.98838859};
	static const double plain1[] = {0.4975, -1.2475, 1.9975};
	static const double plain3[] = {0.5020323, -1.24858658, 1.99138079};

	(void)state;
	check_adamw(1, decayed1, decayed3);
	check_adamw(0, plain1, plain3);
}

static void schedule_and_clipping(void **state)
{
	struct nn_settings s = tiny();

	(void)state;
	s.learning_rate = 1;
	s.min_learning_rate = 0.1;
	s.warmup_steps = 10;
	s.decay_steps = 110;
	assert_true(fabs(nn_learning_rate(&s, 0) - 0.1) < 1e-12);
	assert_true(fabs(nn_learning_rate(&s, 9) - 1) < 1e-12);
	assert_true(fabs(nn_learning_rate(&s, 10) - 1) < 1e-12);
	assert_true(fabs(nn_learning_rate(&s, 60) - 0.55) < 1e-12);
	assert_true(fabs(nn_learning_rate(&s, 35) - (0.1 + 0.45 * (1 + sqrt(0.5)))) < 1e-12);
	assert_true(fabs(nn_learning_rate(&s, 110) - 0.1) < 1e-12);
	assert_true(fabs(nn_learning_rate(&s, 100000) - 0.1) < 1e-12);
	assert_true(fabs(nn_clip_factor(25, 2) - 0.4) < 1e-12);
	assert_true(nn_clip_factor(4, 2) == 1 && nn_clip_factor(25, 0) == 1);
}

static void text_is_learned(void **state)
{
	struct nn_settings settings = tiny();
	struct nn_text *text = open_text(&settings);
	struct nn_reference *r;
	struct nn_step_result result, first;
	double before, after;

	(void)state;
	settings.learning_rate = 1e-2;
	settings.warmup_steps = 5;
	settings.decay_steps = 30;
	r = open_reference(&settings);
	before = nn_reference_evaluate(r, text, 0);
	assert_true(fabs(before - log(256)) < 0.1);
	for (uint64_t step = 0; step < 30; step++) {
		assert_int_equal(nn_reference_step(r, text, step, &result), 0);
		if (step == 0)
			first = result;
	}
	after = nn_reference_evaluate(r, text, 0);
	print_message("loss %.3f to %.3f, held back %.3f to %.3f\n", first.loss, result.loss,
		before, after);
	assert_true(fabs(first.loss - log(256)) < 0.1);
	assert_true(result.loss < 3.5 && after < 3.5);
	assert_true(result.balance >= 0.99 * settings.config.n_layers);
	nn_reference_close(r);
	nn_text_close(text);
}

/* Greedy tokens are those of the served model. */
static void generates_what_is_served(void **state)
{
	enum { PROMPT = 5, ALL = 32 };
	struct nn_settings settings = tiny();
	struct nn_text *text = open_text(&settings);
	struct nn_reference *r = open_reference(&settings);
	uint32_t tokens[ALL] = {'T', 'h', 'e', ' ', 'r'};
	float logits[256];
	struct nn_step_result result;
	struct model_sequence sequence = {0};
	struct model_reference *run;
	struct model *model;

	(void)state;
	for (uint64_t step = 0; step < 10; step++)
		assert_int_equal(nn_reference_step(r, text, step, &result), 0);
	assert_int_equal(nn_reference_generate(r, tokens, PROMPT, ALL - PROMPT), 0);
	model = served(r->params);
	assert_int_equal(model_reference_open(model, MODEL_F32, 1, 8, &run), 0);
	for (size_t i = 0; i + 1 < ALL; i++) {
		struct model_span span = {&sequence, 1};

		assert_int_equal(model_reference_step(run, &span, 1, &tokens[i]), 0);
		model_logits(model, run->scratch, run->x, 1, logits);
		if (i + 1 >= PROMPT)
			assert_int_equal(model_argmax(logits, 256), tokens[i + 1]);
	}
	model_sequence_release(run->cache, &sequence);
	model_reference_close(run);
	model_close(model);
	assert_int_equal(nn_reference_generate(r, tokens, PROMPT, ALL), -EINVAL);
	assert_non_null(strstr(model_error(), "32"));
	assert_int_equal(nn_reference_generate(r, tokens, 0, 1), -EINVAL);
	tokens[1] = 256;
	assert_int_equal(nn_reference_generate(r, tokens, 2, 1), -EINVAL);
	nn_reference_close(r);
	nn_text_close(text);
}

static void what_is_no_number_is_named(void **state)
{
	static const struct {
		const char *tensor, *named;
	} cases[] = {
		{"model.embed_tokens.weight", "the embedding"},
		{"model.layers.0.self_attn.o_proj.weight", "layer 0"},
		{"model.layers.1.self_attn.q_proj.weight", "layer 1"},
		{"model.layers.1.block_sparse_moe.gate.weight", "layer 1"},
		{"lm_head.weight", "the head"},
	};
	struct nn_settings settings = tiny();
	struct nn_text *text = open_text(&settings);

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct nn_reference *r = open_reference(&settings);
		struct nn_param *param = nn_params_find(r->params, cases[i].tensor);
		struct nn_step_result result = {.loss = 7};

		for (size_t j = 0; j < param->n_values; j++)
			param->value[j] = i % 2 ? INFINITY : NAN;
		assert_int_equal(nn_reference_step(r, text, 17, &result), -EDOM);
		assert_non_null(strstr(model_error(), "step 18"));
		assert_non_null(strstr(model_error(), cases[i].named));
		assert_true(result.loss == 7);
		nn_reference_close(r);
	}
	nn_text_close(text);
}

static void scale(struct nn_reference *r, const char *name, float factor)
{
	struct nn_param *param = nn_params_find(r->params, name);

	for (size_t i = 0; i < param->n_values; i++)
		param->value[i] *= factor;
}

/* A loss that is a number, but no step may follow: values that are 0 meet large ones backward. */
static void gradients_that_are_no_numbers_are_not_applied(void **state)
{
	struct nn_settings settings = tiny();
	struct nn_text *text = open_text(&settings);
	struct nn_reference *r = open_reference(&settings);
	struct nn_step_result result = {.loss = 7};
	float before;

	(void)state;
	scale(r, "lm_head.weight", 1e6f);
	scale(r, "model.layers.0.self_attn.o_proj.weight", 1e38f);
	scale(r, "model.layers.0.self_attn.v_proj.weight", 0);
	before = r->params->values[0];
	assert_int_equal(nn_reference_step(r, text, 2, &result), -EDOM);
	assert_non_null(strstr(model_error(), "step 3: the loss is "));
	assert_non_null(strstr(model_error(), "norm of its gradients"));
	assert_true(result.loss == 7);
	assert_memory_equal(&before, r->params->values, sizeof(before));
	nn_reference_close(r);
	nn_text_close(text);
}

static void texts(void **state)
{
	struct nn_text *text;
	uint32_t ids[100], targets[100], again[100];
	char path[] = "/tmp/m2n-text-XXXXXX";
	int fd = mkstemp(path), differ = 0;

	(void)state;
	assert_int_equal(nn_text_open(path, 10, 0.1, &text), -EINVAL);
	assert_non_null(strstr(model_error(), "0 bytes"));
	for (int i = 0; i < 200; i++)
		assert_int_equal(write(fd, &(unsigned char){(unsigned char)i}, 1), 1);
	assert_int_equal(nn_text_open(path, 199, 0.1, &text), -EINVAL);
	assert_non_null(strstr(model_error(), "200"));
	assert_int_equal(nn_text_open(path, 100, 0.1, &text), -EINVAL);
	assert_non_null(strstr(model_error(), "20 of 200"));
	assert_int_equal(nn_text_open(path, 10, 1.5, &text), -EINVAL);
	assert_int_equal(nn_text_open("/", 10, 0.1, &text), -EINVAL);
	assert_int_equal(nn_text_open("/missing/text", 10, 0.1, &text), -ENOENT);
	assert_int_equal(nn_text_open(path, 9, 0.1, &text), 0);
	assert_int_equal(nn_text_held_back(text), 2);
	for (uint32_t i = 0; i < 2; i++) {
		nn_text_held_back_sequence(text, i, ids, targets);
		assert_int_equal(ids[0], 180 + 9 * i);
		assert_int_equal(targets[8], 189 + 9 * i);
	}
	for (uint32_t i = 0; i < 1000; i++) {
		nn_text_sequence(text, 3, i / 10, i % 10, ids, targets);
		nn_text_sequence(text, 3, i / 10, i % 10, again, targets);
		assert_memory_equal(ids, again, 9 * sizeof(ids[0]));
		assert_true(ids[0] + 1 == targets[0] && targets[8] < 180);
		nn_text_sequence(text, 4, i / 10, i % 10, again, targets);
		differ += ids[0] != again[0];
	}
	assert_true(differ > 900);
	nn_text_close(text);
	close(fd);
	unlink(path);
}

static void settings_are_checked(void **state)
{
	struct nn_settings settings;
	struct nn_reference *reference;

	(void)state;
	assert_int_equal(nn_settings_named("huge", &settings), -EINVAL);
	assert_non_null(strstr(model_error(), "huge"));
	assert_int_equal(nn_settings_named("small", &settings), 0);
	assert_int_equal(nn_settings_check(&settings), 0);
#define REFUSED(change, word) \
	do { \
		settings = tiny(); \
		change; \
		assert_int_equal(nn_reference_open(&settings, &reference), -EINVAL); \
		assert_non_null(strstr(model_error(), word)); \
	} while (0)
	REFUSED(settings.n_micro_batches = 3, "8 sequences");
	REFUSED(settings.n_micro_batches = 0, "0 equal");
	REFUSED(settings.seq_len = 5000, "5000");
	REFUSED(settings.seq_len = 0, "seq_len");
	REFUSED(settings.beta1 = 1, "beta1");
	REFUSED(settings.learning_rate = NAN, "learning_rate");
	REFUSED(settings.warmup_steps = 1000, "1000");
	REFUSED(settings.config.vocab_size = 255, "255");
	REFUSED(settings.config.top_k = 5, "num_experts_per_tok");
	REFUSED(settings.config.tie_word_embeddings = 1, "tie_word_embeddings");
	REFUSED(settings.config.dtype = MODEL_BF16, "bfloat16");
#undef REFUSED
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(forward_is_the_served_model),
		cmocka_unit_test(micro_batches_do_not_matter),
		cmocka_unit_test(pieces_of_an_expert_do_not_matter),
		cmocka_unit_test(parts_are_of_one_model),
		cmocka_unit_test(adamw_is_what_numpy_says),
		cmocka_unit_test(schedule_and_clipping),
		cmocka_unit_test(text_is_learned),
		cmocka_unit_test(generates_what_is_served),
		cmocka_unit_test(what_is_no_number_is_named),
		cmocka_unit_test(gradients_that_are_no_numbers_are_not_applied),
		cmocka_unit_test(texts),
		cmocka_unit_test(settings_are_checked),
	};

	return cmocka_run_group_tests_name("training", tests, NULL, NULL);
}
