/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs a fuzz target over files: each argument is a file, or a directory whose files are taken in
 * the order of their names. It ends with 0 when no input made the target crash, 1 when an argument
 * cannot be read or there was no input at all. So any compiler can replay a corpus, and a
 * debugger a single input.
 */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static int n_inputs;

/* The input is allocated to the byte, so that sanitizers see a read past its end. */
static int replay_file(const char *path, size_t bytes)
{
	FILE *file = fopen(path, "rb");
	uint8_t *data = malloc(bytes ? bytes : 1);
	int failed = !file || !data || fread(data, 1, bytes, file) != bytes;

	if (failed)
		perror(path);
	else
		LLVMFuzzerTestOneInput(data, bytes);
	n_inputs += !failed;
	if (file)
		fclose(file);
	free(data);
	return failed;
}

static int replay(const char *path);

static int replay_directory(const char *path)
{
	struct dirent **entries;
	char child[4096];
	int n = scandir(path, &entries, NULL, alphasort);
	int failed = n < 0;

	if (failed)
		perror(path);
	for (int i = 0; i < n; i++) {
		if (entries[i]->d_name[0] != '.') {
			snprintf(child, sizeof(child), "%s/%s", path, entries[i]->d_name);
			failed |= replay(child);
		}
		free(entries[i]);
	}
	if (n >= 0)
		free(entries);
	return failed;
}

static int replay(const char *path)
{
	struct stat st;

	if (stat(path, &st)) {
		perror(path);
		return 1;
	}
	return S_ISDIR(st.st_mode) ? replay_directory(path) : replay_file(path, (size_t)st.st_size);
}

int main(int argc, char **argv)
{
	int failed = 0;

	for (int i = 1; i < argc; i++)
		failed |= replay(argv[i]);
	printf("%d inputs\n", n_inputs);
	return failed || !n_inputs;
}
