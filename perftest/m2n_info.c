/* SPDX-License-Identifier: Apache-2.0 */
/*
 * m2n_info: what libm2n finds on this machine. Versions, the processor's kernels, the backends
 * with what they chose or why they cannot be used, the RDMA ports, the GPUs, what the launcher
 * says, and every option with the value in force. It opens a context as a program would; when that
 * fails it says why, shows what can be known without one, and ends with status 1.
 *
 * Everything is gathered into one JSON object first; the text form prints that object, so that
 * the two never differ.
 */
#include <argp.h>
#include <jansson.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <m2n/context.h>

#include "bootstrap/launcher.h"
#include "core/option.h"
#include "info_devices.h"
#include "info_gpu.h"
#include "kernel/kernel.h"

#define SCHEMA "m2n_info 1"
#define VALUE_BYTES 4096

struct args {
	int options;
	int json;
	const char *backend;
};

/* clang-format off */
static const struct argp_option argp_options[] = {
	{"config", 'c', NULL, 0, "Print the options: value, origin, default, range, meaning", 0},
	{"json", 'j', NULL, 0, "Print everything as one JSON object", 0},
	{"backend", 'b', "NAME", 0, "Force a backend, as option BACKEND does", 0},
	{0},
};
/* clang-format on */

static void print_version(FILE *stream, struct argp_state *state)
{
	(void)state;
	fprintf(stream, "m2n_info %s\n", m2n_version());
}

static error_t parse_arg(int key, char *text, struct argp_state *state)
{
	struct args *args = state->input;

	switch (key) {
	case 'c':
		args->options = 1;
		return 0;
	case 'j':
		args->json = 1;
		return 0;
	case 'b':
		args->backend = text;
		return 0;
	case ARGP_KEY_ARG:
		argp_error(state, "unexpected argument '%s'", text);
		return EINVAL;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

json_t *info_text(const char *text)
{
	json_t *value = json_string(text);
	char *copy;

	if (value)
		return value;
	copy = strdup(text);
	if (!copy)
		return NULL;
	for (char *at = copy; *at; at++)
		if ((unsigned char)*at >= 128)
			*at = '?';
	value = json_string(copy);
	free(copy);
	return value;
}

/* Jansson passes a failed allocation on as NULL, which ends here. */
json_t *info_need(json_t *value)
{
	if (!value) {
		fputs("m2n_info: no memory\n", stderr);
		exit(1);
	}
	return value;
}

void info_put(json_t *object, const char *name, json_t *value)
{
	if (json_object_set_new(object, name, info_need(value))) {
		fputs("m2n_info: no memory\n", stderr);
		exit(1);
	}
}

static json_t *get_processor(void)
{
	json_t *processor = info_need(json_object());
	cpu_set_t set;

	info_put(processor, "online", json_integer(sysconf(_SC_NPROCESSORS_ONLN)));
	if (sched_getaffinity(0, sizeof(set), &set) == 0)
		info_put(processor, "usable", json_integer(CPU_COUNT(&set)));
	info_put(processor, "page_bytes", json_integer(sysconf(_SC_PAGESIZE)));
	return processor;
}

/* The number after `name` in /proc/meminfo. */
static long read_meminfo(const char *name)
{
	FILE *file = fopen("/proc/meminfo", "re");
	char line[128];
	long value = 0;

	while (file && fgets(line, sizeof(line), file))
		if (strncmp(line, name, strlen(name)) == 0)
			value = strtol(line + strlen(name), NULL, 10);
	if (file)
		fclose(file);
	return value;
}

/* The word in brackets: "always within_size advise [never] deny force". */
static void read_choice(const char *path, char *word, size_t bytes)
{
	FILE *file = fopen(path, "re");
	char line[256] = "";
	const char *open;

	if (file && !fgets(line, sizeof(line), file))
		line[0] = '\0';
	if (file)
		fclose(file);
	open = strchr(line, '[');
	snprintf(word, bytes, "%.*s", open ? (int)strcspn(open + 1, "]") : 7,
		open ? open + 1 : "unknown");
}

/* What a network may pin: null where there is no limit. */
static void put_locked_limit(json_t *memory)
{
	struct rlimit limit;
	int limited = getrlimit(RLIMIT_MEMLOCK, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY;

	info_put(memory, "locked_limit_bytes",
		limited ? json_integer((json_int_t)limit.rlim_cur) : json_null());
}

static json_t *get_memory(void)
{
	json_t *memory = info_need(json_object());
	char word[32];

	info_put(memory, "available_bytes", json_integer(1024LL * read_meminfo("MemAvailable:")));
	info_put(memory, "huge_page_bytes", json_integer(1024LL * read_meminfo("Hugepagesize:")));
	info_put(memory, "huge_pages", json_integer(read_meminfo("HugePages_Total:")));
	info_put(memory, "huge_pages_free", json_integer(read_meminfo("HugePages_Free:")));
	put_locked_limit(memory);
	read_choice("/sys/kernel/mm/transparent_hugepage/shmem_enabled", word, sizeof(word));
	info_put(memory, "transparent_shared", info_text(word));
	return memory;
}

static json_t *get_kernels(struct m2n_ctx *ctx)
{
	json_t *list = info_need(json_array());
	const struct m2n__kernels *chosen = NULL;
	const struct m2n__kernels *kernels;
	char want[32];
	int usable;

	if (ctx && m2n_ctx_option(ctx, "KERNELS", want, sizeof(want), NULL) == 0)
		chosen = m2n__kernels_select(strcmp(want, "auto") == 0 ? NULL : want);
	for (unsigned i = 0; (kernels = m2n__kernels_at(i, &usable)); i++) {
		json_t *row = info_need(json_object());

		info_put(row, "name", info_text(kernels->name));
		info_put(row, "usable", json_boolean(usable));
		info_put(row, "chosen", json_boolean(kernels == chosen));
		json_array_append_new(list, row);
	}
	return list;
}

/* What a backend said of its choices as it was opened. */
static json_t *get_notes(const json_t *lines, const char *backend)
{
	json_t *notes = info_need(json_array());
	size_t n = strlen(backend), i;
	const json_t *line;

	json_array_foreach(lines, i, line) {
		const char *text = json_string_value(line);

		if (strncmp(text, backend, n) == 0 && strncmp(text + n, ": ", 2) == 0)
			json_array_append_new(notes, info_text(text + n + 2));
	}
	return notes;
}

static json_t *get_backends(struct m2n_ctx *ctx, const json_t *lines)
{
	json_t *list = info_need(json_array());
	struct m2n_backend_attr attr;

	for (unsigned i = 0; ctx && m2n_ctx_backend_at(ctx, i, &attr) == 0; i++) {
		json_t *row = info_need(json_object());

		info_put(row, "name", info_text(attr.name));
		info_put(row, "about", info_text(attr.about));
		info_put(row, "usable", json_boolean(attr.usable));
		info_put(row, "reason", info_text(attr.reason));
		info_put(row, "notes", get_notes(lines, attr.name));
		json_array_append_new(list, row);
	}
	return list;
}

static void put_number(json_t *object, const char *name, int number)
{
	info_put(object, name, number < 0 ? json_null() : json_integer(number));
}

static json_t *get_launcher(void)
{
	json_t *launcher = info_need(json_object());
	struct m2n__launch launch = {.launcher = "none", .rank = -1, .n_ranks = -1,
		.local_rank = -1, .n_local_ranks = -1};
	int bad = m2n__launch_detect(m2n__getenv, NULL, &launch);

	info_put(launcher, "name", info_text(launch.launcher));
	put_number(launcher, "rank", launch.rank);
	put_number(launcher, "n_ranks", launch.n_ranks);
	put_number(launcher, "local_rank", launch.local_rank);
	put_number(launcher, "n_local_ranks", launch.n_local_ranks);
	info_put(launcher, "store", info_text(launch.store));
	info_put(launcher, "job", info_text(launch.job));
	info_put(launcher, "error", bad ? info_text(m2n_error_text()) : json_null());
	return launcher;
}

static void put_value(json_t *row, struct m2n_ctx *ctx, const char *name)
{
	static char value[VALUE_BYTES];
	const char *origin;

	if (!ctx || m2n_ctx_option(ctx, name, value, sizeof(value), &origin)) {
		info_put(row, "value", json_null());
		info_put(row, "origin", json_null());
		return;
	}
	info_put(row, "value", info_text(value));
	info_put(row, "origin", info_text(origin));
}

static json_t *get_options(struct m2n_ctx *ctx)
{
	json_t *list = info_need(json_array());
	struct m2n_option_attr attr;

	for (unsigned i = 0; m2n_option_at(i, &attr) == 0; i++) {
		json_t *row = info_need(json_object());

		info_put(row, "name", info_text(attr.name));
		put_value(row, ctx, attr.name);
		info_put(row, "type", info_text(attr.type));
		info_put(row, "default", info_text(attr.default_value));
		info_put(row, "range", info_text(attr.range));
		info_put(row, "unit", info_text(attr.unit));
		info_put(row, "about", info_text(attr.about));
		json_array_append_new(list, row);
	}
	return list;
}

static json_t *get_all(struct m2n_ctx *ctx, const char *error, const json_t *lines)
{
	json_t *info = info_need(json_object());

	info_put(info, "schema", json_string(SCHEMA));
	info_put(info, "version", info_text(m2n_version()));
	info_put(info, "wire_version", json_integer(m2n_wire_version()));
	info_put(info, "error", error ? info_text(error) : json_null());
	info_put(info, "processor", get_processor());
	info_put(info, "memory", get_memory());
	info_put(info, "kernels", get_kernels(ctx));
	info_put(info, "backends", get_backends(ctx, lines));
	info_put(info, "rdma_ports", info_devices());
	info_put(info, "gpu", info_gpus());
	info_put(info, "launcher", get_launcher());
	info_put(info, "options", get_options(ctx));
	return info;
}

static const char *text_of(const json_t *object, const char *name)
{
	const char *text = json_string_value(json_object_get(object, name));

	return text ? text : "";
}

static long long number_of(const json_t *object, const char *name)
{
	return json_integer_value(json_object_get(object, name));
}

static void print_machine(const json_t *info)
{
	const json_t *processor = json_object_get(info, "processor");
	const json_t *memory = json_object_get(info, "memory");

	printf("libm2n %s, wire version %lld\n", text_of(info, "version"),
		number_of(info, "wire_version"));
	printf("\nMachine\n");
	printf("  processors   %lld usable of %lld\n", number_of(processor, "usable"),
		number_of(processor, "online"));
	printf("  memory       %lld MiB available\n", number_of(memory, "available_bytes") >> 20);
	printf("  huge pages   %lld free of %lld (%lld KiB each); transparent for shared "
		"memory: %s\n", number_of(memory, "huge_pages_free"),
		number_of(memory, "huge_pages"), number_of(memory, "huge_page_bytes") >> 10,
		text_of(memory, "transparent_shared"));
	if (json_is_integer(json_object_get(memory, "locked_limit_bytes")))
		printf("  locked       %lld KiB at most (ulimit -l)\n",
			number_of(memory, "locked_limit_bytes") >> 10);
	else
		printf("  locked       no limit\n");
}

static void print_kernels(const json_t *info)
{
	const json_t *row;
	size_t i;

	printf("\nKernels\n");
	json_array_foreach(json_object_get(info, "kernels"), i, row)
		printf("  %-12s %s\n", text_of(row, "name"),
			json_is_true(json_object_get(row, "chosen")) ? "chosen" :
			json_is_true(json_object_get(row, "usable")) ? "usable" :
			"not usable: the processor lacks the instructions");
}

/* Reasons begin with the backend's name, which stands in front of them here. */
static const char *without_name(const char *reason, const char *name)
{
	size_t n = strlen(name);

	return strncmp(reason, name, n) == 0 && strncmp(reason + n, ": ", 2) == 0 ? reason + n + 2
										  : reason;
}

static void print_backends(const json_t *info)
{
	const json_t *list = json_object_get(info, "backends");
	const json_t *row, *note;
	size_t i, k;

	printf("\nBackends\n");
	if (json_array_size(list) == 0)
		printf("  unknown without a context\n");
	json_array_foreach(list, i, row) {
		const char *name = text_of(row, "name");
		const char *reason = without_name(text_of(row, "reason"), name);

		printf("  %-12s %s%s%s\n", name,
			json_is_true(json_object_get(row, "usable")) ? "usable" : "not usable",
			reason[0] ? ": " : "", reason);
		printf("  %-12s %s\n", "", text_of(row, "about"));
		json_array_foreach(json_object_get(row, "notes"), k, note)
			printf("  %-12s %s\n", "", json_string_value(note));
	}
}

static void print_number(const json_t *object, const char *name, const char *label)
{
	const json_t *value = json_object_get(object, name);

	if (json_is_integer(value))
		printf("  %-12s %lld\n", label, (long long)json_integer_value(value));
}

static void print_launcher(const json_t *info)
{
	const json_t *launcher = json_object_get(info, "launcher");

	printf("\nLauncher\n");
	printf("  %-12s %s\n", "name", text_of(launcher, "name"));
	print_number(launcher, "rank", "rank");
	print_number(launcher, "n_ranks", "ranks");
	print_number(launcher, "local_rank", "local rank");
	print_number(launcher, "n_local_ranks", "local ranks");
	if (text_of(launcher, "store")[0])
		printf("  %-12s %s\n", "store", text_of(launcher, "store"));
	if (text_of(launcher, "job")[0])
		printf("  %-12s %s\n", "job", text_of(launcher, "job"));
	if (text_of(launcher, "error")[0])
		printf("  %-12s %s\n", "error", text_of(launcher, "error"));
}

/* One option as a line that a shell can set, and two that explain it. */
static void print_options(const json_t *info)
{
	const json_t *row;
	size_t i;

	json_array_foreach(json_object_get(info, "options"), i, row) {
		const char *unit = text_of(row, "unit");

		if (json_is_null(json_object_get(row, "value")))
			printf("%sM2N_%s\n", i ? "\n" : "", text_of(row, "name"));
		else
			printf("%sM2N_%s=%s  (%s)\n", i ? "\n" : "", text_of(row, "name"),
				text_of(row, "value"), text_of(row, "origin"));
		printf("    %s\n", text_of(row, "about"));
		printf("    %s: %s%s%s; default \"%s\"\n", text_of(row, "type"),
			text_of(row, "range"), unit[0] ? " " : "", unit, text_of(row, "default"));
	}
}

/* Warnings of the library, such as an unknown M2N_ variable, are shown; its choices are kept. */
static void take_line(void *lines, enum m2n_log_level level, const char *text)
{
	if (level <= M2N_LOG_WARN)
		fprintf(stderr, "m2n_info: warning: %s\n", text);
	else if (level == M2N_LOG_INFO)
		json_array_append_new(lines, info_need(info_text(text)));
}

static int print_all(const json_t *info, const struct args *args)
{
	if (args->json) {
		json_dumpf(info, stdout, 2);
		putchar('\n');
	} else if (args->options) {
		print_options(info);
	} else {
		print_machine(info);
		print_kernels(info);
		print_backends(info);
		info_print_devices(json_object_get(info, "rdma_ports"));
		info_print_gpus(json_object_get(info, "gpu"));
		print_launcher(info);
	}
	if (fflush(stdout) || ferror(stdout)) {
		perror("m2n_info: standard output");
		return 1;
	}
	return 0;
}

int main(int argc, char **argv)
{
	static const struct argp argp = {argp_options, parse_arg, NULL,
		"Shows what libm2n finds on this machine, and its options.", NULL, NULL, NULL};
	struct m2n_ctx_params params = M2N_CTX_PARAMS_INIT;
	struct args args = {0};
	json_t *info, *lines = info_need(json_array());
	struct m2n_ctx *ctx = NULL;
	struct m2n__cuda *cuda;
	int failed;

	argp_program_version_hook = print_version;
	argp_err_exit_status = 2;
	argp_parse(&argp, argc, argv, 0, NULL, &args);
	params.backend = args.backend;
	params.log = take_line;
	params.log_arg = lines;
	cuda = info_gpu_enter();
	failed = m2n_ctx_open(&params, &ctx);
	if (failed)
		fprintf(stderr, "m2n_info: %s: %s\n", m2n_strerror(failed), m2n_error_text());
	info = get_all(ctx, failed ? m2n_error_text() : NULL, lines);
	m2n_ctx_close(ctx);
	info_gpu_leave(cuda);
	failed |= print_all(info, &args);
	json_decref(info);
	json_decref(lines);
	return failed ? 1 : 0;
}
