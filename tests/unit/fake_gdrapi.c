/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A stand-in of GDRCopy's libgdrapi.so.2 for test_gpu_flush.c: a page of host memory takes the
 * place of the device's. GDR_FAIL names the call that is to fail; what is open is counted.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define EXPORT __attribute__((visibility("default")))

struct handle {
	unsigned long h;
};

EXPORT int fake_gdr_open_things;
EXPORT unsigned long fake_gdr_at;
EXPORT const char *fake_gdr_fail;

EXPORT void *gdr_open(void);
EXPORT int gdr_close(void *gdr);
EXPORT int gdr_pin_buffer(void *gdr, unsigned long at, size_t bytes, uint64_t token, uint32_t space,
	struct handle *handle);
EXPORT int gdr_unpin_buffer(void *gdr, struct handle handle);
EXPORT int gdr_map(void *gdr, struct handle handle, void **at, size_t bytes);
EXPORT int gdr_unmap(void *gdr, struct handle handle, void *at, size_t bytes);

static int fails(const char *call)
{
	return fake_gdr_fail && !strcmp(fake_gdr_fail, call);
}

void *gdr_open(void)
{
	if (fails("open"))
		return NULL;
	fake_gdr_open_things++;
	return &fake_gdr_open_things;
}

int gdr_close(void *gdr)
{
	fake_gdr_open_things -= gdr == &fake_gdr_open_things;
	return 0;
}

int gdr_pin_buffer(void *gdr, unsigned long at, size_t bytes, uint64_t token, uint32_t space,
	struct handle *handle)
{
	(void)gdr, (void)token, (void)space;
	if (fails("pin") || bytes != 65536)
		return 22;
	fake_gdr_at = at;
	fake_gdr_open_things++;
	handle->h = 77;
	return 0;
}

int gdr_unpin_buffer(void *gdr, struct handle handle)
{
	(void)gdr;
	fake_gdr_open_things -= handle.h == 77;
	return 0;
}

int gdr_map(void *gdr, struct handle handle, void **at, size_t bytes)
{
	(void)gdr;
	if (fails("map") || handle.h != 77)
		return 22;
	*at = mmap(NULL, bytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	fake_gdr_open_things++;
	return 0;
}

int gdr_unmap(void *gdr, struct handle handle, void *at, size_t bytes)
{
	(void)gdr, (void)handle;
	fake_gdr_open_things--;
	return munmap(at, bytes);
}
