/* flags: -O2 -pthread
 * Goal: a program with asynchronous I/O runs on untouched while it cannot be replicated. Method: reads and writes of a file, and waits for
 * them with a time-out that must not be cut short. */
#include "work.h"
#include <linux/aio_abi.h>
enum { BYTES = 4096, REQUESTS = 4 };

static long submit(aio_context_t context, int fd, int operation, void *at, int index) {
    struct iocb request = {.aio_data = (uint64_t)index, .aio_lio_opcode = (uint16_t)operation, .aio_fildes = (uint32_t)fd, .aio_buf = (uint64_t)(uintptr_t)at, .aio_nbytes = BYTES, .aio_offset = (int64_t)index * BYTES};
    struct iocb *list = &request;
    return syscall(SYS_io_submit, context, 1, &list);
}
static void all_done(aio_context_t context) {
    for (int seen = 0, done = 0; done < REQUESTS; done++) {
        struct io_event event;
        struct timespec most = {20, 0};
        CHECK(OK(syscall(SYS_io_getevents, context, 1, 1, &event, &most)) == 1 && event.res == BYTES, "an event: %lld", event.res);
        CHECK(!(seen & 1 << event.data), "request %llu is done twice", event.data);
        seen |= 1 << event.data;
    }
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    aio_context_t context = 0;
    OK(syscall(SYS_io_setup, REQUESTS, &context));
    int fd = OK(open(work_path("file"), O_RDWR | O_CREAT | O_TRUNC, 0600));
    static char out[REQUESTS][BYTES], in[REQUESTS][BYTES];
    for (uint64_t round = 1; work_more(); round++) {
        for (int i = 0; i < REQUESTS; i++) {
            work_fill(out[i], BYTES, round * 7 + (uint64_t)i);
            CHECK(OK(submit(context, fd, IOCB_CMD_PWRITE, out[i], i)) == 1, "submit");
        }
        all_done(context);
        for (int i = 0; i < REQUESTS; i++) CHECK(OK(submit(context, fd, IOCB_CMD_PREAD, in[i], i)) == 1, "submit");
        all_done(context);
        for (int i = 0; i < REQUESTS; i++) work_expect(in[i], BYTES, round * 7 + (uint64_t)i, "what was read");
        struct io_event event;
        struct timespec most = {0, 2000000};
        int64_t since = work_now_us(CLOCK_MONOTONIC);
        CHECK(OK(syscall(SYS_io_getevents, context, 1, 1, &event, &most)) == 0, "an event out of nothing");
        CHECK(work_now_us(CLOCK_MONOTONIC) - since >= 2000, "waited too short");
        work_tick();
    }
    OK(syscall(SYS_io_destroy, context));
    return work_end();
}
