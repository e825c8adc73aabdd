/* flags: -O2
 * Goal: a socket in the file system, one that was renamed, and a FIFO without a name keep owner, group and mode. Method: root gives them to
 * another user, others leave them as they are; looked at in each round. */
#include "work.h"
#include <sys/socket.h>
#include <sys/un.h>

static int listener(const char *name) {
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    int fd = OK(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    CHECK((size_t)snprintf(at.sun_path, sizeof at.sun_path, "%s/%s", work_dir, name) < sizeof at.sun_path, "a long directory");
    unlink(at.sun_path);
    OK(bind(fd, (void *)&at, sizeof at));
    OK(listen(fd, 5));
    return fd;
}

static void expect(const struct stat *found, uid_t user, gid_t group, mode_t mode, const char *what) {
    CHECK(found->st_uid == user && found->st_gid == group, "%s is of %u:%u", what, found->st_uid, found->st_gid);
    CHECK((found->st_mode & 07777) == mode, "%s has mode %o", what, found->st_mode & 07777);
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    uid_t user = geteuid() ? geteuid() : 12345;
    gid_t group = geteuid() ? getegid() : 23456;
    int here = listener("socket"), there = listener("temporary");
    OK(chown(work_path("socket"), user, group)), OK(chmod(work_path("socket"), 0642));
    OK(chown(work_path("temporary"), user, group)), OK(chmod(work_path("temporary"), 0700));
    char from[PATH_MAX + 64];
    snprintf(from, sizeof from, "%s", work_path("temporary"));
    OK(rename(from, work_path("renamed")));
    OK(mkfifo(work_path("fifo"), 0600));
    int fifo = OK(open(work_path("fifo"), O_RDWR | O_CLOEXEC));
    OK(fchown(fifo, user, group)), OK(fchmod(fifo, 0622));
    OK(unlink(work_path("fifo")));
    while (work_more()) {
        struct stat found;
        OK(lstat(work_path("socket"), &found)), expect(&found, user, group, 0642, "the socket");
        OK(lstat(work_path("renamed"), &found)), expect(&found, user, group, 0700, "the renamed socket");
        OK(fstat(fifo, &found)), expect(&found, user, group, 0622, "the FIFO");
        work_tick();
        work_sleep_us(2000);
    }
    close(here), close(there);
    return work_end();
}
