/* flags: -O2 -pthread
 * Goal: the robust list stays registered: a thread that dies with a robust mutex makes its waiter the owner, with
 * EOWNERDEAD. Method: kill such a thread every round, after a sleep; robust PI mutexes too. */
#include "work.h"
static pthread_mutex_t plain, inherit;
static void make(pthread_mutex_t *m, int protocol) {
    pthread_mutexattr_t a;
    PT(pthread_mutexattr_init(&a));
    PT(pthread_mutexattr_setrobust(&a, PTHREAD_MUTEX_ROBUST));
    PT(pthread_mutexattr_setprotocol(&a, protocol));
    PT(pthread_mutex_init(m, &a));
}
static void *dies_with_both(void *arg) {
    PT(pthread_mutex_lock(&plain));
    PT(pthread_mutex_lock(&inherit));
    atomic_store((atomic_int *)arg, 1);
    work_sleep_us(8000);
    return NULL; /* without unlocking */
}
static void recover(pthread_mutex_t *m, const char *what) {
    struct timespec until;
    OK(clock_gettime(CLOCK_REALTIME, &until));
    until.tv_sec += 10;
    int r = pthread_mutex_timedlock(m, &until);
    CHECK(r == EOWNERDEAD, "%s: lock returned %d", what, r);
    PT(pthread_mutex_consistent(m));
    PT(pthread_mutex_unlock(m));
}
int main(int argc, char **argv) {
    work_begin(argc, argv);
    make(&plain, PTHREAD_PRIO_NONE);
    make(&inherit, PTHREAD_PRIO_INHERIT);
    void *head;
    size_t bytes;
    OK(syscall(SYS_get_robust_list, 0, &head, &bytes));
    while (work_more()) {
        atomic_int holds = 0;
        pthread_t t;
        PT(pthread_create(&t, NULL, dies_with_both, &holds));
        while (!atomic_load(&holds)) work_sleep_us(200);
        recover(&plain, "robust");
        recover(&inherit, "robust PI");
        PT(pthread_join(t, NULL));
        void *head_now;
        OK(syscall(SYS_get_robust_list, 0, &head_now, &bytes));
        CHECK(head_now == head && bytes == 24, "robust list at %p, was %p", head_now, head);
        work_tick();
    }
    return work_end();
}
