/* flags: -O2
 * What recording costs calls, and changes to files on order.
 * usage: calls FILE OLD: prints nanoseconds of 4 KiB by pwrite anywhere, by write at the position, by write that appends; then the
 *        first two for OLD, which was there before
 *        stream FILE MIB: prints MiB a second of writes of 1 MiB to a new file
 *        scatter FILE MIB COUNT GO: writes of 100 bytes anywhere, COUNT of them each time that GO appears
 *        change FILE MIB PAGES DIR FILES GO: then rewrites PAGES pages of FILE, one after the other apart, and the first page of
 *        so many of the files DIR/<n / 100>/<n>. GO is removed when it is done; GO.bytes says how many bytes are other ones.
 *        waits FILE MIB FILES SECONDS: overwrites pages of FILE, and every eighth time one of so many files FILE.<n> if any, a moment
 *        between calls; prints the microseconds that one call in 2, 100, 1,000 and none took longer than, and calls in a million
 *        that took longer than 0.1 ms */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
enum { PAGE = 4096, TURNS = 15, CALLS = 4096, FILE_PAGES = 4096 };
static unsigned char data[1 << 20];
static uint64_t x = 88172645463325252u;
static uint64_t number(void) { x ^= x << 13; x ^= x >> 7; return x ^= x << 17; }
static void fill(size_t len) { for (size_t i = 0; i < len; i += 8) { uint64_t n = number(); memcpy(data + i, &n, 8); } }
static void must(int holds, const char *what) { if (!holds) { perror(what); exit(1); } }
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return (double)t.tv_sec + (double)t.tv_nsec / 1e9; }

static void at_any(int fd, int i) { must(pwrite(fd, data, PAGE, (off_t)(i * 2654435761u % FILE_PAGES) * PAGE) == PAGE, "pwrite"); }
static void at_position(int fd, int i) { (void)i; must(write(fd, data, PAGE) == PAGE, "write"); }
static double cost(const char *name, int flags, int keeps, void (*call)(int, int)) {
    double best = 1e9;
    int fd = open(name, O_RDWR | O_CREAT | flags, 0600);
    must(fd >= 0, name);
    for (int turn = 0; turn < TURNS; turn++) {
        if (!keeps) must(ftruncate(fd, 0) == 0, "ftruncate");
        lseek(fd, 0, SEEK_SET);
        double start = now();
        for (int i = 0; i < CALLS; i++) call(fd, i);
        double ns = (now() - start) / CALLS * 1e9;
        if (ns < best) best = ns;
    }
    close(fd);
    return best;
}
static double anywhere(const char *name) {
    double first = cost(name, 0, 1, at_any), second = cost(name, 0, 1, at_any);
    return first < second ? first : second;
}
static int calls(const char *name, const char *old) {
    double any = anywhere(name), position = cost(name, 0, 1, at_position), append = cost(name, O_APPEND, 0, at_position);
    double any_old = anywhere(old), position_old = cost(old, 0, 1, at_position);
    printf("%.0f %.0f %.0f %.0f %.0f\n", any, position, append, any_old, position_old);
    return unlink(name);
}
static int stream(const char *name, size_t mib) {
    fill(sizeof data);
    unlink(name);
    int fd = open(name, O_WRONLY | O_CREAT, 0600);
    must(fd >= 0, name);
    double start = now();
    for (size_t i = 0; i < mib; i++) must(write(fd, data, sizeof data) == sizeof data, "write");
    printf("%.0f\n", (double)mib / (now() - start));
    close(fd);
    return unlink(name);
}
static int large(const char *name, size_t mib) {
    int fd = open(name, O_RDWR | O_CREAT, 0600);
    must(fd >= 0, name);
    for (size_t i = 0; i < mib; i++) { fill(sizeof data); must(write(fd, data, sizeof data) == sizeof data, "write"); }
    return fd;
}
static void wait_for(const char *go) { while (access(go, F_OK)) usleep(2000); }
static void done(const char *go, size_t bytes) {
    char name[4096];
    snprintf(name, sizeof name, "%s.bytes", go);
    FILE *f = fopen(name, "w");
    must(f != NULL, name);
    fprintf(f, "%zu\n", bytes);
    fclose(f);
    must(unlink(go) == 0, go);
}
static void scatter(const char *name, size_t mib, size_t count, const char *go) {
    int fd = large(name, mib);
    size_t pages = mib * 256;
    unsigned char *seen = calloc(pages, 1);
    must(seen != NULL, "calloc");
    for (;;) {
        wait_for(go);
        memset(seen, 0, pages);
        size_t distinct = 0;
        for (size_t i = 0; i < count; i++) {
            size_t page = number() % pages;
            fill(104);
            must(pwrite(fd, data, 100, (off_t)(page * PAGE + number() % (PAGE - 100))) == 100, "pwrite");
            distinct += !seen[page], seen[page] = 1;
        }
        done(go, distinct * PAGE);
    }
}
static void change(const char *name, size_t mib, size_t pages, const char *dir, size_t files, const char *go) {
    int fd = large(name, mib);
    for (size_t turn = 0;; turn++) {
        wait_for(go);
        for (size_t i = 0; i < pages; i++) {
            fill(PAGE);
            must(pwrite(fd, data, PAGE, (off_t)((i * (mib * 256 / pages) + turn % 2) * PAGE)) == PAGE, "pwrite");
        }
        for (size_t i = 0; i < files; i++) {
            char path[4096];
            snprintf(path, sizeof path, "%s/%zu/%zu", dir, i / 100, i);
            int small = open(path, O_WRONLY);
            must(small >= 0, path);
            fill(PAGE);
            must(write(small, data, PAGE) == PAGE, path);
            close(small);
        }
        done(go, (pages + files) * PAGE);
    }
}
static int by_size(const void *a, const void *b) {
    double d = *(const double *)a - *(const double *)b;
    return (d > 0) - (d < 0);
}
static int waits(const char *name, size_t mib, size_t files, double seconds) {
    enum { CALLS_MAX = 1 << 22 };
    static double took[CALLS_MAX];
    int fd = large(name, mib);
    size_t calls = 0, slow = 0;
    for (double start = now(); now() - start < seconds && calls < CALLS_MAX;) {
        double since;
        fill(256);
        if (!files || number() % 8) {
            off_t at = (off_t)(number() % (mib * 256) * PAGE);
            since = now();
            must(pwrite(fd, data, PAGE, at) == PAGE, "pwrite");
        } else {
            char path[4096];
            snprintf(path, sizeof path, "%s.%zu", name, (size_t)number() % files);
            since = now();
            int small = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
            must(small >= 0 && write(small, data, 6000) == 6000 && close(small) == 0, path);
        }
        double us = (now() - since) * 1e6;
        slow += us > 100, took[calls++] = us;
        if (calls % 4 == 0) usleep(50);
    }
    qsort(took, calls, sizeof *took, by_size);
    printf("%.1f %.1f %.1f %.0f %.0f\n", took[calls / 2], took[calls - calls / 100 - 1], took[calls - calls / 1000 - 1], took[calls - 1],
           (double)slow * 1e6 / (double)calls);
    return 0;
}
int main(int argc, char **argv) {
    const char *what = argc > 2 ? argv[1] : "";
    size_t mib = argc > 3 ? strtoul(argv[3], NULL, 10) : 0, count = argc > 4 ? strtoul(argv[4], NULL, 10) : 0;
    if (!strcmp(what, "calls")) return argc == 4 ? calls(argv[2], argv[3]) : 2;
    if (!strcmp(what, "stream") && mib) return stream(argv[2], mib);
    if (!strcmp(what, "scatter") && argc == 6) scatter(argv[2], mib, count, argv[5]);
    if (!strcmp(what, "change") && argc == 8) change(argv[2], mib, count, argv[5], strtoul(argv[6], NULL, 10), argv[7]);
    if (!strcmp(what, "waits") && argc == 6) return waits(argv[2], mib, count, strtod(argv[5], NULL));
    return 2;
}
