/* Inside the pool: what a model launches through. */
#ifndef HSD_LANE_H
#define HSD_LANE_H

#include "crew.h"

typedef struct {
  _Alignas(HSD_LINE) _Atomic(hsd_crew*) crew; /* NULL: closed, regions run on the launching thread */
  int32_t capacity; /* most threads of a region */
  _Atomic int32_t threads;
  _Atomic int32_t tasks_per_thread; /* 0: adapts */
  _Atomic uint64_t inline_busy;
  int32_t lateness; /* this and the counts belong to whoever holds the crew's `busy` */
  hsd_counts counts;
} hsd_lane;

int hsd_region(hsd_lane* lane, hsd_task task, void* data, int num_task);

/* Waits until nobody launches, and holds the crew. */
void hsd_hold(hsd_crew* crew);
void hsd_release(hsd_crew* crew);

#endif
