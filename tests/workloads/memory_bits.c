/* flags: -O2
 * Goal: memory is in an epoch as it is where the kernel's soft-dirty bits do not tell that it changed. Method: a step each time that
 * DIR/go is there: tables of pages exchanged by mremap, small pages and huge ones; pages given back or mapped anew and then only read;
 * bits cleared by the program itself behind a store; equal pages that the kernel merges, if it does. Each page has a version. */
#include "work.h"
enum { PAGE = 4096, TABLE = 2 << 20, AREAS = 4, PAGES = 2 * TABLE / PAGE, EQUAL = 16 };
static char *area[AREAS], *room;
static unsigned version[AREAS][PAGES], last = 1;
static char *equal;
static unsigned equal_version[EQUAL];

static uint64_t *page_at(int i, int page) { return (uint64_t *)(area[i] + (size_t)page * PAGE); }
static void store(int i, int page) {
    unsigned v = version[i][page] = ++last;
    page_at(i, page)[0] = work_mix(v), page_at(i, page)[511] = v;
}
static void store_equal(int page, unsigned v) { *(uint64_t *)(equal + page * PAGE) = work_mix(equal_version[page] = v); }
static void expect(void) {
    for (int i = 0; i < AREAS; i++)
        for (int page = 0; page < PAGES; page++) {
            unsigned v = version[i][page];
            CHECK(page_at(i, page)[0] == (v ? work_mix(v) : 0) && page_at(i, page)[511] == v, "area %d, page %d of version %u holds %lx", i, page, v, page_at(i, page)[511]);
        }
    for (int page = 0; page < EQUAL; page++) CHECK(*(uint64_t *)(equal + page * PAGE) == work_mix(equal_version[page]), "equal page %d", page);
}
static void *map(void *at, size_t bytes, int prot) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (at ? MAP_FIXED : 0);
    return OK(mmap(at, bytes, prot, flags, -1, 0));
}
static void move(char *from, char *to) { CHECK(mremap(from, 2 * TABLE, 2 * TABLE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to, "mremap"); }
static void exchange(int one, int other) {
    move(area[one], room), move(area[other], area[one]), move(room, area[other]);
    for (int page = 0; page < PAGES; page++) {
        unsigned v = version[one][page];
        version[one][page] = version[other][page], version[other][page] = v;
    }
}
static void zeros(int i, int first, int count) {
    memset(version[i] + first, 0, count * sizeof *version[i]);
}
static void step(int n) {
    switch (n % 8) {
    case 0: exchange(0, 1); break;
    case 1:
        OK(madvise(page_at(0, 3), 5 * PAGE, MADV_DONTNEED)), zeros(0, 3, 5);
        break;
    case 2:
        map(area[1], 2 * TABLE, PROT_READ | PROT_WRITE), OK(madvise(area[1], 2 * TABLE, MADV_NOHUGEPAGE)), zeros(1, 0, PAGES);
        break;
    case 3: {
        for (int page = 0; page < PAGES; page++)
            if (page % 7) store(1, page);
        int fd = OK(open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC));
        CHECK(write(fd, "4", 1) == 1, "clear_refs");
        OK(close(fd));
        break;
    }
    case 4: exchange(2, 3); break;
    case 5:
        map(page_at(0, 100), 20 * PAGE, PROT_NONE), OK(mprotect(page_at(0, 100), 20 * PAGE, PROT_READ | PROT_WRITE));
        OK(madvise(page_at(0, 100), 20 * PAGE, MADV_NOHUGEPAGE)), zeros(0, 100, 20);
        break;
    case 6: {
        unsigned v = ++last;
        for (int page = 0; page < EQUAL; page++) store_equal(page, v);
        char runs = '0';
        int fd = open("/sys/kernel/mm/ksm/run", O_RDONLY | O_CLOEXEC);
        if (fd >= 0) CHECK(read(fd, &runs, 1) == 1, "ksm"), OK(close(fd));
        if (runs == '1') work_sleep_us(3000000);
        /* One is left alone with what was merged. */
        for (int page = 0; page < EQUAL; page++)
            if (page != n / 8 % EQUAL) store_equal(page, ++last);
        break;
    }
    case 7:
        for (int page = 0; page < PAGES; page += 11) store(0, page);
        store(2, PAGES / 3);
        break;
    }
}
int main(int argc, char **argv) {
    work_begin(argc, argv);
    char *all = map(NULL, (size_t)(2 * AREAS + 4) * 2 * TABLE, PROT_NONE);
    char *aligned = (char *)(((uintptr_t)all + TABLE - 1) & -(uintptr_t)TABLE);
    for (int i = 0; i < AREAS; i++) {
        area[i] = map(aligned + (size_t)(2 * i + 1) * 2 * TABLE, 2 * TABLE, PROT_READ | PROT_WRITE);
        OK(madvise(area[i], 2 * TABLE, i < 2 ? MADV_NOHUGEPAGE : MADV_HUGEPAGE));
        for (int page = 0; page < PAGES; page++) store(i, page);
    }
    room = aligned + (size_t)(2 * AREAS + 1) * 2 * TABLE;
    equal = map(NULL, EQUAL * PAGE, PROT_READ | PROT_WRITE);
    for (int page = 0; page < EQUAL; page++) store_equal(page, 0);
    /* Not on every kernel. */
    (void)madvise(equal, EQUAL * PAGE, MADV_MERGEABLE);
    for (int n = 0; work_more();) {
        if (access(work_path("go"), F_OK) == 0) step(n++), OK(unlink(work_path("go")));
        expect();
        work_tick();
        work_sleep_us(2000);
    }
    return work_end();
}
