/* flags: -O2 -pthread
 * Goal: nobody opens files that have a lease, which is told by a signal that ends a process as a rule; and a write lease can be taken
 * at any time. Method: files under a root, read and written by descriptors that have leases, some taken for a moment only, a hole in
 * one; what is there is compared each round; a signal is the end. */
#include "work.h"

enum { FILES = 4, BYTES = 40000, HOLE = 1 << 20, FEW = 8 };

static int open_new(const char *name, int flags) { return OK(open(work_path(name), flags | O_CREAT | O_CLOEXEC, 0644)); }
static void take(int fd, int sort) { CHECK(fcntl(fd, F_SETLEASE, sort) == 0, "lease %d", sort); }
static void has(int fd, int sort) { CHECK(fcntl(fd, F_GETLEASE) == sort, "lease %d instead of %d", fcntl(fd, F_GETLEASE), sort); }

static void put(int fd, uint64_t seed) {
    static uint64_t buffer[BYTES / 8];
    work_fill(buffer, BYTES, seed);
    CHECK(pwrite(fd, buffer, BYTES, 0) == BYTES, "pwrite");
}
static void expect(int fd, uint64_t seed, const char *what) {
    static uint64_t buffer[BYTES / 8];
    CHECK(pread(fd, buffer, BYTES, 0) == BYTES, "%s: pread", what);
    work_expect(buffer, BYTES, seed, what);
}

/* What changes all the time, and a lease on it now and then: also while the agent reads what was there at the cut. */
static void *changing(void *ended) {
    static uint64_t data[FEW][2 * BYTES];
    for (uint64_t round = 1; !atomic_load((atomic_int *)ended); round++) {
        char name[32];
        int which = round % FEW;
        snprintf(name, sizeof name, "now%d", which);
        int fd = open_new(name, O_RDWR);
        work_fill(data[which], sizeof data[which], round);
        CHECK(pwrite(fd, data[which], sizeof data[which], 0) == sizeof data[which], "pwrite");
        take(fd, F_WRLCK);
        if (round % 3) CHECK(pwrite(fd, data[which], 4096, 0) == 4096, "pwrite");
        close(fd);
    }
    return NULL;
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    int leased[FILES], reader, memory, hole = open_new("hole", O_RDWR);
    for (int i = 0; i < FILES; i++) {
        char name[32];
        snprintf(name, sizeof name, "leased%d", i);
        leased[i] = open_new(name, O_RDWR);
        put(leased[i], i);
    }
    put(leased[FILES - 1], 99), close(leased[FILES - 1]);
    reader = leased[FILES - 1] = open_new("leased3", O_RDONLY);
    CHECK(pwrite(hole, "begin", 5, 0) == 5 && pwrite(hole, "end", 3, HOLE) == 3, "pwrite");
    /* Who made it is no writer to the kernel, and may have no lease. */
    char own[32];
    int maker = OK(memfd_create("leased", 0));
    snprintf(own, sizeof own, "/proc/self/fd/%d", maker);
    memory = OK(open(own, O_RDWR)), close(maker);
    put(memory, 98);
    for (int i = 0; i < FILES - 1; i++) take(leased[i], F_WRLCK);
    take(reader, F_RDLCK), take(memory, F_WRLCK), take(hole, F_WRLCK);
    /* One without a name. */
    OK(unlink(work_path("leased2")));
    OK(lseek(hole, 3, SEEK_SET)), OK(lseek(leased[0], 5, SEEK_SET));
    atomic_int ended = 0;
    pthread_t thread;
    PT(pthread_create(&thread, NULL, changing, &ended));
    uint64_t seeds[2] = {0, 1};
    for (uint64_t round = 100; work_more(); round++) {
        char text[8] = "";
        expect(leased[0], seeds[0], "changed"), expect(leased[1], seeds[1], "changed now and then");
        expect(leased[2], 2, "without a name"), expect(reader, 99, "read"), expect(memory, 98, "memory");
        put(leased[0], seeds[0] = round);
        if (round % 50 == 0) put(leased[1], seeds[1] = round);
        CHECK(pread(hole, text, 5, 0) == 5 && !strcmp(text, "begin") && pread(hole, text, 5, HOLE) == 3, "the file with a hole");
        CHECK(pwrite(hole, "begin", 5, 0) == 5, "pwrite");
        for (int i = 0; i < FILES - 1; i++) has(leased[i], F_WRLCK);
        has(reader, F_RDLCK), has(memory, F_WRLCK), has(hole, F_WRLCK);
        CHECK(lseek(hole, 0, SEEK_CUR) == 3 && lseek(leased[0], 0, SEEK_CUR) == 5, "a position has moved");
        work_tick();
        work_sleep_us(500);
    }
    atomic_store(&ended, 1);
    PT(pthread_join(thread, NULL));
    return work_end();
}
