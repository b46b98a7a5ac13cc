/* Inside the pool: worker threads that serve one region at a time. */
#ifndef HSD_CREW_H
#define HSD_CREW_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <time.h>

#include "pool.h"

#define HSD_LINE 64 /* bytes that two cores cannot write at the same time without passing them to and fro */

struct hsd_crew;

typedef struct {
  _Alignas(HSD_LINE) _Atomic uint32_t called; /* futex: 1 once somebody wants this worker awake */
  struct hsd_crew* crew;
  int32_t index; /* 1 is the first worker; 0 is the thread that launches */
  pthread_t thread;
} hsd_worker;

typedef struct hsd_crew {
  /* Threads that may claim in the upper half, tasks that nobody claimed in the lower one. A claim takes one off the
   * lower half, and only a claim allows reading the region below: it cannot end before the claimed task has. */
  _Alignas(HSD_LINE) _Atomic uint64_t ticket;
  _Alignas(HSD_LINE) hsd_task task; /* the region */
  void* data;
  int32_t tasks;
  _Alignas(HSD_LINE) _Atomic uint32_t unfinished; /* futex: tasks that have not ended */
  _Atomic uint32_t waiting;                       /* the launching thread sleeps on `unfinished` */
  _Atomic int32_t status;                         /* the first task's that failed, or 0 */
  void* error;                                    /* what it raised */
  _Alignas(HSD_LINE) _Atomic uint64_t asleep;     /* one bit a worker */
  _Alignas(HSD_LINE) _Atomic bool busy;           /* somebody launches */
  _Atomic bool stop;
  _Atomic int32_t workers; /* running; 0 in a child after fork, until it launches */
  int32_t wanted;          /* workers it should have */
  int32_t lanes;           /* that use it; 0 is a free place */
  int32_t n_cpus;
  int32_t cpus[HSD_MOST_CPUS];
  hsd_worker worker[HSD_MOST_THREADS]; /* worker[0] is not used */
} hsd_crew;

extern hsd_errors hsd_tvm;
extern _Atomic int64_t hsd_spin_ns;
extern _Thread_local bool hsd_inside; /* this thread runs a task, so what it launches runs on it alone */

int hsd_crew_start(hsd_crew* crew); /* the workers that it lacks; an errno */
void hsd_crew_stop(hsd_crew* crew);
void hsd_crew_wake(hsd_crew* crew, uint64_t who);
/* Claims and runs tasks until none is left; how many. */
int32_t hsd_crew_claim(hsd_crew* crew, int32_t index);

void hsd_futex_wait(_Atomic uint32_t* word, uint32_t value);
void hsd_futex_wake(_Atomic uint32_t* word);

static inline void hsd_pause(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("isb" ::: "memory"); /* `yield` does nothing on Cortex-A; an isb takes some ten cycles */
#endif
}

/* Cycles, or ticks of the counter that AArch64 has in their place. */
static inline uint64_t hsd_ticks(void) {
#if defined(__x86_64__)
  return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
  uint64_t now;
  __asm__ volatile("mrs %0, cntvct_el0" : "=r"(now));
  return now;
#else
#error "the pool is for x86-64 and AArch64"
#endif
}

static inline uint64_t hsd_ticks_per_us(void) {
#if defined(__aarch64__)
  uint64_t hz;
  __asm__ volatile("mrs %0, cntfrq_el0" : "=r"(hz));
  return hz / 1000000 + 1;
#else
  return 3000; /* near enough: it scales thresholds, not results */
#endif
}

static inline int64_t hsd_now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static inline uint32_t hsd_unclaimed(uint64_t ticket) { return (uint32_t)ticket; }
static inline int32_t hsd_claimants(uint64_t ticket) { return (int32_t)(ticket >> 32); }

#endif
