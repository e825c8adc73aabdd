/* Signals that wait with their data, signals that are handled, timers of several sorts. */
#include "chaos.h"

enum { QUEUED_MAX = 8 };
static volatile sig_atomic_t handled;
static int expected_handled, queued_first, queued_count;
static int clock_fd = -1;
static int64_t clock_due; /* monotonic, us; 0: not armed */
static timer_t timer;
static int timer_armed;
static int64_t timer_due;

static int queue_signal(void) { return SIGRTMIN + 1; }
static int timer_signal(void) { return SIGRTMIN + 2; }

static void on_usr1(int signal) { (void)signal, handled++; }

static void signals_begin(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, queue_signal()), sigaddset(&set, timer_signal());
    OK(sigprocmask(SIG_BLOCK, &set, NULL));
    struct sigaction action = {.sa_handler = on_usr1, .sa_flags = SA_RESTART};
    OK(sigaction(SIGUSR1, &action, NULL));
    clock_fd = OK(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = timer_signal(), .sigev_value.sival_int = 77};
    OK(timer_create(CLOCK_MONOTONIC, &event, &timer));
    timer_armed = queued_first = queued_count = handled = expected_handled = 0, clock_due = 0;
}

static void op_queue(void) {
    struct timespec none = {0, 0};
    siginfo_t info;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, queue_signal());
    if (queued_count < QUEUED_MAX && below(2)) {
        OK(sigqueue(my_pid, queue_signal(), (union sigval){.sival_int = queued_first + queued_count}));
        queued_count++;
        return;
    }
    int got = sigtimedwait(&set, &info, &none);
    if (queued_count == 0) {
        CHECK(got < 0 && errno == EAGAIN, "a signal that nobody sent: %d, value %d", got, info.si_value.sival_int);
        return;
    }
    CHECK(got == queue_signal() && info.si_value.sival_int == queued_first && info.si_pid == my_pid && info.si_code == SI_QUEUE,
          "got %d, value %d of %d, not %d", got, info.si_value.sival_int, info.si_pid, queued_first);
    queued_first++, queued_count--;
}

static void op_handle(void) {
    OK(kill(my_pid, SIGUSR1));
    expected_handled++;
    CHECK(handled == expected_handled, "%d signals handled, not %d", handled, expected_handled);
}

static void op_clock(void) {
    uint64_t times;
    int64_t now = work_now_us(CLOCK_MONOTONIC);
    if (!clock_due) {
        clock_due = now + 1 + below(30000);
        struct itimerspec at = {.it_value = {clock_due / 1000000, clock_due % 1000000 * 1000}};
        OK(timerfd_settime(clock_fd, TFD_TIMER_ABSTIME, &at, NULL));
        return;
    }
    ssize_t got = read(clock_fd, &times, 8);
    int64_t after = work_now_us(CLOCK_MONOTONIC);
    if (got == 8) {
        CHECK(after >= clock_due && times == 1, "timerfd early by %ld us, %lu times", (long)(clock_due - after), times);
        clock_due = 0;
    } else CHECK(errno == EAGAIN && now < clock_due + 2000000, "timerfd late");
}

static void op_timer(void) {
    struct timespec none = {0, 0};
    siginfo_t info;
    sigset_t set;
    int64_t now = work_now_us(CLOCK_MONOTONIC);
    if (!timer_armed) {
        long us = 1 + below(20000);
        timer_due = now + us, timer_armed = 1;
        struct itimerspec in = {.it_value = {0, us * 1000}};
        OK(timer_settime(timer, 0, &in, NULL));
        return;
    }
    sigemptyset(&set);
    sigaddset(&set, timer_signal());
    int got = sigtimedwait(&set, &info, &none);
    int64_t after = work_now_us(CLOCK_MONOTONIC);
    if (got == timer_signal()) {
        CHECK(info.si_code == SI_TIMER && info.si_value.sival_int == 77 && after >= timer_due, "timer: code %d value %d, early by %ld", info.si_code, info.si_value.sival_int, (long)(timer_due - after));
        timer_armed = 0;
    } else CHECK(errno == EAGAIN && now < timer_due + 2000000, "POSIX timer late by %ld us", (long)(now - timer_due));
}

/* Nothing may cut these short. */
static void op_sleep(void) {
    long us = 1 + below(3000);
    int64_t from = work_now_us(CLOCK_MONOTONIC);
    if (below(2)) work_sleep_us(us);
    else CHECK(OK(poll(NULL, 0, us / 1000)) == 0, "poll");
    CHECK(work_now_us(CLOCK_MONOTONIC) >= from + us / 1000 * 1000, "a short sleep");
}
