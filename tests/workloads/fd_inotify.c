/* flags: -O2 -pthread
 * Goal: an inotify instance keeps its watches and numbers; what was queued when it was restored is told of as lost, once. Method: create
 * and remove files each round and compare; after a loss the program starts its round again, as such programs do. */
#include "work.h"
#include <poll.h>
#include <sys/inotify.h>
enum { RESTORES_MAX = 2 };

static char buffer[8192] __attribute__((aligned(8)));
static ssize_t have, at;
static int losses;

/* False: events were lost. */
static int next(int fd, int watch, uint32_t mask, const char *name) {
    if (at == have) at = 0, have = OK(read(fd, buffer, sizeof buffer));
    struct inotify_event *e = (void *)(buffer + at);
    at += (ssize_t)sizeof *e + e->len;
    if (e->mask & IN_Q_OVERFLOW) {
        CHECK(e->wd == -1 && ++losses <= RESTORES_MAX, "lost events %d times", losses);
        return 0;
    }
    CHECK(e->wd == watch && e->mask == mask && !strcmp(e->len ? e->name : "", name), "event %x of watch %d: %s", e->mask, e->wd, e->len ? e->name : "");
    return 1;
}

static int goes_round(int fd, int one, int two) {
    close(OK(open(work_path("one/file"), O_CREAT | O_WRONLY, 0600)));
    work_sleep_us(3000);
    OK(unlink(work_path("one/file")));
    OK(mkdir(work_path("two/directory"), 0700));
    OK(rmdir(work_path("two/directory")));
    if (!next(fd, one, IN_CREATE, "file")) return 0;
    work_sleep_us(3000);
    return next(fd, one, IN_DELETE, "file") && next(fd, two, IN_CREATE | IN_ISDIR, "directory") && next(fd, two, IN_DELETE | IN_ISDIR, "directory");
}

static void start_again(int fd) {
    unlink(work_path("one/file")), rmdir(work_path("two/directory"));
    struct pollfd p = {.fd = fd, .events = POLLIN};
    while (OK(poll(&p, 1, 0))) OK(read(fd, buffer, sizeof buffer));
    at = have = 0;
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    mkdir(work_path("one"), 0700), mkdir(work_path("two"), 0700);
    int fd = OK(inotify_init1(IN_CLOEXEC));
    int unused = OK(inotify_add_watch(fd, work_path("one"), IN_MODIFY));
    int two = OK(inotify_add_watch(fd, work_path("two"), IN_CREATE | IN_DELETE));
    OK(inotify_rm_watch(fd, unused));
    CHECK(next(fd, unused, IN_IGNORED, ""), "events are lost");
    int one = OK(inotify_add_watch(fd, work_path("one"), IN_CREATE | IN_DELETE));
    while (work_more()) {
        if (!goes_round(fd, one, two)) start_again(fd);
        work_tick();
    }
    /* A new watch has a number that none had before. */
    int last = OK(inotify_add_watch(fd, work_path("."), IN_ATTRIB));
    CHECK(last > one, "watch %d after %d", last, one);
    return work_end();
}
