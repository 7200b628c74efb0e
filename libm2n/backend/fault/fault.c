/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fault interposer: wraps a mapped backend, hides the mapping, and so drives core's messaging
 * path without a network. A put is queued with a due time and performed by progress(): copied to
 * where the inner backend mapped the peer's memory, then the peer's signal word is raised.
 * Option FAULT says what goes wrong on the way. The pieces of a put are read when it is
 * performed, not when it is posted: a caller that reuses them before flush() is found out. Like a
 * NIC it takes registered memory only, few pieces at once, and no more transfers than its queue
 * has room for.
 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "backend/fault/fault_spec.h"
#include "backend/registry.h"
#include "util/options.h"
#include "util/error.h"
#include "util/time.h"

#define INNER_BLOB_BYTES (M2N__ADDRESS_BYTES - M2N__KEY_BYTES - 16)
#define MAX_IOV 16
#define MAX_INLINE 128
#define QUEUE_LENGTH 256 /* transfers of one connection under way */

struct fault_blob {
	uint64_t inner_bytes;
	uint64_t key_bytes;
	uint8_t key[M2N__KEY_BYTES]; /* of the signal table */
	uint8_t inner[INNER_BLOB_BYTES];
};

struct fault_put {
	struct fault_put *next;
	struct fault_ep *ep;
	int64_t due_ns;
	uint8_t *dst;
	uint32_t signal;
	int truncate;
	size_t n_iov;
	struct m2n_iov iov[MAX_IOV];
	uint8_t room[MAX_INLINE]; /* of a put that was taken inline */
};

struct fault_iface {
	struct m2n__iface iface;
	struct m2n__iface *inner;
	struct m2n__mr *signal_mr;
	struct m2n__fault_spec spec;
	pthread_mutex_t lock;
	uint64_t random;
	struct fault_put *head, **tail; /* in the order they were posted; under lock */
	atomic_uint n_queued;           /* of all connections; read without it */
};

struct fault_ep {
	struct m2n__ep ep;
	struct m2n__ep *inner;
	struct m2n__rmem *signal_rmem;
	_Atomic uint64_t *signals; /* the peer's table */
	size_t n_signals;
	unsigned n_queued;
	atomic_int broken;
};

struct fault_rmem {
	struct m2n__rmem rmem; /* ptr hidden */
	struct m2n__rmem *inner;
};

static const struct m2n__backend_ops *inner_ops;

void m2n__fault_wrap(const struct m2n__backend_ops *inner)
{
	inner_ops = inner;
}

static int chance(struct fault_iface *f, double p)
{
	/* xorshift64*: the faults of a seed are the same on every run */
	f->random ^= f->random >> 12;
	f->random ^= f->random << 25;
	f->random ^= f->random >> 27;
	return (double)((f->random * UINT64_C(2685821657736338717)) >> 11) < p * 0x1p53;
}

static void break_ep(struct fault_ep *e)
{
	e->broken = 1;
	atomic_fetch_add_explicit(&e->ep.iface->n_broken, 1, memory_order_release);
}

static int fault_probe(const struct m2n__options *options)
{
	struct m2n__fault_spec spec;

	if (!inner_ops)
		return m2n__error(M2N_ERR_BACKEND,
			"fault: wraps another backend; ask for it as BACKEND=fault:NAME");
	return m2n__fault_spec_parse(options->fault, &spec);
}

static int fault_open(const struct m2n__iface_params *params, struct m2n__iface **iface)
{
	struct fault_iface *f = calloc(1, sizeof(*f));
	int rc;

	if (!f)
		return m2n__error(-ENOMEM, "fault: no memory for the iface");
	rc = m2n__fault_spec_parse(params->options->fault, &f->spec);
	if (!rc)
		rc = inner_ops->open(params, &f->inner);
	if (rc)
		goto free_iface;
	f->inner->ops = inner_ops;
	rc = inner_ops->reg(f->inner, params->signal_mem, &f->signal_mr);
	if (rc)
		goto close_inner;
	f->iface.params = *params;
	f->iface.max_iov = MAX_IOV;
	f->iface.max_bytes = SIZE_MAX;
	f->iface.max_inline = MAX_INLINE;
	f->iface.needs_mr = 1;
	f->random = f->spec.seed * UINT64_C(0x9e3779b97f4a7c15) + 1;
	f->tail = &f->head;
	pthread_mutex_init(&f->lock, NULL);
	*iface = &f->iface;
	return 0;
close_inner:
	inner_ops->close(f->inner);
free_iface:
	free(f);
	return rc;
}

static void fault_close(struct m2n__iface *iface)
{
	struct fault_iface *f = (struct fault_iface *)iface;

	while (f->head) {
		struct fault_put *put = f->head;

		f->head = put->next;
		free(put);
	}
	inner_ops->dereg(f->signal_mr);
	inner_ops->close(f->inner);
	pthread_mutex_destroy(&f->lock);
	free(f);
}

static int fault_address(struct m2n__iface *iface, void *blob, size_t *bytes)
{
	struct fault_iface *f = (struct fault_iface *)iface;
	const struct m2n__mem *mem = iface->params.signal_mem;
	size_t inner_bytes = INNER_BLOB_BYTES, key_bytes = M2N__KEY_BYTES;
	struct fault_blob b;
	int rc;

	memset(&b, 0, sizeof(b));
	if (*bytes < sizeof(b))
		return m2n__error(-ENOSPC, "fault: no room for the address");
	rc = inner_ops->address(f->inner, b.inner, &inner_bytes);
	if (!rc)
		rc = inner_ops->export_key(f->signal_mr, 0, mem->bytes, b.key, &key_bytes);
	if (rc)
		return rc;
	b.inner_bytes = inner_bytes;
	b.key_bytes = key_bytes;
	memcpy(blob, &b, sizeof(b));
	*bytes = sizeof(b);
	return 0;
}

static int read_blob(const void *blob, size_t bytes, struct fault_blob *b)
{
	if (bytes != sizeof(*b))
		return m2n__error(M2N_ERR_PROTOCOL, "fault: address of %zu bytes, expected %zu",
			bytes, sizeof(*b));
	memcpy(b, blob, sizeof(*b));
	if (b->inner_bytes > sizeof(b->inner) || b->key_bytes > sizeof(b->key))
		return m2n__error(M2N_ERR_PROTOCOL, "fault: address with lengths out of range");
	return 0;
}

static int fault_reaches(struct m2n__iface *iface, const void *blob, size_t bytes)
{
	struct fault_iface *f = (struct fault_iface *)iface;
	struct fault_blob b;

	return read_blob(blob, bytes, &b) == 0 &&
	       inner_ops->reaches(f->inner, b.inner, b.inner_bytes);
}

static int fault_connect(
	struct m2n__iface *iface, const void *blob, size_t bytes, struct m2n__ep **ep)
{
	struct fault_iface *f = (struct fault_iface *)iface;
	struct fault_blob b;
	struct fault_ep *e;
	int rc = read_blob(blob, bytes, &b);

	if (rc)
		return rc;
	e = calloc(1, sizeof(*e));
	if (!e)
		return m2n__error(-ENOMEM, "fault: no memory for a connection");
	rc = inner_ops->connect(f->inner, b.inner, b.inner_bytes, &e->inner);
	if (rc)
		goto free_ep;
	e->inner->ops = inner_ops;
	rc = inner_ops->import_key(e->inner, b.key, b.key_bytes, &e->signal_rmem);
	if (rc)
		goto disconnect;
	e->ep.iface = iface;
	e->ep.max_sealed = MAX_INLINE;
	e->signals = e->signal_rmem->ptr;
	e->n_signals = e->signal_rmem->bytes / sizeof(*e->signals);
	*ep = &e->ep;
	return 0;
disconnect:
	inner_ops->disconnect(e->inner);
free_ep:
	free(e);
	return rc;
}

/* Takes the puts of one connection out of the queue, or all that are due (ep NULL). */
static struct fault_put *take(struct fault_iface *f, const struct fault_ep *ep, int64_t now)
{
	struct fault_put *taken = NULL, **end = &taken, **at = &f->head;

	while (*at) {
		struct fault_put *put = *at;

		if (ep ? put->ep == ep : put->due_ns <= now) {
			*at = put->next;
			put->next = NULL;
			*end = put;
			end = &put->next;
		} else {
			at = &put->next;
		}
	}
	f->tail = at;
	return taken;
}

static void fault_disconnect(struct m2n__ep *ep)
{
	struct fault_iface *f = (struct fault_iface *)ep->iface;
	struct fault_ep *e = (struct fault_ep *)ep;
	struct fault_put *put;

	pthread_mutex_lock(&f->lock);
	put = take(f, e, 0);
	pthread_mutex_unlock(&f->lock);
	while (put) {
		struct fault_put *next = put->next;

		atomic_fetch_sub_explicit(&f->n_queued, 1, memory_order_relaxed);
		free(put);
		put = next;
	}
	inner_ops->release_key(e->signal_rmem);
	inner_ops->disconnect(e->inner);
	free(e);
}

static int fault_reg(struct m2n__iface *iface, const struct m2n__mem *mem, struct m2n__mr **mr)
{
	struct fault_iface *f = (struct fault_iface *)iface;

	return inner_ops->reg(f->inner, mem, mr);
}

static void fault_dereg(struct m2n__mr *mr)
{
	inner_ops->dereg(mr);
}

static int fault_export(
	struct m2n__mr *mr, size_t offset, size_t bytes, void *key, size_t *key_bytes)
{
	return inner_ops->export_key(mr, offset, bytes, key, key_bytes);
}

static int fault_import(
	struct m2n__ep *ep, const void *key, size_t key_bytes, struct m2n__rmem **rmem)
{
	struct fault_ep *e = (struct fault_ep *)ep;
	struct fault_rmem *r = calloc(1, sizeof(*r));
	int rc;

	if (!r)
		return m2n__error(-ENOMEM, "fault: no memory for a key");
	rc = inner_ops->import_key(e->inner, key, key_bytes, &r->inner);
	if (rc) {
		free(r);
		return rc;
	}
	r->rmem.ep = ep;
	r->rmem.bytes = r->inner->bytes;
	*rmem = &r->rmem;
	return 0;
}

static void fault_release(struct m2n__rmem *rmem)
{
	struct fault_rmem *r = (struct fault_rmem *)rmem;

	inner_ops->release_key(r->inner);
	free(r);
}

static size_t total_bytes(const struct m2n__put *put)
{
	size_t bytes = 0;

	for (size_t i = 0; i < put->n_pieces; i++)
		bytes += put->pieces[i].bytes;
	return bytes;
}

static int check_put(
	const struct fault_iface *f, const struct m2n__put *put, size_t bytes, size_t room)
{
	if (put->offset > room || bytes > room - put->offset)
		return m2n__error(-EINVAL, "fault: put of %zu bytes at %zu into memory of %zu",
			bytes, put->offset, room);
	for (size_t i = 0; bytes > MAX_INLINE && i < put->n_pieces; i++) {
		const struct m2n__piece *piece = &put->pieces[i];
		const struct m2n__mr *mr =
			piece->reg ? piece->reg->mr[f->iface.params.index] : NULL;
		size_t at = mr ? (size_t)((const char *)piece->base - (char *)mr->mem->base) : 0;

		if (!mr || at > mr->mem->bytes || piece->bytes > mr->mem->bytes - at)
			return m2n__error(-EFAULT,
				"fault: piece %zu of %zu bytes at %p is not in registered memory",
				i, piece->bytes, piece->base);
	}
	return 0;
}

/* One transfer: the next pieces of the list. */
static struct fault_put *make_transfer(struct m2n__put *put, struct fault_ep *e, size_t bytes)
{
	struct fault_rmem *r = (struct fault_rmem *)put->rmem;
	struct fault_put *q = malloc(sizeof(*q));
	size_t at = 0;

	if (!q)
		return NULL;
	q->next = NULL;
	q->ep = e;
	q->dst = (uint8_t *)r->inner->ptr + put->offset + put->next_offset;
	q->signal = put->signal;
	for (q->n_iov = 0; q->n_iov < MAX_IOV && put->next_piece < put->n_pieces; q->n_iov++) {
		const struct m2n__piece *piece = &put->pieces[put->next_piece++];

		q->iov[q->n_iov] = (struct m2n_iov){piece->base, piece->bytes};
		put->next_offset += piece->bytes;
		if (bytes > MAX_INLINE)
			continue;
		memcpy(q->room + at, piece->base, piece->bytes);
		q->iov[q->n_iov].base = q->room + at;
		at += piece->bytes;
	}
	return q;
}

/* Into the queue, unless something happens to it. Under the lock. */
static void post(struct fault_iface *f, struct fault_ep *e, struct fault_put *q)
{
	q->due_ns = m2n__now_ns();
	if (f->spec.delay_ns)
		q->due_ns +=
			(int64_t)((double)f->spec.delay_ns * (double)(f->random >> 11) * 0x1p-53);
	if (chance(f, f->spec.reorder))
		q->due_ns += 20000;
	q->truncate = chance(f, f->spec.truncate);
	if (chance(f, f->spec.fail)) {
		break_ep(e);
		free(q);
	} else if (chance(f, f->spec.drop)) {
		free(q);
	} else {
		e->n_queued++;
		atomic_fetch_add_explicit(&f->n_queued, 1, memory_order_relaxed);
		*f->tail = q;
		f->tail = &q->next;
	}
}

static int fault_put(struct m2n__ep *ep, struct m2n__put *put)
{
	struct fault_iface *f = (struct fault_iface *)ep->iface;
	struct fault_ep *e = (struct fault_ep *)ep;
	size_t bytes = total_bytes(put);
	int rc = check_put(f, put, bytes, put->rmem->bytes);

	if (rc)
		return rc;
	if (e->broken)
		return m2n__error(M2N_ERR_PEER_LOST, "fault: the connection broke earlier");
	pthread_mutex_lock(&f->lock);
	while (!rc && put->next_piece < put->n_pieces) {
		struct fault_put *q = NULL;

		if (e->n_queued >= QUEUE_LENGTH)
			rc = -EAGAIN;
		else if (!(q = make_transfer(put, e, bytes)))
			rc = m2n__error(-ENOMEM, "fault: no memory for a put");
		if (rc)
			break;
		post(f, e, q);
		put->n_posted++;
		put->n_signals += put->signal != M2N__SIGNAL_NONE;
	}
	pthread_mutex_unlock(&f->lock);
	return rc;
}

static void perform(struct fault_put *put)
{
	struct fault_ep *e = put->ep;
	size_t at = 0;

	for (size_t i = 0; i < put->n_iov; i++) {
		size_t n = put->truncate ? put->iov[i].bytes / 2 : put->iov[i].bytes;

		memcpy(put->dst + at, put->iov[i].base, n);
		at += put->iov[i].bytes;
	}
	if (put->truncate) {
		break_ep(e);
		return;
	}
	/* G1: the bytes before the signal, pairs with A2 in m2n__rx_ready(). */
	if (put->signal != M2N__SIGNAL_NONE && put->signal < e->n_signals)
		atomic_fetch_add_explicit(&e->signals[put->signal], 1, memory_order_release);
	inner_ops->notify(e->inner);
}

static int fault_progress(struct m2n__iface *iface)
{
	struct fault_iface *f = (struct fault_iface *)iface;
	struct fault_put *put;
	int n = 0;

	if (!atomic_load_explicit(&f->n_queued, memory_order_relaxed))
		return 0;
	pthread_mutex_lock(&f->lock);
	put = take(f, NULL, m2n__now_ns());
	while (put) {
		struct fault_put *next = put->next;

		perform(put);
		put->ep->n_queued--;
		atomic_fetch_sub_explicit(&f->n_queued, 1, memory_order_relaxed);
		free(put);
		put = next;
		n++;
	}
	pthread_mutex_unlock(&f->lock);
	return n;
}

static int fault_flush(struct m2n__ep *ep)
{
	struct fault_iface *f = (struct fault_iface *)ep->iface;
	unsigned n;

	fault_progress(ep->iface);
	pthread_mutex_lock(&f->lock);
	n = ((struct fault_ep *)ep)->n_queued;
	pthread_mutex_unlock(&f->lock);
	return n ? -EAGAIN : 0;
}

static int fault_check(struct m2n__ep *ep)
{
	return ((struct fault_ep *)ep)->broken
		       ? m2n__error(
				 M2N_ERR_PEER_LOST, "fault: the connection was broken on purpose")
		       : 0;
}

static void fault_notify(struct m2n__ep *ep)
{
	inner_ops->notify(((struct fault_ep *)ep)->inner);
}

static void fault_doze(struct m2n__iface *iface, int change)
{
	inner_ops->doze(((struct fault_iface *)iface)->inner, change);
}

static uint32_t fault_arm(struct m2n__iface *iface)
{
	return inner_ops->arm(((struct fault_iface *)iface)->inner);
}

static void fault_wait(struct m2n__iface *iface, uint32_t ticket, int64_t timeout_ns)
{
	struct fault_iface *f = (struct fault_iface *)iface;

	/* A queued put becomes due by itself; nobody rings for it. */
	if (atomic_load_explicit(&f->n_queued, memory_order_relaxed) && timeout_ns > 20000)
		timeout_ns = 20000;
	inner_ops->wait(f->inner, ticket, timeout_ns);
}

static void fault_disarm(struct m2n__iface *iface)
{
	inner_ops->disarm(((struct fault_iface *)iface)->inner);
}

const struct m2n__backend_ops m2n__backend_fault = {
	.name = "fault",
	.about = "interposer for tests: drives a mapped backend by puts that go wrong",
	.priority = 0,
	.caps = M2N__CAP_HOST_MEMORY | M2N__CAP_SLEEP,
	.probe = fault_probe,
	.open = fault_open,
	.close = fault_close,
	.address = fault_address,
	.reaches = fault_reaches,
	.connect = fault_connect,
	.disconnect = fault_disconnect,
	.reg = fault_reg,
	.dereg = fault_dereg,
	.export_key = fault_export,
	.import_key = fault_import,
	.release_key = fault_release,
	.put = fault_put,
	.flush = fault_flush,
	.progress = fault_progress,
	.check = fault_check,
	.notify = fault_notify,
	.doze = fault_doze,
	.arm = fault_arm,
	.wait = fault_wait,
	.disarm = fault_disarm,
};
