/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opening the links of a rank. Channels are made in one order by all ranks, so that those that wait
 * for each other's links wait for the same one.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/error.h"
#include "run/comm_inner.h"

int comm_fail(int rc)
{
	/* M2N_PARTIAL: a lost rank's rows are missing, which ends a step as well. */
	return model_fail(rc > 0 ? -EIO : rc, "%s", m2n_error_text());
}

/* The ranks of a channel, and what all of them say about it. */
struct shape {
	struct m2n_channel_params params;
	int *ranks; /* owned: sources, sinks, experts */
	char name[16];
};

static int shape_make(
	const struct comm_params *p, uint32_t group, enum flow_way way, struct shape *shape)
{
	const struct place *place = p->place;
	uint32_t next = place_next(place, group), n_a = place->n_a;
	int *ranks = malloc((2 * n_a + place->n_f) * sizeof(*ranks));
	int *here = ranks, *there = ranks + n_a, *experts = ranks + 2 * n_a;
	struct m2n_channel_params params = M2N_CHANNEL_PARAMS_INIT;

	if (!ranks)
		return model_fail(-ENOMEM, "no memory for the ranks of a group");
	for (uint32_t i = 0; i < n_a; i++) {
		here[i] = place_attention_rank(place, group, i);
		there[i] = place_attention_rank(place, next, i);
	}
	for (uint32_t j = 0; j < place->n_f; j++)
		experts[j] = place_ffn_rank(place, group, j);
	snprintf(shape->name, sizeof(shape->name), "%s-%u",
		way == FLOW_FORWARD ? "rows" : "gradients", group);
	params.name = shape->name;
	params.sources = way == FLOW_FORWARD ? here : there;
	params.sinks = way == FLOW_FORWARD ? there : here;
	params.experts = experts;
	params.n_sources = params.n_sinks = n_a;
	params.n_expert_ranks = place->n_f;
	params.n_experts = p->config->n_experts;
	params.top_k = p->config->top_k;
	params.max_tokens = (p->n_seqs + n_a - 1) / n_a * p->seq_len;
	params.row_bytes = p->config->hidden_size * sizeof(float);
	params.dtype = M2N_DTYPE_F32;
	params.depth = p->flow->depth;
	params.timeout_ns = p->timeout_ns;
	shape->params = params;
	shape->ranks = ranks;
	return 0;
}

static int shape_bytes(const struct shape *shape, int rank, size_t *bytes)
{
	struct m2n_channel_memory memory;
	int rc = m2n_channel_query_memory(&shape->params, rank, &memory);

	*bytes += rc ? 0 : memory.total_bytes;
	return rc ? comm_fail(rc) : 0;
}

static int open_channel(
	struct comm *c, uint32_t group, enum flow_way way, struct m2n_channel **channel)
{
	struct shape shape;
	int rc = shape_make(&c->p, group, way, &shape);

	if (rc)
		return rc;
	rc = m2n_channel_create(c->p.env->group, &shape.params, channel);
	rc = rc ? comm_fail(rc) : shape_bytes(&shape, c->p.env->rank, &c->bytes);
	free(shape.ranks);
	return rc;
}

/* The group's own channels, and those of which an attention rank is a source or sink besides. */
static int has_channel(const struct place *place, uint32_t group)
{
	return group == (uint32_t)place->group ||
	       (place->attention >= 0 && group == place_before(place, (uint32_t)place->group));
}

int comm_plan_bytes(const struct comm_params *p, size_t *bytes)
{
	const struct place *place = p->place;
	uint32_t n_seqs = (p->n_seqs + place->n_a - 1) / place->n_a;
	size_t n = (size_t)n_seqs * p->seq_len, top_k = p->config->top_k;
	int rc = 0;

	*bytes = 0;
	for (uint32_t group = 0; group < place->p; group++)
		for (int way = 0; !rc && has_channel(place, group) && way < FLOW_WAYS; way++) {
			struct shape shape;

			rc = shape_make(p, group, (enum flow_way)way, &shape);
			if (rc)
				return rc;
			rc = shape_bytes(&shape, place->rank, bytes);
			free(shape.ranks);
		}
	/* Beside them: rows both ways, plans forward, weights' gradients backward. */
	if (place->attention >= 0)
		*bytes += p->flow->depth * n *
			  (2 * p->config->hidden_size * sizeof(float) + top_k * 8 +
				  top_k * sizeof(float));
	if (place->attention >= 0)
		*bytes += (place->n_a - 1) * 2 * (size_t)COMM_SUM_BYTES;
	return rc;
}

static int open_channels(struct comm *c)
{
	const struct place *place = c->p.place;
	uint32_t own = (uint32_t)place->group, before = place_before(place, own);
	int rc = 0;

	for (uint32_t group = 0; group < place->p; group++)
		for (int way = 0; !rc && has_channel(place, group) && way < FLOW_WAYS; way++)
			rc = open_channel(c, group, (enum flow_way)way,
				group == own ? &c->own[way] : &c->before[way]);
	for (int way = 0; !rc && before == own && way < FLOW_WAYS; way++)
		c->before[way] = c->own[way];
	return rc;
}

/* A plan's largest form is that of a full micro-batch; made once to be measured. */
static int measure_plan(struct comm *c)
{
	struct m2n_route_params route = M2N_ROUTE_PARAMS_INIT;
	uint32_t top_k = c->p.config->top_k;
	size_t n = (size_t)c->max_rows * top_k;
	int32_t *ids = malloc(n * sizeof(*ids));
	float *weights = calloc(n, sizeof(*weights));
	struct m2n_plan *plan = NULL;
	int rc = ids && weights ? m2n_plan_create(c->own[FLOW_FORWARD], &plan) : -ENOMEM;

	for (size_t i = 0; !rc && i < n; i++)
		ids[i] = (int32_t)(i % top_k);
	route.n_tokens = c->max_rows;
	route.expert_ids = ids;
	route.weights = weights;
	if (!rc)
		rc = m2n_plan_route(c->own[FLOW_FORWARD], plan, &route);
	if (!rc)
		c->packed_bytes = m2n_plan_packed_bytes(plan);
	m2n_plan_destroy(plan);
	free(ids);
	free(weights);
	return rc ? comm_fail(rc) : 0;
}

int comm_open(const struct comm_params *params, struct comm **comm)
{
	struct comm *c = calloc(1, sizeof(*c));
	uint32_t first, n_seqs = 0;
	int rc;

	if (!c)
		return model_fail(-ENOMEM, "no memory");
	c->p = *params;
	if (params->place->attention >= 0)
		place_sequences(params->place, params->n_seqs, (uint32_t)params->place->attention,
			&first, &n_seqs);
	c->max_rows = n_seqs * params->seq_len;
	rc = open_channels(c);
	if (!rc && params->place->attention >= 0)
		rc = measure_plan(c);
	if (!rc && params->place->attention >= 0)
		rc = comm_open_beside(c);
	if (!rc)
		rc = comm_open_control(c);
	if (rc) {
		comm_close(c);
		return rc;
	}
	*comm = c;
	return 0;
}

void comm_close(struct comm *c)
{
	if (!c)
		return;
	for (int way = 0; way < FLOW_WAYS; way++) {
		m2n_exchange_destroy(c->beside[way]);
		if (c->before[way] != c->own[way])
			m2n_channel_destroy(c->before[way]);
		m2n_channel_destroy(c->own[way]);
	}
	m2n_exchange_destroy(c->sums);
	m2n_exchange_destroy(c->control);
	for (size_t i = 0; i < c->n_mems; i++)
		m2n_mem_free(c->mems[i]);
	free(c->mems);
	free(c);
}

void *comm_alloc(struct comm *c, size_t bytes)
{
	struct m2n_mem **mems = realloc(c->mems, (c->n_mems + 1) * sizeof(*mems));
	void *base = NULL;
	int rc;

	if (!mems) {
		model_fail(-ENOMEM, "no memory for %zu bytes", bytes);
		return NULL;
	}
	c->mems = mems;
	rc = m2n_mem_alloc(c->p.env->ctx, bytes ? bytes : 1, &c->mems[c->n_mems], &base);
	if (rc) {
		comm_fail(rc);
		return NULL;
	}
	c->n_mems++;
	return base;
}

size_t comm_bytes(const struct comm *c)
{
	return c->bytes;
}

/*
 * Ranks that see a lost one leave, and are seen as gone by their peers in turn. Who saw it first
 * leaves the reason in the store before it goes.
 */
int comm_abandon(const struct rank_env *env, int rc, const char *where)
{
	char text[1024];
	size_t bytes = sizeof(text) - 1;
	int found = m2n_group_get(env->group, "abandoned", text, &bytes, 0);

	if (found == 0) {
		text[bytes] = 0;
		return model_fail(rc, "%s", text);
	}
	snprintf(text, sizeof(text), "%s: %s", where, model_error());
	m2n_group_put(env->group, "abandoned", text, strlen(text), M2N_TIMEOUT_DEFAULT);
	return model_fail(rc, "%s", text);
}
