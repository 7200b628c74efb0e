/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The server's side of a connection as a small machine: progress() reads what is there, takes
 * whole frames while no answer is pending, and answers each. Whatever does not fit the phase or
 * the frame rules ends this session and no other.
 */
#include "bootstrap/store_session.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <m2n/status.h>

#include "util/time.h"

/* Rooms above this are given back when empty: big values are rare, idle clients are many. */
#define KEEP_ROOM 4096
/* What a client that has proven itself may send without a second read. */
#define SERVING_ROOM 1024

static const char auth_context[] = M2N__STORE_AUTH_CONTEXT;

struct m2n__store_session *m2n__store_session_create(int fd, int64_t handshake_ns)
{
	struct m2n__store_session *s = calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	s->in = malloc(M2N__STORE_HANDSHAKE_MAX);
	if (!s->in) {
		free(s);
		return NULL;
	}
	s->in_room = M2N__STORE_HANDSHAKE_MAX;
	s->fd = fd;
	s->phase = M2N__STORE_AWAIT_HELLO;
	s->deadline_ns = m2n__deadline_ns(handshake_ns);
	return s;
}

void m2n__store_session_destroy(struct m2n__store_session *session)
{
	if (!session)
		return;
	close(session->fd);
	free(session->in);
	free(session->out);
	free(session);
}

static int answer_pending(const struct m2n__store_session *s)
{
	return s->out_sent < s->out_bytes;
}

short m2n__store_session_events(const struct m2n__store_session *session)
{
	return answer_pending(session) ? POLLOUT : POLLIN;
}

static int reserve(uint8_t **buffer, size_t *room, size_t bytes)
{
	uint8_t *grown;

	if (bytes <= *room)
		return 0;
	grown = realloc(*buffer, bytes);
	if (!grown)
		return -ENOMEM;
	*buffer = grown;
	*room = bytes;
	return 0;
}

static void release(uint8_t **buffer, size_t *room)
{
	if (*room <= KEEP_ROOM)
		return;
	free(*buffer);
	*buffer = NULL;
	*room = 0;
}

static void send_answer(struct m2n__store_session *s)
{
	ssize_t n;

	while (answer_pending(s)) {
		n = send(s->fd, s->out + s->out_sent, s->out_bytes - s->out_sent, MSG_NOSIGNAL);
		if (n < 0) {
			s->dead |= errno != EAGAIN && errno != EINTR;
			return;
		}
		s->out_sent += (size_t)n;
	}
	s->out_bytes = s->out_sent = 0;
	release(&s->out, &s->out_room);
	if (s->phase == M2N__STORE_REFUSING)
		(void)shutdown(s->fd, SHUT_WR);
}

static void answer(struct m2n__store_session *s, enum m2n__store_frame_type type, uint32_t request,
	const void *value, size_t bytes)
{
	struct m2n__store_frame frame = {
		.type = (uint16_t)type, .request = request, .value = value, .value_bytes = bytes};

	if (reserve(&s->out, &s->out_room, M2N__STORE_HEADER_BYTES + bytes) ||
		m2n__store_frame_pack(&frame, s->out, s->out_room, &s->out_bytes)) {
		s->dead = 1;
		return;
	}
	s->out_sent = 0;
	send_answer(s);
}

static void answer_failure(
	struct m2n__store_session *s, enum m2n__store_frame_type type, uint32_t request, int why)
{
	uint8_t value[4];

	m2n__store_status_pack(why, value);
	answer(s, type, request, value, sizeof(value));
}

/*
 * Says why and lets the client read it: closing at once with input unread would make the kernel
 * reset the connection, and the reason with it.
 */
static void refuse(struct m2n__store_session *s, uint32_t request, int why)
{
	s->phase = M2N__STORE_REFUSING;
	s->deadline_ns = m2n__deadline_ns(M2N__STORE_LINGER_NS);
	s->in_bytes = 0;
	answer_failure(s, M2N__STORE_REFUSED, request, why);
}

static void take_hello(struct m2n__store_session *s, const struct m2n__store_frame *frame)
{
	memcpy(s->caller_nonce, frame->value, sizeof(s->caller_nonce));
	m2n__auth_nonce(s->listener_nonce);
	s->phase = M2N__STORE_AWAIT_PROOF;
	answer(s, M2N__STORE_CHALLENGE, frame->request, s->listener_nonce,
		sizeof(s->listener_nonce));
}

static void take_proof(struct m2n__store_session *s, const struct m2n__store_shared *shared,
	const struct m2n__store_frame *frame)
{
	uint8_t proof[M2N__AUTH_PROOF_BYTES];

	if (m2n__auth_check(&shared->key, M2N__AUTH_CALLER, s->caller_nonce, s->listener_nonce,
		    auth_context, sizeof(auth_context), frame->value)) {
		refuse(s, frame->request, M2N_ERR_AUTH);
		return;
	}
	m2n__auth_prove(&shared->key, M2N__AUTH_LISTENER, s->caller_nonce, s->listener_nonce,
		auth_context, sizeof(auth_context), proof);
	s->phase = M2N__STORE_SERVING;
	s->deadline_ns = INT64_MAX;
	answer(s, M2N__STORE_WELCOME, frame->request, proof, sizeof(proof));
}

static void answer_waiting(
	struct m2n__store_shared *shared, const char *key, const void *value, size_t bytes)
{
	struct m2n__store_session *s;

	for (size_t i = 0; i < shared->n_sessions; i++) {
		s = shared->sessions[i];
		if (!s->waiting || s->dead || strcmp(s->wait_key, key) != 0)
			continue;
		s->waiting = 0;
		answer(s, M2N__STORE_VALUE, s->wait_request, value, bytes);
	}
}

static void take_put(struct m2n__store_session *s, struct m2n__store_shared *shared,
	const struct m2n__store_frame *frame, const char *key)
{
	int status = m2n__store_table_put(&shared->table, key, frame->value, frame->value_bytes);

	if (status) {
		answer_failure(s, M2N__STORE_FAILED, frame->request, status);
		return;
	}
	answer(s, M2N__STORE_DONE, frame->request, NULL, 0);
	answer_waiting(shared, key, frame->value, frame->value_bytes);
}

static void take_get(struct m2n__store_session *s, struct m2n__store_shared *shared,
	const struct m2n__store_frame *frame, const char *key)
{
	const struct m2n__store_entry *entry = m2n__store_table_get(&shared->table, key);

	if (entry) {
		answer(s, M2N__STORE_VALUE, frame->request, entry->value, entry->bytes);
	} else if (frame->type == M2N__STORE_TRY) {
		answer(s, M2N__STORE_MISSING, frame->request, NULL, 0);
	} else {
		s->waiting = 1;
		s->wait_request = frame->request;
		memcpy(s->wait_key, key, frame->key_bytes + 1);
	}
}

static void take_frame(struct m2n__store_session *s, struct m2n__store_shared *shared,
	const struct m2n__store_frame *frame)
{
	char key[M2N__STORE_WIRE_KEY_MAX + 1];

	memcpy(key, frame->key, frame->key_bytes);
	key[frame->key_bytes] = '\0';
	/* A request ends the GET before it. */
	s->waiting = 0;
	if (s->phase == M2N__STORE_AWAIT_HELLO && frame->type == M2N__STORE_HELLO)
		take_hello(s, frame);
	else if (s->phase == M2N__STORE_AWAIT_PROOF && frame->type == M2N__STORE_PROOF)
		take_proof(s, shared, frame);
	else if (s->phase == M2N__STORE_SERVING && frame->type == M2N__STORE_PUT)
		take_put(s, shared, frame, key);
	else if (s->phase == M2N__STORE_SERVING &&
		 (frame->type == M2N__STORE_GET || frame->type == M2N__STORE_TRY))
		take_get(s, shared, frame, key);
	else
		s->dead = 1;
}

/* Makes room for a frame of `need` bytes; before the proof only for a handshake's. */
static void make_room(struct m2n__store_session *s, size_t need)
{
	int proven = s->phase == M2N__STORE_SERVING;
	size_t least = proven ? SERVING_ROOM : M2N__STORE_HANDSHAKE_MAX;

	if (!proven && need > M2N__STORE_HANDSHAKE_MAX)
		s->dead = 1;
	else if (reserve(&s->in, &s->in_room, need > least ? need : least))
		s->dead = 1;
}

static void take_input(struct m2n__store_session *s, struct m2n__store_shared *shared)
{
	struct m2n__store_frame frame;
	size_t used = 0, need = 0;
	int status = 0;

	while (!status && !s->dead && !answer_pending(s) && s->phase != M2N__STORE_REFUSING) {
		status = m2n__store_frame_unpack(s->in + used, s->in_bytes - used, &frame, &need);
		if (!status) {
			used += need;
			take_frame(s, shared, &frame);
		} else if (status == M2N_ERR_VERSION) {
			refuse(s, 0, status);
		} else if (status != -EAGAIN) {
			s->dead = 1;
		}
	}
	if (s->dead || s->phase == M2N__STORE_REFUSING)
		return;
	s->in_bytes -= used;
	memmove(s->in, s->in + used, s->in_bytes);
	if (!s->in_bytes)
		release(&s->in, &s->in_room);
	make_room(s, need);
}

static void read_input(struct m2n__store_session *s)
{
	uint8_t dropped[1024];
	ssize_t n;

	if (s->phase == M2N__STORE_REFUSING)
		n = recv(s->fd, dropped, sizeof(dropped), 0);
	else
		n = recv(s->fd, s->in + s->in_bytes, s->in_room - s->in_bytes, 0);
	if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
		s->dead = 1;
	else if (n > 0 && s->phase != M2N__STORE_REFUSING)
		s->in_bytes += (size_t)n;
}

void m2n__store_session_progress(
	struct m2n__store_session *session, struct m2n__store_shared *shared, short events)
{
	if (!events || session->dead)
		return;
	if (answer_pending(session)) {
		send_answer(session);
		/* Requests that came with the one before wait in the buffer, not in poll(). */
		if (!answer_pending(session) && !session->dead)
			take_input(session, shared);
		return;
	}
	read_input(session);
	if (!session->dead && session->phase != M2N__STORE_REFUSING)
		take_input(session, shared);
}
