/* flags: -O2
 * Goal: sockets are in the multicast groups that they have joined, and hear the sources that they want to, and have their filters.
 * Method: on the loopback interface one hears a group, one a group of IPv6, one a source of a group, one has a filter; to all of
 * them is sent what they must hear and what they must not, in each round. */
#include "work.h"
#include <arpa/inet.h>
#include <linux/filter.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/socket.h>
static int lo, off, on = 1;

static int heard(int fd, uint64_t *last) {
    int count = 0;
    while (recv(fd, last, sizeof *last, MSG_DONTWAIT) == sizeof *last) count++;
    CHECK(errno == EAGAIN, "recv");
    return count;
}

/* One that hears only groups that it has joined itself. */
static int listener(int family, struct sockaddr_in6 *at) {
    int fd = OK(socket(family, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    socklen_t bytes = family == AF_INET ? sizeof(struct sockaddr_in) : sizeof *at;
    memset(at, 0, sizeof *at);
    at->sin6_family = family;
    if (family == AF_INET) OK(setsockopt(fd, IPPROTO_IP, IP_MULTICAST_ALL, &off, sizeof off));
    else OK(setsockopt(fd, IPPROTO_IPV6, IPV6_MULTICAST_ALL, &off, sizeof off));
    if (family == AF_INET6) OK(setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on));
    OK(bind(fd, (void *)at, bytes));
    OK(getsockname(fd, (void *)at, &bytes));
    return fd;
}

static void say(int fd, struct sockaddr_in6 *to, const char *group, uint64_t what) {
    CHECK(inet_pton(AF_INET, group, &((struct sockaddr_in *)to)->sin_addr) == 1, "%s", group);
    CHECK(sendto(fd, &what, sizeof what, 0, (void *)to, sizeof(struct sockaddr_in)) == sizeof what, "sending to %s", group);
}

/* Sends from an address of the loopback interface, through it. */
static int sender(const char *from) {
    int fd = OK(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    struct sockaddr_in at = {.sin_family = AF_INET};
    struct ip_mreqn through = {.imr_ifindex = lo};
    inet_pton(AF_INET, from, &at.sin_addr);
    OK(bind(fd, (void *)&at, sizeof at));
    OK(setsockopt(fd, IPPROTO_IP, IP_MULTICAST_IF, &through, sizeof through));
    return fd;
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    CHECK(lo = (int)if_nametoindex("lo"), "no loopback interface");
    struct sockaddr_in6 any_at, some_at, six_at;
    int any = listener(AF_INET, &any_at), some = listener(AF_INET, &some_at), first = sender("127.0.0.1"), second = sender("127.0.0.2");
    struct ip_mreqn join = {.imr_ifindex = lo};
    inet_pton(AF_INET, "239.77.1.1", &join.imr_multiaddr);
    OK(setsockopt(any, IPPROTO_IP, IP_ADD_MEMBERSHIP, &join, sizeof join));
    struct ip_mreq_source source = {.imr_interface.s_addr = htonl(INADDR_LOOPBACK)};
    inet_pton(AF_INET, "239.77.1.2", &source.imr_multiaddr);
    inet_pton(AF_INET, "127.0.0.2", &source.imr_sourceaddr);
    OK(setsockopt(some, IPPROTO_IP, IP_ADD_SOURCE_MEMBERSHIP, &source, sizeof source));
    int six = access("/proc/net/if_inet6", F_OK) ? -1 : listener(AF_INET6, &six_at);
    struct ipv6_mreq join6 = {.ipv6mr_interface = (unsigned)lo};
    inet_pton(AF_INET6, "ff02::77:1", &join6.ipv6mr_multiaddr);
    if (six >= 0) OK(setsockopt(six, IPPROTO_IPV6, IPV6_ADD_MEMBERSHIP, &join6, sizeof join6));
    int pair[2];
    OK(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, pair));
    /* Odd first bytes pass. */
    struct sock_filter odd[] = {
        BPF_STMT(BPF_LD | BPF_B | BPF_ABS, 0),
        BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, 1, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, ~0u),
        BPF_STMT(BPF_RET | BPF_K, 0),
    };
    struct sock_fprog program = {4, odd};
    OK(setsockopt(pair[0], SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program));
    OK(setsockopt(pair[0], SOL_SOCKET, SO_LOCK_FILTER, &on, sizeof on));
    for (uint64_t round = 0; work_more(); round++) {
        uint64_t last = 0;
        say(first, &any_at, "239.77.1.1", round), say(first, &any_at, "239.77.1.2", round), say(first, &any_at, "239.77.1.3", round);
        say(first, &some_at, "239.77.1.2", round), say(second, &some_at, "239.77.1.2", round + 1), say(first, &some_at, "239.77.1.1", round);
        work_sleep_us(2000);
        CHECK(heard(any, &last) == 1 && last == round, "of the group it joined it does not hear all, or of others");
        CHECK(heard(some, &last) == 1 && last == round + 1, "of its source it does not hear all, or of others");
        /* The loopback interface has no route for these. */
        int again = six < 0 ? -2 : setsockopt(six, IPPROTO_IPV6, IPV6_ADD_MEMBERSHIP, &join6, sizeof join6);
        CHECK(again == -2 || (again == -1 && errno == EADDRINUSE), "it is not in the IPv6 group it joined");
        for (uint64_t what = 0; what < 4; what++) CHECK(write(pair[1], &what, sizeof what) == sizeof what, "write");
        work_sleep_us(1000);
        CHECK(heard(pair[0], &last) == 2 && last == 3, "the filter");
        CHECK(setsockopt(pair[0], SOL_SOCKET, SO_DETACH_FILTER, &on, sizeof on) == -1 && errno == EPERM, "the filter is not locked");
        work_tick();
    }
    return work_end();
}
