/* flags: -O2 -pthread
 * Goal: a change of a file is in the epoch, whatever its descriptor was a moment ago. Method: threads write nothing, all the time,
 * to one number, while another one closes it, replaces it and opens other things there, and then writes to those that are files;
 * files and their copies in memory are compared. Files are large and changes small: where one is missed, others must not bring it along. */
#include "work.h"
enum { FILES = 2, BYTES = 8 << 20, PIECE = 64, PIECES = 3, PRODS = 3 };
static unsigned char copies[FILES][BYTES];
static int number;
static atomic_int stopping;

static const char *name(int f) {
    char text[16];
    snprintf(text, sizeof text, "f%d", f);
    return work_path(text);
}
static void *prod(void *none) {
    while (!stopping)
        for (int i = 0; i < 100; i++) CHECK(write(number, "", 0) == 0 || errno == EBADF, "a write of nothing");
    return none;
}
static void change(int f, uint64_t seed) {
    for (int piece = 0; piece < PIECES; piece++) {
        size_t at = (seed = work_mix(seed)) % (BYTES - PIECE);
        for (size_t i = 0; i < PIECE; i++) copies[f][at + i] = (unsigned char)(work_mix(seed + i / 8) >> i % 8 * 8);
        CHECK(pwrite(number, copies[f] + at, PIECE, (off_t)at) == PIECE, "write");
    }
}
static void compare(int spare) {
    static unsigned char found[BYTES + 1];
    for (int f = 0; f < FILES; f++) {
        int fd = OK(open(name(f), O_RDONLY | O_CLOEXEC));
        OK(dup2(fd, spare));
        close(fd);
        CHECK(pread(spare, found, sizeof found, 0) == BYTES && !memcmp(found, copies[f], BYTES), "file %d is not what it was", f);
    }
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    int spare = OK(open("/dev/null", O_WRONLY)), nothing = OK(open("/dev/null", O_WRONLY));
    number = OK(open("/dev/null", O_WRONLY));
    for (int f = 0; f < FILES; f++) {
        close(number);
        CHECK(OK(open(name(f), O_RDWR | O_CREAT | O_TRUNC, 0600)) == number, "a number");
        OK(ftruncate(number, BYTES));
    }
    pthread_t threads[PRODS];
    for (int i = 0; i < PRODS; i++) PT(pthread_create(&threads[i], NULL, prod, NULL));
    for (uint64_t round = 1; work_more(); round++) {
        for (int k = 0; k < 100; k++) {
            uint64_t seed = work_mix(round * 100 + (uint64_t)k);
            int f = (int)(seed % FILES), before = (int)(seed / FILES % FILES);
            /* What is there first: nothing of ours, or another file. */
            close(number);
            CHECK(OK(open(seed & 1 << 20 ? name(before) : "/dev/null", O_RDWR)) == number, "a number");
            for (volatile int spin = 0; spin < (int)(seed >> 30 & 1023); spin++) {}
            if (seed & 1 << 21) {
                close(number);
                CHECK(OK(open(name(f), O_RDWR)) == number, "a number");
            } else {
                int fd = OK(open(name(f), O_RDWR));
                OK(dup2(fd, number));
                close(fd);
            }
            change(f, seed);
            OK(dup2(nothing, number));
        }
        if (round % 16 == 1) compare(spare);
        work_tick();
    }
    stopping = 1;
    for (int i = 0; i < PRODS; i++) PT(pthread_join(threads[i], NULL));
    return work_end();
}
