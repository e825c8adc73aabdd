/* flags: -O2
 * Goal: sockets have the options that were set last, whoever set them: the agent does not ask for all of them at each epoch.
 * Method: in turn one option of one of several sockets is set, by this process or by a child that ends at once; what was set is
 * kept in memory, and looked at again and again before the next is set. */
#include "work.h"
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/un.h>

struct option {
    int level, name;
    const char *of;
};
/* Of each sort of socket two that any user may set to many values. */
static const struct option options[] = {
    {IPPROTO_TCP, TCP_KEEPIDLE, "tcp"}, {SOL_SOCKET, SO_PRIORITY, "tcp"}, {IPPROTO_IP, IP_TTL, "udp"},
    {SOL_SOCKET, SO_KEEPALIVE, "udp"},  {SOL_SOCKET, SO_RCVLOWAT, "unix"}, {SOL_SOCKET, SO_PASSCRED, "unix"},
};
enum { COUNT = sizeof options / sizeof *options, LOOKS = 15 };
static int sockets[COUNT], want[COUNT];

static int value(int option, unsigned round) {
    int name = options[option].name;
    if (name == SO_KEEPALIVE || name == SO_PASSCRED) return (int)(round / COUNT % 2);
    return 1 + (int)(round / COUNT % (name == SO_PRIORITY ? 6 : 100));
}

static void look(void) {
    for (int i = 0; i < COUNT; i++) {
        int now = -1;
        socklen_t bytes = sizeof now;
        OK(getsockopt(sockets[i], options[i].level, options[i].name, &now, &bytes));
        CHECK(now == want[i], "option %d of the %s socket is %d, set to %d", options[i].name, options[i].of, now, want[i]);
    }
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int pair[2];
    sockets[0] = sockets[1] = OK(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    OK(bind(sockets[0], (void *)&at, sizeof at));
    OK(listen(sockets[0], 5));
    sockets[2] = sockets[3] = OK(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    OK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair));
    sockets[4] = sockets[5] = pair[0];
    for (int i = 0; i < COUNT; i++) {
        socklen_t bytes = sizeof want[i];
        OK(getsockopt(sockets[i], options[i].level, options[i].name, &want[i], &bytes));
    }
    for (unsigned round = 0; work_more(); round++) {
        int i = (int)(round % COUNT), next = value(i, round);
        if (round / COUNT % 3 == 2) {
            pid_t child = OK(fork());
            if (child == 0) _exit(setsockopt(sockets[i], options[i].level, options[i].name, &next, sizeof next) != 0);
            int status;
            CHECK(OK(waitpid(child, &status, 0)) == child && status == 0, "the child ended with %x", status);
        } else {
            OK(setsockopt(sockets[i], options[i].level, options[i].name, &next, sizeof next));
        }
        want[i] = next;
        for (int looks = 0; looks < LOOKS; looks++) {
            look();
            work_sleep_us(1000);
        }
        work_tick();
    }
    return work_end();
}
