/* flags: -O2
 * Goal: epoll sets are whole wherever they and their members are: in a queue of a socket, in another process, nowhere but in a queue; and
 * datagrams wait for their reader when the socket that sent them is gone.
 * Method: each round passes sets to a child, which lets epochs go by before it looks what is ready. */
#include "work.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>

enum { PASSED = 6 };
enum { SET, PAIR, INNER, ALONE, EMPTY, STALE };

static void pass(int to, const int *fds, int count, uint64_t tag) {
    char control[CMSG_SPACE(sizeof(int) * PASSED)] = {0};
    struct iovec data = {&tag, sizeof tag};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = CMSG_SPACE(sizeof(int) * count)};
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET, head->cmsg_type = SCM_RIGHTS, head->cmsg_len = CMSG_LEN(sizeof(int) * count);
    memcpy(CMSG_DATA(head), fds, sizeof(int) * count);
    CHECK(sendmsg(to, &message, 0) == sizeof tag, "sendmsg");
}
static int get(int from, int *fds, uint64_t *tag) {
    char control[CMSG_SPACE(sizeof(int) * PASSED)];
    struct iovec data = {tag, sizeof *tag};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    ssize_t got = OK(recvmsg(from, &message, MSG_CMSG_CLOEXEC));
    if (got == 0) return 0;
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    CHECK(got == sizeof *tag && head && head->cmsg_type == SCM_RIGHTS, "recvmsg");
    int count = (int)((head->cmsg_len - CMSG_LEN(0)) / sizeof(int));
    memcpy(fds, CMSG_DATA(head), sizeof(int) * count);
    return count;
}
static void add(int set, int fd, uint32_t events, uint64_t data) {
    struct epoll_event event = {.events = events, .data.u64 = data};
    OK(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
}
/* Exactly these are ready, in any order. */
static void ready(int set, uint64_t a, uint64_t b, const char *what) {
    struct epoll_event events[4];
    int count = OK(epoll_wait(set, events, 4, 0)), wanted = (a != 0) + (b != 0);
    CHECK(count == wanted, "%s: %d are ready, not %d", what, count, wanted);
    for (int i = 0; i < count; i++) CHECK(events[i].data.u64 == a || events[i].data.u64 == b, "%s: %lx is ready", what, events[i].data.u64);
}

static void reader(int from) {
    int fds[PASSED], inner[PASSED];
    uint64_t tag, other, one = 1;
    OK(prctl(PR_SET_PDEATHSIG, SIGKILL));
    while (get(from, fds, &tag) == PASSED) {
        /* Its members are an event counter that only our parent has, and a set that is in our queue only. */
        ready(fds[SET], tag + 1, tag + 3, "a set that was passed");
        ready(fds[SET], tag + 3, 0, "edges are told once");
        CHECK(get(fds[PAIR], inner, &other) == 1 && other == tag + 9, "a datagram of a socket that is gone");
        CHECK(recv(fds[PAIR], &other, sizeof other, MSG_DONTWAIT) == sizeof other && other == tag + 10, "a second one");
        CHECK(recv(fds[PAIR], &other, sizeof other, MSG_DONTWAIT) == -1 && errno == EAGAIN, "a third one");
        CHECK(send(fds[PAIR], &other, 1, MSG_NOSIGNAL) == -1 && errno == ECONNREFUSED, "to a socket that is gone");
        ready(inner[0], tag + 2, 0, "a set in a queue in a queue");
        CHECK(read(fds[ALONE], &other, 8) == 8 && other == 7, "an event counter");
        ready(inner[0], 0, 0, "a set in a queue in a queue, afterwards");
        ready(fds[EMPTY], 0, 0, "a set without members");
        ready(fds[STALE], 0, 0, "a set of our parent's");
        CHECK(write(fds[ALONE], &one, 8) == 8, "an event");
        ready(inner[0], tag + 2, 0, "a set in a queue in a queue, again");
        CHECK(write(from, &tag, sizeof tag) == sizeof tag && read(from, &other, sizeof other) == sizeof other, "the parent");
        ready(fds[STALE], tag + 5, 0, "a set of our parent's");
        for (int i = 0; i < PASSED; i++) OK(close(fds[i]));
        OK(close(inner[0]));
        CHECK(write(from, &tag, sizeof tag) == sizeof tag, "the parent");
    }
    _exit(0);
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    int ends[2], status;
    OK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends));
    pid_t child = OK(fork());
    if (child == 0) {
        close(ends[0]);
        reader(ends[1]);
    }
    OK(close(ends[1]));
    for (uint64_t round = 1; work_more(); round++) {
        uint64_t tag = work_mix(round) & ~15ul, back, text = tag + 10;
        int fds[PASSED], pair[2], counter = OK(eventfd(3, EFD_CLOEXEC)), alone = OK(eventfd(7, EFD_CLOEXEC | EFD_NONBLOCK)), ours[2];
        for (int i = 0; i < PASSED; i++) fds[i] = i == PAIR ? -1 : i == ALONE ? alone : OK(epoll_create1(EPOLL_CLOEXEC));
        OK(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, pair));
        OK(pipe2(ours, O_CLOEXEC));
        fds[PAIR] = pair[1];
        int deepest = OK(epoll_create1(EPOLL_CLOEXEC));
        add(fds[SET], counter, EPOLLIN | EPOLLET, tag + 1);
        add(fds[INNER], counter, EPOLLIN, tag + 4);
        add(fds[SET], fds[INNER], EPOLLIN, tag + 3);
        add(deepest, alone, EPOLLIN, tag + 2);
        /* What it is about stays here only. */
        add(fds[STALE], ours[0], EPOLLIN, tag + 5);
        pass(pair[0], &deepest, 1, tag + 9);
        CHECK(send(pair[0], &text, sizeof text, 0) == sizeof text, "a datagram");
        OK(close(pair[0])), OK(close(deepest));
        pass(ends[0], fds, PASSED, tag);
        for (int i = 0; i < PASSED; i++) OK(close(fds[i]));
        work_sleep_us(3000);
        CHECK(read(ends[0], &back, sizeof back) == sizeof back && back == tag, "the child");
        CHECK(write(ours[1], "x", 1) == 1 && write(ends[0], &tag, sizeof tag) == sizeof tag, "the child");
        CHECK(read(ends[0], &back, sizeof back) == sizeof back && back == tag, "the child");
        OK(close(counter)), OK(close(ours[0])), OK(close(ours[1]));
        work_tick();
    }
    OK(close(ends[0]));
    CHECK(waitpid(child, &status, 0) == child && status == 0, "the child ended with %x", status);
    return work_end();
}
