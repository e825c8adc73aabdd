/* flags: -O2 -pthread
 * Goal: epoll sets keep members, events and data. Method: level, edge and one-shot members with 64-bit data, a nested
 * set, a member whose own number was closed while a duplicate lives, a thread blocked in epoll_wait. */
#include "work.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
static void add(int set, int fd, uint32_t events, uint64_t data) { struct epoll_event e = {.events = events, .data.u64 = data}; OK(epoll_ctl(set, EPOLL_CTL_ADD, fd, &e)); }
static void pulse(int fd) { uint64_t one = 1; CHECK(write(fd, &one, 8) == 8, "eventfd"); }
static void drain(int fd) { uint64_t n; CHECK(read(fd, &n, 8) == 8, "eventfd"); }
/* Exactly these data values are ready. */
static void ready(int set, int n, const uint64_t *wanted, const char *what) {
    struct epoll_event e[8];
    int got = OK(epoll_wait(set, e, 8, 0));
    CHECK(got == n, "%s: %d ready, wanted %d", what, got, n);
    for (int i = 0; i < n; i++) {
        int found = 0;
        for (int k = 0; k < n; k++) found |= e[k].data.u64 == wanted[i];
        CHECK(found, "%s: %lx missing", what, wanted[i]);
    }
}
static int blocked_set, blocked_event;
static atomic_ulong woken;
static void *blocked(void *arg) {
    for (;;) {
        struct epoll_event e;
        CHECK(epoll_wait(blocked_set, &e, 1, -1) == 1, "blocked epoll_wait");
        CHECK(e.data.u64 == 0xb10c, "data of the blocked set");
        uint64_t n;
        CHECK(read(blocked_event, &n, 8) == 8, "eventfd");
        if (n >= 1000) return arg;
        atomic_fetch_add(&woken, n);
    }
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    int set = OK(epoll_create1(EPOLL_CLOEXEC)), inner = OK(epoll_create1(0)), nested = OK(epoll_create1(0));
    int level = OK(eventfd(0, EFD_NONBLOCK)), edge = OK(eventfd(0, EFD_NONBLOCK)), shot = OK(eventfd(0, EFD_NONBLOCK)), deep = OK(eventfd(0, EFD_NONBLOCK));
    int original = OK(eventfd(0, EFD_NONBLOCK)), copy;
    const uint64_t L = 0x1111222233334444, E = 0xffffeeeeddddcccc, S = 7, D = 0xdeadbeefcafef00d, N = 99;
    add(set, level, EPOLLIN, L), add(set, edge, EPOLLIN | EPOLLET, E), add(set, shot, EPOLLIN | EPOLLONESHOT, S);
    add(inner, deep, EPOLLIN, N), add(nested, inner, EPOLLIN, 5);
    add(set, original, EPOLLIN, D);
    copy = OK(dup(original));
    OK(close(original));
    /* The number is taken again by something else: the set must still watch the old file. */
    int reused = OK(eventfd(0, EFD_NONBLOCK));
    CHECK(reused == original, "number %d", reused);
    blocked_set = OK(epoll_create1(0)), blocked_event = OK(eventfd(0, 0));
    add(blocked_set, blocked_event, EPOLLIN, 0xb10c);
    pthread_t t;
    PT(pthread_create(&t, NULL, blocked, NULL));
    for (unsigned long round = 1; work_more(); round++) {
        ready(set, 0, NULL, "at rest");
        pulse(level), pulse(copy), pulse(deep);
        work_sleep_us(2000);
        ready(set, 2, (uint64_t[]){L, D}, "level");
        ready(set, 2, (uint64_t[]){L, D}, "level again");
        ready(nested, 1, (uint64_t[]){5}, "nested");
        ready(inner, 1, (uint64_t[]){N}, "inner");
        drain(level), drain(copy), drain(deep);
        pulse(edge), pulse(shot);
        work_sleep_us(1000);
        ready(set, 2, (uint64_t[]){E, S}, "edge and one-shot");
        struct epoll_event e = {.events = EPOLLIN | EPOLLONESHOT, .data.u64 = S};
        drain(edge), pulse(shot);
        ready(set, 0, NULL, "the one-shot is disarmed");
        drain(shot);
        OK(epoll_ctl(set, EPOLL_CTL_MOD, shot, &e));
        CHECK(epoll_ctl(set, EPOLL_CTL_ADD, level, &e) == -1 && errno == EEXIST, "a member is forgotten");
        CHECK(epoll_ctl(set, EPOLL_CTL_DEL, reused, &e) == -1 && errno == ENOENT, "a stranger became a member");
        pulse(blocked_event);
        for (int i = 0; i < 1000 && atomic_load(&woken) < round; i++) work_sleep_us(1000);
        CHECK(atomic_load(&woken) == round, "the blocked thread woke %lu times, wanted %lu", atomic_load(&woken), round);
        work_tick();
    }
    uint64_t last = 1000;
    CHECK(write(blocked_event, &last, 8) == 8, "end");
    PT(pthread_join(t, NULL));
    return work_end();
}
