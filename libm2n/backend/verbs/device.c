/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which ports to use. All that is asked here is in sysfs, so that a probe opens no device: opening
 * one costs milliseconds. M2N_VERBS_DEVICES names the ports, one rail each; without it the one
 * active port is taken that is the fastest, InfiniBand before Ethernet, on this process' NUMA
 * node before another. One, because only the user knows which rank shall use which of several
 * equal ones.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backend/verbs/verbs.h"
#include "util/error.h"

#define TEXT_BYTES 256

/* The first line of a file below a device's folder, without its end; "" when there is none. */
static void read_text(const struct ibv_device *device, const char *file, char *text)
{
	char path[IBV_SYSFS_PATH_MAX + 64];
	ssize_t n;
	int fd;

	text[0] = '\0';
	snprintf(path, sizeof(path), "%s/%s", device->ibdev_path, file);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	n = read(fd, text, TEXT_BYTES - 1);
	close(fd);
	text[n > 0 ? n : 0] = '\0';
	text[strcspn(text, "\n")] = '\0';
}

static void read_port_text(const struct verbs_port *port, const char *file, char *text)
{
	char path[64];

	snprintf(path, sizeof(path), "ports/%u/%s", port->number, file);
	read_text(port->device, path, text);
}

static int is_active(const struct verbs_port *port)
{
	char text[TEXT_BYTES];

	read_port_text(port, "state", text);
	return atoi(text) == IBV_PORT_ACTIVE;
}

static int exists(const struct verbs_port *port)
{
	char text[TEXT_BYTES];

	read_port_text(port, "state", text);
	return text[0] != '\0';
}

/* RC with the immediate: InfiniBand and RoCE. iWARP has no immediates. */
static int is_usable(const struct ibv_device *device)
{
	return device->transport_type == IBV_TRANSPORT_IB && device->node_type == IBV_NODE_CA;
}

/* Larger is better: rate first, then link layer, then NUMA node. */
static long rank_port(const struct verbs_port *port)
{
	char text[TEXT_BYTES];
	unsigned cpu, node = 0;
	long rank;

	read_port_text(port, "rate", text);
	rank = atol(text) * 8;
	read_port_text(port, "link_layer", text);
	rank += strcmp(text, "InfiniBand") == 0 ? 4 : 0;
	read_text(port->device, "device/numa_node", text);
	if (!text[0] || atoi(text) < 0)
		return rank + 1;
	if (getcpu(&cpu, &node))
		node = 0;
	return rank + (atoi(text) == (int)node ? 2 : 0);
}

/* "mlx5_0:1 ACTIVE, mlx5_1:1 DOWN (Disabled)" */
static void describe(const struct verbs_ports *ports, char *out, size_t room)
{
	size_t used = 0;

	out[0] = '\0';
	for (size_t i = 0; ports->list[i]; i++) {
		struct verbs_port port = {ports->list[i], 1};

		for (; exists(&port) && used < room; port.number++) {
			char state[TEXT_BYTES], phys[TEXT_BYTES];
			const char *s = state, *p = phys;
			int n;

			read_port_text(&port, "state", state);
			read_port_text(&port, "phys_state", phys);
			s += strcspn(s, " ") + (strchr(s, ' ') != NULL);
			p += strcspn(p, " ") + (strchr(p, ' ') != NULL);
			n = snprintf(out + used, room - used, "%s%s:%u %s (%s)%s", used ? ", " : "",
				port.device->name, port.number, s, p,
				is_usable(port.device) ? "" : " [no RDMA write with immediate]");
			used += n > 0 ? (size_t)n : 0;
		}
	}
}

static int refuse(const struct verbs_ports *ports, const char *what, const char *remedy)
{
	char list[TEXT_BYTES];

	describe(ports, list, sizeof(list));
	return m2n__error(
		M2N_ERR_BACKEND, "verbs: %s; this machine has: %s; %s", what, list, remedy);
}

static int choose_best(struct verbs_ports *ports)
{
	long best = -1;

	for (size_t i = 0; ports->list[i]; i++) {
		struct verbs_port port = {ports->list[i], 1};

		for (; is_usable(port.device) && exists(&port); port.number++) {
			long rank = is_active(&port) ? rank_port(&port) : -1;

			if (rank <= best)
				continue;
			best = rank;
			ports->port[0] = port;
			ports->n = 1;
		}
	}
	if (ports->n)
		return 0;
	return refuse(ports, "no port is active",
		"plug the cable in, start the subnet manager or set the interface up");
}

/* One "device" or "device:port" of the list. */
static int choose_named(struct verbs_ports *ports, const char *name, size_t bytes)
{
	struct verbs_port *port = &ports->port[ports->n];
	const char *colon = memchr(name, ':', bytes);
	size_t device_bytes = colon ? (size_t)(colon - name) : bytes;
	char what[TEXT_BYTES];

	if (ports->n == VERBS_MAX_RAILS)
		return m2n__error(M2N_ERR_OPTION, "M2N_VERBS_DEVICES names more than %d ports",
			VERBS_MAX_RAILS);
	port->device = NULL;
	port->number = colon ? (unsigned)atoi(colon + 1) : 1;
	for (size_t i = 0; ports->list[i] && !port->device; i++)
		if (strlen(ports->list[i]->name) == device_bytes &&
			memcmp(ports->list[i]->name, name, device_bytes) == 0)
			port->device = ports->list[i];
	if (!port->device || port->number < 1 || port->number > 255 || !exists(port)) {
		snprintf(what, sizeof(what), "M2N_VERBS_DEVICES names '%.*s', which does not exist",
			(int)bytes, name);
		return refuse(ports, what, "correct the option or leave it empty");
	}
	if (!is_usable(port->device)) {
		snprintf(what, sizeof(what), "device '%.*s' cannot do RDMA write with immediate",
			(int)bytes, name);
		return refuse(ports, what, "name another or leave M2N_VERBS_DEVICES empty");
	}
	if (!is_active(port)) {
		snprintf(what, sizeof(what), "port '%.*s' is not active", (int)bytes, name);
		return refuse(ports, what,
			"plug the cable in, start the subnet manager, set the interface up or "
			"name another in M2N_VERBS_DEVICES");
	}
	ports->n++;
	return 0;
}

static int no_devices(void)
{
	return m2n__error(M2N_ERR_BACKEND, "verbs: no RDMA device; is its kernel driver loaded "
					   "(`rdma link` shows it), and its "
					   "user driver installed (Debian: ibverbs-providers)?");
}

/* Most machines have none, and need not load the vendor's libraries to know. */
static int kernel_has_devices(void)
{
	DIR *dir = opendir("/sys/class/infiniband");
	struct dirent *entry;
	int found = 0;

	while (dir && !found && (entry = readdir(dir)))
		found = entry->d_name[0] != '.';
	if (dir)
		closedir(dir);
	return found;
}

int m2n__verbs_ports_choose(const struct m2n__options *options, struct verbs_ports *ports)
{
	const char *names = options->verbs_devices;
	int n = 0, rc = 0;

	memset(ports, 0, sizeof(*ports));
	rc = kernel_has_devices() ? m2n__ibv_load() : no_devices();
	if (rc)
		return rc;
	ports->list = m2n__ibv.get_device_list(&n);
	if (!ports->list || n == 0) {
		m2n__verbs_ports_free(ports);
		return no_devices();
	}
	names += strspn(names, ", ");
	if (!*names)
		rc = choose_best(ports);
	while (*names && !rc) {
		size_t bytes = strcspn(names, ", ");

		rc = choose_named(ports, names, bytes);
		names += bytes;
		names += strspn(names, ", ");
	}
	if (rc)
		m2n__verbs_ports_free(ports);
	return rc;
}

void m2n__verbs_ports_free(struct verbs_ports *ports)
{
	if (ports->list)
		m2n__ibv.free_device_list(ports->list);
	ports->list = NULL;
}

static int check_access(const char *path, const char *remedy)
{
	if (access(path, R_OK | W_OK) == 0)
		return 0;
	if (errno == ENOENT)
		return m2n__error(M2N_ERR_BACKEND,
			"verbs: %s is missing: load its kernel module (ib_uverbs, rdma_ucm), or "
			"give "
			"the device to this container%s",
			path, remedy);
	return m2n__error(M2N_ERR_BACKEND,
		"verbs: %s cannot be opened: %s; join the group that owns it, or give the device "
		"to "
		"this container%s",
		path, strerrordesc_np(errno), remedy);
}

static int probe_cm(void)
{
	int rc = m2n__rdma_load();

	if (rc)
		return m2n__error_at(rc, "M2N_VERBS_CONNECT is cm, not exchange");
	return check_access("/dev/infiniband/rdma_cm", ", or set M2N_VERBS_CONNECT=exchange");
}

int m2n__verbs_probe(const struct m2n__options *options)
{
	struct verbs_ports ports;
	int rc = m2n__verbs_ports_choose(options, &ports);

	if (rc)
		return rc;
	for (unsigned i = 0; i < ports.n && !rc; i++) {
		char path[IBV_SYSFS_NAME_MAX + 32];

		snprintf(path, sizeof(path), "/dev/infiniband/%s", ports.port[i].device->dev_name);
		rc = check_access(path, "");
	}
	m2n__verbs_ports_free(&ports);
	if (!rc && options->verbs_connect == VERBS_CONNECT_CM)
		rc = probe_cm();
	return rc;
}
