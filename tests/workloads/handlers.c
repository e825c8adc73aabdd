/* flags: -O2 -pthread
 * Goal: every kind of signal handler gets what the kernel promises, at any moment of any call. Method: two threads and a
 * timer provoke handlers with SA_NODEFER, SA_RESETHAND, SA_ONSTACK, masks, changed contexts and jumps out of calls; each
 * checks its stack, its mask and its information; queued signals are counted, none may be lost. */
#include "work.h"
#include <poll.h>
#include <setjmp.h>
#include <sys/time.h>
#include <ucontext.h>
static _Thread_local sigjmp_buf jump;
static _Thread_local volatile int armed, depth, deepest;
static _Thread_local char *alt;
static _Thread_local volatile unsigned once, onstack, sent, got;
static atomic_ulong jumps, ticks;
static atomic_int end;
enum { NODEFER = 1, ONCE = 2, QUEUED = 3, BLOCKER = 4, JUMP = 5, ALT_BYTES = 1 << 16 };
#define RT(kind) (SIGRTMIN + 4 + (kind))
static int blocked(int n) { sigset_t now; PT(pthread_sigmask(SIG_BLOCK, NULL, &now)); return sigismember(&now, n); }
static void on_tick(int n) { int e = errno; atomic_fetch_add(&ticks, 1); CHECK(n == SIGALRM && blocked(n), "mask of the timer's handler"); sched_yield(); errno = e; }
static void on_nodefer(int n) {
    CHECK(!blocked(n), "SA_NODEFER blocked its signal");
    if (++depth > deepest) deepest = depth;
    if (depth < 3) PT(pthread_kill(pthread_self(), n));
    depth--;
}
static void on_once(int n) {
    struct sigaction now;
    OK(sigaction(n, NULL, &now));
    CHECK(now.sa_handler == SIG_DFL, "SA_RESETHAND");
    CHECK(now.sa_flags & SA_SIGINFO && sigismember(&now.sa_mask, SIGUSR2), "SA_RESETHAND took more than the handler: flags %x", now.sa_flags);
    once++;
}
static void on_queued(int n, siginfo_t *info, void *context) {
    (void)context;
    CHECK(info->si_signo == n && info->si_code == SI_QUEUE && info->si_value.sival_int == (int)++got, "queued signal %d has value %d", (int)got, info->si_value.sival_int);
    CHECK(blocked(n) && blocked(SIGUSR2) && !blocked(RT(BLOCKER)), "sa_mask");
}
static void on_alt(int n) {
    char here;
    CHECK(&here >= alt && &here < alt + ALT_BYTES, "SA_ONSTACK");
    CHECK(blocked(n), "mask");
    onstack++;
}
static void on_blocker(int n, siginfo_t *info, void *context) { (void)n, (void)info; sigaddset(&((ucontext_t *)context)->uc_sigmask, SIGUSR2); }
static void on_ill(int n, siginfo_t *info, void *context) { (void)n, (void)info; ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] += 2; }
static void on_jump(int n) { (void)n; if (armed) armed = 0, atomic_fetch_add(&jumps, 1), siglongjmp(jump, 7); }
static void install(int n, void *handler, int flags, int also) {
    struct sigaction a = {.sa_sigaction = handler, .sa_flags = flags};
    if (also) sigaddset(&a.sa_mask, also);
    OK(sigaction(n, &a, NULL));
}
static void *worker(void *arg) {
    int fds[2];
    OK(pipe2(fds, O_CLOEXEC));
    alt = malloc(ALT_BYTES);
    stack_t s = {.ss_sp = alt, .ss_size = ALT_BYTES};
    OK(sigaltstack(&s, NULL));
    int first = RT(ONCE) + (arg ? 10 : 0);
    while (!atomic_load(&end)) {
        deepest = 0;
        PT(pthread_kill(pthread_self(), RT(NODEFER)));
        CHECK(deepest == 3 && depth == 0, "SA_NODEFER nested %d deep", deepest);
        unsigned before = once;
        struct sigaction now;
        install(first, on_once, SA_RESETHAND | SA_SIGINFO, SIGUSR2);
        PT(pthread_kill(pthread_self(), first));
        CHECK(once == before + 1, "SA_RESETHAND ran %u times", once - before);
        OK(sigaction(first, NULL, &now));
        CHECK(now.sa_handler == SIG_DFL, "SA_RESETHAND left its handler");
        for (int i = 0; i < 5; i++) {
            PT(pthread_sigqueue(pthread_self(), RT(QUEUED), (union sigval){.sival_int = (int)++sent}));
            getppid();
        }
        CHECK(sent == got, "%u queued signals sent, %u came", sent, got);
        before = onstack;
        PT(pthread_kill(pthread_self(), SIGUSR2));
        CHECK(onstack == before + 1, "SA_ONSTACK handler");
        sigset_t others;
        sigemptyset(&others), sigaddset(&others, SIGALRM), sigaddset(&others, SIGUSR1);
        PT(pthread_sigmask(SIG_BLOCK, &others, NULL)); /* another handler that is entered first would put its mask back */
        PT(pthread_kill(pthread_self(), RT(BLOCKER)));
        CHECK(blocked(SIGUSR2), "a mask changed in the context was lost");
        sigaddset(&others, SIGUSR2);
        PT(pthread_sigmask(SIG_UNBLOCK, &others, NULL));
        __asm__ volatile("ud2");
        char c;
        switch (sigsetjmp(jump, 1)) {
        case 0: armed = 1; (atomic_load(&ticks) & 1) ? (void)nanosleep(&(struct timespec){0, 2000000}, NULL) : (void)poll(&(struct pollfd){fds[0], POLLIN, 0}, 1, 2); armed = 0; break;
        case 7: CHECK(!blocked(SIGUSR1) && !blocked(SIGALRM) && !blocked(SIGUSR2), "mask after a jump out of a handler"); break;
        }
        CHECK(read(fds[0], &c, 0) == 0, "read");
        if (!arg) work_tick();
    }
    free((OK(sigaltstack(&(stack_t){.ss_flags = SS_DISABLE}, NULL)), alt));
    return NULL;
}
int main(int argc, char **argv) {
    pthread_t t[2];
    work_begin(argc, argv);
    install(SIGALRM, on_tick, SA_RESTART, 0), install(SIGUSR1, on_jump, 0, 0), install(SIGUSR2, on_alt, SA_ONSTACK | SA_RESTART, 0);
    install(RT(NODEFER), on_nodefer, SA_NODEFER | SA_RESTART, 0), install(RT(QUEUED), on_queued, SA_SIGINFO | SA_RESTART, SIGUSR2);
    install(RT(BLOCKER), on_blocker, SA_SIGINFO | SA_RESTART, 0), install(SIGILL, on_ill, SA_SIGINFO, 0);
    for (long i = 0; i < 2; i++) PT(pthread_create(&t[i], NULL, worker, (void *)i));
    OK(setitimer(ITIMER_REAL, &(struct itimerval){{0, 150}, {0, 150}}, NULL));
    while (work_more()) {
        for (int i = 0; i < 2; i++) PT(pthread_kill(t[i], SIGUSR1));
        struct timespec z = {0, 400000};
        while (nanosleep(&z, &z) && errno == EINTR);
    }
    atomic_store(&end, 1);
    for (int i = 0; i < 2; i++) PT(pthread_join(t[i], NULL));
    CHECK(atomic_load(&jumps) > 3, "only %lu jumps", atomic_load(&jumps));
    return work_end();
}
