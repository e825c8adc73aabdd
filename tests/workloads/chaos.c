/* flags: -O2 -pthread
 * Goal: whatever an application does, in whatever order, stays what it is.
 * Method: workers that fork, execute, open, map, send and signal at random, by a seed, and compare all of it with what they know.
 * usage: chaos DIR SEED */
#include "chaos_memory.h"
#include "chaos_files.h"
#include "chaos_channels.h"
#include "chaos_signals.h"
#include "chaos_processes.h"

static void (*const op[])(void) = {
    op_zone, op_zone, op_zone, op_heap, op_heap, op_file, op_file, op_file, op_channel, op_channel, op_channel, op_channel, op_pass,
    op_queue, op_handle, op_clock, op_timer, op_sleep, op_child, op_thread, op_attributes,
};

static void check_all(void) {
    memory_check();
    files_check();
    channels_check();
    watcher_check();
    ledger_add(3);
}

static void worker_begin(int index, uint64_t seed) {
    me = index, random_state = seed;
    my_parent = getppid(), my_pid = getpid();
    for (int i = 0; i < FILES; i++) file[i].fd = -1;
    watcher = OK(epoll_create1(EPOLL_CLOEXEC));
    signals_begin();
    umask(022);
}

/* Waits for what is left, so that the next one finds none of it. */
static void worker_rest(void) {
    int status;
    files_close();
    for (int i = 0; i < THREADS; i++) {
        if (!counter[i].running) continue;
        atomic_store(&counter[i].stop, 1);
        PT(pthread_join(counter[i].thread, NULL));
    }
    for (int i = 0; i < CHILDREN; i++) {
        if (!child[i].pid) continue;
        CHECK(waitpid(child[i].pid, &status, 0) == child[i].pid, "waitpid");
        expect_status(child[i].pid, status, child[i].status);
    }
    CHECK(waitpid(-1, &status, 0) < 0 && errno == ECHILD, "a child that nobody made");
}

static void *execute(void *argv) {
    execv(program[0], argv);
    FAIL("execv");
}

static void worker(int index, uint64_t seed) {
    worker_begin(index, seed);
    for (uint64_t step = 1;; step++) {
        op[below(sizeof op / sizeof *op)]();
        if (step % 32 == 0) check_all();
        if (step % 64 == 0) op_shell();
        atomic_fetch_add(&ledger->steps[me], 1);
        if (!work_more()) {
            worker_rest();
            atomic_store(&ledger->ends_with[me], 0);
            exit(0);
        }
        if (below(600) == 0) { /* it ends by itself, with a status that is known before */
            worker_rest();
            int status = below(128);
            atomic_store(&ledger->ends_with[me], status << 8);
            exit(status);
        }
    }
}

static pid_t worker_start(int index) {
    uint64_t seed = roll();
    atomic_store(&ledger->ends_with[index], -1);
    pid_t pid = OK(fork());
    if (pid == 0) worker(index, seed);
    return pid;
}

/* A worker that was killed leaves children behind; those may still be using its files. */
static void reap_adopted(pid_t *pid) {
    int status;
    for (;;) {
        siginfo_t info = {0};
        if (waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) < 0 || info.si_pid == 0) return;
        for (int i = 0; i < WORKERS; i++)
            if (pid[i] == info.si_pid) {
                CHECK(waitpid(pid[i], &status, 0) == pid[i], "waitpid");
                int expected = atomic_load(&ledger->ends_with[i]);
                CHECK(expected >= 0 && status == expected, "worker %d ended with %x, not %x", i, status, expected);
                pid[i] = work_more() ? worker_start(i) : 0;
                info.si_pid = 0;
                break;
            }
        if (info.si_pid) CHECK(waitpid(info.si_pid, &status, 0) == info.si_pid, "waitpid");
    }
}

/* One that runs in a thread which is not the first: the program that follows has the number of the first. */
static void execute_in_thread(void) {
    pid_t pid = OK(fork());
    if (pid == 0) {
        char a[24];
        snprintf(a, sizeof a, "%d", getpid());
        char *argv[] = {program[0], work_dir, "same", a, NULL};
        pthread_t thread;
        PT(pthread_create(&thread, NULL, execute, argv));
        for (;;) pause();
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid, "waitpid");
    expect_status(pid, status, 5 << 8);
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    program = argv;
    if (argc == 6 && !strcmp(argv[2], "exec")) return executed_main(argv);
    if (argc == 4 && !strcmp(argv[2], "same")) return atoi(argv[3]) == getpid() && getpid() == gettid() ? 5 : 6;
    random_state = strtoull(work_arg, NULL, 10);
    ledger = OK(mmap(NULL, sizeof *ledger, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    pthread_mutexattr_t attributes;
    PT(pthread_mutexattr_init(&attributes));
    PT(pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED));
    PT(pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST));
    PT(pthread_mutex_init(&ledger->lock, &attributes));
    /* The first process adopts what its workers leave. */
    OK(prctl(PR_SET_CHILD_SUBREAPER, 1));
    pid_t pid[WORKERS];
    for (int i = 0; i < WORKERS; i++) pid[i] = worker_start(i);
    for (unsigned long done = 0; work_more();) {
        unsigned long steps = 0;
        work_sleep_us(5000);
        reap_adopted(pid);
        if (below(40) == 0) execute_in_thread();
        if (below(100) == 0) {
            int i = below(WORKERS);
            OK(kill(pid[i], SIGKILL));
            /* It may have ended by itself at this very moment. */
            int status;
            CHECK(waitpid(pid[i], &status, 0) == pid[i], "waitpid");
            CHECK(status == SIGKILL || status == atomic_load(&ledger->ends_with[i]), "worker %d ended with %x", i, status);
            pid[i] = worker_start(i);
        }
        for (int i = 0; i < WORKERS; i++) steps += atomic_load(&ledger->steps[i]);
        if (steps > done + 100) done = steps, work_tick();
    }
    /* All end by themselves now. */
    for (int tries = 0;; tries++) {
        int left = 0;
        reap_adopted(pid);
        for (int i = 0; i < WORKERS; i++) left += pid[i] != 0;
        if (!left) break;
        CHECK(tries < 4000, "a worker does not end");
        work_sleep_us(5000);
    }
    ledger_add(0);
    return work_end();
}
