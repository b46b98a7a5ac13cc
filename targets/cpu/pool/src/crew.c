/* Workers: they look for tasks for a while, then sleep until they are called. */
#define _GNU_SOURCE
#include "crew.h"

#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <unistd.h>

hsd_errors hsd_tvm;
_Atomic int64_t hsd_spin_ns = 1000000; /* bridges what lies between two regions, and Python between two steps */
_Thread_local bool hsd_inside;

void hsd_futex_wait(_Atomic uint32_t* word, uint32_t value) {
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

void hsd_futex_wake(_Atomic uint32_t* word) { syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0); }

/* Keeps the error of the first task that failed, for the thread that launched; later ones are dropped. */
static void keep_error(hsd_crew* crew, int status) {
  int32_t none = 0;
  void* error = NULL;
  if (hsd_tvm.move != NULL) hsd_tvm.move(&error);
  if (atomic_compare_exchange_strong(&crew->status, &none, status)) {
    crew->error = error;
  } else if (error != NULL) {
    hsd_tvm.release(error);
  }
}

int32_t hsd_crew_claim(hsd_crew* crew, int32_t index) {
  int32_t claimed = 0;
  uint64_t ticket = atomic_load_explicit(&crew->ticket, memory_order_relaxed);
  while (hsd_unclaimed(ticket) > 0 && index < hsd_claimants(ticket)) {
    if (!atomic_compare_exchange_weak_explicit(&crew->ticket, &ticket, ticket - 1, memory_order_acquire,
                                               memory_order_relaxed)) {
      continue;
    }
    hsd_env env = {NULL, crew->tasks};
    int status = crew->task(crew->tasks - (int32_t)hsd_unclaimed(ticket), &env, crew->data);
    if (status != 0) keep_error(crew, status);
    claimed++;
    if (index > 0 && atomic_fetch_sub(&crew->unfinished, 1) == 1 && atomic_load(&crew->waiting)) {
      hsd_futex_wake(&crew->unfinished);
    }
    ticket = atomic_load_explicit(&crew->ticket, memory_order_relaxed);
  }
  return claimed;
}

static bool has_work(hsd_crew* crew, int32_t index) {
  uint64_t ticket = atomic_load(&crew->ticket);
  return (hsd_unclaimed(ticket) > 0 && index < hsd_claimants(ticket)) || atomic_load(&crew->stop);
}

/* Either the launching thread sees the bit and calls, or the worker sees the tasks: both are sequentially consistent.
 * A call that was not needed costs one more look. */
static void sleep_until_called(hsd_worker* worker) {
  uint64_t bit = UINT64_C(1) << worker->index;
  atomic_store(&worker->called, 0);
  atomic_fetch_or(&worker->crew->asleep, bit);
  while (!has_work(worker->crew, worker->index) && atomic_load(&worker->called) == 0) {
    hsd_futex_wait(&worker->called, 0);
  }
  atomic_fetch_and(&worker->crew->asleep, ~bit);
}

static void* work(void* argument) {
  hsd_worker* worker = argument;
  hsd_crew* crew = worker->crew;
  int64_t idle_since = 0;
  hsd_inside = true;
  while (!atomic_load_explicit(&crew->stop, memory_order_relaxed)) {
    bool worked = false;
    for (int look = 0; look < 64 && !worked; look++) {
      worked = hsd_crew_claim(crew, worker->index) > 0;
      hsd_pause();
    }
    int64_t now = worked ? 0 : hsd_now_ns();
    if (worked || idle_since == 0) {
      idle_since = now;
    } else if (now - idle_since > atomic_load_explicit(&hsd_spin_ns, memory_order_relaxed)) {
      sleep_until_called(worker);
      idle_since = 0;
    }
  }
  return NULL;
}

static int start_one(hsd_crew* crew, int32_t index) {
  hsd_worker* worker = &crew->worker[index];
  cpu_set_t set;
  pthread_attr_t attributes;
  atomic_store(&worker->called, 0);
  worker->crew = crew;
  worker->index = index;
  pthread_attr_init(&attributes);
  CPU_ZERO(&set);
  for (int32_t i = 0; i < crew->n_cpus; i++) CPU_SET((size_t)crew->cpus[i], &set);
  if (crew->n_cpus > 0) pthread_attr_setaffinity_np(&attributes, sizeof set, &set);
  int failed = pthread_create(&worker->thread, &attributes, work, worker);
  pthread_attr_destroy(&attributes);
  if (!failed) pthread_setname_np(worker->thread, "hsd-pool");
  return failed;
}

int hsd_crew_start(hsd_crew* crew) {
  sigset_t all, before;
  int failed = 0;
  sigfillset(&all); /* signals are for the threads that were there before */
  pthread_sigmask(SIG_SETMASK, &all, &before);
  while (!failed && atomic_load(&crew->workers) < crew->wanted) {
    failed = start_one(crew, atomic_load(&crew->workers) + 1);
    if (!failed) atomic_fetch_add(&crew->workers, 1);
  }
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  return failed;
}

void hsd_crew_wake(hsd_crew* crew, uint64_t who) {
  for (int32_t i = 1; i < HSD_MOST_THREADS && who >> i != 0; i++) {
    if ((who >> i & 1) != 0) {
      atomic_store(&crew->worker[i].called, 1);
      hsd_futex_wake(&crew->worker[i].called);
    }
  }
}

void hsd_crew_stop(hsd_crew* crew) {
  int32_t workers = atomic_load(&crew->workers);
  atomic_store(&crew->stop, true);
  for (int32_t i = 1; i <= workers; i++) hsd_crew_wake(crew, UINT64_C(1) << i);
  for (int32_t i = 1; i <= workers; i++) pthread_join(crew->worker[i].thread, NULL);
  atomic_store(&crew->workers, 0);
  atomic_store(&crew->asleep, 0);
  atomic_store(&crew->stop, false);
}
