/* Pseudo-terminals with both sides in the application: modes, size, numbers, packets, what neither side has read yet, and a
 * session with its controlling terminal. */
#include "work.h"
#include <poll.h>
#include <sys/ioctl.h>
#include <termios.h>

static struct pair {
    int master, slave;
    char name[64];
    struct termios modes;
} line_pair, raw_pair, session_pair, half_pair, closed_pair;

static struct shared {
    atomic_ulong interrupts, winches, asked, answered;
    atomic_int ready, over;
} *shared;
static pid_t leader;

static void make(struct pair *p) {
    p->master = OK(posix_openpt(O_RDWR | O_NOCTTY));
    OK(grantpt(p->master)), OK(unlockpt(p->master));
    CHECK(ptsname_r(p->master, p->name, sizeof p->name) == 0, "ptsname");
    p->slave = OK(open(p->name, O_RDWR | O_NOCTTY));
}

static void settle(struct pair *p) {
    OK(tcgetattr(p->slave, &p->modes));
}

static void check_pair(struct pair *p, int rows) {
    struct termios now;
    struct winsize size;
    char name[64];
    OK(tcgetattr(p->slave, &now));
    CHECK(!memcmp(&now, &p->modes, offsetof(struct termios, c_cc) + sizeof now.c_cc), "modes of %s", p->name);
    CHECK(cfgetospeed(&now) == cfgetospeed(&p->modes), "speed of %s", p->name);
    OK(ioctl(p->slave, TIOCGWINSZ, &size));
    CHECK(size.ws_row == rows && size.ws_col == rows + 50, "size of %s: %d %d", p->name, size.ws_row, size.ws_col);
    CHECK(ptsname_r(p->master, name, sizeof name) == 0 && !strcmp(name, p->name), "ptsname %s, was %s", name, p->name);
    CHECK(ttyname_r(p->slave, name, sizeof name) == 0 && !strcmp(name, p->name), "ttyname %s, was %s", name, p->name);
}

static void resize(struct pair *p, int rows) {
    struct winsize size = {.ws_row = rows, .ws_col = rows + 50};
    OK(ioctl(p->master, TIOCSWINSZ, &size));
}

static void put(int fd, const void *bytes, size_t n) { CHECK(write(fd, bytes, n) == (ssize_t)n, "write %zu", n); }

static void get(int fd, const void *wanted, size_t n, const char *what) {
    char got[1024];
    size_t have = 0;
    while (have < n) have += OK(read(fd, got + have, n - have));
    CHECK(!memcmp(got, wanted, n), "%s: %.*s", what, (int)n, got);
}

/* One read gives this, and no more. */
static void get_once(int fd, const void *wanted, size_t n, const char *what) {
    char got[1024];
    ssize_t have = OK(read(fd, got, sizeof got));
    CHECK((size_t)have == n && !memcmp(got, wanted, n), "%s: %zd bytes, not %zu: %.*s", what, have, n, (int)have, got);
}

static int quiet(int fd) {
    struct pollfd in = {.fd = fd, .events = POLLIN};
    return OK(poll(&in, 1, 0)) == 0;
}

/* Echo comes by a kernel thread. */
static void wait_for(int fd, int bytes) {
    int now = 0;
    while (now < bytes) OK(ioctl(fd, FIONREAD, &now)), usleep(20);
}

static void on_int(int s) { (void)s, atomic_fetch_add(&shared->interrupts, 1); }
static void on_winch(int s) { (void)s, atomic_fetch_add(&shared->winches, 1); }

/* Leads a session on its terminal; a child of its own is in the background. */
__attribute__((noreturn)) static void lead(void) {
    OK(setsid());
    OK(close(session_pair.master));
    int fd = OK(open(session_pair.name, O_RDWR));
    struct sigaction act = {.sa_handler = on_int, .sa_flags = SA_RESTART};
    OK(sigaction(SIGINT, &act, NULL));
    act.sa_handler = on_winch;
    OK(sigaction(SIGWINCH, &act, NULL));
    int terminal = OK(open("/dev/tty", O_RDWR));
    pid_t child = OK(fork());
    if (child == 0) {
        OK(setpgid(0, 0));
        while (getppid() == getsid(0)) {
            int right = tcgetsid(fd) == getsid(0) && tcgetpgrp(fd) != getpgrp();
            CHECK(right || atomic_load(&shared->over), "the background");
            usleep(500);
        }
        _exit(0);
    }
    /* Also here: it may take its time, and is in the foreground until then. */
    OK(setpgid(child, child));
    atomic_store(&shared->ready, child);
    for (;;) {
        while (atomic_load(&shared->asked) == atomic_load(&shared->answered)) usleep(50);
        char name[64];
        CHECK(tcgetsid(fd) == getpid() && tcgetpgrp(terminal) == getpgrp(), "session %d, group %d", tcgetsid(fd), tcgetpgrp(fd));
        CHECK(ttyname_r(fd, name, sizeof name) == 0 && !strcmp(name, session_pair.name), "terminal %s", name);
        int again = OK(open("/dev/tty", O_RDWR));
        OK(close(again));
        atomic_fetch_add(&shared->answered, 1);
    }
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    shared = OK(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    /* One that goes, so that numbers have a hole. */
    struct pair gone;
    make(&gone), make(&line_pair), make(&raw_pair), make(&session_pair), make(&half_pair), make(&closed_pair);
    close(gone.master), close(gone.slave), close(closed_pair.slave);
    /* Nobody can open the other side of this one. */
    int locked = OK(posix_openpt(O_RDWR | O_NOCTTY));
    struct termios modes;
    OK(tcgetattr(line_pair.slave, &modes));
    modes.c_cc[VINTR] = 7, modes.c_cc[VERASE] = 8;
    modes.c_lflag &= ~ECHOK;
    cfsetospeed(&modes, B9600), cfsetispeed(&modes, B9600);
    OK(tcsetattr(line_pair.slave, TCSANOW, &modes));
    OK(tcgetattr(raw_pair.slave, &modes));
    cfmakeraw(&modes);
    OK(tcsetattr(raw_pair.slave, TCSANOW, &modes));
    OK(ioctl(raw_pair.master, TIOCPKT, &(int){1}));
    OK(ioctl(raw_pair.slave, TIOCEXCL));
    settle(&line_pair), settle(&raw_pair), settle(&session_pair), settle(&half_pair);
    leader = OK(fork());
    if (leader == 0) lead();
    while (!atomic_load(&shared->ready)) usleep(100);
    char all[256], packet[257];
    for (int i = 0; i < 256; i++) all[i] = packet[i + 1] = (char)i;
    packet[0] = TIOCPKT_DATA;
    for (unsigned long round = 1; work_more(); round++) {
        int rows = 20 + (int)(round % 30);
        unsigned long winches = atomic_load(&shared->winches), interrupts = atomic_load(&shared->interrupts);
        resize(&line_pair, rows), resize(&raw_pair, rows), resize(&session_pair, rows), resize(&half_pair, rows);
        /* A line, an end of file, a line that is not finished; what is echoed and what is written comes to the master. */
        put(line_pair.master, "one\ntwo\004three", 13);
        wait_for(line_pair.master, 13);
        put(line_pair.slave, "said\n", 5);
        put(raw_pair.master, all, sizeof all);
        put(raw_pair.slave, all, sizeof all);
        /* Nothing but half a line, and an output that was stopped. */
        put(half_pair.master, "hal", 3);
        wait_for(half_pair.master, 3);
        OK(tcflow(half_pair.slave, TCOOFF));
        /* The other side says something and goes. */
        closed_pair.slave = OK(open(closed_pair.name, O_RDWR | O_NOCTTY));
        put(closed_pair.slave, "farewell\n", 9);
        OK(close(closed_pair.slave));
        atomic_fetch_add(&shared->asked, 1);
        work_sleep_us(4000);
        check_pair(&line_pair, rows), check_pair(&raw_pair, rows), check_pair(&session_pair, rows);
        int value = 0;
        OK(ioctl(raw_pair.slave, TIOCGEXCL, &value));
        CHECK(value, "exclusive");
        OK(ioctl(raw_pair.master, TIOCGPKT, &value));
        CHECK(value, "packets");
        get_once(line_pair.slave, "one\n", 4, "a line");
        get_once(line_pair.slave, "two", 3, "an end of file");
        CHECK(quiet(line_pair.slave), "half a line is read");
        /* It can still be edited. */
        put(line_pair.master, "\010\010ow\n", 5);
        get_once(line_pair.slave, "throw\n", 6, "an edited line");
        get(line_pair.master, "one\r\ntwothreesaid\r\n", 19, "output");
        get(line_pair.master, "\b \b\b \bow\r\n", 10, "echo");
        CHECK(quiet(line_pair.master) && quiet(line_pair.slave), "more than there was");
        get(raw_pair.slave, all, sizeof all, "raw input");
        get(raw_pair.master, packet, sizeof packet, "a packet");
        CHECK(quiet(raw_pair.master) && quiet(raw_pair.slave), "more than there was");
        check_pair(&half_pair, rows);
        CHECK(quiet(half_pair.slave), "half a line is read");
        struct pollfd out = {.fd = half_pair.slave, .events = POLLOUT};
        CHECK(OK(poll(&out, 1, 0)) == 0, "output goes on");
        OK(tcflow(half_pair.slave, TCOON));
        get(half_pair.master, "hal", 3, "echo of half a line");
        put(half_pair.master, "f\n", 2);
        get_once(half_pair.slave, "half\n", 5, "a line of two halves");
        get(half_pair.master, "f\r\n", 3, "echo of the rest");
        get(closed_pair.master, "farewell\r\n", 10, "last words");
        char none;
        CHECK(read(closed_pair.master, &none, 1) == -1 && errno == EIO, "a master without a slave");
        struct pollfd alone = {.fd = locked, .events = POLLIN};
        CHECK(OK(poll(&alone, 1, 0)) == 0, "a master that was never used: %x", alone.revents);
        CHECK(open(ptsname(locked), O_RDWR | O_NOCTTY) == -1 && errno == EIO, "a locked one is opened");
        int again = open(line_pair.name, O_RDWR | O_NOCTTY);
        CHECK(again >= 0, "open %s", line_pair.name);
        OK(close(again));
        put(session_pair.master, "\003", 1);
        while (atomic_load(&shared->interrupts) == interrupts || atomic_load(&shared->winches) == winches) usleep(100);
        CHECK(atomic_load(&shared->interrupts) == interrupts + 1, "interrupts");
        get(session_pair.master, "^C", 2, "echo of an interrupt");
        while (atomic_load(&shared->answered) != atomic_load(&shared->asked)) usleep(100);
        work_tick();
    }
    /* The terminal goes, and with it who leads its session; its child sees that and ends. */
    int status;
    atomic_store(&shared->over, 1);
    OK(close(session_pair.master));
    CHECK(OK(waitpid(leader, &status, 0)) == leader && WIFSIGNALED(status) && WTERMSIG(status) == SIGHUP, "end of the leader: %x", status);
    return work_end();
}
