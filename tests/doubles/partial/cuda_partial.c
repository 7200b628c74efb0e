/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A libcuda.so.1 that claims to be recent and has nothing: what a broken or foreign installation
 * looks like to the library.
 */
int cuDriverGetVersion(int *version);

__attribute__((visibility("default"))) int cuDriverGetVersion(int *version)
{
	*version = 12040;
	return 0;
}
