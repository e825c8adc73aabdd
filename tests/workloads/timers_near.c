/* flags: -O1
 * Goal: a timer that expires in the very moment of an epoch signals once, not twice, and is not lost. Method: sixteen POSIX timers, for the
 * process and for a thread, and the interval timer, all once and soon, again and again; their signals are blocked and taken by
 * hand, each with the timer's value. */
#include "work.h"
#include <sys/time.h>
#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif
enum { TIMERS = 16, LATE_US = 3000000 };

int main(int argc, char **argv) {
    work_begin(argc, argv);
    int posix = SIGRTMIN + 3;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, posix), sigaddset(&set, SIGALRM);
    OK(sigprocmask(SIG_BLOCK, &set, NULL));
    timer_t timers[TIMERS];
    for (int i = 0; i < TIMERS; i++) {
        struct sigevent e = {.sigev_notify = i % 2 ? SIGEV_THREAD_ID : SIGEV_SIGNAL, .sigev_signo = posix, .sigev_value.sival_int = i};
        e.sigev_notify_thread_id = gettid();
        OK(timer_create(CLOCK_MONOTONIC, &e, &timers[i]));
    }
    for (uint64_t round = 1; work_more(); round++) {
        int64_t due[TIMERS + 1], start = work_now_us(CLOCK_MONOTONIC);
        int left = TIMERS + 1, told[TIMERS + 1] = {0};
        for (int i = 0; i <= TIMERS; i++) {
            long us = 1 + (long)(work_mix(round * 32 + i) % 8000);
            due[i] = work_now_us(CLOCK_MONOTONIC) + us;
            if (i < TIMERS) OK(timer_settime(timers[i], 0, &(struct itimerspec){.it_value = {0, us * 1000}}, NULL));
            else OK(setitimer(ITIMER_REAL, &(struct itimerval){.it_value = {0, us}}, NULL));
        }
        while (left) {
            siginfo_t info;
            struct timespec more = {0, 50000000};
            int got = sigtimedwait(&set, &info, &more);
            int64_t now = work_now_us(CLOCK_MONOTONIC);
            if (got < 0) {
                for (int i = 0; i <= TIMERS; i++) CHECK(told[i] || now < start + LATE_US, "timer %d is lost", i);
                continue;
            }
            int which = got == SIGALRM ? TIMERS : info.si_value.sival_int;
            CHECK(which >= 0 && which <= TIMERS && (which == TIMERS || info.si_code == SI_TIMER), "a signal of no timer");
            CHECK(!told[which]++, "timer %d came twice", which);
            CHECK(now + 1 >= due[which], "timer %d came %ld us early", which, (long)(due[which] - now));
            left--;
        }
        work_tick();
    }
    return work_end();
}
