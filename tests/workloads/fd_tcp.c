/* flags: -O2 -pthread
 * Goal: TCP within the process goes on and listeners accept. Method: a loopback connection with both ends here and bytes
 * queued both ways, IPv4 and IPv6 listeners with options that accept a new client each round; UDP sockets. */
#include "work.h"
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
enum { CHUNK = 2048 };
static int option(int fd, int level, int name) { int v; socklen_t n = sizeof v; OK(getsockopt(fd, level, name, &v, &n)); return v; }
static void put(int fd, uint64_t seed) { uint64_t b[CHUNK / 8]; work_fill(b, CHUNK, seed); CHECK(send(fd, b, CHUNK, 0) == CHUNK, "send"); }
static void get(int fd, uint64_t seed, const char *what) { uint64_t b[CHUNK / 8]; CHECK(recv(fd, b, CHUNK, MSG_WAITALL) == CHUNK, "%s", what); work_expect(b, CHUNK, seed, what); }
static int listener(int family, struct sockaddr_in6 *a, socklen_t *bytes) {
    int s = OK(socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0)), one = 1;
    memset(a, 0, sizeof *a);
    if (family == AF_INET6) a->sin6_family = AF_INET6, a->sin6_addr = in6addr_loopback, *bytes = sizeof(struct sockaddr_in6);
    else { struct sockaddr_in *v4 = (void *)a; v4->sin_family = AF_INET, v4->sin_addr.s_addr = htonl(INADDR_LOOPBACK), *bytes = sizeof *v4; }
    OK(setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one));
    OK(setsockopt(s, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one));
    if (bind(s, (void *)a, *bytes)) return close(s), -1; /* no IPv6 here */
    OK(listen(s, 17));
    OK(getsockname(s, (void *)a, bytes));
    return s;
}
static int dial(const struct sockaddr_in6 *a, socklen_t bytes) { int c = OK(socket(a->sin6_family, SOCK_STREAM, 0)); if (connect(c, (const void *)a, bytes)) FAIL("connect to the listener"); return c; }

int main(int argc, char **argv) {
    work_begin(argc, argv);
    int quick = strcmp(work_arg, "listen") == 0; /* listeners only, no connection that lives across rounds */
    struct sockaddr_in6 a4, a6, peer;
    socklen_t n4, n6, n;
    int s4 = listener(AF_INET, &a4, &n4), s6 = listener(AF_INET6, &a6, &n6), one = 1, client = -1, server = -1;
    CHECK(s4 >= 0, "no IPv4 loopback");
    uint64_t up_tail = 0, down_tail = 0;
    if (!quick) {
        client = dial(&a4, n4), server = OK(accept(s4, NULL, NULL));
        OK(setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one));
        for (uint64_t i = 0; i < 4; i++) put(client, i), put(server, 50000 + i);
    }
    int udp = OK(socket(AF_INET, SOCK_DGRAM, 0));
    struct sockaddr_in u = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t nu = sizeof u;
    OK(bind(udp, (void *)&u, nu)), OK(getsockname(udp, (void *)&u, &nu)), OK(connect(udp, (void *)&u, nu));
    for (uint64_t round = 0; work_more(); round++) {
        CHECK(send(udp, &round, 8, 0) == 8, "UDP send");
        work_sleep_us(4000);
        uint64_t echo;
        CHECK(recv(udp, &echo, 8, MSG_DONTWAIT) == 8 && echo == round, "the queued datagram is gone");
        if (!quick) {
            get(server, up_tail, "to the server"), get(client, 50000 + down_tail, "to the client");
            up_tail++, down_tail++;
            put(client, up_tail + 3), put(server, 50000 + down_tail + 3);
            CHECK(option(client, IPPROTO_TCP, TCP_NODELAY) && !option(server, IPPROTO_TCP, TCP_NODELAY), "TCP_NODELAY");
            n = sizeof peer;
            OK(getpeername(client, (void *)&peer, &n));
            CHECK(((struct sockaddr_in *)&peer)->sin_port == ((struct sockaddr_in *)&a4)->sin_port, "peer's port");
        }
        for (int v6 = 0; v6 < (s6 >= 0 ? 2 : 1); v6++) {
            int s = v6 ? s6 : s4, c = dial(v6 ? &a6 : &a4, v6 ? n6 : n4), k = OK(accept(s, NULL, NULL));
            put(c, round), get(k, round, "accepted connection");
            struct linger hard = {1, 0}; /* no TIME_WAIT, so that thousands of rounds do not use up the ports */
            OK(setsockopt(c, SOL_SOCKET, SO_LINGER, &hard, sizeof hard));
            close(c), close(k);
            CHECK(option(s, SOL_SOCKET, SO_KEEPALIVE) && option(s, SOL_SOCKET, SO_REUSEADDR) && option(s, SOL_SOCKET, SO_ACCEPTCONN), "listener's options");
        }
        work_tick();
    }
    return work_end();
}
