/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the tests of CUDA on the stand-in of the driver share. A case runs in a child with its own
 * environment: CUDA has one state for a process, which a fork() ends and nothing resets. A child
 * ends by exit(), so that the leak checker and the stand-in's own end run, too.
 */
#ifndef TESTS_UNIT_CUDA_HELPERS_H
#define TESTS_UNIT_CUDA_HELPERS_H

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include <m2n/status.h>

#include "doubles/cuda_double.h"
#include "mem/cuda.h"

#define MIB ((size_t)1 << 20)

/* In a child, where cmocka's checks would go on with the parent's tests. */
#define check(cond) \
	do { \
		if (!(cond)) { \
			dprintf(STDERR_FILENO, "%s:%d: %s; error text: %s\n", __FILE__, __LINE__, \
				#cond, m2n_error_text()); \
			_exit(1); \
		} \
	} while (0)
/* Of a driver's call. */
#define check_cu(call) \
	do { \
		m2n__cu_result cu_result = (call); \
		if (cu_result) { \
			dprintf(STDERR_FILENO, "%s:%d: %s: result %d\n", __FILE__, __LINE__, \
				#call, cu_result); \
			_exit(1); \
		} \
	} while (0)
#define check_text(part) check(strstr(m2n_error_text(), part))

struct cuda_case {
	const char *name;
	void (*run)(void);
	const char *env[4]; /* "NAME=value" */
};

static inline void run_case(void **state)
{
	const struct cuda_case *c = *state;
	pid_t pid;
	int status;

	fflush(NULL);
	pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		/* CMocka's handlers go on with the parent's tests. */
		signal(SIGSEGV, SIG_DFL);
		signal(SIGBUS, SIG_DFL);
		for (unsigned i = 0; i < 4 && c->env[i]; i++) {
			char *copy = strdup(c->env[i]);

			*strchr(copy, '=') = '\0';
			setenv(copy, copy + strlen(copy) + 1, 1);
			free(copy);
		}
		c->run();
		exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

static inline int run_cases(const char *name, struct cuda_case *cases, size_t n)
{
	struct CMUnitTest *tests = calloc(n, sizeof(*tests));
	int ret;

	for (size_t i = 0; i < n; i++) {
		tests[i].name = cases[i].name;
		tests[i].test_func = run_case;
		tests[i].initial_state = &cases[i];
	}
	ret = _cmocka_run_group_tests(name, tests, n, NULL, NULL);
	free(tests);
	return ret;
}

static inline struct m2n__cuda *open_device(int ordinal)
{
	struct m2n__cuda *cuda;

	check(!m2n__cuda_open(ordinal, &cuda));
	return cuda;
}

static inline m2n__cu_stream new_stream(const struct m2n__cuda *cuda, unsigned flags)
{
	m2n__cu_stream stream;

	check_cu(cuda->driver->stream_create(&stream, flags));
	return stream;
}

static inline void fail_next(const char *rules)
{
	check(!M2N_DOUBLE(m2n_double_fail)(rules));
}

#endif
