/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Expert side of the way back: REPLY. Output rows, which lie in the batch's order, go to each
 * source's region in the source's own order, at the place that its head named. With
 * reduce_at_expert a row for each travelling row instead: the weighted sum of its outputs.
 *
 * A travelling row's rows are found by binary search: within a local expert the index rises with
 * the token. The last block writes heads and signals, which are also the credits of the slots.
 */
#ifndef M2N_KERNEL_CUDA_REPLY_CUH
#define M2N_KERNEL_CUDA_REPLY_CUH

#include "kernel/cuda/recv.cuh"
#include "kernel/cuda/sum.cuh"

/* In shared memory: where replies to a source go (0: nowhere), and its first travelling row. */
struct return_table {
	uint64_t *to;         /* [n_sources] */
	uint32_t *sent_first; /* [n_sources + 1] */
};

DEVICE int is_answered(const struct m2n__gpu_reply_args *args, uint32_t source)
{
	const struct m2n__gpu_tx *tx = at<struct m2n__gpu_tx>(args->tx, source);

	return bit_of(at<uint64_t>(args->batch.present), source) && relaxed_load_sys(&tx->live);
}

DEVICE struct return_table make_returns(const struct m2n__gpu_reply_args *args)
{
	uint32_t n = args->shape.n_sources, base = 0, total;
	struct return_table r;

	r.to = (uint64_t *)shared_room();
	r.sent_first = (uint32_t *)(r.to + n);
	for (uint32_t from = 0; from < n; from += blockDim.x) {
		uint32_t s = from + threadIdx.x;
		uint32_t sent = s < n ? *at<uint32_t>(args->batch.source_sent, s) : 0;
		uint32_t first = base + block_scan(sent, &total);

		if (s < n) {
			uint64_t region = at<struct m2n__gpu_tx>(args->tx, s)->region;

			r.to[s] = is_answered(args, s) && region
					  ? region + *at<uint64_t>(args->batch.place, s)
					  : 0;
			r.sent_first[s] = first;
		}
		base += total;
	}
	if (threadIdx.x == 0)
		r.sent_first[n] = base;
	block_sync();
	return r;
}

/* ---- rows as they are ---------------------------------------------------------------------- */

DEVICE void return_piece(const struct m2n__gpu_reply_args *args, const struct return_table *r,
	const struct walk *w, int aligned)
{
	struct origin o = find_origin(&args->batch, args->n_local * args->shape.n_sources,
		args->shape.n_sources, w->row);
	uint64_t bytes = args->shape.out_row_bytes;
	struct span span = span_of<MOVE_VECTORS>(w->chunk, bytes);
	uint64_t from = args->rows + w->row * args->row_stride;
	uint64_t to = r->to[o.source] + o.row * bytes;

	if (!r->to[o.source])
		return;
	if (aligned)
		row_move<1>(to, from, &span);
	else
		row_move_any(to, from, w->chunk, bytes);
}

DEVICE void return_rows(const struct m2n__gpu_reply_args *args, const struct return_table *r)
{
	uint64_t bytes = args->shape.out_row_bytes;
	uint32_t n_rows = *at<uint32_t>(
		args->batch.cell_first, args->n_local * (uint64_t)args->shape.n_sources);
	struct walk w = walk_start(n_rows, n_pieces<MOVE_VECTORS>(bytes));
	int aligned = !((args->rows | args->row_stride | bytes) & 15);

	for (; walk_goes(&w); walk_on(&w))
		return_piece(args, r, &w, aligned);
}

/* ---- reduce_at_expert ---------------------------------------------------------------------- */

/* A source's rows of one travelling row within one local expert: [low, high) in its order. */
struct run {
	uint32_t low, high;
	uint64_t out; /* address of row 0's output, were it in this cell */
};

DEVICE struct run find_run(const struct m2n__gpu_reply_args *args, const uint32_t *index,
	uint32_t e, uint32_t source, uint32_t travels)
{
	uint64_t cell = e * (uint64_t)args->shape.n_sources + source;
	uint32_t first, end, high;
	struct run run = {0, 0, 0};

	if (e >= args->n_local)
		return run;
	first = *at<uint32_t>(args->batch.cell_source, cell);
	end = high = first + *at<uint32_t>(args->batch.cell_rows, cell);
	run.low = first;
	while (run.low < high) {
		uint32_t middle = run.low + (high - run.low) / 2;

		if (index[middle] < travels)
			run.low = middle + 1;
		else
			high = middle;
	}
	for (run.high = run.low; run.high < end && index[run.high] == travels; run.high++)
		;
	run.out = args->rows + (*at<uint32_t>(args->batch.cell_first, cell) - (uint64_t)first) *
				       args->row_stride;
	return run;
}

/* Adds one expert's outputs; how many. */
template <int DTYPE>
DEVICE uint32_t add_run(struct sum<DTYPE> *sum, const struct m2n__gpu_reply_args *args,
	const struct run *run, const float *weights, const struct span *span)
{
	for (uint32_t row = run->low; row < run->high; row++) {
		struct term term = {run->out + row * args->row_stride, weights[row]};

		sum_add<DTYPE, 0>(sum, &term, span);
	}
	return run->high - run->low;
}

template <int DTYPE>
static __device__ void reduce_piece(const struct m2n__gpu_reply_args *args, uint64_t to,
	uint32_t source, uint32_t travels, uint32_t chunk)
{
	struct layout l;
	uint64_t payload = payload_of(&args->shape, &args->batch, args->rx, args->n_local, source,
		*at<uint64_t>(args->batch.round), &l);
	const uint32_t *index = at<uint32_t>(payload + l.index);
	const float *weights = at<float>(payload + l.weights);
	struct span span = span_of<SUM_VECTORS>(chunk, args->shape.out_row_bytes);
	struct sum<DTYPE> sum;
	uint32_t n = 0;

	sum_clear(&sum);
	for (uint32_t e = 0; e < args->n_local; e += WARP) {
		struct run mine = find_run(args, index, e + lane(), source, travels);
		uint32_t found = vote(mine.low < mine.high);

		for (; found && n < M2N__GPU_MAX_TOP_K; found &= found - 1) {
			uint32_t from = lowest_bit(found);
			struct run run;

			run.low = shuffle(mine.low, from);
			run.high = shuffle(mine.high, from);
			run.out = shuffle(mine.out, from);
			if (run.high - run.low > M2N__GPU_MAX_TOP_K - n) /* a liar's index */
				run.high = run.low + M2N__GPU_MAX_TOP_K - n;
			n += add_run<DTYPE>(&sum, args, &run, weights, &span);
		}
	}
	sum_store<DTYPE, 0>(&sum, to + travels * args->shape.out_row_bytes, &span);
}

DEVICE void reduce_rows(const struct m2n__gpu_reply_args *args, const struct return_table *r)
{
	uint32_t n_sources = args->shape.n_sources;
	struct walk w = walk_start(r->sent_first[n_sources],
		n_pieces<SUM_VECTORS>(args->shape.out_row_bytes));

	for (; walk_goes(&w); walk_on(&w)) {
		uint32_t low = 0, high = n_sources, travels;

		while (high - low > 1) {
			uint32_t middle = low + (high - low) / 2;

			if (r->sent_first[middle] <= w.row)
				low = middle;
			else
				high = middle;
		}
		travels = w.row - r->sent_first[low];
		if (!r->to[low])
			continue;
		if (args->shape.dtype == M2N_DTYPE_F32)
			reduce_piece<M2N_DTYPE_F32>(args, r->to[low], low, travels, w.chunk);
		else if (args->shape.dtype == M2N_DTYPE_BF16)
			reduce_piece<M2N_DTYPE_BF16>(args, r->to[low], low, travels, w.chunk);
		else
			reduce_piece<M2N_DTYPE_F16>(args, r->to[low], low, travels, w.chunk);
	}
}

/* ---- the kernel ---------------------------------------------------------------------------- */

DEVICE void signal_source(
	const struct m2n__gpu_reply_args *args, uint32_t source, uint64_t round)
{
	const struct m2n__gpu_tx *tx = at<struct m2n__gpu_tx>(args->tx, source);
	uint32_t slot = slot_of(&args->shape, round);
	struct m2n__gpu_head *head =
		at<struct m2n__gpu_head>(tx->slots + slot * args->shape.reply_slot_stride);
	uint32_t n = *at<uint32_t>(args->shape.reduce_at_expert ? args->batch.source_sent
								: args->batch.source_rows,
		source);
	uint64_t body_bytes = n * args->shape.out_row_bytes;

	head->body = head->bytes = head->place = 0;
	head->n_rows = head->n_sent = n;
	head->map_digest = args->map.digest;
	head->sink = source;
	head->n_body_puts = tx->post && body_bytes;
	head->flags = head->reserved[0] = head->reserved[1] = 0;
	/* R22: replies before their signal, pairs with A20 in wait.cuh. */
	release_store_sys(&head->signal, round + 1);
	if (tx->post) {
		struct m2n__gpu_post *post = at<struct m2n__gpu_post>(tx->post, slot);

		post->head_bytes = sizeof(*head);
		post->body_at = *at<uint64_t>(args->batch.place, source);
		post->body_bytes = body_bytes;
		/* R21: staging and post before seq, pairs with the progress thread's load. */
		release_store_sys(&post->seq, round + 1);
	}
	count_round(args->counts, source, n, body_bytes);
}

/* Present, but the link of its replies has gone. */
static __device__ void signal_sources(const struct m2n__gpu_reply_args *args, uint64_t round)
{
	SHARED(uint64_t[M2N__GPU_MASK_WORDS], lost);
	SHARED(uint32_t, n_lost);

	if (threadIdx.x < M2N__GPU_MASK_WORDS)
		lost[threadIdx.x] = 0;
	if (threadIdx.x == 0)
		n_lost = 0;
	block_sync();
	for (uint32_t s = threadIdx.x; s < args->shape.n_sources; s += blockDim.x) {
		if (is_answered(args, s)) {
			signal_source(args, s, round);
		} else if (bit_of(at<uint64_t>(args->batch.present), s)) {
			atomic_add(&n_lost, *at<uint32_t>(args->batch.source_rows, s));
			set_bit(lost, s);
		}
	}
	block_sync();
	for (uint32_t w = 0; threadIdx.x == 0 && w < M2N__GPU_MASK_WORDS; w++) {
		if (lost[w]) {
			tell(args->report, round, M2N_PARTIAL, n_lost, lost);
			break;
		}
	}
}

template <int REDUCES> DEVICE void reply(const struct m2n__gpu_reply_args *args)
{
	struct return_table returns = make_returns(args);
	struct m2n__gpu_rounds *rounds = at<struct m2n__gpu_rounds>(args->rounds);

	if (REDUCES)
		reduce_rows(args, &returns);
	else
		return_rows(args, &returns);
	if (is_last_block(&rounds->ticket[M2N__GPU_REPLY]))
		signal_sources(args, *at<uint64_t>(args->batch.round));
}

extern "C" __global__ void __launch_bounds__(256, 3) m2n_reply(
	const __grid_constant__ struct m2n__gpu_reply_args args)
{
	reply<0>(&args);
}

extern "C" __global__ void __launch_bounds__(256) m2n_reduce(
	const __grid_constant__ struct m2n__gpu_reply_args args)
{
	reply<1>(&args);
}

#endif
