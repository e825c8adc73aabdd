/* flags: -O2 -pthread
 * Goal: a signal that a waiting call blocks, and the thread does not, comes when the call is done, however often it was stopped.
 * Method: the signal is sent while the main thread waits; what it waits for comes 120 ms later; the handler looks whether it has. */
#include "work.h"
#include <poll.h>
#include <sys/epoll.h>
#include <sys/select.h>
enum { DELAY_US = 120000, CALLS = 6 };
static int ends[2], epoll;
static pthread_t waiter;
static atomic_int waiting, come, handled, early;
static sigset_t mask;

static void on_blocked(int signal) {
    (void)signal;
    handled++;
    if (!come) early++;
}
static void on_wanted(int signal) { (void)signal; }

static void *sender(void *none) {
    for (;;) {
        while (!waiting) work_sleep_us(500);
        work_sleep_us(20000);
        PT(pthread_kill(waiter, SIGUSR1));
        work_sleep_us(DELAY_US);
        come = 1, waiting = 0;
        CHECK(write(ends[1], "x", 1) == 1, "write");
        PT(pthread_kill(waiter, SIGUSR2));
    }
    return none;
}

/* The other signal is blocked in all but the last, which waits for it. */
static void wait_by(unsigned call) {
    struct timespec most = {60, 0}, *limit = call % 2 ? &most : NULL;
    struct pollfd one = {ends[0], POLLIN, 0};
    struct epoll_event event;
    fd_set set;
    FD_ZERO(&set);
    FD_SET(ends[0], &set);
    switch (call) {
    case 0: case 1: CHECK(ppoll(&one, 1, limit, &mask) == 1, "ppoll"); break;
    case 2: case 3: CHECK(pselect(ends[0] + 1, &set, NULL, NULL, limit, &mask) == 1, "pselect"); break;
    case 4: CHECK(epoll_pwait(epoll, &event, 1, -1, &mask) == 1, "epoll_pwait"); break;
    default:
        sigdelset(&mask, SIGUSR2);
        CHECK(sigsuspend(&mask) == -1 && errno == EINTR, "sigsuspend");
        sigaddset(&mask, SIGUSR2);
    }
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    OK(pipe(ends));
    epoll = OK(epoll_create1(0));
    struct epoll_event event = {.events = EPOLLIN};
    OK(epoll_ctl(epoll, EPOLL_CTL_ADD, ends[0], &event));
    sigset_t other;
    sigemptyset(&other), sigaddset(&other, SIGUSR2);
    PT(pthread_sigmask(SIG_BLOCK, &other, NULL));
    sigemptyset(&mask), sigaddset(&mask, SIGUSR1), sigaddset(&mask, SIGUSR2);
    struct sigaction blocked = {.sa_handler = on_blocked}, wanted = {.sa_handler = on_wanted};
    OK(sigaction(SIGUSR1, &blocked, NULL)), OK(sigaction(SIGUSR2, &wanted, NULL));
    waiter = pthread_self();
    pthread_t sending;
    PT(pthread_create(&sending, NULL, sender, NULL));
    for (unsigned round = 0; work_more(); round++) {
        come = handled = 0, waiting = 1;
        wait_by(round % CALLS);
        CHECK(handled == 1 && !early, "call %u: handled %d times, %d of them too early", round % CALLS, handled, early);
        char byte;
        CHECK(read(ends[0], &byte, 1) == 1, "read");
        if (round % CALLS != CALLS - 1) {
            int got;
            PT(sigwait(&other, &got));
        }
        sigset_t now;
        PT(pthread_sigmask(SIG_BLOCK, NULL, &now));
        CHECK(sigismember(&now, SIGUSR2) == 1 && sigismember(&now, SIGUSR1) == 0, "the thread's own mask");
        work_tick();
    }
    return work_end();
}
