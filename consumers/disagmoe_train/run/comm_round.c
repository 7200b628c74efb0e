/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rounds, and what goes beside them. With sinks that are named, also where they are the sources,
 * one code serves every number of groups.
 */
#include <errno.h>
#include <string.h>

#include "model/error.h"
#include "report/timeline.h"
#include "run/comm_inner.h"

/* Ahead of a packed plan and the residual. */
struct beside_head {
	int64_t sent_ns; /* of the sender's clock: the timeline of one host */
	uint64_t packed_bytes;
};

static int fail_unless_early(int rc)
{
	return rc == -EAGAIN ? rc : comm_fail(rc);
}

size_t comm_record_bytes(const struct comm *c)
{
	size_t n = c->max_rows, h = c->p.config->hidden_size, top_k = c->p.config->top_k;

	return (n * h * (top_k + 1) + 2 * n * top_k) * sizeof(float) + c->packed_bytes;
}

int comm_record_open(struct comm *c, struct comm_record *r)
{
	size_t n = c->max_rows, h = c->p.config->hidden_size, top_k = c->p.config->top_k;
	float *at = comm_alloc(c, comm_record_bytes(c));
	int rc;

	*r = (struct comm_record){0};
	if (!at)
		return -ENOMEM;
	r->replies = at;
	r->dx = r->replies + n * top_k * h;
	r->d_weights = r->dx + n * h;
	r->d_weights_in = r->d_weights + n * top_k;
	r->packed = r->d_weights_in + n * top_k;
	rc = m2n_plan_create(c->own[FLOW_FORWARD], &r->out);
	if (!rc)
		rc = m2n_plan_create(c->before[FLOW_FORWARD], &r->in);
	return rc ? comm_fail(rc) : 0;
}

void comm_record_close(struct comm_record *r)
{
	m2n_plan_destroy(r->out);
	m2n_plan_destroy(r->in);
	r->out = r->in = NULL;
}

static int put_residual(
	struct comm *c, struct comm_record *r, const struct nn_attention_record *attention)
{
	struct beside_head head = {.sent_ns = timeline_now()};
	struct m2n_iov iov[3] = {{&head, sizeof(head)}, {r->packed, 0},
		{attention->y, attention->n_rows * c->p.config->hidden_size * sizeof(float)}};
	size_t bytes;
	int rc = m2n_plan_pack(r->out, r->packed, c->packed_bytes, &bytes);

	head.packed_bytes = iov[1].bytes = bytes;
	if (!rc)
		rc = m2n_exchange_put(
			c->beside[FLOW_FORWARD], c->peer_to[FLOW_FORWARD], iov, 3, c->p.timeout_ns);
	/* The head is on the stack; the rest stays until the gradient comes. */
	if (!rc)
		rc = m2n_exchange_flush(
			c->beside[FLOW_FORWARD], c->peer_to[FLOW_FORWARD], c->p.timeout_ns);
	return rc ? comm_fail(rc) : 0;
}

/* Pairs that have no live expert rank are dropped by a plan: names the rank that is lost. */
static int fail_route(struct comm *c, int rc)
{
	const struct place *place = c->p.place;
	struct m2n_peer_attr peer;

	for (uint32_t j = 0; rc == M2N_PARTIAL && j < place->n_f; j++) {
		int rank = place_ffn_rank(place, (uint32_t)place->group, j);

		if (!m2n_group_peer(c->p.env->group, rank, &peer) && peer.state >= M2N_PEER_LOST)
			return model_fail(-EIO, "rank %d is lost: %s", rank, peer.reason);
	}
	return comm_fail(rc);
}

int comm_send_rows(
	struct comm *c, struct comm_record *r, const struct nn_attention_record *attention)
{
	struct m2n_dispatch_send_params send = M2N_DISPATCH_SEND_PARAMS_INIT;
	struct m2n_route_params route = M2N_ROUTE_PARAMS_INIT;
	int rc;

	route.n_tokens = (uint32_t)attention->n_rows;
	route.expert_ids = attention->ids;
	route.weights = attention->weights;
	rc = m2n_plan_route(c->own[FLOW_FORWARD], r->out, &route);
	if (rc)
		return fail_route(c, rc);
	send.plan = r->out;
	send.rows = attention->rows;
	send.sink = c->p.place->attention;
	send.timeout_ns = c->p.timeout_ns;
	rc = m2n_dispatch_send(c->own[FLOW_FORWARD], &send);
	return rc ? comm_fail(rc) : put_residual(c, r, attention);
}

static int unpack_residual(struct comm *c, struct comm_record *r, uint64_t round, size_t n_rows,
	const void *data, size_t bytes)
{
	size_t row_bytes = n_rows * c->p.config->hidden_size * sizeof(float);
	const char *packed = (const char *)data + sizeof(struct beside_head);
	struct beside_head head;
	int rc;

	memcpy(&head, data, bytes < sizeof(head) ? 0 : sizeof(head));
	if (bytes < sizeof(head) || head.packed_bytes > bytes - sizeof(head) ||
		bytes - sizeof(head) - head.packed_bytes != row_bytes)
		return model_fail(-EPROTO, "rank %d sent a residual of %zu bytes, not of %zu rows",
			c->peer_from[FLOW_FORWARD], bytes, n_rows);
	rc = m2n_plan_unpack(c->before[FLOW_FORWARD], r->in, packed, head.packed_bytes, round);
	if (rc)
		return comm_fail(rc);
	memcpy(r->x, packed + head.packed_bytes, row_bytes);
	r->sent_ns = head.sent_ns;
	return 0;
}

int comm_take_residual(
	struct comm *c, struct comm_record *r, uint64_t round, size_t n_rows, int64_t timeout_ns)
{
	struct m2n_exchange *x = c->beside[FLOW_FORWARD];
	int peer = c->peer_from[FLOW_FORWARD], released;
	const void *data;
	size_t bytes;
	int rc = m2n_exchange_get(x, peer, timeout_ns, &data, &bytes);

	if (rc)
		return fail_unless_early(rc);
	rc = unpack_residual(c, r, round, n_rows, data, bytes);
	released = m2n_exchange_release(x, peer);
	return rc ? rc : released ? comm_fail(released) : 0;
}

int comm_take_replies(struct comm *c, struct comm_record *r, uint64_t round, int64_t timeout_ns)
{
	struct m2n_combine_recv_params recv = M2N_COMBINE_RECV_PARAMS_INIT;
	int rc;

	recv.round = round;
	recv.source = c->p.place->attention;
	recv.plan = r->in;
	recv.residual = recv.out = r->x;
	recv.replies = r->replies;
	recv.timeout_ns = timeout_ns;
	rc = m2n_combine_recv(c->before[FLOW_FORWARD], &recv);
	return rc ? fail_unless_early(rc) : 0;
}

int comm_send_gradient(struct comm *c, struct comm_record *r, size_t n_rows)
{
	struct m2n_dispatch_send_params send = M2N_DISPATCH_SEND_PARAMS_INIT;
	struct m2n_iov iov[2] = {{r->dx, n_rows * c->p.config->hidden_size * sizeof(float)},
		{r->d_weights_in, n_rows * c->p.config->top_k * sizeof(float)}};
	int rc;

	send.plan = r->in;
	send.rows = r->dx;
	send.sink = c->p.place->attention;
	send.timeout_ns = c->p.timeout_ns;
	rc = m2n_combine_backward(c->before[FLOW_BACKWARD], &send, r->replies, r->d_weights_in);
	if (!rc)
		rc = m2n_exchange_put(c->beside[FLOW_BACKWARD], c->peer_to[FLOW_BACKWARD], iov, 2,
			c->p.timeout_ns);
	return rc ? comm_fail(rc) : 0;
}

int comm_take_gradient(struct comm *c, struct comm_record *r, size_t n_rows, int64_t timeout_ns)
{
	size_t dx_bytes = n_rows * c->p.config->hidden_size * sizeof(float);
	size_t weight_bytes = n_rows * c->p.config->top_k * sizeof(float);
	struct m2n_exchange *x = c->beside[FLOW_BACKWARD];
	int peer = c->peer_from[FLOW_BACKWARD], is_whole;
	const void *data;
	size_t bytes;
	int rc = m2n_exchange_get(x, peer, timeout_ns, &data, &bytes);

	if (rc)
		return fail_unless_early(rc);
	is_whole = bytes == dx_bytes + weight_bytes;
	if (is_whole) {
		memcpy(r->dx, data, dx_bytes);
		memcpy(r->d_weights, (const char *)data + dx_bytes, weight_bytes);
	}
	rc = m2n_exchange_release(x, peer);
	if (!is_whole)
		return model_fail(-EPROTO, "rank %d sent a gradient of %zu bytes, not of %zu rows",
			peer, bytes, n_rows);
	return rc ? comm_fail(rc) : 0;
}

int comm_take_row_gradients(
	struct comm *c, struct comm_record *r, uint64_t round, float *d_rows, int64_t timeout_ns)
{
	struct m2n_combine_recv_params recv = M2N_COMBINE_RECV_PARAMS_INIT;
	int rc;

	recv.round = round;
	recv.source = c->p.place->attention;
	recv.plan = r->out;
	recv.unit_weights = 1;
	recv.out = d_rows;
	recv.timeout_ns = timeout_ns;
	rc = m2n_combine_recv(c->own[FLOW_BACKWARD], &recv);
	return rc ? fail_unless_early(rc) : 0;
}

int comm_flush(struct comm *c)
{
	int rc = 0;

	for (int way = 0; !rc && way < FLOW_WAYS; way++) {
		struct m2n_channel *ch = way == FLOW_FORWARD ? c->own[way] : c->before[way];

		rc = m2n_send_wait(ch, UINT64_MAX, c->p.timeout_ns);
		if (!rc)
			rc = m2n_exchange_flush(c->beside[way], c->peer_to[way], c->p.timeout_ns);
	}
	return rc ? comm_fail(rc) : 0;
}

int comm_take_batch(
	struct comm *c, enum flow_way way, int64_t timeout_ns, const struct m2n_batch **batch)
{
	struct m2n_dispatch_recv_params recv = M2N_DISPATCH_RECV_PARAMS_INIT;
	int rc;

	recv.timeout_ns = timeout_ns;
	rc = m2n_dispatch_recv(c->own[way], &recv, batch);
	return rc ? fail_unless_early(rc) : 0;
}

int comm_answer(struct comm *c, enum flow_way way, const struct m2n_batch *batch, const float *rows)
{
	struct m2n_combine_send_params send = M2N_COMBINE_SEND_PARAMS_INIT;
	int rc;

	send.batch = batch;
	send.rows = rows;
	send.timeout_ns = c->p.timeout_ns;
	rc = m2n_combine_send(c->own[way], &send);
	if (!rc)
		rc = m2n_reply_wait(c->own[way], c->p.timeout_ns);
	return rc ? comm_fail(rc) : 0;
}
