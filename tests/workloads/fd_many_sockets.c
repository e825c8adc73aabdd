/* flags: -O2
 * Goal: each of many sockets keeps what belongs to its number (`FD_CLOEXEC`), to its description (status flags, who shares it) and to the
 * process (a record lock on it): a process with many is not asked by way of `fdinfo`.
 * Method: in turn one of them is changed; duplicates with the other flag, and a child that has the same descriptions under other flags, which
 * tells what it sees. With the argument `few` it has so few of them that it is asked in the other way. */
#include "work.h"
#include <sys/socket.h>

enum { PAIRS = 12, COUNT = 3 * PAIRS, FEW = 5, LOOKS = 10 };
static int numbers[COUNT], cloexec[COUNT], nonblocking[2 * PAIRS];

/* Of a duplicate the description of what it duplicates. */
static int description(int i) { return i < 2 * PAIRS ? i : i - 2 * PAIRS; }

static void look(const char *who, int count) {
    for (int i = 0; i < count; i++) {
        int flags = OK(fcntl(numbers[i], F_GETFD)), status = OK(fcntl(numbers[i], F_GETFL));
        CHECK(flags == cloexec[i], "%s: socket %d has close-on-exec %d", who, i, flags);
        CHECK(!(status & O_NONBLOCK) == !nonblocking[description(i)], "%s: socket %d has flags %o", who, i, status);
    }
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    for (int i = 0; i < PAIRS; i++) {
        int type = i % 2 ? SOCK_DGRAM : SOCK_STREAM;
        OK(socketpair(AF_UNIX, type | (i % 3 ? SOCK_CLOEXEC : 0) | (i % 4 ? 0 : SOCK_NONBLOCK), 0, numbers + 2 * i));
        for (int end = 2 * i; end < 2 * i + 2; end++) cloexec[end] = i % 3 != 0, nonblocking[end] = i % 4 == 0;
    }
    for (int i = 0; i < PAIRS; i++) {
        cloexec[2 * PAIRS + i] = !cloexec[i];
        numbers[2 * PAIRS + i] = OK(fcntl(numbers[i], cloexec[i] ? F_DUPFD : F_DUPFD_CLOEXEC, 0));
    }
    int ask[2], answer[2];
    OK(pipe(ask));
    OK(pipe(answer));
    pid_t child = OK(fork());
    if (child == 0) {
        close(ask[1]);
        int count = strcmp(work_arg, "few") ? COUNT : FEW;
        for (int i = count; i < COUNT; i++) close(numbers[i]);
        for (int i = 0; i < count; i++) OK(fcntl(numbers[i], F_SETFD, cloexec[i] = !cloexec[i]));
        struct { int at, what; } order;
        /* What the parent changes of a description is seen here, of a number not. */
        while (read(ask[0], &order, sizeof order) == sizeof order) {
            if (order.at >= 0) nonblocking[order.at] = order.what;
            look("child", count);
            /* Only another process sees a record lock. */
            struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
            OK(fcntl(numbers[0], F_GETLK, &lock));
            CHECK(lock.l_type == F_WRLCK && lock.l_pid == getppid(), "a lock of type %d, process %d", lock.l_type, lock.l_pid);
            OK(write(answer[1], "", 1));
        }
        _exit(0);
    }
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    OK(fcntl(numbers[0], F_SETLK, &lock));
    for (unsigned round = 0; work_more(); round++) {
        struct { int at, what; } order = {-1, 0};
        int i = (int)(round % COUNT);
        if (round % 2) {
            cloexec[i] = !cloexec[i];
            OK(fcntl(numbers[i], F_SETFD, cloexec[i]));
        } else {
            order.at = description(i), order.what = nonblocking[order.at] = !nonblocking[order.at];
            OK(fcntl(numbers[i], F_SETFL, order.what ? O_NONBLOCK : 0));
        }
        char done;
        for (int n = 0; n < LOOKS; n++) look("parent", COUNT), work_sleep_us(1000);
        if (!(round % 2)) {
            OK(write(ask[1], &order, sizeof order));
            CHECK(read(answer[0], &done, 1) == 1, "the child is gone");
        }
        work_tick();
    }
    close(ask[1]);
    int status;
    CHECK(OK(waitpid(child, &status, 0)) == child && status == 0, "the child ended with %x", status);
    return work_end();
}
