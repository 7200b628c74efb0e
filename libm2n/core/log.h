/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The log of one context: the caller's sink, and lines on standard error when M2N_LOG asks. The
 * macros test the level first, so that a line that nobody wants costs one comparison.
 */
#ifndef M2N_CORE_LOG_H
#define M2N_CORE_LOG_H

#include <m2n/log.h>

struct m2n__log {
	m2n_log_fn sink;
	void *sink_arg;
	int level;  /* what anybody wants: TRACE when there is a sink, else the option's level */
	int stderr_level;
};

void m2n__log_write(const struct m2n__log *log, enum m2n_log_level level, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

#define m2n__log(log_, level_, ...) \
	do { \
		if ((int)(level_) <= (log_)->level) \
			m2n__log_write(log_, level_, __VA_ARGS__); \
	} while (0)

#endif
