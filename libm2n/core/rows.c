/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rows on their way out. A travelling row is a token's row (with dedup once per rank, else once
 * per routed pair); `made` rows are those that have to be computed first: a cast to fp8, or a
 * weight per pair.
 */
#include "core/rows.h"

#include <string.h>

#include "util/error.h"

struct row {
	const uint8_t *bytes;
	const uint8_t *scales;
};

/* Cast or weighted in `room`; or as it is, with scales. */
static struct row make_row(struct m2n_channel *ch, const struct m2n__open *open, uint32_t token,
	uint32_t pair, uint8_t *room, uint8_t *scale_room)
{
	const struct m2n_dispatch_send_params *p = &open->send;
	const struct m2n__kernels *kernels = ch->ctx->kernels;
	const uint8_t *src = (const uint8_t *)p->rows + token * p->row_stride;
	struct row row = {src, NULL};

	if (ch->p.cast) {
		kernels->cast_fp8(
			room, (float *)scale_room, (const uint16_t *)src, ch->p.row_bytes);
		return (struct row){room, scale_room};
	}
	if (ch->p.scale_bytes)
		row.scales = (const uint8_t *)p->scales + token * p->scale_stride;
	if (p->row_weights) {
		kernels->scale[ch->p.dtype](room, src, p->row_weights[pair],
			ch->p.row_bytes / m2n__dtype_bytes(ch->p.dtype));
		row.bytes = room;
	}
	return row;
}

/* The bytes of token `token` for routed pair `pair`, made in `room` if they must be. */
static inline struct row get_row(struct m2n_channel *ch, const struct m2n__open *open,
	uint32_t token, uint32_t pair, uint8_t *room, uint8_t *scale_room)
{
	if (ch->p.scale_bytes || open->send.row_weights) /* a cast has scales */
		return make_row(ch, open, token, pair, room, scale_room);
	return (struct row){(const uint8_t *)open->send.rows + token * open->send.row_stride, NULL};
}

static int streams(const struct m2n_channel *ch, size_t n_rows)
{
	return n_rows * ch->p.row_bytes > ch->ctx->options.nt_bytes;
}

void m2n__rows_store_range(struct m2n_channel *ch, const struct m2n__open *open, uint32_t first,
	uint32_t end, uint8_t *rows, uint8_t *scales)
{
	const struct m2n_plan *plan = open->send.plan;
	int stream = streams(ch, end - first);

	for (uint32_t u = first; u < end; u++) {
		uint32_t pair = ch->p.dedup ? 0 : plan->row_pair[u];
		struct row row = get_row(
			ch, open, plan->unique_token[u], pair, ch->scratch, ch->scratch_scales);

		m2n__move(ch, stream, rows, row.bytes, ch->p.row_bytes);
		rows += ch->p.row_bytes;
		if (row.scales) {
			memcpy(scales, row.scales, ch->p.scale_bytes);
			scales += ch->p.scale_bytes;
		}
	}
	if (stream)
		ch->ctx->kernels->fence();
}

/* Each token's row to all ranks that want it: read once. */
static void store_tokens(struct m2n_channel *ch, const struct m2n__open *open)
{
	const struct m2n_plan *plan = open->send.plan;
	uint32_t top_k = ch->p.top_k;
	size_t bytes = ch->p.row_bytes;
	int stream = streams(ch, plan->n_rows);

	for (uint32_t t = 0; t < plan->n_tokens; t++) {
		void *dst[M2N__MAX_TOP_K], *to;
		struct row row = {NULL, NULL};
		uint32_t n = 0;

		for (uint32_t pair = t * top_k; pair < (t + 1) * top_k; pair++) {
			uint32_t j = plan->pair_rank[pair], at;

			if (plan->pair_row[pair] < 0 || !ch->row_base[j])
				continue;
			at = (uint32_t)plan->pair_row[pair] - plan->rank_first[j];
			if (!row.bytes || open->send.row_weights)
				row = get_row(ch, open, t, pair, ch->scratch, ch->scratch_scales);
			if (row.scales)
				memcpy(ch->scale_base[j] + at * ch->p.scale_bytes, row.scales,
					ch->p.scale_bytes);
			to = ch->row_base[j] + at * bytes;
			if (stream && !open->send.row_weights)
				dst[n++] = to;
			else
				m2n__move(ch, stream, to, row.bytes, bytes);
		}
		if (n)
			ch->ctx->kernels->scatter(dst, n, row.bytes, bytes);
	}
	if (stream)
		ch->ctx->kernels->fence();
}

void m2n__rows_store(struct m2n_channel *ch, const struct m2n__open *open)
{
	const struct m2n_plan *plan = open->send.plan;

	if (!ch->p.dedup) {
		store_tokens(ch, open);
		return;
	}
	for (uint32_t j = 0; j < ch->dispatch->n_tx; j++)
		if (ch->row_base[j])
			m2n__rows_store_range(ch, open, plan->unique_first[j],
				plan->unique_first[j + 1], ch->row_base[j], ch->scale_base[j]);
}

static int reserve(struct m2n_channel *ch)
{
	size_t pairs = (size_t)ch->p.max_tokens * ch->p.top_k, all;
	int rc;

	if (ch->made_rows.mem)
		return 0;
	ch->made_bytes = m2n__lines(pairs * (ch->p.row_bytes + ch->p.scale_bytes));
	all = ch->p.depth * ch->made_bytes;
	rc = m2n__staging_alloc(ch->ctx, all, &ch->made_rows);
	return rc ? m2n__error_at(rc, "%s: staging for rows", ch->title) : 0;
}

int m2n__rows_prepare(struct m2n_channel *ch, struct m2n__open *open)
{
	const struct m2n_dispatch_send_params *p = &open->send;
	size_t last = p->plan->n_tokens ? p->plan->n_tokens - 1 : 0;
	int given_scales = ch->p.scale_bytes && !ch->p.cast;

	open->make = ch->p.cast || p->row_weights;
	if (!p->plan->n_rows)
		return 0;
	open->rows_reg =
		m2n__mem_find(ch->ctx, p->rows, last * p->row_stride + ch->p.row_bytes);
	open->scales_reg = given_scales
				   ? m2n__mem_find(ch->ctx, p->scales,
					     last * p->scale_stride + ch->p.scale_bytes)
				   : NULL;
	if (ch->ctx->needs_mr && (!open->rows_reg || (given_scales && !open->scales_reg)))
		open->make = 1;
	return open->make ? reserve(ch) : 0;
}

/* Adds a piece, joined to the last one where they are neighbours in memory. */
static size_t add_piece(struct m2n__piece *pieces, size_t n, size_t base, const void *bytes,
	size_t size, const struct m2n__reg *reg)
{
	if (n > base && (const uint8_t *)pieces[n - 1].base + pieces[n - 1].bytes == bytes) {
		pieces[n - 1].bytes += size;
		return n;
	}
	pieces[n] = (struct m2n__piece){bytes, size, reg};
	return n + 1;
}

/* Rows [first, end) and their scales as they travel, in staging. */
static void make_rows(struct m2n_channel *ch, const struct m2n__open *open, uint32_t first,
	uint32_t end, uint8_t *rows, uint8_t *scales, struct m2n__tx *tx)
{
	const struct m2n_plan *plan = open->send.plan;
	size_t row_bytes = ch->p.row_bytes, scale_bytes = ch->p.scale_bytes;

	for (uint32_t u = first; u < end; u++) {
		uint32_t pair = ch->p.dedup ? 0 : plan->row_pair[u];
		uint8_t *row_at = rows + u * row_bytes, *scale_at = scales + u * scale_bytes;
		struct row row = get_row(ch, open, plan->unique_token[u], pair, row_at, scale_at);

		if (row.bytes != row_at)
			ch->ctx->kernels->copy(row_at, row.bytes, row_bytes);
		if (row.scales && row.scales != scale_at)
			memcpy(scale_at, row.scales, scale_bytes);
		m2n__tally_add(&tx->tally.staged_bytes, row_bytes + scale_bytes);
	}
}

size_t m2n__rows_gather(struct m2n_channel *ch, const struct m2n__open *open, uint32_t slot,
	uint32_t first, uint32_t end, size_t scale_room, struct m2n__piece *pieces, size_t n,
	struct m2n__tx *tx)
{
	const struct m2n_plan *plan = open->send.plan;
	size_t row_bytes = ch->p.row_bytes, scale_bytes = ch->p.scale_bytes, base = n;
	size_t used = (end - first) * scale_bytes;
	const struct m2n__reg *rows_reg = open->make ? ch->made_rows.reg : open->rows_reg;
	const struct m2n__reg *scales_reg = open->make ? ch->made_rows.reg : open->scales_reg;
	uint8_t *scales = NULL, *rows = NULL;

	if (open->make) {
		scales = (uint8_t *)ch->made_rows.mem->base + slot * ch->made_bytes;
		rows = scales + plan->n_unique * scale_bytes;
		make_rows(ch, open, first, end, rows, scales, tx);
	}
	for (uint32_t u = first; scale_bytes && u < end; u++)
		n = add_piece(pieces, n, base,
			scales ? scales + u * scale_bytes
			       : get_row(ch, open, plan->unique_token[u], 0, NULL, NULL).scales,
			scale_bytes, scales_reg);
	if (used < scale_room) /* the last line of the staging is never written */
		pieces[n++] = (struct m2n__piece){m2n__tx_stage(ch->dispatch, tx, slot) +
							  ch->dispatch->spec.stage_bytes -
							  M2N__CACHE_LINE,
			scale_room - used, tx->stage.reg};
	base = n; /* rows may go to another place than scales */
	for (uint32_t u = first; u < end; u++)
		n = add_piece(pieces, n, base,
			rows ? rows + u * row_bytes
			     : get_row(ch, open, plan->unique_token[u], 0, NULL, NULL).bytes,
			row_bytes, rows_reg);
	return n;
}
