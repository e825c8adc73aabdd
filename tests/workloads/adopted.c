/* flags: -O2 -pthread
 * Goal: processes that were adopted, by init or a subreaper, stay in the sessions they were born in, whose leaders live, have ended, or
 * are gone, and stay children of who adopted them. Method: each answers a question every round with its ids, compared with
 * the first answer; at the end those who adopted wait for them. */
#include "work.h"
#include <sys/prctl.h>

enum { GONE, ALIVE, ENDED, NESTED, INIT, ORPHANS };
struct answer { pid_t pid, ppid, pgid, sid; };
struct room { int to[2], from[2]; struct answer first; };
static struct room rooms[ORPHANS];
static pid_t leaders[ORPHANS], reaper;

/* An orphan: waits until it is one. */
__attribute__((noreturn)) static void serve(int which, pid_t maker) {
    struct room *room = rooms + which;
    char byte;
    while (getppid() == maker) work_sleep_us(200);
    /* Nobody else keeps the pipes open. */
    for (int i = 0; i < ORPHANS; i++) {
        close(rooms[i].to[1]), close(rooms[i].from[0]);
        if (i != which) close(rooms[i].to[0]), close(rooms[i].from[1]);
    }
    while (read(room->to[0], &byte, 1) == 1) {
        struct answer a = {getpid(), getppid(), getpgrp(), getsid(0)};
        CHECK(write(room->from[1], &a, sizeof a) == sizeof a, "answer");
    }
    _exit(40 + which);
}

static void close_all(void) {
    for (int i = 0; i < ORPHANS; i++) close(rooms[i].to[0]), close(rooms[i].to[1]), close(rooms[i].from[0]), close(rooms[i].from[1]);
}

/* Makes an orphan in the session of a leader that then does as `stay` says. */
static pid_t lead(int which, int stay) {
    pid_t leader = OK(fork());
    if (leader == 0) {
        OK(setsid());
        pid_t me = getpid();
        if (!stay) {
            if (OK(fork()) == 0) serve(which, me);
            _exit(7);
        }
        pid_t middle = OK(fork());
        if (middle == 0) {
            me = getpid();
            if (OK(fork()) == 0) serve(which, me);
            _exit(0);
        }
        CHECK(waitpid(middle, NULL, 0) == middle, "middle");
        OK(prctl(PR_SET_PDEATHSIG, SIGKILL));
        close_all();
        for (;;) pause();
    }
    return leader;
}

static void has_ended(pid_t pid) {
    siginfo_t info;
    OK(waitid(P_PID, pid, &info, WEXITED | WNOWAIT));
    CHECK(info.si_status == 7 && info.si_code == CLD_EXITED, "it ended otherwise");
}

static struct answer ask(int which) {
    struct answer a;
    CHECK(write(rooms[which].to[1], "q", 1) == 1 && read(rooms[which].from[0], &a, sizeof a) == sizeof a, "orphan %d does not answer", which);
    return a;
}

static void expect_exit(pid_t pid, int code) {
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == code, "%d ended with %x, not with code %d", pid, status, code);
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    for (int i = 0; i < ORPHANS; i++) OK(pipe(rooms[i].to)), OK(pipe(rooms[i].from));
    leaders[INIT] = lead(INIT, 0), has_ended(leaders[INIT]);
    rooms[INIT].first = ask(INIT);
    OK(prctl(PR_SET_CHILD_SUBREAPER, 1));
    leaders[GONE] = lead(GONE, 0), expect_exit(leaders[GONE], 7);
    leaders[ALIVE] = lead(ALIVE, 1);
    leaders[ENDED] = lead(ENDED, 0), has_ended(leaders[ENDED]);
    int nested[2];
    OK(pipe(nested));
    reaper = OK(fork());
    if (reaper == 0) {
        char byte;
        OK(prctl(PR_SET_CHILD_SUBREAPER, 1));
        pid_t leader = lead(NESTED, 0);
        expect_exit(leader, 7);
        CHECK(write(nested[1], &leader, sizeof leader) == sizeof leader, "nested");
        close(nested[1]);
        close_all();
        /* Its orphan ends when its questions do. */
        int status;
        CHECK(wait(&status) > 0 && WEXITSTATUS(status) == 40 + NESTED, "the adopted one");
        CHECK(read(nested[0], &byte, 1) == 0, "more");
        _exit(3);
    }
    CHECK(read(nested[0], leaders + NESTED, sizeof(pid_t)) == sizeof(pid_t), "nested");
    close(nested[0]), close(nested[1]);
    for (int i = 0; i < ORPHANS; i++) {
        struct answer a = rooms[i].first = ask(i);
        pid_t parent = i == NESTED ? reaper : i == INIT ? a.ppid : getpid();
        CHECK(a.ppid == parent && a.sid == leaders[i], "orphan %d of %d, session %d", i, a.ppid, a.sid);
    }
    while (work_more()) {
        for (int i = 0; i < ORPHANS; i++) {
            struct answer a = ask(i), *first = &rooms[i].first;
            /* Whoever init is, it is one process that is none of ours. */
            int same_parent = i == INIT ? a.ppid != getpid() && a.ppid != reaper : a.ppid == first->ppid;
            CHECK(a.pid == first->pid && same_parent && a.pgid == first->pgid && a.sid == first->sid,
                  "orphan %d: pid %d parent %d group %d session %d, was %d %d %d %d", i, a.pid, a.ppid, a.pgid, a.sid, first->pid, first->ppid, first->pgid, first->sid);
        }
        has_ended(leaders[ENDED]), has_ended(leaders[INIT]);
        work_tick();
        work_sleep_us(300);
    }
    for (int i = 0; i < ORPHANS; i++) close(rooms[i].to[1]);
    expect_exit(rooms[GONE].first.pid, 40 + GONE);
    expect_exit(rooms[ALIVE].first.pid, 40 + ALIVE);
    expect_exit(rooms[ENDED].first.pid, 40 + ENDED);
    expect_exit(reaper, 3);
    expect_exit(leaders[ENDED], 7), expect_exit(leaders[INIT], 7);
    OK(kill(leaders[ALIVE], SIGKILL));
    CHECK(waitpid(leaders[ALIVE], NULL, 0) == leaders[ALIVE], "the leader");
    CHECK(wait(NULL) == -1 && errno == ECHILD, "there are more children");
    return work_end();
}
