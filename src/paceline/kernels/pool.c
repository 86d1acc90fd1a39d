/* Threads that claim pieces of work one by one.
 *
 * Nobody waits at a barrier: the caller walks through the phases and helpers take pieces of whatever phase is on. A helper that the system
 * has put aside holds up at most the one piece it has in hand, and while it holds none, nothing. With barriers, as OpenMP has them, one
 * busy process beside two threads on two cores makes every phase wait for a time slice.
 */
#define _GNU_SOURCE
#include "pool.h"
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#define MOST 64            /* threads */
#define SPINS 6000         /* looks for a caller before a helper sleeps: about 0.2 ms */
#define PATIENCE 2000      /* looks at a piece in other hands before a thread offers its core */
#define LEFT_BITS 16
#define LEFT(state) ((state) & ((1 << LEFT_BITS) - 1))

static _Atomic uint64_t state;       /* the phase's number, and below it how many pieces nobody has claimed */
static _Atomic int64_t done, helpers; /* pieces finished in this phase; helpers that may claim */
static task doing_now;                /* written before `state` announces the phase, read after a piece of it was claimed */
static const void *work_now;
static int64_t pieces_now;

static pthread_mutex_t calling = PTHREAD_MUTEX_INITIALIZER, sleeping = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t called = PTHREAD_COND_INITIALIZER;
static _Atomic int64_t calls, sleepers, open; /* open: between gather and dismiss */
static int64_t made;            /* helpers that exist */
static __thread int64_t alone;  /* whether this thread found the helpers busy with another caller */

static inline void look_away(void) {
#if __x86_64__
    __builtin_ia32_pause();
#endif
}

/* Do one unclaimed piece, if there is one. */
static int help(void) {
    uint64_t seen = atomic_load(&state);
    while (LEFT(seen))
        if (atomic_compare_exchange_weak(&state, &seen, seen - 1)) {
            doing_now(work_now, pieces_now - (int64_t)LEFT(seen));
            atomic_fetch_add(&done, 1);
            return 1;
        }
    return 0;
}

static void *helper(void *number) {
    const int64_t worker = (int64_t)number;
    int64_t heard = 0;
    for (int64_t idle = 0;;) {
        if (worker <= atomic_load(&helpers) && help()) {
            idle = 0;
        } else if (++idle < PATIENCE || (idle < SPINS && !atomic_load(&open))) {
            look_away();
        } else if (atomic_load(&open)) { /* the caller has the rest in hand, or works alone for a moment; more is to come */
            sched_yield();
        } else {
            pthread_mutex_lock(&sleeping);
            atomic_fetch_add(&sleepers, 1);
            while (atomic_load(&calls) == heard) pthread_cond_wait(&called, &sleeping);
            atomic_fetch_sub(&sleepers, 1);
            heard = atomic_load(&calls);
            pthread_mutex_unlock(&sleeping);
            idle = 0;
        }
    }
    return NULL;
}

/* A forked child has the caller's thread only. */
static void forget(void) {
    made = 0;
    atomic_store(&sleepers, 0);
    atomic_store(&open, 0);
    atomic_store(&state, 0);
    pthread_mutex_init(&calling, NULL);
    pthread_mutex_init(&sleeping, NULL);
    pthread_cond_init(&called, NULL);
}

__attribute__((constructor)) static void prepare(void) { pthread_atfork(NULL, NULL, forget); }

int64_t gather(int64_t threads) {
    if (threads > MOST) threads = MOST;
    alone = threads <= 1 || pthread_mutex_trylock(&calling);
    if (alone) return 1;
    for (; made < threads - 1; made++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, helper, (void *)(made + 1))) break;
        pthread_detach(thread);
    }
    atomic_store(&helpers, threads - 1);
    atomic_store(&open, 1);
    atomic_fetch_add(&calls, 1);
    if (atomic_load(&sleepers)) {
        pthread_mutex_lock(&sleeping);
        pthread_cond_broadcast(&called);
        pthread_mutex_unlock(&sleeping);
    }
    return threads;
}

void share(task doing, const void *work, int64_t pieces) {
    if (alone || pieces == 1) {
        for (int64_t piece = 0; piece < pieces; piece++) doing(work, piece);
        return;
    }
    doing_now = doing, work_now = work, pieces_now = pieces;
    atomic_store(&done, 0);
    atomic_store(&state, ((atomic_load(&state) >> LEFT_BITS) + 1) << LEFT_BITS | (uint64_t)pieces);
    while (help()) {
    }
    for (int64_t looks = 0; atomic_load(&done) < pieces; looks++) {
        if (looks < PATIENCE) look_away();
        else sched_yield();
    }
}

void dismiss(void) {
    if (alone) return;
    atomic_store(&open, 0);
    pthread_mutex_unlock(&calling);
}
