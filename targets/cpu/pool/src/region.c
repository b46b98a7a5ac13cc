/* A parallel region: publish its tasks, take part, wait for those that were claimed. */
#define _GNU_SOURCE
#include "lane.h"

#include <sched.h>
#include <stddef.h>

enum {
  SPIN_US = 30,    /* wait this long for the last tasks before sleeping: a sleeping thread leaves its CPU to the worker */
  SHORT_US = 4,    /* a region that short says nothing about lateness */
  LATE_STEP = 8,   /* a late region counts as much as eight punctual ones */
  LATE_MOST = 64,
  LATE_MANY = 16,  /* from here on more tasks a thread */
  MANY_TASKS = 4,
};

void hsd_hold(hsd_crew* crew) {
  while (atomic_exchange(&crew->busy, true)) sched_yield();
}

void hsd_release(hsd_crew* crew) { atomic_store_explicit(&crew->busy, false, memory_order_release); }

/* All of it on this thread: in one task, or in as many as the kernel insists on. */
static int run_inline(hsd_task task, void* data, int num_task) {
  hsd_env env = {NULL, num_task > 0 ? num_task : 1};
  int status = 0;
  bool outside = !hsd_inside;
  hsd_inside = true;
  for (int i = 0; i < env.num_task && status == 0; i++) status = task(i, &env, data);
  if (outside) hsd_inside = false;
  return status;
}

/* One task a thread costs least. Where the system delays workers, or cores differ in speed, regions end late; then
 * smaller tasks leave less to wait for. */
static int32_t tasks_of(hsd_lane* lane, int32_t threads) {
  int32_t stated = atomic_load_explicit(&lane->tasks_per_thread, memory_order_relaxed);
  return threads * (stated > 0 ? stated : lane->lateness >= LATE_MANY ? MANY_TASKS : 1);
}

static void await_tasks(hsd_crew* crew, uint64_t started) {
  uint64_t limit = SPIN_US * hsd_ticks_per_us();
  uint32_t left;
  while ((left = atomic_load_explicit(&crew->unfinished, memory_order_acquire)) != 0) {
    if (hsd_ticks() - started < limit) {
      hsd_pause();
      continue;
    }
    atomic_store(&crew->waiting, 1);
    while ((left = atomic_load(&crew->unfinished)) != 0) hsd_futex_wait(&crew->unfinished, left);
    atomic_store(&crew->waiting, 0);
    return;
  }
}

/* Whether a worker did not come in time: this thread did more than its share, or waited for a quarter of the time. */
static void judge(hsd_lane* lane, int32_t own, int32_t share, uint64_t start, uint64_t done_own, uint64_t end) {
  if (end - start < SHORT_US * hsd_ticks_per_us()) return;
  bool late = own > share || 4 * (end - done_own) > end - start;
  lane->counts.late += late;
  if (late) {
    lane->lateness = lane->lateness + LATE_STEP > LATE_MOST ? LATE_MOST : lane->lateness + LATE_STEP;
  } else if (lane->lateness > 0) {
    lane->lateness--;
  }
}

static int run_with_crew(hsd_lane* lane, hsd_crew* crew, int32_t threads, hsd_task task, void* data, int num_task) {
  int32_t tasks = num_task > 0 ? num_task : tasks_of(lane, threads);
  int32_t share = (tasks + threads - 1) / threads;
  uint64_t start = hsd_ticks();
  crew->task = task;
  crew->data = data;
  crew->tasks = tasks;
  crew->error = NULL;
  atomic_store_explicit(&crew->status, 0, memory_order_relaxed);
  atomic_store_explicit(&crew->unfinished, (uint32_t)tasks, memory_order_relaxed);
  atomic_store(&crew->ticket, (uint64_t)threads << 32 | (uint32_t)tasks);

  uint64_t callable = (threads >= HSD_MOST_THREADS ? 0 : UINT64_C(1) << threads) - 2;
  uint64_t asleep = atomic_load(&crew->asleep) & callable;
  if (asleep != 0) {
    atomic_fetch_and(&crew->asleep, ~asleep); /* one call for each sleep, however late it is heard */
    hsd_crew_wake(crew, asleep);
  }

  hsd_inside = true;
  int32_t own = hsd_crew_claim(crew, 0);
  hsd_inside = false;
  uint64_t done_own = hsd_ticks();
  if (atomic_fetch_sub(&crew->unfinished, (uint32_t)own) != (uint32_t)own) await_tasks(crew, done_own);

  judge(lane, own, share, start, done_own, hsd_ticks());
  lane->counts.regions++;
  lane->counts.tasks += (uint64_t)tasks;
  lane->counts.worker_tasks += (uint64_t)(tasks - own);
  return atomic_load_explicit(&crew->status, memory_order_relaxed);
}

/* Leaves the error with this thread, where TVM looks for it. */
static void raise_here(void* error) {
  if (error != NULL && hsd_tvm.raise != NULL) {
    hsd_tvm.raise(error);
    hsd_tvm.release(error);
  } else if (hsd_tvm.raise_text != NULL) {
    hsd_tvm.raise_text("RuntimeError", "a task of a parallel region failed");
  }
}

int hsd_region(hsd_lane* lane, hsd_task task, void* data, int num_task) {
  hsd_crew* crew = atomic_load_explicit(&lane->crew, memory_order_acquire);
  int32_t threads = atomic_load_explicit(&lane->threads, memory_order_relaxed);
  if (crew == NULL || threads < 2 || num_task == 1 || hsd_inside) return run_inline(task, data, num_task);
  if (atomic_exchange(&crew->busy, true)) {
    atomic_fetch_add_explicit(&lane->inline_busy, 1, memory_order_relaxed);
    return run_inline(task, data, num_task);
  }
  if (atomic_load(&lane->crew) != crew) { /* closed meanwhile */
    hsd_release(crew);
    return run_inline(task, data, num_task);
  }
  if (atomic_load_explicit(&crew->workers, memory_order_relaxed) == 0) hsd_crew_start(crew); /* after fork */
  int status = run_with_crew(lane, crew, threads, task, data, num_task);
  void* error = crew->error;
  hsd_release(crew);
  if (status != 0) raise_here(error);
  return status;
}
