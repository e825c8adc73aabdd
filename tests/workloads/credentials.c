/* flags: -O2
 * Goal: processes are who they were: the users and groups that files are reached as, the capabilities that they may ever have (the bounding
 * set) and hand to programs (ambient ones), also as ordinary users; who may look at them, and what the death of their parent tells. Method: children that became somebody else read all of it
 * every round and compare it with the first time. Only root can become somebody else. */
#include "work.h"
#include <sys/prctl.h>

enum { KINDS = 3, NET_BIND = 10, CHOWN = 0, SYS_TIME = 25 };
struct header { uint32_t version; int pid; };
struct sets { uint32_t effective, permitted, inheritable; };

static void status(char *text, size_t room) {
    static const char *lines[] = {"\nUid:", "\nGid:", "\nGroups:", "\nCapInh:", "\nCapPrm:", "\nCapEff:", "\nCapBnd:", "\nCapAmb:"};
    char all[4096];
    int fd = OK(open("/proc/self/status", O_RDONLY | O_CLOEXEC));
    ssize_t got = OK(read(fd, all, sizeof all - 1));
    all[got] = 0, text[0] = 0;
    close(fd);
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        const char *line = strstr(all, lines[i]);
        if (line) strncat(text, line, strcspn(line + 1, "\n") + 1 < room - strlen(text) - 1 ? strcspn(line + 1, "\n") + 1 : 0);
    }
}

static void become(int kind) {
    struct header header = {0x20080522, 0};
    struct sets sets[2];
    OK(prctl(PR_CAPBSET_DROP, SYS_TIME, 0, 0, 0));
    if (kind == 0) { /* root without some of it */
        OK((int)syscall(SYS_capget, &header, sets));
        sets[0].effective &= ~(1u << CHOWN), sets[0].inheritable |= 1u << NET_BIND;
        OK((int)syscall(SYS_capset, &header, sets));
        OK((int)syscall(SYS_setfsgid, 77));
    } else { /* an ordinary user, with something or nothing of root's */
        OK(prctl(PR_SET_KEEPCAPS, kind == 1, 0, 0, 0));
        OK(setresgid(1001, 1002, 1003)), OK((int)syscall(SYS_setfsgid, 1004));
        OK(setresuid(2001, 2002, 2003));
        if (kind == 1) {
            memset(sets, 0, sizeof sets);
            sets[0].effective = sets[0].permitted = sets[0].inheritable = 1u << NET_BIND;
            OK((int)syscall(SYS_capset, &header, sets));
            OK(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, NET_BIND, 0, 0));
        } else OK((int)syscall(SYS_setfsuid, 2003));
    }
    /* Both are lost when a process becomes another user. */
    OK(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0));
    OK(prctl(PR_SET_PDEATHSIG, SIGKILL));
}

__attribute__((noreturn)) static void serve(int kind, int from, int to) {
    char first[1024], now[1024], byte;
    int signal;
    become(kind);
    status(first, sizeof first);
    while (read(from, &byte, 1) == 1) {
        status(now, sizeof now);
        CHECK(!strcmp(first, now), "kind %d was%s\nand is%s", kind, first, now);
        OK(prctl(PR_GET_PDEATHSIG, &signal));
        CHECK(signal == SIGKILL && prctl(PR_GET_DUMPABLE) == 1, "signal %d at the parent's death", signal);
        CHECK(write(to, &byte, 1) == 1, "answer");
    }
    _exit(0);
}

int main(int argc, char **argv) {
    int to[KINDS][2], from[KINDS][2], kinds = geteuid() == 0 ? KINDS : 0;
    char byte = 'q';
    work_begin(argc, argv);
    for (int i = 0; i < kinds; i++) {
        OK(pipe(to[i])), OK(pipe(from[i]));
        if (OK(fork()) == 0) serve(i, to[i][0], from[i][1]);
    }
    while (work_more()) {
        for (int i = 0; i < kinds; i++)
            CHECK(write(to[i][1], &byte, 1) == 1 && read(from[i][0], &byte, 1) == 1, "kind %d is gone", i);
        work_tick();
        work_sleep_us(1000);
    }
    return work_end();
}
