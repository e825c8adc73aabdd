/* Goal: files that are written to all the time, in every way that destroys what was there. Method: several processes, each with
 * files of its own and one that they share; the agent compares what it reads after a cut with what was there at the cut. How long
 * calls took is counted: DIR/../waits gets the longest call of all, in microseconds. */
#include "work.h"
#include <linux/aio_abi.h>
#include <sys/sendfile.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#ifndef RWF_NOAPPEND
#define RWF_NOAPPEND 0x20 /* Linux 6.9 */
#endif
enum { LARGE = 12 << 20, PIECE = 4096, SMALL = 24, ROLES = 8 };
static struct shared { atomic_long longest_us; } *shared;
static unsigned char bytes[1 << 16];

static const char *name(const char *what, unsigned number) {
    static char text[2][64];
    static int turn;
    snprintf(text[turn ^= 1], sizeof text[0], "%s%u", what, number);
    return text[turn];
}
static const char *path(const char *what, unsigned number) {
    static char text[2][PATH_MAX + 80];
    static int turn;
    snprintf(text[turn ^= 1], sizeof text[0], "%s/%s", work_dir, name(what, number));
    return text[turn];
}
static void fill(uint64_t seed) { work_fill(bytes, sizeof bytes, seed); }
static int64_t since;
static void begin(void) { since = work_now_us(CLOCK_MONOTONIC); }
static void end(void) {
    long took = (long)(work_now_us(CLOCK_MONOTONIC) - since), known = shared->longest_us;
    while (took > known && !atomic_compare_exchange_weak(&shared->longest_us, &known, took)) {}
}
#define TIMED(call) ({ begin(); __typeof__(call) timed_ = OK(call); end(); timed_; })

static void overwrite(uint64_t seed) {
    int fd = OK(open(path("large", seed & 1), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    if (seed % 64 == 0) OK(ftruncate(fd, LARGE));
    for (int i = 0; i < 8; i++, seed = work_mix(seed)) TIMED(pwrite(fd, bytes, PIECE + seed % 5000, (off_t)(seed >> 20) % LARGE));
    if (seed % 16 == 0) {
        OK(lseek(fd, (off_t)(seed >> 20) % LARGE, SEEK_SET));
        struct iovec two[2] = {{bytes, 3000}, {bytes + 5000, 40000}};
        TIMED(writev(fd, two, 2));
    }
    close(fd);
}
static void replace(uint64_t seed) {
    unsigned n = seed % SMALL, other = seed / SMALL % SMALL;
    int fd = TIMED(open(path("small", n), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    TIMED(write(fd, bytes, seed >> 40 & 16383));
    if (seed & 1 << 20) {
        struct timespec times[2] = {{1000000 + (time_t)(seed >> 50), 5}, {2000000 + (time_t)(seed >> 50), 7}};
        OK(futimens(fd, times));
    }
    close(fd);
    if (seed & 1 << 21) rename(path("small", n), path("small", other));
    if (seed & 1 << 22) unlink(path("small", other));
    if (seed & 1 << 23 && truncate(path("small", (n + 1) % SMALL), (off_t)(seed >> 50)) && errno != ENOENT) FAIL("truncate");
}
static void append(uint64_t seed) {
    int fd = OK(open(path("log", 0), O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC, 0600));
    for (int i = 0; i < 6; i++) TIMED(write(fd, bytes, 100 + (seed >> (8 * i) & 255)));
    off_t size = OK(lseek(fd, 0, SEEK_END));
    /* Not at its end, although it is open for appending: its head is given back, or something is mended. */
    if (seed % 8 == 1) TIMED(fallocate(fd, 3, 0, size / 2));
    struct iovec mended = {bytes, 300};
    if (seed % 8 == 2) {
        begin();
        if (pwritev2(fd, &mended, 1, size / 3, RWF_NOAPPEND) < 0) CHECK(errno == EOPNOTSUPP || errno == EINVAL, "RWF_NOAPPEND");
        end();
    }
    if (seed % 50 == 0) TIMED(ftruncate(fd, (off_t)(seed >> 54)));
    close(fd);
}
static void holes(uint64_t seed) {
    int fd = OK(open(path("holes", 0), O_RDWR | O_CREAT | O_CLOEXEC, 0600)), from = OK(open(path("large", 0), O_RDONLY | O_CREAT | O_CLOEXEC, 0600));
    off_t at = (off_t)(seed >> 30) % (4 << 20), source = (off_t)(seed >> 34) % (LARGE / 2);
    TIMED(pwrite(fd, bytes, sizeof bytes, at));
    if (seed & 1) TIMED(fallocate(fd, 3, (off_t)(seed >> 20) % (4 << 20), 20000));
    if (seed & 2) TIMED(copy_file_range(from, &source, fd, &at, 30000, 0));
    if (seed & 4) {
        OK(lseek(fd, at, SEEK_SET));
        TIMED(sendfile(fd, from, &source, 30000));
    }
    if (seed % 32 == 0) TIMED(ftruncate(fd, (off_t)(seed >> 41)));
    if (seed % 8 == 0) {
        int direct = OK(open(path("mapped", 0), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
        OK(ftruncate(direct, 1 << 16));
        unsigned char *map = mmap(NULL, 1 << 16, PROT_READ | PROT_WRITE, MAP_SHARED, direct, 0);
        CHECK(map != MAP_FAILED, "mmap");
        memcpy(map + (seed >> 50), bytes, 20000);
        munmap(map, 1 << 16);
        pwrite(direct, bytes, 5000, 30000);
        close(direct);
    }
    close(fd), close(from);
}
/* A child that is made, writes, and is killed at any instruction. */
static void children(uint64_t seed) {
    pid_t child = OK(fork());
    if (!child) {
        for (;; seed = work_mix(seed)) (seed & 256 ? overwrite : replace)(seed);
    }
    work_sleep_us(1000 + (long)(seed % 5000));
    OK(kill(child, SIGKILL));
    OK(waitpid(child, NULL, 0));
}
/* Several write by one position: who has asked where it is writes behind those who were quicker. */
static void sharing(uint64_t seed) {
    enum { WRITERS = 3, WRITES = 12 };
    int fd = OK(open(path("shared", 0), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    if (lseek(fd, 0, SEEK_END) < LARGE) OK(ftruncate(fd, LARGE));
    off_t from = OK(lseek(fd, (off_t)(seed >> 20) % (LARGE / 2), SEEK_SET)), all = 0;
    pid_t writers[WRITERS];
    for (int i = 0; i < WRITERS; i++) {
        if ((writers[i] = OK(fork()))) continue;
        for (int n = 0; n < WRITES; n++) CHECK(write(fd, bytes, 5000 + (size_t)i * 3000) == 5000 + i * 3000, "a shared write");
        _exit(0);
    }
    for (int i = 0; i < WRITERS; i++) OK(waitpid(writers[i], NULL, 0)), all += WRITES * (5000 + i * 3000);
    CHECK(lseek(fd, 0, SEEK_CUR) == from + all, "the position is behind all of them");
    close(fd);
}
/* Asynchronous requests, several at once. */
static void requests(uint64_t seed) {
    enum { REQUESTS = 6 };
    static aio_context_t context;
    if (!context) OK(syscall(SYS_io_setup, REQUESTS, &context));
    int fd = OK(open(path("async", 0), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    if (lseek(fd, 0, SEEK_END) < LARGE) OK(ftruncate(fd, LARGE));
    struct iocb all[REQUESTS], *list[REQUESTS];
    struct iovec two[2] = {{bytes, 3000}, {bytes + 5000, 4000}};
    for (int i = 0; i < REQUESTS; i++, seed = work_mix(seed)) {
        all[i] = (struct iocb){.aio_lio_opcode = IOCB_CMD_PWRITE, .aio_fildes = (unsigned)fd, .aio_buf = (uintptr_t)bytes,
                               .aio_nbytes = 4096 + seed % 9000, .aio_offset = (int64_t)(seed >> 20) % LARGE};
        if (i % 2) all[i].aio_lio_opcode = IOCB_CMD_PWRITEV, all[i].aio_buf = (uintptr_t)two, all[i].aio_nbytes = 2;
        list[i] = &all[i];
    }
    begin();
    CHECK(syscall(SYS_io_submit, context, REQUESTS, list) == REQUESTS, "io_submit");
    end();
    struct io_event done[REQUESTS];
    CHECK(syscall(SYS_io_getevents, context, REQUESTS, REQUESTS, done, NULL) == REQUESTS, "io_getevents");
    for (int i = 0; i < REQUESTS; i++) CHECK(done[i].res >= 4096, "request %d: %lld", i, (long long)done[i].res);
    close(fd);
}
/* Signals come at any moment, and calls are not cut short. One that came while a call waited is handled before that is made, which
 * takes so long that the next cut finds the handler at work. */
enum { WAITED_US = 500, LONG_MS = 70 };
static atomic_long signals;
static atomic_int is_writing;
static void on_signal(int signal) {
    (void)signal, signals++;
    if (!is_writing || work_now_us(CLOCK_MONOTONIC) - since < WAITED_US) return;
    is_writing = 0;
    int64_t until = work_now_us(CLOCK_MONOTONIC) + LONG_MS * 1000;
    while (work_now_us(CLOCK_MONOTONIC) < until) usleep(1000);
}
static void interrupted(uint64_t seed) {
    int fd = OK(open(path("own", 0), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    for (int i = 0; i < 10; i++, seed = work_mix(seed)) {
        off_t at = (off_t)(seed >> 20) % (1 << 20);
        begin();
        is_writing = 1;
        CHECK(pwrite(fd, bytes, 9000, at) == 9000, "a write that nothing cuts short");
        is_writing = 0;
        end();
        unsigned char found[9000];
        CHECK(pread(fd, found, sizeof found, at) == sizeof found && !memcmp(found, bytes, sizeof found), "what was written");
    }
    close(fd);
}

int main(int argc, char **argv) {
    static void (*const roles[ROLES])(uint64_t) = {overwrite, replace, append, holes, children, sharing, requests, interrupted};
    work_begin(argc, argv);
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t first = getpid();
    for (unsigned role = 0; role < ROLES; role++) {
        if (OK(fork())) continue;
        if (role == ROLES - 1) {
            struct sigaction action = {.sa_handler = on_signal};
            OK(sigaction(SIGALRM, &action, NULL));
            struct itimerval every = {{0, 700}, {0, 700}};
            OK(setitimer(ITIMER_REAL, &every, NULL));
        }
        for (uint64_t round = 1; work_more(); round++) {
            uint64_t seed = work_mix(round * ROLES + role + (uint64_t)first);
            fill(seed);
            roles[role](seed);
            if (role == 0) work_tick();
            if (role != ROLES - 1) work_sleep_us(200);
        }
        CHECK(role != ROLES - 1 || signals, "no signal came");
        _exit(0);
    }
    for (unsigned role = 0; role < ROLES; role++) {
        int status;
        OK(wait(&status));
        CHECK(WIFEXITED(status) && !WEXITSTATUS(status), "a process ended with %x", status);
    }
    char text[64];
    int length = snprintf(text, sizeof text, "%ld\n", (long)shared->longest_us);
    int fd = OK(open(path("waits", 0), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    OK(write(fd, text, (size_t)length));
    work_rounds = 1;
    return work_end();
}
