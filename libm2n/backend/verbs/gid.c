/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which of a port's addresses (GIDs) to send from. On RoCE a port has one for each address of its
 * network interface and each version of the protocol: RoCE v2 is routed and goes over UDP, its
 * IPv4 form is what most fabrics are set up for; link-local ones come last.
 */
#include <errno.h>
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/verbs/verbs.h"
#include "util/error.h"

static const char *const type_names[] = {"IB", "RoCE v1", "RoCE v2"};

int m2n__verbs_is_ipv4(const uint8_t *gid)
{
	static const uint8_t prefix[12] = {[10] = 0xff, [11] = 0xff};

	return memcmp(gid, prefix, sizeof(prefix)) == 0;
}

static int is_link_local(const uint8_t *gid)
{
	return gid[0] == 0xfe && (gid[1] & 0xc0) == 0x80;
}

/* Larger is better. */
static int rank_gid(const struct ibv_gid_entry *entry)
{
	const uint8_t *gid = entry->gid.raw;

	if (entry->gid_type == IBV_GID_TYPE_IB)
		return entry->gid_index == 0 ? 8 : 7;
	return (entry->gid_type == IBV_GID_TYPE_ROCE_V2 ? 4 : 0) + (is_link_local(gid) ? 0 : 1) +
	       (m2n__verbs_is_ipv4(gid) ? 1 : 0);
}

static int no_such_gid(const struct verbs_rail *rail, const struct ibv_gid_entry *entries,
	ssize_t n, int64_t wanted)
{
	char list[256] = "none";
	size_t used = 0;

	for (ssize_t i = 0; i < n && used < sizeof(list); i++) {
		char text[INET6_ADDRSTRLEN] = "";
		int bytes;

		if (entries[i].port_num != rail->port)
			continue;
		inet_ntop(AF_INET6, entries[i].gid.raw, text, sizeof(text));
		bytes = snprintf(list + used, sizeof(list) - used, "%s%u (%s %s)", used ? ", " : "",
			entries[i].gid_index, text,
			entries[i].gid_type < 3 ? type_names[entries[i].gid_type] : "?");
		used += bytes > 0 ? (size_t)bytes : 0;
	}
	if (wanted >= 0)
		return m2n__error(M2N_ERR_OPTION,
			"verbs: M2N_VERBS_GID_INDEX is %ld, but %s:%u has: %s", (long)wanted,
			rail->ctx->device->name, rail->port, list);
	return m2n__error(M2N_ERR_BACKEND,
		"verbs: %s:%u has no address (GID): give its network interface an IP address",
		rail->ctx->device->name, rail->port);
}

int m2n__verbs_gid_choose(const struct m2n__options *options, struct verbs_rail *rail,
	const struct ibv_port_attr *attr)
{
	int64_t wanted = options->verbs_gid_index;
	size_t room = (size_t)attr->gid_tbl_len * rail->limits.phys_port_cnt + 1;
	struct ibv_gid_entry *entries = calloc(room, sizeof(*entries)), *best = NULL;
	ssize_t n;
	int rc = 0;

	if (!entries)
		return m2n__error(-ENOMEM, "verbs: no memory for a list of GIDs");
	n = m2n__ibv.query_gid_table(rail->ctx, entries, room, 0, sizeof(*entries));
	for (ssize_t i = 0; i < n; i++) {
		struct ibv_gid_entry *e = &entries[i];

		if (e->port_num != rail->port || (wanted >= 0 && e->gid_index != wanted))
			continue;
		if (!best || rank_gid(e) > rank_gid(best))
			best = e;
	}
	if (best) {
		memcpy(rail->blob.gid, best->gid.raw, sizeof(rail->blob.gid));
		rail->blob.gid_type = (uint8_t)best->gid_type;
		rail->gid_index = best->gid_index;
		rail->interface = best->ndev_ifindex;
	} else {
		rc = no_such_gid(rail, entries, n, wanted);
	}
	free(entries);
	return rc;
}
