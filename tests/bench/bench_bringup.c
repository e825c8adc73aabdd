/* flags: -O2
 * An application with many files that works all the time. bench_bringup make DIR FILES BYTES: makes that many files of about so
 * many bytes, a part of which can be compressed. bench_bringup work DIR LOG: works until LOG.stop exists: some arithmetic, then 4 KiB
 * written somewhere in one of DIR's files, now and then a file made anew; every 50 ms a line in LOG: time (boot clock, ms), rounds,
 * longest round (us). */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { PER_DIR = 200, PAGE = 4096, OPEN = 64, WINDOW_US = 50000, SPIN = 2000 };

static uint64_t state = 88172645463325252ull;
static uint64_t next(void) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state;
}
static void die(const char *what) {
    perror(what);
    exit(1);
}
static int64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_BOOTTIME, &t);
    return t.tv_sec * 1000000ll + t.tv_nsec / 1000;
}
static void fill(unsigned char *at, size_t bytes) {
    /* Half of it is noise. */
    for (size_t i = 0; i + 8 <= bytes; i += 8) memcpy(at + i, &(uint64_t){(i / 64) % 2 ? next() : i}, 8);
}
static const char *name(const char *dir, long file) {
    static char text[PATH_MAX];
    snprintf(text, sizeof text, "%s/d%ld/f%ld", dir, file / PER_DIR, file % PER_DIR);
    return text;
}

static int make(const char *dir, long files, long bytes) {
    unsigned char *buffer = malloc((size_t)bytes * 2);
    if (!buffer) die("malloc");
    char text[PATH_MAX];
    for (long file = 0; file < files; file++) {
        snprintf(text, sizeof text, "%s/d%ld", dir, file / PER_DIR);
        if (file % PER_DIR == 0 && mkdir(text, 0755) < 0 && errno != EEXIST) die(text);
        size_t len = (size_t)bytes / 2 + next() % (size_t)bytes;
        fill(buffer, len);
        int fd = open(name(dir, file), O_WRONLY | O_CREAT | O_TRUNC, 0644);
        if (fd < 0 || write(fd, buffer, len) != (ssize_t)len || close(fd)) die("make");
    }
    return 0;
}

static int work(const char *dir, const char *log) {
    unsigned char page[PAGE];
    char stop[PATH_MAX], text[PATH_MAX];
    snprintf(stop, sizeof stop, "%s.stop", log);
    FILE *out = fopen(log, "w");
    if (!out) die(log);
    int fds[OPEN];
    for (int i = 0; i < OPEN; i++)
        if ((fds[i] = open(name(dir, i * 3), O_RDWR)) < 0) die("open");
    int64_t window = now_us(), before = window, longest = 0;
    long rounds = 0, made = 0;
    for (;;) {
        volatile uint64_t sum = 0;
        for (int i = 0; i < SPIN; i++) sum += next();
        fill(page, sizeof page);
        if (pwrite(fds[next() % OPEN], page, sizeof page, (off_t)(next() % 10) * PAGE) != PAGE) die("pwrite");
        if (rounds % 500 == 0) {
            snprintf(text, sizeof text, "%s/new%ld", dir, made++ % 100);
            int fd = open(text, O_WRONLY | O_CREAT | O_TRUNC, 0644);
            if (fd < 0 || write(fd, page, PAGE) != PAGE || close(fd)) die(text);
        }
        rounds++;
        int64_t now = now_us();
        if (now - before > longest) longest = now - before;
        before = now;
        if (now - window < WINDOW_US) continue;
        fprintf(out, "%lld %ld %lld\n", (long long)(now / 1000), rounds, (long long)longest);
        fflush(out);
        if (access(stop, F_OK) == 0) return 0;
        rounds = 0, longest = 0, window = now;
    }
}

int main(int argc, char **argv) {
    if (argc == 5 && !strcmp(argv[1], "make")) return make(argv[2], atol(argv[3]), atol(argv[4]));
    if (argc == 4 && !strcmp(argv[1], "work")) return work(argv[2], argv[3]);
    fprintf(stderr, "usage: see the source\n");
    return 2;
}
