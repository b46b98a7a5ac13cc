/* Local buffers of kernels. TVM takes each from its allocator, even 32 bytes in every tile; here a thread takes them
 * from a stack of its own. Blocks too large for it come from malloc. A block that is freed out of order stays until
 * those above it are free; one that another thread frees, until the owner comes by. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "crew.h"

enum {
  ALIGNMENT = 64,        /* TVM's kTempAllocaAlignment */
  STACK_BYTES = 1 << 20, /* of address space; pages come as they are touched */
};

struct stack;

typedef struct block { /* lies before the bytes that a kernel gets */
  _Alignas(ALIGNMENT) struct stack* owner; /* NULL: from malloc */
  struct block* below;
  _Atomic bool free;
} block;

typedef struct stack {
  _Alignas(ALIGNMENT) char* top;
  char* end;
  block* last;
} stack;

static _Thread_local stack* mine;
static pthread_key_t at_exit;
static pthread_once_t made = PTHREAD_ONCE_INIT;

static void drop_free(stack* s) {
  while (s->last != NULL && atomic_load_explicit(&s->last->free, memory_order_acquire)) {
    s->top = (char*)s->last;
    s->last = s->last->below;
  }
}

/* A block that is still in use keeps the memory: lost, but never torn from under somebody. */
static void release_stack(void* pointer) {
  stack* s = pointer;
  drop_free(s);
  mine = NULL;
  if (s->last == NULL) munmap(s, STACK_BYTES);
}

static void make_key(void) { pthread_key_create(&at_exit, release_stack); }

static stack* new_stack(void) {
  pthread_once(&made, make_key);
  void* memory = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return NULL;
  mine = memory;
  mine->top = (char*)memory + sizeof(stack);
  mine->end = (char*)memory + STACK_BYTES;
  pthread_setspecific(at_exit, mine);
  return mine;
}

void* hsd_alloc_workspace(int device_type, int device_id, uint64_t bytes, int type_code, int type_bits) {
  (void)device_type, (void)device_id, (void)type_code, (void)type_bits;
  stack* s = mine != NULL ? mine : new_stack();
  block* b = NULL;
  if (s != NULL) {
    drop_free(s);
    if (bytes <= (uint64_t)(s->end - s->top) - sizeof(block) && (size_t)(s->end - s->top) > sizeof(block)) {
      b = (block*)(void*)s->top;
      b->below = s->last;
      s->top += sizeof(block) + ((bytes + ALIGNMENT - 1) & ~(uint64_t)(ALIGNMENT - 1));
      s->last = b;
    }
  }
  if (b == NULL) {
    s = NULL;
    void* memory = NULL;
    if (bytes > SIZE_MAX / 2 || posix_memalign(&memory, ALIGNMENT, sizeof(block) + (size_t)bytes) != 0) {
      if (hsd_tvm.raise_text != NULL) hsd_tvm.raise_text("MemoryError", "no memory for a kernel's local buffers");
      return NULL;
    }
    b = memory;
  }
  b->owner = s;
  atomic_store_explicit(&b->free, false, memory_order_relaxed);
  return b + 1;
}

int hsd_free_workspace(int device_type, int device_id, void* pointer) {
  (void)device_type, (void)device_id;
  if (pointer == NULL) return 0;
  block* b = (block*)pointer - 1;
  stack* owner = b->owner;
  if (owner == NULL) {
    free(b);
    return 0;
  }
  atomic_store_explicit(&b->free, true, memory_order_release);
  if (owner == mine) drop_free(owner);
  return 0;
}
