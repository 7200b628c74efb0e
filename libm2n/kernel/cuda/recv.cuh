/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Expert side of a round: AWAIT_ROWS waits for heads, checks them, and lays the batch out in the
 * order local expert, source, (token, k); UNPACK copies rows to those places.
 *
 * Bytes of a peer are read once, copied, and then checked: it could still change its slot. What is
 * used again later (the index) is held to its bounds there.
 */
#ifndef M2N_KERNEL_CUDA_RECV_CUH
#define M2N_KERNEL_CUDA_RECV_CUH

#include "kernel/cuda/rows.cuh"
#include "kernel/cuda/wait.cuh"

/* ---- AWAIT_ROWS ---------------------------------------------------------------------------- */

/* What the threads of the block know of the sources. */
struct arrivals {
	uint8_t state[M2N__GPU_MAX_PEERS]; /* PEER_* */
	uint32_t n_rows[M2N__GPU_MAX_PEERS], n_sent[M2N__GPU_MAX_PEERS];
};

DEVICE uint64_t slot_address(
	const struct m2n__gpu_recv_args *args, uint32_t source, uint64_t round)
{
	return at<struct m2n__gpu_rx>(args->rx, source)->slots +
	       slot_of(&args->shape, round) * args->shape.slot_stride;
}

/* Does the place for replies lie in the source's region, aligned as its rows are? */
DEVICE int place_fits(const struct m2n__gpu_shape *shape, uint64_t place, uint64_t n_reply)
{
	uint64_t room = shape->reply_region_bytes * shape->n_region_slots;
	uint64_t bytes = n_reply * shape->out_row_bytes;
	uint64_t unit = shape->out_row_bytes & -shape->out_row_bytes;

	return place <= room && bytes <= room - place && place % (unit < 16 ? unit : 16) == 0;
}

DEVICE uint32_t check_head(const struct m2n__gpu_recv_args *args, uint32_t source,
	const struct m2n__gpu_head *head, uint32_t n_rows, uint32_t n_sent, uint64_t place)
{
	const struct m2n__gpu_shape *shape = &args->shape;
	uint64_t pairs = shape->max_tokens * (uint64_t)shape->top_k;

	if (head->map_digest != args->map.digest)
		return PEER_OTHER_MAP;
	if (n_rows > pairs || n_sent > shape->slot_rows || n_sent > n_rows ||
		(!shape->dedup && n_sent != n_rows) || head->sink != source)
		return PEER_WRONG;
	return place_fits(shape, place, shape->reduce_at_expert ? n_sent : n_rows) ? PEER_PRESENT
										   : PEER_WRONG;
}

/* One thread: waits for a source and notes what its head says. */
DEVICE void await_source(const struct m2n__gpu_recv_args *args, const struct wait *w,
	uint32_t source, struct arrivals *a)
{
	const struct m2n__gpu_head *head;
	uint32_t state = PEER_ABSENT;
	uint64_t place = 0;

	a->n_rows[source] = a->n_sent[source] = 0;
	if (!args->has_mask || bit_of(args->mask, source))
		state = await_head(w, source, &head);
	if (state == PEER_PRESENT) {
		a->n_rows[source] = head->n_rows;
		a->n_sent[source] = head->n_sent;
		place = head->place;
		state = check_head(
			args, source, head, a->n_rows[source], a->n_sent[source], place);
		take(w, source, head);
	}
	a->state[source] = (uint8_t)state;
	*at<uint64_t>(args->batch.place, source) = place;
}

/* One warp: counts of a source, and where each local expert's rows begin in its order. */
DEVICE uint64_t take_counts(
	const struct m2n__gpu_recv_args *args, uint32_t source, const uint32_t *counts)
{
	uint32_t n_sources = args->shape.n_sources;
	uint64_t sum = 0;

	for (uint32_t e = lane(); e - lane() < args->n_local; e += WARP) {
		uint32_t n = e < args->n_local ? counts[e] : 0, before = warp_scan(n);
		uint64_t cell = e * (uint64_t)n_sources + source;

		if (e < args->n_local) {
			*at<uint32_t>(args->batch.cell_rows, cell) = n;
			*at<uint32_t>(args->batch.cell_source, cell) = (uint32_t)sum + before;
		}
		/* a liar's counts may wrap: the sum of 64 bits does not */
		sum += warp_sum(n & 0xffff) + ((uint64_t)warp_sum(n >> 16) << 16);
	}
	return sum;
}

/* One warp: is every index one of a travelling row? */
DEVICE int check_index(const uint32_t *index, uint32_t n_rows, uint32_t n_sent)
{
	int good = 1;

	for (uint32_t i = lane(); i < n_rows; i += WARP)
		good &= index[i] < n_sent;
	return vote(!good) == 0;
}

DEVICE void forget_counts(const struct m2n__gpu_recv_args *args, uint32_t source)
{
	for (uint32_t e = lane(); e < args->n_local; e += WARP)
		*at<uint32_t>(args->batch.cell_rows,
			e * (uint64_t)args->shape.n_sources + source) = 0;
}

/* One warp: the meta of a source that is here. */
DEVICE void take_meta(const struct m2n__gpu_recv_args *args, uint32_t source, uint64_t round,
	struct arrivals *a)
{
	uint64_t payload = slot_address(args, source, round) + sizeof(struct m2n__gpu_head);
	uint32_t n_rows = a->n_rows[source], n_sent = a->n_sent[source];
	struct layout l = lay_out(&args->shape, args->n_local, n_rows, n_sent);
	int good = take_counts(args, source, at<uint32_t>(payload)) == n_rows;

	if (good && args->shape.dedup)
		good = check_index(at<uint32_t>(payload + l.index), n_rows, n_sent);
	if (!good && lane() == 0)
		a->state[source] = PEER_WRONG;
}

DEVICE void take_sources(
	const struct m2n__gpu_recv_args *args, uint64_t round, struct arrivals *a)
{
	for (uint32_t s = warp(); s < args->shape.n_sources; s += blockDim.x / WARP) {
		if (a->state[s] == PEER_PRESENT)
			take_meta(args, s, round, a);
		warp_sync();
		if (a->state[s] != PEER_PRESENT)
			forget_counts(args, s);
		if (lane() == 0) {
			int here = a->state[s] == PEER_PRESENT;

			*at<uint32_t>(args->batch.source_rows, s) = here ? a->n_rows[s] : 0;
			*at<uint32_t>(args->batch.source_sent, s) = here ? a->n_sent[s] : 0;
			if (here)
				count_round(args->counts, s, a->n_rows[s],
					a->n_sent[s] * (args->shape.row_bytes +
							       args->shape.scale_bytes));
		}
	}
}

/* First batch row of every cell; how many rows. */
DEVICE uint32_t place_cells(const struct m2n__gpu_recv_args *args)
{
	uint64_t n_cells = args->n_local * (uint64_t)args->shape.n_sources;
	struct m2n__gpu_mirror *mirror = at<struct m2n__gpu_mirror>(args->batch.mirror);
	uint32_t base = 0, total;

	for (uint64_t from = 0; from < n_cells; from += blockDim.x) {
		uint64_t cell = from + threadIdx.x;
		uint32_t n = cell < n_cells ? *at<uint32_t>(args->batch.cell_rows, cell) : 0;
		uint32_t first = base + block_scan(n, &total);

		if (cell < n_cells) {
			*at<uint32_t>(args->batch.cell_first, cell) = first;
			mirror->cell_rows[cell] = n;
		}
		base += total;
	}
	if (threadIdx.x == 0)
		*at<uint32_t>(args->batch.cell_first, n_cells) = base;
	return base;
}

DEVICE void place_experts(const struct m2n__gpu_recv_args *args, uint32_t n_rows)
{
	uint32_t n_sources = args->shape.n_sources;

	for (uint32_t e = threadIdx.x; e < args->n_local; e += blockDim.x) {
		const uint32_t *first =
			at<uint32_t>(args->batch.cell_first, e * (uint64_t)n_sources);

		*at<uint32_t>(args->batch.expert_first, e) = first[0];
		*at<uint32_t>(args->batch.expert_rows, e) = first[n_sources] - first[0];
	}
	if (threadIdx.x == 0)
		*at<uint32_t>(args->batch.expert_first, args->n_local) = n_rows;
}

/* One thread: what host and later kernels read of the batch as a whole. */
DEVICE void publish(const struct m2n__gpu_recv_args *args, const struct verdict *v,
	uint64_t round, uint32_t n_rows)
{
	struct m2n__gpu_mirror *mirror = at<struct m2n__gpu_mirror>(args->batch.mirror);

	for (uint32_t w = 0; w < M2N__GPU_MASK_WORDS; w++) {
		mirror->missing[w] = v->missing[w];
		at<uint64_t>(args->batch.present)[w] = v->present[w];
	}
	*at<uint64_t>(args->batch.round) = round;
	mirror->round = round;
	mirror->n_rows = n_rows;
	mirror->code = code_of(v->worst);
	if (code_of(v->worst))
		tell(args->report, round, code_of(v->worst), 0, v->blamed);
	/* R23: the mirror before its ticket, pairs with the host's read of it. */
	release_store_sys(&mirror->ticket, args->ticket);
}

extern "C" __global__ void __launch_bounds__(1024) m2n_await_rows(
	const __grid_constant__ struct m2n__gpu_recv_args args)
{
	SHARED(struct arrivals, arrivals);
	SHARED(struct verdict, verdict);
	struct m2n__gpu_rounds *rounds = at<struct m2n__gpu_rounds>(args.rounds);
	uint64_t round = rounds->recv;
	struct wait w = {args.rx, args.alive, round, deadline_of(args.timeout_ns),
		args.shape.slot_stride, slot_of(&args.shape, round)};
	uint32_t n_rows;

	for (uint32_t s = threadIdx.x; s < args.shape.n_sources; s += blockDim.x)
		await_source(&args, &w, s, &arrivals);
	block_sync();
	take_sources(&args, round, &arrivals);
	block_sync();
	n_rows = place_cells(&args);
	fence_sys(); /* each thread's cells of the mirror before thread 0 publishes it */
	block_sync();
	place_experts(&args, n_rows);
	judge(args.shape.n_sources, arrivals.state, &verdict);
	if (threadIdx.x != 0)
		return;
	publish(&args, &verdict, round, n_rows);
	rounds->recv = round + 1;
}

/* ---- rows of a batch ----------------------------------------------------------------------- */

/* Where a batch row comes from. */
struct origin {
	uint32_t source;
	uint32_t row; /* in the source's order */
};

/* The cell that a batch row lies in: the last one that begins at or before it. */
DEVICE struct origin find_origin(const struct m2n__gpu_batch *batch, uint32_t n_cells,
	uint32_t n_sources, uint32_t row)
{
	const uint32_t *first = at<uint32_t>(batch->cell_first);
	uint32_t low = 0, high = n_cells; /* first[low] <= row < first[high] */
	struct origin o;

	while (high - low > 1) {
		uint32_t middle = low + (high - low) / 2;

		if (first[middle] <= row)
			low = middle;
		else
			high = middle;
	}
	o.source = low % n_sources;
	o.row = *at<uint32_t>(batch->cell_source, low) + row - first[low];
	return o;
}

/* The payload of a source's slot, and where its parts are. */
DEVICE uint64_t payload_of(const struct m2n__gpu_shape *shape, const struct m2n__gpu_batch *batch,
	uint64_t rx, uint32_t n_local, uint32_t source, uint64_t round, struct layout *l)
{
	*l = lay_out(shape, n_local, *at<uint32_t>(batch->source_rows, source),
		*at<uint32_t>(batch->source_sent, source));
	return at<struct m2n__gpu_rx>(rx, source)->slots +
	       slot_of(shape, round) * shape->slot_stride + sizeof(struct m2n__gpu_head);
}

/* ---- UNPACK -------------------------------------------------------------------------------- */

DEVICE void unpack_piece(const struct m2n__gpu_recv_args *args, const struct walk *w,
	uint64_t round, int aligned)
{
	struct origin o = find_origin(&args->batch, args->n_local * args->shape.n_sources,
		args->shape.n_sources, w->row);
	uint64_t bytes = args->shape.row_bytes, scale_bytes = args->shape.scale_bytes;
	struct span span = span_of<MOVE_VECTORS>(w->chunk, bytes);
	uint64_t to = args->batch.rows + w->row * bytes, from;
	struct layout l;
	uint64_t payload = payload_of(&args->shape, &args->batch, args->rx, args->n_local,
		o.source, round, &l);
	uint32_t row = o.row, last = *at<uint32_t>(args->batch.source_sent, o.source) - 1;

	if (args->shape.dedup)
		row = *at<uint32_t>(payload + l.index, row);
	row = row < last ? row : last; /* the peer may have changed it since it was checked */
	from = payload + l.rows + row * bytes;
	if (aligned)
		row_move<1>(to, from, &span);
	else
		row_move_any(to, from, w->chunk, bytes);
	if (scale_bytes && w->chunk == 0)
		copy_small(args->batch.scales + w->row * scale_bytes,
			payload + l.scales + row * scale_bytes, scale_bytes);
}

extern "C" __global__ void __launch_bounds__(256, 3) m2n_unpack(
	const __grid_constant__ struct m2n__gpu_recv_args args)
{
	uint64_t bytes = args.shape.row_bytes, round = *at<uint64_t>(args.batch.round);
	uint32_t n_rows = *at<uint32_t>(
		args.batch.cell_first, args.n_local * (uint64_t)args.shape.n_sources);
	struct walk w = walk_start(n_rows, n_pieces<MOVE_VECTORS>(bytes));
	int aligned = !((bytes | args.batch.rows) & 15);

	for (; walk_goes(&w); walk_on(&w))
		unpack_piece(&args, &w, round, aligned);
}

#endif
