/* Children of every sort: forked, executed, spawned, killed, waited for late, not at all; threads; the process's own attributes. */
#include "chaos.h"

extern char **environ;
enum { CHILDREN = 5, THREADS = 4 };
static struct { pid_t pid; int status; } child[CHILDREN];
struct counter { pthread_t thread; int running; atomic_int stop; uint64_t sum, times, seed; };
static struct counter counter[THREADS];
static pthread_mutex_t pair_lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned long pair_a, pair_b;
static _Thread_local uint64_t own;

static void expect_status(pid_t pid, int status, int expected) {
    CHECK(status == expected, "child %d ended with %x, not %x", pid, status, expected);
}

/* In a child: all that it inherited, while its parent waits for its word, then its status. */
static void child_main(uint64_t seed, int done) {
    pid_t adopter = my_parent, parent = getppid();
    CHECK((parent == my_pid || parent == adopter) && getpid() != my_pid && getpid() == gettid(), "ids of a child: %d, its parent %d", getpid(), parent);
    my_parent = my_pid, my_pid = getpid();
    random_state = seed;
    memory_check();
    files_check_in_child(adopter);
    channels_check();
    ledger_add(1);
    CHECK(write(done, "d", 1) == 1, "word to the parent");
    if (below(2)) work_sleep_us(below(5000));
    for (int i = 0; i < 5; i++) op_heap();
    _exit(seed & 127);
}

/* argv: program DIR exec SEED FD WORDS: what an executed program finds. */
static int executed_main(char **argv) {
    uint64_t seed = strtoull(argv[3], NULL, 10), words = strtoull(argv[5], NULL, 10), text[64];
    const char *said = getenv("CHAOS");
    CHECK(said && !strcmp(said, argv[3]), "environment: %s", said ? said : "none");
    int fd = atoi(argv[4]);
    for (uint64_t at = 0; fd >= 0 && at < words; at += 64) {
        ssize_t got = OK(pread(fd, text, sizeof text, at * 8));
        for (ssize_t k = 0; k < got / 8; k++) CHECK(text[k] == word(seed, at + k), "inherited file, word %lu", at + k);
    }
    work_sleep_us(seed % 4000);
    return seed & 127;
}

/* Starts this program anew in one of four ways; the file's content follows from the seed. */
static pid_t start_executed(uint64_t seed, int fd, uint64_t words) {
    char a[24], b[16], c[24], e[40];
    snprintf(a, sizeof a, "%lu", seed), snprintf(b, sizeof b, "%d", fd), snprintf(c, sizeof c, "%lu", words), snprintf(e, sizeof e, "CHAOS=%lu", seed);
    char *argv[] = {program[0], work_dir, "exec", a, b, c, NULL}, *env[] = {e, NULL};
    pid_t pid;
    if (below(2)) {
        PT(posix_spawn(&pid, program[0], NULL, NULL, argv, env));
        return pid;
    }
    pid = below(2) ? OK(vfork()) : OK(fork());
    if (pid == 0) {
        execve(program[0], argv, env);
        _exit(99);
    }
    return pid;
}

static void op_child(void) {
    int i = below(CHILDREN), status, k, done[2];
    char word;
    if (child[i].pid) {
        /* Late, early, looked at first, or waited for by name. */
        siginfo_t info = {0};
        if (below(3) == 0) {
            OK(waitid(P_PID, child[i].pid, &info, WEXITED | WNOWAIT));
            CHECK(info.si_pid == child[i].pid, "waitid");
        }
        CHECK(waitpid(child[i].pid, &status, 0) == child[i].pid, "waitpid");
        expect_status(child[i].pid, status, child[i].status);
        child[i].pid = 0;
        return;
    }
    uint64_t seed = roll();
    switch (below(4)) {
    case 0:
        OK(pipe2(done, O_CLOEXEC));
        PT(pthread_mutex_lock(&pair_lock)); /* whole in the child too */
        child[i].pid = OK(fork());
        PT(pthread_mutex_unlock(&pair_lock));
        if (child[i].pid == 0) child_main(seed, done[1]);
        child[i].status = (seed & 127) << 8;
        OK(close(done[1]));
        CHECK(read(done[0], &word, 1) == 1, "word of a child");
        OK(close(done[0]));
        break;
    case 1:
        for (k = 0; k < FILES && (file[k].fd < 0 || fcntl(file[k].fd, F_GETFD) & FD_CLOEXEC); k++) {}
        if (k < FILES) seed = file[k].seed;
        child[i].pid = start_executed(seed, k < FILES ? file[k].fd : -1, k < FILES ? file[k].words : 0);
        child[i].status = (seed & 127) << 8;
        /* It reads the file: nobody changes it meanwhile. */
        if (k < FILES) {
            CHECK(waitpid(child[i].pid, &status, 0) == child[i].pid, "waitpid");
            expect_status(child[i].pid, status, child[i].status);
            child[i].pid = 0;
        }
        break;
    case 2: /* one that waits for its end */
        child[i].pid = OK(fork());
        if (child[i].pid == 0) { /* it would wait for ever where its parent is killed before it kills */
            OK(prctl(PR_SET_PDEATHSIG, SIGKILL));
            while (getppid() == my_pid) pause();
            _exit(0);
        }
        child[i].status = below(2) ? SIGKILL : SIGTERM;
        OK(kill(child[i].pid, child[i].status));
        break;
    default: { /* a daemon: nobody's child */
        unsigned long before = atomic_load(&ledger->daemons[me]);
        pid_t first = OK(fork());
        if (first == 0) {
            pid_t second = OK(fork());
            if (second) _exit(3);
            CHECK(setsid() == getpid(), "setsid");
            work_sleep_us(seed % 3000);
            atomic_fetch_add(&ledger->daemons[me], 1);
            _exit(0);
        }
        CHECK(waitpid(first, &status, 0) == first, "waitpid");
        expect_status(first, status, 3 << 8);
        for (int tries = 0; atomic_load(&ledger->daemons[me]) == before; tries++) {
            CHECK(tries < 20000, "a daemon did not come");
            work_sleep_us(1000);
        }
    }
    }
}

/* The shell and a pipe, as programs use them. */
static void op_shell(void) {
    char order[64], said[64] = "";
    unsigned n = below(100000);
    snprintf(order, sizeof order, "echo %u | cat", n);
    FILE *out = popen(order, "re");
    CHECK(out && fgets(said, sizeof said, out) && (unsigned)atoi(said) == n, "popen said %s, not %u", said, n);
    int status = pclose(out);
    CHECK(status == 0, "pclose %x", status);
}

static void *count(void *arg) {
    struct counter *c = arg;
    own = c->seed;
    while (!atomic_load(&c->stop)) {
        PT(pthread_mutex_lock(&pair_lock));
        CHECK(pair_a == pair_b, "pair %lu, %lu", pair_a, pair_b);
        pair_a++, pair_b++;
        PT(pthread_mutex_unlock(&pair_lock));
        c->sum += work_mix(own + c->times++);
        CHECK(own == c->seed, "thread-local storage");
        if (c->times % 4 == 0) work_sleep_us(200);
    }
    return (void *)c->seed;
}

static void op_thread(void) {
    struct counter *c = &counter[below(THREADS)];
    if (!c->running) {
        *c = (struct counter){.running = 1, .seed = roll()};
        /* What is sent to the process is for the first thread. */
        sigset_t all, before;
        sigfillset(&all);
        PT(pthread_sigmask(SIG_SETMASK, &all, &before));
        PT(pthread_create(&c->thread, NULL, count, c));
        PT(pthread_sigmask(SIG_SETMASK, &before, NULL));
        return;
    }
    void *result;
    uint64_t sum = 0;
    atomic_store(&c->stop, 1);
    PT(pthread_join(c->thread, &result));
    for (uint64_t i = 0; i < c->times; i++) sum += work_mix(c->seed + i);
    CHECK(sum == c->sum && (uint64_t)result == c->seed, "a thread's sum");
    c->running = 0;
}

static void op_attributes(void) {
    static int umask_is = 022, name_is;
    static char where[PATH_MAX], is[PATH_MAX];
    char name[16], name_now[16];
    CHECK(umask(umask_is) == (mode_t)umask_is, "umask");
    if (name_is) {
        snprintf(name, sizeof name, "chaos-%d", name_is);
        OK(prctl(PR_GET_NAME, name_now));
        CHECK(!strcmp(name, name_now), "name %s", name_now);
        CHECK(getcwd(is, sizeof is) && !strcmp(is, where), "directory %s, not %s", is, where);
    }
    umask_is = below(2) ? 022 : 027;
    umask(umask_is);
    name_is = 1 + below(1000);
    snprintf(name, sizeof name, "chaos-%d", name_is);
    OK(prctl(PR_SET_NAME, name));
    OK(chdir(below(2) ? work_dir : "/"));
    CHECK(getcwd(where, sizeof where), "getcwd");
    CHECK(getpid() == my_pid && syscall(SYS_getpid) == my_pid && getppid() == my_parent, "own ids");
}
