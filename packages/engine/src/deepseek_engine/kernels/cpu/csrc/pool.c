// A loop's items are taken one by one, so a thread that the system has put aside delays at most the item it holds: the
// caller never waits for a thread to turn up, only for items that were taken. (A barrier of OpenMP waits for every
// thread, which on a busy machine costs a time slice for each of a step's loops.)
#include "pool.h"

#include <assert.h>
#include <immintrin.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>

// One word says which loop is on, how many items it has and which is next: [generation:16 | items:24 | next:24].
// Whoever takes an item below `items` knows that the loop lasts until that item is done, so task and argument are stable.
#define FIELD_BITS 24
#define FIELD_MASK ((1ull << FIELD_BITS) - 1)
#define SPINS_BEFORE_SLEEP 4000
#define SPINS_BEFORE_YIELD 100000

static _Atomic uint64_t ticket;
static _Atomic int64_t num_done;
static _Atomic int num_sleeping;
static ds_task current_task;
static void *current_argument;

static int num_threads = 1;
static int num_started = 1;
static pthread_mutex_t caller_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t sleep_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;

static bool has_items(uint64_t word) { return (word & FIELD_MASK) < ((word >> FIELD_BITS) & FIELD_MASK); }

static bool take_and_run(int thread) {
    if (!has_items(atomic_load(&ticket))) return false;
    uint64_t word = atomic_fetch_add(&ticket, 1);
    if (!has_items(word)) return false;
    current_task(current_argument, (int64_t)(word & FIELD_MASK), thread);
    atomic_fetch_add(&num_done, 1);
    return true;
}

static void sleep_until_work(void) {
    pthread_mutex_lock(&sleep_lock);
    atomic_fetch_add(&num_sleeping, 1);
    while (!has_items(atomic_load(&ticket))) pthread_cond_wait(&wake, &sleep_lock);
    atomic_fetch_sub(&num_sleeping, 1);
    pthread_mutex_unlock(&sleep_lock);
}

static void *work_forever(void *argument) {
    int thread = (int)(intptr_t)argument;
    for (int spins = 0;;) {
        if (thread < num_threads && take_and_run(thread)) {
            spins = 0;
        } else if (++spins > SPINS_BEFORE_SLEEP) {
            sleep_until_work();
            spins = 0;
        } else {
            _mm_pause();
        }
    }
    return 0;
}

void ds_set_num_threads(int wanted) {
    pthread_mutex_lock(&caller_lock);
    if (wanted < 1) wanted = 1;
    if (wanted > DS_MAX_THREADS) wanted = DS_MAX_THREADS;
    for (; num_started < wanted; num_started++) {
        pthread_t id;
        if (pthread_create(&id, 0, work_forever, (void *)(intptr_t)num_started)) break;
        pthread_detach(id);
    }
    num_threads = wanted < num_started ? wanted : num_started;
    pthread_mutex_unlock(&caller_lock);
}

int ds_num_threads(void) { return num_threads; }

static void run_shared(int64_t num_items, ds_task task, void *argument) {
    current_task = task;
    current_argument = argument;
    atomic_store(&num_done, 0);
    uint64_t generation = (atomic_load(&ticket) >> (2 * FIELD_BITS)) + 1;
    atomic_store(&ticket, generation << (2 * FIELD_BITS) | (uint64_t)num_items << FIELD_BITS);
    if (atomic_load(&num_sleeping)) {
        pthread_mutex_lock(&sleep_lock);
        pthread_cond_broadcast(&wake);
        pthread_mutex_unlock(&sleep_lock);
    }
    while (take_and_run(0)) {}
    for (int spins = 0; atomic_load(&num_done) < num_items; spins++) {
        if (spins > SPINS_BEFORE_YIELD) sched_yield();
        else _mm_pause();
    }
}

void ds_parallel_for(int64_t num_items, ds_task task, void *argument) {
    if (num_threads == 1 || num_items == 1) {
        for (int64_t item = 0; item < num_items; item++) task(argument, item, 0);
        return;
    }
    assert(num_items <= (int64_t)FIELD_MASK);
    pthread_mutex_lock(&caller_lock);
    run_shared(num_items, task, argument);
    pthread_mutex_unlock(&caller_lock);
}
