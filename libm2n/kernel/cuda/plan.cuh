/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Routing on the device: route/plan.h's order, replicas, capacity and masks, without a sort.
 *
 * PLAN_RANKS, a block for each rank, walks the tokens and numbers those (or the pairs) that go
 * there: travelling rows. PLAN, a block for some instances, walks all pairs; a thread notes which
 * of its pairs match in a bit mask, sums over warps give each warp's first position, and ballots
 * the order inside a warp. Pairs that match no instance are settled by one thread each. The last
 * block makes prefix sums and the summary.
 *
 * Links may come and go while this runs, so who is usable is agreed on first: in a plan's scratch
 * each word of the set is decided by the block that gets there first, for both kernels.
 */
#ifndef M2N_KERNEL_CUDA_PLAN_CUH
#define M2N_KERNEL_CUDA_PLAN_CUH

#include <errno.h>
#include <m2n/status.h>

#include "kernel/cuda/device.h"

#define USABLE_WORDS (M2N__GPU_MAX_PEERS / 32)
#define DECIDED ((uint64_t)1 << 63)

/* struct m2n__gpu_plan's scratch. */
struct plan_work {
	uint64_t usable[USABLE_WORDS]; /* DECIDED and 32 ranks; 0: not decided yet */
	uint32_t ticket;
	uint32_t bad; /* inverse of the first pair with a bad id; 0: none */
	uint32_t n_dropped, n_dropped_lost;
	uint32_t rank_rows[]; /* travelling rows of each rank, before any is dropped */
};

DEVICE struct plan_work *work_of(const struct m2n__gpu_plan_args *args)
{
	return at<struct plan_work>(args->plan.work);
}

DEVICE int has_ranks_pass(const struct m2n__gpu_shape *shape)
{
	return shape->dedup || shape->rank_capacity;
}

/* ---- who is usable ------------------------------------------------------------------------- */

DEVICE int is_usable_now(const struct m2n__gpu_plan_args *args, uint32_t rank)
{
	if (rank >= args->shape.n_ranks || (args->has_mask && !bit_of(args->mask, rank)))
		return 0;
	return !args->tx || relaxed_load_sys(&at<struct m2n__gpu_tx>(args->tx, rank)->live);
}

/* All threads: fills usable[USABLE_WORDS] in shared memory; are all ranks usable? */
DEVICE int agree_on_usable(const struct m2n__gpu_plan_args *args, uint32_t *usable)
{
	uint32_t n_ranks = args->shape.n_ranks, n_words = (n_ranks + 31) / 32, all = 1, total;

	for (uint32_t w = warp(); w < n_words; w += blockDim.x / WARP) {
		uint64_t mine = DECIDED | vote(is_usable_now(args, w * 32 + lane()));
		uint64_t first = 0;

		if (lane() == 0)
			first = atomic_swap_if(&work_of(args)->usable[w], 0, mine);
		if (lane() == 0)
			usable[w] = (uint32_t)(first ? first : mine);
	}
	block_sync();
	for (uint32_t w = threadIdx.x; w < n_words; w += blockDim.x) {
		uint32_t rest = n_ranks - w * 32;

		all &= usable[w] == (rest < 32 ? (1u << rest) - 1 : 0xffffffffu);
	}
	(void)block_scan(!all, &total);
	return total == 0;
}

DEVICE int is_usable(const uint32_t *usable, uint32_t rank)
{
	return usable[rank / 32] >> rank % 32 & 1;
}

/* ---- owners -------------------------------------------------------------------------------- */

/* Which pairs of an expert are an instance's: those with (source + token) % n_live == turn. */
struct share {
	uint32_t expert;
	uint32_t n_live; /* owners; 0: none of the pairs */
	uint32_t turn;
};

DEVICE struct share share_of(
	const struct m2n__gpu_plan_args *args, const uint32_t *usable, uint32_t instance)
{
	struct share s = {*at<uint32_t>(args->map.expert_of, instance), 0, 0};
	uint32_t end;

	if (!is_usable(usable, *at<uint32_t>(args->map.rank_of, instance)))
		return s;
	end = *at<uint32_t>(args->map.owner_first, s.expert + 1);
	for (uint32_t i = *at<uint32_t>(args->map.owner_first, s.expert); i < end; i++) {
		uint32_t owner = *at<uint32_t>(args->map.owner_instance, i);

		if (owner == instance)
			s.turn = s.n_live;
		s.n_live += is_usable(usable, *at<uint32_t>(args->map.rank_of, owner));
	}
	return s;
}

DEVICE int is_turn(const struct m2n__gpu_plan_args *args, const struct share *s, uint32_t token)
{
	return s->n_live == 1 ||
	       (s->n_live && (args->shape.self_source + token) % s->n_live == s->turn);
}

/* ---- PLAN_RANKS ---------------------------------------------------------------------------- */

#define TABLE_EXPERTS 4096u /* as many experts are looked up in shared memory */

/* The instances of a rank: where an expert is among them, if it is. */
struct rank_table {
	uint32_t first, end; /* instances */
	int is_direct;       /* `instance` has the answer */
	uint16_t instance[TABLE_EXPERTS]; /* number within the rank + 1; 0: not there */
};

DEVICE void make_table(
	const struct m2n__gpu_plan_args *args, uint32_t rank, struct rank_table *table)
{
	uint32_t n = args->shape.n_experts;

	if (threadIdx.x == 0) {
		table->first = *at<uint32_t>(args->map.rank_first, rank);
		table->end = *at<uint32_t>(args->map.rank_first, rank + 1);
		table->is_direct = n <= TABLE_EXPERTS;
	}
	for (uint32_t e = threadIdx.x; e < n && e < TABLE_EXPERTS; e += blockDim.x)
		table->instance[e] = 0;
	block_sync();
	for (uint32_t i = table->first + threadIdx.x; table->is_direct && i < table->end;
		i += blockDim.x)
		table->instance[*at<uint32_t>(args->map.expert_of, i)] =
			(uint16_t)(i - table->first + 1);
	block_sync();
}

/* The rank's instance of an expert, NONE without. */
DEVICE uint32_t find_instance(
	const struct m2n__gpu_plan_args *args, const struct rank_table *table, uint32_t expert)
{
	uint32_t end;

	if (table->is_direct)
		return table->instance[expert] ? table->first + table->instance[expert] - 1
					       : M2N__GPU_NONE;
	end = *at<uint32_t>(args->map.owner_first, expert + 1);
	for (uint32_t i = *at<uint32_t>(args->map.owner_first, expert); i < end; i++) {
		uint32_t owner = *at<uint32_t>(args->map.owner_instance, i);

		if (owner >= table->first && owner < table->end)
			return owner;
	}
	return M2N__GPU_NONE;
}

/* Which of a token's pairs go to the rank. */
DEVICE uint64_t pairs_of_token(const struct m2n__gpu_plan_args *args, const uint32_t *usable,
	const struct rank_table *table, uint32_t token)
{
	uint32_t top_k = args->shape.top_k;
	const int32_t *ids = at<int32_t>(args->ids, token * (uint64_t)top_k);
	uint64_t pairs = 0;

	for (uint32_t k = 0; k < top_k; k++) {
		uint32_t expert = (uint32_t)ids[k], instance;
		struct share s;

		if (expert >= args->shape.n_experts)
			continue;
		instance = find_instance(args, table, expert);
		if (instance == M2N__GPU_NONE)
			continue;
		s = share_of(args, usable, instance);
		if (is_turn(args, &s, token))
			pairs |= (uint64_t)1 << k;
	}
	return pairs;
}

/* Notes the travelling row of each pair; `row`: of the token's first. */
DEVICE void note_rows(
	const struct m2n__gpu_plan_args *args, uint32_t token, uint64_t pairs, uint32_t row)
{
	uint32_t *out = at<uint32_t>(
		args->plan.pair_unique, token * (uint64_t)args->shape.top_k);
	uint32_t capacity = args->shape.rank_capacity, is_first = 1u << 31;

	for (uint32_t k = 0; pairs; k++, pairs >>= 1) {
		if (!(pairs & 1))
			continue;
		out[k] = capacity && row >= capacity ? M2N__GPU_NONE : row | is_first;
		if (args->shape.dedup)
			is_first = 0;
		else
			row++;
	}
}

extern "C" __global__ void __launch_bounds__(1024) m2n_plan_ranks(
	const __grid_constant__ struct m2n__gpu_plan_args args)
{
	SHARED(struct rank_table, table);
	SHARED(uint32_t[USABLE_WORDS], usable);
	uint32_t rank = blockIdx.x, base = 0, total;

	(void)agree_on_usable(&args, usable);
	make_table(&args, rank, &table);
	for (uint32_t from = 0; from < args.n_tokens; from += blockDim.x) {
		uint32_t token = from + threadIdx.x, n, row;
		uint64_t pairs = 0;

		if (token < args.n_tokens && is_usable(usable, rank))
			pairs = pairs_of_token(&args, usable, &table, token);
		n = count_bits((uint32_t)pairs) + count_bits((uint32_t)(pairs >> 32));
		if (args.shape.dedup)
			n = n != 0;
		row = base + block_scan(n, &total);
		note_rows(&args, token, pairs, row);
		base += total;
	}
	if (threadIdx.x == 0)
		work_of(&args)->rank_rows[rank] = base;
}

/* ---- PLAN: pairs of an instance ------------------------------------------------------------ */

#define GROUP 2u         /* instances that a block finds in one pass */
#define PAIRS_A_LOAD 4u  /* ids in 16 bytes */
#define LOADS 8u         /* of a thread in a tile */
#define PAIRS_A_THREAD (PAIRS_A_LOAD * LOADS)

/* The first of the 4 pairs of a thread's load: a warp's pairs are consecutive. */
DEVICE uint32_t pair_at(uint32_t tile, uint32_t load)
{
	return tile + warp() * (WARP * PAIRS_A_THREAD) + load * (WARP * PAIRS_A_LOAD) +
	       lane() * PAIRS_A_LOAD;
}

DEVICE uint4 load_ids(const struct m2n__gpu_plan_args *args, uint32_t pair, uint32_t n_pairs)
{
	const uint32_t *ids = at<uint32_t>(args->ids, pair);

	if (pair + PAIRS_A_LOAD <= n_pairs && !((uintptr_t)ids & 15))
		return load_near(ids);
	return make_uint4(pair < n_pairs ? ids[0] : M2N__GPU_NONE,
		pair + 1 < n_pairs ? ids[1] : M2N__GPU_NONE,
		pair + 2 < n_pairs ? ids[2] : M2N__GPU_NONE,
		pair + 3 < n_pairs ? ids[3] : M2N__GPU_NONE);
}

/* Which of 4 ids are the expert, as bits. */
DEVICE uint32_t equal_ids(uint4 ids, uint32_t expert)
{
	return (ids.x == expert) | (uint32_t)(ids.y == expert) << 1 |
	       (uint32_t)(ids.z == expert) << 2 | (uint32_t)(ids.w == expert) << 3;
}

/* Of pairs of the right expert: does the instance get this one, and is there room for it? */
DEVICE int is_taken(const struct m2n__gpu_plan_args *args, const struct share *s, uint32_t pair)
{
	if (s->n_live != 1 && !is_turn(args, s, pair / args->shape.top_k))
		return 0;
	return !args->shape.rank_capacity ||
	       *at<uint32_t>(args->plan.pair_unique, pair) != M2N__GPU_NONE;
}

/* The thread's pairs of a tile that are the instances': bit 4 * load + i. */
DEVICE void match_tile(const struct m2n__gpu_plan_args *args, const struct share *shares,
	uint32_t tile, uint32_t n_pairs, uint32_t *match)
{
#pragma unroll
	for (uint32_t g = 0; g < GROUP; g++)
		match[g] = 0;
#pragma unroll
	for (uint32_t load = 0; load < LOADS; load++) {
		uint4 ids = load_ids(args, pair_at(tile, load), n_pairs);

#pragma unroll
		for (uint32_t g = 0; g < GROUP; g++)
			match[g] |= equal_ids(ids, shares[g].expert) << PAIRS_A_LOAD * load;
	}
#pragma unroll
	for (uint32_t g = 0; g < GROUP; g++) {
		uint32_t left = shares[g].n_live == 1 && !args->shape.rank_capacity ? 0 : match[g];

		for (; left; left &= left - 1) {
			uint32_t bit = lowest_bit(left);

			if (!is_taken(args, &shares[g],
				    pair_at(tile, bit / PAIRS_A_LOAD) + bit % PAIRS_A_LOAD))
				match[g] &= ~(1u << bit);
		}
	}
}

/* Writes instance and position of a warp's pairs, in order; `position`: of the first. */
DEVICE void place_tile(const struct m2n__gpu_plan_args *args, uint32_t tile, uint32_t instance,
	uint32_t match, uint32_t position)
{
	uint32_t below = (1u << lane()) - 1;

	for (uint32_t load = 0; load < LOADS; load++) {
		uint32_t mine = match >> PAIRS_A_LOAD * load & 15, before = 0, all = 0;
		uint32_t pair = pair_at(tile, load);

		if (!vote(mine != 0))
			continue;
#pragma unroll
		for (uint32_t i = 0; i < PAIRS_A_LOAD; i++) {
			uint32_t lanes = vote(mine >> i & 1);

			before += count_bits(lanes & below);
			all += count_bits(lanes);
		}
		for (; mine; mine &= mine - 1, before++) {
			uint32_t i = lowest_bit(mine);

			*at<uint32_t>(args->plan.pair_instance, pair + i) = instance;
			*at<uint32_t>(args->plan.pair_position, pair + i) = position + before;
		}
		position += all;
	}
}

/* The block's instances [first, first + GROUP), all pairs. */
DEVICE void place_group(const struct m2n__gpu_plan_args *args, const struct share *shares,
	uint32_t first, uint32_t n_pairs)
{
	SHARED(uint32_t[GROUP][MAX_WARPS], of_warp);
	uint32_t n_warps = blockDim.x / WARP, base[GROUP] = {0};
	uint32_t tile_pairs = blockDim.x * PAIRS_A_THREAD;

	for (uint32_t tile = 0; tile < n_pairs; tile += tile_pairs) {
		uint32_t match[GROUP];

		match_tile(args, shares, tile, n_pairs, match);
#pragma unroll
		for (uint32_t g = 0; g < GROUP; g++) {
			uint32_t n = warp_sum(count_bits(match[g]));

			if (lane() == 0)
				of_warp[g][warp()] = n;
		}
		block_sync();
#pragma unroll
		for (uint32_t g = 0; g < GROUP; g++) {
			uint32_t n = lane() < n_warps ? of_warp[g][lane()] : 0;
			uint32_t before = warp_sum(lane() < warp() ? n : 0);

			place_tile(args, tile, first + g, match[g], base[g] + before);
			base[g] += warp_sum(n);
		}
		block_sync();
	}
#pragma unroll
	for (uint32_t g = 0; g < GROUP; g++)
		if (threadIdx.x == g && first + g < args->map.n_instances)
			*at<uint32_t>(args->plan.count, first + g) = base[g];
}

DEVICE void place_instances(
	const struct m2n__gpu_plan_args *args, const uint32_t *usable, uint32_t n_pairs)
{
	SHARED(struct share[GROUP], shares);
	struct share none = {M2N__GPU_NONE - 1, 1, 0}; /* no id is that */

	for (uint32_t first = blockIdx.x * GROUP; first < args->map.n_instances;
		first += gridDim.x * GROUP) {
		if (threadIdx.x < GROUP) {
			struct share s = none;

			if (first + threadIdx.x < args->map.n_instances)
				s = share_of(args, usable, first + threadIdx.x);
			shares[threadIdx.x] = s.n_live ? s : none;
		}
		block_sync();
		place_group(args, shares, first, n_pairs);
		block_sync();
	}
}

/* ---- PLAN: pairs of nobody ----------------------------------------------------------------- */

DEVICE int has_owner(
	const struct m2n__gpu_plan_args *args, const uint32_t *usable, uint32_t expert)
{
	uint32_t end = *at<uint32_t>(args->map.owner_first, expert + 1);

	for (uint32_t i = *at<uint32_t>(args->map.owner_first, expert); i < end; i++) {
		uint32_t owner = *at<uint32_t>(args->map.owner_instance, i);

		if (is_usable(usable, *at<uint32_t>(args->map.rank_of, owner)))
			return 1;
	}
	return 0;
}

/* Has the pair an id but no row? Bad ids are noted. */
enum { PAIR_GOES, PAIR_EMPTY, PAIR_LOST, PAIR_NO_ROOM };

DEVICE int settle_pair(const struct m2n__gpu_plan_args *args, const uint32_t *usable, int all,
	uint32_t pair)
{
	uint32_t id = *at<uint32_t>(args->ids, pair);

	if (id >= args->shape.n_experts) {
		if (id != M2N__GPU_NONE)
			atomic_max(&work_of(args)->bad, ~pair);
		return PAIR_EMPTY;
	}
	if (!all && !has_owner(args, usable, id))
		return PAIR_LOST;
	if (args->shape.rank_capacity &&
		*at<uint32_t>(args->plan.pair_unique, pair) == M2N__GPU_NONE)
		return PAIR_NO_ROOM;
	return PAIR_GOES;
}

/* Tokens are dealt out to blocks, so that each has a few. */
DEVICE void settle_tokens(
	const struct m2n__gpu_plan_args *args, const uint32_t *usable, int all)
{
	uint32_t top_k = args->shape.top_k;

	for (uint32_t t = threadIdx.x * gridDim.x + blockIdx.x; t < args->n_tokens;
		t += grid_threads()) {
		uint32_t n_lost = 0, n_full = 0, n;

		for (uint32_t k = 0; k < top_k; k++) {
			int how = settle_pair(args, usable, all, t * top_k + k);

			if (how != PAIR_GOES)
				*at<uint32_t>(args->plan.pair_instance, t * top_k + k) =
					M2N__GPU_NONE;
			n_lost += how == PAIR_LOST;
			n_full += how == PAIR_NO_ROOM;
		}
		n = n_lost + n_full;
		*at<uint8_t>(args->plan.dropped, t) = (uint8_t)n;
		if (n)
			atomic_add(&work_of(args)->n_dropped, n);
		if (n_lost)
			atomic_add(&work_of(args)->n_dropped_lost, n_lost);
	}
}

DEVICE void keep_weights(const struct m2n__gpu_plan_args *args, uint32_t n_pairs)
{
	for (uint32_t p = grid_thread(); p < n_pairs; p += grid_threads())
		*at<float>(args->plan.weight, p) =
			args->weights ? *at<float>(args->weights, p) : 1.0f;
}

/* ---- PLAN: the last block ------------------------------------------------------------------ */

/* One thread: what is wrong with the routing as a whole; an emptied plan for some. */
DEVICE int32_t judge_plan(const struct m2n__gpu_plan_args *args)
{
	const struct plan_work *work = work_of(args);

	if (work->bad)
		return -EINVAL;
	for (uint32_t r = 0; args->shape.rank_capacity && r < args->shape.n_ranks; r++)
		if (work->rank_rows[r] > args->shape.rank_capacity && !args->shape.drop_overflow)
			return M2N_ERR_CAPACITY;
	return work->n_dropped ? M2N_PARTIAL : 0;
}

/* First rows of instances and ranks from the counts; an empty plan has none. */
DEVICE uint32_t number_rows(const struct m2n__gpu_plan_args *args, int is_empty)
{
	uint32_t n = args->map.n_instances, base = 0, total;

	for (uint32_t from = 0; from < n; from += blockDim.x) {
		uint32_t i = from + threadIdx.x, count = 0, first;

		if (i < n && is_empty)
			*at<uint32_t>(args->plan.count, i) = 0;
		if (i < n)
			count = *at<uint32_t>(args->plan.count, i);
		first = base + block_scan(count, &total);
		if (i < n)
			*at<uint32_t>(args->plan.first, i) = first;
		base += total;
	}
	if (threadIdx.x == 0)
		*at<uint32_t>(args->plan.first, n) = base;
	block_sync();
	for (uint32_t r = threadIdx.x; r <= args->shape.n_ranks; r += blockDim.x)
		*at<uint32_t>(args->plan.rank_first, r) = *at<uint32_t>(
			args->plan.first, *at<uint32_t>(args->map.rank_first, r));
	return base;
}

/* The same for travelling rows. */
DEVICE uint32_t number_unique(const struct m2n__gpu_plan_args *args, int is_empty)
{
	uint32_t n = args->shape.n_ranks, base = 0, total;

	for (uint32_t from = 0; from < n; from += blockDim.x) {
		uint32_t r = from + threadIdx.x, sent = 0, first;

		if (r < n && !is_empty)
			sent = work_of(args)->rank_rows[r];
		if (args->shape.rank_capacity && sent > args->shape.rank_capacity)
			sent = args->shape.rank_capacity;
		first = base + block_scan(sent, &total);
		if (r < n)
			*at<uint32_t>(args->plan.unique_first, r) = first;
		base += total;
	}
	if (threadIdx.x == 0)
		*at<uint32_t>(args->plan.unique_first, n) = base;
	return base;
}

/* One thread: the summary but for the rows of ranks; the scratch is clean again. */
DEVICE void summarize(const struct m2n__gpu_plan_args *args, int32_t code, uint32_t n_rows,
	uint32_t n_sent)
{
	struct m2n__gpu_summary *s = at<struct m2n__gpu_summary>(args->plan.summary);
	struct plan_work *work = work_of(args);
	uint32_t bad = ~work->bad;

	s->n_tokens = code < 0 ? 0 : args->n_tokens;
	s->n_rows = n_rows;
	s->n_sent = n_sent;
	s->n_dropped = code < 0 ? 0 : work->n_dropped;
	s->n_dropped_lost = code < 0 ? 0 : work->n_dropped_lost;
	s->code = code;
	if (work->bad) {
		s->bad_token = bad / args->shape.top_k;
		s->bad_k = bad % args->shape.top_k;
		s->bad_id = *at<int32_t>(args->ids, bad);
	}
	*at<uint32_t>(args->plan.n_tokens) = s->n_tokens;
	work->bad = work->n_dropped = work->n_dropped_lost = 0;
}

DEVICE void finish_plan(const struct m2n__gpu_plan_args *args)
{
	SHARED(int32_t, code);
	struct m2n__gpu_summary *s = at<struct m2n__gpu_summary>(args->plan.summary);
	uint32_t n_rows, n_sent;

	if (threadIdx.x == 0)
		code = judge_plan(args);
	block_sync();
	n_rows = n_sent = number_rows(args, code < 0);
	if (args->shape.dedup)
		n_sent = number_unique(args, code < 0);
	for (uint32_t w = threadIdx.x; w < USABLE_WORDS; w += blockDim.x)
		work_of(args)->usable[w] = 0;
	block_sync();
	for (uint32_t r = threadIdx.x; r < args->shape.n_ranks; r += blockDim.x)
		s->rank_rows[r] = *at<uint32_t>(args->plan.rank_first, r + 1) -
				  *at<uint32_t>(args->plan.rank_first, r);
	fence_sys(); /* each thread's words of the summary before thread 0 publishes it */
	block_sync();
	if (threadIdx.x != 0)
		return;
	summarize(args, code, n_rows, n_sent);
	/* R24: the summary before its ticket, pairs with the host's read of it. */
	release_store_sys(&s->ticket, args->ticket);
}

extern "C" __global__ void __launch_bounds__(1024) m2n_plan(
	const __grid_constant__ struct m2n__gpu_plan_args args)
{
	SHARED(uint32_t[USABLE_WORDS], usable);
	uint32_t n_pairs = args.n_tokens * args.shape.top_k;
	int all = agree_on_usable(&args, usable);

	settle_tokens(&args, usable, all);
	keep_weights(&args, n_pairs);
	place_instances(&args, usable, n_pairs);
	if (is_last_block(&work_of(&args)->ticket))
		finish_plan(&args);
}

#endif
