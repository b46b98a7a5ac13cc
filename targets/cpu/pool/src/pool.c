/* The lanes and crews of this process: opening, changing, closing, and what a fork leaves of them. */
#define _GNU_SOURCE
#include "pool.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "lane.h"

static hsd_lane lanes[HSD_MOST_LANES];
static hsd_crew crews[HSD_MOST_CREWS];
static pthread_mutex_t table = PTHREAD_MUTEX_INITIALIZER; /* held while lanes and crews come and go */
static pthread_once_t fork_handlers = PTHREAD_ONCE_INIT;

/* TVM calls a launch function with no context, so each lane has one of its own; the numbers are octal, 00 to 077. */
#define EIGHT(X, n) X(n##0) X(n##1) X(n##2) X(n##3) X(n##4) X(n##5) X(n##6) X(n##7)
#define ALL(X) EIGHT(X, 0) EIGHT(X, 01) EIGHT(X, 02) EIGHT(X, 03) EIGHT(X, 04) EIGHT(X, 05) EIGHT(X, 06) EIGHT(X, 07)
#define DEFINE(n) \
  static int launch_##n(hsd_task task, void* data, int num_task) { return hsd_region(&lanes[n], task, data, num_task); }
#define NAME(n) launch_##n,
ALL(DEFINE)
static const hsd_launch launches[] = {ALL(NAME)};
_Static_assert(sizeof launches / sizeof launches[0] == HSD_MOST_LANES, "one launch function for each lane");

static hsd_lane none; /* closed for ever */
static _Thread_local hsd_lane* of_thread = &none;
static int launch_of_thread(hsd_task task, void* data, int num_task) {
  return hsd_region(of_thread, task, data, num_task);
}

/* A child has none of the workers, and nobody in it launches: as if they had never been started. */
static void child_after_fork(void) {
  for (int i = 0; i < HSD_MOST_CREWS; i++) {
    atomic_store(&crews[i].ticket, 0);
    atomic_store(&crews[i].unfinished, 0);
    atomic_store(&crews[i].waiting, 0);
    atomic_store(&crews[i].asleep, 0);
    atomic_store(&crews[i].workers, 0);
    atomic_store(&crews[i].stop, false);
    atomic_store(&crews[i].busy, false);
  }
  pthread_mutex_unlock(&table);
}

static void lock_table(void) { pthread_mutex_lock(&table); }
static void unlock_table(void) { pthread_mutex_unlock(&table); }
static void install_fork_handlers(void) { pthread_atfork(lock_table, unlock_table, child_after_fork); }

static hsd_lane* open_lane(int32_t lane) {
  if (lane < 0 || lane >= HSD_MOST_LANES || atomic_load(&lanes[lane].crew) == NULL) return NULL;
  return &lanes[lane];
}

/* The crew of these CPUs, or a free place for one; NULL when there is none. */
static hsd_crew* crew_for(const int32_t* cpus, int32_t n_cpus) {
  hsd_crew* vacant = NULL;
  for (int i = 0; i < HSD_MOST_CREWS; i++) {
    hsd_crew* crew = &crews[i];
    if (crew->lanes == 0) {
      vacant = vacant == NULL ? crew : vacant;
    } else if (crew->n_cpus == n_cpus && (n_cpus == 0 || memcmp(crew->cpus, cpus, sizeof *cpus * (size_t)n_cpus) == 0)) {
      return crew;
    }
  }
  if (vacant != NULL) {
    vacant->n_cpus = n_cpus;
    vacant->wanted = 0;
    if (n_cpus > 0) memcpy(vacant->cpus, cpus, sizeof *cpus * (size_t)n_cpus);
  }
  return vacant;
}

static int32_t join_crew(int32_t lane, const int32_t* cpus, int32_t n_cpus, int32_t threads, int32_t capacity) {
  hsd_crew* crew = crew_for(cpus, n_cpus);
  if (crew == NULL) return -EAGAIN;
  hsd_hold(crew);
  if (crew->wanted < capacity - 1) crew->wanted = capacity - 1;
  int failed = hsd_crew_start(crew);
  hsd_release(crew);
  if (failed) {
    if (crew->lanes == 0) hsd_crew_stop(crew);
    crew->wanted = atomic_load(&crew->workers);
    return -failed;
  }
  crew->lanes++;
  hsd_lane* opened = &lanes[lane];
  memset(&opened->counts, 0, sizeof opened->counts);
  opened->lateness = 0;
  atomic_store(&opened->inline_busy, 0);
  atomic_store(&opened->tasks_per_thread, 0);
  atomic_store(&opened->threads, threads);
  opened->capacity = capacity;
  atomic_store(&opened->crew, crew);
  return lane;
}

int32_t hsd_pool_abi(void) { return HSD_ABI; }

void hsd_pool_errors(const hsd_errors* functions) { hsd_tvm = *functions; }

int32_t hsd_pool_open(const int32_t* cpus, int32_t n_cpus, int32_t threads, int32_t capacity) {
  if (n_cpus < 0 || n_cpus > HSD_MOST_CPUS || threads < 1 || threads > capacity || capacity > HSD_MOST_THREADS) {
    return -EINVAL;
  }
  for (int32_t i = 0; i < n_cpus; i++) {
    if (cpus[i] < 0 || cpus[i] >= HSD_MOST_CPUS) return -EINVAL;
  }
  pthread_once(&fork_handlers, install_fork_handlers);
  pthread_mutex_lock(&table);
  int32_t lane = 0;
  while (lane < HSD_MOST_LANES && atomic_load(&lanes[lane].crew) != NULL) lane++;
  lane = lane == HSD_MOST_LANES ? -EAGAIN : join_crew(lane, cpus, n_cpus, threads, capacity);
  pthread_mutex_unlock(&table);
  return lane;
}

hsd_launch hsd_pool_launch(int32_t lane) { return open_lane(lane) == NULL ? NULL : launches[lane]; }

hsd_launch hsd_pool_launch_of_thread(void) { return launch_of_thread; }

int32_t hsd_pool_use(int32_t lane) {
  hsd_lane* used = open_lane(lane);
  of_thread = used == NULL ? &none : used;
  return used == NULL ? -EBADF : 0;
}

int32_t hsd_pool_set(int32_t lane, int32_t threads, int32_t tasks_per_thread) {
  hsd_lane* set = open_lane(lane);
  if (set == NULL) return -EBADF;
  if (threads < 1 || threads > set->capacity) return -EINVAL;
  if (tasks_per_thread < 0 || tasks_per_thread > 1024) return -EINVAL;
  atomic_store_explicit(&set->threads, threads, memory_order_relaxed);
  atomic_store_explicit(&set->tasks_per_thread, tasks_per_thread, memory_order_relaxed);
  return 0;
}

int32_t hsd_pool_counts(int32_t lane, hsd_counts* counts) {
  hsd_lane* of = open_lane(lane);
  if (of == NULL) return -EBADF;
  hsd_crew* crew = atomic_load(&of->crew);
  hsd_hold(crew);
  *counts = of->counts;
  hsd_release(crew);
  counts->inline_busy = atomic_load(&of->inline_busy);
  return 0;
}

void hsd_pool_spin(int64_t spin_ns) { atomic_store(&hsd_spin_ns, spin_ns < 0 ? 0 : spin_ns); }

int32_t hsd_pool_close(int32_t lane) {
  pthread_mutex_lock(&table);
  hsd_lane* closed = open_lane(lane);
  if (closed != NULL) {
    hsd_crew* crew = atomic_load(&closed->crew);
    hsd_hold(crew);
    atomic_store(&closed->crew, NULL);
    if (--crew->lanes == 0) hsd_crew_stop(crew);
    hsd_release(crew);
  }
  pthread_mutex_unlock(&table);
  return closed == NULL ? -EBADF : 0;
}

static int busy_task(int task, hsd_env* env, void* data) {
  int64_t start = hsd_now_ns();
  (void)task, (void)env;
  while (hsd_now_ns() - start < *(const int64_t*)data) continue;
  return 0;
}

static int ascending(const void* a, const void* b) {
  int64_t x = *(const int64_t*)a, y = *(const int64_t*)b;
  return (x > y) - (x < y);
}

double hsd_pool_region_cost(int32_t lane, int32_t rounds, int64_t work_ns, double quantile) {
  hsd_lane* of = open_lane(lane);
  if (of == NULL || rounds < 1 || work_ns < 0 || !(quantile >= 0.0 && quantile < 1.0)) return -1.0;
  int64_t* extra = malloc(sizeof *extra * (size_t)rounds);
  if (extra == NULL) return -1.0;
  int32_t threads = atomic_load(&of->threads);
  for (int32_t i = 0; i < rounds; i++) {
    int64_t start = hsd_now_ns();
    launches[lane](busy_task, &work_ns, threads);
    extra[i] = hsd_now_ns() - start - work_ns;
  }
  qsort(extra, (size_t)rounds, sizeof *extra, ascending);
  double cost = (double)extra[(int32_t)(quantile * rounds)] * 1e-9;
  free(extra);
  return cost;
}
