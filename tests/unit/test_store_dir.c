/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is particular to directory stores: who may use a directory, what is left behind, and files
 * that somebody else wrote.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>
#include <cmocka.h>

#include "store_helpers.h"
#include "wire/store_wire.h"

static char base[64], path[128], url[160];

static int make_base(void **state)
{
	strcpy(base, "/tmp/m2n-test-XXXXXX");
	must(mkdtemp(base));
	snprintf(path, sizeof(path), "%s/store", base);
	snprintf(url, sizeof(url), "dir:%s", path);
	return setup(state);
}

static int remove_base(void **state)
{
	/* Whatever a case leaves behind it must have removed itself. */
	assert_int_equal(rmdir(base), 0);
	return teardown(state);
}

static int open_dir(int host_it, struct m2n__store **store)
{
	return m2n__store_open(url, host_it, NULL, LONG, store);
}

static int count_files(void)
{
	DIR *dir = opendir(path);
	struct dirent *entry;
	int n = 0;

	must(dir);
	while ((entry = readdir(dir)))
		n += entry->d_name[0] != '.';
	closedir(dir);
	return n;
}

static void write_file(const char *name, const void *bytes, size_t n)
{
	char file[400];
	FILE *f;

	snprintf(file, sizeof(file), "%s/%s", path, name);
	f = fopen(file, "wb");
	must(f && fwrite(bytes, 1, n, f) == n && !fclose(f));
}

static void directories_are_private(void **state)
{
	struct m2n__store *store = NULL;
	struct stat st;

	(void)state;
	assert_int_equal(open_dir(0, &store), 0);
	m2n__store_close(store);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0700);
	store = NULL;
	assert_int_equal(chmod(path, 0770), 0);
	assert_int_equal(open_dir(0, &store), M2N_ERR_STORE);
	assert_text(path);
	assert_text("chmod 700");
	assert_int_equal(chmod(path, 0702), 0);
	assert_int_equal(open_dir(0, &store), M2N_ERR_STORE);
	assert_int_equal(rmdir(path), 0);
	/* A link, as somebody else could have left in a place that everybody may write to. */
	assert_int_equal(symlink(base, path), 0);
	assert_int_equal(open_dir(0, &store), M2N_ERR_STORE);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(mknod(path, S_IFREG | 0600, 0), 0);
	assert_int_equal(open_dir(0, &store), M2N_ERR_STORE);
	assert_int_equal(unlink(path), 0);
	assert_null(store);
}

static void a_place_that_is_not_there_is_named(void **state)
{
	struct m2n__store *store;

	(void)state;
	assert_int_equal(m2n__store_open("dir:/proc/no/such", 0, NULL, 0, &store), M2N_ERR_STORE);
	assert_text("/proc/no/such");
	assert_text("No such file");
}

static void the_host_removes_what_is_the_stores(void **state)
{
	struct m2n__store *host, *other;
	char file[400];

	(void)state;
	assert_int_equal(open_dir(1, &host), 0);
	assert_int_equal(open_dir(0, &other), 0);
	assert_int_equal(put(other, "a/b", "v"), 0);
	assert_int_equal(put(other, "a/b", "w"), 0);
	assert_int_equal(count_files(), 1);
	m2n__store_close(other);
	must_get(host, "a/b", "w");
	write_file("precious", "mine", 4);
	m2n__store_close(host);
	assert_int_equal(count_files(), 1);
	snprintf(file, sizeof(file), "%s/precious", path);
	assert_int_equal(unlink(file), 0);
	assert_int_equal(open_dir(1, &host), 0);
	m2n__store_close(host);
	assert_int_equal(access(path, F_OK), -1);
}

static void assert_file_refused(struct m2n__store *store, const void *bytes, size_t n, int status)
{
	char value[100];
	size_t room = sizeof(value);

	write_file("m2n-key.k", bytes, n);
	assert_int_equal(store->ops->get(store, "k", value, &room, LONG), status);
	assert_text("'k'");
	assert_text(url);
	assert_int_equal(room, sizeof(value));
}

static void foreign_files_are_refused(void **state)
{
	static uint8_t big[M2N__STORE_FRAME_MAX + 100];
	struct m2n__store_frame frame = {.type = M2N__STORE_ENTRY,
		.key = "k",
		.key_bytes = 1,
		.value = "value",
		.value_bytes = 6};
	struct m2n__store *store;
	uint8_t f[100];
	size_t n;

	(void)state;
	assert_int_equal(open_dir(1, &store), 0);
	assert_int_equal(m2n__store_frame_pack(&frame, f, sizeof(f), &n), 0);
	write_file("m2n-key.k", f, n);
	must_get(store, "k", "value");
	for (size_t cut = 0; cut < n; cut++)
		assert_file_refused(store, f, cut, M2N_ERR_PROTOCOL);
	assert_file_refused(store, f, n + 1, M2N_ERR_PROTOCOL);
	f[M2N__STORE_HEADER_BYTES] = 'j';
	assert_file_refused(store, f, n, M2N_ERR_PROTOCOL);
	f[M2N__STORE_HEADER_BYTES] = 'k';
	f[6] = M2N__STORE_PUT;
	assert_file_refused(store, f, n, M2N_ERR_PROTOCOL);
	f[6] = M2N__STORE_ENTRY;
	f[4] = 9;
	assert_file_refused(store, f, n, M2N_ERR_VERSION);
	assert_text("version 9");
	assert_file_refused(store, big, sizeof(big), M2N_ERR_PROTOCOL);
	assert_int_equal(put(store, "k", "good"), 0);
	must_get(store, "k", "good");
	m2n__store_close(store);
}

static void a_removed_directory_is_an_error(void **state)
{
	struct m2n__store *store;

	(void)state;
	assert_int_equal(open_dir(0, &store), 0);
	assert_int_equal(rmdir(path), 0);
	assert_int_equal(put(store, "k", "v"), M2N_ERR_STORE);
	assert_text(url);
	m2n__store_close(store);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, make_base, remove_base)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(directories_are_private),
		CASE(a_place_that_is_not_there_is_named),
		CASE(the_host_removes_what_is_the_stores),
		CASE(foreign_files_are_refused),
		CASE(a_removed_directory_is_an_error),
	};

	return cmocka_run_group_tests_name("store dir", tests, NULL, NULL);
}
