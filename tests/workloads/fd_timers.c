/* flags: -O2
 * Goal: no expiry of a timer descriptor is lost or comes twice, also of one that is due in the moment of a dump.
 * Method: many timers, periodic ones and ones that expire once, expiries counted against the clock. Many expire in one instant, which
 * keeps the kernel busy, all along a dump: so some are looked at that are due and have not expired yet. */
#include "work.h"
#include <sys/epoll.h>
#include <sys/timerfd.h>
enum { PERIODIC = 128, ONCE = 256, ALL = PERIODIC + ONCE, STEP_NS = 1000000, STEPS = 40 };
static int64_t const SLOW_NS = 20000000000;

static struct timer { int fd; int64_t armed, ns; uint64_t expiries; unsigned long round; } timers[ALL];

static int64_t now_ns(void) {
    struct timespec now;
    OK(clock_gettime(CLOCK_MONOTONIC, &now));
    return now.tv_sec * 1000000000 + now.tv_nsec;
}
static struct timespec of(int64_t ns) { return (struct timespec){ns / 1000000000, ns % 1000000000}; }

/* Absolute, so that the instant is known, and one of a few that many share. */
static void arm(struct timer *timer, int64_t steps, int is_periodic) {
    int64_t now = now_ns();
    timer->armed = now - now % STEP_NS, timer->ns = steps * STEP_NS, timer->expiries = 0;
    struct itimerspec at = {of(is_periodic ? timer->ns : 0), of(timer->armed + timer->ns)};
    OK(timerfd_settime(timer->fd, TFD_TIMER_ABSTIME, &at, NULL));
}

static void expired(struct timer *timer, int is_periodic, uint64_t seed) {
    uint64_t count;
    int64_t before = now_ns();
    CHECK(read(timer->fd, &count, sizeof count) == sizeof count, "a timer that is said to have expired has not");
    int64_t after = now_ns();
    long which = timer - timers;
    if (is_periodic) {
        timer->expiries += count;
        int64_t least = (before - timer->armed) / timer->ns - 1, most = (after - timer->armed) / timer->ns;
        CHECK((int64_t)timer->expiries >= least && (int64_t)timer->expiries <= most, "timer %ld expired %lu times (%lu now), not %ld to %ld", which, timer->expiries, count, least, most);
    } else {
        CHECK(count == 1, "timer %ld expired %lu times", which, count);
        CHECK(after - timer->armed >= timer->ns, "timer %ld expired %ld ns too early", which, timer->ns - (after - timer->armed));
        arm(timer, 1 + (int64_t)(work_mix(seed) % STEPS), 0);
    }
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    int set = OK(epoll_create1(0)), idle = OK(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK));
    for (int i = 0; i < ALL; i++) {
        timers[i].fd = OK(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK));
        struct epoll_event want = {.events = EPOLLIN, .data.u32 = (uint32_t)i};
        OK(epoll_ctl(set, EPOLL_CTL_ADD, timers[i].fd, &want));
        arm(&timers[i], i < PERIODIC ? STEPS / 4 + i % STEPS : 1 + i % STEPS, i < PERIODIC);
    }
    uint64_t seed = 0;
    for (unsigned long round = 1; work_more(); round++) {
        int64_t since = now_ns();
        for (int left = ALL; left;) {
            struct epoll_event got[32];
            int count = epoll_wait(set, got, 32, 1000);
            CHECK(count >= 0 || errno == EINTR, "epoll_wait");
            for (int i = 0; i < count; i++) {
                struct timer *timer = &timers[got[i].data.u32];
                expired(timer, got[i].data.u32 < PERIODIC, ++seed);
                if (timer->round != round) timer->round = round, left--;
            }
            for (int i = 0; i < ALL && now_ns() - since > SLOW_NS; i++) CHECK(timers[i].round == round, "timer %d (%s) has not expired", i, i < PERIODIC ? "periodic" : "once");
        }
        struct itimerspec left;
        OK(timerfd_gettime(idle, &left));
        CHECK(!left.it_value.tv_sec && !left.it_value.tv_nsec, "the idle timer is armed");
        work_tick();
    }
    return work_end();
}
