// Threads that share the items of one loop.
#pragma once
#include <stdint.h>

typedef void (*ds_task)(void *argument, int64_t item, int thread);

// Call task(argument, i, thread) for every i in 0..num_items-1; returns when all are done. One caller at a time.
void ds_parallel_for(int64_t num_items, ds_task task, void *argument);

// How many threads share the work, the caller's included: 1 to DS_MAX_THREADS.
#define DS_MAX_THREADS 256
void ds_set_num_threads(int num_threads);
int ds_num_threads(void);
