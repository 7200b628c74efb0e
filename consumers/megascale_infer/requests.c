/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Readers of requests: a source is cut into lines, a line makes one request or one refusal.
 * Numbers count lines, so that a refused one changes nothing about the others.
 */
#include "requests.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "model/error.h"

#define NS_PER_S 1000000000LL

enum { MAX_TOKENS = 1 << 24 }; /* of a request: more is a mistake in the file */

/* A source while it is read. */
struct source {
	const char *path;
	const struct requests_params *params;
	struct request_list *list;
	size_t line, n_lines; /* where it is; lines that were to make a request */
	size_t first_request; /* of the list, from this source */
};

static int refuse(struct source *source, const char *reason)
{
	struct request_list *list = source->list;
	struct request_refusal *refusals =
		realloc(list->refusals, (list->n_refusals + 1) * sizeof(*refusals));
	char *text, place[32] = "";

	if (!refusals)
		return model_fail(-ENOMEM, "no memory for the refusals of %s", source->path);
	list->refusals = refusals;
	if (source->line)
		snprintf(place, sizeof(place), ":%zu", source->line);
	if (asprintf(&text, "%s%s: %s", source->path, place, reason) < 0)
		return model_fail(-ENOMEM, "no memory for the refusals of %s", source->path);
	refusals[list->n_refusals++] = (struct request_refusal){source->line, text};
	return 0;
}

/* Takes ids. */
static int add(struct source *source, int64_t arrival_ns, uint32_t *ids, size_t n_prompt,
	uint32_t n_generate)
{
	struct request_list *list = source->list;
	size_t n = list->n_requests;
	struct request *requests = list->requests;

	if ((n & (n - 1)) == 0) /* full: the room is a power of 2 */
		requests = realloc(requests, (n ? 2 * n : 1) * sizeof(*requests));
	if (!requests) {
		free(ids);
		return model_fail(-ENOMEM, "no memory for the requests of %s", source->path);
	}
	list->requests = requests;
	requests[n] = (struct request){.number = n + list->n_refusals, .line = source->line,
		.arrival_ns = arrival_ns, .ids = ids, .n_prompt = (uint32_t)n_prompt,
		.n_generate = n_generate};
	list->n_requests++;
	return 0;
}

static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15u;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return x ^ x >> 31;
}

/* The number of decimal digits at *text, which is moved behind them; -1: none or too large. */
static long long take_number(const char **text, long long max)
{
	long long value = 0;

	if (!isdigit((unsigned char)**text))
		return -1;
	for (; isdigit((unsigned char)**text); ++*text) {
		value = value * 10 + (**text - '0');
		if (value > max)
			return -1;
	}
	return value;
}

/* Takes one character of `wanted` from *text. */
static int take_one_of(const char **text, const char *wanted)
{
	if (!**text || !strchr(wanted, **text))
		return 0;
	++*text;
	return 1;
}

/* YYYY-MM-DD HH:MM:SS[.fraction][+00:00], as ns since 1970; -1: it is none. */
static int64_t take_time(const char **text)
{
	static const struct {
		const char *before; /* what stands before the field */
		int min, max;
	} fields[6] = {{"", 1970, 2200}, {"-", 1, 12}, {"-", 1, 31}, {" T", 0, 23}, {":", 0, 59},
		{":", 0, 60}};
	long long values[6];
	int64_t fraction = 0, unit = NS_PER_S;
	struct tm tm = {0};

	for (int i = 0; i < 6; i++) {
		if (fields[i].before[0] && !take_one_of(text, fields[i].before))
			return -1;
		values[i] = take_number(text, fields[i].max);
		if (values[i] < fields[i].min)
			return -1;
	}
	if (take_one_of(text, "."))
		for (; isdigit((unsigned char)**text) && unit > 1; ++*text) {
			unit /= 10;
			fraction += (**text - '0') * unit;
		}
	if (!strncmp(*text, "+00:00", 6))
		*text += 6;
	tm.tm_year = (int)values[0] - 1900;
	tm.tm_mon = (int)values[1] - 1;
	tm.tm_mday = (int)values[2];
	tm.tm_hour = (int)values[3];
	tm.tm_min = (int)values[4];
	tm.tm_sec = (int)values[5];
	return (int64_t)timegm(&tm) * NS_PER_S + fraction;
}

static uint32_t scaled(const struct requests_params *params, long long length)
{
	double divided = floor((double)length / (params->divisor > 0 ? params->divisor : 1));

	return divided < 1 ? 1 : divided > MAX_TOKENS ? MAX_TOKENS : (uint32_t)divided;
}

static int add_trace_request(struct source *source, int64_t time_ns, long long n_context,
	long long n_generated)
{
	const struct requests_params *params = source->params;
	uint64_t number = source->list->n_requests + source->list->n_refusals;
	uint32_t n_prompt = scaled(params, n_context);
	uint32_t *ids = malloc(n_prompt * sizeof(*ids));

	if (!ids)
		return model_fail(-ENOMEM, "no memory for the requests of %s", source->path);
	for (uint32_t i = 0; i < n_prompt; i++)
		ids[i] = (uint32_t)(mix(mix(mix(params->seed) ^ number) ^ i) % params->vocab_size);
	return add(source, time_ns, ids, n_prompt, scaled(params, n_generated));
}

/* TIMESTAMP,ContextTokens,GeneratedTokens. The arrival is still the clock's. */
static int read_trace_line(struct source *source, const char *line, size_t n_chars)
{
	const char *end = line + n_chars;
	int64_t time_ns = take_time(&line);
	long long n_context, n_generated;

	if (time_ns < 0 || !take_one_of(&line, ","))
		return refuse(source, "no TIMESTAMP as in 2023-11-16 18:15:46.6805900 and a comma");
	n_context = take_number(&line, MAX_TOKENS);
	if (n_context < 1 || !take_one_of(&line, ","))
		return refuse(source, "ContextTokens is no number from 1 to 16777216 and a comma");
	n_generated = take_number(&line, MAX_TOKENS);
	if (n_generated < 1)
		return refuse(source, "GeneratedTokens is no number from 1 to 16777216");
	if (line != end)
		return refuse(source, "more than TIMESTAMP,ContextTokens,GeneratedTokens");
	return add_trace_request(source, time_ns, n_context, n_generated);
}

/* How many numbers there may be in so many characters. */
static size_t max_numbers(size_t n_chars)
{
	return n_chars / 2 + 1;
}

/* Numbers into ids; the count, or -1 and the reason. */
static long read_numbers(const char *text, const char *end, uint32_t vocab_size, uint32_t *ids,
	char *reason, size_t reason_bytes)
{
	long n = 0;

	while (text < end) {
		long long id;

		if (take_one_of(&text, ", \t"))
			continue;
		id = take_number(&text, UINT32_MAX);
		if (id < 0 || (text < end && !strchr(", \t", *text)) || (text < end && !*text)) {
			snprintf(reason, reason_bytes, "token %ld is no number", n);
			return -1;
		}
		if (id >= vocab_size) {
			snprintf(reason, reason_bytes, "token %ld is %lld; the vocabulary has %u",
				n, id, vocab_size);
			return -1;
		}
		ids[n++] = (uint32_t)id;
	}
	return n;
}

static long read_bytes(const char *text, const char *end, uint32_t vocab_size, uint32_t *ids,
	char *reason, size_t reason_bytes)
{
	long n = 0;

	for (; text < end; text++) {
		ids[n] = (unsigned char)*text;
		if (ids[n] >= vocab_size) {
			snprintf(reason, reason_bytes, "byte %ld is %u; the vocabulary has %u", n,
				ids[n], vocab_size);
			return -1;
		}
		n++;
	}
	return n;
}

/* [N<tab>]prompt */
static int read_prompt_line(struct source *source, const char *line, size_t n_chars)
{
	const struct requests_params *params = source->params;
	const char *end = line + n_chars, *at = line;
	long long n_generate = params->n_generate;
	char reason[128] = "no prompt";
	uint32_t *ids;
	long n;

	while (isdigit((unsigned char)*at))
		at++;
	if (at > line && *at == '\t') {
		n_generate = take_number(&line, MAX_TOKENS);
		line = at + 1;
	}
	if (n_generate < 1)
		return refuse(source, "the number of tokens to generate is not from 1 to 16777216");
	ids = malloc((params->bytes ? (size_t)(end - line) + 1 : max_numbers(n_chars)) *
		sizeof(*ids));
	if (!ids)
		return model_fail(-ENOMEM, "%s:%zu: no memory", source->path, source->line);
	n = (params->bytes ? read_bytes : read_numbers)(line, end, params->vocab_size, ids, reason,
		sizeof(reason));
	if (n > 0 && n <= MAX_TOKENS)
		return add(source, 0, ids, (size_t)n, (uint32_t)n_generate);
	free(ids);
	return refuse(source, n > MAX_TOKENS ? "more than 16777216 tokens" : reason);
}

/* A line without what ends it. */
static size_t cut_end(char *line, size_t n_chars)
{
	if (n_chars && line[n_chars - 1] == '\n')
		n_chars--;
	if (n_chars && line[n_chars - 1] == '\r')
		n_chars--;
	line[n_chars] = '\0';
	return n_chars;
}

static int read_lines(struct source *source, const char *header,
	int (*read_line)(struct source *source, const char *line, size_t n_chars))
{
	FILE *file = fopen(source->path, "re");
	size_t room = 0, n;
	char *line = NULL;
	ssize_t got;
	int rc = 0;

	if (!file)
		return model_fail(-errno, "%s: %s", source->path, strerror(errno));
	errno = 0;
	while (!rc && (!source->params->limit || source->n_lines < source->params->limit) &&
	       (got = getline(&line, &room, file)) >= 0) {
		n = cut_end(line, (size_t)got);
		source->line++;
		if (header && source->line == 1) {
			if (strcmp(line, header))
				rc = model_fail(-EINVAL, "%s:1: the first line is not '%s'",
					source->path, header);
		} else if (n) {
			source->n_lines++;
			rc = read_line(source, line, n);
		}
	}
	if (!rc && ferror(file))
		rc = model_fail(-EIO, "%s: %s", source->path, strerror(errno ? errno : EIO));
	if (!rc && header && !source->line)
		rc = model_fail(-EINVAL, "%s: empty, not even '%s'", source->path, header);
	free(line);
	fclose(file);
	return rc;
}

static int by_arrival(const void *a, const void *b)
{
	const struct request *x = a, *y = b;

	if (x->arrival_ns != y->arrival_ns)
		return x->arrival_ns < y->arrival_ns ? -1 : 1;
	return (x->number > y->number) - (x->number < y->number);
}

static void sort(struct request_list *list)
{
	if (list->n_requests)
		qsort(list->requests, list->n_requests, sizeof(*list->requests), by_arrival);
}

/* From the clock's times to times from the first request on. */
static void set_arrivals(struct source *source)
{
	struct request *requests = source->list->requests + source->first_request;
	size_t n = source->list->n_requests - source->first_request;
	double speed = source->params->speed;
	int64_t first = n ? requests[0].arrival_ns : 0;

	for (size_t i = 1; i < n; i++)
		first = requests[i].arrival_ns < first ? requests[i].arrival_ns : first;
	for (size_t i = 0; i < n; i++)
		requests[i].arrival_ns = speed > 0 ?
			(int64_t)((double)(requests[i].arrival_ns - first) / speed) : 0;
}

int requests_read_trace(const char *path, const struct requests_params *params,
	struct request_list *list)
{
	struct source source = {.path = path, .params = params, .list = list,
		.first_request = list->n_requests};
	int rc = read_lines(&source, "TIMESTAMP,ContextTokens,GeneratedTokens", read_trace_line);

	set_arrivals(&source);
	sort(list);
	return rc;
}

int requests_read_prompts(const char *path, const struct requests_params *params,
	struct request_list *list)
{
	struct source source = {.path = path, .params = params, .list = list};
	int rc = read_lines(&source, NULL, read_prompt_line);

	sort(list);
	return rc;
}

int requests_add_prompt(const char *text, const struct requests_params *params,
	struct request_list *list)
{
	struct source source = {.path = "prompt", .params = params, .list = list};
	int rc = read_prompt_line(&source, text, strlen(text));

	sort(list);
	return rc;
}

void requests_free(struct request_list *list)
{
	for (size_t i = 0; i < list->n_requests; i++)
		free(list->requests[i].ids);
	for (size_t i = 0; i < list->n_refusals; i++)
		free(list->refusals[i].text);
	free(list->requests);
	free(list->refusals);
	*list = (struct request_list){0};
}

int requests_divide(const struct request_list *list, uint32_t n_ranks, uint32_t rank,
	const struct request ***share, size_t *n_share)
{
	const struct request **own = malloc((list->n_requests + 1) * sizeof(*own));
	uint64_t *work = calloc(n_ranks, sizeof(*work));
	size_t n = 0;

	if (!own || !work) {
		free(own);
		free(work);
		return model_fail(-ENOMEM, "no memory for a list of %zu requests",
			list->n_requests);
	}
	for (size_t i = 0; i < list->n_requests; i++) {
		const struct request *request = &list->requests[i];
		uint32_t least = 0;

		for (uint32_t j = 1; j < n_ranks; j++)
			if (work[j] < work[least])
				least = j;
		work[least] += (uint64_t)request->n_prompt + request->n_generate;
		if (least == rank)
			own[n++] = request;
	}
	free(work);
	*share = own;
	*n_share = n;
	return 0;
}
