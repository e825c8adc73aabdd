/* flags: -O2 -pthread -lrt
 * Goal: every type of zone keeps its content, protection and sharing. Method: one zone of each type, with patterns that
 * change every round; a store through one mapping must show through the other. */
#include "work.h"
enum { KIB = 1024, SIZE = 256 * KIB, PAGE = 4096 };
static char *anonymous, *file_private, *file_shared, *memfd_a, *memfd_b, *shm, *shared_anonymous, *read_only, *guarded, *guarded_shared, *sparse, *huge, *low, *zeroes;
static uint64_t seed;

static char *map(void *at, size_t bytes, int protection, int flags, int fd) {
    char *p = mmap(at, bytes, protection, flags, fd, 0);
    CHECK(p != MAP_FAILED, "mmap of %zu", bytes);
    return p;
}

/* The line of /proc/self/maps that holds an address, its protection and name; empty if none does. */
static void line_of(const void *address, char *line, size_t bytes) {
    FILE *f = fopen("/proc/self/maps", "re");
    CHECK(f, "maps");
    int found = 0;
    while (!found && fgets(line, (int)bytes, f)) {
        unsigned long from, to;
        found = sscanf(line, "%lx-%lx", &from, &to) == 2 && (unsigned long)address >= from && (unsigned long)address < to;
    }
    if (!found) *line = 0;
    fclose(f);
}
static int is_protected(const void *address, const char *wanted, char *line, size_t bytes) {
    line_of(address, line, bytes);
    char *space = strchr(line, ' ');
    return space && !strncmp(space + 1, wanted, 4);
}
/* Twice: the text is read in pieces, and after a restore between two of them the rest is another one's (docs/limits.md). */
static void protection(const void *address, const char *wanted, const char *what) {
    char line[600];
    CHECK(is_protected(address, wanted, line, sizeof line) || is_protected(address, wanted, line, sizeof line), "%s at %p: %s", what, address, line);
}

static void fill(void) {
    work_fill(anonymous, SIZE, seed);
    work_fill(file_private, SIZE / 2, seed + 1);       /* copied on write; the other half stays the file's */
    work_fill(file_shared, SIZE, seed + 2);
    work_fill(memfd_a, SIZE, seed + 3);
    work_fill(shm, SIZE, seed + 4);
    work_fill(shared_anonymous, SIZE, seed + 5);
    CHECK(mprotect(read_only, SIZE, PROT_READ | PROT_WRITE) == 0, "mprotect");
    work_fill(read_only, SIZE, seed + 6);
    CHECK(mprotect(read_only, SIZE, PROT_READ) == 0, "mprotect");
    work_fill(guarded + PAGE, PAGE, seed + 7);
    work_fill(guarded_shared + PAGE, PAGE, seed + 32);
    CHECK(mprotect(guarded_shared, PAGE, PROT_READ | PROT_WRITE) == 0, "mprotect");
    work_fill(guarded_shared, PAGE, seed + 33);
    CHECK(mprotect(guarded_shared, PAGE, PROT_NONE) == 0, "mprotect");
    for (int i = 0; i < 16; i++) work_fill(sparse + ((size_t)i << 32), PAGE, seed + 8 + i);
    work_fill(huge, 4 * KIB * KIB, seed + 30);
    work_fill(low, SIZE, seed + 31);
    work_fill(zeroes, PAGE, seed + 34);                /* the other half stays empty */
}

static void expect(int fd) {
    work_expect(anonymous, SIZE, seed, "anonymous");
    work_expect(file_private, SIZE / 2, seed + 1, "private file, written half");
    work_expect(file_private + SIZE / 2, SIZE / 2, 4242 + SIZE / 16, "private file, clean half");
    work_expect(file_shared, SIZE, seed + 2, "shared file");
    char *copy = malloc(SIZE);
    CHECK(pread(fd, copy, SIZE, 0) == SIZE, "pread");
    work_expect(copy, SIZE, seed + 2, "file behind the shared map");
    free(copy);
    work_expect(memfd_a, SIZE, seed + 3, "memfd");
    work_expect(memfd_b, SIZE, seed + 3, "second map of the memfd");
    work_expect(shm, SIZE, seed + 4, "shm_open");
    work_expect(shared_anonymous, SIZE, seed + 5, "MAP_SHARED|MAP_ANONYMOUS");
    work_expect(read_only, SIZE, seed + 6, "read-only zone");
    work_expect(guarded + PAGE, PAGE, seed + 7, "between guards");
    work_expect(guarded_shared + PAGE, PAGE, seed + 32, "between shared guards");
    protection(guarded_shared, "---s", "shared guard below");
    protection(guarded_shared + 2 * PAGE, "---s", "shared guard above");
    CHECK(mprotect(guarded_shared, PAGE, PROT_READ) == 0, "mprotect");
    work_expect(guarded_shared, PAGE, seed + 33, "written before it became a guard");
    CHECK(mprotect(guarded_shared, PAGE, PROT_NONE) == 0, "mprotect");
    for (int i = 0; i < 16; i++) work_expect(sparse + ((size_t)i << 32), PAGE, seed + 8 + i, "sparse reservation");
    CHECK(sparse[5 * PAGE] == 0 && sparse[((size_t)7 << 32) + 9 * PAGE] == 0, "an untouched page is not zero");
    work_expect(huge, 4 * KIB * KIB, seed + 30, "huge-page advice");
    work_expect(low, SIZE, seed + 31, "zone below 4 GiB");
    work_expect(zeroes, PAGE, seed + 34, "private /dev/zero");
    for (int i = PAGE; i < 2 * PAGE; i++) CHECK(zeroes[i] == 0, "an untouched page of /dev/zero is not zero");
    protection(anonymous, "rw-p", "anonymous");
    protection(read_only, "r--p", "read-only");
    protection(guarded, "---p", "guard below");
    protection(guarded + PAGE, "rw-p", "between guards");
    protection(guarded + 2 * PAGE, "---p", "guard above");
    protection(shm, "rw-s", "shm");
    protection(shared_anonymous, "rw-s", "shared anonymous");
}

int main(int argc, char **argv) {
    char name[64];
    work_begin(argc, argv);
    anonymous = map(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    int private_fd = OK(open(work_path("private"), O_RDWR | O_CREAT | O_TRUNC, 0600)), shared_fd = OK(open(work_path("shared"), O_RDWR | O_CREAT | O_TRUNC, 0600));
    work_fill(anonymous, SIZE, 4242);
    CHECK(write(private_fd, anonymous, SIZE) == SIZE && write(shared_fd, anonymous, SIZE) == SIZE, "write");
    file_private = map(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, private_fd);
    close(private_fd);
    file_shared = map(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, shared_fd);
    int memfd = OK(memfd_create("pattern", 0));
    OK(ftruncate(memfd, SIZE));
    memfd_a = map(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, memfd);
    memfd_b = map(NULL, SIZE, PROT_READ, MAP_SHARED, memfd);
    close(memfd);
    snprintf(name, sizeof name, "/holo-work-%d", getpid());
    int object = OK(shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600));
    OK(ftruncate(object, SIZE));
    shm = map(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, object);
    OK(shm_unlink(name));
    shared_anonymous = map(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
    read_only = map(NULL, SIZE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    guarded = map(NULL, 3 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    CHECK(mprotect(guarded + PAGE, PAGE, PROT_READ | PROT_WRITE) == 0, "mprotect");
    guarded_shared = map(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
    memset(guarded_shared + 2 * PAGE, 7, PAGE);
    CHECK(mprotect(guarded_shared + 2 * PAGE, PAGE, PROT_NONE) == 0, "mprotect");
    sparse = map(NULL, (size_t)1 << 37, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
    huge = map(NULL, 4 * KIB * KIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    madvise(huge, 4 * KIB * KIB, MADV_HUGEPAGE);
    low = map(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1);
    int zero_fd = OK(open("/dev/zero", O_RDWR));
    zeroes = map(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, zero_fd);
    close(zero_fd);
    while (work_more()) {
        seed += 1000;
        fill();
        work_sleep_us(20000);
        expect(shared_fd);
        work_tick();
    }
    return work_end();
}
