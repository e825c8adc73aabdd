/* flags: -O2 -pthread
 * Goal: processes whose first thread has ended (pthread_exit in main) are whole applications, or parts of one. Method: the first
 * process is one; in every round it checks memory, what a pipe has, signals that wait, timers, what /proc shows of its first
 * thread, children that are spawned, forked, and execute a program in a thread when the first one has ended, and one that is such a
 * process too and is stopped and goes on. At the end the statuses of children are checked, and that the death of a parent is told
 * to whose first thread wanted that before it ended. With a second argument it is one process whose first thread ends at once (`alone`),
 * or (`later`) when DIR/leave exists. */
#include "work.h"
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/time.h>
#define BYTES (1 << 20)
static struct shared { atomic_ulong turns; atomic_int stop, told; } *shared;
static char **program;
static unsigned long stopped_at;
static pid_t counter, raw, middle, kin;
static char memory[BYTES];
static int ends[2];

static pid_t start(void *(*with)(void *), void *argument) {
    pthread_t thread;
    PT(pthread_create(&thread, NULL, with, argument));
    return getpid();
}

static void *count(void *raw_end) {
    while (!atomic_load(&shared->stop)) {
        atomic_fetch_add(&shared->turns, !raw_end);
        work_sleep_us(1000);
    }
    if (raw_end) syscall(SYS_exit, 9);
    exit(7);
}

/* What is in a file of /proc, which is the first thread's. */
static const char *shown(const char *name) {
    static char text[600];
    int fd = OK(open(name, O_RDONLY)), length = OK(read(fd, text, sizeof text - 1));
    text[length] = 0;
    close(fd);
    return text;
}

static void *execute(void *unused) {
    (void)unused;
    while (!strstr(shown("/proc/self/stat"), ") Z ")) work_sleep_us(100);
    execv(program[0], (char *[]){program[0], work_dir, "executed", NULL});
    FAIL("exec");
}

static void *mourn(void *unused) {
    (void)unused;
    sigset_t set;
    int signal;
    sigemptyset(&set), sigaddset(&set, SIGUSR1);
    PT(sigwait(&set, &signal));
    atomic_store(&shared->told, signal);
    _exit(0);
}

static void wait_for(pid_t pid, int code) {
    int status;
    CHECK(waitpid(pid, &status, 0) == pid, "waitpid");
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == code, "status %x", status);
}

static void is_a_zombie(const char *place) {
    for (int tries = 0; !strstr(shown(place), ") Z "); tries++) {
        CHECK(tries < 20000 && atomic_load(&work_rounds) == 0, "the first thread: %s", shown(place));
        work_sleep_us(1000);
    }
}

static void firsts_have_ended(void) {
    char place[64];
    snprintf(place, sizeof place, "/proc/%d/stat", raw);
    is_a_zombie("/proc/self/stat");
    is_a_zombie(place);
    CHECK(strstr(shown(place), " 768\n"), "its status: %s", shown(place));
    CHECK(!strcmp(shown("/proc/self/comm"), "first\n"), "name %s", shown("/proc/self/comm"));
    CHECK(!strcmp(shown("/proc/thread-self/comm"), "body\n"), "name %s", shown("/proc/thread-self/comm"));
}

static siginfo_t next(int signal, long ms) {
    sigset_t set;
    siginfo_t info = {0};
    struct timespec most = {ms / 1000, ms % 1000 * 1000000};
    sigemptyset(&set), sigaddset(&set, signal);
    CHECK(sigtimedwait(&set, &info, &most) == signal, "signal %d", signal);
    return info;
}

/* Those that were sent in the round before wait for the process. */
static void signals(unsigned long round) {
    if (round) {
        siginfo_t info = next(SIGUSR2, 0);
        CHECK(info.si_code == SI_USER && info.si_pid == getpid(), "code %d of %d", info.si_code, info.si_pid);
        info = next(SIGRTMIN + 3, 0);
        CHECK(info.si_code == SI_QUEUE && info.si_int == (int)round, "code %d, %d", info.si_code, info.si_int);
        CHECK(sigqueue(getpid(), SIGRTMIN + 3, (union sigval){.sival_int = round + 1}) == 0, "sigqueue");
        OK(kill(getpid(), SIGUSR2));
    } else {
        OK(sigqueue(getpid(), SIGRTMIN + 3, (union sigval){.sival_int = 1}));
        OK(kill(getpid(), SIGUSR2));
    }
    CHECK(next(SIGRTMIN + 2, 5000).si_code == SI_TIMER, "a timer's");
    CHECK(next(SIGALRM, 5000).si_code == SI_KERNEL, "an interval timer's");
}

static void contents(unsigned long round) {
    unsigned long had;
    if (round) {
        work_expect(memory, BYTES, round, "memory");
        CHECK(read(ends[0], &had, sizeof had) == sizeof had && had == round, "pipe");
    }
    work_fill(memory, BYTES, round + 1);
    had = round + 1;
    CHECK(write(ends[1], &had, sizeof had) == sizeof had, "pipe");
}

/* It is stopped for most of each round. */
static void go_on(void) {
    int status;
    CHECK(atomic_load(&shared->turns) == stopped_at, "it is not stopped");
    OK(kill(counter, SIGCONT));
    CHECK(waitpid(counter, &status, WCONTINUED) == counter && WIFCONTINUED(status), "goes on: %x", status);
    for (int tries = 0; atomic_load(&shared->turns) == stopped_at; tries++) {
        CHECK(tries < 20000, "the child does not count");
        work_sleep_us(1000);
    }
}

static void children(void) {
    pid_t pid = OK(fork());
    if (pid == 0) {
        start(execute, NULL);
        pthread_exit(NULL);
    }
    wait_for(pid, 5);
    PT(posix_spawn(&pid, program[0], NULL, NULL, (char *[]){program[0], work_dir, "executed", NULL}, environ));
    wait_for(pid, 5);
    pid_t me = getpid();
    pid = OK(fork());
    if (pid == 0) _exit(getppid() == me ? 4 : 3);
    wait_for(pid, 4);
    int status;
    if (stopped_at) go_on();
    OK(kill(counter, SIGSTOP));
    CHECK(waitpid(counter, &status, WUNTRACED) == counter && WIFSTOPPED(status), "stopped: %x", status);
    stopped_at = atomic_load(&shared->turns);
    CHECK(waitpid(-1, &status, WNOHANG) == 0, "a child has ended: %x", status);
    CHECK(!atomic_load(&shared->told), "somebody died");
}

static void *body(void *unused) {
    (void)unused;
    OK(prctl(PR_SET_NAME, "body"));
    timer_t timer;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 2};
    struct itimerspec often = {{0, 5000000}, {0, 5000000}};
    OK(timer_create(CLOCK_MONOTONIC, &event, &timer));
    OK(timer_settime(timer, 0, &often, NULL));
    OK(setitimer(ITIMER_REAL, &(struct itimerval){{0, 7000}, {0, 7000}}, NULL));
    kin = OK(fork());
    if (kin == 0) {
        OK(prctl(PR_SET_PDEATHSIG, SIGKILL));
        for (;;) pause();
    }
    while (work_more()) {
        unsigned long round = atomic_load(&work_rounds);
        firsts_have_ended();
        CHECK(gettid() != getpid(), "the first thread");
        contents(round);
        signals(round);
        children();
        work_tick();
    }
    go_on();
    atomic_store(&shared->stop, 1);
    wait_for(counter, 7);
    wait_for(raw, 9);
    int status;
    OK(kill(kin, SIGTERM));
    CHECK(waitpid(kin, &status, 0) == kin && WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM, "status %x", status);
    OK(kill(middle, SIGKILL));
    CHECK(waitpid(middle, &status, 0) == middle && WIFSIGNALED(status), "status %x", status);
    for (int tries = 0; !atomic_load(&shared->told); tries++) {
        CHECK(tries < 20000, "the death of a parent is not told");
        work_sleep_us(1000);
    }
    exit(work_end());
}

/* A process with a child that wants a signal at its death. */
static void mourned(void) {
    int ready[2];
    char byte;
    OK(pipe(ready));
    if (OK(fork()) == 0) {
        OK(prctl(PR_SET_PDEATHSIG, SIGUSR1));
        CHECK(write(ready[1], "x", 1) == 1, "ready");
        start(mourn, NULL);
        pthread_exit(NULL);
    }
    CHECK(read(ready[0], &byte, 1) == 1, "ready");
    for (;;) pause();
}

static void *tick(void *unused) {
    (void)unused;
    for (unsigned long round = 1; work_more(); round++) {
        work_fill(memory, BYTES, round);
        work_sleep_us(1000);
        work_expect(memory, BYTES, round, "memory");
        work_tick();
    }
    exit(work_end());
}

static void leave_later(void) {
    start(tick, NULL);
    while (!strcmp(work_arg, "later") && access(work_path("leave"), F_OK)) work_sleep_us(1000);
    pthread_exit(NULL);
}

int main(int argc, char **argv) {
    program = argv;
    if (argc == 3 && !strcmp(argv[2], "executed")) return getpid() == gettid() ? 5 : 6;
    work_begin(argc, argv);
    if (argc == 3) leave_later();
    shared = OK(mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    sigset_t set;
    sigemptyset(&set);
    for (int signal = SIGRTMIN; signal < SIGRTMIN + 4; signal++) sigaddset(&set, signal);
    sigaddset(&set, SIGUSR1), sigaddset(&set, SIGUSR2), sigaddset(&set, SIGALRM);
    PT(pthread_sigmask(SIG_BLOCK, &set, NULL));
    OK(pipe(ends));
    OK(prctl(PR_SET_NAME, "first"));
    if ((counter = OK(fork())) == 0) start(count, NULL), pthread_exit(NULL);
    if ((raw = OK(fork())) == 0) start(count, "raw"), syscall(SYS_exit, 3);
    if ((middle = OK(fork())) == 0) mourned();
    start(body, NULL);
    pthread_exit(NULL);
}
