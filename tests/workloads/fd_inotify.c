/* flags: -O2 -pthread
 * Goal: an inotify instance keeps its watches and numbers. Method: create and remove a file each round and compare. */
#include "work.h"
#include <sys/inotify.h>

static void next(int fd, int watch, uint32_t mask, const char *name) {
    static char buffer[8192] __attribute__((aligned(8)));
    static ssize_t have, at;
    if (at == have) at = 0, have = OK(read(fd, buffer, sizeof buffer));
    struct inotify_event *e = (void *)(buffer + at);
    at += (ssize_t)sizeof *e + e->len;
    CHECK(e->wd == watch && e->mask == mask && !strcmp(e->len ? e->name : "", name), "event %x of watch %d: %s", e->mask, e->wd, e->len ? e->name : "");
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    mkdir(work_path("one"), 0700), mkdir(work_path("two"), 0700);
    int fd = OK(inotify_init1(IN_CLOEXEC));
    int unused = OK(inotify_add_watch(fd, work_path("one"), IN_MODIFY));
    int two = OK(inotify_add_watch(fd, work_path("two"), IN_CREATE | IN_DELETE));
    OK(inotify_rm_watch(fd, unused));
    next(fd, unused, IN_IGNORED, "");
    int one = OK(inotify_add_watch(fd, work_path("one"), IN_CREATE | IN_DELETE));
    while (work_more()) {
        close(OK(open(work_path("one/file"), O_CREAT | O_WRONLY, 0600)));
        work_sleep_us(3000);
        OK(unlink(work_path("one/file")));
        OK(mkdir(work_path("two/directory"), 0700));
        OK(rmdir(work_path("two/directory")));
        next(fd, one, IN_CREATE, "file");
        work_sleep_us(3000);
        next(fd, one, IN_DELETE, "file");
        next(fd, two, IN_CREATE | IN_ISDIR, "directory");
        next(fd, two, IN_DELETE | IN_ISDIR, "directory");
        work_tick();
    }
    return work_end();
}
