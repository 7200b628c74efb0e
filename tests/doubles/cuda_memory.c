/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stand-in of libcuda.so.1: memory. Device memory is a memfd that is mapped where the loader finds
 * room, so that other processes can map it, too; pinned memory is an anonymous mapping.
 *
 * A block ends at the end of its pages and a page that nobody may touch follows, as far as 256
 * bytes of alignment allow; fresh memory is full of 0xa5, freed memory is kept out of reach and
 * its addresses are not used again for a while. So stray accesses of kernels fault, which
 * a sanitizer or a debugger shows with the address.
 */
#include "doubles/cuda_state.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE ((size_t)4096)
#define ALIGN ((size_t)256) /* of cuMemAlloc() */
#define FRESH_BYTES ((size_t)1 << 20) /* that are filled with 0xa5 */
#define GRANULARITY ((size_t)2 << 20)
#define N_GRAVES 256 /* freed blocks whose addresses are not used yet */
#define MAGIC 0x6d326e64 /* "m2nd" */
#define VMM_NAME "m2n-cuda-double-vmm"

enum block_kind {
	BLOCK_DEVICE,
	BLOCK_PINNED,
	BLOCK_OPENED, /* of another process */
	BLOCK_MAPPED, /* a handle, in a reservation */
};

struct file {
	dev_t dev;
	ino_t inode;
};

struct block {
	enum block_kind kind;
	struct context *context;
	int ordinal;
	uint64_t at; /* what the program sees */
	size_t bytes;
	void *map; /* with padding and the page behind */
	size_t map_bytes;
	int fd;
	unsigned n_opens;
	struct file file;
	struct handle *handle;
	struct block *next;
};

/* An allocation without an address. */
struct handle {
	unsigned refs; /* handles and mappings */
	int ordinal;
	int fd;
	int is_imported;
	size_t bytes;
	struct handle *next;
};

struct reservation {
	uint64_t at;
	size_t bytes;
	struct reservation *next;
};

/* In struct m2n__cu_ipc. */
struct passed {
	uint32_t magic;
	int32_t pid, fd, ordinal;
	uint64_t dev, inode, map_bytes, pad;
};
_Static_assert(sizeof(struct passed) <= sizeof(struct m2n__cu_ipc), "fits the driver's handle");

EXPORT size_t m2n_double_count_blocks(void) __asm__("m2n_double_blocks");

static struct block *blocks;
static struct handle *handles;
static struct reservation *reservations;
static struct {
	void *map;
	size_t bytes;
} graves[N_GRAVES];
static unsigned n_graves_ever;

static size_t round_up(size_t bytes, size_t unit)
{
	return (bytes + unit - 1) / unit * unit;
}

static struct block *block_at(uint64_t at)
{
	for (struct block *b = blocks; b; b = b->next)
		if (at >= b->at && at - b->at < b->bytes)
			return b;
	return NULL;
}

int double_is_range(uint64_t at, size_t bytes)
{
	const struct block *b = block_at(at);

	return b && bytes <= b->bytes - (at - b->at);
}

size_t m2n_double_count_blocks(void)
{
	size_t n = 0;

	LOCKED();
	for (const struct block *b = blocks; b; b = b->next)
		n++;
	return n;
}

static void bury(void *map, size_t bytes)
{
	unsigned i = n_graves_ever++ % N_GRAVES;

	if (graves[i].map)
		munmap(graves[i].map, graves[i].bytes);
	mmap(map, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
	graves[i].map = map;
	graves[i].bytes = bytes;
}

static struct handle *find_handle(m2n__cu_handle number)
{
	struct handle *h;

	for (h = handles; h && (uintptr_t)h != number; h = h->next)
		;
	return h;
}

static void put_handle(struct handle *handle)
{
	struct handle **at = &handles;

	if (--handle->refs)
		return;
	while (*at != handle)
		at = &(*at)->next;
	*at = handle->next;
	if (!handle->is_imported)
		double_contexts[handle->ordinal].used -= handle->bytes;
	close(handle->fd);
	free(handle);
}

static void free_block(struct block *block)
{
	struct block **at = &blocks;

	while (*at != block)
		at = &(*at)->next;
	*at = block->next;
	if (block->kind == BLOCK_DEVICE)
		block->context->used -= block->bytes;
	if (block->kind == BLOCK_MAPPED) {
		/* The reservation stays. */
		mmap(block->map, block->map_bytes, PROT_NONE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
		put_handle(block->handle);
	} else {
		bury(block->map, block->map_bytes);
	}
	if (block->fd >= 0)
		close(block->fd);
	free(block);
}

void double_free_blocks(struct context *context)
{
	for (struct block *b = blocks, *next; b; b = next) {
		next = b->next;
		if (b->context == context)
			free_block(b);
	}
}

static struct block *add_block(const struct block *values)
{
	struct block *b = malloc(sizeof(*b));

	if (b) {
		*b = *values;
		b->next = blocks;
		blocks = b;
	}
	return b;
}

/* Maps `fd` (-1: anonymous) and a page behind that faults. */
static void *map(int fd, size_t bytes)
{
	char *at = mmap(NULL, bytes + PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
		-1, 0);
	void *got;

	if (at == MAP_FAILED)
		return NULL;
	got = mmap(at, bytes, PROT_READ | PROT_WRITE,
		MAP_FIXED | (fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED), fd, 0);
	if (got == MAP_FAILED) {
		munmap(at, bytes + PAGE);
		return NULL;
	}
	return at;
}

static int make_fd(const char *name, size_t bytes)
{
	int fd = memfd_create(name, MFD_CLOEXEC);

	if (fd >= 0 && ftruncate(fd, (off_t)bytes)) {
		close(fd);
		fd = -1;
	}
	return fd;
}

/* What a call that allocates or frees must return before it does anything. */
static m2n__cu_result check(struct context **context)
{
	*context = double_context();
	return *context ? double_unsafe() : M2N__CU_INVALID_CONTEXT;
}

static int has_room(const struct context *context, size_t bytes)
{
	return bytes <= double_settings.device_bytes - context->used;
}

m2n__cu_result m2n_double_mem_alloc(m2n__cu_ptr *at, size_t bytes)
{
	size_t used = round_up(bytes, ALIGN), all = round_up(used, PAGE);
	struct context *context;
	struct block b;
	m2n__cu_result result;

	ENTER(mem_alloc);
	LOCKED();
	result = check(&context);
	if (result)
		return result;
	if (!bytes)
		return M2N__CU_INVALID_VALUE;
	if (bytes > (size_t)1 << 46 || !has_room(context, used))
		return M2N__CU_OUT_OF_MEMORY;
	b = (struct block){.kind = BLOCK_DEVICE, .context = context, .ordinal = context->ordinal,
		.bytes = bytes, .map_bytes = all + PAGE, .fd = make_fd("m2n-cuda-double", all)};
	if (b.fd < 0)
		return M2N__CU_OUT_OF_MEMORY;
	b.map = map(b.fd, all);
	if (!b.map || !add_block(&b)) {
		close(b.fd);
		return M2N__CU_OUT_OF_MEMORY;
	}
	blocks->at = (uintptr_t)b.map + (all - used);
	context->used += bytes;
	memset((void *)(uintptr_t)blocks->at, 0xa5, bytes < FRESH_BYTES ? bytes : FRESH_BYTES);
	*at = blocks->at;
	return 0;
}

/* Frees wait for all that the device has been told to do: a kernel that waits for somebody who
 * waits for the free never ends, here as there. */
static m2n__cu_result free_at(uint64_t at, enum block_kind kind)
{
	struct context *context;
	struct block *b;
	m2n__cu_result result = check(&context);

	if (result)
		return result;
	b = block_at(at);
	if (!b || b->at != at || b->kind != kind)
		return M2N__CU_INVALID_VALUE;
	double_counters.n_host_waits++;
	double_await_context(b->context);
	free_block(b);
	return 0;
}

m2n__cu_result m2n_double_mem_free(m2n__cu_ptr at)
{
	ENTER(mem_free);
	LOCKED();
	return free_at(at, BLOCK_DEVICE);
}

m2n__cu_result m2n_double_mem_info(size_t *free_bytes, size_t *total)
{
	const struct context *context;

	ENTER(mem_info);
	LOCKED();
	context = double_context();
	if (!context)
		return M2N__CU_INVALID_CONTEXT;
	*total = double_settings.device_bytes;
	*free_bytes = *total - context->used;
	return 0;
}

m2n__cu_result m2n_double_mem_range(m2n__cu_ptr *base, size_t *bytes, m2n__cu_ptr at)
{
	const struct block *b;

	ENTER(mem_range);
	LOCKED();
	if (!double_context())
		return M2N__CU_INVALID_CONTEXT;
	b = block_at(at);
	if (!b)
		return M2N__CU_INVALID_VALUE;
	if (base)
		*base = b->at;
	if (bytes)
		*bytes = b->bytes;
	return 0;
}

m2n__cu_result m2n_double_host_alloc(void **at, size_t bytes, unsigned flags)
{
	size_t used = round_up(bytes, ALIGN), all = round_up(used, PAGE);
	struct context *context;
	struct block b;
	m2n__cu_result result;

	ENTER(host_alloc);
	LOCKED();
	result = check(&context);
	if (result)
		return result;
	if (!bytes || flags > 7)
		return M2N__CU_INVALID_VALUE;
	if (bytes > (size_t)1 << 40)
		return M2N__CU_OUT_OF_MEMORY;
	b = (struct block){.kind = BLOCK_PINNED, .context = context, .ordinal = context->ordinal,
		.bytes = bytes, .map = map(-1, all), .map_bytes = all + PAGE, .fd = -1};
	if (!b.map)
		return M2N__CU_OUT_OF_MEMORY;
	b.at = (uintptr_t)b.map;
	if (!add_block(&b))
		return M2N__CU_OUT_OF_MEMORY;
	memset(b.map, 0xa5, bytes < FRESH_BYTES ? bytes : FRESH_BYTES);
	*at = b.map;
	return 0;
}

m2n__cu_result m2n_double_host_free(void *at)
{
	ENTER(host_free);
	LOCKED();
	return free_at((uintptr_t)at, BLOCK_PINNED);
}

m2n__cu_result m2n_double_host_device_ptr(m2n__cu_ptr *device, void *host, unsigned flags)
{
	const struct block *b;

	ENTER(host_device_ptr);
	LOCKED();
	b = block_at((uintptr_t)host);
	if (flags || !b || b->kind != BLOCK_PINNED)
		return M2N__CU_INVALID_VALUE;
	*device = (uintptr_t)host;
	return 0;
}

static void put_u32(void *value, unsigned number)
{
	memcpy(value, &number, sizeof(number));
}

m2n__cu_result m2n_double_pointer_attribute(void *value, int attribute, m2n__cu_ptr at)
{
	const struct block *b;

	ENTER(pointer_attribute);
	LOCKED();
	b = block_at(at);
	if (!b)
		return M2N__CU_INVALID_VALUE;
	switch (attribute) {
	case M2N__CU_PTR_MEMORY_TYPE:
		put_u32(value, b->kind == BLOCK_PINNED ? 1 : 2);
		return 0;
	case M2N__CU_PTR_SYNC_MEMOPS:
	case M2N__CU_PTR_IS_MANAGED: /* one byte or four: callers have four, zeroed */
		put_u32(value, 0);
		return 0;
	case M2N__CU_PTR_IS_LEGACY_IPC:
		put_u32(value, b->kind == BLOCK_DEVICE);
		return 0;
	case M2N__CU_PTR_DEVICE_ORDINAL:
		put_u32(value, (unsigned)b->ordinal);
		return 0;
	case M2N__CU_PTR_ALLOWED_HANDLES:
		put_u32(value, b->kind == BLOCK_MAPPED ? M2N__CU_HANDLE_FD : 0);
		return 0;
	default:
		return M2N__CU_INVALID_VALUE;
	}
}

m2n__cu_result m2n_double_pointer_set_attribute(const void *value, int attribute, m2n__cu_ptr at)
{
	const struct block *b;

	ENTER(pointer_set_attribute);
	LOCKED();
	b = block_at(at);
	return value && attribute == M2N__CU_PTR_SYNC_MEMOPS && b && b->kind != BLOCK_PINNED ?
		0 : M2N__CU_INVALID_VALUE;
}

/* ---- CUDA IPC ---- */

m2n__cu_result m2n_double_ipc_get(struct m2n__cu_ipc *ipc, m2n__cu_ptr at)
{
	struct passed passed;
	const struct block *b;
	struct stat info;

	ENTER(ipc_get);
	LOCKED();
	b = block_at(at);
	if (!b || b->kind != BLOCK_DEVICE || fstat(b->fd, &info))
		return M2N__CU_INVALID_VALUE;
	passed = (struct passed){
		.magic = MAGIC,
		.pid = getpid(),
		.fd = b->fd,
		.ordinal = b->ordinal,
		.dev = info.st_dev,
		.inode = info.st_ino,
		.map_bytes = b->map_bytes - PAGE,
		.pad = b->at - (uintptr_t)b->map,
	};
	memset(ipc, 0, sizeof(*ipc));
	memcpy(ipc, &passed, sizeof(passed));
	/* The bytes of the block follow. */
	memcpy(ipc->bytes + sizeof(passed), &b->bytes, sizeof(b->bytes));
	return 0;
}
_Static_assert(sizeof(struct passed) + sizeof(size_t) <= sizeof(struct m2n__cu_ipc), "fits");

static int open_passed(const struct passed *p)
{
	struct stat info;
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/fd/%d", p->pid, p->fd);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd >= 0 && (fstat(fd, &info) || info.st_ino != p->inode || info.st_dev != p->dev)) {
		close(fd);
		fd = -1;
	}
	return fd;
}

m2n__cu_result m2n_double_ipc_open(m2n__cu_ptr *at, struct m2n__cu_ipc ipc, unsigned flags)
{
	struct context *context;
	struct passed p;
	struct block b;
	m2n__cu_result result;

	ENTER(ipc_open);
	LOCKED();
	result = check(&context);
	if (result)
		return result;
	memcpy(&p, &ipc, sizeof(p));
	if (p.magic != MAGIC || flags != M2N__CU_IPC_LAZY_PEER_ACCESS)
		return M2N__CU_INVALID_VALUE;
	if (p.pid == getpid())
		return M2N__CU_INVALID_CONTEXT;
	for (struct block *o = blocks; o; o = o->next)
		if (o->kind == BLOCK_OPENED && o->context == context &&
			o->file.inode == p.inode && o->file.dev == p.dev) {
			o->n_opens++;
			*at = o->at;
			return 0;
		}
	b = (struct block){.kind = BLOCK_OPENED, .context = context, .ordinal = p.ordinal,
		.map_bytes = p.map_bytes + PAGE, .fd = open_passed(&p), .n_opens = 1,
		.file = {p.dev, p.inode}};
	memcpy(&b.bytes, ipc.bytes + sizeof(p), sizeof(b.bytes));
	if (b.fd < 0)
		return M2N__CU_INVALID_HANDLE;
	b.map = map(b.fd, p.map_bytes);
	close(b.fd);
	b.fd = -1;
	if (!b.map)
		return M2N__CU_OUT_OF_MEMORY;
	b.at = (uintptr_t)b.map + p.pad;
	if (!add_block(&b))
		return M2N__CU_OUT_OF_MEMORY;
	*at = b.at;
	return 0;
}

m2n__cu_result m2n_double_ipc_close(m2n__cu_ptr at)
{
	struct block *b;

	ENTER(ipc_close);
	LOCKED();
	b = block_at(at);
	if (!b || b->at != at || b->kind != BLOCK_OPENED)
		return M2N__CU_INVALID_VALUE;
	if (b->n_opens > 1) {
		b->n_opens--;
		return 0;
	}
	return free_at(at, BLOCK_OPENED);
}

/* ---- memory without an address ---- */

static int is_prop(const struct m2n__cu_alloc_prop *prop)
{
	return prop && prop->type == 1 && prop->location.type == 1 &&
		prop->location.id >= 0 && prop->location.id < double_settings.n_devices &&
		!(prop->handle_types & ~M2N__CU_HANDLE_FD);
}

m2n__cu_result m2n_double_vmm_granularity(size_t *bytes, const struct m2n__cu_alloc_prop *prop,
	int option)
{
	ENTER(vmm_granularity);
	if (!is_prop(prop) || option < 0 || option > 1)
		return M2N__CU_INVALID_VALUE;
	*bytes = GRANULARITY;
	return 0;
}

static m2n__cu_result add_handle(const struct handle *values, m2n__cu_handle *number)
{
	struct handle *h = malloc(sizeof(*h));

	if (!h) {
		close(values->fd);
		return M2N__CU_OUT_OF_MEMORY;
	}
	*h = *values;
	h->refs = 1;
	h->next = handles;
	handles = h;
	*number = (uintptr_t)h;
	return 0;
}

m2n__cu_result m2n_double_vmm_create(m2n__cu_handle *handle, size_t bytes,
	const struct m2n__cu_alloc_prop *prop, unsigned long long flags)
{
	struct handle h;
	struct context *context;
	m2n__cu_result result;
	char name[64];

	ENTER(vmm_create);
	LOCKED();
	if (!bytes || bytes % GRANULARITY || !is_prop(prop) || flags)
		return M2N__CU_INVALID_VALUE;
	context = &double_contexts[prop->location.id];
	if (!has_room(context, bytes))
		return M2N__CU_OUT_OF_MEMORY;
	snprintf(name, sizeof(name), VMM_NAME "%d", prop->location.id);
	h = (struct handle){.ordinal = prop->location.id, .fd = make_fd(name, bytes),
		.bytes = bytes};
	if (h.fd < 0)
		return M2N__CU_OUT_OF_MEMORY;
	lseek(h.fd, MAGIC, SEEK_SET);
	result = add_handle(&h, handle);
	if (!result)
		context->used += bytes;
	return result;
}

m2n__cu_result m2n_double_vmm_release(m2n__cu_handle number)
{
	struct handle *h;

	ENTER(vmm_release);
	LOCKED();
	h = find_handle(number);
	if (!h)
		return M2N__CU_INVALID_VALUE;
	put_handle(h);
	return 0;
}

m2n__cu_result m2n_double_vmm_reserve(m2n__cu_ptr *at, size_t bytes, size_t align,
	m2n__cu_ptr hint, unsigned long long flags)
{
	struct reservation *r;
	char *base;

	(void)hint;
	ENTER(vmm_reserve);
	LOCKED();
	if (!bytes || bytes % GRANULARITY || align > GRANULARITY || flags)
		return M2N__CU_INVALID_VALUE;
	r = malloc(sizeof(*r));
	base = r ? mmap(NULL, bytes + GRANULARITY, PROT_NONE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) : MAP_FAILED;
	if (base == MAP_FAILED) {
		free(r);
		return M2N__CU_OUT_OF_MEMORY;
	}
	r->at = round_up((uintptr_t)base, GRANULARITY);
	r->bytes = bytes;
	r->next = reservations;
	if ((uintptr_t)base < r->at)
		munmap(base, r->at - (uintptr_t)base);
	if ((uintptr_t)base + GRANULARITY > r->at)
		munmap((void *)(uintptr_t)(r->at + bytes),
			(uintptr_t)base + GRANULARITY - r->at);
	reservations = r;
	*at = r->at;
	return 0;
}

m2n__cu_result m2n_double_vmm_unreserve(m2n__cu_ptr at, size_t bytes)
{
	struct reservation **p = &reservations, *r;

	ENTER(vmm_unreserve);
	LOCKED();
	while (*p && (*p)->at != at)
		p = &(*p)->next;
	r = *p;
	if (!r || r->bytes != bytes)
		return M2N__CU_INVALID_VALUE;
	for (const struct block *b = blocks; b; b = b->next)
		if (b->at >= at && b->at < at + bytes)
			return M2N__CU_INVALID_VALUE;
	*p = r->next;
	bury((void *)(uintptr_t)at, bytes);
	free(r);
	return 0;
}

m2n__cu_result m2n_double_vmm_map(m2n__cu_ptr at, size_t bytes, size_t offset,
	m2n__cu_handle number, unsigned long long flags)
{
	const struct reservation *r;
	struct handle *h;
	struct block b;

	ENTER(vmm_map);
	LOCKED();
	h = find_handle(number);
	for (r = reservations; r && (at < r->at || at - r->at >= r->bytes);)
		r = r->next;
	if (!h || !r || !bytes || bytes > r->bytes - (at - r->at) || offset || flags ||
		bytes > h->bytes || at % GRANULARITY || bytes % GRANULARITY)
		return M2N__CU_INVALID_VALUE;
	for (const struct block *o = blocks; o; o = o->next)
		if (o->at < at + bytes && at < o->at + o->bytes)
			return M2N__CU_INVALID_VALUE;
	b = (struct block){.kind = BLOCK_MAPPED, .ordinal = h->ordinal, .at = at, .bytes = bytes,
		.map = (void *)(uintptr_t)at, .map_bytes = bytes, .fd = -1, .handle = h};
	b.context = &double_contexts[h->ordinal];
	if (!add_block(&b))
		return M2N__CU_OUT_OF_MEMORY;
	if (mmap(b.map, bytes, PROT_NONE, MAP_SHARED | MAP_FIXED, h->fd, 0) == MAP_FAILED)
		abort();
	h->refs++;
	return 0;
}

m2n__cu_result m2n_double_vmm_unmap(m2n__cu_ptr at, size_t bytes)
{
	struct block *b;

	ENTER(vmm_unmap);
	LOCKED();
	b = block_at(at);
	if (!b || b->kind != BLOCK_MAPPED || b->at != at || b->bytes != bytes)
		return M2N__CU_INVALID_VALUE;
	double_await_context(b->context);
	free_block(b);
	return 0;
}

m2n__cu_result m2n_double_vmm_access(m2n__cu_ptr at, size_t bytes,
	const struct m2n__cu_access *access, size_t n)
{
	const struct block *b;

	ENTER(vmm_access);
	LOCKED();
	b = block_at(at);
	if (!b || b->kind != BLOCK_MAPPED || b->at != at || b->bytes != bytes || !n || !access)
		return M2N__CU_INVALID_VALUE;
	for (size_t i = 0; i < n; i++)
		if (access[i].location.type != 1 || access[i].location.id < 0 ||
			access[i].location.id >= double_settings.n_devices ||
			(access[i].flags != 1 && access[i].flags != 3))
			return M2N__CU_INVALID_VALUE;
	mprotect(b->map, bytes, access[0].flags == 3 ? PROT_READ | PROT_WRITE : PROT_READ);
	return 0;
}

m2n__cu_result m2n_double_vmm_retain(m2n__cu_handle *handle, void *at)
{
	struct block *b;

	ENTER(vmm_retain);
	LOCKED();
	b = block_at((uintptr_t)at);
	if (!b || b->kind != BLOCK_MAPPED)
		return M2N__CU_INVALID_VALUE;
	b->handle->refs++;
	*handle = (uintptr_t)b->handle;
	return 0;
}

m2n__cu_result m2n_double_vmm_export(void *fd, m2n__cu_handle number, int type,
	unsigned long long flags)
{
	const struct handle *h;
	int copy;

	ENTER(vmm_export);
	LOCKED();
	h = find_handle(number);
	if (!h || type != M2N__CU_HANDLE_FD || flags)
		return M2N__CU_INVALID_VALUE;
	copy = fcntl(h->fd, F_DUPFD_CLOEXEC, 0);
	if (copy < 0)
		return M2N__CU_OUT_OF_MEMORY;
	memcpy(fd, &copy, sizeof(copy));
	return 0;
}

/*
 * The descriptor comes as the pointer's value. Who made it is in the memfd's name. The driver knows
 * open files, not names: what was opened again through /proc is another one, whose position shows
 * it.
 */
m2n__cu_result m2n_double_vmm_import(m2n__cu_handle *handle, void *passed, int type)
{
	int fd = (int)(intptr_t)passed, ordinal;
	char path[64], name[128];
	struct handle h;
	struct stat info;
	ssize_t n;

	ENTER(vmm_import);
	LOCKED();
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	n = readlink(path, name, sizeof(name) - 1);
	name[n < 0 ? 0 : n] = '\0';
	if (type != M2N__CU_HANDLE_FD ||
		sscanf(name, "/memfd:" VMM_NAME "%d", &ordinal) != 1 || fstat(fd, &info) ||
		lseek(fd, 0, SEEK_CUR) != MAGIC ||
		ordinal < 0 || ordinal >= double_settings.n_devices)
		return M2N__CU_INVALID_VALUE;
	h = (struct handle){.ordinal = ordinal, .fd = fcntl(fd, F_DUPFD_CLOEXEC, 0),
		.is_imported = 1, .bytes = (size_t)info.st_size};
	return h.fd < 0 ? M2N__CU_OUT_OF_MEMORY : add_handle(&h, handle);
}

/* ---- GPUDirect ---- */

/* A copy of the block's memfd: the range's place in it is lost, nobody can map a real dma-buf. */
m2n__cu_result m2n_double_range_handle(void *handle, m2n__cu_ptr at, size_t bytes, int type,
	unsigned long long flags)
{
	const struct block *b;
	int fd, copy;

	ENTER(range_handle);
	LOCKED();
	b = block_at(at);
	if (!b || b->kind == BLOCK_PINNED || b->kind == BLOCK_OPENED || !bytes || at % PAGE ||
		bytes % PAGE || round_up(b->bytes, PAGE) - (at - b->at) < bytes ||
		type != M2N__CU_RANGE_HANDLE_DMA_BUF || flags)
		return M2N__CU_INVALID_VALUE;
	fd = b->kind == BLOCK_MAPPED ? b->handle->fd : b->fd;
	copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (copy < 0)
		return M2N__CU_OUT_OF_MEMORY;
	memcpy(handle, &copy, sizeof(copy));
	return 0;
}

m2n__cu_result m2n_double_flush_rdma_writes(int target, int scope)
{
	ENTER(flush_rdma_writes);
	if (target != M2N__CU_FLUSH_TARGET_CURRENT_CTX ||
		(scope != M2N__CU_FLUSH_TO_OWNER && scope != M2N__CU_FLUSH_TO_ALL))
		return M2N__CU_INVALID_VALUE;
	atomic_thread_fence(memory_order_seq_cst);
	return 0;
}
