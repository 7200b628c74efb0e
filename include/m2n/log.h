/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The log: by default nothing is written anywhere. A context may be given a sink; a process
 * may ask for lines on standard error with M2N_LOG=LEVEL. Levels by consequence.
 */
#ifndef M2N_LOG_H
#define M2N_LOG_H

#ifdef __cplusplus
extern "C" {
#endif

enum m2n_log_level {
	M2N_LOG_OFF = 0,
	M2N_LOG_ERROR = 1, /* a call failed */
	M2N_LOG_WARN = 2,  /* slower, or with less, than asked for */
	M2N_LOG_INFO = 3,  /* what was chosen, once */
	M2N_LOG_DEBUG = 4,
	M2N_LOG_TRACE = 5,
};

/*
 * A sink. `text` is one line without its end, borrowed for the call. May be called from any
 * thread that is inside a libm2n call, and must not call libm2n.
 */
typedef void (*m2n_log_fn)(void *arg, enum m2n_log_level level, const char *text);

#ifdef __cplusplus
}
#endif
#endif
