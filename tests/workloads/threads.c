/* flags: -O2 -pthread
 * Goal: threads keep their stacks, TLS and locks. Method: each thread walks a ring of memory with a checksum and
 * holds recursive, error-checking, PI and plain mutexes over sleeps; a baton goes round by condition variables. */
#include "work.h"
enum { THREADS = 6, RING = 4096 };
static _Thread_local uint64_t tls_seed, tls_rounds;
static _Thread_local char tls_block[200] = "initial";
static pthread_mutex_t recursive, errorcheck, inherit, baton_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t baton_moved = PTHREAD_COND_INITIALIZER;
static int baton, stopping;
static long guarded_a, guarded_b;

static void make(pthread_mutex_t *m, int type, int protocol) {
    pthread_mutexattr_t a;
    PT(pthread_mutexattr_init(&a));
    PT(pthread_mutexattr_settype(&a, type));
    PT(pthread_mutexattr_setprotocol(&a, protocol));
    PT(pthread_mutex_init(m, &a));
}

static void locks(void) {
    PT(pthread_mutex_lock(&recursive));
    PT(pthread_mutex_lock(&recursive));
    PT(pthread_mutex_lock(&errorcheck));
    CHECK(pthread_mutex_lock(&errorcheck) == EDEADLK, "an error-checking mutex forgot its owner");
    PT(pthread_mutex_lock(&inherit));
    guarded_a++;
    work_sleep_us(300);
    guarded_b++;
    CHECK(guarded_a == guarded_b, "two threads inside");
    PT(pthread_mutex_unlock(&inherit));
    PT(pthread_mutex_unlock(&errorcheck));
    CHECK(pthread_mutex_unlock(&errorcheck) == EPERM, "unlock by a stranger");
    PT(pthread_mutex_unlock(&recursive));
    PT(pthread_mutex_unlock(&recursive));
}

static void *body(void *arg) {
    long me = (long)arg;
    uint64_t *ring = calloc(RING, 8), stack_copy[64], sum = 0;
    tls_seed = work_mix(me + 77);
    CHECK(strcmp(tls_block, "initial") == 0, "TLS image");
    snprintf(tls_block, sizeof tls_block, "thread %ld", me);
    for (;;) {
        for (int i = 0; i < RING; i++) {
            uint64_t value = work_mix(tls_seed + tls_rounds * RING + i);
            sum += value - ring[i];
            ring[i] = value;
            stack_copy[i % 64] = value;
        }
        uint64_t again = 0;
        for (int i = 0; i < RING; i++) again += ring[i];
        CHECK(again == sum, "ring of thread %ld", me);
        CHECK(stack_copy[63] == ring[RING - 1], "stack of thread %ld", me);
        char name[32];
        snprintf(name, sizeof name, "thread %ld", me);
        CHECK(strcmp(name, tls_block) == 0 && tls_seed == work_mix(me + 77), "TLS of thread %ld", me);
        tls_rounds++;
        locks();
        PT(pthread_mutex_lock(&baton_lock));
        while (baton != me && !stopping) PT(pthread_cond_wait(&baton_moved, &baton_lock));
        baton = (baton + 1) % THREADS;
        if (me == 0) work_tick();
        if (me == 0 && !work_more()) stopping = 1;
        int end = stopping;
        PT(pthread_cond_broadcast(&baton_moved));
        PT(pthread_mutex_unlock(&baton_lock));
        if (end) return free(ring), (void *)(me + 1000);
    }
}

int main(int argc, char **argv) {
    pthread_t t[THREADS];
    work_begin(argc, argv);
    make(&recursive, PTHREAD_MUTEX_RECURSIVE, PTHREAD_PRIO_NONE);
    make(&errorcheck, PTHREAD_MUTEX_ERRORCHECK, PTHREAD_PRIO_NONE);
    make(&inherit, PTHREAD_MUTEX_NORMAL, PTHREAD_PRIO_INHERIT);
    for (long i = 0; i < THREADS; i++) PT(pthread_create(&t[i], NULL, body, (void *)i));
    for (long i = 0; i < THREADS; i++) {
        void *value;
        PT(pthread_join(t[i], &value));
        CHECK(value == (void *)(i + 1000), "join of %ld", i);
    }
    return work_end();
}
