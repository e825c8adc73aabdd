/* flags: -O2 -pthread
 * Goal: a large file that is mapped is in every epoch as it is at the cut, whoever has written it, and how. Method: some processes
 * write pages of it at random through their maps and by calls, punch holes, cut and extend it; now and then processes come and go
 * and maps move. Who writes enters what in a journal in shared memory, under a lock; the file is compared with it in every round,
 * through a map and by calls. */
#include "work.h"
enum { PAGES = 2048, STAY = 2, WORDS = 512 };
struct page { uint64_t word[WORDS]; };
enum { BYTES = PAGES * sizeof(struct page) };
static struct journal {
    pthread_mutex_t lock;
    atomic_int stop;
    int pages;            /* of the file now */
    uint64_t seed[PAGES]; /* 0: zeros */
} *journal;
static struct page *memory;
static const struct page *seen; /* nothing can be stored through it */
static int fd;
static uint64_t state;

static uint64_t roll(void) { return state = work_mix(state + 0x9e3779b97f4a7c15u); }
static void lock(void) { PT(pthread_mutex_lock(&journal->lock)); }
static void unlock(void) { PT(pthread_mutex_unlock(&journal->lock)); }

static void map(void) {
    int reader = OK(open(work_path("pages"), O_RDONLY));
    memory = OK(mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    seen = OK(mmap(NULL, BYTES, PROT_READ, MAP_SHARED, reader, 0));
    close(reader);
}

static void write_page(void) {
    lock();
    int at = (int)(roll() % (unsigned)journal->pages);
    uint64_t seed = journal->seed[at] = roll() | 1;
    if (roll() % 3) {
        work_fill(&memory[at], sizeof *memory, seed);
    } else {
        struct page copy;
        work_fill(&copy, sizeof copy, seed);
        CHECK(pwrite(fd, &copy, sizeof copy, at * (off_t)sizeof copy) == sizeof copy, "pwrite");
    }
    unlock();
}

static void reshape(void) {
    lock();
    int at = (int)(roll() % PAGES), count = (int)(roll() % 8) + 1;
    switch (roll() % 3) {
    case 0: /* a hole */
        OK(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at * (off_t)sizeof *memory, count * (off_t)sizeof *memory));
        for (int i = at; i < at + count && i < PAGES; i++) journal->seed[i] = 0;
        break;
    case 1: /* shorter, and as long as before */
        OK(ftruncate(fd, at * (off_t)sizeof *memory));
        OK(ftruncate(fd, journal->pages * (off_t)sizeof *memory));
        for (int i = at; i < PAGES; i++) journal->seed[i] = 0;
        break;
    default: { /* another length */
        int pages = PAGES / 2 + at / 2;
        OK(ftruncate(fd, pages * (off_t)sizeof *memory));
        for (int i = pages; i < PAGES; i++) journal->seed[i] = 0;
        journal->pages = pages;
    }
    }
    unlock();
}

static void compare(void) {
    static struct page copy, zeros;
    lock();
    for (int at = 0; at < journal->pages; at++) {
        const struct page *page = &seen[at];
        if (at % 64 == (int)(atomic_load(&work_rounds) % 64)) { /* reading all so would take most of the time */
            CHECK(pread(fd, &copy, sizeof copy, at * (off_t)sizeof copy) == sizeof copy, "pread");
            page = &copy;
        }
        if (journal->seed[at]) work_expect(page, sizeof *page, journal->seed[at], "page of the file");
        else CHECK(!memcmp(page, &zeros, sizeof zeros), "page %d is not zeros", at);
    }
    unlock();
}

static void some(int count) {
    for (int i = 0; i < count; i++) {
        write_page();
        if (roll() % 8 == 0) work_sleep_us(200);
    }
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    state = 23;
    journal = OK(mmap(NULL, sizeof *journal, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    pthread_mutexattr_t attributes;
    PT(pthread_mutexattr_init(&attributes));
    PT(pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED));
    PT(pthread_mutex_init(&journal->lock, &attributes));
    journal->pages = PAGES;
    fd = OK(open(work_path("pages"), O_RDWR | O_CREAT, 0600));
    OK(ftruncate(fd, BYTES));
    map();
    pid_t stay[STAY];
    for (int i = 0; i < STAY; i++)
        if (!(stay[i] = OK(fork()))) {
            for (state += 1000 * (uint64_t)(i + 1); !atomic_load(&journal->stop); work_sleep_us(3000)) some(3);
            _exit(i);
        }
    for (uint64_t round = 0; work_more(); round++) {
        some(8);
        int is_quiet = round % 128 < 96; /* nobody comes or goes, and no map does */
        if (round % 128 >= 48 && round % 8 == 5) reshape();
        if (!is_quiet && round % 8 == 1) {
            pid_t pid = OK(fork());
            if (pid == 0) {
                state += round;
                some(10);
                _exit(9);
            }
            int status;
            CHECK(waitpid(pid, &status, 0) == pid && WEXITSTATUS(status) == 9, "child");
        }
        if (!is_quiet && round % 8 == 3) {
            OK(munmap(memory, BYTES));
            OK(munmap((void *)seen, BYTES));
            map();
        }
        compare();
        work_sleep_us(2000);
        work_tick();
    }
    atomic_store(&journal->stop, 1);
    for (int i = 0; i < STAY; i++) {
        int status;
        CHECK(waitpid(stay[i], &status, 0) == stay[i] && WEXITSTATUS(status) == i, "status");
    }
    compare();
    return work_end();
}
