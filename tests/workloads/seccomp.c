/* flags: -O2 -pthread
 * Goal: a process that lays a filter on its calls (seccomp) lives on: no call of holo's own ends it, at a cut or at any other time.
 * Method: children get filters that kill for every call that the child itself does not make, by prctl, by seccomp, in strict mode and
 * in one thread of several; some exit by themselves, some run a program that gets a stricter filter first. One is trapped instead, and its
 * handler says what comes out of a call, as in browsers' sandboxes. Epochs come all the time. */
#include "work.h"
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <ucontext.h>

enum { CALLS_MAX = 40 };
static unsigned otherwise = SECCOMP_RET_KILL_PROCESS;

static void filter(const int *calls, int count, int by_prctl, unsigned flags) {
    struct sock_filter code[2 * CALLS_MAX + 8];
    int n = 0;
    code[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (int i = 0; i < count; i++) {
        code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)calls[i], 0, 1);
        code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    }
    code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, otherwise);
    struct sock_fprog program = {.len = (unsigned short)n, .filter = code};
    OK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    if (by_prctl) OK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
    else OK((int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program));
}
#define FILTER(by_prctl, flags, ...) do { const int calls_[] = {__VA_ARGS__}; filter(calls_, sizeof calls_ / sizeof *calls_, by_prctl, flags); } while (0)

/* Calls that the filters of this file know, over a time in which epochs are cut. */
static void spin(int fd, int ms) {
    char byte;
    for (int i = 0; i < ms; i++) {
        CHECK(pread(fd, &byte, 1, 0) == 0, "pread");
        for (volatile int j = 0; j < 100000; j++) {}
    }
}

static int by_prctl(int fd) { FILTER(1, 0, SYS_pread64, SYS_exit_group); spin(fd, 20); return 0; }
static int by_seccomp(int fd) { FILTER(0, 0, SYS_pread64, SYS_exit_group); spin(fd, 20); return 0; }
static int at_once(int fd) { (void)fd; FILTER(0, 0, SYS_exit_group); return 0; }

static int strict(int fd) {
    char byte;
    int ends[2];
    (void)fd;
    OK(pipe(ends));
    OK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT));
    for (int i = 0; i < 20; i++) {
        if (write(ends[1], "x", 1) != 1 || read(ends[0], &byte, 1) != 1) syscall(SYS_exit, 9);
        for (volatile int j = 0; j < 100000; j++) {}
    }
    syscall(SYS_exit, 0);
    return 9;
}

static void *confined(void *fd) {
    FILTER(0, 0, SYS_pread64, SYS_exit_group);
    spin(*(int *)fd, 20);
    _exit(0);
}
static int in_a_thread(int fd) {
    pthread_t thread;
    PT(pthread_create(&thread, NULL, confined, &fd));
    for (;;) spin(fd, 1);
}

/* What the loader and libc call until main, and a true program then; no connect, no sigprocmask, no kill. */
static int program(int fd) {
    (void)fd;
    FILTER(0, 0, SYS_execve, SYS_brk, SYS_mmap, SYS_munmap, SYS_mprotect, SYS_openat, SYS_read, SYS_pread64, SYS_close, SYS_fstat,
           SYS_newfstatat, SYS_arch_prctl, SYS_set_tid_address, SYS_set_robust_list, SYS_rseq, SYS_prlimit64, SYS_getrandom, SYS_access,
           SYS_exit_group, SYS_write, SYS_lseek, SYS_ioctl, SYS_statfs);
    execl("/bin/true", "true", NULL);
    return 9;
}

static void answer(int signal, siginfo_t *info, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    if (signal != SIGSYS || info->si_code != 1 || info->si_errno != 0 || (greg_t)info->si_call_addr != registers[REG_RIP] || info->si_syscall != registers[REG_RAX]) _exit(8);
    registers[REG_RAX] = -EXDEV;
}

/* What is passed is not on the stack. */
static struct sigaction quiet = {.sa_handler = SIG_IGN}, before, answers = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO | SA_NODEFER};
static struct timespec moment = {0, 1000};
static struct stat found;
static sigset_t most;

static int trapped(int fd) {
    static int one = 1;
    OK(sigaction(SIGSYS, &answers, NULL));
    otherwise = SECCOMP_RET_TRAP;
    FILTER(0, 0, SYS_pread64, SYS_exit_group, SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_rt_sigreturn);
    if (syscall(SYS_rt_sigaction, SIGUSR1, NULL, &before, 8) || sigaction(SIGUSR1, &quiet, NULL)) return 1;
    sigfillset(&most), sigdelset(&most, SIGSYS);
    if (sigprocmask(SIG_BLOCK, &most, NULL)) return 2;
    if (ppoll(NULL, 0, &moment, NULL) != -1 || errno != EXDEV) return 3;
    if (clock_nanosleep(CLOCK_MONOTONIC, 0, &moment, NULL) != EXDEV) return 4;
    if (fstat(fd, &found) != -1 || errno != EXDEV) return 5;
    if (setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one) != -1 || errno != EXDEV) return 6;
    if (read(fd, &found, 1) != -1 || errno != EXDEV) return 7;
    spin(fd, 20);
    return 0;
}

int main(int argc, char **argv) {
    static const struct { int (*run)(int); const char *what; } ways[] = {
        {by_prctl, "filter by prctl"}, {by_seccomp, "filter by seccomp"}, {at_once, "end after the filter"},
        {strict, "strict mode"}, {in_a_thread, "filter of a thread"}, {program, "program under a filter"},
        {trapped, "filter that traps"},
    };
    work_begin(argc, argv);
    int fd = OK(open(work_path("empty"), O_RDWR | O_CREAT | O_TRUNC, 0600));
    while (work_more()) {
        for (unsigned i = 0; i < sizeof ways / sizeof *ways; i++) {
            int status;
            pid_t child = OK(fork());
            if (child == 0) _exit(ways[i].run(fd));
            CHECK(waitpid(child, &status, 0) == child, "waitpid");
            CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%s: status %#x", ways[i].what, status);
        }
        work_tick();
    }
    return work_end();
}
