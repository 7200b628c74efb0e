/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Options of `disagmoe_train run`. Sizes of the model come from a name or a file, single ones over
 * it; a resumed run has all settings from its checkpoint.
 */
#include "run/options.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "model/error.h"
#include "nn/state.h"
#include "nn/state_files.h"
#include "report/options.h"

static const struct option_row rows[] = {
#define AT(field) offsetof(struct run_options, field)
#define MODEL(field) offsetof(struct run_options, settings.config.field)
#define SET(field) offsetof(struct run_options, settings.field)
	{"size", 0, "NAME", "small or tiny: what follows at once (small)", OPTION_TEXT, AT(size), 0,
		0},
	{"config", 0, "FILE", "config.json of a Mixtral model, instead of a size's", OPTION_TEXT,
		AT(config_path), 0, 0},
	{"layers", 0, "N", "of the model (4)", OPTION_U32, MODEL(n_layers), 1, 4096},
	{"hidden", 0, "N", "values of a row (128)", OPTION_U32, MODEL(hidden_size), 1, 1e6},
	{"intermediate", 0, "N", "of an expert (256)", OPTION_U32, MODEL(intermediate_size), 1,
		1e6},
	{"heads", 0, "N", "of attention (4)", OPTION_U32, MODEL(n_heads), 1, 4096},
	{"kv-heads", 0, "N", "of keys and values (4)", OPTION_U32, MODEL(n_kv_heads), 1, 4096},
	{"head-dim", 0, "N", "values of a head (32)", OPTION_U32, MODEL(head_dim), 2, 4096},
	{"experts", 0, "N", "of a layer (8)", OPTION_U32, MODEL(n_experts), 1, 65536},
	{"top-k", 0, "N", "experts of a token (2)", OPTION_U32, MODEL(top_k), 1, 64},
	{"seq", 0, "N", "tokens of a sequence (128)", OPTION_U32, SET(seq_len), 1, 1e6},
	{"sequences", 0, "N", "of a step (16)", OPTION_U32, SET(step_seqs), 1, 1e6},
	{"micro-batches", 'm', "N", "of a step, which accumulate gradients (4)", OPTION_U32,
		SET(n_micro_batches), 1, 1e6},
	{"learning-rate", 0, "X", "the highest (0.001)", OPTION_REAL, SET(learning_rate), 0, 1e6},
	{"min-learning-rate", 0, "X", "what the cosine ends at (0.0001)", OPTION_REAL,
		SET(min_learning_rate), 0, 1e6},
	{"warmup", 0, "STEPS", "of rising learning rate (20)", OPTION_U64, SET(warmup_steps), 0,
		1e15},
	{"decay", 0, "STEPS", "until the cosine's end (200)", OPTION_U64, SET(decay_steps), 0,
		1e15},
	{"weight-decay", 0, "X", "of matrices (0.1)", OPTION_REAL, SET(weight_decay), 0, 1e6},
	{"clip", 0, "X", "norm of gradients at most, 0: any (1)", OPTION_REAL, SET(max_grad_norm),
		0, 1e30},
	{"balance", 0, "X", "weight of the load-balancing loss (0.01)", OPTION_REAL, SET(balance),
		0, 1e6},
	{"held-back", 0, "X", "share of the text for evaluation (0.1)", OPTION_REAL, SET(held_back),
		1e-9, 0.999},
	{"seed", 0, "N", "of first values and order of data (1)", OPTION_U64, SET(seed), 0, 1e15},
	{"attention", 'M', "N", "ranks of an attention group (1)", OPTION_U32, AT(n_attention), 1,
		1024},
	{"ffn", 'N', "N", "ranks of an FFN group (1)", OPTION_U32, AT(n_ffn), 0, 1024},
	{"groups", 'p', "N", "pipeline groups of either kind (1)", OPTION_U32, AT(n_groups), 1,
		512},
	{"schedule", 's', "NAME", "afpipe, 1f1b or sequential (afpipe)", OPTION_TEXT, AT(schedule),
		0, 0},
	{"in-flight", 0, "N", "micro-batches with activations at most (by the schedule)",
		OPTION_U32, AT(max_in_flight), 1, 1e6},
	{"join-weights", 0, NULL, "weights' gradients at once, not where a rank would wait",
		OPTION_FLAG, AT(join_weights), 0, 0},
	{"steps", 'n', "N", "in all (200)", OPTION_U64, AT(n_steps), 1, 1e15},
	{"evaluate", 'e', "N", "on held-back text every so many steps (50)", OPTION_U64,
		AT(evaluate_every), 1, 1e15},
	{"evaluate-sequences", 0, "N", "at most, 0: all (64)", OPTION_SIZE, AT(evaluate_seqs), 0,
		1e12},
	{"checkpoint", 'c', "DIR", "written at the end, and ...", OPTION_TEXT, AT(checkpoint_dir),
		0, 0},
	{"checkpoint-every", 0, "N", "... every so many steps (never)", OPTION_U64,
		AT(checkpoint_every), 1, 1e15},
	{"resume", 'r', NULL, "goes on from the checkpoint, on any ranks", OPTION_FLAG, AT(resume),
		0, 0},
	{"metrics", 0, "FILE", "a CSV line for each step", OPTION_TEXT, AT(metrics_path), 0, 0},
	{"json", 'j', "FILE", "the report as JSON", OPTION_TEXT, AT(json_path), 0, 0},
	{"timeline", 0, "DIR", "writes timeline.json (Chrome trace) and timeline.svg", OPTION_TEXT,
		AT(timeline_dir), 0, 0},
	{"timeline-step", 0, "N", "the step that the picture shows (the one before the last)",
		OPTION_U64, AT(timeline_step), 1, 1e15},
	{"aligned", 0, "N",
		"steps from there on that all ranks begin together, for the report's bubbles (1)",
		OPTION_U64, AT(n_aligned), 0, 1e15},
	{"dump-routing", 0, "FILE", "routing of the last step, as a trace", OPTION_TEXT,
		AT(dump_path), 0, 0},
	{"timeout", 0, "S", "of every wait (120)", OPTION_REAL, AT(timeout_s), 0.001, 1e6},
	{"kill-rank", 0, "N", "test: kill -9 of that rank ...", OPTION_INT, AT(kill_rank), 0, 1e6},
	{"kill-step", 0, "N", "... in that step (1)", OPTION_U64, AT(kill_step), 1, 1e15},
	{"launched", 0, NULL, "mpirun, srun or torchrun started this rank", OPTION_FLAG,
		AT(launched), 0, 0},
	{"no-pin", 0, NULL, "ranks are not bound to cores", OPTION_FLAG, AT(no_pin), 0, 0},
	{"quiet", 'q', NULL, "no lines of progress", OPTION_FLAG, AT(quiet), 0, 0},
#undef AT
#undef MODEL
#undef SET
};

enum { N_ROWS = sizeof(rows) / sizeof(rows[0]) };

static int is_setting(const struct option_row *row)
{
	return row->offset < offsetof(struct run_options, settings) + sizeof(struct nn_settings) ||
	       !strcmp(row->name, "size") || !strcmp(row->name, "config");
}

static const char *check(void *into, const unsigned char *given)
{
	static char text[128];
	const struct run_options *o = into;

	if (!o->text_path)
		return "a text to train on is wanted";
	if ((o->resume || o->checkpoint_every) && !o->checkpoint_dir)
		return "--resume and --checkpoint-every want --checkpoint DIR";
	for (size_t i = 0; o->resume && i < N_ROWS; i++)
		if (given[i] && is_setting(&rows[i])) {
			snprintf(text, sizeof(text),
				"--%s: a resumed run has it from its checkpoint; leave it out",
				rows[i].name);
			return text;
		}
	return NULL;
}

/* The settings that single options go over. */
static int find_settings(int argc, char **argv, struct run_options *o)
{
	const struct option_table first = {.rows = rows,
		.n_rows = N_ROWS,
		.args_doc = "TEXT",
		.arg_offset = offsetof(struct run_options, text_path),
		.check = check,
		.doc = "Trains a byte-level mixture-of-experts model on any file: attention and "
		       "FFN groups as processes over libm2n."};
	struct run_options named = *o;
	int rc;

	options_parse(&first, argc, argv, &named);
	rc = nn_settings_named(named.size, &o->settings);
	if (!rc && named.config_path)
		rc = model_config_read(named.config_path, &o->settings.config);
	if (!rc)
		options_parse(&first, argc, argv, o);
	return rc;
}

static int read_checkpoint(struct run_options *o)
{
	struct nn_state state;
	int rc = nn_state_read(o->checkpoint_dir, &state);

	if (rc)
		return rc;
	o->settings = state.settings;
	o->first_step = state.step;
	if (state.step >= o->n_steps)
		return model_fail(-EINVAL, "%s: has %llu steps; --steps %llu asks for no more",
			o->checkpoint_dir, (unsigned long long)state.step,
			(unsigned long long)o->n_steps);
	return 0;
}

static int check_ranges(const struct run_options *o)
{
	uint32_t n_seqs = o->settings.step_seqs / o->settings.n_micro_batches;

	if (n_seqs < o->place.n_a)
		return model_fail(-EINVAL,
			"a micro-batch of %u sequences (%u of a step in %u) for %u attention "
			"ranks: there would be ranks without one; take more --sequences or fewer "
			"--micro-batches",
			n_seqs, o->settings.step_seqs, o->settings.n_micro_batches, o->place.n_a);
	if (o->timeline_dir && (o->timeline_step <= o->first_step || o->timeline_step > o->n_steps))
		return model_fail(-EINVAL, "--timeline-step %llu: the run has steps %llu to %llu",
			(unsigned long long)o->timeline_step, (unsigned long long)o->first_step + 1,
			(unsigned long long)o->n_steps);
	if (o->kill_rank >= o->place.n_ranks)
		return model_fail(-EINVAL, "--kill-rank %d: there are ranks 0 to %d", o->kill_rank,
			o->place.n_ranks - 1);
	return 0;
}

/* The directory that path is or would be an entry of. */
static int check_parent(const char *path)
{
	const char *slash = strrchr(path, '/');
	char parent[4096];

	if (slash)
		snprintf(parent, sizeof(parent), "%.*s", (int)(slash - path) + 1, path);
	if (access(slash ? parent : ".", W_OK | X_OK))
		return model_fail(-errno, "%s: %s", path, strerror(errno));
	return 0;
}

static int check_file(const char *path)
{
	struct stat st;

	if (!path)
		return 0;
	if (stat(path, &st))
		return errno == ENOENT ? check_parent(path)
				       : model_fail(-errno, "%s: %s", path, strerror(errno));
	if (S_ISDIR(st.st_mode))
		return model_fail(-EISDIR, "%s: is a directory", path);
	return access(path, W_OK) ? model_fail(-errno, "%s: %s", path, strerror(errno)) : 0;
}

static int check_checkpoint(const char *dir)
{
	struct nn_state_paths paths;
	int rc = nn_state_paths(dir, &paths);

	if (!rc)
		rc = nn_state_walk(paths.dir, 0);
	return rc == -ENOENT ? check_parent(paths.dir) : rc;
}

/* What a run would notice at its end only. */
static int check_outputs(const struct run_options *o)
{
	int rc = check_file(o->metrics_path);

	if (!rc)
		rc = check_file(o->json_path);
	if (!rc)
		rc = check_file(o->dump_path);
	if (!rc && o->checkpoint_dir)
		rc = check_checkpoint(o->checkpoint_dir);
	if (!rc && o->timeline_dir && mkdir(o->timeline_dir, 0777) && errno != EEXIST)
		rc = model_fail(-errno, "%s: %s", o->timeline_dir, strerror(errno));
	return rc;
}

int run_options_parse(int argc, char **argv, struct run_options *o)
{
	int rc;

	*o = (struct run_options){.size = "small",
		.schedule = "afpipe",
		.n_attention = 1,
		.n_ffn = 1,
		.n_groups = 1,
		.n_steps = 200,
		.evaluate_every = 50,
		.evaluate_seqs = 64,
		.n_aligned = 1,
		.timeout_s = 120,
		.kill_rank = -1,
		.kill_step = 1};
	rc = find_settings(argc, argv, o);
	if (!rc && train_schedule_parse(o->schedule, &o->kind))
		rc = model_fail(-EINVAL, "--schedule: '%s' is none of afpipe, 1f1b, sequential",
			o->schedule);
	if (!rc && o->resume)
		rc = read_checkpoint(o);
	if (!rc)
		rc = nn_settings_check(&o->settings);
	if (!rc)
		rc = place_check(o->kind == TRAIN_1F1B, o->n_groups, o->n_attention, o->n_ffn,
			&o->settings.config, &o->place);
	if (!rc && !o->timeline_step)
		o->timeline_step = o->n_steps - (o->n_steps > o->first_step + 1);
	if (!rc)
		rc = check_ranges(o);
	return rc ? rc : check_outputs(o);
}
