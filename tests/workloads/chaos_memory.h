/* Memory: zones of every sort and blocks of the heap, each with content that follows from a seed. */
#include "chaos.h"

enum { ZONES = 10, BLOCKS = 24, ZONE_MAX = 64 };
enum { ANON, SHARED, MEMFD, FILE_PRIVATE };
static struct { char *at; size_t pages; uint64_t seed; int sort, locked; } zone[ZONES];
static struct { uint64_t *at; size_t words; uint64_t seed; } block[BLOCKS];

static void zone_fill(int i) { zone[i].seed = roll(), work_fill(zone[i].at, zone[i].pages * PAGE, zone[i].seed); }

static void zone_check(int i) {
    char what[64];
    snprintf(what, sizeof what, "zone %d of sort %d at %p%s", i, zone[i].sort, zone[i].at, zone[i].locked ? ", read-only" : "");
    work_expect(zone[i].at, zone[i].pages * PAGE, zone[i].seed, what);
}

static void zone_map(int i) {
    int fd = -1, flags = MAP_PRIVATE | MAP_ANONYMOUS;
    char name[32];
    zone[i].pages = 1 + below(ZONE_MAX), zone[i].sort = below(4);
    if (zone[i].sort == SHARED) flags = MAP_SHARED | MAP_ANONYMOUS;
    if (zone[i].sort == MEMFD) {
        fd = OK(memfd_create("chaos", MFD_CLOEXEC));
        OK(ftruncate(fd, zone[i].pages * PAGE));
        flags = MAP_SHARED;
    }
    if (zone[i].sort == FILE_PRIVATE) {
        snprintf(name, sizeof name, "zone-%d-%d", my_pid, i);
        fd = OK(open(work_path(name), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
        OK(ftruncate(fd, zone[i].pages * PAGE));
        flags = MAP_PRIVATE;
    }
    zone[i].at = OK(mmap(NULL, zone[i].pages * PAGE, PROT_READ | PROT_WRITE, flags, fd, 0));
    zone[i].locked = 0;
    if (zone[i].sort == FILE_PRIVATE && below(3)) OK(unlink(work_path(name)));
    if (fd >= 0) close(fd);
    zone_fill(i);
}

static void op_zone(void) {
    int i = below(ZONES);
    if (!zone[i].at) {
        zone_map(i);
        return;
    }
    zone_check(i);
    switch (below(7)) {
    case 0:
        OK(munmap(zone[i].at, zone[i].pages * PAGE));
        zone[i].at = NULL;
        break;
    case 1: /* read-only, and back */
        zone[i].locked ^= 1;
        OK(mprotect(zone[i].at, zone[i].pages * PAGE, zone[i].locked ? PROT_READ : PROT_READ | PROT_WRITE));
        break;
    case 2: /* elsewhere and larger */
        if (zone[i].sort != ANON || zone[i].locked) break;
        zone[i].at = OK(mremap(zone[i].at, zone[i].pages * PAGE, (zone[i].pages + 5) * PAGE, MREMAP_MAYMOVE));
        for (size_t k = zone[i].pages * PAGE; k < (zone[i].pages + 5) * PAGE; k++) CHECK(!zone[i].at[k], "new page");
        zone[i].pages += 5;
        zone_fill(i);
        break;
    case 3: /* thrown away */
        if (zone[i].sort != ANON || zone[i].locked) break;
        OK(madvise(zone[i].at, zone[i].pages * PAGE, MADV_DONTNEED));
        for (size_t k = 0; k < zone[i].pages * PAGE; k += 512) CHECK(!zone[i].at[k], "a page that was thrown away");
        zone_fill(i);
        break;
    case 4: /* the last page goes, or all */
        OK(munmap(zone[i].at + (zone[i].pages - 1) * PAGE, PAGE));
        if (--zone[i].pages == 0) zone[i].at = NULL;
        break;
    default:
        if (!zone[i].locked) zone_fill(i);
    }
}

static void op_heap(void) {
    int i = below(BLOCKS);
    if (block[i].at) {
        work_expect(block[i].at, block[i].words * 8, block[i].seed, "block");
        if (below(2)) {
            free(block[i].at);
            block[i].at = NULL;
            return;
        }
    }
    block[i].words = 1 + below(below(8) ? 2000 : 60000), block[i].seed = roll();
    block[i].at = realloc(block[i].at, block[i].words * 8);
    CHECK(block[i].at, "realloc");
    work_fill(block[i].at, block[i].words * 8, block[i].seed);
}

/* Zones that are shared with a parent may not be changed by a child: only looked at. */
static void memory_check(void) {
    for (int i = 0; i < ZONES; i++)
        if (zone[i].at) zone_check(i);
    for (int i = 0; i < BLOCKS; i++)
        if (block[i].at) work_expect(block[i].at, block[i].words * 8, block[i].seed, "block");
}
