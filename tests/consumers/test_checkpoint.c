/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Checkpoints that we write: what is read is what was written, in every type and cut into shards;
 * an old one gives way only to a whole new one; ranks with parts of a model fit together.
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
#include "model/weights.h"

static char top[64], dir[128];

static struct model_weights *make(uint64_t seed, enum model_dtype dtype, int tied)
{
	struct model_weights_params params = {.parts = MODEL_PART_ALL};
	struct model_weights *weights;
	struct model_config config;

	model_config_default(&config);
	config.n_layers = 2;
	config.n_experts = 3;
	config.hidden_size = 40;
	config.intermediate_size = 24;
	config.head_dim = 6;
	config.sliding_window = 100;
	config.dtype = dtype;
	config.tie_word_embeddings = tied;
	assert_int_equal(model_weights_create(&config, &params, &weights), 0);
	model_weights_fill(weights, seed, 0);
	return weights;
}

static struct model_weights *read_back(int writable)
{
	struct model_weights_params params = {.parts = MODEL_PART_ALL, .writable = writable};
	struct model_weights *weights;

	if (model_weights_open(dir, &params, &weights) != 0)
		fail_msg("%s", model_error());
	return weights;
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

static void remove_files(const char *path)
{
	char command[256];

	snprintf(command, sizeof(command), "rm -rf '%s'", path);
	assert_int_equal(system(command), 0);
}

/* Every tensor in fp32 as `rounded` to the type that it was stored in. */
static void check_same(const struct model_weights *read, const struct model_weights *made,
	enum model_dtype dtype)
{
	assert_int_equal(read->n_tensors, made->n_tensors);
	for (size_t i = 0; i < made->n_tensors; i++) {
		const struct model_tensor *a = &read->tensors[i], *b = &made->tensors[i];
		size_t n = b->bytes / sizeof(float);
		float *wanted = malloc(b->bytes), *got = malloc(b->bytes);

		assert_string_equal(a->name, b->name);
		assert_int_equal(a->bytes / model_dtype_bytes(a->dtype), n);
		memcpy(wanted, b->data, b->bytes);
		model_round(dtype, wanted, n);
		model_to_f32(a->dtype, a->data, n, got);
		assert_memory_equal(got, wanted, b->bytes);
		free(wanted);
		free(got);
	}
}

static void check_config(const struct model_config *a, const struct model_config *b)
{
	/* Whole numbers first, then what has another type. */
	assert_memory_equal(a, b, offsetof(struct model_config, sliding_window) + 4);
	assert_true(a->rms_norm_eps == b->rms_norm_eps && a->rope_theta == b->rope_theta);
	assert_int_equal(a->tie_word_embeddings, b->tie_word_embeddings);
	assert_int_equal(a->dtype, b->dtype);
}

static void written_is_read(void **state)
{
	static const size_t shards[] = {0, 1, 5000, 100000};

	(void)state;
	for (int i = 0; i < 3 * 2 * 4; i++) {
		enum model_dtype dtype = (enum model_dtype)(i % 3);
		struct model_weights *made = make(1, dtype, i / 3 % 2), *read;

		assert_int_equal(model_weights_write(made, dir, shards[i / 6]), 0);
		read = read_back(i % 2);
		check_config(&read->config, &made->config);
		check_same(read, made, dtype);
		if (shards[i / 6] == 1) /* a shard a tensor */
			assert_int_equal(count_files(dir), made->n_tensors + 2);
		model_weights_close(read);
		/* Over itself, in another number of shards: no file of the old one is left. */
		assert_int_equal(model_weights_write(made, dir, 0), 0);
		assert_int_equal(count_files(dir), 2);
		model_weights_close(made);
		assert_int_equal(count_files(top), 1);
		remove_files(dir);
	}
}

/* A disk that fills up while writing. */
static void old_one_stays_when_writing_fails(void **state)
{
	struct rlimit limit, small;
	struct model_weights *old = make(1, MODEL_F32, 0), *new = make(2, MODEL_F32, 0), *read;

	(void)state;
	assert_int_equal(model_weights_write(old, dir, 0), 0);
	getrlimit(RLIMIT_FSIZE, &limit);
	signal(SIGXFSZ, SIG_IGN);
	/* The embedding alone has 40,960 bytes. */
	for (rlim_t bytes = 0; bytes <= 40000; bytes += 20000) {
		int rc;

		small = (struct rlimit){bytes, limit.rlim_max};
		setrlimit(RLIMIT_FSIZE, &small);
		rc = model_weights_write(new, dir, 60000);
		setrlimit(RLIMIT_FSIZE, &limit);
		assert_int_equal(rc, -EFBIG);
		assert_non_null(strstr(model_error(), ".part-"));
		assert_int_equal(count_files(top), 1);
		read = read_back(0);
		check_same(read, old, MODEL_F32);
		model_weights_close(read);
	}
	assert_int_equal(model_weights_write(new, dir, 60000), 0);
	read = read_back(0);
	check_same(read, new, MODEL_F32);
	model_weights_close(read);
	model_weights_close(old);
	model_weights_close(new);
	remove_files(dir);
}

static void files_of_others_are_left_alone(void **state)
{
	struct model_weights *made = make(1, MODEL_F32, 0);
	char path[256];

	(void)state;
	assert_int_equal(mkdir(dir, 0777), 0);
	assert_int_equal(model_weights_write(made, dir, 0), 0); /* an empty one will do */
	snprintf(path, sizeof(path), "%s/notes.txt", dir);
	fclose(fopen(path, "w"));
	assert_int_equal(model_weights_write(made, dir, 0), -EEXIST);
	assert_non_null(strstr(model_error(), "notes.txt"));
	assert_int_equal(count_files(dir), 3);
	assert_int_equal(count_files(top), 1);
	remove_files(dir);
	snprintf(path, sizeof(path), "%s/missing/model", top);
	assert_int_equal(model_weights_write(made, path, 0), -ENOENT);
	assert_non_null(strstr(model_error(), "missing"));
	model_weights_close(made);
}

static int is_second(void *arg, uint32_t layer, uint32_t expert)
{
	(void)arg;
	return layer == 1 && expert == 2;
}

static void parts_fit_together(void **state)
{
	struct model_weights *all = make(1, MODEL_BF16, 0), *part, *made;
	struct model_weights_params params = {.parts = MODEL_PART_EXPERTS, .wanted = is_second};
	size_t w1 = model_expert_index(&all->config, 1, 2, 1), n_held = 0;

	(void)state;
	assert_int_equal(model_weights_write(all, dir, 30000), 0);
	assert_int_equal(model_weights_open(dir, &params, &part), 0);
	assert_int_equal(model_weights_create(&all->config, &params, &made), 0);
	model_weights_fill(made, 1, 0);
	for (size_t i = 0; i < part->n_tensors; i++) {
		n_held += part->tensors[i].data != NULL;
		assert_int_equal(!part->tensors[i].data, !made->tensors[i].data);
		assert_null(part->owned[i]); /* bf16 stays where the file is mapped */
	}
	assert_int_equal(n_held, 3);
	assert_string_equal(part->tensors[w1].name,
		"model.layers.1.block_sparse_moe.experts.2.w1.weight");
	assert_int_equal(part->tensors[w1].dtype, MODEL_BF16);
	assert_memory_equal(made->tensors[w1].data, all->tensors[w1].data, all->tensors[w1].bytes);
	assert_int_equal(model_weights_write(part, dir, 0), -EINVAL);
	assert_non_null(strstr(model_error(), "model.embed_tokens.weight"));
	assert_true(model_weights_has_expert(part, 1, 2) && !model_weights_has_expert(part, 0, 2));
	params.wanted = NULL;
	assert_int_equal(model_weights_load(part, &params), 0);
	for (uint32_t i = 0; i < 6; i++)
		assert_true(model_weights_has_expert(part, i / 3, i % 3));
	assert_null(part->tensors[0].data);
	model_weights_close(part);
	params.parts = MODEL_PART_ATTENTION;
	assert_int_equal(model_weights_open(dir, &params, &part), 0);
	for (size_t i = 0; i < part->n_tensors; i++)
		assert_int_equal(!part->tensors[i].data,
			strstr(part->tensors[i].name, "experts") != NULL);
	model_weights_close(part);
	model_weights_close(made);
	model_weights_close(all);
	remove_files(dir);
}

static int make_top(void **state)
{
	(void)state;
	snprintf(top, sizeof(top), "/tmp/m2n-checkpoint-XXXXXX");
	if (!mkdtemp(top))
		return -1;
	snprintf(dir, sizeof(dir), "%s/model", top);
	return 0;
}

static int remove_top(void **state)
{
	(void)state;
	remove_files(top);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(written_is_read),
		cmocka_unit_test(old_one_stays_when_writing_fails),
		cmocka_unit_test(files_of_others_are_left_alone),
		cmocka_unit_test(parts_fit_together),
	};

	return cmocka_run_group_tests_name("checkpoint", tests, make_top, remove_top);
}
