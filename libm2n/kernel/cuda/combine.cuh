/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sink side: AWAIT_REPLIES waits for the heads of all ranks that got one, COMBINE sums each
 * token's replies in the order of k from the region they landed in. Each warp takes a span of a
 * token's row; lane k knows where the reply of pair k lies and what it weighs. Replies of
 * SUM_TERMS pairs are under way at once.
 */
#ifndef M2N_KERNEL_CUDA_COMBINE_CUH
#define M2N_KERNEL_CUDA_COMBINE_CUH

#include "kernel/cuda/dispatch.cuh"
#include "kernel/cuda/sum.cuh"
#include "kernel/cuda/wait.cuh"

#define SUM_TERMS 4u

/* ---- AWAIT_REPLIES ------------------------------------------------------------------------- */

DEVICE uint64_t *slot_mask(const struct m2n__gpu_combine_args *args, uint64_t masks, uint64_t round)
{
	return at<uint64_t>(masks, slot_of(&args->shape, round) * (uint64_t)M2N__GPU_MASK_WORDS);
}

/* One thread: waits for a rank. PEER_* of it; a rank of no rows is never missing. */
DEVICE uint32_t await_rank(
	const struct m2n__gpu_combine_args *args, const struct wait *w, uint32_t rank)
{
	uint64_t reply_first = args->shape.reduce_at_expert ? args->plan.unique_first
							    : args->plan.rank_first;
	uint32_t n = rows_of(reply_first, rank), state = PEER_DEAD;
	const struct m2n__gpu_head *head;

	if (bit_of(slot_mask(args, args->part, w->round), rank))
		state = await_head(w, rank, &head);
	if (state == PEER_PRESENT) {
		state = head->n_rows == n && !head->flags ? PEER_PRESENT : PEER_DEAD;
		take(w, rank, head);
		count_round(args->counts, rank, head->n_rows,
			head->n_rows * args->shape.out_row_bytes);
	}
	if (state == PEER_ABSENT)
		state = PEER_DEAD; /* replaced: this round's replies do not come */
	return state == PEER_PRESENT || n ? state : (uint32_t)PEER_ABSENT;
}

/*
 * One thread: where the replies of this round lie, for COMBINE, and of the slot's next round. With
 * a rank missing that one is another: what was sent to this one may still come.
 */
DEVICE void choose_place(const struct m2n__gpu_combine_args *args, uint64_t round, int is_missing)
{
	uint32_t depth = args->shape.depth, slot = slot_of(&args->shape, round);
	uint32_t *next = at<uint32_t>(args->places, slot), *held = at<uint32_t>(args->held);
	uint32_t place = *next, other = place < depth ? place + depth : place - depth;

	at<struct m2n__gpu_rounds>(args->rounds)->place = place;
	if (place == M2N__GPU_NONE) {
		other = relaxed_load_sys(&held[slot]) ? slot + depth : slot;
	} else if (is_missing) {
		/* R25: this round is over before the host may clear it, pairs with its load. */
		release_store_sys(&held[place], 1);
	} else {
		return;
	}
	/* A25: pairs with the host's release, when nobody writes there any more. */
	*next = acquire_load_sys(&held[other]) ? M2N__GPU_NONE : other;
}

/* One thread: the worst reason and whose it is. Is anyone missing? */
DEVICE int tell_missing(
	const struct m2n__gpu_combine_args *args, const struct verdict *v, uint64_t round)
{
	uint32_t n = 0;

	if (!code_of(v->worst))
		return 0;
	for (uint32_t j = 0; j < args->shape.n_ranks; j++)
		n += bit_of(v->blamed, j) ? rows_of(args->plan.rank_first, j) : 0;
	tell(args->report, round, code_of(v->worst), n, v->blamed);
	return 1;
}

extern "C" __global__ void __launch_bounds__(1024) m2n_await_replies(
	const __grid_constant__ struct m2n__gpu_combine_args args)
{
	SHARED(uint8_t[M2N__GPU_MAX_PEERS], state);
	SHARED(struct verdict, verdict);
	struct m2n__gpu_rounds *rounds = at<struct m2n__gpu_rounds>(args.rounds);
	uint64_t round = rounds->combine;
	struct wait w = {args.rx, args.alive, round, deadline_of(args.timeout_ns),
		args.shape.reply_slot_stride, slot_of(&args.shape, round)};

	for (uint32_t j = threadIdx.x; j < args.shape.n_ranks; j += blockDim.x)
		state[j] = (uint8_t)await_rank(&args, &w, j);
	block_sync();
	judge(args.shape.n_ranks, state, &verdict);
	if (threadIdx.x < M2N__GPU_MASK_WORDS)
		slot_mask(&args, args.answered, round)[threadIdx.x] = verdict.present[threadIdx.x];
	if (threadIdx.x == 0)
		choose_place(&args, round, tell_missing(&args, &verdict, round));
}

/* ---- COMBINE ------------------------------------------------------------------------------- */

/* Of the round. */
struct replies {
	uint64_t rows; /* address of the first */
	const uint64_t *answered;
};

DEVICE float weight_of(const struct m2n__gpu_combine_args *args, uint64_t pair)
{
	if (args->unit_weights || args->shape.reduce_at_expert)
		return 1;
	return *at<float>(args->weights ? args->weights : args->plan.weight, pair);
}

/* The reply of a pair; row 0: none. *is_missing: it had a row, but no reply. */
DEVICE struct term find_term(const struct m2n__gpu_combine_args *args,
	const struct replies *replies, uint32_t token, uint32_t k, int *is_missing)
{
	uint64_t pair = token * (uint64_t)args->shape.top_k + k;
	uint32_t instance = M2N__GPU_NONE, rank, row;
	struct term term = {0, 0};

	*is_missing = 0;
	if (k < args->shape.top_k)
		instance = *at<uint32_t>(args->plan.pair_instance, pair);
	if (instance == M2N__GPU_NONE)
		return term;
	rank = *at<uint32_t>(args->map.rank_of, instance);
	*is_missing = !bit_of(replies->answered, rank);
	if (*is_missing)
		return term;
	row = *at<uint32_t>(args->plan.first, instance) +
	      *at<uint32_t>(args->plan.pair_position, pair);
	if (args->shape.reduce_at_expert) {
		row = *at<uint32_t>(args->plan.pair_unique, pair);
		if (!(row >> 31))
			return term;
		row = (row & 0x7fffffff) + *at<uint32_t>(args->plan.unique_first, rank);
	}
	term.row = replies->rows + row * args->shape.out_row_bytes;
	term.weight = weight_of(args, pair);
	return term;
}

/* A piece of one token's row. */
struct piece {
	uint32_t token;
	struct span span;
};

DEVICE uint64_t reply_out(
	const struct m2n__gpu_combine_args *args, const struct piece *p, uint32_t k)
{
	return args->replies +
	       (p->token * (uint64_t)args->shape.top_k + k) * args->shape.out_row_bytes;
}

/* Pairs first + lane: those of `wanted` added to the sum in order, SUM_TERMS loads at a time. */
template <int DTYPE, int ALIGNED>
DEVICE void add_terms(const struct m2n__gpu_combine_args *args, const struct piece *p,
	const struct term *mine, uint32_t wanted, uint32_t first, struct sum<DTYPE> *sum)
{
	while (wanted) {
		loaded l[SUM_TERMS];
		struct term term[SUM_TERMS];
		uint32_t from[SUM_TERMS];

#pragma unroll
		for (uint32_t i = 0; i < SUM_TERMS; i++) {
			from[i] = wanted ? lowest_bit(wanted) : 0;
			term[i].row = wanted ? shuffle(mine->row, from[i]) : 0;
			term[i].weight = float_of(shuffle(bits_of(mine->weight), from[i]));
			wanted &= wanted - 1;
			if (term[i].row)
				row_load<ALIGNED>(&l[i], term[i].row, &p->span);
		}
#pragma unroll
		for (uint32_t i = 0; i < SUM_TERMS; i++) {
			if (!term[i].row)
				break;
			sum_add_loaded<DTYPE>(sum, &l[i], term[i].weight);
			if (args->replies)
				row_store<ALIGNED>(
					&l[i], reply_out(args, p, first + from[i]), &p->span);
		}
	}
}

/* Replies that there are not are zeros where all are wanted. */
template <int ALIGNED>
DEVICE void clear_replies(const struct m2n__gpu_combine_args *args, const struct piece *p,
	uint32_t wanted, uint32_t first)
{
	loaded zeros;

	if (!args->replies)
		return;
	row_clear(&zeros);
	for (uint32_t k = first; k < args->shape.top_k && k < first + WARP; k++)
		if (!(wanted >> (k - first) & 1))
			row_store<ALIGNED>(&zeros, reply_out(args, p, k), &p->span);
}

template <int DTYPE, int ALIGNED>
static __device__ void combine_piece(
	const struct m2n__gpu_combine_args *args, const struct replies *r, const struct walk *w)
{
	struct piece p = {w->row, span_of<SUM_VECTORS>(w->chunk, args->shape.out_row_bytes)};
	uint32_t n_missing = 0;
	struct sum<DTYPE> sum;
	loaded residual;

	row_clear(&residual);
	if (args->residual)
		row_load<ALIGNED>(
			&residual, args->residual + p.token * args->residual_stride, &p.span);
	sum_start<DTYPE>(&sum, &residual);
	for (uint32_t first = 0; first < args->shape.top_k; first += WARP) {
		int is_missing;
		struct term mine =
			find_term(args, r, p.token, first + lane(), &is_missing);
		uint32_t wanted = vote(mine.row != 0);

		n_missing += count_bits(vote(is_missing));
		add_terms<DTYPE, ALIGNED>(args, &p, &mine, wanted, first, &sum);
		clear_replies<ALIGNED>(args, &p, wanted, first);
	}
	if (args->out)
		sum_store<DTYPE, ALIGNED>(&sum, args->out + p.token * args->out_stride, &p.span);
	if (args->missing && w->chunk == 0 && lane() == 0)
		*at<uint8_t>(args->missing, p.token) = (uint8_t)n_missing; /* top_k is 64 at most */
}

template <int DTYPE>
DEVICE void combine_tokens(const struct m2n__gpu_combine_args *args, const struct replies *replies)
{
	uint64_t bytes = args->shape.out_row_bytes;
	uint32_t n_tokens = *at<uint32_t>(args->plan.n_tokens);
	struct walk w = walk_start(n_tokens, n_pieces<SUM_VECTORS>(bytes));
	uint64_t all = args->residual | args->out | args->replies | replies->rows |
		       args->out_stride | bytes;
	int aligned;

	if (args->residual)
		all |= args->residual_stride;
	aligned = !(all & 15);
	for (; walk_goes(&w); walk_on(&w)) {
		if (aligned)
			combine_piece<DTYPE, 1>(args, replies, &w);
		else
			combine_piece<DTYPE, 0>(args, replies, &w);
	}
}

extern "C" __global__ void __launch_bounds__(256) m2n_combine(
	const __grid_constant__ struct m2n__gpu_combine_args args)
{
	struct m2n__gpu_rounds *rounds = at<struct m2n__gpu_rounds>(args.rounds);
	uint64_t round = rounds->combine;
	struct replies replies = {
		args.region + rounds->place * args.shape.reply_region_bytes,
		slot_mask(&args, args.answered, round)};

	if (args.shape.dtype == M2N_DTYPE_F32)
		combine_tokens<M2N_DTYPE_F32>(&args, &replies);
	else if (args.shape.dtype == M2N_DTYPE_BF16)
		combine_tokens<M2N_DTYPE_BF16>(&args, &replies);
	else
		combine_tokens<M2N_DTYPE_F16>(&args, &replies);
	if (is_last_block(&rounds->ticket[M2N__GPU_COMBINE]) && threadIdx.x == 0)
		rounds->combine = round + 1;
}

/* ---- DOT ----------------------------------------------------------------------------------- */

#define PARTIALS 16u

/*
 * 16 lanes for a pair, a partial sum each, as kernel.h's dot has it: value i goes to partial
 * i % 16. DOT_AHEAD values of each are under way at once.
 */
#define DOT_AHEAD 8u

template <int DTYPE>
DEVICE float dot_partial(const uint8_t *a, const uint8_t *b, uint64_t n_values, uint32_t partial)
{
	float sum = 0;
	uint64_t i = partial;

	for (; i + PARTIALS * (DOT_AHEAD - 1) < n_values; i += PARTIALS * DOT_AHEAD) {
		float x[DOT_AHEAD], y[DOT_AHEAD];

#pragma unroll
		for (uint32_t j = 0; j < DOT_AHEAD; j++) {
			x[j] = load_value<DTYPE>(a, i + PARTIALS * j);
			y[j] = load_value<DTYPE>(b, i + PARTIALS * j);
		}
#pragma unroll
		for (uint32_t j = 0; j < DOT_AHEAD; j++)
			sum = fused(x[j], y[j], sum);
	}
	for (; i < n_values; i += PARTIALS)
		sum = fused(load_value<DTYPE>(a, i), load_value<DTYPE>(b, i), sum);
	return sum;
}

template <int DTYPE> DEVICE void dot_pairs(const struct m2n__gpu_dot_args *args)
{
	uint64_t n_pairs = args->n_tokens * (uint64_t)args->shape.top_k;
	uint64_t step = grid_threads() / PARTIALS;
	uint32_t partial = lane() % PARTIALS;

	for (uint64_t pair = grid_thread() / PARTIALS;
		pair - grid_thread() / PARTIALS % 2 < n_pairs; pair += step) {
		const uint8_t *dy =
			at<uint8_t>(args->dy) + pair / args->shape.top_k * args->dy_stride;
		const uint8_t *reply =
			at<uint8_t>(args->replies) + pair * args->shape.out_row_bytes;
		float sum = 0;

		if (pair < n_pairs)
			sum = dot_partial<DTYPE>(dy, reply, args->shape.n_values, partial);
#pragma unroll
		for (uint32_t half = PARTIALS / 2; half > 0; half /= 2)
			sum = add(sum, float_of(shuffle_xor(bits_of(sum), half)));
		if (pair < n_pairs && partial == 0)
			*at<float>(args->grad, pair) = sum;
	}
}

extern "C" __global__ void __launch_bounds__(256) m2n_dot(
	const __grid_constant__ struct m2n__gpu_dot_args args)
{
	if (args.shape.dtype == M2N_DTYPE_F32)
		dot_pairs<M2N_DTYPE_F32>(&args);
	else if (args.shape.dtype == M2N_DTYPE_BF16)
		dot_pairs<M2N_DTYPE_BF16>(&args);
	else
		dot_pairs<M2N_DTYPE_F16>(&args);
}

#endif
