/* SPDX-License-Identifier: Apache-2.0 */
#include "backend/verbs/verbs.h"
int m2n__verbs_cm_start(struct verbs_iface *v) { (void)v; return 0; }
void m2n__verbs_cm_stop(struct verbs_iface *v) { (void)v; }
void m2n__verbs_cm_describe(struct verbs_iface *v, struct verbs_greeting *g) { (void)v; (void)g; }
int m2n__verbs_cm_meet(struct verbs_ep *e, const struct verbs_greeting *g) { (void)e; (void)g; return -1; }
void m2n__verbs_cm_leave(struct verbs_ep *e) { (void)e; }
void m2n__verbs_cm_progress(struct verbs_iface *v, int wait) { (void)v; (void)wait; }
int m2n__verbs_cm_fd(struct verbs_iface *v) { (void)v; return -1; }
