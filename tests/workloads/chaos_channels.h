/* Channels: pipes, socket pairs of each type, loopback TCP, event counters, with words in flight; one set watches them all. */
#include "chaos.h"

enum { CHANNELS = 10, IN_FLIGHT = 3000 };
enum { PIPE, STREAM, DATAGRAM, PACKETS, TCP, COUNTER, SORTS };
static struct { int in, out, sort, open; uint64_t seed, put, got; } channel[CHANNELS];
static int watcher = -1;

static void tcp_pair(int *a, int *b) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof at;
    int listener = OK(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    OK(bind(listener, (void *)&at, sizeof at));
    OK(listen(listener, 1));
    OK(getsockname(listener, (void *)&at, &size));
    *a = OK(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    OK(connect(*a, (void *)&at, sizeof at));
    *b = OK(accept4(listener, NULL, NULL, SOCK_CLOEXEC));
    close(listener);
}

static void channel_open(int i) {
    int pair[2];
    channel[i].sort = below(SORTS), channel[i].seed = roll(), channel[i].put = channel[i].got = 0, channel[i].open = 1;
    switch (channel[i].sort) {
    case PIPE: OK(pipe2(pair, below(2) ? O_CLOEXEC : 0)); break;
    case STREAM: OK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair)); break;
    case DATAGRAM: OK(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, pair)); break;
    case PACKETS: OK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair)); break;
    case TCP: tcp_pair(&pair[1], &pair[0]); break;
    default: pair[0] = pair[1] = OK(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    }
    channel[i].in = pair[0], channel[i].out = pair[1];
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = i};
    OK(epoll_ctl(watcher, EPOLL_CTL_ADD, channel[i].in, &event));
}

static void channel_close(int i) {
    OK(epoll_ctl(watcher, EPOLL_CTL_DEL, channel[i].in, NULL));
    OK(close(channel[i].in));
    if (channel[i].out != channel[i].in) OK(close(channel[i].out));
    channel[i].open = 0;
}

static int is_message(int sort) { return sort == DATAGRAM || sort == PACKETS; }

static void channel_put(int i) {
    uint64_t text[500], n = 1 + below(500), waiting = channel[i].put - channel[i].got;
    if (channel[i].sort == COUNTER) {
        CHECK(write(channel[i].out, &n, 8) == 8, "counter");
        channel[i].put += n;
        return;
    }
    /* Messages are of one word, so that few of them fill no queue. */
    if (is_message(channel[i].sort)) n = 1;
    if (waiting + n > (is_message(channel[i].sort) ? 8 : IN_FLIGHT)) return;
    for (uint64_t k = 0; k < n; k++) text[k] = word(channel[i].seed, channel[i].put + k);
    ssize_t put = OK(write(channel[i].out, text, n * 8));
    CHECK((uint64_t)put == n * 8, "channel of sort %d took %zd", channel[i].sort, put);
    channel[i].put += n;
}

static void channel_get(int i) {
    uint64_t text[500], waiting = channel[i].put - channel[i].got, n = 1 + below(500);
    if (waiting == 0) return;
    if (channel[i].sort == COUNTER) {
        CHECK(read(channel[i].in, text, 8) == 8 && text[0] == waiting, "counter is %lu, not %lu", text[0], waiting);
        channel[i].got = channel[i].put;
        return;
    }
    if (is_message(channel[i].sort)) n = 1;
    if (n > waiting) n = waiting;
    for (uint64_t done = 0; done < n * 8;) {
        ssize_t got = read(channel[i].in, (char *)text + done, n * 8 - done);
        CHECK(got > 0, "channel of sort %d: read %zd with %lu words waiting", channel[i].sort, got, waiting);
        done += got;
    }
    for (uint64_t k = 0; k < n; k++) CHECK(text[k] == word(channel[i].seed, channel[i].got + k), "channel of sort %d: word %lu", channel[i].sort, channel[i].got + k);
    channel[i].got += n;
}

static void channel_check(int i) {
    uint64_t waiting = channel[i].put - channel[i].got;
    int bytes = 0;
    if (channel[i].sort == COUNTER) return;
    OK(ioctl(channel[i].in, FIONREAD, &bytes));
    /* Loopback TCP may take a moment; of packets the kernel says the first one or all. */
    if (channel[i].sort == PIPE || channel[i].sort == STREAM) CHECK((uint64_t)bytes == waiting * 8, "channel of sort %d: %d bytes, not %lu", channel[i].sort, bytes, waiting * 8);
}

/* The set reports what has something to read, and only that. */
static void watcher_check(void) {
    struct epoll_event event[CHANNELS];
    int seen = 0, expected = 0, ready = OK(epoll_wait(watcher, event, CHANNELS, 0));
    for (int k = 0; k < ready; k++) {
        int i = event[k].data.u64;
        CHECK(channel[i].open && channel[i].put > channel[i].got, "channel %d of sort %d is said to be readable", i, channel[i].sort);
        seen |= 1 << i;
    }
    for (int i = 0; i < CHANNELS; i++)
        if (channel[i].open && channel[i].put > channel[i].got && channel[i].sort != TCP) expected |= 1 << i;
    CHECK((expected & ~seen) == 0, "readable: %x, reported: %x", expected, seen);
}

static void op_channel(void) {
    int i = below(CHANNELS);
    if (!channel[i].open) {
        channel_open(i);
        return;
    }
    channel_check(i);
    switch (below(9)) {
    case 0: channel_close(i); break;
    case 1: case 2: case 3: channel_get(i); break;
    case 4: watcher_check(); break;
    default: channel_put(i);
    }
}

/* A descriptor on its way through a socket is still a descriptor. */
static void op_pass(void) {
    static int pair[2] = {-1, -1}, waiting, position;
    union { char space[CMSG_SPACE(sizeof(int))]; struct cmsghdr align; } control;
    char byte = 7;
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.space, .msg_controllen = sizeof control.space};
    if (pair[0] < 0) OK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair));
    if (!waiting) {
        int fd = OK(open(work_dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
        position = 1 + below(100);
        OK(lseek(fd, position, SEEK_SET));
        struct cmsghdr *head = CMSG_FIRSTHDR(&message);
        head->cmsg_level = SOL_SOCKET, head->cmsg_type = SCM_RIGHTS, head->cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(head), &fd, sizeof fd);
        CHECK(sendmsg(pair[0], &message, 0) == 1, "sendmsg");
        close(fd);
    } else {
        int fd;
        CHECK(recvmsg(pair[1], &message, MSG_CMSG_CLOEXEC) == 1 && byte == 7, "recvmsg");
        struct cmsghdr *head = CMSG_FIRSTHDR(&message);
        CHECK(head && head->cmsg_type == SCM_RIGHTS && !(message.msg_flags & MSG_CTRUNC), "no descriptor came");
        memcpy(&fd, CMSG_DATA(head), sizeof fd);
        CHECK(OK(lseek(fd, 0, SEEK_CUR)) == position, "the position of a passed file");
        close(fd);
    }
    waiting ^= 1;
}

static void channels_check(void) {
    for (int i = 0; i < CHANNELS; i++)
        if (channel[i].open) channel_check(i);
}
