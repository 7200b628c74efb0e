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
	int also_real;      /* runs on the real driver, too */
};

/* Is the driver the stand-in? Once it is loaded. */
static inline int on_double(void)
{
	return m2n_double_symbol("m2n_double_blocks") != NULL;
}

/* What the stand-in has not got back. */
static inline size_t n_blocks(void)
{
	return on_double() ? M2N_DOUBLE(m2n_double_blocks)() : 0;
}

enum {
	NO_DRIVER = 0,
	REAL_DRIVER = 1,
	DOUBLE_DRIVER = 2,
};

/* Looks in a child: this process must not use CUDA. */
static inline int find_driver(void)
{
	pid_t pid = fork();
	int status = 0;

	if (!pid) {
		const struct m2n__cuda_driver *driver;
		int ret = m2n__cuda_driver(&driver);

		_exit(ret ? NO_DRIVER : on_double() ? DOUBLE_DRIVER : REAL_DRIVER);
	}
	return pid > 0 && waitpid(pid, &status, 0) == pid && WIFEXITED(status) ?
		WEXITSTATUS(status) : NO_DRIVER;
}

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

/* 77 without a driver; on the real one only what also runs there, or `all`. */
static inline int run_cases(const char *name, struct cuda_case *cases, size_t n_cases, int all)
{
	struct CMUnitTest *tests = calloc(n_cases, sizeof(*tests));
	int driver = find_driver(), ret = 77;
	size_t n = 0;

	for (size_t i = 0; i < n_cases && driver; i++) {
		if (driver == REAL_DRIVER && !cases[i].also_real && !all)
			continue;
		tests[n].name = cases[i].name;
		tests[n].test_func = run_case;
		tests[n++].initial_state = &cases[i];
	}
	if (n)
		ret = _cmocka_run_group_tests(name, tests, n, NULL, NULL);
	else
		printf("no CUDA driver: LD_LIBRARY_PATH names the folder of the stand-in\n");
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
