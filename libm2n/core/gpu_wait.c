/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the host may ask of the device: a plan's numbers, a batch's rows, what went wrong. All of
 * it is read from pinned memory that kernels wrote; nothing here calls the driver.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "core/gpu.h"
#include "util/error.h"

/* A ticket that a kernel stores last. */
static uint64_t ticket_of(const uint64_t *at)
{
	/* A14: pairs with the release of summary and mirror in the kernels. */
	return __atomic_load_n(at, __ATOMIC_ACQUIRE);
}

static int await_ticket(
	struct m2n_ctx *ctx, const uint64_t *at, uint64_t ticket, int64_t timeout_ns)
{
	struct m2n__wait w;
	int rc = 0;

	m2n__wait_begin(&w, ctx, timeout_ns);
	while (ticket_of(at) < ticket && !rc)
		rc = m2n__wait_step(&w);
	m2n__wait_end(&w);
	return rc;
}

static int plan_result(const struct m2n_channel *ch, const struct m2n__gpu_summary *s)
{
	switch (s->code) {
	case 0:
		return 0;
	case -EINVAL:
		return m2n__error(-EINVAL,
			"%s: token %u, k %u: expert id %d, accepted: 0..%u, or -1 for none",
			ch->title, s->bad_token, s->bad_k, s->bad_id, ch->p.n_experts - 1);
	case M2N_ERR_CAPACITY:
		return m2n__error(M2N_ERR_CAPACITY,
			"%s: more rows for an expert rank than its capacity of %u", ch->title,
			ch->slot_rows);
	default:
		return m2n__error(M2N_PARTIAL,
			"%s: %u routed pairs dropped, %u of them because no live rank has the "
			"expert",
			ch->title, s->n_dropped, s->n_dropped_lost);
	}
}

int m2n_plan_wait(struct m2n_plan *plan, int64_t timeout_ns)
{
	struct m2n__gpu_plan_part *part;
	const struct m2n__gpu_summary *s;
	uint32_t at = 0;
	int rc;

	if (!plan)
		return m2n__error(-EINVAL, "m2n_plan_wait: plan is NULL");
	part = plan->device;
	if (!part || !part->ticket)
		return 0;
	s = part->summary;
	rc = await_ticket(part->gpu->ch->ctx, &s->ticket, part->ticket, timeout_ns);
	if (rc)
		return rc == -EAGAIN ? rc
				     : m2n__error(rc, "%s: the device has not routed the plan yet",
					       part->gpu->ch->title);
	plan->n_tokens = s->n_tokens;
	plan->n_rows = s->n_rows;
	plan->n_unique = s->n_sent;
	plan->n_dropped = s->n_dropped;
	plan->n_dropped_lost = s->n_dropped_lost;
	for (uint32_t j = 0; j < plan->limits.n_ranks; at += s->rank_rows[j++])
		plan->rank_first[j] = at;
	plan->rank_first[plan->limits.n_ranks] = at;
	if (s->n_dropped)
		rc = m2n__cuda_read(part->cuda, plan->dropped,
			(const void *)(uintptr_t)part->dev.dropped, s->n_tokens);
	else
		memset(plan->dropped, 0, s->n_tokens);
	return rc ? rc : plan_result(part->gpu->ch, s);
}

/* Segments of a batch, in row order: rows lie expert-major and dense. */
static void lay_out(struct m2n_channel *ch, struct m2n__batch *b, const struct m2n__gpu_mirror *m,
	const struct m2n_map *map)
{
	const uint32_t *expert = map->expert_of + map->rank_first[ch->self_expert];
	uint32_t n_sources = (uint32_t)ch->p.n_sources;

	b->pub.n_rows = b->pub.n_segments = 0;
	for (uint32_t e = 0; e < b->n_local; e++) {
		b->expert_rows[e] = 0;
		for (uint32_t i = 0; i < n_sources; i++) {
			uint32_t n = m->cell_rows[e * n_sources + i];
			size_t first = b->pub.n_rows;

			if (!n)
				continue;
			b->segments[b->pub.n_segments++] = (struct m2n_segment){
				.expert = (int32_t)expert[e],
				.local_expert = e,
				.source = i,
				.first_row = b->pub.n_rows,
				.n_rows = n,
				.rows = (const uint8_t *)b->pub.rows + first * ch->p.row_bytes,
				.scales = b->pub.scales ? (const uint8_t *)b->pub.scales +
								  first * ch->p.scale_bytes
							: NULL,
			};
			b->expert_rows[e] += n;
			b->pub.n_rows += n;
		}
	}
	memcpy(b->missing, m->missing, ch->n_words_sources * sizeof(*b->missing));
}

/* The ranks of a bitmap over a list, as text. */
static const char *list_ranks(const uint64_t *bits, const int *ranks, size_t n, char text[160])
{
	size_t at = 0;

	text[0] = '\0';
	for (uint32_t i = 0; i < n && at < 150; i++)
		if (m2n__bit(bits, i))
			at += (size_t)snprintf(text + at, 160 - at, " %d", ranks[i]);
	return text;
}

static int batch_result(const struct m2n_channel *ch, const struct m2n__gpu_mirror *m)
{
	char ranks[160];

	if (!m->code)
		return 0;
	list_ranks(m->missing, ch->p.sources, ch->p.n_sources, ranks);
	if (m->code == -ETIMEDOUT)
		return m2n__error(-ETIMEDOUT, "%s: round %lu: nothing came from ranks%s", ch->title,
			(unsigned long)m->round, ranks);
	return m2n__error(m->code == M2N_ERR_MAP ? m->code : M2N_PARTIAL,
		"%s: round %lu: nothing of ranks%s: lost, or what came made no sense", ch->title,
		(unsigned long)m->round, ranks);
}

int m2n_batch_wait(struct m2n_channel *ch, const struct m2n_batch *batch, int64_t timeout_ns)
{
	const struct m2n__gpu_mirror *m;
	struct m2n__batch *b = NULL;
	uint32_t i = 0;
	int rc;

	if (!ch || !batch)
		return m2n__error(-EINVAL, "m2n_batch_wait: channel or batch is NULL");
	if (!ch->gpu)
		return 0;
	while (ch->batches && i < ch->p.depth && &ch->batches[i].pub != batch)
		i++;
	if (ch->batches && i < ch->p.depth)
		b = &ch->batches[i];
	if (!b)
		return m2n__error(
			-EINVAL, "%s: batch_wait: it is no batch of this channel", ch->title);
	m = (const struct m2n__gpu_mirror *)(uintptr_t)ch->gpu->batches[i].mirror;
	rc = await_ticket(ch->ctx, &m->ticket, ch->gpu->batch_ticket[i], timeout_ns);
	if (rc)
		return rc == -EAGAIN ? rc
				     : m2n__error(rc,
					       "%s: round %lu: the device has not received the "
					       "batch yet",
					       ch->title, (unsigned long)batch->round);
	b->pub.round = m->round;
	lay_out(ch, b, m, m2n__channel_map(ch, b->pub.round));
	return batch_result(ch, m);
}

int m2n__gpu_read_report(
	struct m2n__gpu *gpu, unsigned which, uint64_t *seen, struct m2n__gpu_report *report)
{
	const struct m2n__gpu_report *at = &gpu->reports[which];
	uint64_t seq = ticket_of(&at->seq);

	/* one that is being written is for the next look */
	if (seq == *seen || seq & 1)
		return 0;
	report->round = at->round;
	report->code = at->code;
	report->n_rows = at->n_rows;
	memcpy(report->peers, at->peers, sizeof(report->peers));
	atomic_thread_fence(memory_order_acquire);
	if (ticket_of(&at->seq) != seq)
		return 0;
	*seen = seq;
	return 1;
}

static int say_report(const struct m2n_channel *ch, unsigned which, const struct m2n__gpu_report *r)
{
	static const char *const what[] = {
		"dispatch_send", "dispatch_recv", "combine_send", "combine_recv"};
	int of_sources = which == M2N__GPU_REPORT_RECV || which == M2N__GPU_REPORT_REPLY;
	char ranks[160], rows[48] = "";

	list_ranks(r->peers, of_sources ? ch->p.sources : ch->p.experts,
		of_sources ? ch->p.n_sources : ch->p.n_expert_ranks, ranks);
	if (r->n_rows)
		snprintf(rows, sizeof(rows), ", %u rows", r->n_rows);
	return m2n__error(r->code, "%s: round %lu: %s: ranks%s%s: %s", ch->title,
		(unsigned long)r->round, what[which], ranks, rows,
		r->code == -ETIMEDOUT ? "nothing came in time"
		: r->code == -ENOBUFS
			? "sent to nobody: lost ranks that are still alive may write to its slot"
		: r->code == M2N_ERR_PROTOCOL ? "what they sent makes no sense"
		: r->code == M2N_ERR_MAP      ? "they use another expert map"
					      : "lost, or not linked");
}

/* The worst comes first. */
static int weight_of(int code)
{
	return code == M2N_PARTIAL ? 1 : code == -ETIMEDOUT ? 2 : 3;
}

static int check_reports(struct m2n_channel *ch)
{
	struct m2n__gpu_report worst = {0}, report;
	unsigned which = 0;

	for (unsigned i = 0; i < M2N__GPU_N_REPORTS; i++) {
		if (!m2n__gpu_read_report(ch->gpu, i, &ch->gpu->report_seen[i], &report) ||
			!report.code)
			continue;
		if (worst.code && weight_of(worst.code) >= weight_of(report.code))
			continue;
		worst = report;
		which = i;
	}
	return worst.code ? say_report(ch, which, &worst) : 0;
}

/* Errors of kernels stay with the context: any call tells of them. */
static int check_device(const struct m2n__gpu *gpu)
{
	int rc = m2n__cuda_enter(gpu->cuda), cu;

	if (rc)
		return rc;
	cu = gpu->cuda->driver->stream_query(gpu->cuda->stream);
	m2n__cuda_leave(gpu->cuda);
	return cu && cu != M2N__CU_NOT_READY
		       ? m2n__error_at(m2n__cuda_error(gpu->cuda, cu, "the device has failed"),
				 "%s", gpu->ch->title)
		       : 0;
}

int m2n_channel_check(struct m2n_channel *ch)
{
	int rc;

	if (!ch)
		return m2n__error(-EINVAL, "m2n_channel_check: channel is NULL");
	if (!ch->gpu)
		return 0;
	rc = check_device(ch->gpu);
	if (rc)
		return rc;
	m2n__ctx_lock(ch->ctx);
	rc = check_reports(ch);
	m2n__ctx_unlock(ch->ctx);
	return rc;
}
