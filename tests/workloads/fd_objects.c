/* flags: -O2 -pthread
 * Goal: objects that are more than a number: memory files that are mapped, too, locks, owners, credentials of sockets,
 * close-on-exec that was taken back, high numbers. Method: each is used through both of its faces every round. */
#include "work.h"
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
enum { BYTES = 65536, MANY = 600 };

/* A store through the map is seen through the descriptor, and the other way round. */
static void both_ways(volatile uint64_t *map, int fd, uint64_t round, const char *what) {
    uint64_t got, put = work_mix(round);
    CHECK(pread(fd, &got, 8, 4096) == 8 && got == map[512], "%s: the descriptor reads %lx, the map %lx", what, got, (unsigned long)map[512]);
    CHECK(round == 1 || got == work_mix(round - 1), "%s: %lx is not of the last round", what, got);
    map[512] = put;
    CHECK(pread(fd, &got, 8, 4096) == 8 && got == put, "%s: a store is not in the file", what);
    put = round;
    CHECK(pwrite(fd, &put, 8, 8192) == 8 && map[1024] == round, "%s: a write is not in the map", what);
}
static void *map_of(int fd) { return OK(mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)); }
static int rival_gets(const char *path, int how) {
    int fd = OK(open(path, O_RDWR)), got = flock(fd, how | LOCK_NB) == 0;
    close(fd);
    return got;
}
static struct flock range(short type) { return (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = 100, .l_len = 50}; }

int main(int argc, char **argv) {
    work_begin(argc, argv);
    int mem = OK(memfd_create("objects", MFD_ALLOW_SEALING | MFD_CLOEXEC)), sealed = OK(memfd_create("sealed", MFD_ALLOW_SEALING));
    OK(ftruncate(mem, BYTES));
    CHECK(write(sealed, "for ever", 8) == 8, "write");
    OK(fcntl(sealed, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE));
    /* Sealed by a descriptor that is gone: to the one that is left nobody may add seals. */
    int writer = OK(memfd_create("read", MFD_ALLOW_SEALING));
    OK(fcntl(writer, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW));
    char shown_as[64];
    snprintf(shown_as, sizeof shown_as, "/proc/self/fd/%d", writer);
    int reader = OK(open(shown_as, O_RDONLY));
    close(writer);
    int ghost = OK(open(work_path("ghost"), O_RDWR | O_CREAT | O_TRUNC, 0600));
    OK(ftruncate(ghost, BYTES)), OK(unlink(work_path("ghost")));
    char shm_name[64];
    snprintf(shm_name, sizeof shm_name, "/dev/shm/holo-work-%d", getpid());
    int shm = OK(open(shm_name, O_RDWR | O_CREAT | O_TRUNC, 0600));
    OK(ftruncate(shm, BYTES));
    void *mem_map = map_of(mem), *ghost_map = map_of(ghost), *shm_map = map_of(shm);
    int locked = OK(open(work_path("flock"), O_RDWR | O_CREAT, 0600)), records = OK(open(work_path("records"), O_RDWR | O_CREAT, 0600)), ofd = OK(open(work_path("ofd"), O_RDWR | O_CREAT, 0600));
    struct flock lock = range(F_WRLCK);
    OK(flock(locked, LOCK_EX)), OK(fcntl(records, F_SETLK, &lock)), OK(fcntl(ofd, F_OFD_SETLK, &lock));
    int unset = OK(open("/dev/null", O_RDONLY | O_CLOEXEC));
    OK(fcntl(unset, F_SETFD, 0));
    int pair[2], one = 1;
    OK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair));
    OK(setsockopt(pair[1], SOL_SOCKET, SO_PASSCRED, &one, sizeof one));
    OK(fcntl(pair[0], F_SETOWN, getpid())), OK(fcntl(pair[0], F_SETSIG, SIGRTMIN + 7)), OK(fcntl(pair[0], F_SETFL, O_ASYNC));
    sigset_t async;
    sigemptyset(&async), sigaddset(&async, SIGRTMIN + 7);
    PT(pthread_sigmask(SIG_BLOCK, &async, NULL));
    int watcher = OK(inotify_init1(IN_NONBLOCK));
    mkdir(work_path("watched"), 0700);
    for (int i = 0; i < 5; i++) inotify_rm_watch(watcher, OK(inotify_add_watch(watcher, work_path("watched"), IN_CREATE)));
    int watch = OK(inotify_add_watch(watcher, work_path("watched"), IN_CREATE));
    char events[4096];
    while (read(watcher, events, sizeof events) > 0) ;
    struct rlimit files = {4096, 4096};
    setrlimit(RLIMIT_NOFILE, &files);
    static int many[MANY];
    for (int i = 0; i < MANY; i++) many[i] = i % 3 ? OK(fcntl(many[i - 1], F_DUPFD, 64)) : OK(eventfd(i, EFD_NONBLOCK));
    for (uint64_t round = 1; work_more(); round++) {
        work_sleep_us(4000);
        both_ways(mem_map, mem, round, "memfd"), both_ways(ghost_map, ghost, round, "unlinked file"), both_ways(shm_map, shm, round, "/dev/shm");
        char text[64];
        CHECK(pread(sealed, text, 8, 0) == 8 && !memcmp(text, "for ever", 8), "sealed content");
        CHECK(pwrite(sealed, "x", 1, 0) == -1 && errno == EPERM, "the seal is broken");
        CHECK(OK(fcntl(sealed, F_GET_SEALS)) == (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE), "seals %x", fcntl(sealed, F_GET_SEALS));
        CHECK(OK(fcntl(reader, F_GET_SEALS)) == (F_SEAL_SHRINK | F_SEAL_GROW), "seals of what is read %x", fcntl(reader, F_GET_SEALS));
        CHECK(!rival_gets(work_path("flock"), LOCK_SH), "the flock is lost");
        lock = range(F_WRLCK);
        int again = OK(open(work_path("ofd"), O_RDWR));
        CHECK(fcntl(again, F_OFD_SETLK, &lock) == -1 && errno == EAGAIN, "the lock of a description is lost");
        close(again);
        FILE *locks = fopen("/proc/self/fdinfo/0", "r");
        if (locks) fclose(locks);
        char path[64];
        snprintf(path, sizeof path, "/proc/self/fdinfo/%d", records);
        int info = OK(open(path, O_RDONLY));
        char shown[1024] = {0};
        CHECK(read(info, shown, sizeof shown - 1) > 0 && strstr(shown, "POSIX"), "the record lock is lost: %s", shown);
        close(info);
        CHECK(OK(fcntl(unset, F_GETFD)) == 0 && OK(fcntl(mem, F_GETFD)) == FD_CLOEXEC, "close-on-exec");
        struct ucred peer;
        socklen_t n = sizeof peer;
        OK(getsockopt(pair[0], SOL_SOCKET, SO_PEERCRED, &peer, &n));
        CHECK(peer.pid == getpid() && peer.uid == geteuid(), "peer is %d of user %d", peer.pid, peer.uid);
        CHECK(OK(fcntl(pair[0], F_GETOWN)) == getpid() && OK(fcntl(pair[0], F_GETSIG)) == SIGRTMIN + 7, "owner %d", fcntl(pair[0], F_GETOWN));
        CHECK(send(pair[1], &round, 8, 0) == 8, "send");
        siginfo_t si;
        CHECK(sigwaitinfo(&async, &si) == SIGRTMIN + 7 && si.si_fd == pair[0], "signal of descriptor %d", si.si_fd);
        uint64_t got;
        CHECK(recv(pair[0], &got, 8, 0) == 8 && got == round, "message");
        while (sigtimedwait(&async, &si, &(struct timespec){0, 0}) > 0) ;
        close(OK(open(work_path("watched/file"), O_CREAT | O_WRONLY, 0600)));
        ssize_t bytes = read(watcher, events, sizeof events);
        struct inotify_event *e = (void *)events;
        /* What was queued at the very instant of a cut is told as lost. */
        CHECK(bytes > 0 && ((e->wd == watch && e->mask == IN_CREATE) || e->mask == IN_Q_OVERFLOW), "event %x of watch %d", e->mask, e->wd);
        OK(unlink(work_path("watched/file")));
        for (int i = 0; i < MANY; i += 3) {
            CHECK(i == 0 || (read(many[i + 1], &got, 8) == 8 && got == (uint64_t)i), "counter %d", i);
            got = i;
            CHECK(write(many[i + 2], &got, 8) == 8, "counter");
        }
        work_tick();
    }
    unlink(shm_name);
    return work_end();
}
