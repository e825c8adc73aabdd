/* flags: -O2
 * Goal: what is left of processes and directories that are gone is so after a restore: open files of theirs in /proc, the pidfds of one of
 * them, groups without a leader, a working directory. Files without names keep owner, mode and time. Method: all of it is
 * made at the start and looked at every round. */
#include "work.h"
#include <sys/prctl.h>

static pid_t child(void) {
    pid_t pid = OK(fork());
    if (pid == 0) pause(), _exit(0);
    return pid;
}
static void end(pid_t pid) {
    OK(kill(pid, SIGKILL));
    CHECK(waitpid(pid, NULL, 0) == pid, "a child");
}
static ino_t inode_of(int fd) {
    struct stat is;
    OK(fstat(fd, &is));
    return is.st_ino;
}

int main(int argc, char **argv) {
    char path[PATH_MAX], text[64];
    work_begin(argc, argv);
    pid_t gone = child(), leader = child();
    snprintf(path, sizeof path, "/proc/%d/stat", gone);
    int of_gone = OK(open(path, O_RDONLY));
    snprintf(path, sizeof path, "/proc/%d/task/%d", gone, gone);
    int dir_of_gone = OK(open(path, O_RDONLY | O_DIRECTORY));
    int pidfds[2];
    for (int i = 0; i < 2; i++) pidfds[i] = OK((int)syscall(SYS_pidfd_open, gone, 0));
    end(gone);
    /* One that has ended, in a group whose leader is gone. */
    OK(setpgid(leader, leader));
    pid_t member = OK(fork());
    if (member == 0) _exit(9);
    siginfo_t info;
    if (setpgid(member, leader)) FAIL("setpgid");
    OK(waitid(P_PID, member, &info, WEXITED | WNOWAIT));
    end(leader);
    int file = OK(open(work_path("file"), O_RDWR | O_CREAT | O_TRUNC, 0600));
    OK(unlink(work_path("file")));
    CHECK(write(file, "text", 4) == 4, "write");
    OK(fchmod(file, 0640));
    struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_sec = 123456, .tv_nsec = 789}};
    OK(futimens(file, times));
    uid_t owner = geteuid() ? geteuid() : 4321;
    OK(fchown(file, owner, getegid()));
    OK(mkdir(work_path("dir"), 0700)), OK(chdir(work_path("dir"))), OK(rmdir(work_path("dir")));
    while (work_more()) {
        work_sleep_us(2000);
        CHECK(pread(of_gone, text, sizeof text, 0) == -1 && errno == ESRCH, "a process that is gone tells something");
        CHECK(openat(dir_of_gone, "stat", O_RDONLY) == -1, "there is a thread that is gone");
        CHECK(syscall(SYS_pidfd_send_signal, pidfds[0], 0, NULL, 0) == -1 && errno == ESRCH, "a pidfd of nobody");
        CHECK(inode_of(pidfds[0]) == inode_of(pidfds[1]), "two pidfds of one process");
        info.si_pid = 0;
        OK(waitid(P_PGID, leader, &info, WEXITED | WNOWAIT | WNOHANG));
        CHECK(info.si_pid == member && info.si_status == 9, "nobody has ended in group %d", leader);
        struct stat is;
        OK(fstat(file, &is));
        CHECK(is.st_uid == owner && (is.st_mode & 07777) == 0640, "owner %u, mode %o", is.st_uid, is.st_mode);
        CHECK(is.st_mtim.tv_sec == 123456 && is.st_mtim.tv_nsec == 789, "changed at %ld", is.st_mtim.tv_sec);
        CHECK(getcwd(path, sizeof path) == NULL && errno == ENOENT, "the directory is there");
        CHECK(open("new", O_CREAT | O_WRONLY, 0600) == -1 && errno == ENOENT, "the directory can be written to");
        work_tick();
    }
    return work_end();
}
