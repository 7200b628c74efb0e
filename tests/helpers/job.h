/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A logical job: tokens, routing, weights and experts that depend on the seed, the round and the
 * token's global number alone, not on how many ranks share the work. Any rank (and the oracle) can
 * make any of it, so nothing has to be told between processes, and the outputs of the same job on
 * other rank counts, backends and placements must be bit-identical.
 *
 * The expert function mixes every byte of the row into every output value: a wrong byte, a swapped
 * row or a row of another expert shows. The oracle is route/reference.h; the fp8 cast has its own
 * here, by search over the 256 codes.
 */
#ifndef TESTS_JOB_H
#define TESTS_JOB_H

#include <stddef.h>
#include <stdint.h>

#include <m2n/m2n.h>

#define JOB_MAX_EXPERTS 256
#define JOB_MAX_RANKS 64
#define JOB_MAX_TOP_K 64

enum job_routing {
	JOB_UNIFORM = 0, /* any experts, repeats possible */
	JOB_DISTINCT, /* k different experts */
	JOB_ONE, /* all to expert 1 */
	JOB_NOBODY, /* all ids -1 */
	JOB_HOLES, /* a third of the ids -1 */
	JOB_REPEATED, /* each token names one expert k times */
	JOB_SKEWED, /* half of the pairs to expert 0 */
};

enum job_map {
	JOB_MAP_BLOCKS = 0, /* the default map */
	JOB_MAP_UNEVEN, /* some ranks own much, some nothing */
	JOB_MAP_REPLICAS, /* each expert on two ranks, expert 0 on all */
	JOB_MAP_REVERSED, /* round robin from the last rank */
};

struct job {
	const char *name;
	int n_sources;
	int n_expert_ranks;
	int classic; /* every rank has all roles; needs n_sources == n_expert_ranks */
	int reversed; /* ranks in the lists by falling number */
	uint32_t n_experts;
	uint32_t top_k;
	uint32_t n_tokens; /* of all sources in a round */
	int odd_sources_only; /* sources with an even index have no tokens */
	size_t row_bytes;
	size_t scale_bytes;
	size_t out_row_bytes;
	size_t pad; /* bytes between rows on the caller's side */
	enum m2n_dtype dtype;
	enum m2n_cast cast;
	enum m2n_placement placement;
	int dedup;
	int reduce_at_expert;
	uint32_t depth;
	uint32_t in_flight; /* 1..depth */
	int out_of_order; /* expert ranks answer the batches they hold in falling order */
	int residual;
	int registered; /* rows and outputs lie in registered memory */
	int no_weights;
	int echo; /* experts answer each row as it is; rows hold values of the dtype */
	enum job_routing routing;
	enum job_map map;
	uint32_t switch_round; /* not 0: JOB_MAP_REVERSED is in force from here on */
	uint32_t n_rounds;
	uint64_t seed;
};

/* Who owns what, by arrays as m2n_map_create() takes them. */
struct job_owners {
	uint32_t first[JOB_MAX_EXPERTS + 1];
	uint32_t owners[JOB_MAX_EXPERTS * JOB_MAX_RANKS];
};

int job_n_ranks(const struct job *job);
int job_source_rank(const struct job *job, int source); /* the group rank */
int job_expert_rank(const struct job *job, int expert);
size_t job_value_bytes(const struct job *job);
size_t job_given_row_bytes(const struct job *job); /* what dispatch_send is given */

uint32_t job_first_token(const struct job *job, int source);
uint32_t job_n_tokens(const struct job *job, int source);

enum job_map job_map_of(const struct job *job, uint32_t round);
void job_owners(const struct job *job, enum job_map kind, struct job_owners *owners);

uint64_t job_random(uint64_t seed, uint64_t a, uint64_t b, uint64_t c);
/* Inputs of one token, by global number. */
void job_ids(const struct job *job, uint32_t round, uint32_t token, int32_t *ids);
void job_weights(const struct job *job, uint32_t round, uint32_t token, float *weights);
void job_row(const struct job *job, uint32_t round, uint32_t token, void *row);
void job_scales(const struct job *job, uint32_t round, uint32_t token, void *scales);
void job_residual(const struct job *job, uint32_t round, uint32_t token, void *row);
/* What an expert sees of it: the row and its scales as sent. */
void job_sent(const struct job *job, uint32_t round, uint32_t token, void *row, void *scales);

void job_expert(
	const struct job *job, int32_t expert, const void *row, const void *scales, void *out);

/*
 * The oracle: out row of one token whose pairs in the bitmap `present` got a reply. `rank_of`:
 * [top_k] expert rank of each pair, used with reduce_at_expert; NULL without.
 */
void job_expected(const struct job *job, uint32_t round, uint32_t token, uint64_t present,
	const int *rank_of, void *out);
/* Bitmap of pairs with an expert. */
uint64_t job_pairs(const struct job *job, uint32_t round, uint32_t token);
/* The expert rank that serves each pair of a source's token, -1: none. live: NULL = all. */
void job_pair_ranks(const struct job *job, uint32_t round, int source, uint32_t local_token,
	const uint64_t *live, int *rank_of);

/* fp8 (e4m3) by search: the oracle of the cast. */
void job_cast_fp8(const uint16_t *bf16, size_t n, uint8_t *fp8, float *scales);

uint64_t job_digest(const void *data, size_t bytes); /* FNV-1a, 64 bits */

#endif
