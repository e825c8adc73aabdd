/* flags: -O2 -pthread
 * Goal: cancellation works inside every blocking call: the cleanup handlers run, in order, and the thread ends.
 * Method: cancel a thread in each call; asynchronous cancellation in a loop; a disabled state holds it off. */
#include "work.h"
#include <poll.h>
#include <semaphore.h>
#include <sys/epoll.h>
#include <sys/socket.h>
static int fds[2], listener, epoll;
static sem_t semaphore;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t never = PTHREAD_COND_INITIALIZER;
static _Thread_local int marker;
static atomic_int cleaned, inside;
static void cleanup(void *arg) { CHECK(marker == 31, "TLS in the cleanup handler"); CHECK(atomic_fetch_add(&cleaned, 1) == (int)(long)arg, "order of the cleanup handlers"); }
static void unlock(void *arg) { PT(pthread_mutex_unlock(arg)); }
static void block(int kind) {
    char c;
    struct pollfd p = {fds[0], POLLIN, 0};
    struct epoll_event e;
    sigset_t s;
    fd_set set;
    switch (kind) {
    case 0: sleep(1000); break;
    case 1: OK(read(fds[0], &c, 1)); break;
    case 2: OK(recv(fds[0], &c, 1, 0)); break;
    case 3: poll(&p, 1, -1); break;
    case 4: epoll_wait(epoll, &e, 1, -1); break;
    case 5: accept(listener, NULL, NULL); break;
    case 6: sem_wait(&semaphore); break;
    case 7: pause(); break;
    case 8: sigemptyset(&s), sigaddset(&s, SIGRTMIN + 7), sigwaitinfo(&s, NULL); break;
    case 9: FD_ZERO(&set); FD_SET(fds[0], &set); select(fds[0] + 1, &set, NULL, NULL, NULL); break;
    case 10:
        PT(pthread_mutex_lock(&mutex));
        pthread_cleanup_push(unlock, &mutex);
        for (;;) pthread_cond_wait(&never, &mutex);
        pthread_cleanup_pop(1);
        break;
    case 11: { int old; PT(pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, &old)); for (volatile long i = 0;; i++); }
    case 12: { int old; PT(pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &old)); work_sleep_us(15000); PT(pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, &old)); for (;;) pthread_testcancel(), sched_yield(); }
    default: clock_nanosleep(CLOCK_MONOTONIC, 0, &(struct timespec){1000, 0}, NULL);
    }
}
static void *body(void *arg) {
    marker = 31;
    pthread_cleanup_push(cleanup, (void *)1);
    pthread_cleanup_push(cleanup, (void *)0);
    atomic_store(&inside, 1);
    block((int)(long)arg);
    pthread_cleanup_pop(0);
    pthread_cleanup_pop(0);
    return NULL;
}
int main(int argc, char **argv) {
    work_begin(argc, argv);
    OK(socketpair(AF_UNIX, SOCK_STREAM, 0, fds));
    listener = OK(socket(AF_UNIX, SOCK_STREAM, 0));
    OK(bind(listener, &(struct sockaddr){.sa_family = AF_UNIX}, sizeof(sa_family_t)));
    OK(listen(listener, 1));
    epoll = OK(epoll_create1(0));
    PT(sem_init(&semaphore, 0, 0));
    while (work_more())
        for (long kind = 0; kind < 14; kind++) {
            pthread_t t;
            void *value;
            atomic_store(&cleaned, 0), atomic_store(&inside, 0);
            PT(pthread_create(&t, NULL, body, (void *)kind));
            while (!atomic_load(&inside)) sched_yield();
            if (atomic_load(&work_rounds) % 3) work_sleep_us(2000);
            PT(pthread_cancel(t));
            struct timespec until;
            OK(clock_gettime(CLOCK_REALTIME, &until));
            until.tv_sec += 10;
            int r = pthread_timedjoin_np(t, &value, &until);
            CHECK(r == 0, "thread in call %ld does not end", kind);
            CHECK(value == PTHREAD_CANCELED, "thread in call %ld returned", kind);
            CHECK(cleaned == 2, "call %ld: %d cleanup handlers ran", kind, cleaned);
            work_tick();
        }
    return work_end();
}
