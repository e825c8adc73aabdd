/* flags: -O2
 * Goal: none of its own; somebody compares the files under DIR/files with an epoch of them. Method: processes change files in
 * every way that there is, at random, the same files at once; in place of one that somebody kills comes another. When DIR/pause
 * appears one process is killed wherever it is, the others come to rest, and DIR/quiet says so; it goes when the pause does. usage: DIR [SEED] */
#include "work.h"
#include <sys/xattr.h>

enum { WORKERS = 4, NAMES = 24, DIRS = 4, BYTES_MAX = 400000, MAP_BYTES = 65536, NAME_BYTES = PATH_MAX + 64 };

static uint64_t state;
static unsigned char buffer[BYTES_MAX];
struct shared { atomic_int resting[WORKERS]; };
static struct shared *shared;

static uint64_t number(uint64_t below) { return (state = work_mix(state + 0x9e3779b97f4a7c15u)) % below; }
static void fill(size_t len) {
    for (size_t i = 0; i + 8 <= len + 7; i += 8) memcpy(buffer + i, &(uint64_t){number(UINT64_MAX)}, i + 8 <= BYTES_MAX ? 8 : BYTES_MAX - i);
}
static const char *name(char *text) {
    uint64_t n = number(NAMES);
    snprintf(text, NAME_BYTES, "%s/files/d%d/%c%d", work_dir, (int)(n % DIRS), "fs"[n % 7 == 0], (int)n);
    return text;
}

/* Who may do what with a file, or with all that is made in a directory: an access list, written by hand, or none any more. */
static int list(const char *path) {
    static const uint16_t tags[] = {1, 2, 4, 16, 32};
    struct { uint32_t version; struct { uint16_t tag, perm; uint32_t id; } entries[5]; } all = {.version = 2};
    const char *key = number(2) ? "system.posix_acl_access" : "system.posix_acl_default";
    if (number(4) == 0) return removexattr(path, key);
    for (int i = 0; i < 5; i++) {
        all.entries[i].tag = tags[i], all.entries[i].perm = (uint16_t)(i == 0 ? 7 : number(8));
        all.entries[i].id = tags[i] == 2 ? 1000 + (uint32_t)number(3) : UINT32_MAX;
    }
    return setxattr(path, key, &all, sizeof all, 0);
}

/* Others change the same names: what fails, fails. */
static void step(void) {
    static char one[NAME_BYTES], two[NAME_BYTES];
    name(one), name(two);
    size_t len = number(6) ? number(6000) + 1 : number(120000) + 1, at = number(number(3) ? 30000 : BYTES_MAX - len);
    int fd = open(one, O_RDWR | O_CREAT | O_CLOEXEC, 0600 + (mode_t)number(0200));
    if (fd < 0) {
        if (errno == ENOENT || errno == EISDIR || errno == ELOOP || errno == ENOTDIR) return;
        FAIL("%s", one);
    }
    fill(len);
    struct stat now;
    OK(fstat(fd, &now));
    int is_long = now.st_size > BYTES_MAX;
    ssize_t done = 0;
    switch (number(28)) {
    case 0: case 1: case 2: done = pwrite(fd, buffer, len, (off_t)at); break;
    case 3: lseek(fd, (off_t)at, SEEK_SET), done = write(fd, buffer, len), done = write(fd, buffer, len / 3); break;
    case 4: case 5: {
        int add = open(one, O_WRONLY | O_APPEND | O_CLOEXEC);
        if (add >= 0 && !is_long) done = write(add, buffer, len);
        if (add >= 0) close(add);
        break;
    }
    case 6: done = ftruncate(fd, (off_t)at); break;
    case 7: done = truncate(one, (off_t)number(5000)); break;
    case 8: done = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)at, (off_t)len); break;
    case 9: done = fallocate(fd, FALLOC_FL_ZERO_RANGE, (off_t)at, (off_t)len); break;
    case 10: if (now.st_size > 12288) done = fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, 4096, 4096); break;
    case 11: if (now.st_size > 4096 && !is_long) done = fallocate(fd, FALLOC_FL_INSERT_RANGE, 4096, 8192); break;
    case 12: case 13: {
        int from = open(two, O_RDONLY | O_CLOEXEC);
        off_t a = (off_t)number(8192), b = (off_t)at;
        if (from >= 0) done = copy_file_range(from, &a, fd, &b, len, 0), close(from);
        break;
    }
    case 14: done = unlink(one); break;
    case 15: done = rename(one, two); break;
    case 16: done = renameat2(AT_FDCWD, one, AT_FDCWD, two, RENAME_EXCHANGE); break;
    case 17: unlink(two), done = link(one, two); break;
    case 18: {
        /* Made without a name, filled, and given one. */
        char proc[64];
        snprintf(two, sizeof two, "%s/files/d%d", work_dir, (int)number(DIRS));
        int temporary = open(two, O_TMPFILE | O_RDWR | O_CLOEXEC, 0640);
        if (temporary < 0) break;
        done = write(temporary, buffer, len), name(two), unlink(two);
        snprintf(proc, sizeof proc, "/proc/self/fd/%d", temporary);
        done = linkat(AT_FDCWD, proc, AT_FDCWD, two, AT_SYMLINK_FOLLOW);
        done = pwrite(temporary, buffer, len / 2, 77);
        close(temporary);
        break;
    }
    case 19: case 20: {
        if (now.st_size < 1) break;
        size_t all = now.st_size < MAP_BYTES ? (size_t)now.st_size : MAP_BYTES;
        /* A file that nobody cuts under the map; it stays mapped, also over epochs. */
        static int own = -1;
        static unsigned char *map;
        if (own < 0) {
            snprintf(two, sizeof two, "%s/files/map.%d", work_dir, (int)getpid());
            own = OK(open(two, O_RDWR | O_CREAT | O_CLOEXEC, 0600));
            OK(ftruncate(own, MAP_BYTES));
            map = OK(mmap(NULL, MAP_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, own, 0));
        }
        memcpy(map + number(MAP_BYTES - all + 1), buffer, all / 2);
        done = pwrite(own, buffer, 3000, (off_t)number(MAP_BYTES - 3000));
        map[number(MAP_BYTES)]++;
        break;
    }
    case 21: done = fchmod(fd, 0600 + (mode_t)number(0177)); break;
    case 22: done = fsetxattr(fd, "user.storm", &state, number(8), 0); break;
    case 23: done = futimens(fd, (struct timespec[2]){{1000 + (time_t)number(100000), 5}, {2000 + (time_t)number(10), 7}}); break;
    case 24: done = fchown(fd, (uid_t)(1000 + number(3)), (gid_t)-1); break; /* root's only */
    case 25: {
        snprintf(two, sizeof two, "%s/files/d%d", work_dir, (int)number(DIRS));
        done = list(number(3) ? one : two);
        break;
    }
    case 26: {
        static const char *const names[] = {"user.storm", "user.more", "trusted.storm", "system.posix_acl_access"};
        const char *key = names[number(4)];
        done = number(2) ? fremovexattr(fd, key) : setxattr(one, key, buffer, number(3) ? number(60) : number(3000), number(2) ? XATTR_REPLACE : 0);
        lsetxattr(two, "user.storm", "no link has it", 3, 0), lremovexattr(two, "user.storm"); /* often a link */
        break;
    }
    default: {
        unlink(two), done = symlink(number(2) ? "nowhere" : "../d0", two);
        snprintf(two, sizeof two, "%s/files/d%d/sub%d", work_dir, (int)number(DIRS), (int)number(3));
        if (mkdir(two, 0700) < 0) rmdir(two);
    }
    }
    if (done < 0 && errno == EIO) FAIL("step");
    close(fd);
}

static int pausing(void) { return access(work_path("pause"), F_OK) == 0; }

static void work(int self) {
    for (;;) {
        for (int i = 0; i < 8; i++) step();
        if (getppid() == 1 || access(work_path("stop"), F_OK) == 0) _exit(0);
        if (!pausing()) continue;
        atomic_store(&shared->resting[self], 1);
        while (pausing()) work_sleep_us(500);
        atomic_store(&shared->resting[self], 0);
    }
}

static pid_t start(int self, uint64_t seed) {
    atomic_store(&shared->resting[self], 0);
    pid_t pid = OK(fork());
    if (pid == 0) {
        state = work_mix(seed);
        work(self);
    }
    return pid;
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    shared = OK(mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    char text[PATH_MAX + 80];
    for (int d = -1; d < DIRS; d++) {
        snprintf(text, sizeof text, d < 0 ? "%s/files" : "%s/files/d%d", work_dir, d);
        if (mkdir(text, 0755) < 0 && errno != EEXIST) FAIL("%s", text);
    }
    uint64_t seed = strtoul(work_arg, NULL, 10) * 1000;
    pid_t pids[WORKERS];
    for (int w = 0; w < WORKERS; w++) pids[w] = start(w, ++seed);
    while (work_more()) {
        work_sleep_us(500);
        work_tick();
        for (int w = 0, status; w < WORKERS; w++) {
            if (OK(waitpid(pids[w], &status, WNOHANG)) == 0) continue;
            /* A worker may see that it is to stop before its parent does. */
            int is_killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, is_over = status == 0 && !work_more();
            CHECK(is_killed || is_over, "process %d ended with %x", w, status);
            pids[w] = start(w, ++seed);
        }
        if (!pausing()) continue;
        int victim = (int)(seed % WORKERS), status;
        OK(kill(pids[victim], SIGKILL));
        OK(waitpid(pids[victim], &status, 0));
        for (int w = 0; w < WORKERS; w++)
            while (w != victim && !atomic_load(&shared->resting[w])) {
                CHECK(waitpid(pids[w], &status, WNOHANG) == 0, "process %d ended with %x", w, status);
                work_sleep_us(200);
            }
        close(OK(open(work_path("quiet"), O_WRONLY | O_CREAT | O_CLOEXEC, 0644)));
        while (pausing() && work_more()) work_sleep_us(500);
        OK(unlink(work_path("quiet")));
        pids[victim] = start(victim, ++seed);
    }
    for (int w = 0; w < WORKERS; w++) kill(pids[w], SIGKILL), waitpid(pids[w], NULL, 0);
    return work_end();
}
