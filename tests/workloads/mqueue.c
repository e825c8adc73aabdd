/* flags: -O2 -pthread
 * Goal: POSIX message queues keep name, limits, mode, messages with priorities and order, who waits and who is to be notified.
 * Method: messages of all sizes and priorities stay in one queue while it is turned round every round, in two parts; a full queue has a
 * blocked sender; an empty one notifies by a signal with a value, another by a thread; one has no name any more, one is for writing only. */
#include "work.h"
#include <mqueue.h>
#include <poll.h>
enum { KEPT = 8, LONG = 512, FULL = 2 };

static char names[6][64];
static volatile sig_atomic_t noticed, notice_value;
static atomic_int noticed_by_thread;

static void on_notice(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)context;
    CHECK(info->si_code == SI_MESGQ && info->si_pid == getpid() && info->si_uid == getuid(), "a notice of %d", info->si_pid);
    notice_value = info->si_value.sival_int, noticed++;
}
static void on_thread(union sigval value) { atomic_fetch_add(&noticed_by_thread, value.sival_int); }

static void call(char *name, int which, pid_t pid) { snprintf(name, sizeof *names, "/holo-work-%d-%d", which, pid); }

/* What killed programs of this sort have left behind. */
static void sweep(void) {
    char name[sizeof *names];
    for (pid_t pid = 1; pid < 65536; pid++) {
        call(name, 0, pid);
        if (kill(pid, 0) == 0 || errno != ESRCH || mq_unlink(name) < 0) continue;
        for (int which = 1; which < 6; which++) call(name, which, pid), mq_unlink(name);
    }
}

static mqd_t make(int which, int flags, long most, long bytes) {
    call(names[which], which, getpid());
    mq_unlink(names[which]);
    struct mq_attr a = {.mq_maxmsg = most, .mq_msgsize = bytes};
    mqd_t made = mq_open(names[which], flags | O_CREAT | O_EXCL, 0640, &a);
    if (made >= 0) return made;
    CHECK(errno == ENOSPC || errno == EMFILE, "%s", names[which]);
    sweep();
    return OK(mq_open(names[which], flags | O_CREAT | O_EXCL, 0640, &a));
}
static size_t length(int i) { return (size_t)i % 3 == 0 ? 0 : (size_t)i * 8 % LONG; }
static unsigned priority(int i) { return i < 3 ? 32767 : i < 6 ? 7 : 0; }

static void put(mqd_t queue, int i) {
    char text[LONG];
    work_fill(text, length(i), (uint64_t)i + 1);
    OK(mq_send(queue, text, length(i), priority(i)));
}
static void take(mqd_t queue, int i) {
    char text[LONG];
    unsigned found;
    CHECK(OK(mq_receive(queue, text, LONG, &found)) == (ssize_t)length(i) && found == priority(i), "message %d is of priority %u", i, found);
    work_expect(text, length(i), (uint64_t)i + 1, "a message");
}
static void looks(mqd_t queue, long most, long bytes, long count, long flags) {
    struct mq_attr a;
    OK(mq_getattr(queue, &a));
    CHECK(a.mq_maxmsg == most && a.mq_msgsize == bytes && a.mq_flags == flags, "%d: %ld of %ld bytes, flags %lx", queue, a.mq_maxmsg, a.mq_msgsize, a.mq_flags);
    CHECK(count < 0 || a.mq_curmsgs == count, "%d has %ld messages, not %ld", queue, a.mq_curmsgs, count);
}
static void ask(mqd_t queue, int how, int value) {
    struct sigevent e = {.sigev_notify = how, .sigev_signo = SIGUSR1, .sigev_value.sival_int = value, .sigev_notify_function = how == SIGEV_THREAD ? on_thread : NULL};
    OK(mq_notify(queue, &e));
}
static void is_noticed(volatile sig_atomic_t *count, int wanted) {
    for (int i = 0; i < 20000 && *count != wanted; i++) usleep(500);
    CHECK(*count == wanted, "noticed %d times, not %d", *count, wanted);
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    mqd_t kept = make(0, O_RDWR, KEPT, LONG), full = make(1, O_RDWR, FULL, 8), empty = make(2, O_RDWR | O_NONBLOCK, 1, 8);
    mqd_t threaded = make(3, O_RDWR, 1, 8), nameless = make(4, O_RDWR, 3, 16), written = make(5, O_WRONLY, 3, 16);
    mqd_t twice = OK(mq_open(names[0], O_RDONLY | O_NONBLOCK)), again = OK(dup(full));
    OK(mq_unlink(names[4]));
    OK(mq_send(nameless, "nobody", 6, 1)), OK(mq_send(written, "unread", 6, 2)), OK(mq_send(written, "more", 4, 3));
    for (int i = 0; i < KEPT; i++) put(kept, i);
    struct sigaction action = {.sa_sigaction = on_notice, .sa_flags = SA_SIGINFO | SA_RESTART};
    OK(sigaction(SIGUSR1, &action, NULL));
    pid_t sender = OK(fork());
    if (sender == 0)
        for (uint64_t i = 0;; i++) OK(mq_send(full, (char *)&i, 8, 5));
    uint64_t taken = 0;
    ask(empty, SIGEV_SIGNAL, 1), ask(threaded, SIGEV_THREAD, 1);
    for (int round = 0; work_more(); round++) {
        looks(kept, KEPT, LONG, KEPT, 0), looks(twice, KEPT, LONG, KEPT, O_NONBLOCK), looks(full, FULL, 8, -1, 0);
        looks(empty, 1, 8, 0, O_NONBLOCK), looks(nameless, 3, 16, 1, 0), looks(written, 3, 16, 2, 0);
        struct stat s;
        OK(fstat(kept, &s));
        CHECK((s.st_mode & 0777) == 0640 && s.st_nlink == 1 && s.st_uid == geteuid(), "mode %o", s.st_mode);
        OK(fstat(nameless, &s));
        CHECK(s.st_nlink == 0 && mq_open(names[4], O_RDWR) == -1 && errno == ENOENT, "the name is back");
        mqd_t reader = OK(mq_open(names[5], O_RDONLY));
        looks(reader, 3, 16, 2, 0);
        mq_close(reader);
        /* Somebody else is registered already: this process. */
        struct sigevent none = {.sigev_notify = SIGEV_NONE};
        CHECK(mq_notify(empty, &none) == -1 && errno == EBUSY, "registered");
        /* The queue goes round once, first of all by its first part. */
        for (int i = 0; i < 3; i++) take(i % 2 ? twice : kept, i);
        work_sleep_us(2000);
        for (int i = 0; i < 3; i++) put(kept, i);
        for (int i = 0; i < KEPT; i++) take(kept, i);
        struct pollfd poll_kept = {.fd = kept, .events = POLLIN | POLLOUT};
        CHECK(poll(&poll_kept, 1, 0) == 1 && poll_kept.revents == POLLOUT, "an empty queue is %x", poll_kept.revents);
        work_sleep_us(1000);
        for (int i = 0; i < KEPT; i++) put(kept, i);
        CHECK(poll(&poll_kept, 1, 0) == 1 && poll_kept.revents == POLLIN, "a full queue is %x", poll_kept.revents);
        uint64_t got;
        for (int turn = 0; turn < 2; turn++, taken++)
            CHECK(OK(mq_receive(again, (char *)&got, 8, NULL)) == 8 && got == taken, "message %lu of the blocked sender", got);
        uint64_t value = (uint64_t)round;
        OK(mq_send(empty, (char *)&value, 8, 0));
        is_noticed(&noticed, round + 1);
        CHECK(notice_value == round + 1, "notice %d", notice_value);
        CHECK(OK(mq_receive(empty, (char *)&got, 8, NULL)) == 8 && got == value, "message %lu", got);
        ask(empty, SIGEV_SIGNAL, round + 2);
        CHECK(mq_receive(empty, (char *)&got, 8, NULL) == -1 && errno == EAGAIN, "an empty queue that does not block");
        OK(mq_send(threaded, (char *)&value, 8, 0));
        for (int i = 0; i < 20000 && atomic_load(&noticed_by_thread) != round + 1; i++) usleep(500);
        CHECK(atomic_load(&noticed_by_thread) == round + 1, "%d notices by a thread", atomic_load(&noticed_by_thread));
        CHECK(OK(mq_receive(threaded, (char *)&got, 8, NULL)) == 8 && got == value, "message %lu", got);
        ask(threaded, SIGEV_THREAD, 1);
        work_sleep_us(2000);
        work_tick();
    }
    int status;
    OK(kill(sender, SIGKILL));
    CHECK(OK(waitpid(sender, &status, 0)) == sender && status == SIGKILL, "the sender ended with %x", status);
    char text[16];
    CHECK(OK(mq_receive(nameless, text, 16, NULL)) == 6 && !memcmp(text, "nobody", 6), "the queue without a name");
    mqd_t reader = OK(mq_open(names[5], O_RDONLY));
    CHECK(OK(mq_receive(reader, text, 16, NULL)) == 4 && OK(mq_receive(reader, text, 16, NULL)) == 6, "the queue that was only written");
    for (int i = 0; i < 6; i++) mq_unlink(names[i]);
    return work_end();
}
