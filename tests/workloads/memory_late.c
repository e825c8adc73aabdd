/* flags: -O2 -pthread
 * Goal: memory that comes while the program runs already is what it was. Method: a model of each page beside it, on ordinary memory; pages
 * are read and stored to, by calls too, given back, moved and forked at random. The argument `raw` makes the last three by syscall
 * instructions of its own, which libholo does not see; `touches` leaves them out, since libholo waits with them until all is there, and the other thread, so that some
 * pages are never touched. */
#include "work.h"
enum { PAGE = 4096, PARTS = 64, PART = 128, PAGES = PARTS * PART, SPARE = 4 };
static uint64_t value[PAGES]; /* what the page says; 0: it was given back */
static char *where[PARTS], *spare[SPARE];
static uint64_t seed = 1;
static int raw;
static uint64_t number(uint64_t below) { return seed = seed * 6364136223846793005u + 1442695040888963407u, (seed >> 33) % below; }
static long call(long nr, long a, long b, long c, long d, long e) {
    if (!raw) {
        long got = syscall(nr, a, b, c, d, e);
        return got == -1 ? -errno : got;
    }
    register long r10 __asm__("r10") = d, r8 __asm__("r8") = e;
    long got;
    __asm__ volatile("syscall" : "=a"(got) : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8) : "rcx", "r11", "memory");
    return got;
}
static char *at(int page) { return where[page / PART] + (size_t)(page % PART) * PAGE; }
static int is_right(int page) {
    uint64_t *words = (uint64_t *)at(page), is = value[page];
    return words[0] == is && words[511] == (is ? work_mix(is) : 0) && words[number(510) + 1] == 0;
}
static void store(int page) {
    static uint64_t serial;
    uint64_t *words = (uint64_t *)at(page);
    words[0] = value[page] = ++serial, words[511] = work_mix(serial);
}
static char *room(void) {
    char *at = mmap(NULL, (size_t)PART * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(at != MAP_FAILED, "mmap");
    return at;
}
static void give_back(void) {
    int first = number(PAGES / 16) * 16;
    CHECK(call(SYS_madvise, (long)at(first), 16 * PAGE, MADV_DONTNEED, 0, 0) == 0, "madvise");
    memset(value + first, 0, 16 * sizeof *value);
    for (int i = 0; i < 16; i += 3) CHECK(is_right(first + i), "page %d was given back", first + i);
    for (int i = 0; i < 16; i += 2) store(first + i);
}
static void move(void) {
    int part = number(PARTS), to = number(SPARE);
    char *was = where[part];
    long got = call(SYS_mremap, (long)was, PART * PAGE, PART * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, (long)spare[to]);
    CHECK(got == (long)spare[to], "mremap: %ld", got);
    where[part] = spare[to], spare[to] = was;
    CHECK(mmap(was, (size_t)PART * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == was, "mmap");
    for (int i = 0; i < 4; i++) {
        int page = part * PART + number(PART);
        CHECK(is_right(page), "page %d was moved", page);
    }
}
static void forks(void) {
    int pid = raw ? call(SYS_fork, 0, 0, 0, 0, 0) : fork(), status;
    CHECK(pid >= 0, "fork: %d", pid);
    if (pid == 0) {
        for (int i = 0; i < 200; i++) {
            int page = number(PAGES);
            if (!is_right(page)) _exit(3);
            if (i % 8 == 0) store(page);
        }
        _exit(0);
    }
    int got = waitpid(pid, &status, 0);
    /* A child that libholo has not seen is not in an epoch that is cut while it lives. */
    if (raw && got < 0 && errno == ECHILD) return;
    CHECK(got == pid && status == 0, "the child saw other memory: %#x", status);
}
/* The kernel touches pages, not the program. */
static void through_a_pipe(void) {
    int ends[2], from = number(PAGES), to = number(PAGES);
    OK(pipe(ends));
    CHECK(write(ends[1], at(from), PAGE) == PAGE, "write");
    CHECK(read(ends[0], at(to), PAGE) == PAGE, "read");
    close(ends[0]), close(ends[1]);
    value[to] = value[from];
    CHECK(is_right(from) && is_right(to), "pages %d and %d", from, to);
}
/* Another thread waits for missing pages at the same time; its own, which nobody stores to. */
static uint64_t *others;
static void *reads(void *nothing) {
    for (uint64_t page = 0; work_more(); page = (page + 379) % PAGES) {
        CHECK(others[page * 512] == work_mix(page) && others[page * 512 + 511] == page, "page %lu of the other thread", page);
        if (page % 64 == 0) work_sleep_us(1000);
    }
    return nothing;
}
int main(int argc, char **argv) {
    pthread_t reader;
    work_begin(argc, argv);
    raw = strcmp(work_arg, "raw") == 0;
    int touches = strcmp(work_arg, "touches") == 0;
    for (int i = 0; i < SPARE; i++) spare[i] = room();
    char *all = mmap(NULL, (size_t)PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    others = mmap(NULL, (size_t)PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(all != MAP_FAILED && others != MAP_FAILED, "mmap");
    for (int i = 0; i < PARTS; i++) where[i] = all + (size_t)i * PART * PAGE;
    for (uint64_t page = 0; page < PAGES; page++) store(page), others[page * 512] = work_mix(page), others[page * 512 + 511] = page;
    if (!touches) PT(pthread_create(&reader, NULL, reads, NULL));
    while (work_more()) {
        for (int i = 0; i < 64; i++) {
            int page = number(PAGES);
            CHECK(is_right(page), "page %d", page);
            if (i % 4 == 0) store(page);
        }
        switch (touches ? 3 : number(4)) {
        case 0: give_back(); break;
        case 1: move(); break;
        case 2: forks(); break;
        case 3: through_a_pipe(); break;
        }
        work_tick();
        work_sleep_us(3000);
    }
    if (!touches) PT(pthread_join(reader, NULL));
    for (int page = 0; page < PAGES; page++) CHECK(is_right(page), "page %d at the end", page);
    return work_end();
}
