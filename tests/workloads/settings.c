/* flags: -O2 -pthread
 * Goal: what a program asked the kernel for once holds for good: barriers between threads, tiles of AMX, NUMA policy, priority of input and
 * output, what a core dump has, who ends first without memory; and a child without handlers has none, but is parked as others are.
 * Method: all of it is set at the start and used and read every round. What this node has not is left out, as it is without holo. */
#include "work.h"
#include <linux/ioprio.h>
#include <linux/membarrier.h>
#include <linux/mempolicy.h>
#include <linux/sched.h>
#ifndef CLONE_CLEAR_SIGHAND
#define CLONE_CLEAR_SIGHAND 0x100000000ULL
#endif
enum { GET_REGISTRATIONS = 512, REQ_XCOMP_PERM = 0x1023, GET_XCOMP_PERM = 0x1022, TILES = 18, THREADS = 3 };

static char *text_of(const char *path) {
    static char text[64];
    int fd = OK(open(path, O_RDONLY | O_CLOEXEC));
    ssize_t got = OK(read(fd, text, sizeof text - 1));
    text[got] = 0;
    OK(close(fd));
    return text;
}
static void put(const char *path, const char *text) {
    int fd = OK(open(path, O_WRONLY | O_CLOEXEC));
    CHECK(write(fd, text, strlen(text)) == (ssize_t)strlen(text), "%s", path);
    OK(close(fd));
}

/* A tile, from its configuration on, that nobody but us touches. */
static int has_tiles;
static void tile_load(const uint8_t *from) {
    struct { uint8_t palette, row, none[14]; uint16_t bytes[16]; uint8_t rows[16]; } shape = {.palette = 1, .bytes = {64}, .rows = {16}};
    __asm__ volatile("ldtilecfg %0\n tileloadd (%1,%2,1), %%tmm0" : : "m"(shape), "r"(from), "r"(64l) : "memory");
}
static void tile_check(const uint8_t *wanted) {
    uint8_t is[1024];
    __asm__ volatile("tilestored %%tmm0, (%0,%1,1)" : : "r"(is), "r"(64l) : "memory");
    CHECK(!memcmp(is, wanted, sizeof is), "a tile");
}

static void *thread(void *number) {
    uint8_t tile[1024];
    long me = (long)number;
    work_fill(tile, sizeof tile, me);
    /* Two have tiles, one has none. */
    int tiles = has_tiles && me < 2;
    if (tiles) tile_load(tile);
    int priority = IOPRIO_PRIO_VALUE(me ? IOPRIO_CLASS_BE : IOPRIO_CLASS_IDLE, me ? me : 0);
    OK((int)syscall(SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, priority));
    while (work_more()) {
        for (volatile int i = 0; i < 100000; i++) {}
        if (tiles) tile_check(tile);
        CHECK(syscall(SYS_ioprio_get, IOPRIO_WHO_PROCESS, 0) == priority, "priority of input and output");
        work_sleep_us(500);
    }
    return NULL;
}

/* In a child that was made without handlers: it sleeps through an epoch or two, and handles what it asks for. */
static atomic_int handled;
static void handler(int signal) { handled = signal; }
static void child_main(void) {
    struct sigaction is;
    OK(sigaction(SIGUSR1, NULL, &is));
    if (is.sa_handler != SIG_DFL) _exit(1);
    OK(sigaction(SIGUSR2, NULL, &is));
    if (is.sa_handler != SIG_IGN) _exit(2);
    work_sleep_us(8000);
    is.sa_handler = handler;
    OK(sigaction(SIGHUP, &is, NULL));
    OK(raise(SIGHUP));
    if (handled != SIGHUP) _exit(3);
    OK(raise(SIGUSR1));
    _exit(4);
}
static void child(void) {
    struct clone_args args = {.flags = CLONE_CLEAR_SIGHAND, .exit_signal = SIGCHLD};
    handled = 0;
    pid_t pid = OK((pid_t)syscall(SYS_clone3, &args, sizeof args));
    int status;
    if (pid == 0) child_main();
    CHECK(waitpid(pid, &status, 0) == pid && status == SIGUSR1, "a child without handlers: %x", status);
    OK(raise(SIGUSR1));
    CHECK(handled == SIGUSR1, "our own handler");
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    signal(SIGUSR1, handler), signal(SIGUSR2, SIG_IGN);
    OK((int)syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED, 0, 0));
    OK((int)syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0));
    int core = syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE, 0, 0) == 0;
    long registered = syscall(SYS_membarrier, GET_REGISTRATIONS, 0, 0);
    put("/proc/self/coredump_filter", "0x13"), put("/proc/self/oom_score_adj", "77");
    unsigned long node = 1, nodes[16];
    int policy, bound = syscall(SYS_set_mempolicy, MPOL_BIND, &node, 64) == 0;
    has_tiles = syscall(SYS_arch_prctl, REQ_XCOMP_PERM, TILES) == 0;
    uint64_t permitted = 0, is;
    int asked = syscall(SYS_arch_prctl, GET_XCOMP_PERM, &permitted) == 0;
    pthread_t threads[THREADS];
    for (long i = 0; i < THREADS; i++) PT(pthread_create(&threads[i], NULL, thread, (void *)i));
    for (uint64_t round = 0; work_more(); round++) {
        OK((int)syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL_EXPEDITED, 0, 0));
        OK((int)syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0));
        if (core) OK((int)syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE, 0, 0));
        CHECK(syscall(SYS_membarrier, GET_REGISTRATIONS, 0, 0) == registered, "registrations");
        CHECK(!strcmp(text_of("/proc/self/coredump_filter"), "00000013\n") && !strcmp(text_of("/proc/self/oom_score_adj"), "77\n"), "files of /proc");
        if (bound) {
            OK((int)syscall(SYS_get_mempolicy, &policy, nodes, 1025, 0, 0));
            CHECK(policy == MPOL_BIND && nodes[0] == 1, "policy %d of nodes %lx", policy, nodes[0]);
        }
        if (asked) CHECK(syscall(SYS_arch_prctl, GET_XCOMP_PERM, &is) == 0 && is == permitted, "states %lx", is);
        if (round % 4 == 0) child();
        work_sleep_us(300);
        work_tick();
    }
    for (int i = 0; i < THREADS; i++) PT(pthread_join(threads[i], NULL));
    return work_end();
}
