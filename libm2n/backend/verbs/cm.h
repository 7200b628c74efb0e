/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Addresses as librdmacm wants them, for cm.c. In greetings they are sixteen bytes: IPv6, or IPv4
 * in its IPv6 form.
 */
#ifndef M2N_BACKEND_VERBS_CM_H
#define M2N_BACKEND_VERBS_CM_H

#include "backend/verbs/verbs.h"

#define VERBS_ADDRESS_TEXT 64

/* Makes the rail's listener: an id bound to an address of its port, which goes to cm_address. */
int m2n__verbs_cm_bind(struct verbs_iface *v, struct verbs_rail *rail);
/* From 16 bytes, as seen from the rail. -EINVAL: none, or another family than the rail's own. */
int m2n__verbs_cm_address(const struct verbs_rail *rail, const uint8_t *ip, unsigned port,
	union verbs_address *address);
void m2n__verbs_cm_set_port(union verbs_address *address, unsigned port);
/* "10.0.0.1", written to `text` [VERBS_ADDRESS_TEXT]. */
const char *m2n__verbs_cm_text(const void *address, char *text);

#endif
