/* flags: -O2
 * Goal: a process stays in the session that it was born in, though its parent, and the parent of that, lead ones of their own since. Method: each of
 * a chain makes the next one and then leads; every round all are asked for their sessions and parents. */
#include "work.h"
#include <sys/prctl.h>

enum { LEADER, FIRST, SECOND, LAST, CHAIN };
static pid_t pids[CHAIN];
static int questions[CHAIN][2], answers[2];
struct answer { pid_t parent, session; };

/* Makes the next one, leads a session where it is told to, and answers. */
__attribute__((noreturn)) static void serve(int me) {
    char byte;
    struct answer is;
    if (me == LEADER) OK(setsid());
    if (me < LAST) {
        pid_t next = OK(fork());
        if (next == 0) serve(me + 1);
        CHECK(read(questions[me][0], &byte, 1) == 1, "the word to lead");
        if (me != LEADER) OK(setsid());
    }
    pid_t pid = getpid();
    CHECK(write(answers[1], &pid, sizeof pid) == sizeof pid, "pid");
    OK(prctl(PR_SET_PDEATHSIG, SIGKILL));
    while (read(questions[me][0], &byte, 1) == 1) {
        is = (struct answer){getppid(), getsid(0)};
        CHECK(write(answers[1], &is, sizeof is) == sizeof is, "answer");
    }
    _exit(0);
}

int main(int argc, char **argv) {
    struct answer is;
    work_begin(argc, argv);
    for (int i = 0; i < CHAIN; i++) OK(pipe(questions[i]));
    OK(pipe(answers));
    if (OK(fork()) == 0) serve(LEADER);
    for (int i = LAST; i >= LEADER; i--) {
        if (i != LAST) CHECK(write(questions[i][1], "l", 1) == 1, "lead");
        CHECK(read(answers[0], pids + i, sizeof *pids) == sizeof *pids, "pid of %d", i);
    }
    while (work_more()) {
        for (int i = LEADER; i < CHAIN; i++) {
            pid_t parent = i == LEADER ? getpid() : pids[i - 1], session = i == LAST ? pids[LEADER] : pids[i];
            CHECK(write(questions[i][1], "q", 1) == 1 && read(answers[0], &is, sizeof is) == sizeof is, "%d does not answer", i);
            CHECK(is.parent == parent && is.session == session, "%d: parent %d, session %d", i, is.parent, is.session);
        }
        work_tick();
        work_sleep_us(500);
    }
    OK(kill(pids[LEADER], SIGKILL));
    CHECK(waitpid(pids[LEADER], NULL, 0) == pids[LEADER], "the leader");
    return work_end();
}
