/* flags: -O2
 * Goal: each end of a unix connection between processes knows who made the other one (SO_PEERCRED). Method: servers in children of ours, with
 * abstract names and names in the file system, their listeners open or closed, and a pair that a child made and shares with its own child;
 * both ends ask each round and tell each other. */
#include "work.h"
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>

enum { ABSTRACT, CLOSED, PATH, SERVERS };
struct word { pid_t pid; unsigned long round; };

static void check_peer(int fd, pid_t maker, const char *who) {
    struct ucred peer;
    socklen_t n = sizeof peer;
    OK(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &n));
    CHECK(peer.pid == maker && peer.uid == getuid() && peer.gid == getgid(), "%s: its peer was made by %d, not by %d", who, peer.pid, maker);
}

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
    for (unsigned long round = 1; work_more(); round++) {
        for (int kind = 0; kind < SERVERS; kind++) {
            struct word w = {0, round};
            check_peer(fd[kind], server[kind], "a client");
            CHECK(send(fd[kind], &w, sizeof w, 0) == sizeof w && recv(fd[kind], &w, sizeof w, 0) == sizeof w, "server %d", kind);
            CHECK(w.pid == server[kind] && w.round == round, "server %d says %d, %lu", kind, w.pid, w.round);
        }
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
