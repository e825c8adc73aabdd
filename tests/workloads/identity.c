/* flags: -O2 -pthread
 * Goal: the process stays who it was. Method: write down ids, limits, directories, scheduling, names and what /proc says
 * at the start and compare every round. ARG "inherited": the group, session and parent that the process was born with. */
#include "work.h"
#include <sys/prctl.h>
#include <sys/resource.h>
extern char **environ;
static char before[65536], now[65536];
static size_t used;
static atomic_int helper_tid, end;

__attribute__((format(printf, 2, 3))) static void note(char *to, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    used += (size_t)vsnprintf(to + used, sizeof before - used, fmt, ap);
    va_end(ap);
    CHECK(used < sizeof before, "too much to note");
}
static void file(char *to, const char *path, const char *const *lines) {
    char text[32768];
    int fd = OK(open(path, O_RDONLY | O_CLOEXEC));
    size_t n = 0;
    for (ssize_t got; (got = OK(read(fd, text + n, sizeof text - 1 - n))) > 0;) n += (size_t)got;
    close(fd);
    for (size_t i = 0; i < n; i++) if (!text[i]) text[i] = '|';
    text[n] = 0;
    if (!lines) { note(to, "%s: %s\n", path, text); return; }
    for (; *lines; lines++) {
        char *at = strstr(text, *lines);
        CHECK(at, "no line %s in %s", *lines, path);
        note(to, "%s %.*s\n", path, (int)strcspn(at, "\n"), at);
    }
}
static void link_of(char *to, const char *path) { char text[PATH_MAX]; ssize_t n = OK(readlink(path, text, sizeof text)); note(to, "%s -> %.*s\n", path, (int)n, text); }

static void observe(char *to, int inherited) {
    static const char *const status[] = {"Name:", "Umask:", "Uid:", "Gid:", "Threads:", "NoNewPrivs:", "SigIgn:", NULL};
    used = 0;
    note(to, "pid %d tid %d raw %ld\n", getpid(), gettid(), syscall(SYS_getpid));
    if (inherited) note(to, "ppid %d pgrp %d sid %d\n", getppid(), getpgrp(), getsid(0));
    else note(to, "pgrp %d sid %d\n", getpgrp(), getsid(0));
    note(to, "uid %d %d gid %d %d\n", getuid(), geteuid(), getgid(), getegid());
    char cwd[PATH_MAX];
    CHECK(getcwd(cwd, sizeof cwd), "getcwd");
    note(to, "cwd %s\n", cwd);
    mode_t mask = umask(0);
    umask(mask);
    note(to, "umask %o\n", mask);
    for (int i = 0; i < RLIM_NLIMITS; i++) { struct rlimit r; OK(getrlimit(i, &r)); note(to, "limit %d %lx %lx\n", i, r.rlim_cur, r.rlim_max); }
    note(to, "nice %d policy %d\n", getpriority(PRIO_PROCESS, 0), sched_getscheduler(0));
    cpu_set_t set;
    OK(sched_getaffinity(0, sizeof set, &set));
    note(to, "cpus %d first %d\n", CPU_COUNT(&set), CPU_ISSET(0, &set) != 0);
    char name[16];
    OK(prctl(PR_GET_NAME, name));
    note(to, "comm %s dumpable %d slack %d nnp %d keepcaps %d thp %d\n", name, OK(prctl(PR_GET_DUMPABLE)), OK(prctl(PR_GET_TIMERSLACK)), OK(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)), OK(prctl(PR_GET_KEEPCAPS)), OK(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0)));
    int death, reaper;
    OK(prctl(PR_GET_PDEATHSIG, &death)), OK(prctl(PR_GET_CHILD_SUBREAPER, &reaper));
    note(to, "death signal %d subreaper %d\n", death, reaper);
    for (char **e = environ; *e; e++) note(to, "env %s\n", *e);
    file(to, "/proc/self/cmdline", NULL), file(to, "/proc/self/environ", NULL), file(to, "/proc/self/status", status), file(to, "/proc/self/auxv", (const char *const[]){NULL});
    link_of(to, "/proc/self/exe"), link_of(to, "/proc/self/cwd"), link_of(to, "/proc/self/root"), link_of(to, "/proc/self");
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/task/%d/comm", getpid(), helper_tid);
    file(to, path, NULL);
    unsigned long pid, group, session, parent;
    char text[2048], *rest;
    int fd = OK(open("/proc/self/stat", O_RDONLY | O_CLOEXEC));
    ssize_t n = OK(read(fd, text, sizeof text - 1));
    close(fd), text[n] = 0, rest = strrchr(text, ')');
    CHECK(rest && sscanf(text, "%lu", &pid) == 1 && sscanf(rest, ") %*c %lu %lu %lu", &parent, &group, &session) == 3, "stat");
    note(to, "stat %lu %.*s\n", pid, (int)(rest - strchr(text, '(')) + 1, strchr(text, '('));
    if (!inherited) note(to, "stat group %lu session %lu\n", group, session);
}

static void *helper(void *arg) {
    prctl(PR_SET_NAME, "second one");
    atomic_store(&helper_tid, gettid());
    int mine = gettid();
    for (;;) { work_sleep_us(2000); CHECK(gettid() == mine && syscall(SYS_gettid) == mine, "tid of the second thread is %d, was %d", gettid(), mine); if (atomic_load(&end)) return arg; }
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    int inherited = !strcmp(work_arg, "inherited");
    if (!inherited) setsid();
    mkdir(work_path("where"), 0700);
    OK(chdir(work_path("where")));
    umask(027);
    struct rlimit files = {200, 300}, core = {0, 4096};
    OK(setrlimit(RLIMIT_NOFILE, &files)), OK(setrlimit(RLIMIT_CORE, &core));
    OK(setpriority(PRIO_PROCESS, 0, 3));
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(0, &set);
    OK(sched_setaffinity(0, sizeof set, &set));
    OK(prctl(PR_SET_NAME, "renamed (1) x")), OK(prctl(PR_SET_TIMERSLACK, 70000)), OK(prctl(PR_SET_CHILD_SUBREAPER, 1)), OK(prctl(PR_SET_PDEATHSIG, SIGUSR2));
    signal(SIGUSR2, SIG_IGN);
    OK(setenv("ADDED_LATER", "yes", 1));
    pthread_t t;
    PT(pthread_create(&t, NULL, helper, NULL));
    while (!helper_tid) work_sleep_us(1000);
    observe(before, inherited);
    while (work_more()) {
        work_sleep_us(3000);
        observe(now, inherited);
        if (strcmp(before, now)) {
            size_t i = 0, line = 0;
            for (; before[i] == now[i]; i++) if (before[i] == '\n') line = i + 1;
            FAIL("was \"%.*s\", is \"%.*s\"", (int)strcspn(before + line, "\n"), before + line, (int)strcspn(now + line, "\n"), now + line);
        }
        work_tick();
    }
    atomic_store(&end, 1);
    PT(pthread_join(t, NULL));
    return work_end();
}
