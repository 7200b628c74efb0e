/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Strangers at the control ports: a process that knows the store (so it finds every rank's port)
 * but not the protocol sends noise, cut and swollen frames, hellos under another rank's number,
 * and opens connections that say nothing. A job that runs meanwhile must not notice.
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bootstrap/auth.h"
#include "bootstrap/store.h"
#include "core/record.h"
#include "fault/fault.h"
#include "wire/control_wire.h"
#include "wire/wire.h"

#define N_RANKS 4 /* of the job; the stranger is one more */
#define N_ATTACKS 120
#define N_SILENT 40

/* Words: ranks that are ready; the attack is over; rounds that may begin; the last round. */
enum { ATTACKING, CALM, MAY_BEGIN, LAST };

static const struct job hostile_job = {
	.name = "hostile",
	.n_sources = 2,
	.n_expert_ranks = 2,
	.n_experts = 6,
	.top_k = 3,
	.n_tokens = 14,
	.row_bytes = 48,
	.out_row_bytes = 32,
	.dtype = M2N_DTYPE_BF16,
	.depth = 3,
	.in_flight = 1,
	.n_rounds = 1,
	.seed = 34,
};

static void read_record(struct rank *rank, int of, struct m2n__record *record)
{
	static uint8_t value[M2N__RECORD_BYTES_MAX];
	struct m2n__store *store;
	struct m2n__cursor cursor;
	size_t bytes = sizeof(value);
	char key[64];

	expect_ok(m2n__store_open(rank->store, 0, NULL, 5000000000, &store));
	snprintf(key, sizeof(key), "test/rank/%d", of);
	expect_ok(store->ops->get(store, key, value, &bytes, 5000000000));
	m2n__store_close(store);
	cursor = (struct m2n__cursor){value, value + bytes, 0};
	expect_ok(m2n__record_unpack(record, &cursor));
}

static int dial(const struct m2n__record *record)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)record->port)};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	expect(fd >= 0);
	if (inet_pton(AF_INET, record->address, &to.sin_addr) != 1)
		to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (connect(fd, (struct sockaddr *)&to, sizeof(to))) {
		close(fd);
		return -1;
	}
	return fd;
}

static size_t make_hello(uint8_t *frame, int to, uint32_t from, const struct m2n__record *record)
{
	uint8_t *body = frame + M2N__FRAME_HEAD_BYTES, nonce[32] = {1};
	struct m2n__cursor c = {body, body + 8000, 0};
	struct m2n__frame_head head = {M2N__WIRE_VERSION, M2N__FRAME_HELLO, 0};

	m2n__put_blob(&c, "test", 4);
	m2n__put_u32(&c, from);
	m2n__put_u32(&c, (uint32_t)to);
	m2n__put_u64(&c, record->incarnation);
	m2n__put_bytes(&c, nonce, sizeof(nonce));
	m2n__record_pack(record, &c);
	head.body_bytes = (uint32_t)(c.at - body);
	m2n__frame_pack(&head, frame);
	return M2N__FRAME_HEAD_BYTES + head.body_bytes;
}

/* Attack number i on a rank: some bytes to send, sometimes more than one frame. */
static size_t make_attack(uint32_t i, uint8_t *bytes, int to, const struct m2n__record *record)
{
	struct m2n__frame_head head = {M2N__WIRE_VERSION, (uint16_t)(i % 11), 0};
	uint64_t random = job_random(40, i, 0, 0);
	size_t n = random % 3000;

	for (size_t b = 0; b < 4000; b++)
		bytes[b] = (uint8_t)job_random(41, i, b, 0);
	switch (i % 8) {
	case 0: /* noise */
		return n;
	case 1: /* a frame of noise of each type, known or not */
		head.body_bytes = (uint32_t)n;
		break;
	case 2: /* says more than it may */
		head.body_bytes = 0xffffffff;
		break;
	case 3: /* another version */
		head.version = (uint16_t)random;
		head.body_bytes = 10;
		break;
	case 4: /* nothing in it */
		break;
	case 5: /* a hello from rank 3, or from a rank far away */
		return make_hello(bytes, to, random % 2 ? 3 : (uint32_t)random, record);
	case 6: /* half of it */
		return make_hello(bytes, to, 3, record) / 2;
	case 7: /* with bits flipped */
		n = make_hello(bytes, to, 3, record);
		for (int flip = 0; flip < 5; flip++)
			bytes[job_random(42, i, (uint64_t)flip, 0) % n] ^= 0x24;
		return n;
	}
	m2n__frame_pack(&head, bytes);
	return M2N__FRAME_HEAD_BYTES + n;
}

static void attack(struct rank *rank)
{
	static uint8_t bytes[16384], answer[4096];
	struct m2n__record record[N_RANKS];
	int silent[N_SILENT];

	for (int i = 0; i < N_RANKS; i++)
		read_record(rank, i, &record[i]);
	for (int i = 0; i < N_SILENT; i++)
		silent[i] = dial(&record[i % N_RANKS]);
	for (uint32_t i = 0; i < N_ATTACKS; i++) {
		int to = (int)(i / 8 % N_RANKS);
		size_t n = make_attack(i, bytes, to, &record[to]);
		int fd = dial(&record[to]);

		if (fd < 0)
			continue;
		for (size_t at = 0; at < n;) {
			ssize_t sent = send(fd, bytes + at, n - at, MSG_NOSIGNAL);

			if (sent <= 0)
				break;
			at += (size_t)sent;
		}
		/* Half of them wait for the answer: the rank gets to read. */
		if (i % 2) {
			shutdown(fd, SHUT_WR);
			while (recv(fd, answer, sizeof(answer), 0) > 0)
				;
		}
		close(fd);
	}
	for (int i = 0; i < N_SILENT; i++) {
		if (silent[i] >= 0)
			close(silent[i]);
	}
}

/* Rounds go on until the attack is over, and some more; rank 0 says which is the last. */
static int may_begin(struct rank *rank, uint32_t round)
{
	if (rank->rank == 0) {
		if (atomic_load(&rank->word[CALM]) && !atomic_load(&rank->word[LAST]))
			atomic_store(&rank->word[LAST], round + 50);
		word_set(&rank->word[MAY_BEGIN], round + 1);
	}
	while (atomic_load(&rank->word[MAY_BEGIN]) < round + 1)
		(void)m2n_ctx_progress(rank->ctx);
	return !atomic_load(&rank->word[LAST]) || round < atomic_load(&rank->word[LAST]);
}

static void run_rank(struct rank *rank)
{
	struct job_rank jr;

	if (rank->rank == N_RANKS) {
		word_wait(&rank->word[ATTACKING], N_RANKS);
		attack(rank);
		word_set(&rank->word[CALM], 1);
		return;
	}
	rank->n_ranks = N_RANKS;
	expect_ok(rank_open(rank));
	expect_ok(job_open(&jr, rank, rank->arg));
	word_add(&rank->word[ATTACKING], 1);
	for (uint32_t round = 0; may_begin(rank, round); round++) {
		struct m2n_peer_attr attr;

		if (jr.source >= 0) {
			expect_ok(job_send(&jr, round));
			expect_ok(job_combine(&jr, round));
		} else {
			expect_ok(job_serve(&jr));
		}
		(void)m2n_ctx_progress(rank->ctx);
		for (int peer = 0; peer < N_RANKS; peer++) {
			expect_ok(m2n_group_peer(rank->group, peer, &attr));
			if (attr.state == M2N_PEER_LOST)
				rank_fail(__FILE__, __LINE__, "round %u: rank %d is lost: %s",
					round, peer, attr.reason);
		}
	}
	rank_barrier(rank);
	job_close(&jr);
	rank_close(rank);
}

static int hostile_with(const struct conf *conf, const char *secret)
{
	struct ranks_opts opts = conf->opts;
	struct job job = hostile_job;
	struct m2n__auth_key key;

	if (m2n__auth_key_derive(secret, &key) != 0) {
		printf("# %s\n", m2n_error_text());
		return RANKS_SKIP;
	}
	opts.bare = 1;
	opts.secret = secret;
	return ranks_run(N_RANKS + 1, run_rank, &job, &opts);
}

static int strangers(const struct conf *conf)
{
	return hostile_with(conf, NULL);
}

static int strangers_and_secret(const struct conf *conf)
{
	return hostile_with(conf, "known to four");
}

const struct conf_case hostile_cases[] = {
	{"hostile: strangers at the control ports", 5, strangers, HOST_MEMORY},
	{"hostile: strangers at the control ports, with a secret", 5, strangers_and_secret,
		HOST_MEMORY},
	{0},
};
