/* flags: -O2 -l:liburing.so.2 -l:libaio.so.1
 * Goal: libraries that make system calls past libc are treated as libc is: liburing gets the answer of a kernel without
 * io_uring, a wait in libaio is not cut short by a checkpoint; a socket of several TCP flows, which Go's servers ask for first, is
 * answered as by a kernel without them.
 * Method: both are linked without their headers, by what their manual pages say. */
#include "work.h"
#include <netinet/in.h>
#include <sys/socket.h>

extern int io_uring_queue_init(unsigned entries, void *ring, unsigned flags);
extern int io_setup(int events, void **context);
extern int io_destroy(void *context);
extern int io_getevents(void *context, long least, long most, void *events, struct timespec *timeout);

int main(int argc, char **argv) {
    static long ring[512];
    char events[64];
    void *context = NULL;
    work_begin(argc, argv);
    const char *preload = getenv("LD_PRELOAD");
    int made = io_setup(8, &context);
    CHECK(made == 0, "io_setup: %d", made);
    while (work_more()) {
        if (preload) {
            int ret = io_uring_queue_init(4, ring, 0);
            CHECK(ret == -ENOSYS, "io_uring_queue_init: %d", ret);
            CHECK(socket(AF_INET, SOCK_STREAM, IPPROTO_MPTCP) == -1 && errno == EPROTONOSUPPORT, "MPTCP");
        }
        struct timespec patience = {0, 30000000};
        int64_t before = work_now_us(CLOCK_MONOTONIC);
        int got = io_getevents(context, 1, 1, events, &patience);
        CHECK(got == 0, "io_getevents: %d", got);
        CHECK(work_now_us(CLOCK_MONOTONIC) - before >= 29000, "io_getevents came back after %ld us", (long)(work_now_us(CLOCK_MONOTONIC) - before));
        work_tick();
    }
    CHECK(io_destroy(context) == 0, "io_destroy");
    return work_end();
}
