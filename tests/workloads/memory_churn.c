/* flags: -O2
 * Goal: pages have the content that was stored last, whatever was done to their zone since the epoch before. Method: random
 * stores, read(2) into pages, discards, new zones in place of old ones, moves, protection changes and forks, on one area
 * with a model of what each page must hold; the model is itself in memory that is captured. Forks with the argument `forks`. */
#include "work.h"
enum { PAGE = 4096, PAGES = 2048, STILL = 4096, MOST = 24 };
static unsigned version[PAGES];     /* 0: zeros */
static int file_backed_fd = -1;
static char *area, *still, *file_map;
static unsigned file_version[64];   /* 0: the file's */
static uint64_t state = 1;
static uint64_t dice(uint64_t below) { return work_mix(state++) % below; }

static void store(char *at, unsigned v) {
    uint64_t *p = (uint64_t *)at;
    p[0] = work_mix(v), p[255] = ~(uint64_t)v, p[511] = v;
}
static void expect(const char *at, unsigned v, const char *what, int page) {
    const uint64_t *p = (const uint64_t *)at;
    uint64_t a = v ? work_mix(v) : 0, b = v ? ~(uint64_t)v : 0;
    CHECK(p[0] == a && p[255] == b && p[511] == v && p[1] == 0, "%s, page %d of version %u holds %lx %lx %lu", what, page, v, p[0], p[255], p[511]);
}
static void expect_all(int all) {
    for (int i = 0; i < PAGES; i++) if (all || dice(8) == 0) expect(area + (size_t)i * PAGE, version[i], "area", i);
    for (int i = 0; i < 64; i++) expect(file_map + i * PAGE, file_version[i] ? file_version[i] : 7000 + i, "private file", i);
    for (int i = 0; i < STILL; i += all ? 1 : 61) expect(still + (size_t)i * PAGE, 90000 + i, "untouched", i);
}

static void act(unsigned v) {
    int first = (int)dice(PAGES), count = 1 + (int)dice(MOST);
    if (first + count > PAGES) count = PAGES - first;
    char *at = area + (size_t)first * PAGE;
    size_t bytes = (size_t)count * PAGE;
    switch (dice(9)) {
    case 0: case 1:
        for (int i = 0; i < count; i++) store(at + i * PAGE, version[first + i] = v);
        break;
    case 2:
        OK(madvise(at, bytes, MADV_DONTNEED));
        memset(version + first, 0, count * sizeof *version);
        break;
    case 3:
        CHECK(mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at, "mmap");
        memset(version + first, 0, count * sizeof *version);
        break;
    case 4: { /* the kernel writes */
        static char page[PAGE];
        memset(page, 0, PAGE), store(page, v);
        int pipes[2];
        OK(pipe(pipes));
        CHECK(write(pipes[1], page, PAGE) == PAGE && read(pipes[0], at, PAGE) == PAGE, "pipe");
        close(pipes[0]), close(pipes[1]);
        version[first] = v;
        break;
    }
    case 5: { /* another zone moves here */
        char *other = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(other != MAP_FAILED, "mmap");
        for (int i = 0; i < count; i++) store(other + i * PAGE, version[first + i] = v);
        if (dice(2)) work_sleep_us(2000);
        CHECK(mremap(other, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, at) == at, "mremap");
        break;
    }
    case 6: { /* away and back, across what was one zone or several: page by page */
        char *other = mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(mremap(at, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, other) == other, "mremap away");
        CHECK(mremap(other, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, at) == at, "mremap back");
        break;
    }
    case 7: { /* a child's stores are its own; the parent's are not the child's */
        pid_t child = strcmp(work_arg, "forks") ? 1 : OK(fork());
        if (child == 0) { store(at, v + 1); _exit(0); }
        store(at, version[first] = v);
        int status;
        if (child != 1) CHECK(waitpid(child, &status, 0) == child && status == 0, "child");
        break;
    }
    case 8: {
        OK(mprotect(at, PAGE, PROT_READ));
        OK(mprotect(at, PAGE, PROT_READ | PROT_WRITE));
        int page = (int)dice(64);
        if (dice(2)) store(file_map + page * PAGE, file_version[page] = v);
        else OK(madvise(file_map + page * PAGE, PAGE, MADV_DONTNEED)), file_version[page] = 0;
        break;
    }
    }
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    area = mmap(NULL, (size_t)PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    still = mmap(NULL, (size_t)STILL * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(area != MAP_FAILED && still != MAP_FAILED, "mmap");
    for (int i = 0; i < STILL; i++) store(still + (size_t)i * PAGE, 90000 + i);
    file_backed_fd = OK(open(work_path("mapped"), O_RDWR | O_CREAT | O_TRUNC, 0600));
    static char page[PAGE];
    for (int i = 0; i < 64; i++) memset(page, 0, PAGE), store(page, 7000 + i), CHECK(write(file_backed_fd, page, PAGE) == PAGE, "write");
    file_map = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file_backed_fd, 0);
    CHECK(file_map != MAP_FAILED, "mmap");
    for (unsigned round = 1; work_more(); round++) {
        for (int i = 0; i < 40; i++) act(100 + round * 1000 + (unsigned)i * 2);
        work_sleep_us(3000);
        expect_all(round % 8 == 0);
        work_tick();
    }
    expect_all(1);
    return work_end();
}
