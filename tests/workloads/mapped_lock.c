/* flags: -O2 -pthread
 * Goal: a process keeps its record locks of files that it has mapped.
 * Method: the files are mapped in each way; a child, which has locks of its own to ask with, looks each round. */
#include "work.h"
#include <sys/mman.h>

enum { FILES = 3 };

static void look(int fd, pid_t holder) {
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 100};
    OK(fcntl(fd, F_GETLK, &lock));
    CHECK(lock.l_type == F_WRLCK && lock.l_pid == holder && lock.l_start == 10 && lock.l_len == 20, "type %d of process %d at %ld", lock.l_type, lock.l_pid, (long)lock.l_start);
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    static const int flags[FILES] = {MAP_SHARED, MAP_PRIVATE, MAP_SHARED};
    int fds[FILES], ask[2], answer[2];
    for (int i = 0; i < FILES; i++) {
        char name[16];
        snprintf(name, sizeof name, "locked-%d", i);
        fds[i] = OK(open(work_path(name), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
        OK(ftruncate(fds[i], 8192));
        int protection = i == 2 ? PROT_READ : PROT_READ | PROT_WRITE;
        char *at = mmap(NULL, 8192, protection, flags[i], fds[i], 0);
        CHECK(at != MAP_FAILED, "mmap");
        if (i < 2) at[5000] = 1;
        struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 10, .l_len = 20};
        OK(fcntl(fds[i], F_SETLK, &lock));
    }
    OK(pipe(ask)), OK(pipe(answer));
    pid_t holder = getpid(), child = OK(fork());
    char byte = 0;
    if (child == 0) {
        close(ask[1]);
        while (read(ask[0], &byte, 1) == 1) {
            for (int i = 0; i < FILES; i++) look(fds[i], holder);
            CHECK(write(answer[1], &byte, 1) == 1, "answer");
        }
        _exit(0);
    }
    close(answer[1]);
    while (work_more()) {
        CHECK(write(ask[1], &byte, 1) == 1 && read(answer[0], &byte, 1) == 1, "the child ended");
        work_sleep_us(2000);
        work_tick();
    }
    return work_end();
}
