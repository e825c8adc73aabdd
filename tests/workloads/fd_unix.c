/* flags: -O2 -pthread
 * Goal: unix sockets keep queues, boundaries, names and options. Method: pairs of each type with queued messages both
 * ways, a listening socket by path and an abstract one that accept new clients, a half-closed pair. */
#include "work.h"
#include <sys/socket.h>
#include <sys/un.h>
enum { DEPTH = 6 };
struct link { int ends[2]; uint64_t head[2], tail[2]; int type; };
static size_t length_of(uint64_t n) { return 8 * (1 + work_mix(n) % 60); }
static void put(struct link *l, int side) { uint64_t b[64]; size_t n = length_of(l->head[side]); work_fill(b, n, l->head[side] + 100000 * side); CHECK(send(l->ends[side], b, n, 0) == (ssize_t)n, "send"); l->head[side]++; }
static void get(struct link *l, int side) {
    uint64_t b[80], n = length_of(l->tail[side]);
    ssize_t got = recv(l->ends[!side], b, l->type == SOCK_STREAM ? n : sizeof b, l->type == SOCK_STREAM ? MSG_WAITALL : 0);
    CHECK(got == (ssize_t)n, "type %d: received %zd, wanted %lu", l->type, got, n);
    work_expect(b, n, l->tail[side] + 100000 * side, "message");
    l->tail[side]++;
}
static int listening(struct sockaddr_un *a, socklen_t bytes) {
    int s = OK(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    OK(bind(s, (void *)a, bytes));
    OK(listen(s, 5));
    return s;
}
static void serve(int s, struct sockaddr_un *a, socklen_t bytes, const char *what) {
    int c = OK(socket(AF_UNIX, SOCK_STREAM, 0)), accepted;
    if (connect(c, (void *)a, bytes)) FAIL("connect to the %s socket", what);
    accepted = OK(accept4(s, NULL, NULL, SOCK_CLOEXEC));
    char t[8];
    CHECK(write(c, "question", 8) == 8 && read(accepted, t, 8) == 8 && !memcmp(t, "question", 8), "%s", what);
    close(c), close(accepted);
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    struct link links[3] = {{.type = SOCK_STREAM}, {.type = SOCK_DGRAM}, {.type = SOCK_SEQPACKET}};
    for (int i = 0; i < 3; i++) {
        OK(socketpair(AF_UNIX, links[i].type, 0, links[i].ends));
        for (int n = 0; n < DEPTH; n++) put(&links[i], 0), put(&links[i], 1);
    }
    struct sockaddr_un by_path = {.sun_family = AF_UNIX}, abstract = {.sun_family = AF_UNIX};
    CHECK(strlen(work_path("socket")) < sizeof by_path.sun_path, "path too long");
    strcpy(by_path.sun_path, work_path("socket"));
    unlink(by_path.sun_path);
    socklen_t abstract_bytes = offsetof(struct sockaddr_un, sun_path) + 1 + sprintf(abstract.sun_path + 1, "holo-work-%d", getpid());
    int s1 = listening(&by_path, sizeof by_path), s2 = listening(&abstract, abstract_bytes);
    int half[2], buffer = 65536, buffer_then;
    OK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, half));
    CHECK(send(half[0], "tail", 4, 0) == 4, "send");
    OK(shutdown(half[0], SHUT_WR));
    OK(setsockopt(links[1].ends[0], SOL_SOCKET, SO_SNDBUF, &buffer, sizeof buffer));
    socklen_t bytes = sizeof buffer_then;
    OK(getsockopt(links[1].ends[0], SOL_SOCKET, SO_SNDBUF, &buffer_then, &bytes));
    while (work_more()) {
        work_sleep_us(3000);
        for (int i = 0; i < 3; i++)
            for (int side = 0; side < 2; side++) get(&links[i], side), put(&links[i], side);
        serve(s1, &by_path, sizeof by_path, "named");
        serve(s2, &abstract, abstract_bytes, "abstract");
        char t[8];
        CHECK(recv(half[1], t, 8, MSG_PEEK) == 4 && !memcmp(t, "tail", 4), "half-closed pair");
        CHECK(send(half[1], "x", 1, 0) == 1 && recv(half[0], t, 8, 0) == 1, "open half");
        int now;
        OK(getsockopt(links[1].ends[0], SOL_SOCKET, SO_SNDBUF, &now, &bytes));
        CHECK(now == buffer_then, "SO_SNDBUF %d, was %d", now, buffer_then);
        struct sockaddr_un name;
        socklen_t name_bytes = sizeof name;
        OK(getsockname(s2, (void *)&name, &name_bytes));
        CHECK(name_bytes == abstract_bytes && !memcmp(&name, &abstract, abstract_bytes), "abstract name");
        work_tick();
    }
    char t[8];
    CHECK(recv(half[1], t, 8, 0) == 4 && recv(half[1], t, 8, 0) == 0, "end of the half-closed pair");
    return work_end();
}
