/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Communicators of the stand-in of libnccl.so.2: ids, making and ending them, their state and
 * errors.
 */
#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "doubles/nccl_state.h"

#define NCCL_2_28_9 22809

struct m2n_double_nccl_counters nccl_counters;
pthread_mutex_t nccl_lock = PTHREAD_MUTEX_INITIALIZER;
static THREAD_LOCAL char thread_text[TEXT_BYTES];

static void load_driver(struct m2n__cuda_driver *driver, int *found)
{
	void *handle = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
	void *symbol;

	*found = handle != NULL;
#define LOAD(field, name, params) \
	symbol = handle ? dlsym(handle, name) : NULL; \
	memcpy(&driver->field, &symbol, sizeof(symbol));
	M2N__CUDA_DRIVER(LOAD)
#undef LOAD
}

const struct m2n__cuda_driver *nccl_driver(void)
{
	static struct m2n__cuda_driver driver;
	static int is_looked_for, is_found;

	pthread_mutex_lock(&nccl_lock);
	if (!is_looked_for)
		load_driver(&driver, &is_found);
	is_looked_for = 1;
	pthread_mutex_unlock(&nccl_lock);
	return is_found ? &driver : NULL;
}

int nccl_fail(struct comm *comm, int result, const char *format, ...)
{
	char text[TEXT_BYTES];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	if (!comm) {
		memcpy(thread_text, text, sizeof(text));
		return result;
	}
	pthread_mutex_lock(&comm->lock);
	if (!comm->text[0])
		memcpy(comm->text, text, sizeof(text));
	pthread_mutex_unlock(&comm->lock);
	return result;
}

void nccl_settle(struct comm *comm, int result)
{
	pthread_mutex_lock(&comm->lock);
	if (comm->async == M2N__NCCL_SUCCESS || comm->async == M2N__NCCL_IN_PROGRESS)
		comm->async = result;
	pthread_mutex_unlock(&comm->lock);
}

static int state_of(struct comm *comm)
{
	int async;

	pthread_mutex_lock(&comm->lock);
	async = comm->async;
	pthread_mutex_unlock(&comm->lock);
	return async;
}

int nccl_start_job(struct comm *comm, void *(*run)(void *comm))
{
	nccl_settle(comm, M2N__NCCL_IN_PROGRESS);
	if (comm->has_job)
		pthread_join(comm->job, NULL);
	comm->has_job = pthread_create(&comm->job, NULL, run, comm) == 0;
	if (!comm->has_job)
		return nccl_fail(comm, M2N__NCCL_SYSTEM_ERROR, "no thread");
	if (!comm->is_blocking)
		return M2N__NCCL_IN_PROGRESS;
	pthread_join(comm->job, NULL);
	comm->has_job = 0;
	return state_of(comm);
}

int ncclGetVersion(int *version)
{
	const char *text = getenv("M2N_DOUBLE_NCCL_VERSION");

	*version = text ? atoi(text) : NCCL_2_28_9;
	return 0;
}

const char *ncclGetErrorString(int result)
{
	static const char *const words[] = {"no error", "unhandled cuda error",
		"unhandled system error", "internal error", "invalid argument", "invalid usage",
		"remote process exited or there was a network error", "NCCL operation in progress"};

	return result >= 0 && result < 8 ? words[result] : "unknown result code";
}

const char *ncclGetLastError(void *handle)
{
	static THREAD_LOCAL char text[TEXT_BYTES];
	struct comm *comm = handle;

	if (!comm)
		return thread_text;
	pthread_mutex_lock(&comm->lock);
	memcpy(text, comm->text, sizeof(text));
	pthread_mutex_unlock(&comm->lock);
	return text;
}

int ncclGetUniqueId(struct m2n__nccl_id *id)
{
	uint64_t random[2];

	if (getrandom(random, sizeof(random), 0) != sizeof(random))
		return nccl_fail(NULL, M2N__NCCL_SYSTEM_ERROR, "no random number");
	memset(id, 0, sizeof(*id));
	snprintf(id->bytes, sizeof(id->bytes), "m2n-nccl-%016llx%016llx",
		(unsigned long long)random[0], (unsigned long long)random[1]);
	return 0;
}

static void *make(void *arg)
{
	struct comm *comm = arg;
	int result = nccl_wires_open(comm);

	nccl_settle(comm, result);
	return NULL;
}

static void free_comm(struct comm *comm)
{
	nccl_wires_close(comm);
	while (comm->groups) {
		struct group *group = comm->groups;

		comm->groups = group->next;
		nccl_group_free(group);
	}
	pthread_cond_destroy(&comm->wake);
	pthread_mutex_destroy(&comm->lock);
	free(comm);
}

static struct comm *new_comm(int n_ranks, const struct m2n__nccl_id *id, int rank)
{
	const struct m2n__cuda_driver *driver = nccl_driver();
	struct comm *comm = calloc(1, sizeof(*comm));
	m2n__cu_device device = 0;
	void *words = NULL;

	for (int i = 0; comm && i < MAX_RANKS; i++)
		comm->wires[i][0].fd = comm->wires[i][1].fd = -1;
	if (!comm || !driver || driver->ctx_get_current(&comm->context) || !comm->context ||
		driver->ctx_get_device(&device) || driver->device_uuid(&comm->uuid, device) ||
		driver->host_alloc(&words, 64 * N_WORDS,
			M2N__CU_HOST_PORTABLE | M2N__CU_HOST_MAPPED)) {
		free(comm);
		return NULL;
	}
	memset(words, 0, 64 * N_WORDS);
	comm->words = words;
	comm->n_ranks = n_ranks;
	comm->rank = rank;
	comm->id = *id;
	comm->groups_end = &comm->groups;
	pthread_mutex_init(&comm->lock, NULL);
	pthread_cond_init(&comm->wake, NULL);
	return comm;
}

static int open_comm(
	void **handle, int n_ranks, const struct m2n__nccl_id *id, int rank, int blocking)
{
	struct comm *comm;

	*handle = NULL;
	if (n_ranks < 1 || n_ranks > MAX_RANKS || rank < 0 || rank >= n_ranks ||
		memcmp(id->bytes, "m2n-nccl-", 9) != 0 || id->bytes[sizeof(id->bytes) - 1])
		return nccl_fail(
			NULL, NCCL_INVALID_ARGUMENT, "rank %d of %d, or the id", rank, n_ranks);
	comm = new_comm(n_ranks, id, rank);
	if (!comm)
		return nccl_fail(NULL, NCCL_CUDA_ERROR, "no device is current");
	comm->is_blocking = blocking;
	comm->has_mover = pthread_create(&comm->mover, NULL, nccl_move, comm) == 0;
	*handle = comm;
	pthread_mutex_lock(&nccl_lock);
	nccl_counters.n_comms++;
	pthread_mutex_unlock(&nccl_lock);
	return nccl_start_job(comm, make);
}

int ncclCommInitRankConfig(void **handle, int n_ranks, struct m2n__nccl_id id, int rank,
	struct m2n__nccl_config *config)
{
	if (config && (config->magic != M2N__NCCL_CONFIG_MAGIC || config->size < 40 ||
			      (config->min_ctas != M2N__NCCL_UNDEFINED &&
				      config->max_ctas < config->min_ctas)))
		return nccl_fail(
			NULL, NCCL_INVALID_ARGUMENT, "ncclConfig_t argument not initialized");
	return open_comm(handle, n_ranks, &id, rank, !config || config->blocking);
}

int ncclCommInitRank(void **handle, int n_ranks, struct m2n__nccl_id id, int rank)
{
	return open_comm(handle, n_ranks, &id, rank, 1);
}

int ncclCommCount(const void *handle, int *count)
{
	*count = ((const struct comm *)handle)->n_ranks;
	return 0;
}

int ncclCommUserRank(const void *handle, int *rank)
{
	*rank = ((const struct comm *)handle)->rank;
	return 0;
}

int ncclCommGetAsyncError(void *handle, int *error)
{
	*error = state_of(handle);
	return 0;
}

/* Has the stream left the last group? Then nothing of it reads the words any more. */
static int await_stream(struct comm *comm)
{
	const struct timespec nap = {0, 1000000};

	for (int i = 0; i < 3000; i++) {
		if (atomic_load(&comm->words[8 * LEFT]) >= comm->n_groups)
			return 1;
		nanosleep(&nap, NULL);
	}
	return 0;
}

static void end_threads(struct comm *comm)
{
	if (comm->has_job)
		pthread_join(comm->job, NULL);
	pthread_mutex_lock(&comm->lock);
	pthread_cond_signal(&comm->wake);
	pthread_mutex_unlock(&comm->lock);
	if (comm->has_mover)
		pthread_join(comm->mover, NULL);
}

int ncclCommAbort(void *handle)
{
	struct comm *comm = handle;
	const struct m2n__cuda_driver *driver = nccl_driver();

	if (!comm)
		return NCCL_INVALID_ARGUMENT;
	atomic_store(&comm->is_aborted, 1);
	end_threads(comm);
	atomic_store(&comm->words[8 * FINISHED], comm->n_groups);
	if (await_stream(comm))
		driver->host_free((void *)(uintptr_t)comm->words);
	free_comm(comm);
	pthread_mutex_lock(&nccl_lock);
	nccl_counters.n_comms--;
	pthread_mutex_unlock(&nccl_lock);
	return 0;
}

int ncclCommFinalize(void *handle)
{
	return state_of(handle) == M2N__NCCL_IN_PROGRESS ? NCCL_INVALID_USAGE : 0;
}

/* Unlike abort it waits for what is on the stream. */
int ncclCommDestroy(void *handle)
{
	struct comm *comm = handle;
	const struct timespec nap = {0, 100000};

	while (atomic_load(&comm->words[8 * LEFT]) < comm->n_groups)
		nanosleep(&nap, NULL);
	return ncclCommAbort(comm);
}
