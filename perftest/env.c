/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The machine and the build that a result belongs to.
 */
#include "cases.h"

#include <string.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include "commit.h"

static void read_cpu(char *cpu, size_t bytes)
{
	char line[256];
	FILE *file = fopen("/proc/cpuinfo", "re");

	snprintf(cpu, bytes, "unknown");
	while (file != NULL && fgets(line, sizeof(line), file) != NULL) {
		char *colon = strchr(line, ':');
		if (strncmp(line, "model name", 10) != 0 || colon == NULL)
			continue;
		line[strcspn(line, "\n")] = '\0';
		snprintf(cpu, bytes, "%s", colon + 1 + (colon[1] == ' '));
		break;
	}
	if (file != NULL)
		fclose(file);
}

void perf_env_get(struct perf_env *env)
{
	struct utsname host;
	time_t now = time(NULL);
	struct tm tm;

	*env = (struct perf_env){.cores = (unsigned)sysconf(_SC_NPROCESSORS_ONLN),
		.version = m2n_version(),
		.commit = PERF_COMMIT};
	read_cpu(env->cpu, sizeof(env->cpu));
	if (uname(&host) == 0)
		snprintf(env->kernel, sizeof(env->kernel), "%.30s %.90s", host.sysname,
			host.release);
	snprintf(env->compiler, sizeof(env->compiler), "%s %s",
#if defined(__clang__)
		"clang", __clang_version__
#else
		"gcc", __VERSION__
#endif
	);
	if (gmtime_r(&now, &tm) != NULL)
		strftime(env->date, sizeof(env->date), "%Y-%m-%dT%H:%M:%SZ", &tm);
}
