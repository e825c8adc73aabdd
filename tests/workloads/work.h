/* What every workload shares: progress, the end, and the first wrong state.
 *
 * usage: workload DIR [ARG...]
 * DIR/progress counts finished rounds; the program goes on until DIR/stop exists, then writes "ok" to
 * DIR/result and exits 0. At the first wrong state it writes the reason there and exits 1. */
#ifndef WORK_H
#define WORK_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static char work_dir[PATH_MAX];
static const char *work_arg = "";
static int work_progress_fd = -1;
static atomic_ulong work_rounds;
static atomic_int work_failed;

static const char *work_path(const char *name) {
    static _Thread_local char path[PATH_MAX + 64];
    snprintf(path, sizeof path, "%s/%s", work_dir, name);
    return path;
}

static void work_result(const char *text) {
    int fd = open(work_path("result"), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0 || write(fd, text, strlen(text)) < 0) perror("result");
    if (fd >= 0) close(fd);
}

__attribute__((noreturn, format(printf, 4, 5), unused)) static void work_fail(const char *file, int line, const char *what, const char *fmt, ...) {
    char text[700], all[900];
    int error = errno;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    const char *base = strrchr(file, '/');
    snprintf(all, sizeof all, "FAIL %s:%d round %lu: %s%s%s (errno %d %s)\n", base ? base + 1 : file, line,
             atomic_load(&work_rounds), what, *what ? ": " : "", text, error, strerror(error));
    if (!atomic_exchange(&work_failed, 1)) {
        /* Of several processes, the first one's word stays. */
        if (access(work_path("result"), F_OK) != 0) work_result(all);
        if (write(2, all, strlen(all)) < 0) _exit(2);
        _exit(1);
    }
    for (;;) pause(); /* another thread is ending the process */
}
#define FAIL(...) work_fail(__FILE__, __LINE__, "", __VA_ARGS__)
#define CHECK(cond, ...) ((cond) ? (void)0 : work_fail(__FILE__, __LINE__, #cond, __VA_ARGS__))
/* A call that must not fail. */
#define OK(call) ({ __typeof__(call) ok_ = (call); if (ok_ == (__typeof__(call))-1) FAIL("%s", #call); ok_; })
/* A pthread call that must return 0. */
#define PT(call) do { int pt_ = (call); if (pt_) { errno = pt_; FAIL("%s", #call); } } while (0)

__attribute__((unused)) static void work_begin(int argc, char **argv) {
    if (argc < 2 || strlen(argv[1]) >= sizeof work_dir) {
        fprintf(stderr, "usage: %s DIR [ARG]\n", argv[0]);
        _exit(2);
    }
    strcpy(work_dir, argv[1]);
    if (argc > 2) work_arg = argv[2];
    work_progress_fd = OK(open(work_path("progress"), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
}

/* One round is done. */
__attribute__((unused)) static void work_tick(void) {
    char text[32];
    int length = snprintf(text, sizeof text, "%-20lu\n", atomic_fetch_add(&work_rounds, 1) + 1);
    CHECK(pwrite(work_progress_fd, text, length, 0) == length, "progress");
}

/* Another round? */
__attribute__((unused)) static int work_more(void) { return access(work_path("stop"), F_OK) != 0; }

__attribute__((unused)) static int work_end(void) {
    CHECK(atomic_load(&work_rounds) > 0, "no round was finished");
    work_result("ok\n");
    return 0;
}

__attribute__((unused)) static int64_t work_now_us(clockid_t clock) {
    struct timespec t;
    OK(clock_gettime(clock, &t));
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

/* Sleeps, and insists that nothing cuts it short. */
__attribute__((unused)) static void work_sleep_us(long us) {
    struct timespec t = {us / 1000000, us % 1000000 * 1000};
    CHECK(nanosleep(&t, NULL) == 0, "sleep");
}

/* How late a time-out may come, in microseconds: scheduling on a busy machine and one stop. */
__attribute__((unused)) static int64_t work_slack_us(void) {
    const char *ms = getenv("HOLO_WORK_SLACK_MS");
    return (ms ? atol(ms) : 80) * 1000L;
}

__attribute__((unused)) static uint64_t work_mix(uint64_t x) {
    x ^= x >> 30, x *= 0xbf58476d1ce4e5b9u;
    x ^= x >> 27, x *= 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* Fills and checks content that depends on a seed and the position. */
__attribute__((unused)) static void work_fill(void *at, size_t bytes, uint64_t seed) {
    uint64_t *p = at;
    for (size_t i = 0; i < bytes / 8; i++) p[i] = work_mix(seed + i);
}
__attribute__((unused)) static void work_expect(const void *at, size_t bytes, uint64_t seed, const char *what) {
    const uint64_t *p = at;
    for (size_t i = 0; i < bytes / 8; i++)
        if (p[i] != work_mix(seed + i)) FAIL("%s: word %zu of %zu is %lx", what, i, bytes / 8, p[i]);
}
#endif
