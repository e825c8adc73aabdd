/* flags: -O2
 * Goal: each end of a unix connection between processes knows who made the other one (SO_PEERCRED). Method: servers in children of ours, with
 * abstract names and names in the file system, their listeners open or closed, and a pair that a child made and shares with its own child;
 * both ends ask each round and tell each other. Likewise of processes that have ended and left their ends to us, and of
 * what was made as another user. */
#include "work.h"
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>

enum { ABSTRACT, CLOSED, PATH, SERVERS };
struct word { pid_t pid; unsigned long round; };

static void check_peer_of(int fd, pid_t maker, uid_t user, const char *who) {
    struct ucred peer;
    socklen_t n = sizeof peer;
    OK(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &n));
    CHECK(peer.pid == maker && peer.uid == user && peer.gid == getgid(), "%s: its peer was made by %d (%u), not by %d (%u)", who, peer.pid, peer.uid, maker, user);
}
static void check_peer(int fd, pid_t maker, const char *who) { check_peer_of(fd, maker, getuid(), who); }

static socklen_t name_of(struct sockaddr_un *name, int kind, pid_t server) {
    memset(name, 0, sizeof *name);
    name->sun_family = AF_UNIX;
    char *text = name->sun_path + (kind != PATH);
    int length = kind == PATH ? snprintf(text, 100, "%s/peer", work_dir) : snprintf(text, 100, "holo-peer-%d-%d", server, kind);
    return offsetof(struct sockaddr_un, sun_path) + (kind != PATH) + length + (kind == PATH);
}

/* Answers what it is told, over a connection and, with kind ABSTRACT, over a pair with a child, too. */
__attribute__((noreturn)) static void serve(int kind, int ready) {
    struct sockaddr_un name;
    pid_t parent = getppid(), inner = 0;
    OK(prctl(PR_SET_PDEATHSIG, SIGKILL));
    int listener = OK(socket(AF_UNIX, SOCK_SEQPACKET, 0)), pair[2];
    socklen_t length = name_of(&name, kind, getpid());
    OK(bind(listener, (struct sockaddr *)&name, length)), OK(listen(listener, 4));
    CHECK(write(ready, "r", 1) == 1, "ready");
    int fd = OK(accept(listener, NULL, NULL));
    if (kind == CLOSED) close(listener);
    if (kind == ABSTRACT) {
        OK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
        pid_t me = getpid();
        inner = OK(fork());
        if (inner == 0) {
            struct word w;
            OK(prctl(PR_SET_PDEATHSIG, SIGKILL));
            close(pair[0]), close(fd);
            while (read(pair[1], &w, sizeof w) == sizeof w) {
                check_peer(pair[1], me, "the inner one");
                CHECK(write(pair[1], &w, sizeof w) == sizeof w, "inner answer");
            }
            _exit(0);
        }
        close(pair[1]);
    }
    struct word w, back;
    while (recv(fd, &w, sizeof w, 0) == sizeof w) {
        check_peer(fd, parent, "a server");
        if (inner) {
            check_peer(pair[0], getpid(), "the maker of a pair");
            CHECK(write(pair[0], &w, sizeof w) == sizeof w && read(pair[0], &back, sizeof back) == sizeof back && back.round == w.round, "inner");
        }
        w.pid = getpid();
        CHECK(send(fd, &w, sizeof w, 0) == sizeof w, "answer");
    }
    _exit(0);
}

static void pass(int to, const int *fds) {
    char space[CMSG_SPACE(2 * sizeof(int))] __attribute__((aligned(8))) = {0};
    struct iovec part = {"", 1};
    struct msghdr m = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
    struct cmsghdr *head = CMSG_FIRSTHDR(&m);
    head->cmsg_level = SOL_SOCKET, head->cmsg_type = SCM_RIGHTS, head->cmsg_len = CMSG_LEN(2 * sizeof(int));
    memcpy(CMSG_DATA(head), fds, 2 * sizeof(int));
    OK(sendmsg(to, &m, 0));
}

/* What processes leave behind that have ended: both ends of a pair, and a client of ours with one of whom we are the client. */
enum { PAIR, CLIENT, SERVER, GONE };
static struct gone { pid_t pid; int fds[2]; } gone[GONE];
static void make_gone(int kind) {
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    int way[2], listener = OK(socket(AF_UNIX, SOCK_STREAM, 0)), status;
    int length = snprintf(name.sun_path + 1, 100, "holo-gone-%d-%d", getpid(), kind);
    socklen_t size = offsetof(struct sockaddr_un, sun_path) + 1 + (socklen_t)length;
    struct gone *g = &gone[kind];
    OK(socketpair(AF_UNIX, SOCK_STREAM, 0, way));
    OK(bind(listener, (struct sockaddr *)&name, size));
    if (kind == CLIENT) OK(listen(listener, 1));
    g->pid = OK(fork());
    if (g->pid == 0) {
        int fds[2] = {listener, listener};
        if (kind == PAIR) OK(socketpair(AF_UNIX, SOCK_STREAM, 0, fds));
        if (kind == CLIENT) fds[0] = OK(socket(AF_UNIX, SOCK_STREAM, 0)), OK(connect(fds[0], (struct sockaddr *)&name, size));
        if (kind == SERVER) OK(listen(listener, 1));
        pass(way[1], fds);
        _exit(0);
    }
    char space[CMSG_SPACE(2 * sizeof(int))] __attribute__((aligned(8))), byte;
    struct iovec part = {&byte, 1};
    struct msghdr m = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
    CHECK(OK(recvmsg(way[0], &m, 0)) == 1, "what it leaves");
    memcpy(g->fds, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof g->fds);
    if (kind != PAIR) close(g->fds[1]);
    if (kind == CLIENT) g->fds[1] = OK(accept(listener, NULL, NULL));
    if (kind == SERVER) {
        g->fds[1] = OK(socket(AF_UNIX, SOCK_STREAM, 0));
        OK(connect(g->fds[1], (struct sockaddr *)&name, size));
        int accepted = OK(accept(g->fds[0], NULL, NULL));
        close(g->fds[0]);
        g->fds[0] = accepted;
    }
    close(way[0]), close(way[1]), close(listener);
    CHECK(OK(waitpid(g->pid, &status, 0)) == g->pid && status == 0, "%x", status);
}
static void check_gone(void) {
    char byte;
    for (int kind = 0; kind < GONE; kind++) {
        struct gone *g = &gone[kind];
        check_peer(g->fds[1], g->pid, "of one that has ended");
        check_peer(g->fds[0], kind == PAIR ? g->pid : getpid(), "to one that has ended");
        for (int side = 0; side < 2; side++) CHECK(write(g->fds[side], "x", 1) == 1 && read(g->fds[!side], &byte, 1) == 1, "%d", kind);
    }
}

/* Made as another user, who we are for a moment: a pair, and a client that nobody accepted yet. */
static uid_t user;
static int users_pair[2], users_listener, users_client;
static void connect_as_user(void) {
    struct sockaddr_un name;
    socklen_t size = sizeof name;
    OK(getsockname(users_listener, (struct sockaddr *)&name, &size));
    OK(seteuid(user));
    users_client = OK(socket(AF_UNIX, SOCK_STREAM, 0));
    OK(connect(users_client, (struct sockaddr *)&name, size));
    OK(seteuid(getuid()));
}
static void make_as_user(void) {
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    int length = snprintf(name.sun_path + 1, 100, "holo-user-%d", getpid());
    user = getuid() ? getuid() : 33;
    users_listener = OK(socket(AF_UNIX, SOCK_STREAM, 0));
    OK(bind(users_listener, (struct sockaddr *)&name, offsetof(struct sockaddr_un, sun_path) + 1 + (socklen_t)length));
    OK(listen(users_listener, 2));
    OK(seteuid(user));
    OK(socketpair(AF_UNIX, SOCK_STREAM, 0, users_pair));
    OK(seteuid(getuid()));
    connect_as_user();
}
static void check_user(void) {
    for (int side = 0; side < 2; side++) check_peer_of(users_pair[side], getpid(), user, "another user's");
    int server = OK(accept(users_listener, NULL, NULL));
    check_peer_of(server, getpid(), user, "who waited");
    check_peer(users_client, getpid(), "who was waited for");
    close(server), close(users_client);
    connect_as_user();
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    pid_t server[SERVERS];
    int fd[SERVERS];
    for (int kind = 0; kind < SERVERS; kind++) {
        int ready[2];
        char byte;
        OK(pipe(ready));
        server[kind] = OK(fork());
        if (server[kind] == 0) {
            for (int i = 0; i < kind; i++) close(fd[i]);
            serve(kind, ready[1]);
        }
        CHECK(read(ready[0], &byte, 1) == 1, "a server");
        close(ready[0]), close(ready[1]);
        struct sockaddr_un name;
        socklen_t length = name_of(&name, kind, server[kind]);
        fd[kind] = OK(socket(AF_UNIX, SOCK_SEQPACKET, 0));
        OK(connect(fd[kind], (struct sockaddr *)&name, length));
    }
    for (int kind = 0; kind < GONE; kind++) make_gone(kind);
    make_as_user();
    for (unsigned long round = 1; work_more(); round++) {
        for (int kind = 0; kind < SERVERS; kind++) {
            struct word w = {0, round};
            check_peer(fd[kind], server[kind], "a client");
            CHECK(send(fd[kind], &w, sizeof w, 0) == sizeof w && recv(fd[kind], &w, sizeof w, 0) == sizeof w, "server %d", kind);
            CHECK(w.pid == server[kind] && w.round == round, "server %d says %d, %lu", kind, w.pid, w.round);
        }
        check_gone();
        check_user();
        work_tick();
        work_sleep_us(500);
    }
    for (int kind = 0; kind < SERVERS; kind++) {
        int status;
        close(fd[kind]);
        CHECK(waitpid(server[kind], &status, 0) == server[kind] && status == 0, "server %d: %x", kind, status);
    }
    return work_end();
}
