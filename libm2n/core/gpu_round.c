/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The four calls of a round in CUDA memory: arguments are checked, the side's order on streams is
 * kept, and the kernels are launched. The host counts calls, for the order of maps and for what
 * may be in flight; the device counts rounds.
 */
#include <errno.h>
#include <string.h>

#include "core/gpu.h"
#include "util/error.h"

int m2n__gpu_check_pointer(const struct m2n__gpu *gpu, const char *what, const void *at)
{
	int ordinal = -1;

	switch (m2n__cuda_pointer(gpu->cuda, at, &ordinal)) {
	case M2N__POINTER_DEVICE:
		return 0;
	case M2N__POINTER_PINNED:
	case M2N__POINTER_HOST:
		return m2n__error(-EINVAL,
			"%s: %s at %p is not device memory (host memory, or freed): the channel's "
			"memory is CUDA, allocate it on device %d",
			gpu->ch->title, what, at, gpu->cuda->ordinal);
	case M2N__POINTER_OTHER:
		break;
	}
	return m2n__error(-EINVAL,
		"%s: %s at %p lies on device %d, the context's device is %d: copy it there, or "
		"open "
		"a context for that device",
		gpu->ch->title, what, at, ordinal, gpu->cuda->ordinal);
}

int m2n__host_pointer(const struct m2n_channel *ch, const char *what, const void *at)
{
	enum m2n__pointer is = m2n__cuda_pointer(ch->ctx->cuda, at, NULL);

	if (is == M2N__POINTER_HOST || is == M2N__POINTER_PINNED)
		return 0;
	return m2n__error(-EINVAL,
		"%s: %s at %p is device memory: the channel's memory is HOST; copy it, or "
		"create the channel with memory CUDA",
		ch->title, what, at);
}

static int check_all(
	const struct m2n__gpu *gpu, const char *const *what, const void *const *at, unsigned n)
{
	int rc = 0;

	for (unsigned i = 0; i < n && !rc; i++)
		if (at[i])
			rc = m2n__gpu_check_pointer(gpu, what[i], at[i]);
	return rc;
}

/* A captured call is ordered by what the caller captures; its event would not be real. */
static int is_capturing(const struct m2n__gpu *gpu, void *stream)
{
	int status = M2N__CU_CAPTURE_NONE;

	if (gpu->cuda->driver->stream_is_capturing(stream, &status))
		return 0;
	return status != M2N__CU_CAPTURE_NONE;
}

int m2n__gpu_begin(struct m2n__gpu *gpu, struct m2n__gpu_side *side, void *stream)
{
	int rc = m2n__cuda_enter(gpu->cuda), cu = 0;

	if (rc)
		return rc;
	/* Before any launch, so that no look takes this side for idle meanwhile. */
	atomic_store_explicit(&side->in_call, 1, memory_order_seq_cst);
	if (atomic_load_explicit(&side->has_work, memory_order_relaxed) && side->stream != stream &&
		!is_capturing(gpu, stream))
		cu = gpu->cuda->driver->stream_wait_event(stream, side->event, 0);
	if (!cu)
		return 0;
	atomic_store_explicit(&side->in_call, 0, memory_order_release);
	rc = m2n__cuda_error(gpu->cuda, cu, "%s: order of streams", gpu->ch->title);
	m2n__cuda_leave(gpu->cuda);
	return rc;
}

void m2n__gpu_end(struct m2n__gpu *gpu, struct m2n__gpu_side *side, void *stream)
{
	side->stream = stream;
	if (!is_capturing(gpu, stream) && !gpu->cuda->driver->event_record(side->event, stream))
		atomic_store_explicit(&side->has_work, 1, memory_order_relaxed);
	/* R17: the event before the call's end, pairs with A17 in gpu_link.c. */
	atomic_store_explicit(&side->in_call, 0, memory_order_release);
	m2n__cuda_leave(gpu->cuda);
}

int m2n__gpu_launch(struct m2n__gpu *gpu, enum m2n__gpu_kernel kernel, uint32_t n, void *stream,
	const void *args)
{
	unsigned n_blocks, n_threads;
	size_t shared;

	m2n__gpu_geometry(kernel, &gpu->shape, n, gpu->cuda->n_multiprocessors, &n_blocks,
		&n_threads, &shared);
	return m2n__cuda_launch(gpu->cuda, kernel, n_blocks, n_threads, shared, stream, args);
}

/* What a deadline of the caller's means on the device. */
static int64_t device_timeout(const struct m2n__gpu *gpu, int64_t timeout_ns)
{
	return timeout_ns < 0 ? gpu->ch->ctx->options.timeout_ns : timeout_ns;
}

static uint64_t address_of(const void *at)
{
	return m2n__gpu_address(at);
}

static int check_send(
	struct m2n__gpu *gpu, const struct m2n_dispatch_send_params *p, uint64_t round)
{
	static const char *const what[] = {"rows", "scales", "row_weights"};
	const void *const at[] = {p->rows, p->scales, p->row_weights};
	const struct m2n__gpu_plan_part *part = p->plan->device;
	struct m2n_channel *ch = gpu->ch;

	if (!part || part->gpu != gpu)
		return m2n__error(-EINVAL, "%s: the plan was made for another channel", ch->title);
	if (!p->plan->map)
		return m2n__error(-EINVAL, "%s: the plan was never routed", ch->title);
	if (part->n_tokens && !p->rows)
		return m2n__error(-EINVAL, "%s: dispatch_send: rows is NULL", ch->title);
	if (part->n_tokens && ch->p.scale_bytes && !ch->p.cast && !p->scales)
		return m2n__error(-EINVAL, "%s: the channel has scale_bytes %zu, scales is NULL",
			ch->title, ch->p.scale_bytes);
	if (round - ch->next_combine >= ch->p.depth)
		return m2n__error(-EAGAIN,
			"%s: round %lu still uses the slot of round %lu: call combine_recv for "
			"that one first",
			ch->title, (unsigned long)round, (unsigned long)(round - ch->p.depth));
	return check_all(gpu, what, at, 3);
}

static void fill_dispatch(struct m2n__gpu *gpu, const struct m2n_dispatch_send_params *p,
	const struct m2n__gpu_map *map, struct m2n__gpu_dispatch_args *args)
{
	const struct m2n_channel *ch = gpu->ch;

	*args = (struct m2n__gpu_dispatch_args){
		.shape = gpu->shape,
		.map = *map,
		.plan = p->plan->device->dev,
		.rows = address_of(p->rows),
		.row_stride =
			p->row_stride ? p->row_stride : ch->p.row_bytes * (ch->p.cast ? 2 : 1),
		.scales = ch->p.cast ? 0 : address_of(p->scales),
		.scale_stride = p->scale_stride ? p->scale_stride : ch->p.scale_bytes,
		.row_weights = address_of(p->row_weights),
		.tx = address_of(gpu->dispatch.tx_table),
		.rounds = address_of(gpu->rounds),
		.places = address_of(gpu->places),
		.part = address_of(gpu->part),
		.counts = address_of(gpu->dispatch.tx_counts),
		.report = address_of(&gpu->reports[M2N__GPU_REPORT_SEND]),
		.has_mask = p->mask != NULL,
	};
	if (p->mask)
		memcpy(args->mask, p->mask, ch->n_words_experts * sizeof(*p->mask));
}

int m2n__gpu_dispatch_send(struct m2n__gpu *gpu, const struct m2n_dispatch_send_params *p)
{
	struct m2n_channel *ch = gpu->ch;
	uint64_t round = atomic_load_explicit(&ch->next_send, memory_order_relaxed);
	struct m2n__gpu_dispatch_args args;
	struct m2n_map *map;
	int rc = check_send(gpu, p, round);

	if (rc)
		return rc;
	map = m2n__channel_map(ch, round);
	if (p->plan->map != map)
		return m2n__error(M2N_ERR_MAP,
			"%s: round %lu: the plan was routed with another map", ch->title,
			(unsigned long)round);
	fill_dispatch(gpu, p, m2n__gpu_map(gpu, map), &args);
	rc = m2n__gpu_begin(gpu, &gpu->source, p->stream);
	if (rc)
		return rc;
	/* Links that come up from here on start with the next round. */
	atomic_store_explicit(&ch->next_send, round + 1, memory_order_seq_cst);
	while (atomic_load_explicit(&ch->dispatch->linking, memory_order_seq_cst))
		;
	rc = m2n__gpu_launch(
		gpu, m2n__gpu_dispatch_kernel(&args), p->plan->device->n_tokens, p->stream, &args);
	m2n__gpu_end(gpu, &gpu->source, p->stream);
	if (rc) {
		atomic_store_explicit(&ch->next_send, round, memory_order_seq_cst);
		return m2n__error_at(rc, "%s: dispatch_send", ch->title);
	}
	if (p->round)
		*p->round = round;
	return 0;
}

static void fill_recv(struct m2n__gpu *gpu, const struct m2n_dispatch_recv_params *p,
	const struct m2n_map *map, uint32_t index, struct m2n__gpu_recv_args *args)
{
	uint32_t self = (uint32_t)gpu->ch->self_expert;

	*args = (struct m2n__gpu_recv_args){
		.shape = gpu->shape,
		.map = *m2n__gpu_map(gpu, map),
		.batch = gpu->batches[index],
		.rx = address_of(gpu->dispatch.rx_table),
		.alive = address_of(gpu->dispatch.alive),
		.rounds = address_of(gpu->rounds),
		.counts = address_of(gpu->dispatch.rx_counts),
		.report = address_of(&gpu->reports[M2N__GPU_REPORT_RECV]),
		.ticket = gpu->batch_ticket[index],
		.timeout_ns = device_timeout(gpu, p->timeout_ns),
		.n_local = map->rank_first[self + 1] - map->rank_first[self],
		.has_mask = p->mask != NULL,
	};
	if (p->mask)
		memcpy(args->mask, p->mask, gpu->ch->n_words_sources * sizeof(*p->mask));
}

/* What the caller may use of a batch before the host knows its rows. */
static void publish(struct m2n__gpu *gpu, struct m2n__batch *b, uint32_t index, uint64_t round)
{
	const struct m2n__gpu_batch *dev = &gpu->batches[index];

	b->held = 1;
	b->pub = (struct m2n_batch){
		.round = round,
		.segments = b->segments,
		.rows = (const void *)(uintptr_t)dev->rows,
		.scales = gpu->shape.scale_bytes ? (const void *)(uintptr_t)dev->scales : NULL,
		.expert_rows = b->expert_rows,
		.n_local_experts = b->n_local,
		.missing = b->missing,
		.max_rows = gpu->max_batch_rows,
		.device_expert_rows = (const uint32_t *)(uintptr_t)dev->expert_rows,
		.device_expert_first = (const uint32_t *)(uintptr_t)dev->expert_first,
	};
}

int m2n__gpu_dispatch_recv(struct m2n__gpu *gpu, const struct m2n_dispatch_recv_params *p,
	const struct m2n_batch **batch)
{
	struct m2n_channel *ch = gpu->ch;
	uint64_t round = atomic_load_explicit(&ch->next_recv, memory_order_relaxed);
	uint32_t index = m2n__ring_slot(&ch->recv_ring, round, ch->p.depth);
	struct m2n__batch *b = &ch->batches[index];
	const struct m2n_map *map = m2n__channel_map(ch, round);
	struct m2n__gpu_recv_args args;
	int rc;

	if (b->held)
		return m2n__error(-EBUSY, "%s: round %lu: the batch of round %lu is still held",
			ch->title, (unsigned long)round, (unsigned long)b->pub.round);
	gpu->batch_ticket[index] =
		atomic_fetch_add_explicit(&gpu->ticket, 1, memory_order_relaxed) + 1;
	fill_recv(gpu, p, map, index, &args);
	b->n_local = args.n_local;
	rc = m2n__gpu_begin(gpu, &gpu->expert, p->stream);
	if (rc)
		return rc;
	rc = m2n__gpu_launch(gpu, M2N__GPU_AWAIT_ROWS, gpu->shape.n_sources, p->stream, &args);
	if (!rc)
		rc = m2n__gpu_launch(gpu, M2N__GPU_UNPACK, gpu->max_batch_rows, p->stream, &args);
	m2n__gpu_end(gpu, &gpu->expert, p->stream);
	if (rc)
		return m2n__error_at(rc, "%s: dispatch_recv", ch->title);
	publish(gpu, b, index, round);
	atomic_store_explicit(&ch->next_recv, round + 1, memory_order_relaxed);
	*batch = &b->pub;
	return 0;
}

int m2n__gpu_combine_send(struct m2n__gpu *gpu, const struct m2n_combine_send_params *p,
	struct m2n__batch *b, uint32_t index)
{
	struct m2n_channel *ch = gpu->ch;
	struct m2n__gpu_reply_args args;
	int rc = 0;

	if (gpu->max_batch_rows && !p->rows)
		return m2n__error(-EINVAL, "%s: combine_send: rows is NULL", ch->title);
	if (p->rows)
		rc = m2n__gpu_check_pointer(gpu, "rows", p->rows);
	if (rc)
		return rc;
	args = (struct m2n__gpu_reply_args){
		.shape = gpu->shape,
		.map = *m2n__gpu_map(gpu, m2n__channel_map(ch, b->pub.round)),
		.batch = gpu->batches[index],
		.rows = address_of(p->rows),
		.row_stride = p->row_stride ? p->row_stride : ch->p.out_row_bytes,
		.rx = address_of(gpu->dispatch.rx_table),
		.tx = address_of(gpu->reply.tx_table),
		.rounds = address_of(gpu->rounds),
		.counts = address_of(gpu->reply.tx_counts),
		.report = address_of(&gpu->reports[M2N__GPU_REPORT_REPLY]),
		.n_local = b->n_local,
	};
	rc = m2n__gpu_begin(gpu, &gpu->expert, p->stream);
	if (rc)
		return rc;
	rc = m2n__gpu_launch(
		gpu, m2n__gpu_reply_kernel(&args), gpu->max_batch_rows, p->stream, &args);
	m2n__gpu_end(gpu, &gpu->expert, p->stream);
	if (rc)
		return m2n__error_at(rc, "%s: combine_send", ch->title);
	b->held = 0;
	b->pub.segments = NULL;
	return 0;
}

static int check_combine(struct m2n__gpu *gpu, const struct m2n_combine_recv_params *p)
{
	static const char *const what[] = {"out", "residual", "replies", "weights", "missing"};
	const void *const at[] = {p->out, p->residual, p->replies, p->weights, p->missing};
	struct m2n_channel *ch = gpu->ch;

	if (!p->plan || !p->plan->device || p->plan->device->gpu != gpu)
		return m2n__error(-EINVAL, "%s: combine_recv: %s", ch->title,
			p->plan ? "the plan was made for another channel" : "plan is NULL");
	if (p->plan->device->n_tokens && !p->out && !p->replies)
		return m2n__error(-EINVAL, "%s: combine_recv: out is NULL", ch->title);
	if (atomic_load_explicit(&ch->next_send, memory_order_relaxed) == ch->next_combine)
		return m2n__error(-EINVAL, "%s: no round is in flight", ch->title);
	if (p->round != M2N_ROUND_NEXT && p->round != ch->next_combine)
		return m2n__error(-EINVAL,
			"%s: round %lu: in CUDA memory rounds are combined in order, the next is "
			"%lu",
			ch->title, (unsigned long)p->round, (unsigned long)ch->next_combine);
	return check_all(gpu, what, at, 5);
}

static void fill_combine(struct m2n__gpu *gpu, const struct m2n_combine_recv_params *p,
	struct m2n__gpu_combine_args *args)
{
	struct m2n_channel *ch = gpu->ch;

	*args = (struct m2n__gpu_combine_args){
		.shape = gpu->shape,
		.map = *m2n__gpu_map(gpu, m2n__channel_map(ch, ch->next_combine)),
		.plan = p->plan->device->dev,
		.rx = address_of(gpu->reply.rx_table),
		.alive = address_of(gpu->reply.alive),
		.region = address_of(ch->reply->region.mem->base),
		.places = address_of(gpu->places),
		.part = address_of(gpu->part),
		.answered = address_of(gpu->answered),
		.rounds = address_of(gpu->rounds),
		.held = address_of(gpu->held),
		.counts = address_of(gpu->reply.rx_counts),
		.report = address_of(&gpu->reports[M2N__GPU_REPORT_COMBINE]),
		.weights = address_of(p->weights),
		.unit_weights = p->unit_weights || ch->p.reduce_at_expert,
		.residual = address_of(p->residual),
		.residual_stride = p->residual_stride ? p->residual_stride : ch->p.out_row_bytes,
		.out = address_of(p->out),
		.out_stride = p->out_stride ? p->out_stride : ch->p.out_row_bytes,
		.replies = address_of(p->replies),
		.missing = address_of(p->missing),
		.timeout_ns = device_timeout(gpu, p->timeout_ns),
	};
}

int m2n__gpu_combine_recv(struct m2n__gpu *gpu, const struct m2n_combine_recv_params *p)
{
	struct m2n_channel *ch = gpu->ch;
	struct m2n__gpu_combine_args args;
	int rc = check_combine(gpu, p);

	if (rc)
		return rc;
	fill_combine(gpu, p, &args);
	rc = m2n__gpu_begin(gpu, &gpu->source, p->stream);
	if (rc)
		return rc;
	rc = m2n__gpu_launch(gpu, M2N__GPU_AWAIT_REPLIES, gpu->shape.n_ranks, p->stream, &args);
	if (!rc)
		rc = m2n__gpu_launch(
			gpu, M2N__GPU_COMBINE, p->plan->device->n_tokens, p->stream, &args);
	m2n__gpu_end(gpu, &gpu->source, p->stream);
	if (rc)
		return m2n__error_at(rc, "%s: combine_recv", ch->title);
	ch->next_combine++;
	return 0;
}

int m2n__gpu_combine_backward(struct m2n__gpu *gpu, const struct m2n_dispatch_send_params *dispatch,
	const void *replies, float *grad)
{
	static const char *const what[] = {"rows", "replies", "grad_weights"};
	const void *const at[] = {dispatch->rows, replies, grad};
	struct m2n_dispatch_send_params p = *dispatch;
	const struct m2n__gpu_plan_part *part = p.plan->device;
	struct m2n__gpu_dot_args args = {
		.shape = gpu->shape,
		.dy = address_of(p.rows),
		.dy_stride = p.row_stride ? p.row_stride : gpu->shape.out_row_bytes,
		.replies = address_of(replies),
		.grad = address_of(grad),
	};
	int rc = part ? check_all(gpu, what, at, 3)
		      : m2n__error(-EINVAL, "%s: the plan was made for another channel",
				gpu->ch->title);

	if (!rc && grad && part->n_tokens) {
		args.n_tokens = part->n_tokens;
		rc = m2n__gpu_begin(gpu, &gpu->source, p.stream);
		if (rc)
			return rc;
		rc = m2n__gpu_launch(gpu, M2N__GPU_DOT, part->n_tokens, p.stream, &args);
		m2n__gpu_end(gpu, &gpu->source, p.stream);
	}
	if (rc)
		return rc;
	if (!p.row_weights)
		p.row_weights = (const float *)(uintptr_t)part->dev.weight;
	return m2n_dispatch_send(gpu->ch, &p);
}
