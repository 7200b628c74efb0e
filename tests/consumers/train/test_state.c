/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Training checkpoints: a resumed run has the bits of one that was not stopped; ranks' parts fit
 * together and are read by other ranks; the old checkpoint gives way only to a whole new one; what
 * is served from it is what was trained.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "model/error.h"
#include "model/model.h"
#include "nn/reference.h"
#include "nn/state.h"

static const char text_path[] = M2N_SOURCE_ROOT "/tests/data/text_small.txt";
static char top[64], dir[128];

static void remove_files(const char *path)
{
	char command[512];

	snprintf(command, sizeof(command), "rm -rf '%s'", path);
	assert_int_equal(system(command), 0);
}

static size_t count_files(const char *path)
{
	DIR *stream = opendir(path);
	size_t n = 0;

	assert_non_null(stream);
	while (readdir(stream))
		n++;
	closedir(stream);
	return n - 2;
}

static struct nn_settings tiny(void)
{
	struct nn_settings settings;

	assert_int_equal(nn_settings_named("tiny", &settings), 0);
	settings.seed = 0xfedcba9876543210u;
	settings.learning_rate = 1.0 / 300;
	settings.config.rope_theta = 1e4 / 3;
	return settings;
}

static struct nn_reference *open_reference(void)
{
	struct nn_settings settings = tiny();
	struct nn_reference *reference;

	assert_int_equal(nn_reference_open(&settings, &reference), 0);
	return reference;
}

static struct nn_state state_of(const struct nn_reference *r, uint64_t step)
{
	return (struct nn_state){.settings = r->settings, .step = step, .text_bytes = 12288,
		.text_digest = 0x00fedcba12345678u};
}

static void write_state(const struct nn_reference *r, uint64_t step)
{
	struct nn_state state = state_of(r, step);

	if (nn_state_write(dir, r->params, &state) != 0)
		fail_msg("%s", model_error());
}

static void train(struct nn_reference *r, uint64_t from, uint64_t to, double *losses)
{
	struct nn_settings settings = r->settings;
	struct nn_text *text;
	struct nn_step_result result;

	assert_int_equal(nn_text_open(text_path, settings.seq_len, 0.1, &text), 0);
	for (uint64_t step = from; step < to; step++) {
		assert_int_equal(nn_reference_step(r, text, step, &result), 0);
		losses[step] = result.loss;
	}
	nn_text_close(text);
}

static void check_same(const struct nn_params *a, const struct nn_params *b)
{
	size_t bytes = a->n_values * sizeof(float);

	assert_int_equal(a->n_values, b->n_values);
	assert_memory_equal(a->values, b->values, bytes);
	assert_memory_equal(a->m, b->m, bytes);
	assert_memory_equal(a->v, b->v, bytes);
}

static void resumed_has_the_same_bits(void **unused)
{
	struct nn_reference *through = open_reference(), *resumed = open_reference();
	double losses[6], again[6];
	struct nn_state state;

	(void)unused;
	train(through, 0, 3, losses);
	write_state(through, 3);
	train(through, 3, 6, losses);
	assert_int_equal(nn_state_read(dir, &state), 0);
	assert_int_equal(state.step, 3);
	assert_int_equal(state.text_bytes, 12288);
	assert_true(state.text_digest == 0x00fedcba12345678u);
	assert_memory_equal(&state.settings.seed, &resumed->settings.seed,
		sizeof(state.settings) - offsetof(struct nn_settings, seed));
	assert_true(state.settings.config.rope_theta == resumed->settings.config.rope_theta);
	assert_int_equal(nn_state_read_params(dir, resumed->params), 0);
	train(resumed, state.step, 6, again);
	check_same(resumed->params, through->params);
	assert_memory_equal(again + 3, losses + 3, 3 * sizeof(double));
	/* A rewritten one leaves nothing of the old one. */
	write_state(through, 6);
	assert_int_equal(count_files(top), 1);
	assert_int_equal(count_files(dir), 3);
	nn_reference_close(through);
	nn_reference_close(resumed);
	remove_files(dir);
}

/* The served model holds what was trained. */
static void is_served(void **unused)
{
	struct nn_reference *r = open_reference();
	struct model_weights_params all = {.parts = MODEL_PART_ALL};
	struct model *model;
	double losses[2];
	char path[256];

	(void)unused;
	train(r, 0, 2, losses);
	write_state(r, 2);
	snprintf(path, sizeof(path), "%s/model", dir);
	if (model_open(path, &all, 0, &model) != 0)
		fail_msg("%s", model_error());
	assert_int_equal(model->config->vocab_size, 256);
	assert_int_equal(model->weights->n_tensors, r->params->n);
	for (size_t i = 0; i < r->params->n; i++)
		assert_memory_equal(model->weights->tensors[i].data, r->params->list[i].value,
			r->params->list[i].n_values * sizeof(float));
	model_close(model);
	nn_reference_close(r);
	remove_files(dir);
}

/* Three ranks: what is no expert; experts of even, and of odd layers. */
static int of_rank(void *arg, enum nn_part part, uint32_t layer, uint32_t expert)
{
	int rank = *(int *)arg;

	(void)expert;
	return part == NN_EXPERT ? rank == 1 + (int)(layer % 2) : rank == 0;
}

/* Two ranks, cut another way. */
static int of_other_rank(void *arg, enum nn_part part, uint32_t layer, uint32_t expert)
{
	return ((int)part + (int)layer + (int)expert) % 2 == *(int *)arg;
}

static void write_parts(const struct nn_reference *r, int first, int end)
{
	for (int rank = first; rank < end; rank++)
		assert_int_equal(nn_state_write_part(dir, r->params, of_rank, &rank,
			(uint32_t)rank, 4), 0);
}

static void parts_fit_together(void **unused)
{
	struct nn_reference *r = open_reference();
	struct nn_state state = state_of(r, 2);
	double losses[2];

	(void)unused;
	train(r, 0, 2, losses);
	assert_int_equal(nn_state_begin(dir), 0);
	/* The fourth has nothing to write. */
	write_parts(r, 0, 4);
	assert_int_equal(nn_state_commit(dir, &state, 4), 0);
	for (int rank = 0; rank < 2; rank++) {
		struct nn_params *part;

		assert_int_equal(nn_params_create(&r->settings.config, of_other_rank, &rank, &part),
			0);
		assert_int_equal(nn_state_read_params(dir, part), 0);
		assert_true(part->n > 0 && part->n < r->params->n);
		for (size_t i = 0; i < part->n; i++) {
			const struct nn_param *a = &part->list[i];
			const struct nn_param *b = nn_params_find(r->params, a->name);

			assert_memory_equal(a->value, b->value, a->n_values * sizeof(float));
			assert_memory_equal(a->m, b->m, a->n_values * sizeof(float));
			assert_memory_equal(a->v, b->v, a->n_values * sizeof(float));
		}
		nn_params_destroy(part);
	}
	nn_reference_close(r);
	remove_files(dir);
}

/* The checkpoint in dir is the one that was written at the step. */
static void check_old(const struct nn_reference *old, uint64_t step)
{
	struct nn_reference *read = open_reference();
	struct nn_state state;

	assert_int_equal(nn_state_read(dir, &state), 0);
	assert_int_equal(state.step, step);
	assert_int_equal(nn_state_read_params(dir, read->params), 0);
	check_same(read->params, old->params);
	nn_reference_close(read);
}

static void old_one_stays_when_parts_are_wrong(void **unused)
{
	struct nn_reference *old = open_reference(), *new = open_reference();
	struct nn_state state = state_of(new, 9);
	int rank = 1;

	(void)unused;
	write_state(old, 1);
	nn_params_fill(new->params, 99);
	assert_int_equal(nn_state_begin(dir), 0);
	write_parts(new, 0, 2);
	assert_int_equal(nn_state_commit(dir, &state, 4), -EINVAL);
	assert_non_null(strstr(model_error(), "model.layers.1.block_sparse_moe.experts.0.w1"));
	assert_non_null(strstr(model_error(), "missing"));
	check_old(old, 1);
	write_parts(new, 2, 3);
	assert_int_equal(nn_state_write_part(dir, new->params, of_rank, &rank, 3, 4), 0);
	assert_int_equal(nn_state_commit(dir, &state, 4), -EINVAL);
	assert_non_null(strstr(model_error(), "twice"));
	nn_state_abandon(dir);
	assert_non_null(strstr(model_error(), "twice"));
	assert_int_equal(count_files(top), 1);
	check_old(old, 1);
	/* One that died half-way is cleared away by the next. */
	assert_int_equal(nn_state_begin(dir), 0);
	write_parts(new, 0, 2);
	write_state(new, 9);
	assert_int_equal(count_files(top), 1);
	check_old(new, 9);
	nn_reference_close(old);
	nn_reference_close(new);
	remove_files(dir);
}

/* A disk that fills up while writing. */
static void old_one_stays_when_the_disk_is_full(void **unused)
{
	struct nn_reference *old = open_reference(), *new = open_reference();
	struct nn_state state = state_of(new, 9);
	struct rlimit limit;

	(void)unused;
	write_state(old, 1);
	nn_params_fill(new->params, 99);
	getrlimit(RLIMIT_FSIZE, &limit);
	signal(SIGXFSZ, SIG_IGN);
	/* Room for nothing, half of the values, half of the moments, which are twice as large. */
	for (unsigned halves = 0; halves < 3; halves++) {
		rlim_t bytes = halves * old->params->n_values * sizeof(float);
		struct rlimit small = {halves == 1 ? bytes / 2 : bytes / 4 * 3, limit.rlim_max};
		int rc;

		setrlimit(RLIMIT_FSIZE, &small);
		rc = nn_state_write(dir, new->params, &state);
		setrlimit(RLIMIT_FSIZE, &limit);
		assert_int_equal(rc, -EFBIG);
		assert_non_null(strstr(model_error(), ".part/"));
		assert_int_equal(count_files(top), 1);
		check_old(old, 1);
	}
	nn_reference_close(old);
	nn_reference_close(new);
	remove_files(dir);
}

static void files_of_others_are_left_alone(void **unused)
{
	struct nn_reference *r = open_reference();
	struct nn_state state = state_of(r, 1);
	char path[256];

	(void)unused;
	for (int below = 0; below < 2; below++) {
		write_state(r, 1);
		snprintf(path, sizeof(path), "%s/%snotes.txt", dir, below ? "model/" : "");
		fclose(fopen(path, "w"));
		assert_int_equal(nn_state_write(dir, r->params, &state), -EEXIST);
		assert_non_null(strstr(model_error(), "notes.txt"));
		assert_int_equal(count_files(top), 1);
		check_old(r, 1);
		remove_files(dir);
	}
	snprintf(path, sizeof(path), "%s/missing/run", top);
	assert_int_equal(nn_state_write(path, r->params, &state), -ENOENT);
	assert_int_equal(nn_state_write("", r->params, &state), -EINVAL);
	assert_int_equal(nn_state_write("/", r->params, &state), -EINVAL);
	nn_reference_close(r);
}

static char *read_text(const char *path, size_t *n)
{
	FILE *file = fopen(path, "rb");
	char *text = calloc(1, 1 << 20);

	assert_non_null(file);
	*n = fread(text, 1, (1 << 20) - 1, file);
	fclose(file);
	return text;
}

static void write_text(const char *path, const char *text, size_t n)
{
	FILE *file = fopen(path, "wb");

	assert_non_null(file);
	assert_int_equal(fwrite(text, 1, n, file), n);
	fclose(file);
}

static void broken_ones_are_named(void **unused)
{
	static const struct {
		const char *old, *new, *named;
	} cases[] = {
		{"\"step\": 1", "\"step\": -1", "step"},
		{"\"step\": 1", "\"stop\": 1", "step"},
		{"\"format\": 1", "\"format\": 2", "format"},
		{"\"parts\": 1", "\"parts\": 4000000000", "parts"},
		{"\"parts\": 1", "\"parts\": 2", "missing"},
		{"00fedcba12345678", "00fedcba1234567g", "text_digest"},
		{"\"beta2\"", "\"beta1\"", "line"},
		{"\"seq_len\": 32", "\"seq_len\": 3e1", "seq_len"},
		{"\"seq_len\": 32", "\"seq_len\": 99999", "99999"},
		{"\"eps\": ", "\"eps\": \"a\", \"x\": ", "eps"},
		{"\"settings\"", "\"sittings\"", "seed"},
	};
	struct nn_reference *r = open_reference();
	char path[256], changed[4096], *text, *at;
	size_t n;

	(void)unused;
	write_state(r, 1);
	snprintf(path, sizeof(path), "%s/state.json", dir);
	text = read_text(path, &n);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		at = strstr(text, cases[i].old);
		assert_non_null(at);
		snprintf(changed, sizeof(changed), "%.*s%s%s", (int)(at - text), text, cases[i].new,
			at + strlen(cases[i].old));
		write_text(path, changed, strlen(changed));
		assert_int_equal(nn_state_read_params(dir, r->params), -EINVAL);
		assert_non_null(strstr(model_error(), cases[i].named));
	}
	for (size_t cut = 0; cut < n - 1; cut += 37) {
		write_text(path, text, cut);
		assert_int_equal(nn_state_read_params(dir, r->params), -EINVAL);
	}
	unlink(path);
	assert_int_equal(nn_state_read_params(dir, r->params), -ENOENT);
	assert_non_null(strstr(model_error(), dir));
	free(text);
	nn_reference_close(r);
	remove_files(dir);
}

static void other_files_are_refused(void **unused)
{
	struct nn_reference *r = open_reference();
	struct nn_settings settings = tiny();
	struct nn_params *other;
	char path[256], *text;
	size_t n;

	(void)unused;
	write_state(r, 1);
	settings.config.n_experts = 5;
	assert_int_equal(nn_params_create(&settings.config, NULL, NULL, &other), 0);
	assert_int_equal(nn_state_read_params(dir, other), -EINVAL);
	assert_non_null(strstr(model_error(), "4 experts"));
	nn_params_destroy(other);
	/* Moments cut off, then of a tensor renamed, then gone. */
	snprintf(path, sizeof(path), "%s/state-00001-of-00001.safetensors", dir);
	text = read_text(path, &n);
	write_text(path, text, n - 1);
	assert_int_equal(nn_state_read_params(dir, r->params), -EINVAL);
	assert_non_null(strstr(model_error(), "state-00001"));
	memcpy(strstr(text + 8, "lm_head.weight.v"), "lm_head.weight.w", 16);
	write_text(path, text, n);
	assert_int_equal(nn_state_read_params(dir, r->params), -EINVAL);
	assert_non_null(strstr(model_error(), "lm_head.weight.v"));
	unlink(path);
	assert_int_equal(nn_state_read_params(dir, r->params), -EINVAL);
	assert_non_null(strstr(model_error(), "missing"));
	free(text);
	nn_reference_close(r);
	remove_files(dir);
}

static int make_top(void **unused)
{
	(void)unused;
	snprintf(top, sizeof(top), "/tmp/m2n-state-XXXXXX");
	if (!mkdtemp(top))
		return -1;
	snprintf(dir, sizeof(dir), "%s/run", top);
	return 0;
}

static int remove_top(void **unused)
{
	(void)unused;
	remove_files(top);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(resumed_has_the_same_bits),
		cmocka_unit_test(is_served),
		cmocka_unit_test(parts_fit_together),
		cmocka_unit_test(old_one_stays_when_parts_are_wrong),
		cmocka_unit_test(old_one_stays_when_the_disk_is_full),
		cmocka_unit_test(files_of_others_are_left_alone),
		cmocka_unit_test(broken_ones_are_named),
		cmocka_unit_test(other_files_are_refused),
	};

	return cmocka_run_group_tests_name("training state", tests, make_top, remove_top);
}
