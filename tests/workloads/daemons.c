/* flags: -O2
 * Goal: a program that makes itself a daemon stays part of the application: its parent executed a program, forked, and is gone at once.
 * Method: there are some, one after the other, each of which is asked and answers in every round through a socket that it inherited;
 * one was made by a process that executed another program afterwards. */
#include "work.h"
#include <poll.h>
#include <sys/socket.h>
enum { DAEMONS = 4, ITS_END = 100 };
static char self[PATH_MAX];

/* Until nobody asks any more. */
static void answer(void) {
    uint64_t word;
    setsid();
    for (int i = 3; i < ITS_END; i++) close(i);
    while (read(ITS_END, &word, sizeof word) == sizeof word) {
        word = work_mix(word + (uint64_t)getpid());
        if (write(ITS_END, &word, sizeof word) != sizeof word) break;
    }
    _exit(0);
}

static int begin(const char *how, pid_t *pid) {
    int pair[2], status;
    OK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair));
    pid_t middle = OK(fork());
    if (!middle) {
        OK(dup2(pair[1], ITS_END));
        execl(self, "daemons", how, NULL);
        _exit(9);
    }
    CHECK(waitpid(middle, &status, 0) == middle && status == 0, "its parent ends with %x", status);
    close(pair[1]);
    CHECK(read(pair[0], pid, sizeof *pid) == sizeof *pid, "its pid");
    return pair[0];
}

static int daemon_main(int executes) {
    pid_t pid = fork();
    if (pid < 0) return 8;
    if (!pid && executes && fork()) _exit(0);
    if (!pid) {
        pid = getpid();
        if (write(ITS_END, &pid, sizeof pid) == sizeof pid) answer();
        _exit(7);
    }
    if (executes) execl("/bin/true", "true", NULL);
    return 0;
}

int main(int argc, char **argv) {
    if (argc == 2 && !strncmp(argv[1], "--", 2)) return daemon_main(!strcmp(argv[1], "--executes"));
    work_begin(argc, argv);
    OK(readlink("/proc/self/exe", self, sizeof self - 1));
    int ends[DAEMONS] = {0};
    pid_t pids[DAEMONS];
    for (uint64_t round = 0; work_more(); round++) {
        /* One is new now and then. */
        int which = (int)(round / 200) % DAEMONS;
        if (round % 200 == 0) {
            if (ends[which]) close(ends[which]);
            ends[which] = begin(which ? "--forks" : "--executes", &pids[which]);
        }
        for (int i = 0; i < DAEMONS && ends[i]; i++) {
            uint64_t word = round;
            CHECK(write(ends[i], &word, sizeof word) == sizeof word, "daemon %d is gone", i);
            struct pollfd answer = {.fd = ends[i], .events = POLLIN};
            CHECK(OK(poll(&answer, 1, 15000)) == 1, "daemon %d does not answer", i);
            CHECK(read(ends[i], &word, sizeof word) == sizeof word, "daemon %d has ended", i);
            CHECK(word == work_mix(round + (uint64_t)pids[i]), "daemon %d answers wrongly", i);
        }
        work_tick();
        work_sleep_us(2000);
    }
    return work_end();
}
