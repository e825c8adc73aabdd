/* flags: -O2 -pthread -lrt
 * Goal: a blocked call with a time-out ends with the time-out, on time, however often the process was stopped; it
 * never returns EINTR. Method: ARG names the call; measure each wait of 250 ms on the monotonic clock. */
#include "work.h"
#include <linux/aio_abi.h>
#include <linux/futex.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/ipc.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <mqueue.h>
enum { WAIT_MS = 250 };
static int pair[2], epoll, sem = -1;
static aio_context_t aio;
static uint32_t word;
static struct timespec wait_time = {0, WAIT_MS * 1000000L};

static struct timespec at(clockid_t clock) {
    int64_t us = work_now_us(clock) + WAIT_MS * 1000;
    return (struct timespec){us / 1000000, us % 1000000 * 1000};
}
static int is_timeout(int result) { return result == -1 && (errno == EAGAIN || errno == ETIMEDOUT); }

static int do_nanosleep(void) { return nanosleep(&wait_time, NULL) == 0; }
static int do_clock_rel(void) { return clock_nanosleep(CLOCK_MONOTONIC, 0, &wait_time, NULL) == 0; }
static int do_clock_abs(void) { struct timespec t = at(CLOCK_MONOTONIC); return clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == 0; }
static int do_usleep(void) { return usleep(WAIT_MS * 1000) == 0; }
static int do_poll(void) { struct pollfd p = {pair[0], POLLIN, 0}; return poll(&p, 1, WAIT_MS) == 0; }
static int do_ppoll(void) { struct pollfd p = {pair[0], POLLIN, 0}; return ppoll(&p, 1, &wait_time, NULL) == 0; }
static int do_select(void) { struct timeval t = {0, WAIT_MS * 1000}; fd_set s; FD_ZERO(&s); FD_SET(pair[0], &s); return select(pair[0] + 1, &s, NULL, NULL, &t) == 0; }
static int do_pselect(void) { sigset_t m; sigemptyset(&m); fd_set s; FD_ZERO(&s); FD_SET(pair[0], &s); return pselect(pair[0] + 1, &s, NULL, NULL, &wait_time, &m) == 0; }
static int do_epoll_wait(void) { struct epoll_event e; return epoll_wait(epoll, &e, 1, WAIT_MS) == 0; }
static int do_epoll_pwait2(void) { struct epoll_event e; return epoll_pwait2(epoll, &e, 1, &wait_time, NULL) == 0; }
static int do_futex(void) { return is_timeout(syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &wait_time, NULL, 0)); }
static int do_futex_abs(void) { struct timespec t = at(CLOCK_MONOTONIC); return is_timeout(syscall(SYS_futex, &word, FUTEX_WAIT_BITSET, 0, &t, NULL, ~0)); }
static int do_sigtimedwait(void) { sigset_t s; sigemptyset(&s); sigaddset(&s, SIGRTMIN + 3); return is_timeout(sigtimedwait(&s, NULL, &wait_time)); }
static int do_recv(void) { char c; return is_timeout(recv(pair[0], &c, 1, 0)); }
static int do_semtimedop(void) { struct sembuf b = {0, -1, 0}; return is_timeout(semtimedop(sem, &b, 1, &wait_time)); }
static int do_io_getevents(void) { struct io_event e; struct timespec t = wait_time; return syscall(SYS_io_getevents, aio, 1L, 1L, &e, &t) == 0; }
static int do_cond(void) {
    static pthread_mutex_t m = PTHREAD_MUTEX_INITIALIZER;
    static pthread_cond_t c;
    static int made;
    if (!made) { pthread_condattr_t a; PT(pthread_condattr_init(&a)); PT(pthread_condattr_setclock(&a, CLOCK_MONOTONIC)); PT(pthread_cond_init(&c, &a)); made = 1; }
    struct timespec t = at(CLOCK_MONOTONIC);
    PT(pthread_mutex_lock(&m));
    int r = pthread_cond_timedwait(&c, &m, &t);
    PT(pthread_mutex_unlock(&m));
    return r == ETIMEDOUT;
}
static int do_mutex(void) {
    static pthread_mutex_t m = PTHREAD_MUTEX_INITIALIZER;
    static int held;
    if (!held) { PT(pthread_mutex_lock(&m)); held = 1; }
    struct timespec t = at(CLOCK_MONOTONIC);
    return pthread_mutex_clocklock(&m, CLOCK_MONOTONIC, &t) == ETIMEDOUT;
}

static const struct { const char *name; int (*call)(void); } calls[] = {
    {"nanosleep", do_nanosleep}, {"clock_nanosleep_rel", do_clock_rel}, {"clock_nanosleep_abs", do_clock_abs}, {"usleep", do_usleep},
    {"poll", do_poll}, {"ppoll", do_ppoll}, {"select", do_select}, {"pselect", do_pselect}, {"epoll_wait", do_epoll_wait},
    {"epoll_pwait2", do_epoll_pwait2}, {"futex", do_futex}, {"futex_abs", do_futex_abs}, {"sigtimedwait", do_sigtimedwait},
    {"recv_timeout", do_recv}, {"semtimedop", do_semtimedop}, {"io_getevents", do_io_getevents}, {"cond_timedwait", do_cond}, {"mutex_clocklock", do_mutex},
};

int main(int argc, char **argv) {
    work_begin(argc, argv);
    int (*call)(void) = NULL;
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) if (!strcmp(calls[i].name, work_arg)) call = calls[i].call;
    CHECK(call, "unknown call %s", work_arg);
    OK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    struct timeval limit = {0, WAIT_MS * 1000};
    OK(setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit));
    struct epoll_event event = {.events = EPOLLIN};
    epoll = OK(epoll_create1(0));
    OK(epoll_ctl(epoll, EPOLL_CTL_ADD, pair[0], &event));
    if (call == do_semtimedop) sem = OK(semget(IPC_PRIVATE, 1, 0600));
    if (call == do_io_getevents) OK(syscall(SYS_io_setup, 4, &aio));
    while (work_more()) {
        int64_t before = work_now_us(CLOCK_MONOTONIC);
        int right = call();
        int error = errno;
        int64_t took = work_now_us(CLOCK_MONOTONIC) - before;
        errno = error;
        if (!right) FAIL("%s ended wrongly after %ld us", work_arg, (long)took);
        /* poll, epoll and select count in jiffies or round up; none may end early. */
        if (took < WAIT_MS * 1000 - 1000) FAIL("%s came back after %ld us, early", work_arg, (long)took);
        if (took > WAIT_MS * 1000 + work_slack_us()) FAIL("%s came back after %ld us, late", work_arg, (long)took);
        work_tick();
    }
    if (sem >= 0) OK(semctl(sem, 0, IPC_RMID));
    return work_end();
}
