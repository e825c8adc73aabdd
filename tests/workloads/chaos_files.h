/* Files: written, read, cut, renamed, removed while open, duplicated, locked; each with content that follows from a seed. */
#include "chaos.h"

enum { FILES = 8, FILE_WORDS = 20000 };
static struct { int fd, named, append, locked; uint64_t seed, words, at; char name[32]; } file[FILES];

static void file_check(int i) {
    static uint64_t text[FILE_WORDS + 8];
    struct stat is;
    OK(fstat(file[i].fd, &is));
    CHECK((uint64_t)is.st_size == file[i].words * 8, "%s has %ld bytes, not %lu", file[i].name, (long)is.st_size, file[i].words * 8);
    CHECK((is.st_nlink == 1) == file[i].named, "%s has %ld names", file[i].name, (long)is.st_nlink);
    ssize_t got = OK(pread(file[i].fd, text, sizeof text, 0));
    CHECK((uint64_t)got == file[i].words * 8, "%s: read %zd", file[i].name, got);
    for (uint64_t k = 0; k < file[i].words; k++) CHECK(text[k] == word(file[i].seed, k), "%s: word %lu", file[i].name, k);
    if (file[i].named) {
        struct stat named;
        OK(stat(work_path(file[i].name), &named));
        CHECK(named.st_ino == is.st_ino && named.st_dev == is.st_dev, "%s is another file", file[i].name);
    }
    CHECK((uint64_t)OK(lseek(file[i].fd, 0, SEEK_CUR)) == file[i].at * 8, "%s: position", file[i].name);
    CHECK(((OK(fcntl(file[i].fd, F_GETFL)) & O_APPEND) != 0) == file[i].append, "%s: O_APPEND", file[i].name);
}

static void file_open(int i) {
    file[i].append = below(3) == 0, file[i].words = file[i].at = 0, file[i].seed = roll(), file[i].locked = 0;
    snprintf(file[i].name, sizeof file[i].name, "file-%d-%d", my_pid, i);
    int flags = O_RDWR | (file[i].append ? O_APPEND : 0) | (below(2) ? O_CLOEXEC : 0);
    file[i].named = below(4) != 0;
    if (file[i].named) file[i].fd = OK(open(work_path(file[i].name), flags | O_CREAT | O_TRUNC, 0600));
    else file[i].fd = OK(open(work_dir, flags | O_TMPFILE, 0600));
}

static void file_write(int i) {
    uint64_t text[600], n = 1 + below(600);
    if (file[i].words + n > FILE_WORDS) return;
    for (uint64_t k = 0; k < n; k++) text[k] = word(file[i].seed, file[i].words + k);
    if (!file[i].append) OK(lseek(file[i].fd, 0, SEEK_END));
    struct iovec parts[2] = {{text, n / 2 * 8}, {text + n / 2, (n - n / 2) * 8}};
    ssize_t put = below(2) ? write(file[i].fd, text, n * 8) : writev(file[i].fd, parts, 2);
    CHECK((uint64_t)put == n * 8, "%s: wrote %zd", file[i].name, put);
    file[i].words += n, file[i].at = file[i].words;
}

static void file_close(int i) {
    OK(close(file[i].fd));
    if (file[i].named) OK(unlink(work_path(file[i].name)));
    file[i].fd = -1;
}

static void op_file(void) {
    int i = below(FILES), other;
    if (file[i].fd < 0) {
        file_open(i);
        return;
    }
    file_check(i);
    switch (below(10)) {
    case 0: file_close(i); break;
    case 1: /* its name goes, it stays */
        if (file[i].named) OK(unlink(work_path(file[i].name)));
        file[i].named = 0;
        break;
    case 2:
        if (file[i].words == 0) break;
        file[i].words = below(file[i].words);
        OK(ftruncate(file[i].fd, file[i].words * 8));
        break;
    case 3: /* another name, and back */
        if (!file[i].named) break;
        char to[64], from[PATH_MAX + 64];
        snprintf(to, sizeof to, "%s.moved", file[i].name);
        strcpy(from, work_path(file[i].name));
        OK(rename(from, work_path(to)));
        strcpy(from, work_path(to));
        OK(rename(from, work_path(file[i].name)));
        break;
    case 4: /* another number */
        other = OK(fcntl(file[i].fd, below(2) ? F_DUPFD : F_DUPFD_CLOEXEC, 200 + below(100)));
        OK(close(file[i].fd)); /* which also drops the process's record locks on it */
        file[i].fd = other, file[i].locked = 0;
        break;
    case 5: {
        struct flock lock = {.l_type = file[i].locked ? F_UNLCK : F_WRLCK, .l_whence = SEEK_SET, .l_start = 10, .l_len = 20};
        OK(fcntl(file[i].fd, F_SETLK, &lock));
        file[i].locked ^= 1;
        break;
    }
    case 6:
        file[i].at = below(file[i].words + 1);
        OK(lseek(file[i].fd, file[i].at * 8, SEEK_SET));
        break;
    default: file_write(i);
    }
}

static void files_check(void) {
    for (int i = 0; i < FILES; i++)
        if (file[i].fd >= 0) file_check(i);
}

/* A worker may be killed while its child looks: its locks are gone then, and a moment later another has the child. */
static int is_adopted(pid_t adopter) {
    for (int tries = 0; getppid() != adopter; tries++) {
        if (tries == 2000) return 0;
        work_sleep_us(1000);
    }
    return 1;
}

/* What another process finds: its parent's lock, under its parent's number. */
static void files_check_in_child(pid_t adopter) {
    files_check();
    for (int i = 0; i < FILES; i++) {
        if (file[i].fd < 0) continue;
        struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 100};
        OK(fcntl(file[i].fd, F_GETLK, &lock));
        if (file[i].locked && lock.l_type != F_WRLCK && is_adopted(adopter)) return;
        CHECK(file[i].locked == (lock.l_type == F_WRLCK), "%s: locked %d, but type %d of process %d at %ld", file[i].name, file[i].locked, lock.l_type, lock.l_pid, (long)lock.l_start);
        if (file[i].locked) CHECK(lock.l_pid == my_parent && lock.l_start == 10 && lock.l_len == 20, "%s: lock of %d", file[i].name, lock.l_pid);
    }
}

static void files_close(void) {
    for (int i = 0; i < FILES; i++)
        if (file[i].fd >= 0) file_close(i);
}
