/* flags: -O2
 * Goal: files are at every epoch what memory says that they are. Method: processes change files of their own in every way
 * that there is, at random, and keep a copy of each in memory; files and copies are compared all the time. One file and one
 * log are written by all of them. usage: DIR [SEED] */
#include "file_copies.h"
#include <sys/sendfile.h>
#include <sys/uio.h>
#include <sys/xattr.h>

enum { PROCESSES = 3, BLOCK = 1000, BLOCKS = 900, LOG_RECORD = 32 };

static unsigned char *mine; /* our blocks of the common file */
static uint64_t logged;

static void compare_common(void) {
    static unsigned char found[BLOCK];
    int fd = OK(open(work_path("common"), O_RDONLY | O_CLOEXEC));
    for (int b = self; b < BLOCKS; b += PROCESSES) {
        CHECK(pread(fd, found, BLOCK, (off_t)b * BLOCK) == BLOCK, "common");
        CHECK(!memcmp(found, mine + (size_t)b * BLOCK, BLOCK), "block %d of the common file is another", b);
    }
    close(fd);
    FILE *log = fopen(work_path("common.log"), "re");
    CHECK(log, "log");
    char line[LOG_RECORD + 2];
    uint64_t next = 0;
    while (fgets(line, sizeof line, log)) {
        unsigned long of, at;
        CHECK(sscanf(line, "%lu %lu", &of, &at) == 2 && strlen(line) == LOG_RECORD, "a line of the log is `%s`", line);
        if ((int)of == self) CHECK(at == next++, "entry %lu of %d in the log, wanted %lu", at, self, next - 1);
    }
    fclose(log);
    CHECK(next == logged, "%lu entries of %d in the log, wanted %lu", next, self, logged);
}
static void write_common(void) {
    static int fd = -1;
    if (fd < 0) fd = OK(open(work_path("common"), O_RDWR | O_CLOEXEC));
    int b = (int)number(BLOCKS / PROCESSES) * PROCESSES + self;
    fill(BLOCK);
    CHECK(pwrite(fd, buffer, BLOCK, (off_t)b * BLOCK) == BLOCK, "common");
    memcpy(mine + (size_t)b * BLOCK, buffer, BLOCK);
}
static void write_log(void) {
    int fd = OK(open(work_path("common.log"), O_WRONLY | O_APPEND | O_CLOEXEC));
    char line[LOG_RECORD + 1];
    snprintf(line, sizeof line, "%d %-*lu\n", self, LOG_RECORD - 3, logged);
    CHECK(write(fd, line, LOG_RECORD) == LOG_RECORD, "log");
    logged++;
    close(fd);
}

/* Written by a child, which shares our memory or has a copy of it. */
__attribute__((noinline)) static pid_t in_child(int shares, int fd, size_t len, size_t at) {
    pid_t child = shares ? vfork() : fork();
    if (child == 0) _exit(pwrite(fd, buffer, len, (off_t)at) == (ssize_t)len ? 0 : 1);
    return child;
}

static void step(void) {
    int f = (int)number(FILES), g = (int)number(FILES);
    struct copy *c = &files[f], *d = &files[g];
    size_t len = some_len(), at = number(number(4) == 0 ? BYTES_MAX - len : c->size + 1);
    if (at + len > BYTES_MAX) at = BYTES_MAX - len;
    if (!c->exists) {
        int fd = OK(open(name(f), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600 + number(0200)));
        c->exists = 1, c->size = 0;
        close(fd);
        return;
    }
    int fd = OK(open(name(f), O_RDWR | O_CLOEXEC));
    fill(len);
    switch (number(24)) {
    case 0: case 1: case 2:
        CHECK(pwrite(fd, buffer, len, (off_t)at) == (ssize_t)len, "pwrite");
        put(c, at, len);
        break;
    case 3: {
        OK(lseek(fd, (off_t)at, SEEK_SET));
        size_t half = len / 2;
        CHECK(write(fd, buffer, half) == (ssize_t)half && write(fd, buffer + half, len - half) == (ssize_t)(len - half), "write");
        put(c, at, len);
        break;
    }
    case 4: {
        struct iovec v[3] = {{buffer, len / 3}, {buffer + len / 3, len / 3}, {buffer + len / 3 * 2, len - len / 3 * 2}};
        if (number(2)) {
            OK(lseek(fd, (off_t)at, SEEK_SET));
            CHECK(writev(fd, v, 3) == (ssize_t)len, "writev");
        } else {
            CHECK(pwritev(fd, v, 3, (off_t)at) == (ssize_t)len, "pwritev");
        }
        put(c, at, len);
        break;
    }
    case 5: case 6: {
        int add = OK(open(name(f), O_WRONLY | O_APPEND | O_CLOEXEC));
        if (c->size + len <= BYTES_MAX) {
            CHECK(write(add, buffer, len) == (ssize_t)len, "append");
            put(c, c->size, len);
        }
        close(add);
        break;
    }
    case 7: {
        struct iovec v = {buffer, len};
        if (c->size + len <= BYTES_MAX) {
            CHECK(pwritev2(fd, &v, 1, 0, RWF_APPEND) == (ssize_t)len, "RWF_APPEND");
            put(c, c->size, len);
        }
        break;
    }
    case 8:
        OK(ftruncate(fd, (off_t)at));
        resize(c, at);
        break;
    case 9:
        OK(truncate(name(f), (off_t)at));
        resize(c, at);
        break;
    case 10: {
        int mode = number(2) ? FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE : FALLOC_FL_ZERO_RANGE;
        if (fallocate(fd, mode, (off_t)at, (off_t)len) == 0) {
            memset(buffer, 0, len);
            if (mode != FALLOC_FL_ZERO_RANGE && at >= c->size) break;
            if (mode != FALLOC_FL_ZERO_RANGE && at + len > c->size) len = c->size - at;
            put(c, at, len);
        } else {
            CHECK(errno == EOPNOTSUPP, "fallocate");
        }
        break;
    }
    case 11: {
        at -= at % 4096, len = 4096;
        if (at + len < c->size && c->size < BYTES_MAX - 4096 && number(2)) {
            if (fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, (off_t)at, (off_t)len) == 0) {
                memmove(c->bytes + at, c->bytes + at + len, c->size - at - len);
                c->size -= len;
            }
        } else if (at < c->size && c->size < BYTES_MAX - 4096) {
            if (fallocate(fd, FALLOC_FL_INSERT_RANGE, (off_t)at, (off_t)len) == 0) {
                memmove(c->bytes + at + len, c->bytes + at, c->size - at);
                memset(c->bytes + at, 0, len);
                c->size += len;
            }
        }
        break;
    }
    case 12: {
        int new = OK(open(name(f), O_WRONLY | O_TRUNC | O_CLOEXEC));
        resize(c, 0);
        CHECK(write(new, buffer, len) == (ssize_t)len, "write");
        put(c, 0, len);
        close(new);
        break;
    }
    case 13: {
        OK(unlink(name(f)));
        c->exists = 0;
        int new = OK(open(name(f), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
        c->exists = 1, c->size = 0;
        CHECK(pwrite(new, buffer, len, (off_t)at) == (ssize_t)len, "pwrite");
        put(c, at, len);
        close(new);
        break;
    }
    case 14:
        if (f != g) {
            char to[PATH_MAX + 64];
            strcpy(to, name(g));
            OK(rename(name(f), to));
            struct copy swap = *d;
            *d = *c, *c = swap, c->exists = 0, c->size = 0;
        }
        break;
    case 15: case 16: {
        if (c->size == 0) break;
        unsigned char *map = mmap(NULL, c->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        CHECK(map != MAP_FAILED, "mmap");
        at %= c->size;
        if (at + len > c->size) len = c->size - at;
        memcpy(map + at, buffer, len);
        memcpy(c->bytes + at, buffer, len);
        if (number(2)) work_sleep_us(3000);
        OK(munmap(map, c->size));
        break;
    }
    case 17: case 18: {
        if (f == g || !d->exists || d->size == 0) break;
        int from = OK(open(name(g), O_RDONLY | O_CLOEXEC));
        off_t source = (off_t)number(d->size), to = (off_t)at;
        if (len > d->size - (size_t)source) len = d->size - (size_t)source;
        ssize_t n;
        if (number(2)) {
            OK(lseek(fd, to, SEEK_SET));
            off_t s = source;
            n = sendfile(fd, from, &s, len);
        } else {
            off_t s = source;
            n = copy_file_range(from, &s, fd, &to, len, 0);
        }
        CHECK(n >= 0, "copy");
        memcpy(buffer, d->bytes + source, (size_t)n);
        put(c, at, (size_t)n);
        close(from);
        break;
    }
    case 19: {
        pid_t child = OK(in_child(number(2) == 0, fd, len, at));
        int status;
        CHECK(OK(waitpid(child, &status, 0)) == child && status == 0, "child: %x", status);
        put(c, at, len);
        break;
    }
    case 20: {
        /* The number leads to another file from one write to the next. */
        if (f == g || !d->exists) break;
        int other = OK(open(name(g), O_RDWR | O_CLOEXEC));
        OK(dup2(other, fd));
        CHECK(pwrite(fd, buffer, len, (off_t)at) == (ssize_t)len, "pwrite");
        put(d, at, len);
        close(other);
        break;
    }
    case 21: {
        FILE *file = fdopen(dup(fd), "r+");
        CHECK(file && fseek(file, (long)at, SEEK_SET) == 0 && fwrite(buffer, 1, len, file) == len && fclose(file) == 0, "stdio");
        put(c, at, len);
        break;
    }
    case 22: {
        /* Appends from now on, and then not any more. */
        OK(fcntl(fd, F_SETFL, O_APPEND));
        if (c->size + len <= BYTES_MAX) {
            CHECK(write(fd, buffer, len) == (ssize_t)len, "append");
            put(c, c->size, len);
        }
        OK(fcntl(fd, F_SETFL, 0));
        OK(lseek(fd, 0, SEEK_SET));
        CHECK(write(fd, buffer, len) == (ssize_t)len, "write");
        put(c, 0, len);
        break;
    }
    default:
        OK(fchmod(fd, 0600 + number(0100)));
        (void)fsetxattr(fd, "user.round", &state, sizeof state, 0);
        struct timespec times[2] = {{1000 + (time_t)number(1000), 5}, {2000, 7}};
        if (number(4) == 0) OK(futimens(fd, times));
        break;
    }
    close(fd);
}

static void work(void) {
    mine = OK(mmap(NULL, BLOCKS * BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    copies();
    for (uint64_t round = 1; work_more(); round++) {
        for (int i = 0; i < 10; i++) step();
        write_common();
        if (round % 4 == 0) write_log();
        compare((int)number(FILES));
        if (round % 16 == 0) {
            for (int f = 0; f < FILES; f++) compare(f);
            compare_common();
        }
        if (self == 0) work_tick();
        work_sleep_us(300);
    }
    for (int f = 0; f < FILES; f++) compare(f);
    compare_common();
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    int common = OK(open(work_path("common"), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
    OK(ftruncate(common, BLOCKS * BLOCK));
    close(common);
    close(OK(open(work_path("common.log"), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644)));
    pid_t children[PROCESSES] = {0};
    for (int p = 1; p < PROCESSES; p++) {
        if ((children[p] = OK(fork())) == 0) {
            self = p;
            break;
        }
    }
    state = work_mix(strtoul(work_arg, NULL, 10) * 100 + (uint64_t)self + 1);
    work();
    if (self) return 0;
    for (int p = 1; p < PROCESSES; p++) {
        int status;
        CHECK(OK(waitpid(children[p], &status, 0)) == children[p] && status == 0, "process %d ended with %x", p, status);
    }
    return work_end();
}
