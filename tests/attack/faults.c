// Preloaded into a process (LD_PRELOAD): counts its operations on files below a folder, and its large allocations, and
// lets the k-th of either fail, once or from then on. Counts lie in memory that copies of the process share.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { kLargeBytes = 1 << 16 };

struct counted {
  long operations, allocations;
  char failed[512];
};

static struct counted* g_counted;
static char g_below[4096];
static size_t g_length;
static long g_at, g_allocation;
static int g_stays, g_armed;

struct counted* hsd_faults_counted(void) {
  if (g_counted == NULL) {
    g_counted = mmap(NULL, sizeof(*g_counted), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  }
  return g_counted;
}

void hsd_faults_arm(const char* below, long at, int stays, long allocation) {
  int arm = below[0] != 0 || allocation != 0;
  if (arm) memset(hsd_faults_counted(), 0, sizeof(*g_counted));
  snprintf(g_below, sizeof(g_below), "%s", below);
  g_length = strlen(g_below);
  g_at = at, g_stays = stays, g_allocation = allocation, g_armed = arm;
}

static int fails(const char* what, const char* path, int writes) {
  if (!g_armed || g_length == 0 || path == NULL || strncmp(path, g_below, g_length) != 0) return 0;
  long number = __atomic_add_fetch(&g_counted->operations, 1, __ATOMIC_SEQ_CST);
  if (number == g_at) snprintf(g_counted->failed, sizeof(g_counted->failed), "%s %s", what, path + g_length);
  if (number == g_at || (g_stays && writes && g_at > 0 && number > g_at)) {
    errno = strcmp(what, "fsync") == 0 ? EIO : ENOSPC;
    return 1;
  }
  return 0;
}

static int fails_on(const char* what, int file) {
  if (!g_armed || g_length == 0) return 0;
  char link[64], path[4096];
  snprintf(link, sizeof(link), "/proc/self/fd/%d", file);
  ssize_t length = readlink(link, path, sizeof(path) - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return fails(what, path, 1);
}

#define REAL(name) static __typeof__(name)* real; if (real == NULL) real = (__typeof__(name)*)dlsym(RTLD_NEXT, #name)

#define OPENS(name)                                                     \
  int name(const char* path, int flags, ...) {                          \
    REAL(name);                                                         \
    va_list more;                                                       \
    va_start(more, flags);                                              \
    mode_t mode = va_arg(more, mode_t);                                 \
    va_end(more);                                                       \
    int writes = (flags & O_CREAT) != 0;                                \
    return fails("open", path, writes) ? -1 : real(path, flags, mode);  \
  }
OPENS(open)
OPENS(open64)

#define OPENS_AT(name)                                                          \
  int name(int folder, const char* path, int flags, ...) {                      \
    REAL(name);                                                                 \
    va_list more;                                                               \
    va_start(more, flags);                                                      \
    mode_t mode = va_arg(more, mode_t);                                         \
    va_end(more);                                                               \
    int writes = (flags & O_CREAT) != 0;                                        \
    return fails("open", path, writes) ? -1 : real(folder, path, flags, mode);  \
  }
OPENS_AT(openat)
OPENS_AT(openat64)

#define ON_FILE(type, name, said, parameters, arguments)   \
  type name parameters {                                   \
    REAL(name);                                            \
    return fails_on(said, file) ? -1 : real arguments;     \
  }
ON_FILE(ssize_t, write, "write", (int file, const void* data, size_t size), (file, data, size))
ON_FILE(ssize_t, writev, "write", (int file, const struct iovec* parts, int count), (file, parts, count))
ON_FILE(ssize_t, pwrite, "write", (int file, const void* data, size_t size, off_t at), (file, data, size, at))
ON_FILE(ssize_t, pwrite64, "write", (int file, const void* data, size_t size, off64_t at), (file, data, size, at))
ON_FILE(ssize_t, sendfile, "write", (int file, int from, off_t* at, size_t size), (file, from, at, size))
ON_FILE(ssize_t, sendfile64, "write", (int file, int from, off64_t* at, size_t size), (file, from, at, size))
ON_FILE(int, ftruncate, "truncate", (int file, off_t size), (file, size))
ON_FILE(int, ftruncate64, "truncate", (int file, off64_t size), (file, size))
ON_FILE(int, fsync, "fsync", (int file), (file))
ON_FILE(int, fdatasync, "fsync", (int file), (file))

int rename(const char* from, const char* to) {
  REAL(rename);
  return fails("rename", from, 1) ? -1 : real(from, to);
}

// A copy of a process lacks the threads that some libraries wait for at a regular end.
void exit(int status) {
  REAL(exit);
  if (g_armed) _exit(status);
  real(status);
  __builtin_unreachable();
}

int mkdir(const char* path, mode_t mode) {
  REAL(mkdir);
  return fails("mkdir", path, 1) ? -1 : real(path, mode);
}

int chmod(const char* path, mode_t mode) {
  REAL(chmod);
  return fails("chmod", path, 1) ? -1 : real(path, mode);
}

static int no_memory(size_t size) {
  if (!g_armed || size < kLargeBytes) return 0;
  long number = __atomic_add_fetch(&g_counted->allocations, 1, __ATOMIC_SEQ_CST);
  if (number != g_allocation) return 0;
  snprintf(g_counted->failed, sizeof(g_counted->failed), "allocation of %zu bytes", size);
  errno = ENOMEM;
  return 1;
}

extern void* __libc_malloc(size_t size);
extern void* __libc_calloc(size_t count, size_t size);
extern void* __libc_realloc(void* memory, size_t size);
extern void* __libc_memalign(size_t alignment, size_t size);

void* malloc(size_t size) { return no_memory(size) ? NULL : __libc_malloc(size); }
void* realloc(void* memory, size_t size) { return no_memory(size) ? NULL : __libc_realloc(memory, size); }
void* calloc(size_t count, size_t size) {
  size_t whole = 0;
  if (__builtin_mul_overflow(count, size, &whole)) whole = 0;  // the library refuses it
  return no_memory(whole) ? NULL : __libc_calloc(count, size);
}
void* aligned_alloc(size_t alignment, size_t size) {
  return no_memory(size) ? NULL : __libc_memalign(alignment, size);
}
int posix_memalign(void** memory, size_t alignment, size_t size) {
  if (no_memory(size)) return ENOMEM;
  *memory = __libc_memalign(alignment, size);
  return *memory == NULL ? ENOMEM : 0;
}
