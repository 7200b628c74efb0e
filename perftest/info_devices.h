/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What m2n_info's files share: the RDMA ports of this machine as JSON, and how JSON is put
 * together when there may be no memory and texts may be no UTF-8.
 */
#ifndef M2N_PERFTEST_INFO_DEVICES_H
#define M2N_PERFTEST_INFO_DEVICES_H

#include <jansson.h>

/* A list of ports, each with state, speed, place and addresses; empty without RDMA. */
json_t *info_devices(void);
/* Prints that list. */
void info_print_devices(const json_t *ports);

/* Ends the program when there was no memory. */
json_t *info_need(json_t *value);
void info_put(json_t *object, const char *name, json_t *value);
/* A text that may hold any bytes: JSON is UTF-8, so others show as '?'. */
json_t *info_text(const char *text);

#endif
