/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Source side of a round: DISPATCH. Each warp takes a piece of a token's row, reads it once, and
 * stores it to all the slots that want it; lane k knows where the token's pair k goes. Rows are
 * plain bytes, or made on the way: bf16 cast to fp8 with scales, or values times a pair's weight.
 * The first piece of each token carries what belongs to its pairs: scales, index, weights.
 *
 * Each block first makes a table of where the rows of each rank go, in shared memory. The last
 * block writes heads and signals. A link that went down meanwhile gets no head: some of its rows
 * may have been left out.
 */
#ifndef M2N_KERNEL_CUDA_DISPATCH_CUH
#define M2N_KERNEL_CUDA_DISPATCH_CUH

#include <errno.h>
#include <m2n/status.h>

#include "kernel/cuda/rows.cuh"

#define PAIRS_A_LANE ((M2N__GPU_MAX_TOP_K + WARP - 1) / WARP)

/* Where a rank's rows go. Addresses; rows is 0 for a rank that gets none. */
struct outlet {
	uint64_t rows, scales, index;
	uint32_t first; /* row of the rank, global */
	uint32_t n_rows;
};

/* Of one lane: where its pairs' rows go. */
struct goal {
	uint64_t row, scales; /* 0: no row travels for this pair */
};

DEVICE uint32_t place_of(const struct m2n__gpu_dispatch_args *args, uint64_t round)
{
	return *at<uint32_t>(args->places, slot_of(&args->shape, round));
}

DEVICE int gets_round(
	const struct m2n__gpu_dispatch_args *args, uint32_t rank, uint64_t round)
{
	const struct m2n__gpu_tx *tx = at<struct m2n__gpu_tx>(args->tx, rank);

	return place_of(args, round) != M2N__GPU_NONE && relaxed_load_sys(&tx->live) &&
	       relaxed_load_sys(&tx->first_round) <= round &&
	       (!args->has_mask || bit_of(args->mask, rank));
}

DEVICE uint32_t rows_of(uint64_t first, uint32_t rank)
{
	return *at<uint32_t>(first, rank + 1) - *at<uint32_t>(first, rank);
}

DEVICE struct layout layout_of(const struct m2n__gpu_dispatch_args *args, uint32_t rank)
{
	return lay_out(&args->shape, rows_of(args->map.rank_first, rank),
		rows_of(args->plan.rank_first, rank), rows_of(args->plan.unique_first, rank));
}

DEVICE void make_outlets(
	const struct m2n__gpu_dispatch_args *args, uint64_t round, struct outlet *outlets)
{
	for (uint32_t j = threadIdx.x; j < args->shape.n_ranks; j += blockDim.x) {
		struct outlet o = {0, 0, 0, 0, 0};

		if (gets_round(args, j, round)) {
			struct layout l = layout_of(args, j);
			uint64_t payload = at<struct m2n__gpu_tx>(args->tx, j)->slots +
					   slot_of(&args->shape, round) * args->shape.slot_stride +
					   sizeof(struct m2n__gpu_head);

			o.first = *at<uint32_t>(args->plan.rank_first, j);
			o.n_rows = rows_of(args->plan.rank_first, j);
			o.rows = payload + l.rows;
			o.scales = payload + l.scales;
			o.index = payload + l.index;
		}
		outlets[j] = o;
	}
}

/* Index and weight of a row, for the expert rank. */
DEVICE void send_meta(const struct m2n__gpu_dispatch_args *args, const struct outlet *o,
	uint64_t pair, uint32_t row, uint32_t unique)
{
	*at<uint32_t>(o->index, row) = unique;
	if (args->shape.reduce_at_expert)
		*at<float>(o->index + lines(o->n_rows * (uint64_t)4), row) =
			*at<float>(args->plan.weight, pair);
}

DEVICE struct goal find_goal(const struct m2n__gpu_dispatch_args *args,
	const struct outlet *outlets, uint32_t token, uint32_t k, int with_meta)
{
	uint64_t pair = token * (uint64_t)args->shape.top_k + k;
	uint32_t instance, row, travels;
	const struct outlet *o;
	struct goal none = {0, 0}, goal;

	if (k >= args->shape.top_k)
		return none;
	instance = *at<uint32_t>(args->plan.pair_instance, pair);
	if (instance == M2N__GPU_NONE)
		return none;
	o = &outlets[*at<uint32_t>(args->map.rank_of, instance)];
	row = *at<uint32_t>(args->plan.first, instance) +
	      *at<uint32_t>(args->plan.pair_position, pair) - o->first;
	if (!o->rows || row >= o->n_rows)
		return none;
	if (args->shape.dedup) {
		travels = *at<uint32_t>(args->plan.pair_unique, pair);
		if (with_meta)
			send_meta(args, o, pair, row, travels & 0x7fffffff);
		if (!(travels >> 31))
			return none;
		row = travels & 0x7fffffff;
	}
	goal.row = o->rows + row * args->shape.row_bytes;
	goal.scales = o->scales + row * args->shape.scale_bytes;
	return goal;
}

/* Calls store(row, k) for each goal of the warp, k ascending; all lanes together. */
template <typename STORE>
DEVICE void for_each_goal(const struct goal *goals, uint32_t top_k, STORE store)
{
#pragma unroll
	for (uint32_t half = 0; half < PAIRS_A_LANE; half++) {
		uint32_t wanted;

		if (half * WARP >= top_k)
			break;
		wanted = vote(goals[half].row != 0);
		for (; wanted; wanted &= wanted - 1) {
			uint32_t from = lowest_bit(wanted);

			store(shuffle(goals[half].row, from), shuffle(goals[half].scales, from),
				half * WARP + from);
		}
	}
}

DEVICE void find_goals(const struct m2n__gpu_dispatch_args *args, const struct outlet *outlets,
	const struct walk *w, struct goal *goals)
{
#pragma unroll
	for (uint32_t half = 0; half < PAIRS_A_LANE; half++)
		goals[half] =
			find_goal(args, outlets, w->row, half * WARP + lane(), w->chunk == 0);
}

/* The caller's scales of a token, with the first piece of its row. */
DEVICE void send_scales(const struct m2n__gpu_dispatch_args *args, const struct walk *w,
	const struct goal *goals)
{
	if (!args->scales || !args->shape.scale_bytes || w->chunk)
		return;
	for_each_goal(goals, args->shape.top_k, [&](uint64_t, uint64_t scales, uint32_t) {
		copy_small(scales, args->scales + w->row * args->scale_stride,
			args->shape.scale_bytes);
	});
}

/* ---- rows as they are ---------------------------------------------------------------------- */

DEVICE void send_aligned(const struct m2n__gpu_dispatch_args *args, const struct outlet *outlets,
	const struct walk *w)
{
	struct span span = span_of<MOVE_VECTORS>(w->chunk, args->shape.row_bytes);
	struct goal goals[PAIRS_A_LANE];
	struct vectors<MOVE_VECTORS> l;

	row_load<1>(&l, args->rows + w->row * args->row_stride, &span);
	find_goals(args, outlets, w, goals);
	for_each_goal(goals, args->shape.top_k,
		[&](uint64_t to, uint64_t, uint32_t) { row_store<1>(&l, to, &span); });
	send_scales(args, w, goals);
}

/* Rows of any alignment. Those of a token's copies differ: it is read for each, near by. */
DEVICE void send_any(const struct m2n__gpu_dispatch_args *args, const struct outlet *outlets,
	const struct walk *w)
{
	struct goal goals[PAIRS_A_LANE];

	find_goals(args, outlets, w, goals);
	for_each_goal(goals, args->shape.top_k, [&](uint64_t to, uint64_t, uint32_t) {
		row_move_any(to, args->rows + w->row * args->row_stride, w->chunk,
			args->shape.row_bytes);
	});
	send_scales(args, w, goals);
}

/* ---- rows times weights -------------------------------------------------------------------- */

template <int DTYPE> DEVICE uint4 scale_values(uint4 v, float weight)
{
	float f[values<DTYPE>::n];

	unpack<DTYPE>(v, f);
#pragma unroll
	for (uint32_t i = 0; i < values<DTYPE>::n; i++)
		f[i] = multiply(weight, f[i]);
	return pack<DTYPE>(f);
}

DEVICE uint4 weigh(uint32_t dtype, uint4 v, float weight)
{
	if (dtype == M2N_DTYPE_F32)
		return scale_values<M2N_DTYPE_F32>(v, weight);
	if (dtype == M2N_DTYPE_BF16)
		return scale_values<M2N_DTYPE_BF16>(v, weight);
	return scale_values<M2N_DTYPE_F16>(v, weight);
}

/* Each pair's row times its weight. */
DEVICE void send_weighted(const struct m2n__gpu_dispatch_args *args,
	const struct outlet *outlets, const struct walk *w)
{
	const float *weights = at<float>(args->row_weights, w->row * (uint64_t)args->shape.top_k);
	struct span span = span_of<MOVE_VECTORS>(w->chunk, args->shape.row_bytes);
	struct goal goals[PAIRS_A_LANE];
	struct vectors<MOVE_VECTORS> l;

	row_clear(&l);
	row_load<0>(&l, args->rows + w->row * args->row_stride, &span);
	find_goals(args, outlets, w, goals);
	for_each_goal(goals, args->shape.top_k, [&](uint64_t to, uint64_t, uint32_t k) {
		struct vectors<MOVE_VECTORS> weighted;

#pragma unroll
		for (uint32_t i = 0; i < MOVE_VECTORS; i++)
			weighted.v[i] = weigh(args->shape.dtype, l.v[i], weights[k]);
		row_store<0>(&weighted, to, &span);
	});
	send_scales(args, w, goals);
}

/* ---- bf16 -> fp8 --------------------------------------------------------------------------- */

/* A lane casts 16 values, so that it stores 16 bytes; 8 lanes share a scale. */
#define CAST_VALUES 16u
#define CAST_STEPS 2u
#define CAST_PIECE (CAST_STEPS * WARP * CAST_VALUES)

struct cast {
	uint4 fp8;
	float scale;
};

/* The largest finite magnitude of the values, as bf16 bits. */
DEVICE uint32_t most_of(uint4 v)
{
	const uint32_t word[4] = {v.x, v.y, v.z, v.w};
	uint32_t most = 0;

#pragma unroll
	for (uint32_t i = 0; i < 4; i++) {
		uint32_t low = word[i] & 0x7fff, high = word[i] >> 16 & 0x7fff;

		most = low < 0x7f80 && low > most ? low : most;
		most = high < 0x7f80 && high > most ? high : most;
	}
	return most;
}

DEVICE uint32_t cast_word(uint32_t a, uint32_t b, float inverse)
{
	return fp8_from_float(multiply(bf16_to_float(a & 0xffff), inverse)) |
	       fp8_from_float(multiply(bf16_to_float(a >> 16), inverse)) << 8 |
	       fp8_from_float(multiply(bf16_to_float(b & 0xffff), inverse)) << 16 |
	       fp8_from_float(multiply(bf16_to_float(b >> 16), inverse)) << 24;
}

/* The values of 8 lanes that share a scale; zeros where the row has none. */
DEVICE struct cast cast_values(uint4 a, uint4 b)
{
	uint32_t most = most_of(a), other = most_of(b);
	float inverse;
	struct cast c;

	most = other > most ? other : most;
#pragma unroll
	for (uint32_t step = 1; step < FP8_BLOCK / CAST_VALUES; step *= 2) {
		other = shuffle_xor(most, step);
		most = other > most ? other : most;
	}
	c.scale = fp8_scale(bf16_to_float(most), &inverse);
	c.fp8 = make_uint4(cast_word(a.x, a.y, inverse), cast_word(a.z, a.w, inverse),
		cast_word(b.x, b.y, inverse), cast_word(b.z, b.w, inverse));
	return c;
}

DEVICE void load_values(const uint8_t *row, uint64_t from, uint64_t n_values, uint4 *a, uint4 *b)
{
	*a = *b = make_uint4(0, 0, 0, 0);
	if (from < n_values)
		*a = load_part<0>(row + 2 * from, 2 * (n_values - from));
	if (from + 8 < n_values)
		*b = load_part<0>(row + 2 * (from + 8), 2 * (n_values - from - 8));
}

DEVICE void send_cast(const struct m2n__gpu_dispatch_args *args, const struct outlet *outlets,
	const struct walk *w)
{
	const uint8_t *row = at<uint8_t>(args->rows) + w->row * args->row_stride;
	uint64_t n_values = args->shape.row_bytes;
	uint64_t from = w->chunk * (uint64_t)CAST_PIECE + lane() * CAST_VALUES;
	struct goal goals[PAIRS_A_LANE];
	uint4 v[CAST_STEPS][2];
	struct cast c[CAST_STEPS];

#pragma unroll
	for (uint32_t i = 0; i < CAST_STEPS; i++)
		load_values(row, from + i * WARP * CAST_VALUES, n_values, &v[i][0], &v[i][1]);
	find_goals(args, outlets, w, goals);
#pragma unroll
	for (uint32_t i = 0; i < CAST_STEPS; i++)
		c[i] = cast_values(v[i][0], v[i][1]);
	for_each_goal(goals, args->shape.top_k, [&](uint64_t to, uint64_t scales, uint32_t) {
#pragma unroll
		for (uint32_t i = 0; i < CAST_STEPS; i++) {
			uint64_t value = from + i * WARP * CAST_VALUES;

			if (value >= n_values)
				continue;
			store_part<0>(at<uint8_t>(to) + value, c[i].fp8, n_values - value);
			if (value % FP8_BLOCK == 0)
				*at<float>(scales, value / FP8_BLOCK) = c[i].scale;
		}
	});
}

/* ---- the kernel ---------------------------------------------------------------------------- */

/* Counts of rows by local expert, for all ranks. */
DEVICE void send_counts(const struct m2n__gpu_dispatch_args *args, const struct outlet *outlets)
{
	for (uint32_t i = grid_thread(); i < args->map.n_instances; i += grid_threads()) {
		uint32_t rank = *at<uint32_t>(args->map.rank_of, i);
		uint32_t first = *at<uint32_t>(args->map.rank_first, rank);
		uint64_t counts = outlets[rank].index -
				  lines(rows_of(args->map.rank_first, rank) * (uint64_t)4);

		if (outlets[rank].rows)
			*at<uint32_t>(counts, i - first) = *at<uint32_t>(args->plan.count, i);
	}
}

/* Calls send() for the pieces of all tokens. */
template <typename SEND>
DEVICE void for_each_piece(
	const struct m2n__gpu_dispatch_args *args, uint32_t n_of_row, SEND send)
{
	struct walk w = walk_start(*at<uint32_t>(args->plan.n_tokens), n_of_row);

	for (; walk_goes(&w); walk_on(&w))
		send(&w);
}

enum how { AS_THEY_ARE, CAST, WEIGHTED };

template <int HOW>
DEVICE void send_rows(const struct m2n__gpu_dispatch_args *args, const struct outlet *outlets)
{
	uint64_t bytes = args->shape.row_bytes;
	uint32_t n = n_pieces<MOVE_VECTORS>(bytes);

	if (HOW == CAST)
		for_each_piece(args, (uint32_t)((bytes + CAST_PIECE - 1) / CAST_PIECE),
			[&](const struct walk *w) { send_cast(args, outlets, w); });
	else if (HOW == WEIGHTED)
		for_each_piece(args, n,
			[&](const struct walk *w) { send_weighted(args, outlets, w); });
	else if (!((args->rows | args->row_stride | bytes) & 15))
		for_each_piece(args, n,
			[&](const struct walk *w) { send_aligned(args, outlets, w); });
	else
		for_each_piece(args, n,
			[&](const struct walk *w) { send_any(args, outlets, w); });
}

/* A rank's head and its signal. */
DEVICE void signal_rank(const struct m2n__gpu_dispatch_args *args, uint32_t rank, uint64_t round)
{
	const struct m2n__gpu_tx *tx = at<struct m2n__gpu_tx>(args->tx, rank);
	uint32_t slot = slot_of(&args->shape, round);
	struct m2n__gpu_head *head =
		at<struct m2n__gpu_head>(tx->slots + slot * args->shape.slot_stride);
	uint64_t reply_first = args->shape.reduce_at_expert ? args->plan.unique_first
							    : args->plan.rank_first;

	head->body = 0;
	head->bytes = layout_of(args, rank).end;
	head->place = *at<uint32_t>(reply_first, rank) * args->shape.out_row_bytes +
		      place_of(args, round) * args->shape.reply_region_bytes;
	head->n_rows = rows_of(args->plan.rank_first, rank);
	head->n_sent = rows_of(args->plan.unique_first, rank);
	head->map_digest = args->map.digest;
	head->sink = args->shape.self_source;
	head->n_body_puts = head->flags = 0;
	head->reserved[0] = head->reserved[1] = 0;
	/* R20: all of the slot before its signal, pairs with A20 in recv.cuh, A1 in core/link.h. */
	release_store_sys(&head->signal, round + 1);
	if (tx->post) {
		struct m2n__gpu_post *post = at<struct m2n__gpu_post>(tx->post, slot);

		post->head_bytes = sizeof(*head) + head->bytes;
		post->body_at = post->body_bytes = 0;
		/* R21: staging and post before seq, pairs with the progress thread's load. */
		release_store_sys(&post->seq, round + 1);
	}
	count_round(args->counts, rank, rows_of(args->plan.rank_first, rank),
		rows_of(args->plan.unique_first, rank) *
			(args->shape.row_bytes + args->shape.scale_bytes));
}

/* The last block: heads, signals, and who got them. */
static __device__ void signal_all(const struct m2n__gpu_dispatch_args *args, uint64_t round)
{
	SHARED(uint64_t[M2N__GPU_MASK_WORDS], part);
	SHARED(uint64_t[M2N__GPU_MASK_WORDS], lost);
	SHARED(uint32_t, n_lost);
	uint64_t *out = at<uint64_t>(
		args->part, slot_of(&args->shape, round) * (uint64_t)M2N__GPU_MASK_WORDS);

	if (threadIdx.x < M2N__GPU_MASK_WORDS)
		part[threadIdx.x] = lost[threadIdx.x] = 0;
	if (threadIdx.x == 0)
		n_lost = 0;
	block_sync();
	for (uint32_t j = threadIdx.x; j < args->shape.n_ranks; j += blockDim.x) {
		uint32_t n = rows_of(args->plan.rank_first, j);

		if (gets_round(args, j, round)) {
			signal_rank(args, j, round);
			set_bit(part, j);
		} else if (n) {
			atomic_add(&n_lost, n);
			set_bit(lost, j);
		}
	}
	block_sync();
	if (threadIdx.x < M2N__GPU_MASK_WORDS)
		out[threadIdx.x] = part[threadIdx.x];
	if (threadIdx.x == 0 && place_of(args, round) == M2N__GPU_NONE)
		tell(args->report, round, -ENOBUFS, n_lost, lost);
	else if (threadIdx.x == 0 && n_lost)
		tell(args->report, round, M2N_PARTIAL, n_lost, lost);
}

template <int HOW> DEVICE void dispatch(const struct m2n__gpu_dispatch_args *args)
{
	struct outlet *outlets = (struct outlet *)shared_room();
	struct m2n__gpu_rounds *rounds = at<struct m2n__gpu_rounds>(args->rounds);
	uint64_t round = rounds->send;

	make_outlets(args, round, outlets);
	block_sync();
	send_counts(args, outlets);
	send_rows<HOW>(args, outlets);
	if (!is_last_block(&rounds->ticket[M2N__GPU_DISPATCH]))
		return;
	signal_all(args, round);
	if (threadIdx.x == 0)
		rounds->send = round + 1;
}

extern "C" __global__ void __launch_bounds__(256, 3) m2n_dispatch(
	const __grid_constant__ struct m2n__gpu_dispatch_args args)
{
	dispatch<AS_THEY_ARE>(&args);
}

extern "C" __global__ void __launch_bounds__(256) m2n_dispatch_cast(
	const __grid_constant__ struct m2n__gpu_dispatch_args args)
{
	dispatch<CAST>(&args);
}

extern "C" __global__ void __launch_bounds__(256) m2n_dispatch_weighted(
	const __grid_constant__ struct m2n__gpu_dispatch_args args)
{
	dispatch<WEIGHTED>(&args);
}

#endif
