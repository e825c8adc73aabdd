/* flags: -O2
 * Goal: what is on its way stays on its way: descriptors in the queues of sockets, connections that nobody accepted yet.
 * Method: each round checks what was put there the round before, by content, order and sharing, and puts it there again. */
#include "work.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

static ssize_t send_fds(int to, const char *text, const int *fds, int count) {
    char space[CMSG_SPACE(8 * sizeof(int))] __attribute__((aligned(8))) = {0};
    struct iovec part = {(void *)text, strlen(text)};
    struct msghdr m = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = space, .msg_controllen = CMSG_SPACE(count * sizeof(int))};
    struct cmsghdr *head = CMSG_FIRSTHDR(&m);
    head->cmsg_level = SOL_SOCKET, head->cmsg_type = SCM_RIGHTS, head->cmsg_len = CMSG_LEN(count * sizeof(int));
    memcpy(CMSG_DATA(head), fds, count * sizeof(int));
    return sendmsg(to, &m, 0);
}

/* Receives at most `room` bytes; the number of descriptors. */
static int receive(int from, char *text, int room, int *fds) {
    char space[CMSG_SPACE(8 * sizeof(int))] __attribute__((aligned(8)));
    struct iovec part = {text, room - 1};
    struct msghdr m = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
    ssize_t got = OK(recvmsg(from, &m, MSG_DONTWAIT));
    CHECK(!(m.msg_flags & (MSG_TRUNC | MSG_CTRUNC)), "flags %x", m.msg_flags);
    text[got] = 0;
    struct cmsghdr *head = CMSG_FIRSTHDR(&m);
    if (!head) return 0;
    int count = (head->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    memcpy(fds, CMSG_DATA(head), count * sizeof(int));
    return count;
}

static void expect(int from, const char *text, int count, int *fds) {
    char got[64];
    int came = receive(from, got, sizeof got, fds);
    CHECK(!strcmp(got, text) && came == count, "\"%s\" with %d descriptors, not \"%s\" with %d", got, came, text, count);
}

static void expect_text(int fd, const char *text) {
    char got[64] = "";
    ssize_t n = OK(read(fd, got, strlen(text)));
    CHECK(n == (ssize_t)strlen(text) && !strcmp(got, text), "\"%s\", not \"%s\"", got, text);
}

/* Sockets of three types; through them a file that is open here too, an end of a pipe that is nowhere else, a socket of which
 * both ends are on their way, one through the other. */
static const int types[] = {SOCK_STREAM, SOCK_SEQPACKET, SOCK_DGRAM};
static int way[3][2], file;

static void put(int k, unsigned long round) {
    int pipes[2], pair[2], loose;
    char text[32];
    OK(pipe(pipes));
    CHECK(write(pipes[1], "in the pipe", 11) == 11, "pipe");
    OK(close(pipes[1]));
    OK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    CHECK(write(pair[0], "inner", 5) == 5, "pair");
    /* One end goes into the other's queue behind its text. */
    CHECK(send_fds(pair[0], "own", &pair[0], 1) == 3, "own end");
    loose = OK(open(work_dir, O_TMPFILE | O_RDWR, 0600));
    CHECK(write(loose, "loose", 5) == 5, "loose");
    OK(lseek(loose, 2, SEEK_SET));
    CHECK(write(way[k][0], "plain", 5) == 5, "plain");
    int all[] = {file, pipes[0], loose};
    snprintf(text, sizeof text, "three %lu", round);
    CHECK(send_fds(way[k][0], text, all, 3) > 0, "three");
    CHECK(send_fds(way[k][0], "pair", &pair[1], 1) == 4, "one");
    CHECK(write(way[k][0], "last", 4) == 4, "last");
    close(pipes[0]), close(pair[0]), close(pair[1]), close(loose);
}

static void take(int k, unsigned long round) {
    int fds[8], own[8];
    char text[64];
    /* What is before descriptors comes without them, also if more is asked for than there is. */
    if (types[k] == SOCK_STREAM) {
        char three[3];
        struct iovec part = {three, 3};
        struct msghdr m = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = text, .msg_controllen = sizeof text};
        CHECK(OK(recvmsg(way[k][1], &m, 0)) == 3 && m.msg_controllen == 0 && !memcmp(three, "pla", 3), "a part without descriptors");
        expect_text(way[k][1], "in");
    } else expect(way[k][1], "plain", 0, fds);
    snprintf(text, sizeof text, "three %lu", round);
    expect(way[k][1], text, 3, fds);
    off_t at = OK(lseek(file, 0, SEEK_CUR));
    OK(lseek(fds[0], at + 1, SEEK_SET));
    CHECK(lseek(file, 0, SEEK_CUR) == at + 1, "the file that came is the one that is open here");
    expect_text(fds[1], "in the pipe");
    CHECK(read(fds[1], text, 1) == 0, "the pipe's other end is closed");
    expect_text(fds[2], "ose");
    for (int i = 0; i < 3; i++) close(fds[i]);
    expect(way[k][1], "pair", 1, fds);
    expect_text(fds[0], "inner");
    expect(fds[0], "own", 1, own);
    CHECK(write(own[0], "x", 1) == 1, "own end");
    expect_text(fds[0], "x");
    close(fds[0]), close(own[0]);
    if (types[k] == SOCK_STREAM) expect_text(way[k][1], "last");
    else expect(way[k][1], "last", 0, fds);
}

/* Listeners with clients in line: unix by an abstract name, TCP; the clients may have named themselves. */
static int listener[2], line[2][3];

static void get_in_line(int t) {
    struct sockaddr_storage at;
    socklen_t size = sizeof at;
    OK(getsockname(listener[t], (void *)&at, &size));
    for (int i = 0; i < 3; i++) {
        line[t][i] = OK(socket(at.ss_family, SOCK_STREAM, 0));
        OK(connect(line[t][i], (void *)&at, size));
    }
}

static void serve_line(int t) {
    for (int i = 0; i < 3; i++) {
        struct pollfd p = {.fd = listener[t], .events = POLLIN};
        CHECK(OK(poll(&p, 1, 0)) == 1, "somebody is in line");
        int server = OK(accept(listener[t], NULL, NULL));
        struct sockaddr_in client = {0}, mine = {0};
        socklen_t size = sizeof client;
        int who = i;
        if (t == 1) { /* who is it? */
            OK(getpeername(server, (void *)&client, &size));
            for (who = 0; who < 3; who++) {
                if (line[1][who] < 0) continue;
                size = sizeof mine;
                OK(getsockname(line[1][who], (void *)&mine, &size));
                if (mine.sin_port == client.sin_port) break;
            }
            CHECK(who < 3, "a stranger");
        }
        CHECK(write(line[t][who], "ask", 3) == 3, "client");
        expect_text(server, "ask");
        CHECK(write(server, "say", 3) == 3, "server");
        expect_text(line[t][who], "say");
        close(server), close(line[t][who]);
        line[t][who] = -1;
    }
    CHECK(accept4(listener[t], NULL, NULL, 0) < 0 && errno == EAGAIN, "nobody else is in line");
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int length = snprintf(name.sun_path + 1, sizeof name.sun_path - 1, "holo-passed-%d-%ld", getpid(), (long)work_now_us(CLOCK_REALTIME));
    listener[0] = OK(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0));
    OK(bind(listener[0], (void *)&name, offsetof(struct sockaddr_un, sun_path) + 1 + length));
    listener[1] = OK(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
    OK(bind(listener[1], (void *)&at, sizeof at));
    for (int t = 0; t < 2; t++) OK(listen(listener[t], 8)), get_in_line(t);
    file = OK(open(work_path("file"), O_RDWR | O_CREAT | O_TRUNC, 0600));
    for (int k = 0; k < 3; k++) OK(socketpair(AF_UNIX, types[k], 0, way[k])), put(k, 0);
    for (unsigned long round = 0; work_more(); round++) {
        work_sleep_us(20000);
        for (int k = 0; k < 3; k++) take(k, round), put(k, round + 1);
        for (int t = 0; t < 2; t++) serve_line(t), get_in_line(t);
        work_tick();
    }
    return work_end();
}
