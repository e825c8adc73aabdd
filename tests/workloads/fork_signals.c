/* flags: -O2 -pthread
 * Goal: no signal ends a call that the kernel always makes again.
 * Method: processes are made while a timer and ended children interrupt, by handlers without SA_RESTART; each must be made, and
 * each signal must come. */
#include "work.h"
#include <sys/time.h>

static volatile sig_atomic_t ticks, ended;

static void on_signal(int signal) {
    if (signal == SIGALRM) ticks++;
    else ended++;
}

/* A child that has ended by the time that the next one is made. */
static void make(int turn) {
    pid_t pid = turn % 2 ? fork() : (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    if (pid == 0) _exit(turn % 100);
    CHECK(pid > 0, "process %d", turn);
}

int main(int argc, char **argv) {
    struct sigaction action = {.sa_handler = on_signal};
    struct itimerval often = {{0, 700}, {0, 700}};
    work_begin(argc, argv);
    OK(sigaction(SIGALRM, &action, NULL));
    OK(sigaction(SIGCHLD, &action, NULL));
    OK(setitimer(ITIMER_REAL, &often, NULL));
    while (work_more()) {
        int before = ticks, status, left = 40;
        for (int turn = 0; turn < left; turn++) make(turn);
        while (left > 0) {
            pid_t pid = waitpid(-1, &status, 0);
            if (pid < 0 && errno == EINTR) continue;
            CHECK(pid > 0 && WIFEXITED(status), "waitpid %d: %x", pid, status);
            left--;
        }
        CHECK(ticks > before && ended > 0, "signals: %d to %d, %d", before, (int)ticks, (int)ended);
        work_tick();
    }
    return work_end();
}
