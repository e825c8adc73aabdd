/* flags: -O2 -pthread
 * Goal: eventfd, signalfd and timerfd keep counter, mode, mask and armed time. Method: values stay unread over sleeps. */
#include "work.h"
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>

int main(int argc, char **argv) {
    work_begin(argc, argv);
    sigset_t mask;
    sigemptyset(&mask), sigaddset(&mask, SIGUSR1), sigaddset(&mask, SIGRTMIN + 4);
    PT(pthread_sigmask(SIG_BLOCK, &mask, NULL));
    int counter = OK(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)), semaphore = OK(eventfd(0, EFD_NONBLOCK | EFD_SEMAPHORE));
    int signals = OK(signalfd(-1, &mask, SFD_NONBLOCK | SFD_CLOEXEC));
    int relative = OK(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK)), absolute = OK(timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK)), idle = OK(timerfd_create(CLOCK_BOOTTIME, 0));
    for (uint64_t round = 1; work_more(); round++) {
        uint64_t value = work_mix(round) >> 8, got;
        CHECK(write(counter, &value, 8) == 8, "eventfd");
        uint64_t three = 3;
        CHECK(write(semaphore, &three, 8) == 8, "semaphore eventfd");
        union sigval payload = {.sival_int = (int)round};
        OK(sigqueue(getpid(), SIGRTMIN + 4, payload));
        OK(kill(getpid(), SIGUSR1));
        struct itimerspec soon = {{0, 0}, {0, 30000000}}, at = {{0, 0}, {0, 0}}, left;
        int64_t wall = work_now_us(CLOCK_REALTIME) + 30000;
        at.it_value.tv_sec = wall / 1000000, at.it_value.tv_nsec = wall % 1000000 * 1000;
        OK(timerfd_settime(relative, 0, &soon, NULL));
        OK(timerfd_settime(absolute, TFD_TIMER_ABSTIME, &at, NULL));
        work_sleep_us(10000);
        CHECK(read(counter, &got, 8) == 8 && got == value, "eventfd holds %lx, wanted %lx", got, value);
        CHECK(read(counter, &got, 8) == -1 && errno == EAGAIN, "an empty eventfd");
        for (int i = 0; i < 3; i++) CHECK(read(semaphore, &got, 8) == 8 && got == 1, "semaphore eventfd");
        CHECK(read(semaphore, &got, 8) == -1 && errno == EAGAIN, "an empty semaphore eventfd");
        struct signalfd_siginfo s[3];
        CHECK(read(signals, s, sizeof s) == 2 * (ssize_t)sizeof *s, "signalfd");
        CHECK(s[0].ssi_signo == SIGUSR1 && s[1].ssi_signo == (uint32_t)SIGRTMIN + 4 && s[1].ssi_int == (int)round, "signalfd: %u %u value %d", s[0].ssi_signo, s[1].ssi_signo, s[1].ssi_int);
        struct pollfd p[2] = {{relative, POLLIN, 0}, {absolute, POLLIN, 0}};
        for (int i = 0; i < 2; i++) {
            CHECK(poll(&p[i], 1, 2000) == 1, "timerfd %d never fired", i);
            CHECK(read(p[i].fd, &got, 8) == 8 && got == 1, "timerfd %d: %lu", i, got);
        }
        OK(timerfd_gettime(idle, &left));
        CHECK(!left.it_value.tv_sec && !left.it_value.tv_nsec, "the idle timerfd is armed");
        CHECK(OK(fcntl(counter, F_GETFD)) == FD_CLOEXEC && OK(fcntl(semaphore, F_GETFD)) == 0 && OK(fcntl(signals, F_GETFL)) & O_NONBLOCK, "flags");
        work_tick();
    }
    return work_end();
}
