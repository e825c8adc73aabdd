/* flags: -O2 -pthread
 * Goal: what the kernel is writing into memory when pages of it are stored ahead of a stop is in the epoch, though it is written
 * behind the back of the page tables. Method: threads read files past the cache (O_DIRECT), two contents of 4 MiB by turns, each into
 * memory of its own, and look at every page after each call; file systems without that show nothing. Another thread keeps the
 * rest of the memory changing. */
#include "work.h"
enum { PAGE = 4096, PAGES = 1024, READERS = 3, REST = 2048 };
static char *room[READERS], *rest;

static void make(const char *name, uint64_t seed) {
    static char content[PAGES * PAGE];
    int fd = OK(open(work_path(name), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    work_fill(content, sizeof content, seed);
    CHECK(write(fd, content, sizeof content) == sizeof content, "write");
    OK(fsync(fd)), close(fd);
}
static void *reads(void *arg) {
    size_t n = (size_t)arg;
    int fds[2];
    for (int i = 0; i < 2; i++) {
        fds[i] = open(work_path(i ? "odd" : "even"), O_RDONLY | O_DIRECT | O_CLOEXEC);
        if (fds[i] < 0 && errno == EINVAL) fds[i] = OK(open(work_path(i ? "odd" : "even"), O_RDONLY | O_CLOEXEC));
    }
    for (uint64_t round = 0; work_more(); round++) {
        int odd = round % 2;
        CHECK(pread(fds[odd], room[n], PAGES * PAGE, 0) == PAGES * PAGE, "pread");
        /* Untouched, so that nothing else tells of it. */
        for (int looks = 0; looks < 4; looks++) {
            work_expect(room[n], PAGES * PAGE, odd ? 1000000 : 5000000, "what was read");
            work_sleep_us(5000);
        }
    }
    return arg;
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    make("even", 5000000), make("odd", 1000000);
    pthread_t threads[READERS];
    rest = OK(mmap(NULL, (size_t)REST * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    for (size_t n = 0; n < READERS; n++) {
        room[n] = OK(mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        PT(pthread_create(&threads[n], NULL, reads, (void *)n));
    }
    for (uint64_t round = 0; work_more(); round++) {
        for (size_t page = round % 3; page < REST; page += 3) ((volatile uint64_t *)rest)[page * 512] = round;
        work_sleep_us(10000);
        for (size_t page = round % 3; page < REST; page += 3)
            CHECK(((volatile uint64_t *)rest)[page * 512] == round, "page %zu", page);
        work_tick();
    }
    for (size_t n = 0; n < READERS; n++) PT(pthread_join(threads[n], NULL));
    return work_end();
}
