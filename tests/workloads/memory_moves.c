/* flags: -O2
 * Goal: memory that grew since an epoch moves and grows on as one zone. Method: the kernel merges neighbours of the same kind, but
 * none that is watched for writes with one that is not; areas are put together of parts of different ages, and moved. */
#include "work.h"
enum { PAGE = 4096, PART = 8, ROOM = 128 };
static uint64_t serial = 1;
static void fill(char *at, int pages, uint64_t first) { for (int i = 0; i < pages; i++) *(uint64_t *)(at + i * PAGE) = work_mix(first + i), ((uint64_t *)(at + i * PAGE))[511] = first + i; }
static void expect(char *at, int pages, uint64_t first, const char *what) {
    for (int i = 0; i < pages; i++) CHECK(*(uint64_t *)(at + i * PAGE) == work_mix(first + i) && ((uint64_t *)(at + i * PAGE))[511] == first + i, "%s: page %d of %d", what, i, pages);
}
static char *part(char *at, int pages) {
    CHECK(mmap(at, (size_t)pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at, "mmap");
    return at;
}
static char *room(void) {
    char *at = mmap(NULL, (size_t)ROOM * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(at != MAP_FAILED, "mmap");
    return at;
}
int main(int argc, char **argv) {
    work_begin(argc, argv);
    while (work_more()) {
        for (int how = 0; how < 4; how++) {
            char *base = room(), *to = room();
            uint64_t first = serial;
            int pages = 0;
            /* Parts of which some have seen an epoch and some have not. */
            for (int i = 0; i < 4; i++) {
                part(base + (size_t)pages * PAGE, PART);
                fill(base + (size_t)pages * PAGE, PART, first + pages);
                pages += PART;
                if (i != 2) work_sleep_us(4000);
            }
            serial += pages;
            size_t bytes = (size_t)pages * PAGE;
            char *now = base;
            switch (how) {
            case 0: /* grows; it cannot stay */
                now = mremap(base, bytes, bytes + ROOM * PAGE, MREMAP_MAYMOVE);
                CHECK(now != MAP_FAILED, "growing: %s", strerror(errno));
                break;
            case 1: /* moves to a place of its choice */
                now = mremap(base, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to);
                CHECK(now == to, "moving: %s", strerror(errno));
                break;
            case 2: /* shrinks and moves */
                now = mremap(base, bytes, bytes - PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to);
                CHECK(now == to, "shrinking: %s", strerror(errno));
                pages--, bytes -= PAGE;
                break;
            case 3: /* leaves an empty place behind */
                now = mremap(base, bytes, bytes, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
                CHECK(now != MAP_FAILED, "leaving: %s", strerror(errno));
                for (int i = 0; i < pages; i++) CHECK(*(uint64_t *)(base + i * PAGE) == 0, "left behind: page %d", i);
                break;
            }
            expect(now, pages, first, "moved");
            work_sleep_us(2000);
            expect(now, pages, first, "later");
            munmap(now, how == 0 ? bytes + ROOM * PAGE : bytes);
            munmap(base, (size_t)ROOM * PAGE), munmap(to, (size_t)ROOM * PAGE);
            /* What is not one zone, and what is no memory, fails as ever. */
            errno = 0;
            CHECK(mremap(base, PAGE, 2 * PAGE, MREMAP_MAYMOVE) == MAP_FAILED && errno == EFAULT, "nothing was moved: %s", strerror(errno));
        }
        work_tick();
    }
    return work_end();
}
