/* flags: -O2
 * Goal: what sockets have of the kernel stays: filters of what is received, acknowledgements of netlink that wait, to whom a netlink
 * socket is connected. A memory file that a program made can be executed. Method: each is used every round. */
#include "work.h"
#include <arpa/inet.h>
#include <linux/filter.h>
#include <linux/netlink.h>
#include <sys/socket.h>

enum { ODD = 12345 };

/* Takes datagrams that begin with an odd byte. */
static void attach(int fd) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_B | BPF_ABS, 8), /* behind the header of UDP */
        BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, 1, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, ODD),
        BPF_STMT(BPF_RET | BPF_K, 0),
    };
    struct sock_fprog program = {4, code};
    OK(setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program));
}

static void ask(int fd, uint32_t sequence) {
    struct nlmsghdr request = {.nlmsg_len = sizeof request, .nlmsg_type = NLMSG_NOOP, .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK, .nlmsg_seq = sequence};
    CHECK(send(fd, &request, sizeof request, 0) == sizeof request, "netlink");
}
static void answered(int fd, uint32_t sequence) {
    struct { struct nlmsghdr head; struct nlmsgerr error; } is;
    CHECK(recv(fd, &is, sizeof is, MSG_DONTWAIT) == sizeof is, "the kernel's answer is gone");
    CHECK(is.head.nlmsg_type == NLMSG_ERROR && is.head.nlmsg_seq == sequence && is.error.error == 0, "another answer: %u", is.head.nlmsg_seq);
}

static void executes(int memory) {
    pid_t pid = OK(fork());
    if (pid == 0) {
        char *none[] = {NULL}, *name[] = {"memory", NULL};
        syscall(SYS_execveat, memory, "", name, none, AT_EMPTY_PATH);
        _exit(errno);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status), "the program");
    errno = WEXITSTATUS(status);
    CHECK(errno == 0, "the memory file was not executed");
}

int main(int argc, char **argv) {
    static const char script[] = "#!/bin/true\n";
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_nl peer, is;
    socklen_t length = sizeof to;
    work_begin(argc, argv);
    int filtered = OK(socket(AF_INET, SOCK_DGRAM, 0)), sender = OK(socket(AF_INET, SOCK_DGRAM, 0));
    OK(bind(filtered, (struct sockaddr *)&to, length)), OK(getsockname(filtered, (struct sockaddr *)&to, &length));
    attach(filtered);
    int asks = OK(socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE));
    int told = OK(socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE)), unread = OK(socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE));
    /* Ordinary users may be connected to the kernel only. */
    peer = (struct sockaddr_nl){.nl_family = AF_NETLINK, .nl_pid = geteuid() ? 0 : 4242};
    OK(connect(told, (struct sockaddr *)&peer, sizeof peer));
    ask(unread, 77);
    int memory = OK((int)syscall(SYS_memfd_create, "program", 0));
    CHECK(write(memory, script, sizeof script - 1) == sizeof script - 1, "write");
    for (uint32_t round = 1; work_more(); round++) {
        uint8_t byte = round % 2 ? 4 : 5, got;
        ask(asks, round);
        for (int i = 0; i < 2; i++, byte ^= 1) CHECK(sendto(sender, &byte, 1, 0, (struct sockaddr *)&to, length) == 1, "sendto");
        work_sleep_us(3000);
        CHECK(recv(filtered, &got, 1, MSG_DONTWAIT) == 1 && got == 5, "the datagram that the filter takes");
        CHECK(recv(filtered, &got, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN, "the filter took an even one: %d", got);
        answered(asks, round);
        socklen_t bytes = sizeof is;
        OK(getpeername(told, (struct sockaddr *)&is, &bytes));
        CHECK(is.nl_pid == peer.nl_pid, "connected to %u", is.nl_pid);
        if (round % 20 == 0) executes(memory);
        work_tick();
    }
    answered(unread, 77);
    return work_end();
}
