/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The RDMA ports of this machine, as far as sysfs knows them: what backend verbs chooses from.
 * No device is opened and no library is needed, so that it also helps where verbs cannot be used.
 */
#include "info_devices.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEVICES "/sys/class/infiniband"
#define TEXT_BYTES 256
#define FOLDER_BYTES 320 /* of a device */
#define PORT_BYTES 352   /* of a port: a folder in that */
#define MAX_GIDS 256

/* The first line of a file, without its end; "" when there is none. */
static void read_line(const char *folder, const char *name, char *text)
{
	char path[PORT_BYTES + 64];
	FILE *file;

	text[0] = '\0';
	snprintf(path, sizeof(path), "%s/%s", folder, name);
	file = fopen(path, "re");
	if (file && !fgets(text, TEXT_BYTES, file))
		text[0] = '\0';
	if (file)
		fclose(file);
	text[strcspn(text, "\n")] = '\0';
}

/* "4: ACTIVE" without the number. */
static const char *word_of(const char *text)
{
	const char *colon = strchr(text, ':');

	return colon ? colon + 1 + strspn(colon + 1, " ") : text;
}

static int is_zero(const uint8_t *bytes, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (bytes[i])
			return 0;
	return 1;
}

/* IPv4 addresses as such, others as IPv6. */
static void shorten(const uint8_t *gid, char *text, size_t room)
{
	static const uint8_t v4[12] = {[10] = 0xff, [11] = 0xff};
	int is_v4 = memcmp(gid, v4, sizeof(v4)) == 0;

	if (!inet_ntop(is_v4 ? AF_INET : AF_INET6, is_v4 ? gid + 12 : gid, text, (socklen_t)room))
		text[0] = '\0';
}

/* The addresses of a port; empty places of the table are left out. */
static json_t *get_gids(const char *port)
{
	json_t *list = info_need(json_array());

	for (int i = 0; i < MAX_GIDS; i++) {
		char name[64], text[TEXT_BYTES], address[INET6_ADDRSTRLEN];
		uint8_t gid[16];
		json_t *row;

		snprintf(name, sizeof(name), "gids/%d", i);
		read_line(port, name, text);
		if (!text[0])
			break;
		if (inet_pton(AF_INET6, text, gid) != 1 || is_zero(gid, sizeof(gid)))
			continue;
		shorten(gid, address, sizeof(address));
		row = info_need(json_object());
		info_put(row, "index", json_integer(i));
		info_put(row, "address", info_text(address));
		snprintf(name, sizeof(name), "gid_attrs/types/%d", i);
		read_line(port, name, text);
		info_put(row, "type", info_text(text));
		snprintf(name, sizeof(name), "gid_attrs/ndevs/%d", i);
		read_line(port, name, text);
		info_put(row, "interface", info_text(text));
		json_array_append_new(list, row);
	}
	return list;
}

/* Of the network interface behind a port: RoCE takes the largest of 256..4096 that fits in it. */
static void put_mtu(json_t *row, const json_t *gids)
{
	const char *interface =
		json_string_value(json_object_get(json_array_get(gids, 0), "interface"));
	char folder[128], text[TEXT_BYTES] = "";

	if (interface && interface[0]) {
		snprintf(folder, sizeof(folder), "/sys/class/net/%s", interface);
		read_line(folder, "mtu", text);
	}
	info_put(row, "interface_mtu", text[0] ? json_integer(atol(text)) : json_null());
}

static void put_text(json_t *row, const char *name, const char *folder, const char *file)
{
	char text[TEXT_BYTES];

	read_line(folder, file, text);
	info_put(row, name, info_text(word_of(text)));
}

static json_t *get_port(const char *device, const char *folder, int number)
{
	json_t *row = info_need(json_object()), *gids;
	char port[PORT_BYTES], text[TEXT_BYTES];

	snprintf(port, sizeof(port), "%s/ports/%d", folder, number);
	info_put(row, "name", info_text(device));
	info_put(row, "port", json_integer(number));
	put_text(row, "state", port, "state");
	put_text(row, "physical", port, "phys_state");
	put_text(row, "link_layer", port, "link_layer");
	put_text(row, "rate", port, "rate");
	read_line(folder, "device/numa_node", text);
	info_put(row, "numa_node", text[0] ? json_integer(atol(text)) : json_null());
	gids = get_gids(port);
	put_mtu(row, gids);
	info_put(row, "gids", gids);
	return row;
}

json_t *info_devices(void)
{
	json_t *list = info_need(json_array());
	struct dirent **names = NULL;
	int n = scandir(DEVICES, &names, NULL, alphasort);

	for (int i = 0; i < n; i++) {
		char folder[FOLDER_BYTES], state[TEXT_BYTES];
		const char *device = names[i]->d_name;

		snprintf(folder, sizeof(folder), "%s/%s", DEVICES, device);
		for (int port = 1; device[0] != '.' && port < 256; port++) {
			char name[32];

			snprintf(name, sizeof(name), "ports/%d/state", port);
			read_line(folder, name, state);
			if (!state[0])
				break;
			json_array_append_new(list, get_port(device, folder, port));
		}
		free(names[i]);
	}
	free(names);
	return list;
}

static const char *member(const json_t *row, const char *name)
{
	const char *text = json_string_value(json_object_get(row, name));

	return text ? text : "";
}

void info_print_devices(const json_t *ports)
{
	const json_t *row, *gid;
	size_t i, k;

	printf("\nRDMA ports\n");
	if (json_array_size(ports) == 0)
		printf("  none\n");
	json_array_foreach(ports, i, row) {
		const json_t *node = json_object_get(row, "numa_node");
		const json_t *mtu = json_object_get(row, "interface_mtu");
		char name[TEXT_BYTES];

		snprintf(name, sizeof(name), "%s:%d", member(row, "name"),
			(int)json_integer_value(json_object_get(row, "port")));
		printf("  %-12s %s (%s), %s, %s", name, member(row, "state"),
			member(row, "physical"), member(row, "link_layer"), member(row, "rate"));
		if (json_is_integer(mtu))
			printf(", interface MTU %d", (int)json_integer_value(mtu));
		if (json_integer_value(node) >= 0 && json_is_integer(node))
			printf(", NUMA node %d", (int)json_integer_value(node));
		putchar('\n');
		json_array_foreach(json_object_get(row, "gids"), k, gid)
			printf("  %-12s GID %d: %s, %s %s\n", "",
				(int)json_integer_value(json_object_get(gid, "index")),
				member(gid, "address"), member(gid, "type"),
				member(gid, "interface"));
	}
}
