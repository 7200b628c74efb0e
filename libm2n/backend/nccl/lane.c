/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A lane: its communicator, and its batches on their way through the states queued, launched,
 * done, acknowledged. NCCL may still be queueing a group when ncclGroupEnd() has returned: what
 * depends on the group, the event and the notice, comes only when the communicator says success.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <m2n/status.h>

#include "backend/nccl/nccl.h"
#include "util/error.h"
#include "util/options.h"
#include "util/time.h"

#define PATIENCE_NS INT64_C(2000000000) /* for kernels to leave after an abort */

static struct m2n__nccl_iface *iface_of(const struct m2n__nccl_lane *lane)
{
	return m2n__nccl_iface(lane->ep->ep.iface);
}

static const struct m2n__cuda_driver *driver_of(const struct m2n__nccl_lane *lane)
{
	return iface_of(lane)->cuda->driver;
}

static int make_comm(struct m2n__nccl_lane *lane, const struct m2n__nccl_id *id)
{
	struct m2n__nccl_config config = {
		.size = sizeof(config),
		.magic = M2N__NCCL_CONFIG_MAGIC,
		.version = M2N__NCCL_MIN_VERSION,
		.blocking = 0,
		.cga_cluster_size = M2N__NCCL_UNDEFINED,
		.min_ctas = 1,
		.max_ctas = (int)lane->ep->ep.iface->params.options->nccl_ctas,
		.split_share = M2N__NCCL_UNDEFINED,
		.traffic_class = M2N__NCCL_UNDEFINED,
	};
	int result = m2n__nccl.ncclCommInitRankConfig(
		&lane->comm, 2, *id, lane->is_sender ? 0 : 1, &config);

	if (result != M2N__NCCL_SUCCESS && result != M2N__NCCL_IN_PROGRESS)
		return m2n__nccl_error(result, NULL, "making a communicator");
	return 0;
}

/*
 * The greatest priority: kernels of ours that wait for what a lane brings must not keep its kernels
 * off the device, and CUDA keeps streams of different priorities in different queues.
 */
static m2n__cu_result make_stream(struct m2n__nccl_lane *lane)
{
	const struct m2n__cuda_driver *driver = driver_of(lane);
	int least, greatest;
	m2n__cu_result result = driver->stream_priorities(&least, &greatest);

	return result ? result
		      : driver->stream_create_priority(
				&lane->stream, M2N__CU_STREAM_NON_BLOCKING, greatest);
}

int m2n__nccl_lane_open(struct m2n__nccl_lane *lane, const struct m2n__nccl_id *id)
{
	const struct m2n__cuda *cuda = iface_of(lane)->cuda;
	m2n__cu_result result = make_stream(lane);
	int rc = 0;

	if (result) {
		lane->stream = NULL;
		return m2n__cuda_error(cuda, result, "nccl: making a stream");
	}
	lane->batches = calloc(M2N__NCCL_BATCHES, sizeof(*lane->batches));
	if (!lane->batches)
		return m2n__error(-ENOMEM, "nccl: no memory for batches");
	for (int i = 0; i < M2N__NCCL_BATCHES && !result; i++)
		result = cuda->driver->event_create(
			&lane->batches[i].event, M2N__CU_EVENT_DISABLE_TIMING);
	if (result)
		return m2n__cuda_error(cuda, result, "nccl: making an event");
	if (id)
		rc = make_comm(lane, id);
	if (!rc)
		lane->state = id ? M2N__NCCL_OPENING : M2N__NCCL_OPEN;
	return rc;
}

/* Kernels that are aborted leave soon; until they have, memory must not go. */
static int await_stream(const struct m2n__nccl_lane *lane)
{
	int64_t deadline = m2n__deadline_ns(PATIENCE_NS);
	m2n__cu_result result;

	while ((result = driver_of(lane)->stream_query(lane->stream)) == M2N__CU_NOT_READY) {
		if (m2n__now_ns() > deadline)
			return 0;
		m2n__sleep_ns(20000);
	}
	return 1;
}

void m2n__nccl_lane_abort(struct m2n__nccl_lane *lane)
{
	lane->state = M2N__NCCL_CLOSED;
	if (lane->comm)
		m2n__nccl_abort(iface_of(lane), lane->comm);
	lane->comm = NULL;
}

void m2n__nccl_lane_close(struct m2n__nccl_lane *lane)
{
	const struct m2n__iface_params *params = &lane->ep->ep.iface->params;

	if (lane->stream && !await_stream(lane)) {
		params->log(params->log_arg, M2N_LOG_ERROR,
			"nccl: work of an aborted communicator does not leave the device");
		lane->stream = NULL; /* with what it uses, for good */
		lane->batches = NULL;
	}
	for (int i = 0; lane->batches && i < M2N__NCCL_BATCHES; i++)
		if (lane->batches[i].event)
			driver_of(lane)->event_destroy(lane->batches[i].event);
	if (lane->stream)
		driver_of(lane)->stream_destroy(lane->stream);
	lane->stream = NULL;
	free(lane->batches);
	lane->batches = NULL;
}

/* What is gathered is a batch now. */
static void close_batch(struct m2n__nccl_lane *lane)
{
	lane->n_queued++;
	lane->is_gathering = 0;
}

struct m2n__nccl_batch *m2n__nccl_gather(struct m2n__nccl_lane *lane, size_t n)
{
	/* The receiver may have said that a batch is done before our own event did. */
	uint64_t free_from = lane->n_acked < lane->n_done ? lane->n_acked : lane->n_done;

	if (lane->is_gathering &&
		!m2n__nccl_notice_fits(m2n__nccl_batch(lane, lane->n_queued), n))
		close_batch(lane);
	if (!lane->is_gathering) {
		if (lane->n_queued - free_from >= M2N__NCCL_BATCHES)
			return NULL;
		m2n__nccl_notice_begin(m2n__nccl_batch(lane, lane->n_queued));
		lane->is_gathering = 1;
	}
	return m2n__nccl_batch(lane, lane->n_queued);
}

void m2n__nccl_lane_warm(struct m2n__nccl_lane *lane)
{
	uint8_t *at = (uint8_t *)(uintptr_t)iface_of(lane)->warm;
	struct m2n__nccl_batch *batch = m2n__nccl_batch(lane, 0);

	if (lane->n_queued)
		return;
	m2n__nccl_notice_begin(batch);
	batch->pieces[batch->n_pieces++] = (struct m2n__nccl_piece){
		.at = lane->is_sender ? at : at + M2N__NCCL_WARM_BYTES,
		.bytes = M2N__NCCL_WARM_BYTES,
	};
	close_batch(lane);
}

/* The group of a batch. NCCL's result. */
static int launch_group(struct m2n__nccl_lane *lane, const struct m2n__nccl_batch *batch)
{
	int result = m2n__nccl.ncclGroupStart(), ended;

	if (result)
		return result;
	for (unsigned i = 0; i < batch->n_pieces; i++) {
		const struct m2n__nccl_piece *piece = &batch->pieces[i];

		if (result != M2N__NCCL_SUCCESS && result != M2N__NCCL_IN_PROGRESS)
			break;
		if (lane->is_sender)
			result = m2n__nccl.ncclSend(piece->at, piece->bytes, M2N__NCCL_UINT8, 1,
				lane->comm, lane->stream);
		else
			result = m2n__nccl.ncclRecv(piece->at, piece->bytes, M2N__NCCL_UINT8, 0,
				lane->comm, lane->stream);
	}
	ended = m2n__nccl.ncclGroupEnd();
	return result != M2N__NCCL_SUCCESS && result != M2N__NCCL_IN_PROGRESS ? result : ended;
}

static int launch_copies(struct m2n__nccl_lane *lane, const struct m2n__nccl_batch *batch)
{
	const struct m2n__cuda *cuda = iface_of(lane)->cuda;

	for (unsigned i = 0; i < batch->n_pieces; i++) {
		const struct m2n__nccl_piece *piece = &batch->pieces[i];
		m2n__cu_result result = cuda->driver->copy_on_device((uintptr_t)piece->to,
			(uintptr_t)piece->at, piece->bytes, lane->stream);

		if (result)
			return m2n__cuda_error(cuda, result, "nccl: copying to ourselves");
	}
	return 0;
}

static int launch(struct m2n__nccl_lane *lane)
{
	struct m2n__nccl_batch *batch = m2n__nccl_batch(lane, lane->n_launched);
	int result;

	if (lane->n_launched == lane->n_queued)
		close_batch(lane);
	lane->state = M2N__NCCL_LAUNCHING;
	if (!lane->comm)
		return launch_copies(lane, batch);
	result = batch->n_pieces ? launch_group(lane, batch) : M2N__NCCL_SUCCESS;
	if (result != M2N__NCCL_SUCCESS && result != M2N__NCCL_IN_PROGRESS)
		return m2n__nccl_error(
			result, lane->comm, lane->is_sender ? "sending" : "receiving");
	return 0;
}

/* The group is on the stream: 0 or an error. */
static int launched(struct m2n__nccl_lane *lane)
{
	struct m2n__nccl_batch *batch = m2n__nccl_batch(lane, lane->n_launched);
	const struct m2n__cuda *cuda = iface_of(lane)->cuda;
	m2n__cu_result result = cuda->driver->event_record(batch->event, lane->stream);

	if (result)
		return m2n__cuda_error(cuda, result, "nccl: recording an event");
	lane->state = M2N__NCCL_OPEN;
	lane->n_launched++;
	if (lane->is_sender && lane->comm && lane->n_launched > 1)
		return m2n__nccl_say_batch(lane, lane->n_launched - 1);
	return 0;
}

/* What the communicator says of itself: 0, -EAGAIN (it is at something), or an error. */
static int ask_comm(const struct m2n__nccl_lane *lane)
{
	int error = M2N__NCCL_SUCCESS, result;

	if (!lane->comm)
		return 0;
	result = m2n__nccl.ncclCommGetAsyncError(lane->comm, &error);
	if (result == M2N__NCCL_SUCCESS)
		result = error;
	if (result == M2N__NCCL_IN_PROGRESS)
		return -EAGAIN;
	if (result)
		return m2n__nccl_error(result, lane->comm,
			lane->state == M2N__NCCL_OPENING ? "connecting to the peer"
							 : "the connection broke");
	return 0;
}

static void raise_signals(struct m2n__nccl_lane *lane, const struct m2n__nccl_batch *batch)
{
	_Atomic uint64_t *signals = lane->ep->ep.iface->params.signals;

	for (unsigned i = 0; i < batch->n_puts; i++) {
		/* N1: the event's bytes before the signal, pairs with A2 in m2n__rx_ready(). */
		if (batch->signals[i] != M2N__SIGNAL_NONE)
			atomic_fetch_add_explicit(
				&signals[batch->signals[i]], 1, memory_order_release);
	}
}

/* Batches whose work is over. How many, or an error. */
static int finish(struct m2n__nccl_lane *lane)
{
	const struct m2n__cuda *cuda = iface_of(lane)->cuda;
	int n = 0;

	while (lane->n_done < lane->n_launched) {
		struct m2n__nccl_batch *batch = m2n__nccl_batch(lane, lane->n_done);
		m2n__cu_result result = cuda->driver->event_query(batch->event);

		if (result == M2N__CU_NOT_READY)
			break;
		if (result)
			return m2n__cuda_error(cuda, result, "nccl: work on the device");
		if (!lane->is_sender || !lane->comm)
			raise_signals(lane, batch);
		lane->n_done++;
		n++;
	}
	if (!lane->comm || (lane->n_done == 1 && lane->n_acked == 0))
		lane->n_acked = lane->n_done; /* nobody acknowledges those */
	if (n && !lane->is_sender && lane->n_done > 1 && m2n__nccl_say_done(lane))
		return -ENOMEM;
	return n;
}

int m2n__nccl_lane_progress(struct m2n__nccl_lane *lane)
{
	int n = 0, rc;

	if (lane->state == M2N__NCCL_CLOSED)
		return 0;
	rc = ask_comm(lane);
	if (rc && rc != -EAGAIN)
		return rc;
	if (rc == 0 && lane->state == M2N__NCCL_OPENING)
		lane->state = M2N__NCCL_OPEN;
	if (rc == 0 && lane->state == M2N__NCCL_LAUNCHING) {
		n++;
		rc = launched(lane);
		if (rc)
			return rc;
	}
	if (lane->state == M2N__NCCL_OPEN &&
		(lane->n_launched < lane->n_queued || m2n__nccl_is_gathered(lane))) {
		n++;
		rc = launch(lane);
		if (rc)
			return rc;
	}
	rc = finish(lane);
	return rc < 0 ? rc : n + rc;
}
