/* SPDX-License-Identifier: Apache-2.0 */
/*
 * merger CHROME SVG TITLE AT WINDOW_NS FILE...: merges timelines and prints the communication that
 * shows; 1 and a sentence if that fails.
 */
#include <stdio.h>
#include <stdlib.h>

#include "report/timeline.h"
#include "model/error.h"

int main(int argc, char **argv)
{
	const char *const *paths = (const char *const *)argv + 6;
	size_t n = (size_t)argc - 6;
	double share;

	if (argc < 6 ||
		timeline_merge(
			paths, n, argv[1], argv[2], argv[3], atof(argv[4]), atoll(argv[5])) ||
		timeline_exposed(paths, n, &share)) {
		fprintf(stderr, "%s\n", model_error());
		return 1;
	}
	printf("%.9f\n", share);
	return 0;
}
