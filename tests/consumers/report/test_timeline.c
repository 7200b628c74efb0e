/* SPDX-License-Identifier: Apache-2.0 */
/* Recording: totals against the times that the recorder itself gave back, and a full recorder. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#include "report/timeline.h"

static int64_t add(struct timeline *t, enum timeline_kind kind, uint16_t lane, int64_t begin)
{
	return timeline_add(t, (struct timeline_span){.begin_ns = begin,
				       .label = "attend",
				       .kind = (uint16_t)kind,
				       .lane = lane,
				       .layer = 3,
				       .micro_batch = 1});
}

static void totals_are_of_lane_0(void **state)
{
	struct timeline *t = timeline_open("attention", 0, 16);
	struct timeline_total total;
	int64_t begin = timeline_now(), computed, sent, waited, flown;

	(void)state;
	assert_non_null(t);
	computed = add(t, TIMELINE_COMPUTE, 0, begin);
	sent = add(t, TIMELINE_SEND, 0, computed);
	waited = add(t, TIMELINE_WAIT, 0, sent);
	flown = add(t, TIMELINE_WAIT, 2, begin);
	assert_true(begin <= computed && computed <= sent && sent <= waited && waited <= flown);
	timeline_totals(t, &total);
	assert_int_equal(total.ns[TIMELINE_COMPUTE], computed - begin);
	assert_int_equal(total.ns[TIMELINE_SEND], sent - computed);
	assert_int_equal(total.ns[TIMELINE_WAIT], waited - sent);
	assert_int_equal(total.ns[TIMELINE_IDLE], 0);
	assert_int_equal(total.n[TIMELINE_WAIT], 1);
	assert_int_equal(total.n_lost, 0);
	timeline_close(t);
}

static void full_recorder_counts(void **state)
{
	struct timeline *t = timeline_open("expert", 1, 3);
	struct timeline_total total;
	int64_t first = timeline_now(), at = first;
	char path[] = P_tmpdir "/test_timeline-XXXXXX", line[256];
	int lines = 0, fd = mkstemp(path);
	FILE *file;

	(void)state;
	assert_true(fd >= 0);
	for (int i = 0; i < 5; i++)
		at = add(t, TIMELINE_COMPUTE, 0, at);
	timeline_totals(t, &total);
	assert_int_equal(total.n[TIMELINE_COMPUTE], 5);
	assert_int_equal(total.ns[TIMELINE_COMPUTE], at - first);
	assert_int_equal(total.n_lost, 2);
	assert_int_equal(timeline_save(t, path), 0);
	file = fdopen(fd, "r");
	while (fgets(line, sizeof(line), file))
		lines++;
	assert_int_equal(lines, 1 + 3);
	fclose(file);
	unlink(path);
	assert_int_equal(timeline_save(t, "/nonexistent/timeline"), -ENOENT);
	timeline_close(t);
}

static void without_timeline_only_the_time(void **state)
{
	int64_t before = timeline_now();

	(void)state;
	assert_true(add(NULL, TIMELINE_COMPUTE, 0, before) >= before);
	timeline_close(NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(totals_are_of_lane_0),
		cmocka_unit_test(full_recorder_counts),
		cmocka_unit_test(without_timeline_only_the_time),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
