/* flags: -O2 -pthread
 * Goal: shared memory is in every epoch as it is at the cut, whoever has written it, however it was mapped. Method: large shared memory
 * of some processes, whose pages are written at random by the first, by children that stay, by children that come and go, by a
 * kernel that copies into it, at two places at once, and are given back; each writer enters what it wrote in a journal beside it,
 * under a lock, and all pages are compared with the journal in every round. */
#include "work.h"
#include <sys/ipc.h>
#include <sys/shm.h>
enum { PAGES = 2048, STAY = 3, WORDS = 512 };
struct page { uint64_t word[WORDS]; };
static struct ledger {
    pthread_mutex_t lock;
    atomic_int stop;
    uint64_t seed[PAGES]; /* 0: zeros */
} *ledger;
static struct page *memory, *again; /* two maps of one object */
static uint64_t state;

static uint64_t roll(void) { return state = work_mix(state + 0x9e3779b97f4a7c15u); }
static void lock(void) { PT(pthread_mutex_lock(&ledger->lock)); }
static void unlock(void) { PT(pthread_mutex_unlock(&ledger->lock)); }

static void write_page(int at) {
    lock();
    uint64_t seed = ledger->seed[at] = roll() | 1;
    struct page *place = roll() & 1 ? &memory[at] : &again[at];
    if (roll() % 4) {
        work_fill(place, sizeof *place, seed);
    } else { /* the kernel writes it */
        struct page copy;
        int ends[2];
        work_fill(&copy, sizeof copy, seed);
        OK(pipe(ends));
        CHECK(write(ends[1], &copy, sizeof copy) == sizeof copy, "write");
        CHECK(read(ends[0], place, sizeof *place) == sizeof *place, "read");
        close(ends[0]), close(ends[1]);
    }
    unlock();
}

static void give_back(int at) {
    lock();
    ledger->seed[at] = 0;
    OK(madvise(&memory[at], sizeof *memory, MADV_REMOVE));
    unlock();
}

static void compare(void) {
    static const struct page zeros;
    lock();
    for (int at = 0; at < PAGES; at++)
        if (ledger->seed[at]) work_expect(&memory[at], sizeof *memory, ledger->seed[at], "shared page");
        else CHECK(!memcmp(&memory[at], &zeros, sizeof zeros), "page %d is not zeros", at);
    unlock();
}

static void some(int count) {
    for (int i = 0; i < count; i++) {
        write_page((int)(roll() % PAGES));
        if (roll() % 8 == 0) work_sleep_us(200);
    }
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    state = 11;
    ledger = OK(mmap(NULL, sizeof *ledger, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    pthread_mutexattr_t attributes;
    PT(pthread_mutexattr_init(&attributes));
    PT(pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED));
    PT(pthread_mutex_init(&ledger->lock, &attributes));
    int is_segment = !strcmp(work_arg, "segment");
    if (is_segment) { /* of System V, which cannot be moved or given back in part */
        int id = OK(shmget(IPC_PRIVATE, PAGES * sizeof *memory, 0600));
        memory = OK(shmat(id, NULL, 0));
        again = OK(shmat(id, NULL, 0));
        OK(shmctl(id, IPC_RMID, NULL));
    } else {
        int fd = OK(memfd_create("pages", 0));
        OK(ftruncate(fd, PAGES * sizeof *memory));
        memory = OK(mmap(NULL, PAGES * sizeof *memory, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
        again = OK(mmap(NULL, PAGES * sizeof *memory, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
        close(fd);
    }
    pid_t stay[STAY];
    for (int i = 0; i < STAY; i++)
        if (!(stay[i] = OK(fork()))) {
            for (state += 1000 * (uint64_t)(i + 1); !atomic_load(&ledger->stop); work_sleep_us(3000)) some(4);
            _exit(i);
        }
    for (uint64_t round = 0; work_more(); round++) {
        some(10);
        int is_quiet = round % 128 < 96, gives = round % 128 >= 48; /* quiet: nobody comes or goes, and nothing is mapped */
        if (!is_quiet && round % 4 == 1) {
            pid_t pid = OK(fork());
            if (pid == 0) {
                state += round;
                some(20);
                _exit(9);
            }
            int status;
            CHECK(waitpid(pid, &status, 0) == pid && WEXITSTATUS(status) == 9, "child");
        }
        if (gives && round % 8 == 7) give_back((int)(roll() % PAGES));
        if (!is_quiet && !is_segment && round % 8 == 3) { /* moved */
            size_t bytes = PAGES * sizeof *again;
            void *place = OK(mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
            again = OK(mremap(again, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, place));
        }
        compare();
        work_sleep_us(2000);
        work_tick();
    }
    atomic_store(&ledger->stop, 1);
    for (int i = 0; i < STAY; i++) {
        int status;
        CHECK(waitpid(stay[i], &status, 0) == stay[i] && WEXITSTATUS(status) == i, "status");
    }
    compare();
    return work_end();
}
