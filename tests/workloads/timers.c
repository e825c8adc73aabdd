/* flags: -O2 -pthread -lrt
 * Goal: armed timers go on firing at their period and one-shots fire once, on time. Method: setitimer, timer_create
 * with SIGEV_SIGNAL and SIGEV_THREAD_ID, timerfd relative and absolute, alarm; count and compare with the clock. */
#include "work.h"
#include <sys/time.h>
#include <sys/timerfd.h>
#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif
enum { PERIOD_MS = 20 };
static atomic_int itimer_fired, posix_fired, thread_fired, once_fired;
static pid_t main_tid;
static void on_signal(int n, siginfo_t *info, void *context) {
    (void)context;
    if (n == SIGALRM) atomic_fetch_add(&itimer_fired, 1);
    if (n == SIGRTMIN + 1) { CHECK(info->si_code == SI_TIMER && info->si_value.sival_int == 4711, "siginfo of a timer: code %d value %d", info->si_code, info->si_value.sival_int); atomic_fetch_add(&posix_fired, 1 + info->si_overrun); }
    if (n == SIGRTMIN + 2) { CHECK(gettid() == main_tid, "SIGEV_THREAD_ID reached thread %d", gettid()); atomic_fetch_add(&thread_fired, 1 + info->si_overrun); }
    if (n == SIGRTMIN + 3) atomic_fetch_add(&once_fired, 1);
}
static timer_t make(int notify, int signal_number) {
    struct sigevent e = {.sigev_notify = notify, .sigev_signo = signal_number, .sigev_value.sival_int = 4711};
    e.sigev_notify_thread_id = main_tid;
    timer_t t;
    OK(timer_create(CLOCK_MONOTONIC, &e, &t));
    return t;
}
static struct itimerspec every(void) { return (struct itimerspec){{0, PERIOD_MS * 1000000}, {0, PERIOD_MS * 1000000}}; }
/* Sleeps over the timers' signals. */
static void doze(int ms) {
    struct timespec t;
    int64_t until = work_now_us(CLOCK_MONOTONIC) + ms * 1000;
    t.tv_sec = until / 1000000, t.tv_nsec = until % 1000000 * 1000;
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR);
}
static void about(const char *what, long got, int64_t passed_us) {
    long wanted = (long)(passed_us / 1000 / PERIOD_MS), slack = (long)(work_slack_us() / 1000 / PERIOD_MS) + 2;
    if (got < wanted - slack || got > wanted + 2) FAIL("%s fired %ld times in %ld us, wanted %ld", what, got, (long)passed_us, wanted);
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    main_tid = gettid();
    struct sigaction a = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART};
    int signals[] = {SIGALRM, SIGRTMIN + 1, SIGRTMIN + 2, SIGRTMIN + 3};
    for (int i = 0; i < 4; i++) OK(sigaction(signals[i], &a, NULL));
    timer_t posix = make(SIGEV_SIGNAL, SIGRTMIN + 1), thread = make(SIGEV_THREAD_ID, SIGRTMIN + 2), once = make(SIGEV_SIGNAL, SIGRTMIN + 3);
    int fd = OK(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK)), far = OK(timerfd_create(CLOCK_MONOTONIC, 0));
    struct itimerspec period = every(), shot = {{0, 0}, {0, 120000000}}, hour = {{7, 5}, {3600, 0}}, now;
    OK(timerfd_settime(far, 0, &hour, NULL));
    for (int round = 0; work_more(); round++) {
        itimer_fired = posix_fired = thread_fired = once_fired = 0;
        struct itimerval v = {{0, PERIOD_MS * 1000}, {0, PERIOD_MS * 1000}}, off = {0};
        int64_t start = work_now_us(CLOCK_MONOTONIC);
        OK(setitimer(ITIMER_REAL, &v, NULL));
        OK(timer_settime(posix, 0, &period, NULL));
        OK(timer_settime(thread, 0, &period, NULL));
        OK(timer_settime(once, 0, &shot, NULL));
        OK(timerfd_settime(fd, 0, &period, NULL));
        doze(400);
        OK(timer_gettime(posix, &now));
        CHECK(now.it_interval.tv_nsec == PERIOD_MS * 1000000 && now.it_value.tv_sec == 0, "timer_gettime");
        uint64_t expirations = 0;
        CHECK(read(fd, &expirations, 8) == 8, "timerfd");
        int64_t passed = work_now_us(CLOCK_MONOTONIC) - start;
        int seen[] = {itimer_fired, posix_fired, thread_fired};
        OK(setitimer(ITIMER_REAL, &off, NULL));
        memset(&now, 0, sizeof now);
        OK(timer_settime(posix, 0, &now, NULL));
        OK(timer_settime(thread, 0, &now, NULL));
        about("setitimer", seen[0], passed);
        about("timer_create SIGEV_SIGNAL", seen[1], passed);
        about("timer_create SIGEV_THREAD_ID", seen[2], passed);
        about("timerfd", (long)expirations, passed);
        CHECK(once_fired == 1, "the one-shot fired %d times", once_fired);
        OK(timerfd_gettime(far, &now));
        CHECK(now.it_interval.tv_sec == 7 && now.it_interval.tv_nsec == 5 && now.it_value.tv_sec > 3000 && now.it_value.tv_sec <= 3600, "the far timerfd has %ld s left", now.it_value.tv_sec);
        alarm(1000);
        doze(20);
        unsigned left = alarm(0);
        CHECK(left >= 999 && left <= 1000, "alarm had %u s left", left);
        work_tick();
    }
    return work_end();
}
