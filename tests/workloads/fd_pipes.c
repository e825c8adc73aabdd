/* flags: -O2 -pthread
 * Goal: pipes and FIFOs keep what is in them, their size and flags. Method: a queue of numbered records stays in each
 * while the process is stopped; a packet pipe keeps its boundaries; a closed end still reports its end. */
#include "work.h"
#include <sys/ioctl.h>
enum { DEPTH = 40 };
struct queue { int in, out; uint64_t head, tail; };
static void put(struct queue *q, uint64_t n) { for (; n; n--, q->head++) { uint64_t r[8]; work_fill(r, 64, q->head); CHECK(write(q->in, r, 64) == 64, "write"); } }
static void get(struct queue *q, uint64_t n, const char *what) { for (; n; n--, q->tail++) { uint64_t r[8]; CHECK(read(q->out, r, 64) == 64, "%s", what); work_expect(r, 64, q->tail, what); } }

int main(int argc, char **argv) {
    work_begin(argc, argv);
    struct queue plain = {0}, large = {0}, fifo = {0}, packets = {0};
    int p[2], ended[2], broken[2];
    OK(pipe(p)), plain.out = p[0], plain.in = p[1];
    OK(pipe2(p, O_NONBLOCK | O_CLOEXEC)), large.out = p[0], large.in = p[1];
    int size = OK(fcntl(large.in, F_SETPIPE_SZ, 262144));
    OK(pipe2(p, O_DIRECT)), packets.out = p[0], packets.in = p[1];
    unlink(work_path("fifo"));
    OK(mkfifo(work_path("fifo"), 0600));
    fifo.out = OK(open(work_path("fifo"), O_RDONLY | O_NONBLOCK));
    fifo.in = OK(open(work_path("fifo"), O_WRONLY));
    OK(pipe(ended)), CHECK(write(ended[1], "last words", 10) == 10, "write"), close(ended[1]);
    OK(pipe(broken)), close(broken[0]);
    signal(SIGPIPE, SIG_IGN);
    struct queue *all[] = {&plain, &large, &fifo, &packets};
    const char *names[] = {"pipe", "large pipe", "FIFO", "packet pipe"};
    for (int i = 0; i < 4; i++) put(all[i], i == 3 ? 8 : DEPTH);
    while (work_more()) {
        work_sleep_us(3000);
        for (int i = 0; i < 4; i++) {
            int waiting;
            OK(ioctl(all[i]->out, FIONREAD, &waiting));
            CHECK(waiting == (int)(all[i]->head - all[i]->tail) * 64, "%s holds %d bytes", names[i], waiting);
            uint64_t n = work_mix(all[i]->tail) % (i == 3 ? 4 : 20) + 1;
            get(all[i], n, names[i]);
            put(all[i], n);
        }
        char big[1000];
        CHECK(read(packets.out, big, sizeof big) == 64, "a packet's boundary is lost");
        packets.tail++, put(&packets, 1);
        CHECK(OK(fcntl(large.in, F_GETPIPE_SZ)) == size, "size of the large pipe");
        CHECK(OK(fcntl(large.out, F_GETFL)) & O_NONBLOCK && !(OK(fcntl(plain.out, F_GETFL)) & O_NONBLOCK), "flags");
        CHECK(OK(fcntl(large.out, F_GETFD)) == FD_CLOEXEC, "close-on-exec");
        int waiting;
        OK(ioctl(ended[0], FIONREAD, &waiting));
        CHECK(waiting == 10, "the ended pipe holds %d bytes", waiting);
        CHECK(write(broken[1], "x", 1) == -1 && errno == EPIPE, "a pipe without reader");
        work_tick();
    }
    char text[20];
    CHECK(read(ended[0], text, 20) == 10 && !memcmp(text, "last words", 10) && read(ended[0], text, 20) == 0, "end of a pipe without writer");
    return work_end();
}
