/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What an expert does to a value is v * (expert + 1) + layer; the oracle sums that for the pairs of
 * each row. Numbers come from a generator by seed, so that a batch can be sent again.
 */
#include "job.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "model/error.h"

#define SERVED_AGAIN 60 /* rounds with rows that are enough to see that it serves */

struct run {
	const struct job *job;
	const struct rank_env *env;
	struct job_result *result;
	struct model_config config;
	struct transport *transport;
	uint8_t held[JOB_MAX_IDS];
};

struct micro {
	struct transport_batch batch;
	float *values, *sums; /* of rows; what is to come out */
	float *residual;
	void *rows, *residual_rows, *out;
	int32_t *ids;
	float *weights;
};

static uint32_t draw(uint64_t *state, uint32_t below)
{
	*state = *state * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)((*state >> 33) % below);
}

static int hold(void *arg, uint32_t layer, uint32_t expert)
{
	struct run *run = arg;

	run->held[layer * run->job->n_experts + expert] = 1;
	return 0;
}

static size_t row_bytes(const struct job *job)
{
	return job->hidden * model_dtype_bytes(job->dtype);
}

static void open_micro(struct run *run, struct micro *m)
{
	const struct job *job = run->job;
	size_t n = (size_t)job->max_rows * job->hidden, n_pairs = job->max_rows * job->top_k;

	m->rows = transport_m2n.alloc(run->transport, n * 4);
	m->values = calloc(n, sizeof(float));
	m->sums = calloc(n, sizeof(float));
	m->residual = calloc(n, sizeof(float));
	m->residual_rows = calloc(n, sizeof(float));
	m->out = calloc(n, sizeof(float));
	m->ids = calloc(n_pairs, sizeof(*m->ids));
	m->weights = calloc(n_pairs, sizeof(*m->weights));
}

static void close_micro(struct micro *m)
{
	free(m->values);
	free(m->sums);
	free(m->residual);
	free(m->residual_rows);
	free(m->out);
	free(m->ids);
	free(m->weights);
}

static int32_t draw_expert(const struct job *job, uint64_t *state)
{
	if (job->is_skewed && draw(state, 8) < 6)
		return (int32_t)draw(state, (job->n_experts + 3) / 4);
	return (int32_t)draw(state, job->n_experts);
}

/* The experts of a row are distinct. */
static void draw_experts(const struct job *job, uint64_t *state, int32_t *ids, float *weights)
{
	for (uint32_t k = 0; k < job->top_k; k++) {
		int is_new;

		do {
			ids[k] = draw_expert(job, state);
			is_new = 1;
			for (uint32_t i = 0; i < k; i++)
				is_new &= ids[i] != ids[k];
		} while (!is_new);
		weights[k] = draw(state, 2) ? .5f : 1;
	}
}

static void make_batch(const struct job *job, struct micro *m, uint64_t seed)
{
	uint64_t state = seed;
	uint32_t layer = draw(&state, job->n_layers), n_rows = draw(&state, job->max_rows + 1);
	size_t n = (size_t)n_rows * job->hidden;

	if (draw(&state, 5) == 0)
		n_rows = 0;
	for (size_t i = 0; i < n; i++) {
		m->values[i] = (float)draw(&state, 4);
		m->sums[i] = m->residual[i] = (float)draw(&state, 3);
	}
	for (uint32_t r = 0; r < n_rows; r++) {
		int32_t *ids = m->ids + r * job->top_k;
		float *weights = m->weights + r * job->top_k;

		draw_experts(job, &state, ids, weights);
		for (size_t i = r * job->hidden; i < (r + 1) * job->hidden; i++)
			for (uint32_t k = 0; k < job->top_k; k++)
				m->sums[i] += weights[k] *
					      (m->values[i] * (float)(ids[k] + 1) + (float)layer);
	}
	model_from_f32(job->dtype, m->values, n, m->rows);
	model_from_f32(job->dtype, m->residual, n, m->residual_rows);
	m->batch = (struct transport_batch){layer, n_rows, m->rows, m->ids, m->weights};
}

static int check_sums(const struct job *job, struct micro *m)
{
	size_t n = (size_t)m->batch.n_rows * job->hidden;

	model_to_f32(job->dtype, m->out, n, m->values);
	for (size_t i = 0; i < n; i++)
		if (m->values[i] != m->sums[i])
			return model_fail(-1, "row %zu of %u: %g, expected %g", i / job->hidden,
				m->batch.n_rows, m->values[i], m->sums[i]);
	return 0;
}

static int is_through(const struct run *run, uint64_t n_batches)
{
	if (run->job->restart && !run->job->is_late &&
		atomic_load(&run->result->n_served_again) < SERVED_AGAIN)
		return 0;
	return n_batches >= run->job->n_batches >> run->env->rank;
}

/* The micro-batches in flight, the oldest first. */
struct queue {
	struct micro *micros[4];
	uint32_t n;
};

static int send(struct run *run, struct queue *queue, struct micro *m)
{
	queue->micros[queue->n++] = m;
	return transport_m2n.send(run->transport, &m->batch);
}

/* Idle: the one whose batch is through. NULL: none is in flight any more. */
static int receive_oldest(struct run *run, struct queue *queue, struct micro **idle)
{
	struct micro *m = queue->micros[0];
	int rc = transport_m2n.receive(run->transport, m->residual_rows, m->out);

	memmove(queue->micros, queue->micros + 1, --queue->n * sizeof(m));
	if (rc == TRANSPORT_RESEND)
		return send(run, queue, m);
	*idle = m;
	return rc ? rc : check_sums(run->job, m);
}

static int send_all(struct run *run, struct micro *micros)
{
	struct queue queue = {.n = 0};
	uint64_t n_sent = 0;
	int rc = 0;

	while (!rc) {
		struct micro *idle = n_sent < run->job->m ? &micros[n_sent] : NULL;

		while (!rc && !idle && queue.n)
			rc = receive_oldest(run, &queue, &idle);
		if (rc || !idle)
			break;
		if (is_through(run, n_sent)) {
			if (!queue.n)
				break;
			idle = NULL;
			rc = receive_oldest(run, &queue, &idle);
			continue;
		}
		make_batch(run->job, idle, n_sent++ * 100 + (uint64_t)run->env->rank);
		rc = send(run, &queue, idle);
	}
	return rc;
}

static int be_attention(struct run *run)
{
	struct micro micros[4];
	int rc;

	for (uint32_t i = 0; i < run->job->m; i++)
		open_micro(run, &micros[i]);
	rc = send_all(run, micros);
	for (uint32_t i = 0; i < run->job->m; i++)
		close_micro(&micros[i]);
	if (!run->job->expected)
		return rc;
	return rc < 0 && strstr(model_error(), run->job->expected)
		       ? 0
		       : model_fail(-1, "status %d, '%s', expected: '%s'", rc, model_error(),
				 run->job->expected);
}

/* Rows of one part; -1: this rank was not told to hold the expert. */
static int compute(
	struct run *run, const struct transport_part *part, uint8_t *replies, float *values)
{
	const struct job *job = run->job;
	size_t n = (size_t)part->n_rows * job->hidden;

	if (!run->held[part->layer * job->n_experts + part->expert])
		return model_fail(-1, "layer %u, expert %u is not held", part->layer, part->expert);
	model_to_f32(job->dtype, part->rows, n, values);
	for (size_t i = 0; i < n; i++)
		values[i] = values[i] * (float)(part->expert + 1) + (float)part->layer;
	model_from_f32(job->dtype, values, n, replies + part->first_reply * row_bytes(job));
	return 0;
}

static int serve(struct run *run, uint8_t *replies, float *values)
{
	const struct job *job = run->job;
	const struct transport_work *work;
	int me = run->env->rank, again = run->env->incarnation > 0, rc;

	while ((rc = transport_m2n.take(run->transport, &work)) == 0) {
		struct transport_stats stats;

		if (me == job->victim && !again && work->round >= job->kill_round)
			raise(SIGKILL);
		for (uint32_t i = 0; !rc && i < work->n_parts; i++)
			rc = compute(run, &work->parts[i], replies, values);
		if (!rc)
			rc = transport_m2n.answer(run->transport, work, replies);
		if (rc)
			return rc;
		transport_m2n.stats(run->transport, &stats);
		run->result->n_rows[stats.n_placements > 0][me] += work->n_rows;
		if (again && work->n_rows)
			atomic_fetch_add(&run->result->n_served_again, 1);
	}
	return rc == TRANSPORT_END ? 0 : rc;
}

static int be_expert(struct run *run)
{
	size_t n_rows = (size_t)run->job->n_attention * run->job->max_rows * run->job->top_k;
	uint8_t *replies = transport_m2n.alloc(run->transport, n_rows * row_bytes(run->job));
	float *values = malloc((n_rows * run->job->hidden + 1) * sizeof(*values));
	int rc = replies && values ? serve(run, replies, values) : model_fail(-1, "no memory");

	free(values);
	return rc;
}

static int be_rank(const struct rank_env *env, void *arg)
{
	struct run run = *(struct run *)arg;
	const struct job *job = run.job;
	struct transport_params params = {.env = env,
		.config = &run.config,
		.n_attention = job->n_attention,
		.n_expert_ranks = job->n_expert_ranks,
		.n_micro_batches = job->m,
		.max_rows = job->max_rows,
		.row_dtype = job->dtype,
		.n_replicas = job->n_replicas,
		.balance_rounds = job->balance_rounds,
		.hold = hold,
		.arg = &run};
	struct m2n_channel_attr attr = {0};
	int rc;

	run.env = env;
	run.config.n_layers = job->n_layers;
	run.config.n_experts = job->n_experts;
	run.config.top_k = job->top_k;
	run.config.hidden_size = job->hidden;
	rc = transport_m2n.open(&params, &run.transport);
	if (rc)
		return rc;
	rc = env->rank < job->n_attention ? be_attention(&run) : be_expert(&run);
	transport_m2n.stats(run.transport, &run.result->stats[env->rank]);
	m2n_channel_query(run.transport->channel, &attr);
	run.result->staged_bytes[env->rank] = attr.staged_bytes;
	transport_m2n.close(run.transport);
	return rc;
}

struct job_result *job_run(const struct job *job)
{
	char backend[64];
	const char *options[] = {backend, "TIMEOUT=60s", NULL};
	struct job_result *result = mmap(
		NULL, sizeof(*result), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct run run = {.job = job, .result = result};
	struct ranks_params params = {.n_ranks = job->n_attention + job->n_expert_ranks,
		.group = "transport",
		.options = options,
		.go_on = job->victim > 0,
		.max_restart = job->restart};

	assert_ptr_not_equal(result, MAP_FAILED);
	snprintf(backend, sizeof(backend), "BACKEND=%s", job->backend);
	assert_true(ranks_run(&params, be_rank, &run, result->ranks) >= 0);
	for (int i = 0; i < params.n_ranks; i++)
		if (result->ranks[i].status &&
			!(i == job->victim && !job->restart &&
				result->ranks[i].signal == SIGKILL) &&
			!(i == job->victim && job->is_late))
			fail_msg("rank %d ended with status %d, signal %d", i,
				result->ranks[i].status, result->ranks[i].signal);
	return result;
}

void job_free(struct job_result *result)
{
	munmap(result, sizeof(*result));
}
