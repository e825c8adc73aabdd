/* flags: -O2 -pthread
 * Goal: a tracer hears of the signals that the traced process gets from the application, and of no other; tracer and traced go on as fast as
 * ever. Method: children that have themselves traced, and send themselves signals in turn; what stops them is compared, and passed
 * over. */
#include "work.h"
#include <sys/ptrace.h>

enum { SIGNALS = 20 };

__attribute__((noreturn)) static void traced(void) {
    OK(ptrace(PTRACE_TRACEME, 0, NULL, NULL));
    for (int i = 0; i < SIGNALS; i++) {
        OK(raise(SIGRTMIN + i % 8));
        work_sleep_us(200);
    }
    _exit(7);
}

static void trace(pid_t pid) {
    int status, rounds = 0;
    for (;; rounds++) {
        CHECK(waitpid(pid, &status, 0) == pid, "waitpid");
        if (!WIFSTOPPED(status)) break;
        CHECK(WSTOPSIG(status) == SIGRTMIN + rounds % 8, "stop %d is by signal %d", rounds, WSTOPSIG(status));
        OK(ptrace(PTRACE_CONT, pid, NULL, NULL));
    }
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7 && rounds == SIGNALS, "after %d stops it ended with %x", rounds, status);
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    while (work_more()) {
        pid_t pid = OK(fork());
        if (pid == 0) traced();
        int64_t before = work_now_us(CLOCK_MONOTONIC);
        trace(pid);
        int64_t took = work_now_us(CLOCK_MONOTONIC) - before;
        CHECK(took < SIGNALS * 2000 + work_slack_us(), "it took %ld us", (long)took);
        work_tick();
        work_sleep_us(500);
    }
    return work_end();
}
