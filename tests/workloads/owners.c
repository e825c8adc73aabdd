/* flags: -O2
 * Goal: an ordinary user who names other users and groups is refused with the error that programs know, also in a restored
 * application, and in programs that it starts; what is no user stays invalid. Method: every call that takes one, each round. */
#include "work.h"
#include <grp.h>

enum { OTHER = 54321, NOBODY = -1 };

#define REFUSED(error, call) ({ errno = 0; long refused_ = (call); CHECK(refused_ == -1 && errno == (error), "%s gave %ld", #call, refused_); })

static void ask(int fd, const char *path) {
    uid_t uid = geteuid();
    gid_t gid = getegid();
    REFUSED(EPERM, chown(path, OTHER, -1)), REFUSED(EPERM, chown(path, -1, OTHER)), REFUSED(EPERM, chown(path, 0, 0));
    REFUSED(EPERM, lchown(path, OTHER, OTHER)), REFUSED(EPERM, fchown(fd, OTHER, gid)), REFUSED(EPERM, fchown(fd, uid, OTHER));
    REFUSED(EPERM, fchownat(AT_FDCWD, path, OTHER, gid, AT_SYMLINK_NOFOLLOW)), REFUSED(EPERM, fchownat(fd, "", 0, -1, AT_EMPTY_PATH));
    REFUSED(EINVAL, fchownat(AT_FDCWD, path, OTHER, gid, 1)), REFUSED(ENOENT, chown("/nowhere/at/all", OTHER, OTHER)), REFUSED(EBADF, fchown(-1, OTHER, OTHER));
    OK(chown(path, -1, -1)), OK(chown(path, uid, gid)), OK(fchown(fd, -1, gid)), OK(fchownat(AT_FDCWD, path, uid, -1, 0));
    REFUSED(EPERM, setuid(OTHER)), REFUSED(EPERM, setgid(OTHER)), REFUSED(EPERM, setuid(0)), REFUSED(EPERM, seteuid(OTHER)), REFUSED(EPERM, setegid(OTHER));
    REFUSED(EPERM, setreuid(OTHER, -1)), REFUSED(EPERM, setregid(-1, OTHER)), REFUSED(EPERM, setresuid(-1, -1, OTHER)), REFUSED(EPERM, setresgid(OTHER, gid, -1));
    REFUSED(EINVAL, setuid(NOBODY)), REFUSED(EINVAL, setgid(NOBODY));
    OK(setresuid(-1, -1, -1)), OK(setresgid(gid, -1, gid)), OK(setreuid(uid, uid)), OK(setuid(uid)), OK(setgid(gid));
    gid_t groups[1] = {OTHER};
    REFUSED(EPERM, setgroups(1, groups));
}

int main(int argc, char **argv) {
    if (argc > 3) { /* a program that was started */
        strcpy(work_dir, argv[1]);
        ask(atoi(argv[2]), argv[3]);
        return 0;
    }
    work_begin(argc, argv);
    int fd = OK(open(work_path("owned"), O_RDWR | O_CREAT, 0644));
    char path[PATH_MAX], number[16];
    snprintf(path, sizeof path, "%s", work_path("owned")), snprintf(number, sizeof number, "%d", fd);
    if (geteuid() == 0) { /* An ordinary user, who may write to where results are. */
        OK(chmod(work_dir, 0777)), OK(fchown(fd, 2001, 1001));
        OK(setgroups(0, NULL)), OK(setresgid(1001, 1001, 1001)), OK(setresuid(2001, 2001, 2001));
    }
    for (unsigned round = 0; work_more(); round++) {
        ask(fd, path);
        if (round % 20 == 10) {
            pid_t pid = OK(fork());
            if (pid == 0) execl("/proc/self/exe", argv[0], work_dir, number, path, NULL), _exit(9);
            int status;
            CHECK(waitpid(pid, &status, 0) == pid && status == 0, "the program: %x", status);
        }
        work_tick();
        work_sleep_us(1000);
    }
    return work_end();
}
