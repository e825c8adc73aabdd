/* flags: -O1 -pthread
 * Goal: zones can still grow and shrink after a stop or a restore. Method: the heap by brk and by malloc, the main
 * stack by recursion, a MAP_GROWSDOWN zone by touching below it, mremap, holes by munmap and MADV_DONTNEED. */
#include "work.h"
enum { PAGE = 4096 };

static uint64_t deep(int level, uint64_t x) {
    volatile uint64_t frame[512];
    for (int i = 0; i < 512; i++) frame[i] = work_mix(x + i);
    uint64_t below = level ? deep(level - 1, x + 1) : 0;
    for (int i = 0; i < 512; i++) CHECK(frame[i] == work_mix(x + i), "stack frame at level %d", level);
    return below + frame[0];
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    char *grow_base = mmap(NULL, 1024 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(grow_base != MAP_FAILED, "reserve");
    /* Below the zone a hole of one guard gap, where the kernel puts nothing else, then no access. */
    CHECK(munmap(grow_base + 600 * PAGE, 260 * PAGE) == 0, "munmap");
    char *down = mmap(grow_base + 856 * PAGE, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED_NOREPLACE, -1, 0);
    CHECK(down != MAP_FAILED, "MAP_GROWSDOWN");
    size_t block_bytes = 64 * PAGE;
    char *moving = mmap(NULL, block_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *heap = sbrk(0);
    CHECK(moving != MAP_FAILED, "mmap");
    work_fill(moving, 64 * PAGE, 5);
    int touched = 0;
    for (uint64_t round = 1; work_more(); round++) {
        char *before = sbrk(0), *more = sbrk(8 * PAGE);
        CHECK(more == before && before >= heap, "brk moved from %p to %p", before, more);
        for (int i = 0; i < 8 * PAGE; i++) CHECK(more[i] == 0, "fresh heap is not zero");
        work_fill(more, 8 * PAGE, round);
        char *blocks[40];
        for (int i = 0; i < 40; i++) CHECK((blocks[i] = malloc(3000 * (i + 1))), "malloc"), work_fill(blocks[i], 3000 * (i + 1), round + i);
        deep(1 + (int)(round % 60), round);
        if (touched < 200) {
            touched++;
            down[-touched * PAGE] = (char)touched;
            for (int i = 1; i <= touched; i++) CHECK(down[-i * PAGE] == (char)i, "growing zone, page %d", i);
        }
        size_t new_bytes = block_bytes > 200 * PAGE ? 64 * PAGE : block_bytes + 16 * PAGE;
        moving = mremap(moving, block_bytes, new_bytes, MREMAP_MAYMOVE);
        CHECK(moving != MAP_FAILED, "mremap");
        block_bytes = new_bytes;
        work_expect(moving, 64 * PAGE, 5, "moved zone");
        char *hole = mmap(NULL, 9 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        work_fill(hole, 9 * PAGE, round);
        CHECK(munmap(hole + 3 * PAGE, PAGE) == 0 && madvise(hole + 5 * PAGE, PAGE, MADV_DONTNEED) == 0, "hole");
        work_sleep_us(3000);
        work_expect(hole, 3 * PAGE, round, "before the hole");
        work_expect(hole + 4 * PAGE, PAGE, round + 4 * 512, "after the hole");
        for (int i = 0; i < PAGE; i++) CHECK(hole[5 * PAGE + i] == 0, "discarded page is not zero");
        CHECK(msync(hole + 3 * PAGE, PAGE, MS_ASYNC) == -1 && errno == ENOMEM, "the hole is mapped");
        munmap(hole, 9 * PAGE);
        for (int i = 0; i < 40; i++) work_expect(blocks[i], 3000 * (i + 1), round + i, "malloc block"), free(blocks[i]);
        work_expect(more, 8 * PAGE, round, "heap");
        if (round % 50 == 0) OK(brk(more));
        work_tick();
    }
    return work_end();
}
