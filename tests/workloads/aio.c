/* flags: -O2 -pthread
 * Goal: asynchronous I/O goes on: each request comes back once, in order, in the context that took it, with what it read.
 * Method: rings that are never quite read, by the kernel and in user space, and turn round; all that fits, and no more; several
 * contexts of several lengths; buffered, direct and vectored requests with notices by eventfd; threads that wait, and that always
 * have something under way; a child that has none of the contexts, and one of its own. */
#include "work.h"
#include <linux/aio_abi.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
enum { BYTES = 4096, REQUESTS = 8, HELD_MAX = 4096 };

static long submit(aio_context_t context, struct iocb *one) { return syscall(SYS_io_submit, context, 1, &one); }
static long events(aio_context_t context, long least, long most, struct io_event *at, struct timespec *wait) {
    return syscall(SYS_io_getevents, context, least, most, at, wait);
}
static struct iocb request(int fd, int operation, void *at, size_t bytes, int64_t offset, uint64_t data) {
    return (struct iocb){.aio_data = data, .aio_lio_opcode = (uint16_t)operation, .aio_fildes = (uint32_t)fd, .aio_buf = (uintptr_t)at, .aio_nbytes = bytes, .aio_offset = offset};
}
static aio_context_t setup(unsigned room) {
    aio_context_t context = 0;
    OK(syscall(SYS_io_setup, room, &context));
    return context;
}

/* A ring that holds what was not read, oldest first. */
struct ring { unsigned id, nr; _Atomic unsigned head, tail; unsigned magic, compat, incompat, bytes; struct io_event at[]; };
struct held { aio_context_t context; uint64_t next, oldest; int zero; };

static int put(struct held *held) {
    static _Thread_local char byte[8];
    struct iocb one = request(held->zero, IOCB_CMD_PREAD, byte, held->next % 8, 0, held->next);
    if (submit(held->context, &one) != 1) {
        CHECK(errno == EAGAIN, "submit");
        return 0;
    }
    held->next++;
    return 1;
}
static void is_next(struct held *held, const struct io_event *event) {
    CHECK(event->data == held->oldest && event->res == (int64_t)(held->oldest % 8), "event %llu (%lld) instead of %lu", event->data, event->res, held->oldest);
    held->oldest++;
}
static void get(struct held *held, unsigned count, int in_user_space) {
    struct ring *ring = (struct ring *)held->context;
    struct io_event event;
    struct timespec none = {0, 0};
    CHECK(ring->magic == 0xa10a10a1 && ring->bytes == sizeof *ring, "the ring's head");
    for (; count; count--) {
        if (in_user_space) {
            unsigned head = ring->head;
            CHECK(head != ring->tail, "nothing to read");
            is_next(held, &ring->at[head]);
            ring->head = (head + 1) % ring->nr;
        } else {
            CHECK(OK(events(held->context, 1, 1, &event, &none)) == 1, "nothing to read");
            is_next(held, &event);
        }
    }
}
static void waits(const struct held *held) {
    const struct ring *ring = (const struct ring *)held->context;
    CHECK((ring->tail + ring->nr - ring->head) % ring->nr == held->next - held->oldest, "%u to %u of %u, not %lu", ring->head, ring->tail, ring->nr, held->next - held->oldest);
}

/* Waits without an end for requests that the main thread makes. */
static aio_context_t asked;
static atomic_ulong answered;
static void *waiter(void *none) {
    for (uint64_t next = 1;; next++) {
        struct io_event event;
        CHECK(OK(events(asked, 1, 1, &event, NULL)) == 1 && event.data == next, "request %llu instead of %lu", event.data, next);
        atomic_store(&answered, next);
    }
    return none;
}

/* Always has something under way, written and read back. */
static atomic_int stopping;
static atomic_ulong expiries;
static int open_direct(const char *name) {
    int fd = open(work_path(name), O_RDWR | O_CREAT | O_TRUNC | O_DIRECT, 0600);
    if (fd < 0 && errno == EINVAL) fd = open(work_path(name), O_RDWR | O_CREAT | O_TRUNC, 0600);
    return OK(fd);
}
/* Threads that have made their contexts: one made where another was is not told from it. */
static atomic_int settled;
static void *storm(void *none) {
    aio_context_t context = setup(200);
    atomic_fetch_add(&settled, 1);
    int fd = open_direct("storm");
    char *page = OK(mmap(NULL, REQUESTS * 4 * BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    enum { IDLE, WRITES, READS } state[REQUESTS] = {IDLE};
    uint64_t seed[REQUESTS] = {0}, round = 0;
    for (int busy = 0; busy || !stopping;) {
        for (int i = 0; i < REQUESTS && !stopping; i++) {
            char *at = page + i * 4 * BYTES;
            if (state[i] != IDLE) continue;
            work_fill(at, 4 * BYTES, seed[i] = ++round * 1000);
            struct iocb one = request(fd, IOCB_CMD_PWRITE, at, 4 * BYTES, (int64_t)i * 4 * BYTES, (uint64_t)i);
            CHECK(OK(submit(context, &one)) == 1, "submit");
            state[i] = WRITES, busy++;
        }
        struct io_event got[REQUESTS];
        long count = OK(events(context, 1, REQUESTS / 2, got, NULL));
        for (long k = 0; k < count; k++) {
            int i = (int)got[k].data;
            char *at = page + i * 4 * BYTES;
            CHECK(got[k].res == 4 * BYTES && state[i] != IDLE, "%lld of %d", got[k].res, i);
            if (state[i] == READS) {
                work_expect(at, 4 * BYTES, seed[i], "what was read");
                state[i] = IDLE, busy--;
                continue;
            }
            memset(at, 0, 4 * BYTES);
            struct iocb one = request(fd, IOCB_CMD_PREAD, at, 4 * BYTES, (int64_t)i * 4 * BYTES, (uint64_t)i);
            CHECK(OK(submit(context, &one)) == 1, "submit");
            state[i] = READS;
        }
        work_sleep_us(300);
    }
    OK(syscall(SYS_io_destroy, context));
    return none;
}

/* What is under way for milliseconds: that a timer expires. */
static void *timed(void *none) {
    aio_context_t context = setup(1);
    atomic_fetch_add(&settled, 1);
    int timer = OK(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK));
    struct itimerspec each = {{0, 8000000}, {0, 8000000}};
    OK(timerfd_settime(timer, 0, &each, NULL));
    for (uint64_t n = 1, expired; !stopping; n++) {
        struct iocb one = request(timer, IOCB_CMD_POLL, NULL, 0, 0, n);
        one.aio_buf = POLLIN;
        CHECK(OK(submit(context, &one)) == 1, "submit");
        struct io_event got;
        struct timespec most = {20, 0};
        CHECK(OK(events(context, 1, 1, &got, &most)) == 1 && got.data == n && got.res & POLLIN, "request %lu did not come back", n);
        CHECK(read(timer, &expired, sizeof expired) == sizeof expired, "the timer has not expired");
        atomic_fetch_add(&expiries, 1);
    }
    return none;
}

/* A file, written by a request and read by another, vectored, with notices. */
static void file_round(aio_context_t context, int fd, int notices, uint64_t seed) {
    static char out[REQUESTS][BYTES] __attribute__((aligned(4096))), in[REQUESTS][BYTES] __attribute__((aligned(4096)));
    static struct iovec parts[REQUESTS][2];
    for (int reads = 0; reads < 2; reads++) {
        int seen = 0;
        for (int i = 0; i < REQUESTS; i++) {
            char *at = reads ? in[i] : out[i];
            if (!reads) work_fill(at, BYTES, seed + (uint64_t)i);
            parts[i][0] = (struct iovec){at, BYTES / 2}, parts[i][1] = (struct iovec){at + BYTES / 2, BYTES / 2};
            struct iocb one = i % 2 ? request(fd, reads ? IOCB_CMD_PREADV : IOCB_CMD_PWRITEV, parts[i], 2, (int64_t)i * BYTES, (uint64_t)i)
                                    : request(fd, reads ? IOCB_CMD_PREAD : IOCB_CMD_PWRITE, at, BYTES, (int64_t)i * BYTES, (uint64_t)i);
            one.aio_flags = IOCB_FLAG_RESFD, one.aio_resfd = (uint32_t)notices;
            CHECK(OK(submit(context, &one)) == 1, "submit");
        }
        for (uint64_t told = 0, more; told < REQUESTS; told += more) CHECK(read(notices, &more, sizeof more) == sizeof more, "a notice");
        struct io_event got[REQUESTS + 1];
        struct timespec none = {0, 0};
        CHECK(OK(events(context, REQUESTS, REQUESTS + 1, got, &none)) == REQUESTS, "events");
        for (int i = 0; i < REQUESTS; i++) {
            CHECK(got[i].res == BYTES && !(seen & 1 << got[i].data), "request %llu: %lld", got[i].data, got[i].res);
            seen |= 1 << got[i].data;
        }
    }
    for (int i = 0; i < REQUESTS; i++) work_expect(in[i], BYTES, seed + (uint64_t)i, "what was read");
    struct pollfd quiet = {.fd = notices, .events = POLLIN};
    CHECK(OK(poll(&quiet, 1, 0)) == 0, "a notice too many");
}

static int child(aio_context_t of_parent) {
    CHECK(syscall(SYS_io_submit, of_parent, 0, NULL) == -1 && errno == EINVAL, "a context of the parent");
    struct held own = {.context = setup(70), .zero = OK(open("/dev/zero", O_RDONLY))};
    for (int i = 0; i < 5; i++) CHECK(put(&own), "submit");
    while (work_more()) {
        CHECK(put(&own), "submit");
        waits(&own);
        get(&own, 1, 0);
        CHECK(syscall(SYS_io_submit, of_parent, 0, NULL) == -1 && errno == EINVAL, "a context of the parent");
        work_sleep_us(2000);
    }
    return 0;
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    int zero = OK(open("/dev/zero", O_RDONLY)), fd = OK(open(work_path("file"), O_RDWR | O_CREAT | O_TRUNC, 0600)), direct = open_direct("direct");
    int notices = OK(eventfd(0, 0));
    struct held some = {.context = setup(4), .zero = zero}, many = {.context = setup(700), .zero = zero}, full = {.context = setup(1), .zero = zero};
    aio_context_t files = setup(REQUESTS);
    asked = setup(REQUESTS);
    pid_t pid = OK(fork());
    if (!pid) _exit(child(files));
    pthread_t waiting, storming, timing;
    PT(pthread_create(&waiting, NULL, waiter, NULL));
    PT(pthread_create(&storming, NULL, storm, NULL));
    PT(pthread_create(&timing, NULL, timed, NULL));
    while (atomic_load(&settled) < 2) work_sleep_us(100);
    for (int i = 0; i < 300; i++) CHECK(put(&many), "submit");
    for (uint64_t round = 1; work_more(); round++) {
        for (unsigned i = 0; i < 7 + round % 5; i++) CHECK(put(&some), "submit");
        waits(&some);
        get(&some, (unsigned)(some.next - some.oldest) - (unsigned)(round % 7), round % 2);
        for (int i = 0; i < 90; i++) CHECK(put(&many), "submit");
        get(&many, 90, round % 3 == 0);
        waits(&many);
        /* As full as it gets, from here to the next round. */
        get(&full, (unsigned)(full.next - full.oldest) % 50, round % 2);
        while (full.next - full.oldest < HELD_MAX && put(&full)) {}
        waits(&full);
        file_round(files, round % 2 ? fd : direct, notices, round * 100);
        struct iocb one = request(zero, IOCB_CMD_PREAD, &one, 0, 0, round);
        CHECK(OK(submit(asked, &one)) == 1, "submit");
        for (int64_t since = work_now_us(CLOCK_MONOTONIC); atomic_load(&answered) != round; work_sleep_us(100))
            CHECK(work_now_us(CLOCK_MONOTONIC) - since < 20000000, "nobody was woken");
        aio_context_t now = setup((unsigned)(round * 37 % 400 + 1));
        struct io_event event;
        struct timespec most = {0, 2000000};
        int64_t since = work_now_us(CLOCK_MONOTONIC);
        CHECK(OK(events(now, 1, 1, &event, &most)) == 0, "an event out of nothing");
        CHECK(work_now_us(CLOCK_MONOTONIC) - since >= 2000, "waited too short");
        OK(syscall(SYS_io_destroy, now));
        CHECK(events(now, 0, 0, NULL, NULL) == -1 && errno == EINVAL, "a context that is gone");
        /* One that is lost is missed at the end of the round. */
        unsigned long before = atomic_load(&expiries);
        for (int64_t from = work_now_us(CLOCK_MONOTONIC); atomic_load(&expiries) < before + 2; work_sleep_us(500))
            CHECK(work_now_us(CLOCK_MONOTONIC) - from < 20000000, "a request did not come back");
        work_tick();
    }
    stopping = 1;
    PT(pthread_join(storming, NULL));
    PT(pthread_join(timing, NULL));
    get(&full, (unsigned)(full.next - full.oldest), 0);
    get(&many, (unsigned)(many.next - many.oldest), 1);
    int status;
    CHECK(OK(waitpid(pid, &status, 0)) == pid && status == 0, "the child ended with %x", status);
    return work_end();
}
