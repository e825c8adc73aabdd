/* flags: -O2
 * Goal: a file stays the file that the program knows: device and inode number. Method: a file that stays, one that is
 * replaced under its name every round, one without a name, one with two, and a directory that is made anew; what each was when it was
 * made is compared with what stat, lstat, fstat, fstatat, statx and readdir say of it, by name and descriptor, and no two are one. */
#include "work.h"
#include <dirent.h>
#include <sys/sysmacros.h>

struct id { dev_t dev; ino_t ino; };

static struct id of_fd(int fd) {
    struct stat s;
    OK(fstat(fd, &s));
    return (struct id){s.st_dev, s.st_ino};
}
static void same(const char *what, const char *call, struct id was, dev_t dev, ino_t ino) {
    CHECK(was.dev == dev && was.ino == ino, "%s by %s: was %lx:%lu, is %lx:%lu", what, call, (long)was.dev, (long)was.ino, (long)dev, (long)ino);
}
static void listed(const char *name, struct id was) {
    DIR *list = opendir(work_dir);
    CHECK(list, "opendir");
    struct dirent *entry;
    int found = 0;
    while ((entry = readdir(list)))
        if (!strcmp(entry->d_name, name)) same(name, "readdir", was, was.dev, entry->d_ino), found = 1;
    CHECK(found, "%s is not listed", name);
    closedir(list);
}
static void named(int home, const char *name, struct id was) {
    struct stat s;
    struct statx x;
    OK(stat(work_path(name), &s)), same(name, "stat", was, s.st_dev, s.st_ino);
    OK(lstat(work_path(name), &s)), same(name, "lstat", was, s.st_dev, s.st_ino);
    OK(fstatat(home, name, &s, AT_SYMLINK_NOFOLLOW)), same(name, "fstatat", was, s.st_dev, s.st_ino);
    OK(statx(home, name, 0, STATX_INO, &x)), same(name, "statx", was, makedev(x.stx_dev_major, x.stx_dev_minor), x.stx_ino);
    struct stat *far = malloc(1 << 20);
    OK(syscall(SYS_stat, work_path(name), far)), same(name, "SYS_stat", was, far->st_dev, far->st_ino);
    free(far);
    listed(name, was);
}
static void open_as(const char *what, int fd, struct id was) {
    struct stat s;
    struct statx x;
    OK(fstat(fd, &s)), same(what, "fstat", was, s.st_dev, s.st_ino);
    OK(fstatat(fd, "", &s, AT_EMPTY_PATH)), same(what, "fstatat of a descriptor", was, s.st_dev, s.st_ino);
    OK(statx(fd, "", AT_EMPTY_PATH, STATX_INO, &x)), same(what, "statx of a descriptor", was, makedev(x.stx_dev_major, x.stx_dev_minor), x.stx_ino);
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    char from[PATH_MAX + 64];
    int home = OK(open(work_dir, O_RDONLY | O_DIRECTORY));
    int stays = OK(open(work_path("stays"), O_RDWR | O_CREAT | O_TRUNC, 0644));
    int nameless = OK(open(work_path("nameless"), O_RDWR | O_CREAT | O_TRUNC, 0644));
    OK(unlink(work_path("nameless")));
    int null = OK(open("/dev/null", O_RDWR));
    struct id home_id = of_fd(home), stays_id = of_fd(stays), nameless_id = of_fd(nameless), null_id = of_fd(null);
    unlink(work_path("second"));
    snprintf(from, sizeof from, "%s", work_path("stays"));
    OK(link(from, work_path("second")));
    rmdir(work_path("inner"));
    for (unsigned long round = 1; work_more(); round++) {
        CHECK(pwrite(stays, &round, sizeof round, round % 64 * 512) == sizeof round, "write");
        int saved = OK(open(work_path("saved.new"), O_RDWR | O_CREAT | O_EXCL, 0644));
        CHECK(write(saved, &round, sizeof round) == sizeof round, "write");
        struct id saved_id = of_fd(saved);
        snprintf(from, sizeof from, "%s", work_path("saved.new"));
        OK(rename(from, work_path("saved")));
        OK(mkdir(work_path("inner"), 0755));
        int inner = OK(open(work_path("inner"), O_RDONLY | O_DIRECTORY));
        struct id inner_id = of_fd(inner);
        work_sleep_us(4000);
        named(home, "stays", stays_id), named(home, "second", stays_id), open_as("stays", stays, stays_id);
        named(home, "saved", saved_id), open_as("saved", saved, saved_id);
        named(home, "inner", inner_id), open_as("inner", inner, inner_id);
        named(home, ".", home_id), open_as("home", home, home_id);
        open_as("nameless", nameless, nameless_id);
        open_as("/dev/null", null, null_id);
        struct id all[] = {home_id, stays_id, nameless_id, saved_id, inner_id};
        for (int a = 0; a < 5; a++)
            for (int b = 0; b < a; b++) CHECK(all[a].ino != all[b].ino || all[a].dev != all[b].dev, "%d and %d are one file", a, b);
        close(saved), close(inner);
        OK(rmdir(work_path("inner")));
        work_tick();
    }
    return work_end();
}
