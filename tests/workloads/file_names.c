/* flags: -O2 -pthread
 * Goal: a file that is cut by its name is in the epoch as it was cut, although the name went to it only when the call was on its way.
 * Method: a link leads to one of two files; at the same time one thread cuts the file that it leads to and another one has it lead to
 * the other file. Which one was cut is seen by its size, and then both are written to elsewhere, so that only what was recorded of
 * the cut brings it to the epoch. Files are filled again much later, and all the time compared with what memory has of them.
 * usage: DIR [full] */
#include "work.h"
#include <sys/resource.h>
enum { PAIRS = 400, PAGE = 4096, KEPT = 104, SPIN = 3000 };
/* How much of its first page a file has, and what its pages are filled with. */
static struct { size_t kept; uint64_t first, second; } files[PAIRS][2];
static unsigned char page[2 * PAGE + 8], zeros[PAGE];
static atomic_long turn, turned;
static char from[PATH_MAX], to[PATH_MAX];
static uint64_t state;

static uint64_t number(uint64_t below) { return (state = work_mix(state + 0x9e3779b97f4a7c15u)) % below; }
static const char *name(const char *what, int pair, int side) {
    char text[32];
    snprintf(text, sizeof text, "%s%d.%d", what, pair, side);
    return work_path(text);
}
static void spin(uint64_t times) {
    for (volatile uint64_t i = 0; i < times; i++) {}
}

static void *turns(void *none) {
    uint64_t seed = 1;
    for (long last = 0;; last++) {
        for (long tries = 0; atomic_load(&turn) == last; tries++)
            if (tries > 20000) work_sleep_us(50);
        if (atomic_load(&turn) < 0) return none;
        spin((seed = work_mix(seed + 1)) % SPIN);
        OK(rename(from, to));
        atomic_store(&turned, last + 1);
    }
}

static void write_page(int pair, int side, int at) {
    uint64_t *seed = at ? &files[pair][side].second : &files[pair][side].first;
    work_fill(page, PAGE, *seed = number(UINT64_MAX));
    int fd = OK(open(name("f", pair, side), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    CHECK(pwrite(fd, page, PAGE, at * PAGE) == PAGE, "write");
    close(fd);
    if (at == 0) files[pair][side].kept = PAGE;
}

static void fill(int pair) {
    for (int side = 0; side < 2; side++)
        if (files[pair][side].kept < PAGE) write_page(pair, side, 0);
}

static void cut(int pair, long round) {
    static int leads_to[PAIRS];
    char target[32];
    int next = !leads_to[pair];
    snprintf(target, sizeof target, "f%d.%d", pair, next);
    strcpy(from, name("next", pair, 0)), strcpy(to, name("link", pair, 0));
    OK(symlink(target, from));
    size_t kept = number(4) ? KEPT : 0;
    atomic_store(&turn, round);
    spin(number(SPIN));
    /* Also where nobody has a descriptor to spare. */
    struct rlimit limit, none;
    OK(getrlimit(RLIMIT_NOFILE, &limit));
    none = limit, none.rlim_cur = 0;
    int is_full = kept && *work_arg;
    if (is_full) OK(setrlimit(RLIMIT_NOFILE, &none));
    if (kept) OK(truncate(to, KEPT));
    else close(OK(open(to, O_WRONLY | O_TRUNC | O_CLOEXEC)));
    if (is_full) OK(setrlimit(RLIMIT_NOFILE, &limit));
    while (atomic_load(&turned) != round) sched_yield();
    leads_to[pair] = next;
    int count = 0;
    for (int side = 0; side < 2; side++) {
        struct stat now;
        OK(stat(name("f", pair, side), &now));
        if (now.st_size != 2 * PAGE) CHECK(now.st_size == (off_t)kept, "a cut"), files[pair][side].kept = kept, count++;
    }
    CHECK(count == 1, "%d files were cut", count);
    for (int side = 0; side < 2; side++) write_page(pair, side, 1);
}

static void compare(int pair) {
    for (int side = 0; side < 2; side++) {
        int fd = OK(open(name("f", pair, side), O_RDONLY | O_CLOEXEC));
        CHECK(read(fd, page, sizeof page) == 2 * PAGE, "size of file %d.%d", pair, side);
        close(fd);
        size_t kept = files[pair][side].kept;
        work_expect(page, kept, files[pair][side].first, "first page");
        CHECK(!memcmp(page + kept, zeros, PAGE - kept), "what was cut of %d.%d", pair, side);
        work_expect(page + PAGE, PAGE, files[pair][side].second, "second page");
    }
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    for (int pair = 0; pair < PAIRS; pair++) {
        for (int side = 0; side < 2; side++) write_page(pair, side, 0), write_page(pair, side, 1);
        char target[32];
        snprintf(target, sizeof target, "f%d.0", pair);
        OK(symlink(target, name("link", pair, 0)));
    }
    pthread_t thread;
    PT(pthread_create(&thread, NULL, turns, NULL));
    for (long round = 1; round == 1 || work_more(); round++) {
        int pair = (int)(round % PAIRS);
        cut(pair, round);
        fill((pair + PAIRS / 2) % PAIRS);
        compare((int)number(PAIRS));
        work_tick();
        work_sleep_us(200);
    }
    atomic_store(&turn, -1);
    PT(pthread_join(thread, NULL));
    for (int pair = 0; pair < PAIRS; pair++) compare(pair);
    return work_end();
}
