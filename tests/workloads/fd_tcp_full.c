/* flags: -O2
 * Goal: a connection within the application whose buffers are full loses nothing: what waits at its reader, what its sender could not
 * send yet, and the end of it. Several listeners share a port, the first of them without the option for it by now. Method: both
 * directions are filled until they take no more, read in part, compared and filled again; connections are ended with full buffers.
 * Only root's agent may look at what was not sent: for others the buffers stay nearly empty, far below what the small reader has room
 * for: else its window opens only after it has read half of that, and its peer waits with the rest. */
#include "work.h"
#include <arpa/inet.h>
#include <sys/socket.h>

enum { MOST = 1 << 19, PART = 1 << 16, SMALL = 8192 };
struct way { int from, to; uint64_t sent, got; };
static uint8_t buffer[PART];
static struct sockaddr_in address = {.sin_family = AF_INET};
static int listeners[2];

static uint8_t byte_at(uint64_t at) { return (uint8_t)((at * 2654435761u >> 13) ^ at >> 16); }

/* Sends until nothing more fits; no more than `most` is under way. */
static void fill(struct way *way, uint64_t most) {
    while (way->sent - way->got < most) {
        uint64_t left = most - (way->sent - way->got);
        size_t bytes = left < sizeof buffer ? left : sizeof buffer;
        for (size_t i = 0; i < bytes; i++) buffer[i] = byte_at(way->sent + i);
        ssize_t sent = send(way->from, buffer, bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN) return;
        CHECK(sent > 0, "sending at %lu", way->sent);
        way->sent += sent;
    }
}

/* Reads so much, which is there or comes. False: the end. */
static int drain(struct way *way, size_t bytes) {
    for (size_t got = 0; got < bytes;) {
        ssize_t part = recv(way->to, buffer, bytes - got < sizeof buffer ? bytes - got : sizeof buffer, 0);
        CHECK(part >= 0, "receiving at %lu of %lu", way->got, way->sent);
        if (part == 0) return 0;
        for (ssize_t i = 0; i < part; i++) CHECK(buffer[i] == byte_at(way->got + i), "the byte at %lu", way->got + i);
        way->got += part, got += part;
    }
    return 1;
}

static void open_listeners(void) {
    socklen_t length = sizeof address;
    int one = 1, none = 0;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    for (int i = 0; i < 2; i++) {
        listeners[i] = OK(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
        OK(setsockopt(listeners[i], SOL_SOCKET, SO_REUSEPORT, &one, sizeof one));
        OK(bind(listeners[i], (struct sockaddr *)&address, length)), OK(listen(listeners[i], 8));
        OK(getsockname(listeners[i], (struct sockaddr *)&address, &length));
    }
    OK(setsockopt(listeners[0], SOL_SOCKET, SO_REUSEPORT, &none, sizeof none));
}

static void connect_both(int *client, int *server) {
    *client = OK(socket(AF_INET, SOCK_STREAM, 0));
    if (connect(*client, (struct sockaddr *)&address, sizeof address)) FAIL("connect");
    for (int tries = 0;; tries++) {
        for (int i = 0; i < 2; i++)
            if ((*server = accept(listeners[i], NULL, NULL)) >= 0) return;
        CHECK(errno == EAGAIN && tries < 2000, "accept");
        work_sleep_us(1000);
    }
}

int main(int argc, char **argv) {
    int client, server, value = SMALL;
    socklen_t length = sizeof value;
    work_begin(argc, argv);
    uint64_t most = geteuid() == 0 ? MOST : SMALL / 4;
    open_listeners();
    connect_both(&client, &server);
    /* One of the two readers has little room, the other one what the kernel gives. */
    OK(setsockopt(server, SOL_SOCKET, SO_RCVBUF, &value, sizeof value));
    struct way ways[2] = {{.from = client, .to = server}, {.from = server, .to = client}};
    for (uint64_t round = 0; work_more(); round++) {
        for (int i = 0; i < 2; i++) fill(ways + i, most);
        work_sleep_us(4000);
        for (int i = 0; i < 2; i++) drain(ways + i, work_mix(round + i) % (ways[i].sent - ways[i].got));
        if (round % 4 == 0) {
            struct way ended = {0};
            connect_both(&ended.from, &ended.to);
            fill(&ended, most);
            OK(shutdown(ended.from, SHUT_WR));
            work_sleep_us(4000);
            CHECK(drain(&ended, most + 1) == 0 && ended.got == ended.sent, "%lu of %lu bytes before the end", ended.got, ended.sent);
            struct linger hard = {1, 0}; /* no TIME_WAIT: thousands of rounds would use up the ports */
            OK(setsockopt(ended.to, SOL_SOCKET, SO_LINGER, &hard, sizeof hard));
            close(ended.to), close(ended.from);
        }
        for (int i = 0; i < 2; i++) {
            OK(getsockopt(listeners[i], SOL_SOCKET, SO_REUSEPORT, &value, &length));
            CHECK(value == i, "SO_REUSEPORT of listener %d is %d", i, value);
        }
        work_tick();
    }
    return work_end();
}
