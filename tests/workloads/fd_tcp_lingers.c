/* flags: -O2
 * Goal: connections within the process keep their addresses, although what lingers of the killed one keeps the server's port, which nobody had
 * allowed to be bound again (`SO_REUSEADDR`).
 * Method: of one connection the client's end has the lower number, which a process that ends closes first, of the next one the server's. */
#include "work.h"
#include <netinet/in.h>
#include <sys/socket.h>

enum { PAIRS = 3 };
static int ends[PAIRS][2];
static in_port_t ports[PAIRS][2];

static in_port_t port(int fd) {
    struct sockaddr_in a;
    socklen_t n = sizeof a;
    OK(getsockname(fd, (void *)&a, &n));
    return ntohs(a.sin_port);
}

static void say(int from, int to, uint64_t what) {
    uint64_t got = ~what;
    CHECK(send(from, &what, sizeof what, 0) == sizeof what, "send");
    CHECK(recv(to, &got, sizeof got, MSG_WAITALL) == sizeof got && got == what, "received %lu of %lu", got, what);
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof a;
    int listener = OK(socket(AF_INET, SOCK_STREAM, 0));
    OK(bind(listener, (void *)&a, n)), OK(listen(listener, PAIRS)), OK(getsockname(listener, (void *)&a, &n));
    for (int i = 0; i < PAIRS; i++) {
        int low = OK(dup(listener)), client = OK(socket(AF_INET, SOCK_STREAM, 0));
        OK(connect(client, (void *)&a, n));
        int server = OK(accept(listener, NULL, NULL)), lower = i % 2 ? server : client;
        OK(dup2(lower, low)), close(lower);
        ends[i][0] = i % 2 ? client : low, ends[i][1] = i % 2 ? low : server;
        for (int end = 0; end < 2; end++) ports[i][end] = port(ends[i][end]);
    }
    for (uint64_t round = 0; work_more(); round++) {
        for (int i = 0; i < PAIRS; i++) {
            for (int end = 0; end < 2; end++) {
                in_port_t now = port(ends[i][end]);
                CHECK(now == ports[i][end], "connection %d, end %d: port %d became %d", i, end, ports[i][end], now);
                say(ends[i][end], ends[i][!end], round * PAIRS + i);
            }
        }
        work_sleep_us(4000);
        work_tick();
    }
    return work_end();
}
