/* flags: -O2 -pthread
 * Goal: what is done to memory between the moment at which pages of it are stored ahead of a stop and the stop is in the epoch. Method:
 * 96 MiB in blocks, large enough that there is always something done meanwhile: runs of pages are stored to, by the kernel as well,
 * blocks are discarded, mapped anew, moved, exchanged, grown and cut, closed for a while, inherited by children, without a
 * pause; each page has a version from which its content follows. A thread stores pairs that no epoch may tear apart. */
#include "work.h"
enum { PAGE = 4096, BLOCKS = 24, FULL = 1024, PAIRS = 64 };
static struct { char *at; unsigned pages, parts, version[FULL]; } block[BLOCKS];
static uint64_t dice_state = 7;
static unsigned last = 1;
static uint64_t *pairs;

static uint64_t dice(uint64_t below) { return work_mix(dice_state++) % below; }
static uint64_t *page_at(int i, unsigned page) { return (uint64_t *)(block[i].at + (size_t)page * PAGE); }

static void fill(uint64_t *p, unsigned before, unsigned v) {
    p[1 + before % 510] = 0;
    p[0] = work_mix(v), p[1 + v % 510] = ~(uint64_t)v, p[511] = v;
}
static void store(int i, unsigned page) {
    unsigned before = block[i].version[page];
    fill(page_at(i, page), before, block[i].version[page] = ++last);
}
static void expect(int i, unsigned page) {
    const uint64_t *p = page_at(i, page);
    unsigned v = block[i].version[page];
    CHECK(p[0] == (v ? work_mix(v) : 0) && p[511] == v && p[1 + v % 510] == (v ? ~(uint64_t)v : 0) && p[1 + (v + 1) % 510] == 0,
          "block %d, page %u of version %u holds %lx %lx", i, page, v, p[0], p[511]);
}
static void expect_block(int i, unsigned step) {
    for (unsigned page = dice(step); page < block[i].pages; page += 1 + dice(2 * step - 1)) expect(i, page);
}
static void *map(void *at, unsigned pages) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | (at ? MAP_FIXED : 0);
    return OK(mmap(at, (size_t)pages * PAGE, PROT_READ | PROT_WRITE, flags, -1, 0));
}
static void forget(int i, unsigned first, unsigned count) { memset(block[i].version + first, 0, count * sizeof *block[i].version); }
static char *move(char *from, size_t bytes, size_t new_bytes, char *to) {
    return OK(mremap(from, bytes, new_bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to));
}

static void act(int forks) {
    int i = (int)dice(BLOCKS), other = (int)dice(BLOCKS);
    unsigned first = (unsigned)dice(block[i].pages), count = 1 + (unsigned)dice(48);
    if (first + count > block[i].pages) count = block[i].pages - first;
    char *at = (char *)page_at(i, first);
    size_t bytes = (size_t)block[i].pages * PAGE;
    switch (dice(40)) {
    default:
        for (unsigned k = 0; k < count; k++) store(i, first + k);
        break;
    case 0: case 1:
        OK(madvise(at, (size_t)count * PAGE, MADV_DONTNEED)), forget(i, first, count);
        break;
    case 2: /* there again at once, with other content */
        OK(madvise(at, (size_t)count * PAGE, MADV_DONTNEED)), forget(i, first, count);
        for (unsigned k = 0; k < count; k += 2) store(i, first + k);
        break;
    case 3: /* another zone in the place of a part */
        map(at, count), forget(i, first, count), block[i].parts++;
        if (dice(2)) store(i, first);
        break;
    case 4: /* gone, and another one somewhere */
        if (dice(block[i].parts ? 2 : 8)) break;
        OK(munmap(block[i].at, bytes));
        block[i].at = map(NULL, block[i].pages), block[i].parts = 0, forget(i, 0, block[i].pages);
        for (unsigned k = 0; k < block[i].pages; k += 1 + (unsigned)dice(3)) store(i, k);
        break;
    case 5: { /* elsewhere, and perhaps longer */
        if (block[i].parts || dice(3)) break;
        unsigned pages = block[i].pages + 16 <= FULL ? block[i].pages + (unsigned)dice(17) : block[i].pages;
        char *to = OK(mmap(NULL, (size_t)pages * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        block[i].at = move(block[i].at, bytes, (size_t)pages * PAGE, to), block[i].pages = pages;
        break;
    }
    case 6: /* shorter */
        if (block[i].pages < FULL / 2 || dice(4)) break;
        block[i].pages -= 5;
        OK(munmap(page_at(i, block[i].pages), 5 * PAGE)), forget(i, block[i].pages, 5);
        break;
    case 7: { /* two pages change places */
        unsigned page = (unsigned)dice(block[other].pages);
        if (dice(8) || (i == other && page == first)) break;
        char *room = OK(mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)), *there = (char *)page_at(other, page);
        move(at, PAGE, PAGE, room), move(there, PAGE, PAGE, at), move(room, PAGE, PAGE, there);
        unsigned version = block[i].version[first];
        block[i].parts++, block[other].parts++;
        block[i].version[first] = block[other].version[page], block[other].version[page] = version;
        break;
    }
    case 8: { /* the kernel stores */
        static uint64_t page[512];
        int pipes[2];
        memset(page, 0, sizeof page), fill(page, 0, block[i].version[first] = ++last);
        OK(pipe(pipes));
        CHECK(write(pipes[1], page, PAGE) == PAGE && read(pipes[0], at, PAGE) == PAGE, "pipe");
        close(pipes[0]), close(pipes[1]);
        break;
    }
    case 9:
        OK(mprotect(block[i].at, bytes, dice(2) ? PROT_READ : PROT_NONE));
        if (dice(4) == 0) work_sleep_us(500);
        OK(mprotect(block[i].at, bytes, PROT_READ | PROT_WRITE));
        break;
    case 10: { /* its stores are its own */
        int status;
        if (!forks || dice(12)) break;
        pid_t child = OK(fork());
        if (child == 0) {
            for (unsigned k = 0; k < count; k++) store(i, first + k);
            for (int n = 0; n < BLOCKS; n++) expect_block(n, 64);
            _exit(0);
        }
        for (unsigned k = 0; k < count; k++) store(i, first + k);
        CHECK(waitpid(child, &status, 0) == child && status == 0, "a child ended with %x", status);
        break;
    }
    }
}

static void *store_pairs(void *arg) {
    for (uint64_t n = 1; !work_failed; n++) {
        atomic_store((atomic_ulong *)(pairs + n % PAIRS * 512), n);
        atomic_store((atomic_ulong *)(pairs + (n % PAIRS + PAIRS) * 512), n);
        if (n % 64 == 0) work_sleep_us(100);
    }
    return arg;
}
static void expect_pairs(void) {
    for (int i = 0; i < PAIRS; i++) {
        uint64_t second = atomic_load((atomic_ulong *)(pairs + (i + PAIRS) * 512)), first = atomic_load((atomic_ulong *)(pairs + i * 512));
        CHECK(first >= second, "pair %d: %lu %lu", i, first, second);
    }
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    int forks = !strcmp(work_arg, "forks");
    for (int i = 0; i < BLOCKS; i++) {
        block[i].pages = FULL - (unsigned)dice(32);
        block[i].at = map(NULL, block[i].pages);
        for (unsigned k = 0; k < block[i].pages; k++) store(i, k);
    }
    pairs = map(NULL, 2 * PAIRS);
    pthread_t thread;
    PT(pthread_create(&thread, NULL, store_pairs, NULL));
    for (unsigned round = 1; work_more(); round++) {
        for (int k = 0; k < 20; k++) act(forks);
        for (int i = 0; i < BLOCKS; i++) expect_block(i, round % 16 ? 128 : 1);
        expect_pairs();
        work_tick();
    }
    for (int i = 0; i < BLOCKS; i++) expect_block(i, 1);
    return work_end();
}
