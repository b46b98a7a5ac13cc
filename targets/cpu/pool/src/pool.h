/* A thread pool and a workspace allocator to put under the kernels of a library that TVM compiled.
 *
 * Such a library exports the pointers __TVMBackendParallelLaunch, __TVMBackendAllocWorkspace and
 * __TVMBackendFreeWorkspace; whoever loads it may point them elsewhere. TVM's pool gives each thread one fixed part of
 * a region and waits for all of them, so that a thread which the system takes off its CPU delays every region by a
 * time slice. Here parts are claimed: a thread that comes late finds nothing left, and nobody waits for it.
 *
 * A crew is a number of worker threads on a set of CPUs. A lane is what a model launches through: it has a crew, a
 * number of threads and of tasks a thread, which may change between regions. Models on the same CPUs share a crew.
 */
#ifndef HSD_POOL_H
#define HSD_POOL_H

#include <stdint.h>

#define HSD_API __attribute__((visibility("default")))
#define HSD_ABI 2          /* the number that the loader expects of hsd_pool_abi */
#define HSD_MOST_LANES 64  /* each is a launch function of its own: TVM passes none of ours a context */
#define HSD_MOST_CREWS 16
#define HSD_MOST_THREADS 64 /* of a region, the launching thread included; one bit each in a word */
#define HSD_MOST_CPUS 1024

/* TVMParallelGroupEnv and FTVMParallelLambda. `sync_handle` serves TVMBackendParallelBarrier, which waits until all
 * tasks have arrived: that cannot work where one thread runs several tasks in turn, so it is NULL here, and the loader
 * refuses a library that uses the barrier. No kernel of this project does. */
typedef struct {
  void* sync_handle;
  int32_t num_task;
} hsd_env;
typedef int (*hsd_task)(int task, hsd_env* env, void* data);
typedef int (*hsd_launch)(hsd_task task, void* data, int num_task);

/* What regions did, since the lane was opened. */
typedef struct {
  uint64_t regions;       /* with more than one task */
  uint64_t tasks;         /* of those */
  uint64_t worker_tasks;  /* of those, run by workers */
  uint64_t late;          /* regions that waited for a worker, or did a worker's share */
  uint64_t inline_busy;   /* run on the launching thread because the crew served another one */
} hsd_counts;

/* TVM's functions for errors, by address; NULL where there are none. A kernel leaves its error with the thread it ran
 * on, and it must reach the thread that launched. */
typedef struct {
  void (*move)(void** error);  /* TVMFFIErrorMoveFromRaised */
  void (*raise)(void* error);  /* TVMFFIErrorSetRaised */
  int (*release)(void* error); /* TVMFFIObjectDecRef */
  void (*raise_text)(const char* kind, const char* message); /* TVMFFIErrorSetRaisedFromCStr */
} hsd_errors;

HSD_API int32_t hsd_pool_abi(void);
HSD_API void hsd_pool_errors(const hsd_errors* functions);

/* Opens a lane with `threads` threads (the launching one included) on the CPUs; none: those of the caller.
 * Starts what threads its crew lacks, up to `capacity`. Returns the lane, or minus an errno. */
HSD_API int32_t hsd_pool_open(const int32_t* cpus, int32_t n_cpus, int32_t threads, int32_t capacity);
/* The function to put under the library's __TVMBackendParallelLaunch; NULL for no lane. */
HSD_API hsd_launch hsd_pool_launch(int32_t lane);
/* The function to put under a library that serves several lanes, and the lane that regions of the calling thread go to
 * there, until it says otherwise; without one they run on that thread. 0, or minus an errno for no lane. */
HSD_API hsd_launch hsd_pool_launch_of_thread(void);
HSD_API int32_t hsd_pool_use(int32_t lane);
/* Threads of the next regions, at most the capacity; tasks a thread, or 0: as many as serve best, see region.c.
 * Never starts a thread. */
HSD_API int32_t hsd_pool_set(int32_t lane, int32_t threads, int32_t tasks_per_thread);
HSD_API int32_t hsd_pool_counts(int32_t lane, hsd_counts* counts);
/* Nanoseconds that a worker looks for work before it sleeps; for all crews. */
HSD_API void hsd_pool_spin(int64_t spin_ns);
/* Seconds that a region adds to its work: of `rounds` regions of one task a thread, each task of work_ns, the one at
 * `quantile` (0.5 is the median). Negative for no lane. */
HSD_API double hsd_pool_region_cost(int32_t lane, int32_t rounds, int64_t work_ns, double quantile);
/* Closes a lane; the last one of a crew joins its threads. A library that still points here runs on one thread. */
HSD_API int32_t hsd_pool_close(int32_t lane);

HSD_API void* hsd_alloc_workspace(int device_type, int device_id, uint64_t bytes, int type_code, int type_bits);
HSD_API int hsd_free_workspace(int device_type, int device_id, void* block);

#endif
