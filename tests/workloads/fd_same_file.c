/* flags: -O2 -pthread
 * Goal: at every instant a name and a descriptor of one file say the same of it, whatever restore came in between. Method: threads ask for the
 * numbers of a file by its name, by a descriptor and by its entry in the directory, all the time, in every way there is. */
#include "work.h"
#include <dirent.h>

enum { THREADS = 6 };
static int fd;
static char dir_path[PATH_MAX + 16], path[PATH_MAX + 32];

static void by_calls(struct stat *named, struct stat *open) {
    OK(stat(path, named)), OK(fstat(fd, open));
}
static void by_statx(struct stat *named, struct stat *open) {
    struct statx n, o;
    OK(statx(AT_FDCWD, path, 0, STATX_BASIC_STATS, &n)), OK(statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &o));
    named->st_ino = n.stx_ino, named->st_dev = n.stx_dev_minor, open->st_ino = o.stx_ino, open->st_dev = o.stx_dev_minor;
}
static void by_entry(struct stat *named, struct stat *open) {
    DIR *dir = opendir(dir_path);
    CHECK(dir, "opendir");
    struct dirent *entry;
    named->st_ino = 0;
    while ((entry = readdir(dir)))
        if (!strcmp(entry->d_name, "file")) named->st_ino = entry->d_ino;
    closedir(dir);
    OK(fstat(fd, open));
    named->st_dev = open->st_dev;
}

static void *compare(void *way) {
    void (*const ways[])(struct stat *, struct stat *) = {by_calls, by_statx, by_entry};
    struct stat named, open, first;
    OK(fstat(fd, &first));
    while (work_more()) {
        ways[(long)way % 3](&named, &open);
        CHECK(named.st_ino == open.st_ino && named.st_dev == open.st_dev, "the name leads to %lu, the descriptor to %lu (way %ld)",
              (unsigned long)named.st_ino, (unsigned long)open.st_ino, (long)way % 3);
        CHECK(open.st_ino == first.st_ino, "it is %lu and was %lu", (unsigned long)open.st_ino, (unsigned long)first.st_ino);
        if ((long)way == 0) work_tick();
    }
    return NULL;
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    snprintf(dir_path, sizeof dir_path, "%s/dir", work_dir), snprintf(path, sizeof path, "%s/file", dir_path);
    OK(mkdir(dir_path, 0700));
    fd = OK(open(path, O_RDWR | O_CREAT, 0600));
    pthread_t threads[THREADS];
    for (long i = 0; i < THREADS; i++) PT(pthread_create(threads + i, NULL, compare, (void *)i));
    for (int i = 0; i < THREADS; i++) PT(pthread_join(threads[i], NULL));
    return work_end();
}
