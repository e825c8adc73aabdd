/* flags: -O2 -pthread
 * Goal: of many processes that share a control page each keeps what is its own. Method: more siblings than can be asked at once,
 * all from one fork, each with limits, signal actions, pending signals, timers, options and a mask of its number, changed in
 * every round; each looks whether it still has its own. */
#include "work.h"
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/timerfd.h>
enum { SIBLINGS = 22, TIMERS = 3 };
static struct common { atomic_ulong turn, done; } *common;
static void handler(int n) { (void)n; }
static timer_t timer[TIMERS];

static unsigned long word(unsigned long me, unsigned long turn, unsigned long salt) {
    return work_mix(me * 1000003 + turn * 101 + salt);
}

static void set(unsigned long me, unsigned long turn) {
    for (int r = 0; r < RLIM_NLIMITS; r++) {
        struct rlimit limit;
        OK(getrlimit(r, &limit));
        rlim_t least = 1ul << 30;
        if (r == RLIMIT_NOFILE || r == RLIMIT_NPROC || r == RLIMIT_NICE || r == RLIMIT_RTPRIO || r == RLIMIT_CPU || r == RLIMIT_RTTIME) continue;
        if (limit.rlim_max == RLIM_INFINITY) limit.rlim_cur = (least << 12) + word(me, turn, r) % least;
        OK(setrlimit(r, &limit));
    }
    for (int n = SIGRTMIN; n <= SIGRTMAX; n++) {
        struct sigaction a = {.sa_handler = word(me, turn, n) & 1 ? handler : SIG_IGN, .sa_flags = word(me, turn, n) & 2 ? SA_RESTART : SA_NODEFER};
        a.sa_mask.__val[0] = word(me, turn, 100 + n) & ~(1ul << (SIGKILL - 1) | 1ul << (SIGSTOP - 1) | 3ul << 31);
        OK(sigaction(n, &a, NULL));
    }
    for (int i = 0; i < TIMERS; i++) {
        struct itimerspec at = {.it_value.tv_sec = 10000 + (long)(word(me, turn, 200 + i) % 1000) * 1000, .it_interval.tv_sec = (long)(word(me, turn, 300 + i) % 1000)};
        OK(timer_settime(timer[i], 0, &at, NULL));
    }
    struct itimerval real = {{(long)(word(me, turn, 400) % 1000) + 1, 0}, {10000 + (long)(word(me, turn, 401) % 1000) * 1000, 0}};
    OK(setitimer(ITIMER_REAL, &real, NULL));
    OK(prctl(PR_SET_PDEATHSIG, (int)(word(me, turn, 500) % 30 + 34)));
    OK(prctl(PR_SET_TIMERSLACK, 1000 + word(me, turn, 501) % 100000));
    OK(prctl(PR_SET_DUMPABLE, 1));
    char name[16];
    snprintf(name, sizeof name, "s%lu.%lu", me, turn % 100000);
    OK(prctl(PR_SET_NAME, name));
    umask((mode_t)(word(me, turn, 502) & 0777));
    sigset_t usual;
    sigemptyset(&usual);
    sigaddset(&usual, SIGUSR1);
    OK(sigprocmask(SIG_BLOCK, &usual, NULL));
    if (word(me, turn, 503) & 1) OK(sigqueue(getpid(), SIGUSR1, (union sigval){.sival_int = (int)(word(me, turn, 504) & 0xffff)}));
}

static void compare(unsigned long me, unsigned long turn) {
    for (int r = 0; r < RLIM_NLIMITS; r++) {
        struct rlimit limit;
        OK(getrlimit(r, &limit));
        rlim_t least = 1ul << 30;
        if (r == RLIMIT_NOFILE || r == RLIMIT_NPROC || r == RLIMIT_NICE || r == RLIMIT_RTPRIO || r == RLIMIT_CPU || r == RLIMIT_RTTIME) continue;
        if (limit.rlim_max == RLIM_INFINITY) CHECK(limit.rlim_cur == (least << 12) + word(me, turn, r) % least, "%lu: limit %d is %lu", me, r, limit.rlim_cur);
    }
    for (int n = SIGRTMIN; n <= SIGRTMAX; n++) {
        struct sigaction a;
        OK(sigaction(n, NULL, &a));
        CHECK(a.sa_handler == (word(me, turn, n) & 1 ? handler : SIG_IGN), "%lu: the handler of %d", me, n);
        CHECK((a.sa_flags & (SA_RESTART | SA_NODEFER)) == (word(me, turn, n) & 2 ? SA_RESTART : SA_NODEFER), "%lu: flags of %d are %x", me, n, a.sa_flags);
        CHECK(a.sa_mask.__val[0] == (word(me, turn, 100 + n) & ~(1ul << (SIGKILL - 1) | 1ul << (SIGSTOP - 1) | 3ul << 31)), "%lu: the mask of %d is %lx", me, n, a.sa_mask.__val[0]);
    }
    for (int i = 0; i < TIMERS; i++) {
        struct itimerspec now;
        OK(timer_gettime(timer[i], &now));
        long full = 10000 + (long)(word(me, turn, 200 + i) % 1000) * 1000;
        CHECK(now.it_value.tv_sec <= full && now.it_value.tv_sec > full - 600, "%lu: timer %d has %ld of %ld s left", me, i, now.it_value.tv_sec, full);
        CHECK(now.it_interval.tv_sec == (long)(word(me, turn, 300 + i) % 1000), "%lu: the interval of timer %d", me, i);
    }
    struct itimerval real;
    OK(getitimer(ITIMER_REAL, &real));
    long full = 10000 + (long)(word(me, turn, 401) % 1000) * 1000;
    CHECK(real.it_interval.tv_sec == (long)(word(me, turn, 400) % 1000) + 1 && real.it_value.tv_sec <= full && real.it_value.tv_sec > full - 600, "%lu: ITIMER_REAL has %ld s", me, real.it_value.tv_sec);
    int death = 0;
    OK(prctl(PR_GET_PDEATHSIG, &death));
    CHECK(death == (int)(word(me, turn, 500) % 30 + 34), "%lu: signal %d at the parent's death", me, death);
    CHECK((unsigned long)prctl(PR_GET_TIMERSLACK) == 1000 + word(me, turn, 501) % 100000, "%lu: timer slack", me);
    char name[16] = "", wanted[16];
    snprintf(wanted, sizeof wanted, "s%lu.%lu", me, turn % 100000);
    OK(prctl(PR_GET_NAME, name));
    CHECK(strcmp(name, wanted) == 0, "%lu: named %s", me, name);
    mode_t mask = umask(0);
    CHECK(mask == (word(me, turn, 502) & 0777), "%lu: umask %o", me, mask);
    sigset_t usual;
    sigemptyset(&usual);
    sigaddset(&usual, SIGUSR1);
    siginfo_t info;
    int got = sigtimedwait(&usual, &info, &(struct timespec){0, 0});
    if (word(me, turn, 503) & 1)
        CHECK(got == SIGUSR1 && info.si_value.sival_int == (int)(word(me, turn, 504) & 0xffff) && info.si_pid == getpid(), "%lu: pending is %d, value %d", me, got, info.si_value.sival_int);
    else
        CHECK(got == -1 && errno == EAGAIN, "%lu: signal %d is pending", me, got);
}

static void live(unsigned long me) {
    struct sigevent none = {.sigev_notify = SIGEV_NONE};
    for (int i = 0; i < TIMERS; i++) OK(timer_create(i == 1 ? CLOCK_REALTIME : CLOCK_MONOTONIC, &none, &timer[i]));
    for (unsigned long turn = 0;; turn++) {
        set(me, turn);
        atomic_fetch_add(&common->done, 1);
        while (atomic_load(&common->turn) == turn) work_sleep_us(1000);
        compare(me, turn);
    }
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    common = OK(mmap(NULL, sizeof *common, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    pid_t child[SIBLINGS];
    for (unsigned long me = 0; me < SIBLINGS; me++)
        if ((child[me] = OK(fork())) == 0) live(me);
    while (work_more()) {
        unsigned long turn = atomic_load(&common->turn);
        while (atomic_load(&common->done) < (turn + 1) * SIBLINGS) {
            CHECK(waitpid(-1, NULL, WNOHANG) == 0, "a sibling has ended");
            work_sleep_us(500);
        }
        work_sleep_us(30000);
        work_tick();
        atomic_fetch_add(&common->turn, 1);
    }
    for (int i = 0; i < SIBLINGS; i++) kill(child[i], SIGKILL), waitpid(child[i], NULL, 0);
    return work_end();
}
