/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A store in a directory: a file a key, holding one ENTRY frame. put writes a temporary file and
 * renames it, so a reader sees the old value, the new one, or none. get waits with inotify where it
 * works, and looks by itself in any case, because a shared file system tells nothing about what
 * other hosts write.
 *
 * Files are opened relative to the directory's descriptor, so the directory that was checked at
 * open is the one that is used. A key's '/' is a space in the file's name: keys have no spaces.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bootstrap/sock.h"
#include "bootstrap/store_impl.h"
#include "util/error.h"
#include "util/time.h"
#include "wire/store_wire.h"

#define KEY_PREFIX "m2n-key."
#define TEMP_PREFIX "m2n-tmp."
#define NAME_BYTES (sizeof(KEY_PREFIX) + M2N__STORE_KEY_MAX)
#define FIRST_LOOK_NS INT64_C(1000000)
#define MAX_LOOK_NS INT64_C(100000000)

struct dir_store {
	struct m2n__store base;
	int fd;
	int notify_fd; /* -1: not tried or not to be had */
	int tried_notify;
	int owns_content;
	char path[sizeof(((struct m2n__store *)0)->url)];
	uint8_t frame[M2N__STORE_FRAME_MAX + 1]; /* one more: a file that is too long shows */
};

static int failed(const struct dir_store *s, const char *what, const char *key)
{
	int saved = errno;

	return m2n__error(M2N_ERR_STORE, "store %s: cannot %s key '%s': %s", s->base.url, what, key,
		m2n_strerror(-saved));
}

static void key_name(const char *key, char name[NAME_BYTES])
{
	char *p = stpcpy(name, KEY_PREFIX);

	for (; *key; key++)
		*p++ = *key == '/' ? ' ' : *key;
	*p = '\0';
}

static void temp_name(char name[NAME_BYTES])
{
	uint8_t nonce[M2N__AUTH_NONCE_BYTES];
	char *p = stpcpy(name, TEMP_PREFIX);

	/* Random, for host names and process ids repeat among containers. */
	m2n__auth_nonce(nonce);
	for (int i = 0; i < 16; i++)
		p += sprintf(p, "%02x", nonce[i]);
}

static int write_all(int fd, const uint8_t *bytes, size_t n_bytes)
{
	ssize_t n;

	while (n_bytes) {
		n = write(fd, bytes, n_bytes);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -1;
		bytes += n;
		n_bytes -= (size_t)n;
	}
	return 0;
}

static int dir_put(struct m2n__store *store, const char *key, const void *value, size_t bytes,
	int64_t timeout_ns)
{
	struct dir_store *s = (struct dir_store *)store;
	struct m2n__store_frame frame = {
		.type = M2N__STORE_ENTRY, .key = key, .value = value, .value_bytes = bytes};
	char name[NAME_BYTES], temp[NAME_BYTES];
	size_t n_bytes;
	int fd, status;

	status = m2n__store_check_put(key, value, bytes, timeout_ns);
	if (status)
		return status;
	frame.key_bytes = strlen(key);
	status = m2n__store_frame_pack(&frame, s->frame, sizeof(s->frame), &n_bytes);
	if (status)
		return m2n__error(status, "store %s: key '%s' cannot be packed", store->url, key);
	key_name(key, name);
	temp_name(temp);
	fd = openat(s->fd, temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return failed(s, "create a file for", key);
	status = write_all(fd, s->frame, n_bytes);
	/* A network file system may report at close() what it could not write. */
	if (close(fd) || status || renameat(s->fd, temp, s->fd, name)) {
		status = failed(s, "write", key);
		(void)unlinkat(s->fd, temp, 0);
	}
	return status;
}

/* -1 with errno, or the bytes read into s->frame, at most its size. */
static ssize_t read_file(struct dir_store *s, const char *name)
{
	size_t n_bytes = 0;
	ssize_t n;
	int fd = openat(s->fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);

	if (fd < 0)
		return -1;
	do {
		n = read(fd, s->frame + n_bytes, sizeof(s->frame) - n_bytes);
		if (n > 0)
			n_bytes += (size_t)n;
	} while (n > 0 || (n < 0 && errno == EINTR));
	if (n < 0) {
		int saved = errno;

		close(fd);
		errno = saved;
		return -1;
	}
	close(fd);
	return (ssize_t)n_bytes;
}

/* 0 with *frame; -EAGAIN without a text: not there yet. */
static int look(struct dir_store *s, const char *key, struct m2n__store_frame *frame)
{
	char name[NAME_BYTES];
	size_t need;
	ssize_t n;
	int status;

	key_name(key, name);
	n = read_file(s, name);
	/* ESTALE: NFS had the file that a later put replaced. */
	if (n < 0)
		return errno == ENOENT || errno == ESTALE ? -EAGAIN : failed(s, "read", key);
	status = m2n__store_frame_unpack(s->frame, (size_t)n, frame, &need);
	if (status == M2N_ERR_VERSION)
		return m2n__error(status,
			"store %s: key '%s' was written with wire version %u, this library has %d; "
			"use one libm2n for all ranks",
			s->base.url, key, frame->version, M2N__STORE_WIRE_VERSION);
	if (status || need != (size_t)n || frame->type != M2N__STORE_ENTRY ||
		frame->key_bytes != strlen(key) || memcmp(frame->key, key, frame->key_bytes))
		return m2n__error(M2N_ERR_PROTOCOL,
			"store %s: the file of key '%s' does not hold it (%zd bytes)", s->base.url,
			key, n);
	return 0;
}

/* Called once there is something to wait for, so that ranks which never wait take no instance. */
static void start_notify(struct dir_store *s)
{
	char path[32];

	if (s->tried_notify)
		return;
	s->tried_notify = 1;
	s->notify_fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
	if (s->notify_fd < 0)
		return;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", s->fd);
	if (inotify_add_watch(s->notify_fd, path, IN_MOVED_TO) < 0) {
		close(s->notify_fd);
		s->notify_fd = -1;
	}
}

static void drain_notify(int fd)
{
	char events[4096];

	while (read(fd, events, sizeof(events)) > 0)
		;
}

static void wait_for_change(struct dir_store *s, int64_t deadline_ns)
{
	int64_t left_ns;

	if (s->notify_fd < 0) {
		left_ns = deadline_ns - m2n__now_ns();
		if (left_ns > 0)
			m2n__sleep_ns(left_ns);
	} else if (m2n__sock_wait(s->notify_fd, POLLIN, deadline_ns) > 0) {
		drain_notify(s->notify_fd);
	}
}

static int dir_get(
	struct m2n__store *store, const char *key, void *value, size_t *bytes, int64_t timeout_ns)
{
	struct dir_store *s = (struct dir_store *)store;
	int64_t deadline_ns, look_ns = FIRST_LOOK_NS, until_ns;
	struct m2n__store_frame frame;
	int status;

	status = m2n__store_check_get(key, value, bytes, timeout_ns);
	if (status)
		return status;
	deadline_ns = m2n__deadline_ns(timeout_ns);
	if (timeout_ns)
		start_notify(s);
	for (;;) {
		status = look(s, key, &frame);
		if (!status)
			return m2n__store_copy_out(
				store, key, frame.value, frame.value_bytes, value, bytes);
		if (status != -EAGAIN)
			return status;
		if (m2n__now_ns() >= deadline_ns)
			return m2n__store_missing(store, key, timeout_ns);
		until_ns = m2n__deadline_ns(look_ns);
		wait_for_change(s, until_ns < deadline_ns ? until_ns : deadline_ns);
		look_ns = look_ns * 2 < MAX_LOOK_NS ? look_ns * 2 : MAX_LOOK_NS;
	}
}

static void remove_content(struct dir_store *s)
{
	int fd = openat(s->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *entry;

	if (!dir) {
		if (fd >= 0)
			close(fd);
		return;
	}
	while ((entry = readdir(dir)))
		if (!strncmp(entry->d_name, KEY_PREFIX, strlen(KEY_PREFIX)) ||
			!strncmp(entry->d_name, TEMP_PREFIX, strlen(TEMP_PREFIX)))
			(void)unlinkat(s->fd, entry->d_name, 0);
	closedir(dir);
	/* Refused when something else is in it, which is then somebody's. */
	(void)rmdir(s->path);
}

static void dir_close(struct m2n__store *store)
{
	struct dir_store *s = (struct dir_store *)store;

	if (s->owns_content)
		remove_content(s);
	if (s->notify_fd >= 0)
		close(s->notify_fd);
	close(s->fd);
	free(s);
}

static const struct m2n__store_ops dir_ops = {.put = dir_put, .get = dir_get, .close = dir_close};

/*
 * Others must not be able to put keys. The last component may not be a link: in /dev/shm anybody
 * could have made one.
 */
static int open_directory(const char *path, int *fd)
{
	struct stat st;
	int made = mkdir(path, 0700);

	if (made && errno != EEXIST)
		return m2n__error(M2N_ERR_STORE, "cannot make the store's directory %s: %s", path,
			m2n_strerror(-errno));
	*fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (*fd < 0)
		return m2n__error(M2N_ERR_STORE, "cannot open the store's directory %s: %s", path,
			m2n_strerror(-errno));
	if (!fstat(*fd, &st) && st.st_uid == geteuid() && !(st.st_mode & (S_IWGRP | S_IWOTH)))
		return 0;
	close(*fd);
	return m2n__error(M2N_ERR_STORE,
		"the store's directory %s must belong to uid %u and be writable by nobody else "
		"(chmod 700), or other users could join",
		path, (unsigned)geteuid());
}

int m2n__store_open_dir(const char *path, int host_it, struct m2n__store **store)
{
	struct dir_store *s = calloc(1, sizeof(*s));
	int status;

	if (!s)
		return m2n__error(-ENOMEM, "no memory for a store");
	s->base.ops = &dir_ops;
	s->notify_fd = -1;
	s->owns_content = host_it;
	if (snprintf(s->base.url, sizeof(s->base.url), "dir:%s", path) >=
		(int)sizeof(s->base.url)) {
		free(s);
		return m2n__error(-EINVAL, "the store's directory has too long a name");
	}
	strcpy(s->path, s->base.url + strlen("dir:"));
	status = open_directory(path, &s->fd);
	if (status) {
		free(s);
		return status;
	}
	*store = &s->base;
	return 0;
}
