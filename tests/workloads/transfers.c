/* flags: -O2 -pthread
 * Goal: a call that moves much and blocks in the middle moves all of it, however often its thread is parked meanwhile; only a signal
 * of the program's own cuts it short. Method: pairs of threads in which one moves a lot by one call and the other one is slow; the
 * result and the bytes are checked. A timer of the program's own must end such a call with what was moved, with and without SA_RESTART. */
#include "work.h"
#include <sys/random.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/uio.h>

enum { SIZE = 384 << 10, STEP = 32 << 10, MESSAGES = 8, PAUSE_US = 1500 };
typedef struct { const char *what; ssize_t (*move)(int fd, char *data); int packets; } Way;
typedef struct { const Way *way; int fd; uint64_t seed; } Job;
static int file;

static ssize_t by_write(int fd, char *data) { return write(fd, data, SIZE); }
static ssize_t by_send(int fd, char *data) { return send(fd, data, SIZE, 0); }
static ssize_t by_writev(int fd, char *data) {
    struct iovec parts[] = {{data, 1000}, {data + 1000, SIZE / 2}, {data + 1000 + SIZE / 2, SIZE / 2 - 1000}};
    return writev(fd, parts, 3);
}
static ssize_t by_sendmsg(int fd, char *data) {
    struct iovec parts[] = {{data, 77}, {data + 77, SIZE - 77}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    return sendmsg(fd, &message, 0);
}
static ssize_t by_sendfile(int fd, char *data) {
    off_t at = 0;
    CHECK(pwrite(file, data, SIZE, 0) == SIZE, "pwrite");
    return sendfile(fd, file, &at, SIZE);
}

/* The slow side takes a little at a time. */
static void *slow_reader(void *given) {
    Job *job = given;
    char *got = malloc(SIZE);
    for (size_t done = 0; done < SIZE;) {
        ssize_t part = OK(read(job->fd, got + done, SIZE - done < STEP ? SIZE - done : STEP));
        CHECK(part > 0, "%s: end after %zu", job->way->what, done);
        done += (size_t)part;
        work_sleep_us(PAUSE_US);
    }
    work_expect(got, SIZE, job->seed, job->way->what);
    free(got);
    return NULL;
}
static void *fast_writer(void *given) {
    Job *job = given;
    char *data = malloc(SIZE);
    work_fill(data, SIZE, job->seed);
    ssize_t moved = job->way->move(job->fd, data);
    CHECK(moved == SIZE, "%s moved %zd of %d", job->way->what, moved, SIZE);
    free(data);
    return NULL;
}

/* Receiving all, from one who gives a little at a time. */
static ssize_t all_by_recv(int fd, char *data) { return recv(fd, data, SIZE, MSG_WAITALL); }
static ssize_t all_by_recvmsg(int fd, char *data) {
    struct iovec parts[] = {{data, 5000}, {data + 5000, SIZE - 5000}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    return recvmsg(fd, &message, MSG_WAITALL);
}
static ssize_t all_by_recvmmsg(int fd, char *data) {
    struct iovec parts[MESSAGES];
    struct mmsghdr messages[MESSAGES];
    memset(messages, 0, sizeof messages);
    for (int i = 0; i < MESSAGES; i++) {
        parts[i] = (struct iovec){data + i * (SIZE / MESSAGES), SIZE / MESSAGES};
        messages[i].msg_hdr = (struct msghdr){.msg_iov = &parts[i], .msg_iovlen = 1};
    }
    int got = recvmmsg(fd, messages, MESSAGES, 0, NULL);
    for (int i = 0; i < got; i++) CHECK(messages[i].msg_len == SIZE / MESSAGES, "message %d has %u bytes", i, messages[i].msg_len);
    return got < 0 ? got : (ssize_t)got * (SIZE / MESSAGES);
}
static void *slow_writer(void *given) {
    Job *job = given;
    char *data = malloc(SIZE);
    size_t step = job->way->packets ? SIZE / MESSAGES : STEP;
    work_fill(data, SIZE, job->seed);
    for (size_t done = 0; done < SIZE; done += step) {
        work_sleep_us(PAUSE_US);
        CHECK(send(job->fd, data + done, step, 0) == (ssize_t)step, "send");
    }
    free(data);
    return NULL;
}
static void *fast_reader(void *given) {
    Job *job = given;
    char *got = malloc(SIZE);
    ssize_t moved = job->way->move(job->fd, got);
    CHECK(moved == SIZE, "%s moved %zd of %d", job->way->what, moved, SIZE);
    work_expect(got, SIZE, job->seed, job->way->what);
    free(got);
    return NULL;
}

/* Devices that always have more. */
static void *devices(void *unused) {
    static char bytes[4 << 20];
    (void)unused;
    int zero = OK(open("/dev/zero", O_RDONLY)), urandom = OK(open("/dev/urandom", O_RDONLY));
    for (int i = 0; i < 4; i++) {
        CHECK(read(zero, bytes, sizeof bytes) == sizeof bytes, "/dev/zero gave less");
        CHECK(read(urandom, bytes, 1 << 20) == 1 << 20, "/dev/urandom gave less");
        CHECK(getrandom(bytes, 1 << 20, 0) == 1 << 20, "getrandom gave less");
    }
    close(zero);
    close(urandom);
    return NULL;
}

static atomic_int alarms;
static void on_alarm(int signal) { (void)signal; atomic_fetch_add(&alarms, 1); }

/* Nobody reads: only the timer ends the call, with what the pipe took. */
static void cut_short(int flags) {
    static char data[1 << 20];
    int ends[2], before = atomic_load(&alarms);
    struct sigaction action = {.sa_handler = on_alarm, .sa_flags = flags};
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGRTMIN + 3};
    struct itimerspec in = {.it_value = {.tv_nsec = 60000000}};
    timer_t timer;
    event._sigev_un._tid = gettid();
    OK(sigaction(SIGRTMIN + 3, &action, NULL));
    OK(pipe(ends));
    int room = OK(fcntl(ends[0], F_GETPIPE_SZ));
    OK(timer_create(CLOCK_MONOTONIC, &event, &timer));
    OK(timer_settime(timer, 0, &in, NULL));
    ssize_t moved = write(ends[1], data, sizeof data);
    CHECK(moved == room, "a write that was cut short by a signal (flags %#x) returned %zd, not %d", flags, moved, room);
    CHECK(atomic_load(&alarms) == before + 1, "%d alarms", atomic_load(&alarms) - before);
    OK(timer_delete(timer));
    close(ends[0]);
    close(ends[1]);
}

int main(int argc, char **argv) {
    static const Way out[] = {{"write to a pipe", by_write, 0}, {"sendfile to a socket", by_sendfile, 0}, {"send", by_send, 0},
                              {"writev to a socket", by_writev, 0}, {"sendmsg", by_sendmsg, 0}};
    static const Way in[] = {{"recv", all_by_recv, 0}, {"recvmsg", all_by_recvmsg, 0}, {"recvmmsg", all_by_recvmmsg, 1}};
    enum { OUT = sizeof out / sizeof *out, IN = sizeof in / sizeof *in };
    work_begin(argc, argv);
    file = OK(open(work_path("file"), O_RDWR | O_CREAT | O_TRUNC, 0600));
    for (uint64_t seed = 1; work_more(); seed += 100) {
        pthread_t threads[2 * (OUT + IN) + 1];
        Job jobs[2 * (OUT + IN)];
        int n = 0;
        for (int i = 0; i < OUT + IN; i++) {
            int ends[2];
            const Way *way = i < OUT ? &out[i] : &in[i - OUT];
            if (i < 1) OK(pipe(ends));
            else OK(socketpair(AF_UNIX, way->packets ? SOCK_DGRAM : SOCK_STREAM, 0, ends));
            jobs[n] = (Job){way, ends[0], seed + (unsigned)i};
            PT(pthread_create(&threads[n], NULL, i < OUT ? slow_reader : fast_reader, &jobs[n]));
            n++;
            jobs[n] = (Job){way, ends[1], seed + (unsigned)i};
            PT(pthread_create(&threads[n], NULL, i < OUT ? fast_writer : slow_writer, &jobs[n]));
            n++;
        }
        PT(pthread_create(&threads[n], NULL, devices, NULL));
        cut_short(0);
        cut_short(SA_RESTART);
        for (int i = 0; i <= n; i++) PT(pthread_join(threads[i], NULL));
        for (int i = 0; i < n; i++) close(jobs[i].fd);
        work_tick();
    }
    return work_end();
}
