/* flags: -O2 -pthread
 * Goal: every way to start a program works and reports the right status and output. Method: fork, vfork, posix_spawn,
 * system, popen and each exec with the caller's own environment; the child says what it got. */
#include "work.h"
#include <spawn.h>
extern char **environ;
static char self[PATH_MAX];
static int wait_for(pid_t pid) { int s; CHECK(waitpid(pid, &s, 0) == pid, "waitpid"); CHECK(WIFEXITED(s), "status %x", s); return WEXITSTATUS(s); }
static int out[2];
static void text(const char *wanted, const char *what) {
    char got[256];
    size_t n = 0;
    close(out[1]);
    for (ssize_t r; (r = OK(read(out[0], got + n, sizeof got - 1 - n))) > 0;) n += (size_t)r;
    got[n] = 0;
    close(out[0]);
    CHECK(!strcmp(got, wanted), "%s: got \"%s\"", what, got);
}
static void into_pipe(void) { if (dup2(out[1], 1) < 0) _exit(99); }

int main(int argc, char **argv) {
    if (argc == 3 && !strcmp(argv[1], "--say")) { /* a child: own environment only */
        int n = 0;
        for (char **e = environ; *e; e++) n += strncmp(*e, "HOLO_", 5) && strncmp(*e, "LD_PRELOAD=", 11);
        const char *mine = getenv("MINE");
        printf("%s %d %s", argv[2], n, mine ? mine : "-");
        fflush(stdout);
        return 17;
    }
    work_begin(argc, argv);
    ssize_t length = OK(readlink("/proc/self/exe", self, sizeof self - 1));
    self[length] = 0;
    char *args[] = {(char *)"child", (char *)"--say", (char *)"hello", NULL}, *own[] = {(char *)"MINE=7", (char *)"PATH=/usr/bin:/bin", NULL}, *none[] = {NULL};
    while (work_more()) {
        pid_t pid;
        OK(pipe2(out, O_CLOEXEC));
        if (!(pid = OK(fork()))) { into_pipe(); execve(self, args, own); _exit(98); }
        CHECK(wait_for(pid) == 17, "fork and execve");
        text("hello 2 7", "fork and execve");
        OK(pipe2(out, O_CLOEXEC));
        if (!(pid = OK(fork()))) { into_pipe(); execve(self, args, none); _exit(98); }
        CHECK(wait_for(pid) == 17, "empty environment");
        text("hello 0 -", "empty environment");
        OK(pipe2(out, O_CLOEXEC));
        volatile int touched = 0;
        if (!(pid = vfork())) { touched = 1; dup2(out[1], 1); execve(self, args, own); _exit(98); }
        CHECK(pid > 0 && touched == 1, "a vfork child shares memory");
        CHECK(wait_for(pid) == 17, "vfork");
        text("hello 2 7", "vfork");
        OK(pipe2(out, O_CLOEXEC));
        posix_spawn_file_actions_t actions;
        PT(posix_spawn_file_actions_init(&actions));
        PT(posix_spawn_file_actions_adddup2(&actions, out[1], 1));
        PT(posix_spawn(&pid, self, &actions, NULL, args, own));
        CHECK(wait_for(pid) == 17, "posix_spawn");
        text("hello 2 7", "posix_spawn");
        CHECK(posix_spawn(&pid, "/nonexistent", NULL, NULL, args, own) == ENOENT, "posix_spawn of nothing");
        posix_spawn_file_actions_destroy(&actions);
        OK(pipe2(out, O_CLOEXEC));
        if (!(pid = OK(fork()))) { into_pipe(); execl(self, "child", "--say", "list", NULL); _exit(98); }
        CHECK(wait_for(pid) == 17, "execl");
        char b[64];
        close(out[1]);
        CHECK(read(out[0], b, 5) == 5 && !memcmp(b, "list ", 5), "execl");
        close(out[0]);
        OK(pipe2(out, O_CLOEXEC));
        int fd = OK(open(self, O_RDONLY | O_CLOEXEC));
        if (!(pid = OK(fork()))) { into_pipe(); fexecve(fd, args, own); _exit(98); }
        CHECK(wait_for(pid) == 17, "fexecve");
        close(fd);
        text("hello 2 7", "fexecve");
        CHECK(execve("/nonexistent", args, own) == -1 && errno == ENOENT, "execve of nothing");
        CHECK(system("exit 5") == 5 << 8, "system");
        FILE *f = popen("echo from popen; exit 3", "re");
        CHECK(f && fgets(b, sizeof b, f) && !strcmp(b, "from popen\n"), "popen");
        CHECK(pclose(f) == 3 << 8, "pclose");
        if (!(pid = OK(fork()))) { pid_t grand = fork(); if (!grand) _exit(9); int s; waitpid(grand, &s, 0); _exit(WEXITSTATUS(s) + 1); }
        CHECK(wait_for(pid) == 10, "grandchild");
        work_tick();
    }
    return work_end();
}
