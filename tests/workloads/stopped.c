/* Job control without a terminal: children that are stopped in every way stay so, unseen by anybody, until they are let go
 * on; what their parent was told, or not yet, is what it is told afterwards. */
#include "work.h"
#include <poll.h>
#include <semaphore.h>

enum { TOLD, UNTOLD, THREADED, GOES_ON, SLEEPER, KINDS };

static struct shared {
    atomic_ulong turns[KINDS], other, conts[KINDS], usr1[KINDS], naps;
    atomic_int ready[KINDS];
} *shared;
static pid_t child[KINDS], parent;
static int own;
static int question[2];
static volatile sig_atomic_t chld[8];

static void on_chld(int s, siginfo_t *i, void *u) {
    (void)s, (void)u;
    if (i->si_code > 0 && i->si_code < 8) chld[i->si_code]++;
}
static void on_cont(int s) { (void)s, atomic_fetch_add(&shared->conts[own], 1); }
static void on_usr1(int s) { (void)s, atomic_fetch_add(&shared->usr1[own], 1); }

static void *other(void *arg) {
    for (unsigned turn = 0;; turn++) {
        atomic_fetch_add(&shared->other, 1);
        if (turn % 20000 == 0) usleep(100);
    }
    return arg;
}

static void handle(int signal, void (*with)(int)) {
    struct sigaction act = {.sa_handler = with, .sa_flags = SA_RESTART};
    OK(sigaction(signal, &act, NULL));
}

__attribute__((noreturn)) static void live(int kind) {
    own = kind;
    OK(close(question[1])), OK(setpgid(0, 0));
    handle(SIGCONT, on_cont), handle(SIGUSR1, on_usr1);
    if (kind == THREADED) {
        pthread_t t;
        PT(pthread_create(&t, NULL, other, NULL));
    }
    atomic_store(&shared->ready[kind], 1);
    while (getppid() == parent) {
        if (kind == SLEEPER) {
            /* It is stopped in here most of the time. Nothing but the question ends it. */
            struct pollfd in = {.fd = question[0], .events = POLLIN};
            char c;
            while (poll(&in, 1, -1) < 0) CHECK(errno == EINTR, "poll");
            ssize_t n = read(question[0], &c, 1);
            if (n == 0) break;
            CHECK(n == 1 && c == 'q', "question");
            atomic_fetch_add(&shared->naps, 1);
        }
        atomic_fetch_add(&shared->turns[kind], 1);
        if (kind != SLEEPER) usleep(100);
    }
    _exit(0);
}

static void wait_for(volatile sig_atomic_t *count, int more) {
    while (*count < more) usleep(50);
}

static int look(pid_t pid, int options, int *status) {
    siginfo_t info = {0};
    OK(waitid(P_PID, pid, &info, options | WNOHANG));
    *status = info.si_status;
    return info.si_pid == pid ? info.si_code : 0;
}

/* Stops a child by `signal`; its parent is told, or could be. */
static void stop(int kind, int signal, int told) {
    int status, before = chld[CLD_STOPPED];
    OK(kill(child[kind], signal));
    if (told) {
        CHECK(OK(waitpid(child[kind], &status, WUNTRACED)) == child[kind] && WIFSTOPPED(status) && WSTOPSIG(status) == signal, "stop %d: %x", kind, status);
    }
    wait_for(&chld[CLD_STOPPED], before + 1);
}

static void go_on(int kind, int told) {
    int status, before = chld[CLD_CONTINUED];
    unsigned long conts = atomic_load(&shared->conts[kind]);
    OK(kill(child[kind], SIGCONT));
    if (told) CHECK(OK(waitpid(child[kind], &status, WCONTINUED)) == child[kind] && WIFCONTINUED(status), "go on %d: %x", kind, status);
    wait_for(&chld[CLD_CONTINUED], before + 1);
    while (atomic_load(&shared->conts[kind]) == conts) usleep(50);
    CHECK(atomic_load(&shared->conts[kind]) == conts + 1, "SIGCONT to %d came %lu times", kind, atomic_load(&shared->conts[kind]) - conts);
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    shared = OK(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    struct sigaction act = {.sa_sigaction = on_chld, .sa_flags = SA_SIGINFO | SA_RESTART};
    OK(sigaction(SIGCHLD, &act, NULL));
    OK(pipe(question));
    parent = getpid();
    for (int kind = 0; kind < KINDS; kind++) {
        child[kind] = OK(fork());
        if (child[kind] == 0) live(kind);
        while (!atomic_load(&shared->ready[kind])) usleep(100);
    }
    while (work_more()) {
        int status;
        unsigned long usr1 = atomic_load(&shared->usr1[THREADED]);
        stop(TOLD, SIGTSTP, 1);
        stop(UNTOLD, SIGTSTP, 0);
        stop(THREADED, SIGSTOP, 1);
        /* Both stay pending, one is to be forgotten. */
        OK(kill(child[THREADED], SIGUSR1)), OK(kill(child[THREADED], SIGSTOP));
        stop(GOES_ON, SIGSTOP, 1);
        go_on(GOES_ON, 0);
        stop(SLEEPER, SIGTTIN, 1);
        int stops = chld[CLD_STOPPED], conts = chld[CLD_CONTINUED];
        unsigned long turns[KINDS], others = atomic_load(&shared->other);
        for (int kind = 0; kind < KINDS; kind++) turns[kind] = atomic_load(&shared->turns[kind]);
        int64_t until = work_now_us(CLOCK_MONOTONIC) + 12000;
        while (work_now_us(CLOCK_MONOTONIC) < until) {
            usleep(200);
            CHECK(chld[CLD_STOPPED] == stops && chld[CLD_CONTINUED] == conts, "told of %d stops, %d that go on", chld[CLD_STOPPED] - stops, chld[CLD_CONTINUED] - conts);
            for (int kind = 0; kind < KINDS; kind++)
                CHECK(kind == GOES_ON || atomic_load(&shared->turns[kind]) == turns[kind], "%d runs", kind);
            CHECK(atomic_load(&shared->other) == others, "a thread runs");
            CHECK(atomic_load(&shared->usr1[THREADED]) == usr1, "a signal is delivered");
        }
        CHECK(look(child[TOLD], WSTOPPED | WCONTINUED, &status) == 0, "told twice");
        CHECK(look(child[THREADED], WSTOPPED | WCONTINUED, &status) == 0, "told twice");
        CHECK(look(child[SLEEPER], WSTOPPED | WCONTINUED, &status) == 0, "told twice");
        CHECK(look(child[UNTOLD], WSTOPPED | WCONTINUED, &status) == CLD_STOPPED && status == SIGTSTP, "not told: %d", status);
        CHECK(look(child[UNTOLD], WSTOPPED | WCONTINUED, &status) == 0, "told twice");
        CHECK(look(child[GOES_ON], WSTOPPED | WCONTINUED, &status) == CLD_CONTINUED && status == SIGCONT, "not told: %d", status);
        CHECK(OK(write(question[1], "q", 1)) == 1, "question");
        unsigned long naps = atomic_load(&shared->naps);
        for (int kind = 0; kind < KINDS; kind++) {
            if (kind != GOES_ON) go_on(kind, 1);
        }
        for (int kind = 0; kind < KINDS; kind++)
            while (atomic_load(&shared->turns[kind]) == turns[kind]) usleep(50);
        while (atomic_load(&shared->naps) == naps || atomic_load(&shared->other) == others) usleep(50);
        while (atomic_load(&shared->usr1[THREADED]) == usr1) usleep(50);
        CHECK(atomic_load(&shared->naps) == naps + 1 && atomic_load(&shared->usr1[THREADED]) == usr1 + 1, "once");
        work_tick();
    }
    for (int kind = 0; kind < KINDS; kind++) {
        int status;
        OK(kill(child[kind], SIGKILL));
        CHECK(OK(waitpid(child[kind], &status, 0)) == child[kind] && WIFSIGNALED(status), "end of %d: %x", kind, status);
    }
    return work_end();
}
