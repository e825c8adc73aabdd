/* Pseudo-terminals under full load, so that there are always bytes on their way: raw ones in both directions with readers that
 * are slower than writers, and lines that are echoed. Every byte comes once and in its place. */
#include "work.h"
#include <poll.h>
#include <sys/ioctl.h>
#include <termios.h>

enum { RAW, LINES, PAIRS };
static int master[PAIRS], slave[PAIRS];
static atomic_ulong total[4];

static void *sender(void *arg) {
    int fd = *(int *)arg;
    unsigned char bytes[700];
    for (unsigned long at = 0;;) {
        size_t n = 1 + at * 31 % sizeof bytes;
        for (size_t i = 0; i < n; i++) bytes[i] = (unsigned char)((at + i) % 251);
        for (size_t done = 0; done < n;) done += (size_t)OK(write(fd, bytes + done, n - done));
        at += n;
        /* Sometimes there is a pause, in which all is read. */
        if (at % 97 == 0) usleep(3000);
    }
    return arg;
}

struct reader { int fd, count; };

static void *receiver(void *arg) {
    struct reader *r = arg;
    unsigned char bytes[300];
    for (unsigned long at = 0;;) {
        ssize_t n = OK(read(r->fd, bytes, sizeof bytes));
        for (ssize_t i = 0; i < n; i++, at++) CHECK(bytes[i] == at % 251, "direction %d: byte %lu is %d", r->count, at, bytes[i]);
        atomic_fetch_add(&total[r->count], (unsigned long)n);
        if (at % 5 == 0) usleep(200);
    }
    return arg;
}

/* Lines from the master, each read by itself. */
static void *lines(void *arg) {
    char line[64], wanted[64];
    for (unsigned long number = 0;; number++) {
        ssize_t n = OK(read(slave[LINES], line, sizeof line));
        int m = snprintf(wanted, sizeof wanted, "line %lu\n", number);
        CHECK(n == m && !memcmp(line, wanted, (size_t)m), "line %lu: %zd bytes: %.*s", number, n, (int)n, line);
        atomic_fetch_add(&total[2], 1);
        if (number % 7 == 0) usleep(500);
    }
    return arg;
}

static void *typist(void *arg) {
    char line[64];
    for (unsigned long number = 0;; number++) {
        int m = snprintf(line, sizeof line, "line %lu\n", number);
        /* Half a line is on its way for a moment. */
        CHECK(write(master[LINES], line, 3) == 3 && write(master[LINES], line + 3, (size_t)m - 3) == m - 3, "typing");
        /* No more ahead than a line discipline takes: others would be lost, as without holo. */
        while (number > atomic_load(&total[2]) + 50 || number > atomic_load(&total[3]) + 50) usleep(100);
    }
    return arg;
}

/* What is echoed. */
static void *viewer(void *arg) {
    char got[64], wanted[64];
    size_t have = 0;
    for (unsigned long number = 0;; number++) {
        int m = snprintf(wanted, sizeof wanted, "line %lu\r\n", number);
        while (have < (size_t)m) have += (size_t)OK(read(master[LINES], got + have, (size_t)m - have));
        CHECK(!memcmp(got, wanted, (size_t)m), "echo of %lu: %.*s", number, m, got);
        have = 0;
        atomic_fetch_add(&total[3], 1);
    }
    return arg;
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    for (int p = 0; p < PAIRS; p++) {
        master[p] = OK(posix_openpt(O_RDWR | O_NOCTTY));
        OK(grantpt(master[p])), OK(unlockpt(master[p]));
        slave[p] = OK(open(ptsname(master[p]), O_RDWR | O_NOCTTY));
    }
    struct termios modes;
    OK(tcgetattr(slave[RAW], &modes));
    cfmakeraw(&modes);
    OK(tcsetattr(slave[RAW], TCSANOW, &modes));
    static struct reader readers[2];
    readers[0] = (struct reader){slave[RAW], 0}, readers[1] = (struct reader){master[RAW], 1};
    pthread_t t;
    PT(pthread_create(&t, NULL, sender, &master[RAW]));
    PT(pthread_create(&t, NULL, sender, &slave[RAW]));
    PT(pthread_create(&t, NULL, receiver, &readers[0]));
    PT(pthread_create(&t, NULL, receiver, &readers[1]));
    PT(pthread_create(&t, NULL, lines, NULL));
    PT(pthread_create(&t, NULL, typist, NULL));
    PT(pthread_create(&t, NULL, viewer, NULL));
    while (work_more()) {
        unsigned long before[4];
        for (int i = 0; i < 4; i++) before[i] = atomic_load(&total[i]);
        for (int i = 0; i < 4; i++)
            while (atomic_load(&total[i]) < before[i] + 20) usleep(100);
        work_tick();
    }
    return work_end();
}
