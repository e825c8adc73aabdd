/* flags: -O1
 * Goal: what was asked for with madvise, mlock and MAP_NORESERVE is asked for again after a restore, and nothing else is. Method: five
 * zones whose flags change one step at a time, when DIR/go appears, by calls and by other zones that take their places; before and
 * after each step smaps says what it should. */
#include "work.h"
enum { PAGE = 4096, PAGES = 16, ZONES = 5, BYTES = PAGES * PAGE };
enum { NH = 1, DD = 2, LO = 4, HG = 8, SR = 16, RR = 32, NR = 64 };
static char *zone[ZONES];
static unsigned wanted[ZONES];
/* One more, which is sealed in the end (Linux 6.10): nobody changes it then. */
enum { SYS_MSEAL = 462 };
static char *seal_at;
static int sealed;

/* A restore between two reads of the file leaves a hole in the text: it is looked twice more. */
static unsigned look(const char *at, unsigned *found) {
    FILE *smaps = fopen("/proc/self/smaps", "r");
    CHECK(smaps, "smaps");
    char line[512], *next;
    unsigned long start = 0, end = 0, low, high;
    unsigned flags = 0;
    *found = 0;
    while (fgets(line, sizeof line, smaps)) {
        low = strtoul(line, &next, 16);
        if (next != line && *next == '-') high = strtoul(next + 1, NULL, 16), start = low, end = high;
        if (strncmp(line, "VmFlags:", 8) || start > (unsigned long)at || end <= (unsigned long)at) continue;
        *found = 1;
        if (strstr(line, " nh")) flags |= NH;
        if (strstr(line, " hg")) flags |= HG;
        if (strstr(line, " dd")) flags |= DD;
        if (strstr(line, " lo")) flags |= LO;
        if (strstr(line, " sr")) flags |= SR;
        if (strstr(line, " rr")) flags |= RR;
        if (strstr(line, " nr")) flags |= NR;
    }
    fclose(smaps);
    return flags;
}

static void verify(void) {
    if (sealed) CHECK(munmap(seal_at, BYTES) == -1 && errno == EPERM, "a sealed zone is unmapped");
    for (int i = 0; i < ZONES; i++) {
        unsigned now = 0, found = 0;
        for (int tries = 0; tries < 3 && (!found || now != wanted[i]); tries++) now = look(zone[i], &found);
        CHECK(found, "no zone at %p", zone[i]);
        CHECK(now == wanted[i], "zone %d has flags %x instead of %x", i, now, wanted[i]);
    }
}

static void place(int i, int extra) {
    char *at = mmap(zone[i], BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | extra, -1, 0);
    CHECK(at != MAP_FAILED && (!zone[i] || at == zone[i]), "mmap");
    zone[i] = at;
    unsigned found;
    /* Where the kernel counts all memory, nothing is left uncounted. */
    wanted[i] = extra & MAP_NORESERVE ? look(at, &found) & NR : 0;
    work_fill(at, BYTES, i);
}

static void step(int number) {
    switch (number) {
    case 0: OK(madvise(zone[0], BYTES, MADV_NOHUGEPAGE)), wanted[0] |= NH; break;
    case 1: OK(madvise(zone[1], BYTES, MADV_DONTDUMP)), wanted[1] |= DD; break;
    case 2: OK(mlock(zone[2], BYTES)), wanted[2] |= LO; break;
    case 3: OK(munmap(zone[0], BYTES)), place(0, MAP_FIXED_NOREPLACE); break;
    case 4: break; /* nothing has changed since the last epoch */
    case 5: place(1, MAP_FIXED); break;
    case 6: OK(madvise(zone[0], BYTES, MADV_HUGEPAGE)), wanted[0] |= HG; break;
    case 7: OK(munlock(zone[2], BYTES)), wanted[2] = 0; break;
    case 8: OK(madvise(zone[0], BYTES, MADV_NOHUGEPAGE)), wanted[0] = NH; break;
    case 9: OK(madvise(zone[3], BYTES, MADV_DONTDUMP)), wanted[3] = DD; break;
    case 10: OK(madvise(zone[3], BYTES, MADV_DODUMP)), wanted[3] = 0; break;
    case 11: OK(madvise(zone[3], BYTES, MADV_SEQUENTIAL)), wanted[3] = SR; break;
    case 12: OK(madvise(zone[3], BYTES, MADV_RANDOM)), wanted[3] = RR; break;
    case 13: OK(madvise(zone[3], BYTES, MADV_NORMAL)), wanted[3] = 0; break;
    case 14: sealed = syscall(SYS_MSEAL, seal_at, BYTES, 0) == 0; break;
    default: OK(madvise(zone[0], BYTES, MADV_DONTNEED)), work_fill(zone[0], BYTES, 0);
    }
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    /* With room between, so that none is joined with another. */
    char *room = mmap(NULL, 4 * ZONES * BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(room != MAP_FAILED, "room");
    OK(munmap(room, 4 * ZONES * BYTES));
    for (int i = 0; i < ZONES; i++) zone[i] = room + 4 * i * BYTES, place(i, MAP_FIXED_NOREPLACE | (i == 4 ? MAP_NORESERVE : 0));
    seal_at = OK((char *)mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    for (int number = 0; work_more();) {
        verify();
        if (access(work_path("go"), F_OK) == 0) {
            step(number++);
            for (int i = 0; i < ZONES; i++) work_expect(zone[i], BYTES, i, "content");
            verify();
            OK(unlink(work_path("go")));
        }
        work_tick();
        work_sleep_us(2000);
    }
    return work_end();
}
