/* SPDX-License-Identifier: Apache-2.0 */
/* The text that tests train on: the repository's own. */
#ifndef TESTS_TRAIN_JOB_TEXT_H
#define TESTS_TRAIN_JOB_TEXT_H

static inline const char *job_text(void)
{
	return M2N_SOURCE_ROOT "/tests/data/text_small.txt";
}

#endif
