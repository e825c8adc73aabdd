/* flags: -O2 -pthread
 * Goal: signal state survives. Method: actions with and without SA_RESTART, an alternate stack, masks per thread, and
 * blocked signals - one pending standard one, queued real-time ones with values, to the process and to a thread - that
 * stay pending for a round and are then taken and compared. */
#include "work.h"
static atomic_int restarted, interrupted, on_stack;
static char alt_stack[65536] __attribute__((aligned(64)));
static pthread_t helper;
static atomic_int helper_end;
static atomic_long helper_rounds;

static void count(int n) { atomic_fetch_add(n == SIGUSR1 ? &restarted : &interrupted, 1); }
static void on_alt(int n, siginfo_t *info, void *context) {
    (void)context;
    char here;
    CHECK(n == SIGRTMIN + 5 && info->si_code == SI_QUEUE, "siginfo of the alternate handler");
    CHECK(&here >= alt_stack && &here < alt_stack + sizeof alt_stack, "handler not on the alternate stack");
    sigset_t now;
    CHECK(pthread_sigmask(SIG_SETMASK, NULL, &now) == 0 && sigismember(&now, SIGHUP) == 1, "mask in the handler");
    atomic_fetch_add(&on_stack, 1);
}

static void action(int n, void (*handler)(int), int flags) {
    struct sigaction a = {.sa_handler = handler, .sa_flags = flags};
    OK(sigaction(n, &a, NULL));
}

static void same_action(int n, void *handler, int flags) {
    struct sigaction a;
    OK(sigaction(n, NULL, &a));
    CHECK((void *)a.sa_handler == handler, "handler of signal %d", n);
    CHECK((a.sa_flags & ~0x04000000) == flags, "flags %x of signal %d, wanted %x", a.sa_flags, n, flags);
}

static void send_value(int n, int value) { union sigval v = {.sival_int = value}; OK(sigqueue(getpid(), n, v)); }

static void *other_thread(void *arg) {
    sigset_t mine, now;
    sigemptyset(&mine);
    sigaddset(&mine, SIGRTMIN + 5);
    PT(pthread_sigmask(SIG_BLOCK, &mine, NULL));
    sigemptyset(&mine);
    sigaddset(&mine, SIGRTMIN + 8);
    PT(pthread_sigmask(SIG_BLOCK, &mine, NULL));
    while (!atomic_load(&helper_end)) {
        union sigval v = {.sival_int = (int)helper_rounds + 900};
        PT(pthread_sigqueue(pthread_self(), SIGRTMIN + 8, v));
        work_sleep_us(30000);
        PT(pthread_sigmask(SIG_SETMASK, NULL, &now));
        CHECK(sigismember(&now, SIGRTMIN + 8) == 1 && sigismember(&now, SIGHUP) == 0, "mask of the second thread");
        siginfo_t info;
        struct timespec none = {0, 0};
        CHECK(sigtimedwait(&mine, &info, &none) == SIGRTMIN + 8, "the signal queued to the thread is gone");
        CHECK(info.si_value.sival_int == (int)helper_rounds + 900 && info.si_code == SI_QUEUE, "its value %d", info.si_value.sival_int);
        helper_rounds++;
    }
    return arg;
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    sigset_t blocked, now, pending;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGTERM);
    for (int i = 0; i < 4; i++) sigaddset(&blocked, SIGRTMIN + i);
    PT(pthread_sigmask(SIG_BLOCK, &blocked, NULL));
    PT(pthread_create(&helper, NULL, other_thread, NULL)); /* inherits the mask, so that nothing reaches it by chance */
    action(SIGUSR1, count, SA_RESTART);
    action(SIGUSR2, count, 0);
    action(SIGPIPE, SIG_IGN, 0);
    struct sigaction alt = {.sa_sigaction = on_alt, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigaddset(&alt.sa_mask, SIGHUP);
    OK(sigaction(SIGRTMIN + 5, &alt, NULL));
    stack_t stack = {.ss_sp = alt_stack, .ss_size = sizeof alt_stack}, stack_now;
    OK(sigaltstack(&stack, NULL));
    for (int round = 0; work_more(); round++) {
        OK(kill(getpid(), SIGTERM));
        for (int i = 0; i < 12; i++) send_value(SIGRTMIN + i % 4, round * 100 + i);
        work_sleep_us(30000); /* a checkpoint may fall here */
        sigpending(&pending);
        CHECK(sigismember(&pending, SIGTERM) == 1, "the pending SIGTERM is gone");
        for (int n = 0; n < 4; n++)
            for (int i = n; i < 12; i += 4) {
                siginfo_t info;
                sigset_t one;
                struct timespec none = {0, 0};
                sigemptyset(&one), sigaddset(&one, SIGRTMIN + n);
                CHECK(sigtimedwait(&one, &info, &none) == SIGRTMIN + n, "a queued signal is gone");
                CHECK(info.si_value.sival_int == round * 100 + i, "queue order: value %d, wanted %d", info.si_value.sival_int, round * 100 + i);
                CHECK(info.si_pid == getpid() && info.si_uid == getuid() && info.si_code == SI_QUEUE, "sender of a queued signal");
            }
        int got;
        sigset_t term;
        sigemptyset(&term), sigaddset(&term, SIGTERM);
        CHECK(sigwait(&term, &got) == 0 && got == SIGTERM, "SIGTERM");
        int before = atomic_load(&on_stack);
        send_value(SIGRTMIN + 5, 1);
        for (int i = 0; i < 200 && atomic_load(&on_stack) == before; i++) work_sleep_us(1000);
        CHECK(atomic_load(&on_stack) == before + 1, "the alternate handler ran %d times", atomic_load(&on_stack) - before);
        OK(raise(SIGUSR1));
        OK(raise(SIGUSR2));
        CHECK(restarted == round + 1 && interrupted == round + 1, "raise: %d %d", restarted, interrupted);
        OK(raise(SIGPIPE));
        PT(pthread_sigmask(SIG_SETMASK, NULL, &now));
        for (int n = 1; n < 32; n++)
            if (n != SIGKILL && n != SIGSTOP) CHECK(sigismember(&now, n) == (n == SIGTERM), "mask bit of signal %d", n);
        OK(sigaltstack(NULL, &stack_now));
        CHECK(stack_now.ss_sp == alt_stack && stack_now.ss_size == sizeof alt_stack && !stack_now.ss_flags, "alternate stack lost");
        same_action(SIGUSR1, count, SA_RESTART);
        same_action(SIGUSR2, count, 0);
        same_action(SIGPIPE, SIG_IGN, 0);
        same_action(SIGINT, SIG_DFL, 0);
        same_action(SIGRTMIN + 5, on_alt, SA_SIGINFO | SA_ONSTACK);
        work_tick();
    }
    atomic_store(&helper_end, 1);
    PT(pthread_join(helper, NULL));
    return work_end();
}
