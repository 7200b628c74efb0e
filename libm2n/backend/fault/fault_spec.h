/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the interposer shall do, parsed from option FAULT: "drop=0.01,delay=50us,reorder=0.5".
 */
#ifndef M2N_FAULT_SPEC_H
#define M2N_FAULT_SPEC_H

#include <stdint.h>

struct m2n__fault_spec {
	double drop;      /* probability that a put is lost without a word */
	double reorder;   /* probability that a put lets later ones pass */
	double fail;      /* probability that a put breaks the connection */
	double truncate;  /* probability that half a put arrives and the connection breaks */
	int64_t delay_ns; /* each put waits up to that long */
	uint64_t seed;
};

/* 0, or M2N_ERR_OPTION with the word that cannot be read and what may stand there. */
int m2n__fault_spec_parse(const char *text, struct m2n__fault_spec *spec);

#endif
