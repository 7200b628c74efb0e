/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The transport over libm2n: one channel whose experts are those of all layers, as many rounds in
 * flight as there are micro-batches. A lost expert rank shows as M2N_PARTIAL: the rows it had are
 * routed again to the replicas that are left, by the plan of the same batch made anew. libm2n lets
 * a process that takes its place in by itself.
 */
#include "transport_m2n.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "model/error.h"
#include "report/timeline.h"

#define LOOK_ROUNDS 16     /* a look at who is lost or came back every so many */
#define SUCCESSOR_MS 10000 /* waited for, when nobody else has an expert */

int transport_fail(int rc)
{
	return model_fail(rc, "%s", m2n_error_text());
}

void transport_look_at_peers(struct transport *t)
{
	struct m2n_peer_attr attr;

	for (int i = 0; i < t->p.n_expert_ranks; i++) {
		uint64_t bit = UINT64_C(1) << i;
		int is_lost, is_live;

		if (m2n_group_peer(t->group, t->p.n_attention + i, &attr) < 0)
			continue;
		is_live = attr.state == M2N_PEER_LIVE;
		is_lost = attr.state == M2N_PEER_LOST || attr.state == M2N_PEER_LEFT ||
			  (is_live && t->incarnations[i] && attr.incarnation != t->incarnations[i]);
		t->stats.n_lost += is_lost && !(t->lost_ranks & bit);
		t->lost_ranks |= is_lost ? bit : 0;
		if (!is_live)
			continue;
		t->stats.n_joined += (t->lost_ranks & bit) != 0;
		t->lost_ranks &= ~bit;
		t->incarnations[i] = attr.incarnation;
	}
}

static int open_flights(struct transport *t)
{
	size_t n = (size_t)t->p.max_rows * t->p.config->top_k;

	t->missing = malloc(t->p.max_rows);
	for (uint32_t i = 0; i < t->p.n_micro_batches; i++) {
		t->flights[i].ids = malloc(n * sizeof(int32_t));
		if (!t->missing || !t->flights[i].ids)
			return model_fail(
				-ENOMEM, "no memory for %u rows of a micro-batch", t->p.max_rows);
		if (m2n_plan_create(t->channel, &t->flights[i].plan) < 0)
			return transport_fail(-ENOMEM);
	}
	transport_look_at_peers(t);
	t->stall.whole_ns = timeline_now();
	return 0;
}

static int open_expert(struct transport *t)
{
	size_t n_words = ((size_t)t->p.n_attention + 63) / 64;

	t->live_sources = calloc(n_words, sizeof(*t->live_sources));
	/* Of a batch: one for each attention rank and expert here, as many as there is room for. */
	t->parts = malloc((size_t)t->p.n_attention * t->shape.max_local * sizeof(*t->parts));
	if (!t->live_sources || !t->parts)
		return model_fail(-ENOMEM, "no memory for %d attention ranks", t->p.n_attention);
	for (int i = 0; i < t->p.n_attention; i++)
		t->live_sources[i / 64] |= UINT64_C(1) << i % 64;
	return 0;
}

static int open_channel(struct transport *t)
{
	const struct model_config *c = t->p.config;
	struct m2n_channel_params params = M2N_CHANNEL_PARAMS_INIT;
	int n = t->p.n_attention + t->p.n_expert_ranks, rc;
	int *ranks = malloc((size_t)n * sizeof(*ranks));

	if (!ranks)
		return model_fail(-ENOMEM, "no memory for %d ranks", n);
	for (int i = 0; i < n; i++)
		ranks[i] = i;
	params.name = "moe";
	params.sources = ranks;
	params.n_sources = (size_t)t->p.n_attention;
	params.experts = ranks + t->p.n_attention;
	params.n_expert_ranks = (size_t)t->p.n_expert_ranks;
	params.map = t->map;
	params.n_experts = t->shape.n_ids;
	params.top_k = c->top_k;
	params.max_tokens = t->p.max_rows;
	params.row_bytes = c->hidden_size * model_dtype_bytes(t->p.row_dtype);
	params.dtype = (enum m2n_dtype)t->p.row_dtype;
	params.depth = t->p.n_micro_batches + 1;
	rc = m2n_channel_create(t->group, &params, &t->channel);
	free(ranks);
	return rc < 0 ? transport_fail(rc) : 0;
}

static void close_m2n(struct transport *t)
{
	if (!t)
		return;
	placement_leave(t);
	for (int i = 0; i < TRANSPORT_MAX_FLIGHTS; i++) {
		m2n_plan_destroy(t->flights[i].plan);
		free(t->flights[i].ids);
	}
	m2n_channel_destroy(t->channel);
	for (size_t i = 0; i < t->n_allocs; i++)
		m2n_mem_free(t->allocs[i]);
	placement_close(t);
	free(t->missing);
	free(t->live_sources);
	free(t->parts);
	free(t);
}

static int open_m2n(const struct transport_params *params, struct transport **transport)
{
	struct transport *t;
	int rc = transport_check(params);

	if (rc)
		return rc;
	t = calloc(1, sizeof(*t));
	if (!t)
		return model_fail(-ENOMEM, "no memory for the transport");
	t->p = *params;
	t->group = params->env->group;
	t->source = params->env->rank < params->n_attention ? params->env->rank : -1;
	t->expert = t->source < 0 ? params->env->rank - params->n_attention : -1;
	rc = placement_open(t);
	if (!rc)
		rc = open_channel(t);
	if (!rc)
		rc = placement_linked(t);
	if (!rc)
		rc = t->source >= 0 ? open_flights(t) : open_expert(t);
	if (rc)
		close_m2n(t);
	else
		*transport = t;
	return rc;
}

static void *alloc_m2n(struct transport *t, size_t bytes)
{
	void *base;
	int rc = t->n_allocs < TRANSPORT_MAX_ALLOCS ? m2n_mem_alloc(t->p.env->ctx, bytes + !bytes,
							      &t->allocs[t->n_allocs], &base)
						    : -ENOMEM;

	if (rc < 0)
		return transport_fail(rc), NULL;
	t->n_allocs++;
	return base;
}

/* An expert of the batch that nobody has any more, for the error's text. */
static int orphan(const struct transport *t, const struct transport_flight *f)
{
	const int32_t *id = owners_orphan(
		t->owners, t->lost_ranks, f->ids, (size_t)f->n_rows * t->p.config->top_k);

	if (!id)
		return transport_fail(-EIO);
	return model_fail(-EIO,
		"layer %u, expert %u: its last owner, rank %d, is lost, and no process took its "
		"place within %d s",
		(uint32_t)*id / t->shape.n_experts, (uint32_t)*id % t->shape.n_experts,
		t->p.n_attention + __builtin_ctzll(t->owners[*id]), SUCCESSOR_MS / 1000);
}

/*
 * When nobody is left who has an expert, the batch goes again later, and an empty round in its
 * place: so the others' rounds and the switches of placements go on, and somebody can come in.
 */
static int route(struct transport *t, struct transport_flight *f, struct m2n_route_params *params)
{
	const struct timespec nap = {.tv_nsec = 1000000};
	int rc = m2n_plan_route(t->channel, f->plan, params);

	f->is_orphan = rc == M2N_PARTIAL;
	if (rc == M2N_PARTIAL) {
		transport_look_at_peers(t);
		if (!t->orphan_ns)
			t->orphan_ns = timeline_now();
		if (timeline_now() - t->orphan_ns > SUCCESSOR_MS * INT64_C(1000000))
			return orphan(t, f);
		nanosleep(&nap, NULL);
		f->n_rows = params->n_tokens = 0;
		rc = m2n_plan_route(t->channel, f->plan, params);
	} else if (!t->lost_ranks) {
		t->orphan_ns = 0;
	}
	return rc < 0 ? transport_fail(rc) : 0;
}

static int send_m2n(struct transport *t, const struct transport_batch *b)
{
	struct transport_flight *f = &t->flights[t->n_sent % t->p.n_micro_batches];
	struct m2n_route_params params = M2N_ROUTE_PARAMS_INIT;
	struct m2n_dispatch_send_params send = M2N_DISPATCH_SEND_PARAMS_INIT;
	int32_t first = (int32_t)(b->layer * t->p.config->n_experts);
	int rc = placement_before(t, t->n_sent);

	if (rc)
		return rc;
	for (size_t i = 0; i < (size_t)b->n_rows * t->p.config->top_k; i++) {
		f->ids[i] = first + b->ids[i];
		if (t->rows)
			t->rows[f->ids[i]]++;
	}
	f->n_rows = params.n_tokens = b->n_rows;
	params.expert_ids = f->ids;
	params.weights = b->weights;
	rc = route(t, f, &params);
	if (rc)
		return rc;
	send.plan = f->plan;
	send.rows = b->rows;
	rc = m2n_dispatch_send(t->channel, &send);
	if (rc < 0)
		return transport_fail(rc);
	t->n_sent++;
	return 0;
}

static int receive_m2n(struct transport *t, const void *residual, void *out)
{
	struct transport_flight *f = &t->flights[t->n_received % t->p.n_micro_batches];
	struct m2n_combine_recv_params params = M2N_COMBINE_RECV_PARAMS_INIT;
	int rc;

	params.plan = f->plan;
	params.residual = residual;
	params.out = out;
	params.missing = t->missing;
	rc = m2n_combine_recv(t->channel, &params);
	if (rc < 0)
		return transport_fail(rc);
	t->n_received++;
	t->stats.n_rounds++;
	if (rc == M2N_PARTIAL || t->n_received % LOOK_ROUNDS == 0)
		transport_look_at_peers(t);
	if (f->is_orphan || (rc == M2N_PARTIAL && transport_is_any(t->missing, f->n_rows))) {
		t->stats.n_resent++;
		t->stall.is_stalled = 1;
		return TRANSPORT_RESEND;
	}
	transport_whole(&t->stall, &t->stats.stall_ns);
	return 0;
}

/* Whose rows are waited for. 0: nobody is left. */
static int look_at_sources(struct transport *t)
{
	struct m2n_peer_attr attr;
	int n_live = 0;

	for (int i = 0; i < t->p.n_attention; i++) {
		if (m2n_group_peer(t->group, i, &attr) == 0 &&
			(attr.state == M2N_PEER_LOST || attr.state == M2N_PEER_LEFT))
			t->live_sources[i / 64] &= ~(UINT64_C(1) << i % 64);
		n_live += (t->live_sources[i / 64] >> i % 64 & 1) != 0;
	}
	return n_live;
}

static void list_parts(struct transport *t, const struct m2n_batch *batch)
{
	uint32_t n_experts = t->p.config->n_experts;

	for (uint32_t i = 0; i < batch->n_segments; i++) {
		const struct m2n_segment *s = &batch->segments[i];

		t->parts[i] = (struct transport_part){(uint32_t)s->expert / n_experts,
			(uint32_t)s->expert % n_experts, s->n_rows, s->first_row, s->rows};
	}
	t->work = (struct transport_work){batch->round, batch->n_rows, batch->n_segments, t->parts};
}

static int take_m2n(struct transport *t, const struct transport_work **work)
{
	const struct timespec nap = {.tv_nsec = 1000000};
	struct m2n_dispatch_recv_params params = M2N_DISPATCH_RECV_PARAMS_INIT;
	struct m2n_channel_attr attr;
	int rc;

	m2n_channel_query(t->channel, &attr);
	rc = placement_before(t, attr.next_recv_round);
	if (rc)
		return rc;
	params.mask = t->live_sources;
	params.timeout_ns = M2N_TIMEOUT_NONE; /* ends when they leave or are lost */
	rc = m2n_dispatch_recv(t->channel, &params, &t->batch);
	if (rc < 0)
		return transport_fail(rc);
	if (rc == M2N_PARTIAL && !look_at_sources(t))
		return TRANSPORT_END;
	/* Between a source's end of the channel and its leave of the group rounds come at once. */
	if (rc == M2N_PARTIAL && !t->batch->n_rows)
		nanosleep(&nap, NULL);
	list_parts(t, t->batch);
	*work = &t->work;
	return 0;
}

/* Of one attention rank: rows of several lie mixed, each wants its own. */
static void *place_m2n(struct transport *t, const struct transport_work *work)
{
	t->place = work->n_rows && t->p.n_attention == 1 ? m2n_reply_place(t->channel, t->batch, 0)
							 : NULL;
	return t->place;
}

static int answer_m2n(struct transport *t, const struct transport_work *work, const void *replies)
{
	static const uint64_t first = 1;
	struct m2n_combine_send_params params = M2N_COMBINE_SEND_PARAMS_INIT;
	int rc = m2n_reply_wait(t->channel, M2N_TIMEOUT_DEFAULT);

	params.batch = t->batch;
	params.rows = replies;
	params.in_place = work->n_rows && replies == t->place ? &first : NULL;
	if (rc >= 0)
		rc = m2n_combine_send(t->channel, &params);
	t->stats.n_rounds++;
	return rc < 0 ? transport_fail(rc) : 0; /* partial: an attention rank is gone */
}

static void stats_m2n(const struct transport *t, struct transport_stats *stats)
{
	*stats = t->stats;
}

const struct transport_ops transport_m2n = {
	.name = "m2n",
	.open = open_m2n,
	.close = close_m2n,
	.alloc = alloc_m2n,
	.send = send_m2n,
	.receive = receive_m2n,
	.take = take_m2n,
	.place = place_m2n,
	.answer = answer_m2n,
	.stats = stats_m2n,
};
