/* flags: -O2 -pthread
 * Goal: every page holds what was stored there last, over any history of its zone. Method: zones of each sort, each page with
 * a version from which its content follows; ranges are stored to, discarded, guarded, closed, moved, mapped anew, grown and
 * cut, tables of 2 MiB are emptied at once, children go on with their copies for some epochs; a thread stores pairs meanwhile. */
#include "work.h"
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif
enum { PAGE = 4096, TABLE = 512, MOST = 4 * TABLE, ZONES = 7, PAIRS = 64, CHILDREN = 3 };
enum { PLAIN, HUGE, LARGE, SPARSE, OF_FILE, OF_MEMFD, CLOSED };
static struct { char *at; size_t pages; unsigned version[MOST]; int closed, guards; } zone[ZONES];
static uint64_t dice_state;
static unsigned last = 1;
static pid_t children[CHILDREN];
static uint64_t *pairs;

static uint64_t dice(uint64_t below) { return work_mix(dice_state++) % below; }
/* Of a sparse zone, one page in each gigabyte. */
static size_t stride(int i) { return i == SPARSE ? (size_t)1 << 30 : PAGE; }
static char *page_at(int i, size_t page) { return zone[i].at + page * stride(i); }

static void store(int i, size_t page) {
    uint64_t *p = (uint64_t *)page_at(i, page);
    p[1 + zone[i].version[page] % 510] = 0;
    unsigned v = zone[i].version[page] = ++last;
    p[0] = work_mix(v), p[1 + v % 510] = ~(uint64_t)v, p[511] = v;
}
static void expect(int i, size_t page) {
    const uint64_t *p = (const uint64_t *)page_at(i, page);
    unsigned v = zone[i].version[page];
    CHECK(p[0] == (v ? work_mix(v) : 0) && p[511] == v && p[1 + v % 510] == (v ? ~(uint64_t)v : 0) && p[1 + (v + 1) % 510] == 0,
          "zone %d, page %zu of version %u holds %lx %lx", i, page, v, p[0], p[511]);
}
static void expect_zone(int i, size_t step) {
    if (zone[i].closed || zone[i].guards) return;
    for (size_t page = dice(step); page < zone[i].pages; page += 1 + dice(2 * step - 1)) expect(i, page);
}
static int file_of(int i) {
    if (i != OF_FILE && i != OF_MEMFD) return -1;
    int fd = i == OF_FILE ? OK(open(work_path("wild"), O_RDWR | O_CREAT | O_CLOEXEC, 0600)) : OK(memfd_create("wild", MFD_CLOEXEC));
    OK(ftruncate(fd, (size_t)MOST * PAGE));
    return fd;
}
static void map(int i, void *at, size_t pages) {
    size_t bytes = pages * stride(i), align = (size_t)TABLE * PAGE;
    int fd = file_of(i), flags = MAP_PRIVATE | MAP_NORESERVE | (fd < 0 ? MAP_ANONYMOUS : 0) | (at ? MAP_FIXED : 0);
    if (!at && i == HUGE) { /* where huge pages fit */
        char *room = OK(mmap(NULL, bytes + align, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        at = (char *)(((uintptr_t)room + align - 1) & ~(align - 1)), flags |= MAP_FIXED;
    }
    zone[i].at = OK(mmap(at, bytes, PROT_READ | PROT_WRITE, flags, fd, 0));
    if (fd >= 0) close(fd);
    if (i == HUGE) madvise(zone[i].at, bytes, MADV_HUGEPAGE);
    zone[i].pages = pages, zone[i].closed = zone[i].guards = 0;
    memset(zone[i].version, 0, sizeof zone[i].version);
}
static void open_again(int i) {
    if (zone[i].closed) OK(mprotect(zone[i].at, zone[i].pages * stride(i), PROT_READ | PROT_WRITE));
    if (zone[i].guards) OK(madvise(zone[i].at, zone[i].pages * stride(i), MADV_GUARD_REMOVE));
    zone[i].closed = zone[i].guards = 0;
}
static void forget(int i, size_t first, size_t count) { memset(zone[i].version + first, 0, count * sizeof *zone[i].version); }

/* A child's stores are its own; it stays for some epochs. */
static void fork_one(void) {
    for (int n = 0; n < CHILDREN; n++) {
        int status;
        if (children[n] && waitpid(children[n], &status, WNOHANG) == 0) continue;
        else if (children[n]) CHECK(status == 0, "a child ended with %x", status);
        if ((children[n] = OK(fork())) != 0) return;
        for (int round = 0; round < 20; round++) {
            for (int k = 0; k < 8; k++) {
                int i = (int)dice(ZONES);
                if (!zone[i].closed && !zone[i].guards) store(i, dice(zone[i].pages));
            }
            work_sleep_us(2000);
            for (int i = 0; i < ZONES; i++) expect_zone(i, 64);
        }
        for (int i = 0; i < ZONES; i++) expect_zone(i, 1);
        _exit(0);
    }
}

static void act(void) {
    int i = (int)dice(ZONES);
    if ((zone[i].closed || zone[i].guards) && dice(3)) return;
    open_again(i);
    size_t first = dice(zone[i].pages), count = 1 + dice(24);
    if (first + count > zone[i].pages) count = zone[i].pages - first;
    char *at = page_at(i, first);
    size_t bytes = count * stride(i), tables = zone[i].pages / TABLE;
    switch (dice(12)) {
    case 0: case 1: case 2: case 3:
        for (size_t k = 0; k < count; k++) store(i, first + k);
        break;
    case 4:
        OK(madvise(at, bytes, MADV_DONTNEED)), forget(i, first, count);
        break;
    case 5: /* whole tables of pages go, and are there again, or not */
        if (i == SPARSE || tables == 0) break;
        first = dice(tables) * TABLE;
        OK(madvise(page_at(i, first), (size_t)TABLE * PAGE, MADV_DONTNEED)), forget(i, first, TABLE);
        if (dice(2)) for (size_t k = 0; k < TABLE; k += 1 + dice(40)) store(i, first + k);
        break;
    case 6: /* guards empty what they cover */
        if (strcmp(work_arg, "guards") || i == SPARSE || i >= OF_FILE || madvise(at, bytes, MADV_GUARD_INSTALL)) break;
        zone[i].guards = 1, forget(i, first, count);
        break;
    case 7:
        OK(mprotect(zone[i].at, zone[i].pages * stride(i), PROT_NONE));
        zone[i].closed = 1;
        break;
    case 8: { /* elsewhere, and perhaps longer */
        if (i == HUGE || i == SPARSE) break;
        size_t pages = i < OF_FILE && zone[i].pages + 16 <= MOST ? zone[i].pages + dice(17) : zone[i].pages;
        char *to = OK(mmap(NULL, pages * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        zone[i].at = OK(mremap(zone[i].at, zone[i].pages * PAGE, pages * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to));
        zone[i].pages = pages;
        break;
    }
    case 9: /* shorter */
        if (i == SPARSE || zone[i].pages < TABLE) break;
        OK(munmap(page_at(i, zone[i].pages - 3), 3 * PAGE));
        zone[i].pages -= 3, forget(i, zone[i].pages, 3);
        break;
    case 10: /* another one in its place */
        if (dice(3) == 0) map(i, zone[i].at, zone[i].pages);
        break;
    case 11:
        if (!strcmp(work_arg, "forks") && dice(8) == 0) fork_one();
        break;
    }
}

/* Stores that no epoch may tear apart: the second never before the first. */
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
    static const size_t pages[ZONES] = {300, 3 * TABLE, 3 * TABLE + 77, 24, 200, 90, 120};
    for (int i = 0; i < ZONES; i++) {
        map(i, NULL, pages[i]);
        for (size_t k = 0; k < pages[i]; k += 1 + dice(2)) store(i, k);
    }
    pairs = OK(mmap(NULL, 2 * PAIRS * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    pthread_t thread;
    PT(pthread_create(&thread, NULL, store_pairs, NULL));
    for (unsigned round = 1; work_more(); round++) {
        for (int k = 0; k < 30; k++) act();
        work_sleep_us(2000);
        for (int i = 0; i < ZONES; i++) expect_zone(i, round % 8 ? 16 : 1);
        expect_pairs();
        work_tick();
    }
    for (int i = 0; i < ZONES; i++) open_again(i), expect_zone(i, 1);
    for (int n = 0; n < CHILDREN; n++) {
        int status;
        if (children[n]) CHECK(waitpid(children[n], &status, 0) == children[n] && status == 0, "a child ended with %x", status);
    }
    return work_end();
}
