/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which flush a device gets, cheapest first, and what is said where there is none. The device is
 * the stand-in of libcuda.so.1 with its abilities set by hand, GDRCopy's library a stand-in too
 * (fake_gdrapi.c). What a flush does to the order of writes no stand-in can show.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <dlfcn.h>
#include <errno.h>
#include <string.h>
#include <cmocka.h>

#include <m2n/status.h>

#include "backend/common/gpu_flush.h"
#include "doubles/cuda_double.h"

static struct m2n__cuda *cuda;

static uint64_t n_flushes(void)
{
	uint64_t (*calls)(const char *symbol);
	void *found = m2n_double_symbol("m2n_double_calls");

	assert_non_null(found);
	memcpy(&calls, &found, sizeof(calls));
	return calls("cuFlushGPUDirectRDMAWrites");
}

static void *gdr(const char *name)
{
	void *library = dlopen("libgdrapi.so.2", RTLD_NOW | RTLD_LOCAL);
	void *symbol = library ? dlsym(library, name) : NULL;

	assert_non_null(symbol);
	return symbol;
}

static void test_none(void **state)
{
	struct m2n__gpu_flush *flush;
	uint64_t before = n_flushes();

	(void)state;
	cuda->needs_flush = 0;
	assert_int_equal(m2n__gpu_flush_open(cuda, &flush), 0);
	assert_string_equal(m2n__gpu_flush_name(flush), "none");
	assert_int_equal(m2n__gpu_flush(flush), 0);
	assert_int_equal(n_flushes() - before, 0);
	m2n__gpu_flush_close(flush);
}

static void test_driver(void **state)
{
	struct m2n__gpu_flush *flush;
	uint64_t before = n_flushes();
	int (*make_fail)(const char *rules);
	void *found = m2n_double_symbol("m2n_double_fail");

	(void)state;
	memcpy(&make_fail, &found, sizeof(make_fail));
	cuda->needs_flush = 1;
	cuda->can_flush = 1;
	assert_int_equal(m2n__gpu_flush_open(cuda, &flush), 0);
	assert_string_equal(m2n__gpu_flush_name(flush), "driver");
	assert_int_equal(m2n__gpu_flush(flush), 0);
	assert_int_equal(m2n__gpu_flush(flush), 0);
	assert_int_equal(n_flushes() - before, 2);
	assert_int_equal(make_fail("cuFlushGPUDirectRDMAWrites:1:801"), 0);
	assert_int_equal(m2n__gpu_flush(flush), -ENOTSUP);
	assert_non_null(strstr(m2n_error_text(), "flushing a NIC's writes"));
	assert_int_equal(m2n__gpu_flush(flush), 0);
	m2n__gpu_flush_close(flush);
}

static void test_gdrcopy(void **state)
{
	struct m2n__gpu_flush *flush;
	int *n_open = gdr("fake_gdr_open_things");

	(void)state;
	cuda->needs_flush = 1;
	cuda->can_flush = 0;
	assert_int_equal(m2n__gpu_flush_open(cuda, &flush), 0);
	assert_string_equal(m2n__gpu_flush_name(flush), "GDRCopy");
	assert_int_equal(*n_open, 3);
	assert_int_equal(*(unsigned long *)gdr("fake_gdr_at") % 65536, 0);
	assert_int_equal(m2n__gpu_flush(flush), 0);
	m2n__gpu_flush_close(flush);
	assert_int_equal(*n_open, 0);
}

static void test_nothing(void **state)
{
	static const char *const calls[] = {"open", "pin", "map"};
	struct m2n__gpu_flush *flush = NULL;
	int *n_open = gdr("fake_gdr_open_things");
	const char **fail = gdr("fake_gdr_fail");

	(void)state;
	cuda->needs_flush = 1;
	cuda->can_flush = 0;
	for (unsigned i = 0; i < 3; i++) {
		*fail = calls[i];
		assert_int_equal(m2n__gpu_flush_open(cuda, &flush), -ENOTSUP);
		assert_non_null(strstr(m2n_error_text(), "GDRCopy is not usable"));
		assert_non_null(strstr(m2n_error_text(), calls[i]));
		assert_int_equal(*n_open, 0);
	}
	assert_null(flush);
	m2n__gpu_flush_close(NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_none),
		cmocka_unit_test(test_driver),
		cmocka_unit_test(test_gdrcopy),
		cmocka_unit_test(test_nothing),
	};

	int failed;

	if (m2n__cuda_open(0, &cuda) || !m2n_double_symbol("m2n_double_calls")) {
		print_message("skipped: needs the stand-in of libcuda.so.1\n");
		return 77;
	}
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	m2n__cuda_close(cuda);
	return failed;
}
