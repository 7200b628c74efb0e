/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The address that a rail listens at. On RoCE the GID says it. On InfiniBand it is the one of the
 * interface that runs IP over the same port: all addresses of this host are tried, and librdmacm
 * says which port each belongs to.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <string.h>

#include "backend/verbs/cm.h"
#include "util/error.h"

static int is_link_local(const uint8_t *ip)
{
	return ip[0] == 0xfe && (ip[1] & 0xc0) == 0x80;
}

static void make_address(
	const uint8_t *ip, unsigned port, unsigned scope, union verbs_address *address)
{
	memset(address, 0, sizeof(*address));
	if (m2n__verbs_is_ipv4(ip)) {
		address->v4.sin_family = AF_INET;
		memcpy(&address->v4.sin_addr, ip + 12, 4);
	} else {
		address->v6.sin6_family = AF_INET6;
		memcpy(&address->v6.sin6_addr, ip, 16);
		address->v6.sin6_scope_id = is_link_local(ip) ? scope : 0;
	}
	m2n__verbs_cm_set_port(address, port);
}

void m2n__verbs_cm_set_port(union verbs_address *address, unsigned port)
{
	if (address->any.sa_family == AF_INET)
		address->v4.sin_port = htons((uint16_t)port);
	else
		address->v6.sin6_port = htons((uint16_t)port);
}

int m2n__verbs_cm_address(const struct verbs_rail *rail, const uint8_t *ip, unsigned port,
	union verbs_address *address)
{
	make_address(ip, port, rail->interface, address);
	if (!port || address->any.sa_family != rail->cm_address.any.sa_family)
		return -EINVAL;
	return 0;
}

const char *m2n__verbs_cm_text(const void *address, char *text)
{
	const union verbs_address *a = address;
	const void *ip = a->any.sa_family == AF_INET ? (const void *)&a->v4.sin_addr
						     : (const void *)&a->v6.sin6_addr;

	if (!inet_ntop(a->any.sa_family, ip, text, VERBS_ADDRESS_TEXT))
		strcpy(text, "?");
	return text;
}

/* 1: the rail listens there from now on. */
static int try_address(
	struct verbs_iface *v, struct verbs_rail *rail, const union verbs_address *address)
{
	union verbs_address copy = *address;
	struct rdma_cm_id *id;

	if (m2n__rdma.create_id(v->cm_channel, &id, NULL, RDMA_PS_TCP))
		return 0;
	if (m2n__rdma.bind_addr(id, &copy.any) == 0 && id->verbs &&
		strcmp(id->verbs->device->name, rail->ctx->device->name) == 0 &&
		id->port_num == rail->port) {
		rail->listener = id;
		rail->cm_address = *address;
		return 1;
	}
	m2n__rdma.destroy_id(id);
	return 0;
}

static int try_interfaces(struct verbs_iface *v, struct verbs_rail *rail)
{
	struct ifaddrs *list = NULL;
	int found = 0;

	if (getifaddrs(&list))
		return 0;
	for (struct ifaddrs *i = list; i && !found; i = i->ifa_next) {
		union verbs_address address;
		int family = i->ifa_addr ? i->ifa_addr->sa_family : AF_UNSPEC;

		if (!(i->ifa_flags & IFF_UP) || i->ifa_flags & IFF_LOOPBACK ||
			(family != AF_INET && family != AF_INET6))
			continue;
		memset(&address, 0, sizeof(address));
		memcpy(&address, i->ifa_addr,
			family == AF_INET ? sizeof(address.v4) : sizeof(address.v6));
		found = try_address(v, rail, &address);
		if (found)
			rail->interface = if_nametoindex(i->ifa_name);
	}
	freeifaddrs(list);
	return found;
}

int m2n__verbs_cm_bind(struct verbs_iface *v, struct verbs_rail *rail)
{
	union verbs_address address;

	if (rail->blob.link_layer == IBV_LINK_LAYER_ETHERNET) {
		make_address(rail->blob.gid, 0, rail->interface, &address);
		if (try_address(v, rail, &address))
			return 0;
	}
	if (try_interfaces(v, rail))
		return 0;
	return m2n__error(M2N_ERR_BACKEND,
		"verbs: %s:%u has no IP address to connect by: give its network interface one "
		"(InfiniBand: IPoIB), or set M2N_VERBS_CONNECT=exchange",
		rail->ctx->device->name, rail->port);
}

void m2n__verbs_cm_describe(struct verbs_iface *v, struct verbs_greeting *greeting)
{
	for (unsigned i = 0; i < v->n_rails; i++) {
		const struct verbs_rail *rail = &v->rails[i];
		const union verbs_address *a = &rail->cm_address;
		uint8_t *ip = greeting->rails[i].ip;

		if (a->any.sa_family == AF_INET) {
			ip[10] = ip[11] = 0xff;
			memcpy(ip + 12, &a->v4.sin_addr, 4);
		} else {
			memcpy(ip, &a->v6.sin6_addr, 16);
		}
		greeting->rails[i].port = ntohs(m2n__rdma.get_src_port(rail->listener));
	}
}
