/* flags: -O2 -pthread
 * Goal: a program with its own syscall instructions works and is seen. Method: inline assembly for identity, files,
 * sleep and a blocking read; results must agree with libc's and no call may return EINTR. */
#include "work.h"
static long raw(long nr, long a, long b, long c, long d) {
    register long r10 __asm__("r10") = d;
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
    return result;
}
static int fds[2];
static void *writer(void *arg) {
    for (unsigned char i = 0;; i++) {
        struct timespec t = {0, 20000000};
        long r = raw(SYS_nanosleep, (long)&t, 0, 0, 0);
        CHECK(r == 0, "raw nanosleep returned %ld", r);
        int end = !work_more();
        if (end) i = 255;
        CHECK(raw(SYS_write, fds[1], (long)&i, 1, 0) == 1, "raw write");
        if (end) return arg;
        if (i == 250) i = 0;
    }
}
int main(int argc, char **argv) {
    work_begin(argc, argv);
    OK(pipe(fds));
    pthread_t t;
    PT(pthread_create(&t, NULL, writer, NULL));
    for (unsigned char got = 0; got != 255;) {
        long r = raw(SYS_read, fds[0], (long)&got, 1, 0);
        CHECK(r == 1, "raw read returned %ld", r);
        CHECK(raw(SYS_getpid, 0, 0, 0, 0) == getpid() && raw(SYS_gettid, 0, 0, 0, 0) == gettid(), "raw getpid %ld, libc's %d", raw(SYS_getpid, 0, 0, 0, 0), getpid());
        long fd = raw(SYS_openat, AT_FDCWD, (long)work_path("raw"), O_RDWR | O_CREAT | O_TRUNC, 0600);
        CHECK(fd >= 0 && raw(SYS_write, fd, (long)"raw text", 8, 0) == 8, "raw openat and write");
        char text[8];
        CHECK(pread((int)fd, text, 8, 0) == 8 && !memcmp(text, "raw text", 8), "content");
        CHECK(raw(SYS_close, fd, 0, 0, 0) == 0 && raw(SYS_close, fd, 0, 0, 0) == -EBADF, "raw close");
        long at = raw(SYS_mmap, 0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
        CHECK(at == -EBADF || at > 0, "raw mmap returned %ld", at);
        if (at > 0) CHECK(raw(SYS_munmap, at, 4096, 0, 0) == 0, "raw munmap");
        work_tick();
    }
    PT(pthread_join(t, NULL));
    return work_end();
}
