/* Drives the thread pool hard: `pool_stress REGIONS SEED [nofork]`. Prints what it did; a mistake ends it with 1.
 * Half of the regions come from one thread, the others from three at once while lanes open and close beside.
 *
 * Tasks write plain memory that the launching thread reads afterwards, so that a missing order is a data race that
 * ThreadSanitizer sees. Delays are random, from none to beyond the time after which a worker sleeps.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../../targets/cpu/pool/src/pool.h"

enum { THREADS = 4, MOST_TASKS = 256, CALLERS = 3 };

#define CHECK(true_, ...)                     \
  do {                                        \
    if (!(true_)) {                           \
      printf("%s:%d: ", __FILE__, __LINE__);  \
      printf(__VA_ARGS__);                    \
      printf("\n");                           \
      fflush(stdout);                         \
      _exit(1);                               \
    }                                         \
  } while (0)

static uint32_t next(uint32_t* seed) { /* xorshift32 (Marsaglia 2003) */
  *seed ^= *seed << 13, *seed ^= *seed >> 17, *seed ^= *seed << 5;
  return *seed;
}

static void delay(uint32_t* seed) {
  uint32_t kind = next(seed) % 1000;
  if (kind == 0) usleep(next(seed) % 300);
  if (kind < 100) {
    for (volatile uint32_t i = next(seed) % 3000; i > 0; i--) continue;
  }
}

typedef struct {
  uint32_t seed;
  int num_task;           /* that every task was told */
  int ran[MOST_TASKS];    /* times that a task ran, plain memory */
  int fails_at;           /* this task fails with status 7; -1 none */
} region;

static int task(int index, hsd_env* env, void* data) {
  region* r = data;
  uint32_t seed = r->seed * 2654435761u + (uint32_t)index + 1;
  delay(&seed);
  CHECK(env->sync_handle == NULL && index < env->num_task, "task %d of %d", index, env->num_task);
  if (env->num_task == r->num_task || r->num_task == 0) r->ran[index]++;
  return index == r->fails_at ? 7 : 0;
}

static void run_region(hsd_launch launch, uint32_t* seed, int fixed_tasks) {
  region r;
  memset(&r, 0, sizeof r);
  r.seed = next(seed);
  r.num_task = fixed_tasks;
  r.fails_at = next(seed) % 50 == 0 ? 0 : -1;
  int status = launch(task, &r, fixed_tasks);
  CHECK(status == (r.fails_at == 0 ? 7 : 0), "status %d", status);
  int tasks = 0;
  while (tasks < MOST_TASKS && r.ran[tasks] == 1) tasks++;
  CHECK(tasks > 0 && (fixed_tasks == 0 || r.fails_at == 0 || tasks == fixed_tasks), "%d tasks of %d", tasks, fixed_tasks);
  for (int i = tasks; i < MOST_TASKS; i++) CHECK(r.ran[i] == 0, "task %d ran %d times", i, r.ran[i]);
}

static int nested_task(int index, hsd_env* env, void* data) {
  (void)index, (void)env;
  hsd_launch launch = *(hsd_launch*)data;
  region inner;
  memset(&inner, 0, sizeof inner);
  inner.num_task = 3, inner.fails_at = -1, inner.seed = 5;
  CHECK(launch(task, &inner, 3) == 0, "nested");
  for (int i = 0; i < 3; i++) CHECK(inner.ran[i] == 1, "nested task %d ran %d times", i, inner.ran[i]);
  return 0;
}

static int workspace_task(int index, hsd_env* env, void* data) {
  (void)env;
  uint32_t seed = *(uint32_t*)data + (uint32_t)index + 1;
  unsigned char* held[16] = {0};
  uint64_t sizes[16] = {0};
  for (int step = 0; step < 40; step++) {
    uint32_t at = next(&seed) % 16;
    if (held[at] != NULL) {
      for (uint64_t i = 0; i < sizes[at]; i += 61) CHECK(held[at][i] == (unsigned char)(at + 1), "overwritten");
      CHECK(hsd_free_workspace(1, 0, held[at]) == 0, "free");
    }
    sizes[at] = next(&seed) % (step % 13 == 0 ? 3000000 : 5000);
    held[at] = hsd_alloc_workspace(1, 0, sizes[at], 2, 32);
    CHECK(held[at] != NULL && (uintptr_t)held[at] % 64 == 0, "alloc");
    for (uint64_t i = 0; i < sizes[at]; i += 61) held[at][i] = (unsigned char)(at + 1);
  }
  for (int at = 0; at < 16; at++) hsd_free_workspace(1, 0, held[at]);
  return 0;
}

static int lanes[CALLERS];
static atomic_int finished;

typedef struct {
  int regions;
  uint32_t seed;
  int lane;
} caller;

static void* call(void* argument) { /* all callers share a crew, so some of their regions run inline */
  caller* c = argument;
  hsd_launch launch = hsd_pool_launch(lanes[c->lane]);
  for (int i = 0; i < c->regions; i++) {
    if (i % 64 == 0) hsd_pool_set(lanes[c->lane], 1 + (int)(next(&c->seed) % THREADS), (int)(next(&c->seed) % 5));
    run_region(launch, &c->seed, next(&c->seed) % 3 == 0 ? 1 + (int)(next(&c->seed) % 40) : 0);
    if (i % 500 == 0) usleep(next(&c->seed) % 200);
    if (i % 100 == 0) CHECK(launch(workspace_task, &c->seed, 0) == 0, "workspace");
    if (i % 100 == 50) CHECK(launch(nested_task, &launch, 0) == 0, "nesting");
  }
  atomic_fetch_add(&finished, 1);
  return NULL;
}

static void* churn(void* argument) { /* lanes that come and go beside, on the same CPUs and on others */
  uint32_t seed = *(uint32_t*)argument;
  while (atomic_load(&finished) < CALLERS) {
    int32_t cpu = 0;
    int32_t lane = hsd_pool_open(&cpu, (int32_t)(next(&seed) % 2), 2, THREADS);
    CHECK(lane >= 0, "open: %d", lane);
    hsd_launch launch = hsd_pool_launch(lane);
    for (int i = 0; i < 20; i++) run_region(launch, &seed, 0);
    CHECK(hsd_pool_close(lane) == 0, "close");
    run_region(launch, &seed, 0); /* a library that still points here */
    usleep(500);
  }
  return NULL;
}

static void fork_and_launch(uint32_t seed) {
  fflush(stdout);
  pid_t child = fork();
  if (child == 0) {
    for (int i = 0; i < 50; i++) run_region(hsd_pool_launch(lanes[0]), &seed, 0);
    hsd_counts counts;
    hsd_pool_counts(lanes[0], &counts);
    for (int i = 0; i < CALLERS; i++) CHECK(hsd_pool_close(lanes[i]) == 0, "close in the child");
    _exit(0);
  }
  int status = -1;
  waitpid(child, &status, 0);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "child ended with %d", status);
}

int main(int count, char** arguments) {
  int regions = count > 1 ? atoi(arguments[1]) : 20000;
  uint32_t seed = count > 2 ? (uint32_t)atoi(arguments[2]) | 1 : 1;
  int forks = count <= 3;
  hsd_pool_spin(20000);
  for (int i = 0; i < CALLERS; i++) {
    lanes[i] = hsd_pool_open(NULL, 0, THREADS, THREADS);
    CHECK(lanes[i] == i, "open: %d", lanes[i]);
  }
  CHECK(hsd_pool_use(63) < 0, "use of no lane");
  run_region(hsd_pool_launch_of_thread(), &seed, 0); /* on this thread */
  CHECK(hsd_pool_use(lanes[0]) == 0, "use");
  run_region(hsd_pool_launch_of_thread(), &seed, 0);
  CHECK(hsd_pool_open(NULL, 0, 0, 1) < 0 && hsd_pool_open(NULL, 0, 3, 2) < 0, "wrong numbers of threads");
  CHECK(hsd_pool_set(lanes[0], THREADS + 1, 0) < 0 && hsd_pool_set(63, 1, 1) < 0, "set out of range");
  if (forks) fork_and_launch(seed);
  pthread_t threads[CALLERS + 1];
  caller callers[CALLERS] = {{regions / 2, next(&seed), 0}};
  call(&callers[0]);
  atomic_store(&finished, 0);
  uint32_t churn_seed = next(&seed);
  for (int i = 0; i < CALLERS; i++) {
    callers[i] = (caller){regions / 2 / CALLERS + 1, next(&seed), i};
    pthread_create(&threads[i], NULL, call, &callers[i]);
  }
  pthread_create(&threads[CALLERS], NULL, churn, &churn_seed);
  for (int i = 0; i <= CALLERS; i++) pthread_join(threads[i], NULL);
  if (forks) fork_and_launch(seed);
  hsd_counts all = {0, 0, 0, 0, 0};
  for (int i = 0; i < CALLERS; i++) {
    hsd_counts c;
    CHECK(hsd_pool_counts(lanes[i], &c) == 0, "counts");
    all.regions += c.regions, all.tasks += c.tasks, all.worker_tasks += c.worker_tasks, all.inline_busy += c.inline_busy;
    CHECK(hsd_pool_close(lanes[i]) == 0, "close");
    CHECK(hsd_pool_launch(lanes[i]) == NULL && hsd_pool_close(lanes[i]) < 0, "closed twice");
  }
  printf("regions %llu tasks %llu by workers %llu inline %llu\n", (unsigned long long)all.regions,
         (unsigned long long)all.tasks, (unsigned long long)all.worker_tasks, (unsigned long long)all.inline_busy);
  return 0;
}
