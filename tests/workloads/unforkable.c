/* flags: -O1
 * Goal: a process that may have no more processes (RLIMIT_NPROC) is protected all the same, with all of its memory. Method: the limit set
 * to none for good; private memory that changes all over, memory that cannot be read, memory of a file, zeros that were never
 * touched; all looked at in each round. */
#include "work.h"
#include <sys/resource.h>
enum { PAGE = 4096, PAGES = 4096 };

int main(int argc, char **argv) {
    work_begin(argc, argv);
    struct rlimit none = {0, 0}, now;
    OK(setrlimit(RLIMIT_NPROC, &none));
    char *big = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *closed = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(big != MAP_FAILED && closed != MAP_FAILED, "mmap");
    work_fill(closed, 4 * PAGE, 9);
    OK(mprotect(closed, 4 * PAGE, PROT_NONE));
    int fd = OK(open(work_path("file"), O_RDWR | O_CREAT | O_TRUNC, 0600));
    OK(ftruncate(fd, 8 * PAGE));
    char *file = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    CHECK(file != MAP_FAILED, "mmap of a file");
    memset(file + PAGE, 5, PAGE);
    uint64_t seed[PAGES] = {0};
    for (uint64_t round = 1; work_more(); round++) {
        /* One page in three stays untouched; in every eighth round nearly all others change. */
        for (int i = 0; i < PAGES; i++)
            if (i % 3 && (round % 8 == 0 || work_mix(round * PAGES + i) % 100 == 0)) work_fill(big + (size_t)i * PAGE, PAGE, seed[i] = round * PAGES + i);
        for (int i = 0; i < PAGES; i++) {
            if (seed[i]) work_expect(big + (size_t)i * PAGE, PAGE, seed[i], "page");
            else CHECK(!*(uint64_t *)(big + (size_t)i * PAGE + 8), "page %d was never written", i);
        }
        OK(mprotect(closed, 4 * PAGE, PROT_READ));
        work_expect(closed, 4 * PAGE, 9, "closed memory");
        OK(mprotect(closed, 4 * PAGE, PROT_NONE));
        CHECK(file[PAGE] == 5 && file[2 * PAGE - 1] == 5 && file[0] == 0, "memory of a file");
        OK(getrlimit(RLIMIT_NPROC, &now));
        CHECK(now.rlim_cur == 0 && now.rlim_max == 0, "the limit is %lu", (unsigned long)now.rlim_cur);
        work_tick();
        work_sleep_us(1000);
    }
    return work_end();
}
