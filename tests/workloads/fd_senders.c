/* flags: -O2
 * Goal: what waits in a unix socket says who sent it (SO_PASSCRED), and of what does not say so nobody is told.
 * Method: sockets of each type hold messages of ours, of a child, of one that has ended, some with descriptors; and what was sent
 * while nobody wanted to know. Each round compares process, user and group with what the senders were, and sends again. */
#include "work.h"
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
enum { STREAM, PACKETS, DATAGRAMS, NAMED, QUIET, KINDS, BIG = 300000 };
enum { US, CHILD, ENDED, WITH, LONG, MESSAGES };
static int ways[KINDS][2], orders[2], answers[2];
static pid_t child, ended;
static char big[BIG];

static size_t length_of(int kind, int message) { return message == LONG ? kind == STREAM ? 20000 : BIG : (size_t)message * 7 + 3; }
static void put(int kind, int message) {
    char space[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8))) = {0};
    struct iovec part = {big, length_of(kind, message)};
    struct msghdr m = {.msg_iov = &part, .msg_iovlen = 1};
    struct sockaddr_un name;
    socklen_t size = sizeof name;
    if (kind == NAMED) {
        OK(getsockname(ways[kind][1], (void *)&name, &size));
        m.msg_name = &name, m.msg_namelen = size;
    }
    if (message == WITH) {
        m.msg_control = space, m.msg_controllen = sizeof space;
        struct cmsghdr *head = CMSG_FIRSTHDR(&m);
        head->cmsg_level = SOL_SOCKET, head->cmsg_type = SCM_RIGHTS, head->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(head), &orders[0], sizeof(int));
    }
    CHECK(sendmsg(ways[kind][0], &m, 0) == (ssize_t)part.iov_len, "send %d %d", kind, message);
}
static void get(int kind, int message) {
    static char got[BIG + 8];
    char space[256] __attribute__((aligned(8)));
    struct iovec part = {got, sizeof got};
    struct msghdr m = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
    ssize_t bytes = recvmsg(ways[kind][1], &m, MSG_DONTWAIT);
    CHECK(bytes == (ssize_t)length_of(kind, message) && !memcmp(got, big, (size_t)bytes), "%d %d: %zd bytes", kind, message, bytes);
    struct ucred who = {.pid = -1};
    int fds = 0;
    for (struct cmsghdr *head = CMSG_FIRSTHDR(&m); head; head = CMSG_NXTHDR(&m, head)) {
        if (head->cmsg_type == SCM_CREDENTIALS) memcpy(&who, CMSG_DATA(head), sizeof who);
        if (head->cmsg_type == SCM_RIGHTS) memcpy(&fds, CMSG_DATA(head), sizeof fds), OK(fcntl(fds, F_GETFD)), close(fds);
    }
    CHECK(!fds == (message != WITH), "%d %d: descriptor %d", kind, message, fds);
    pid_t pid = kind == QUIET ? 0 : message == CHILD ? child : message == ENDED ? ended : getpid();
    uid_t uid = kind == QUIET ? 65534 : getuid();
    gid_t gid = kind == QUIET ? 65534 : getgid();
    CHECK(who.pid == pid && who.uid == uid && who.gid == gid, "%d %d: sent by %d (%u, %u), not by %d (%u, %u)", kind, message, who.pid, who.uid, who.gid, pid, uid, gid);
}
static void fill(void) {
    char byte = 0;
    for (int kind = 0; kind < KINDS; kind++) put(kind, US);
    CHECK(write(orders[1], &byte, 1) == 1 && read(answers[0], &byte, 1) == 1, "the child");
    ended = OK(fork());
    if (!ended) {
        for (int kind = 0; kind < KINDS; kind++) put(kind, ENDED);
        _exit(0);
    }
    int status;
    CHECK(OK(waitpid(ended, &status, 0)) == ended && status == 0, "%x", status);
    for (int kind = 0; kind < KINDS; kind++) {
        if (kind != QUIET) put(kind, WITH);
        /* Of its own again: nothing that comes with descriptors is joined with what follows. */
        if (kind != QUIET) put(kind, LONG);
    }
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    work_fill(big, BIG / 8 * 8, 5);
    int on = 1, off = 0, room = 1 << 20;
    for (int kind = 0; kind < KINDS; kind++) {
        int types[] = {SOCK_STREAM, SOCK_SEQPACKET, SOCK_DGRAM, SOCK_DGRAM, SOCK_SEQPACKET};
        if (kind == NAMED) {
            struct sockaddr_un name = {.sun_family = AF_UNIX};
            int length = snprintf(name.sun_path + 1, sizeof name.sun_path - 1, "holo-senders-%d-%ld", getpid(), (long)work_now_us(CLOCK_REALTIME));
            for (int side = 0; side < 2; side++) ways[kind][side] = OK(socket(AF_UNIX, SOCK_DGRAM, 0));
            OK(bind(ways[kind][1], (void *)&name, offsetof(struct sockaddr_un, sun_path) + 1 + (socklen_t)length));
        } else OK(socketpair(AF_UNIX, types[kind], 0, ways[kind]));
        for (int side = 0; side < 2; side++) OK(setsockopt(ways[kind][side], SOL_SOCKET, SO_SNDBUF, &room, sizeof room));
        if (kind != QUIET) OK(setsockopt(ways[kind][1], SOL_SOCKET, SO_PASSCRED, &on, sizeof on));
    }
    OK(pipe(orders)), OK(pipe(answers));
    child = OK(fork());
    if (!child) {
        char byte;
        OK(prctl(PR_SET_PDEATHSIG, SIGKILL));
        close(orders[1]);
        while (read(orders[0], &byte, 1) == 1) {
            for (int kind = 0; kind < KINDS; kind++) put(kind, CHILD);
            CHECK(write(answers[1], &byte, 1) == 1, "answer");
        }
        _exit(0);
    }
    for (fill(); work_more(); fill()) {
        work_sleep_us(20000);
        for (int kind = 0; kind < KINDS; kind++) {
            int now;
            socklen_t size = sizeof now;
            OK(getsockopt(ways[kind][1], SOL_SOCKET, SO_PASSCRED, &now, &size));
            CHECK(now == (kind != QUIET), "%d: SO_PASSCRED is %d", kind, now);
            if (kind == QUIET) OK(setsockopt(ways[kind][1], SOL_SOCKET, SO_PASSCRED, &on, sizeof on));
            for (int message = 0; message < (kind == QUIET ? WITH : MESSAGES); message++) get(kind, message);
            if (kind == QUIET) OK(setsockopt(ways[kind][1], SOL_SOCKET, SO_PASSCRED, &off, sizeof off));
        }
        work_tick();
    }
    close(orders[1]);
    int status;
    CHECK(OK(waitpid(child, &status, 0)) == child && status == 0, "the child ended with %x", status);
    return work_end();
}
