/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The serving pipeline's rows over MPI, to compare with: what a careful program does. One message
 * from each attention rank to each expert rank and back in a round, a head and the rows in one, so
 * that nobody asks for sizes first; receives are posted before the messages come; nothing waits for
 * what is not needed yet. Rows are packed into the message, as MPI wants them, and replies summed
 * in the order of the top-k, with the bits that libm2n gives.
 *
 * Experts lie in blocks, without replicas, and a lost rank ends the job.
 */
#include <errno.h>
#include <mpi.h>
#include <stdlib.h>
#include <string.h>

#include "consumers/mpi/transport_mpi.h"
#include "model/error.h"

enum { TAG_ROWS = 1, TAG_REPLIES = 2, N_BUFFERS = 2, MAX_ALLOCS = 64, MAX_SOURCES = 64 };

struct head {
	uint32_t layer;
	uint32_t n_rows;
	uint32_t is_end;   /* the sender leaves; no answer */
	uint32_t counts[]; /* [n_experts] rows of each, in that order */
};

/* A micro-batch under way from an attention rank. */
struct flight {
	uint32_t n_rows;
	uint32_t *place; /* [max_rows, top_k]: row of the answers, all ranks' one after another */
	float *weights;  /* [max_rows, top_k] */
	uint8_t *rows;   /* messages to the expert ranks, one after another */
	uint8_t *replies;
	MPI_Request *sends, *receives; /* [n_expert_ranks] */
};

/* What an expert rank receives from one attention rank: one being computed, one to come. */
struct inlet {
	uint8_t *message[N_BUFFERS];
	MPI_Request receive, send;
	uint8_t *answer;
	uint32_t n_rows, next;
	int is_gone;
};

struct transport {
	struct transport_params p;
	int rank;
	size_t row_bytes, head_bytes, pairs; /* pairs: rows that a micro-batch makes at most */
	struct flight flights[4];
	uint64_t n_sent, n_received;
	uint32_t *first, *fill; /* [n_experts + 1] */
	float *gathered;        /* [hidden] */
	float *sum;             /* [max_rows, hidden] */
	struct inlet *inlets;   /* [n_attention] */
	struct transport_part *parts;
	uint32_t *owner_part; /* [parts]: the attention rank of each */
	struct transport_work work;
	uint64_t n_rounds;
	void *allocs[MAX_ALLOCS];
	size_t n_allocs;
};

static int owner(const struct transport *t, uint32_t expert)
{
	return (int)((uint64_t)expert * (uint64_t)t->p.n_expert_ranks / t->p.config->n_experts);
}

static int open_flight(struct transport *t, struct flight *f)
{
	size_t n = (size_t)t->p.n_expert_ranks;

	f->place = malloc(t->pairs * sizeof(*f->place));
	f->weights = malloc(t->pairs * sizeof(*f->weights));
	f->rows = malloc(n * t->head_bytes + t->pairs * t->row_bytes);
	f->replies = malloc(t->pairs * t->row_bytes);
	f->sends = malloc(n * sizeof(*f->sends));
	f->receives = malloc(n * sizeof(*f->receives));
	return f->place && f->weights && f->rows && f->replies && f->sends && f->receives;
}

static void await_rows(struct transport *t, int source)
{
	struct inlet *in = &t->inlets[source];

	MPI_Irecv(in->message[in->next], (int)(t->head_bytes + t->pairs * t->row_bytes), MPI_BYTE,
		source, TAG_ROWS, MPI_COMM_WORLD, &in->receive);
}

static int open_inlets(struct transport *t)
{
	size_t bytes = t->head_bytes + t->pairs * t->row_bytes;
	size_t n = (size_t)t->p.n_attention, n_parts = n * t->p.config->n_experts;

	t->inlets = calloc(n, sizeof(*t->inlets));
	t->parts = malloc(n_parts * sizeof(*t->parts));
	t->owner_part = malloc(n_parts * sizeof(*t->owner_part));
	for (size_t i = 0; t->inlets && i < n; i++) {
		struct inlet *in = &t->inlets[i];

		in->message[0] = malloc(bytes);
		in->message[1] = malloc(bytes);
		in->answer = malloc(t->pairs * t->row_bytes);
		in->send = MPI_REQUEST_NULL;
		if (!in->message[0] || !in->message[1] || !in->answer)
			return 0;
		await_rows(t, (int)i);
	}
	return t->inlets && t->parts && t->owner_part;
}

/* Expert rank: the weights of its block of experts. */
static int hold_all(const struct transport *t)
{
	const struct model_config *c = t->p.config;

	for (uint32_t i = 0; i < c->n_layers * c->n_experts; i++)
		if (owner(t, i % c->n_experts) == t->rank - t->p.n_attention &&
			t->p.hold(t->p.arg, i / c->n_experts, i % c->n_experts))
			return 0;
	return 1;
}

static int open_mpi(const struct transport_params *params, struct transport **out)
{
	const struct model_config *c = params->config;
	struct transport *t = calloc(1, sizeof(*t));
	int is_up, n_ranks, ok;

	if (!t)
		return model_fail(-ENOMEM, "mpi: no memory");
	if (params->n_attention > MAX_SOURCES)
		return free(t),
		       model_fail(-EINVAL, "mpi: more than %d attention ranks", MAX_SOURCES);
	if (params->n_replicas > 1 || params->balance_rounds)
		return free(t), model_fail(-ENOTSUP, "mpi: no replicas and no balance here");
	MPI_Initialized(&is_up);
	if (!is_up)
		MPI_Init(NULL, NULL);
	t->p = *params;
	MPI_Comm_rank(MPI_COMM_WORLD, &t->rank);
	MPI_Comm_size(MPI_COMM_WORLD, &n_ranks);
	t->row_bytes = c->hidden_size * model_dtype_bytes(params->row_dtype);
	t->head_bytes = sizeof(struct head) + c->n_experts * sizeof(uint32_t);
	t->pairs = (size_t)params->max_rows * c->top_k;
	t->first = malloc((c->n_experts + 1) * sizeof(*t->first));
	t->fill = malloc((c->n_experts + 1) * sizeof(*t->fill));
	t->gathered = malloc(c->hidden_size * sizeof(float));
	t->sum = malloc((size_t)params->max_rows * c->hidden_size * sizeof(float));
	ok = t->first && t->fill && t->gathered && t->sum;
	if (n_ranks != params->n_attention + params->n_expert_ranks)
		ok = 0, model_fail(-EINVAL, "mpi: %d ranks, %d are wanted", n_ranks,
				params->n_attention + params->n_expert_ranks);
	else if (t->rank < params->n_attention)
		for (uint32_t i = 0; i < params->n_micro_batches && ok; i++)
			ok = open_flight(t, &t->flights[i]);
	else
		ok = ok && hold_all(t) && open_inlets(t);
	*out = t;
	return ok ? 0 : -ENOMEM;
}

/* Of MPI's choice: a network that it knows may register it once for all. */
static void *alloc_mpi(struct transport *t, size_t bytes)
{
	void *base;

	if (t->n_allocs == MAX_ALLOCS ||
		MPI_Alloc_mem((MPI_Aint)(bytes + 1), MPI_INFO_NULL, &base) != MPI_SUCCESS)
		return model_fail(-ENOMEM, "mpi: no memory for %zu bytes", bytes), NULL;
	return t->allocs[t->n_allocs++] = base;
}

static void count(struct transport *t, const struct transport_batch *b)
{
	uint32_t n_experts = t->p.config->n_experts, sum = 0;

	memset(t->first, 0, (n_experts + 1) * sizeof(*t->first));
	for (size_t i = 0; i < (size_t)b->n_rows * t->p.config->top_k; i++)
		t->first[b->ids[i]]++;
	for (uint32_t e = 0; e <= n_experts; e++) {
		uint32_t n = t->first[e];

		t->first[e] = t->fill[e] = sum;
		sum += e < n_experts ? n : 0;
	}
}

/* The message to one expert rank: head, rows by expert. Its bytes. */
static void post_rank(struct transport *t, struct flight *f, const struct transport_batch *b,
	int rank, int is_end)
{
	uint32_t n_experts = t->p.config->n_experts, from = 0, to;
	struct head *h;

	while (from < n_experts && owner(t, from) < rank)
		from++;
	for (to = from; to < n_experts && owner(t, to) == rank; to++)
		;
	h = (struct head *)(f->rows + (size_t)rank * t->head_bytes + t->first[from] * t->row_bytes);
	h->layer = b->layer;
	h->n_rows = t->first[to] - t->first[from];
	h->is_end = (uint32_t)is_end;
	for (uint32_t e = 0; e < n_experts; e++)
		h->counts[e] = e >= from && e < to ? t->first[e + 1] - t->first[e] : 0;
	f->receives[rank] = MPI_REQUEST_NULL;
	if (!is_end && h->n_rows)
		MPI_Irecv(f->replies + t->first[from] * t->row_bytes,
			(int)(h->n_rows * t->row_bytes), MPI_BYTE, t->p.n_attention + rank,
			TAG_REPLIES, MPI_COMM_WORLD, &f->receives[rank]);
	MPI_Isend(h, (int)(t->head_bytes + h->n_rows * t->row_bytes), MPI_BYTE,
		t->p.n_attention + rank, TAG_ROWS, MPI_COMM_WORLD, &f->sends[rank]);
}

static int send_mpi(struct transport *t, const struct transport_batch *b)
{
	struct flight *f = &t->flights[t->n_sent++ % t->p.n_micro_batches];
	uint32_t top_k = t->p.config->top_k;

	count(t, b);
	f->n_rows = b->n_rows;
	if (b->n_rows)
		memcpy(f->weights, b->weights, (size_t)b->n_rows * top_k * sizeof(float));
	for (uint32_t i = 0; i < b->n_rows * top_k; i++) {
		uint32_t place = f->place[i] = t->fill[b->ids[i]]++;
		size_t heads = (size_t)(owner(t, (uint32_t)b->ids[i]) + 1) * t->head_bytes;

		memcpy(f->rows + heads + place * t->row_bytes,
			(const uint8_t *)b->rows + i / top_k * t->row_bytes, t->row_bytes);
	}
	for (int rank = 0; rank < t->p.n_expert_ranks; rank++)
		post_rank(t, f, b, rank, 0);
	t->n_rounds++;
	return 0;
}

/* out = residual + sum over k of weight * reply, one rounding at the end. */
static void sum_up(struct transport *t, const struct flight *f, const void *residual, void *out)
{
	const struct model_config *c = t->p.config;
	enum model_dtype dtype = t->p.row_dtype;

	model_to_f32(dtype, residual, (size_t)f->n_rows * c->hidden_size, t->sum);
	for (uint32_t row = 0; row < f->n_rows; row++) {
		float *sum = t->sum + (size_t)row * c->hidden_size;

		for (uint32_t k = 0; k < c->top_k; k++) {
			uint32_t i = row * c->top_k + k;
			const float *reply = t->gathered;
			float w = f->weights[i];

			if (dtype == MODEL_F32)
				reply = (const float *)(f->replies + f->place[i] * t->row_bytes);
			else
				model_to_f32(dtype, f->replies + f->place[i] * t->row_bytes,
					c->hidden_size, t->gathered);
			for (uint32_t d = 0; d < c->hidden_size; d++)
				sum[d] = __builtin_fmaf(w, reply[d], sum[d]);
		}
	}
	model_from_f32(dtype, t->sum, (size_t)f->n_rows * c->hidden_size, out);
}

static int receive_mpi(struct transport *t, const void *residual, void *out)
{
	struct flight *f = &t->flights[t->n_received++ % t->p.n_micro_batches];

	MPI_Waitall(t->p.n_expert_ranks, f->receives, MPI_STATUSES_IGNORE);
	MPI_Waitall(t->p.n_expert_ranks, f->sends, MPI_STATUSES_IGNORE);
	if (f->n_rows)
		sum_up(t, f, residual, out);
	return 0;
}

/* Parts of all messages of the round, by expert, then attention rank. */
static void lay_out(struct transport *t, const struct head **heads, const uint8_t **rows)
{
	t->work.n_parts = t->work.n_rows = 0;
	for (uint32_t e = 0; e < t->p.config->n_experts; e++) {
		for (int i = 0; i < t->p.n_attention; i++) {
			struct transport_part *part = &t->parts[t->work.n_parts];

			if (!heads[i] || !heads[i]->counts[e])
				continue;
			*part = (struct transport_part){
				heads[i]->layer, e, heads[i]->counts[e], t->work.n_rows, rows[i]};
			t->owner_part[t->work.n_parts++] = (uint32_t)i;
			rows[i] += part->n_rows * t->row_bytes;
			t->work.n_rows += part->n_rows;
		}
	}
}

static int take_mpi(struct transport *t, const struct transport_work **work)
{
	const struct head *heads[MAX_SOURCES];
	const uint8_t *rows[MAX_SOURCES];
	int n_left = 0;

	for (int i = 0; i < t->p.n_attention; i++) {
		struct inlet *in = &t->inlets[i];

		heads[i] = NULL;
		if (in->is_gone)
			continue;
		MPI_Wait(&in->receive, MPI_STATUS_IGNORE);
		heads[i] = (const struct head *)in->message[in->next];
		rows[i] = in->message[in->next] + t->head_bytes;
		in->n_rows = heads[i]->n_rows;
		in->next = (in->next + 1) % N_BUFFERS;
		in->is_gone = (int)heads[i]->is_end;
		if (in->is_gone)
			heads[i] = NULL;
		else
			await_rows(t, i), n_left++;
	}
	if (!n_left)
		return TRANSPORT_END;
	lay_out(t, heads, rows);
	t->work.round = t->n_rounds++;
	t->work.parts = t->parts;
	*work = &t->work;
	return 0;
}

static int answer_mpi(struct transport *t, const struct transport_work *work, const void *replies)
{
	size_t filled[MAX_SOURCES];

	for (int i = 0; i < t->p.n_attention; i++) {
		MPI_Wait(&t->inlets[i].send, MPI_STATUS_IGNORE);
		filled[i] = 0;
	}
	for (uint32_t i = 0; i < work->n_parts; i++) {
		const struct transport_part *part = &work->parts[i];
		size_t bytes = part->n_rows * t->row_bytes;

		memcpy(t->inlets[t->owner_part[i]].answer + filled[t->owner_part[i]],
			(const uint8_t *)replies + part->first_reply * t->row_bytes, bytes);
		filled[t->owner_part[i]] += bytes;
	}
	for (int i = 0; i < t->p.n_attention; i++)
		if (!t->inlets[i].is_gone && filled[i])
			MPI_Isend(t->inlets[i].answer, (int)filled[i], MPI_BYTE, i, TAG_REPLIES,
				MPI_COMM_WORLD, &t->inlets[i].send);
	return 0;
}

/* An attention rank that leaves says so, and takes what is still to come. */
static void leave(struct transport *t)
{
	struct transport_batch end = {0};
	struct flight *f = &t->flights[0];

	while (t->n_received < t->n_sent) {
		f = &t->flights[t->n_received++ % t->p.n_micro_batches];
		MPI_Waitall(t->p.n_expert_ranks, f->receives, MPI_STATUSES_IGNORE);
		MPI_Waitall(t->p.n_expert_ranks, f->sends, MPI_STATUSES_IGNORE);
	}
	count(t, &end);
	for (int rank = 0; rank < t->p.n_expert_ranks; rank++)
		post_rank(t, f, &end, rank, 1);
	MPI_Waitall(t->p.n_expert_ranks, f->sends, MPI_STATUSES_IGNORE);
}

static void close_mpi(struct transport *t)
{
	int is_over;

	if (!t)
		return;
	MPI_Finalized(&is_over);
	if (t->rank < t->p.n_attention && t->flights[0].sends && !is_over)
		leave(t);
	for (int i = 0; t->inlets && i < t->p.n_attention; i++) {
		MPI_Wait(&t->inlets[i].send, MPI_STATUS_IGNORE);
		free(t->inlets[i].message[0]);
		free(t->inlets[i].message[1]);
		free(t->inlets[i].answer);
	}
	for (int i = 0; i < 4; i++) {
		free(t->flights[i].place);
		free(t->flights[i].weights);
		free(t->flights[i].rows);
		free(t->flights[i].replies);
		free(t->flights[i].sends);
		free(t->flights[i].receives);
	}
	for (size_t i = 0; i < t->n_allocs && !is_over; i++)
		MPI_Free_mem(t->allocs[i]);
	free(t->first);
	free(t->fill);
	free(t->gathered);
	free(t->sum);
	free(t->inlets);
	free(t->parts);
	free(t->owner_part);
	free(t);
	if (!is_over)
		MPI_Finalize();
}

static void stats_mpi(const struct transport *t, struct transport_stats *stats)
{
	*stats = (struct transport_stats){.n_rounds = t->n_rounds};
}

const struct transport_ops transport_mpi = {
	.name = "mpi",
	.open = open_mpi,
	.close = close_mpi,
	.alloc = alloc_mpi,
	.send = send_mpi,
	.receive = receive_mpi,
	.take = take_mpi,
	.answer = answer_mpi,
	.stats = stats_mpi,
};
