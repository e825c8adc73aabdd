/* flags: -O2
 * Goal: unix sockets whose names are gone, are another's now, or were in a directory that is gone, are reached by those who are connected
 * to them, and whoever has the name now keeps it; datagrams keep the name of a sender that is gone. Method: all of these
 * send and receive every round, some of it across the pause. */
#include "work.h"
#include <sys/socket.h>
#include <sys/un.h>

static struct sockaddr_un name_of(const char *text) {
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    CHECK(strlen(text) < sizeof name.sun_path, "%s is too long", text);
    strcpy(name.sun_path, text);
    return name;
}

static int bound(int kind, const char *text) {
    struct sockaddr_un name = name_of(text);
    int fd = OK(socket(AF_UNIX, kind, 0));
    unlink(text);
    OK(bind(fd, (struct sockaddr *)&name, sizeof name));
    if (kind & SOCK_STREAM) OK(listen(fd, 8));
    return fd;
}

static int connected(int kind, const char *text) {
    struct sockaddr_un name = name_of(text);
    int fd = OK(socket(AF_UNIX, kind, 0));
    if (connect(fd, (struct sockaddr *)&name, sizeof name)) FAIL("connect to %s", text);
    return fd;
}

static void put(int fd, uint64_t word) { CHECK(send(fd, &word, sizeof word, MSG_NOSIGNAL) == sizeof word, "send"); }
static void get(int fd, uint64_t word, const char *from) {
    uint64_t is;
    struct sockaddr_un name = {0};
    socklen_t length = sizeof name;
    CHECK(recvfrom(fd, &is, sizeof is, MSG_DONTWAIT, (struct sockaddr *)&name, &length) == sizeof is && is == word, "what was sent is not there");
    CHECK(!from || !strcmp(name.sun_path, from), "it came from %s, not %s", name.sun_path, from);
}

/* A datagram of one that is gone when it is read. */
static void send_and_go(const char *from, const char *to, uint64_t word) {
    struct sockaddr_un name = name_of(to);
    int fd = bound(SOCK_DGRAM, from);
    CHECK(sendto(fd, &word, sizeof word, 0, (struct sockaddr *)&name, sizeof name) == sizeof word, "sendto");
    close(fd), unlink(from);
}

int main(int argc, char **argv) {
    char one[100], two[100], dir[100], sender[100], in_dir[120];
    uint64_t byte = 7;
    work_begin(argc, argv);
    OK(chdir(work_dir));
    strcpy(one, work_path("one")), strcpy(two, work_path("two")), strcpy(dir, work_path("dir")), strcpy(sender, work_path("sender"));
    snprintf(in_dir, sizeof in_dir, "%s/socket", dir);
    /* Two listeners were bound to one name, which the first has. */
    int first = bound(SOCK_STREAM, one);
    OK(rename(one, two));
    int second = bound(SOCK_STREAM | SOCK_NONBLOCK, one);
    OK(rename(two, one));
    /* A fifo has the name of a socket. */
    int server = bound(SOCK_DGRAM, two), client = connected(SOCK_DGRAM, two);
    OK(unlink(two)), OK(mkfifo(two, 0600));
    int fifo = OK(open(two, O_RDWR | O_NONBLOCK));
    /* The directory is gone, too. */
    OK(mkdir(dir, 0700));
    int lost = bound(SOCK_DGRAM, in_dir), to_lost = connected(SOCK_DGRAM, in_dir);
    OK(unlink(in_dir)), OK(rmdir(dir));
    int relative = bound(SOCK_DGRAM, "relative"), to_relative = connected(SOCK_DGRAM, "relative");
    for (uint64_t round = 0; work_more(); round++) {
        put(client, round), put(to_lost, round), put(to_relative, round);
        send_and_go(sender, "relative", round);
        CHECK(write(fifo, &byte, 1) == 1, "the fifo");
        int caller = connected(SOCK_STREAM, one);
        work_sleep_us(4000);
        get(server, round, NULL), get(lost, round, NULL), get(relative, round, NULL), get(relative, round, sender);
        CHECK(read(fifo, &byte, 1) == 1 && byte == 7, "the fifo");
        int accepted = OK(accept(first, NULL, NULL));
        put(caller, round), get(accepted, round, NULL);
        close(caller), close(accepted);
        CHECK(accept(second, NULL, NULL) == -1 && errno == EAGAIN, "somebody came by a name that is gone");
        CHECK(access(dir, F_OK) == -1 && access(in_dir, F_OK) == -1 && access(sender, F_OK) == -1, "there is what was removed");
        work_tick();
    }
    return work_end();
}
