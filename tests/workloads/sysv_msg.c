/* flags: -O2 -pthread
 * Goal: message queues keep id, key, mode, room, messages with type, text and order, who sent and received last, who waits.
 * Method: messages of all sizes and types stay in one queue while its tail is turned round every round; a full queue has a blocked
 * sender, an empty one a blocked receiver, who move on every round; one is used by nobody; all is compared every round. */
#include "work.h"
#include <sys/ipc.h>
#include <sys/msg.h>
enum { KEPT = 40, LONG = 3000 };
struct message { long type; char text[LONG]; };

static size_t length(int i) { return i % 7 == 0 ? 0 : (size_t)i * i % 613 / 8 * 8; }

static void put(int queue, long type, const void *text, size_t bytes) {
    struct message m = {.type = type};
    memcpy(m.text, text, bytes);
    OK(msgsnd(queue, &m, bytes, 0));
}
static void looks(int queue, unsigned long count, unsigned long bytes, pid_t sender, pid_t receiver) {
    struct msqid_ds s;
    OK(msgctl(queue, IPC_STAT, &s));
    CHECK(s.msg_qnum == count && s.__msg_cbytes == bytes, "%d has %lu messages of %lu bytes", queue, (unsigned long)s.msg_qnum, (unsigned long)s.__msg_cbytes);
    CHECK(s.msg_lspid == sender && s.msg_lrpid == receiver, "%d was used by %d and %d", queue, s.msg_lspid, s.msg_lrpid);
}
static void put_kept(int queue, int i) {
    char text[LONG];
    work_fill(text, length(i), (uint64_t)i);
    put(queue, i % 3 + 1, text, length(i));
}
static void ends_well(pid_t child, const char *what) {
    int status;
    CHECK(OK(waitpid(child, &status, 0)) == child && status == 0, "%s ended with %x", what, status);
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    key_t key = (geteuid() ? 0x68000000 : 0x6f000000) | getpid();
    int stale = msgget(key, 0);
    if (stale >= 0) OK(msgctl(stale, IPC_RMID, NULL));
    int kept = OK(msgget(key, IPC_CREAT | IPC_EXCL | 0640)), full = OK(msgget(IPC_PRIVATE, 0600)), empty = OK(msgget(IPC_PRIVATE, 0600));
    int unused = OK(msgget(IPC_PRIVATE, 0400)), sent = OK(msgget(IPC_PRIVATE, 0600));
    unsigned long bytes = 0;
    for (int i = 0; i < KEPT; i++) put_kept(kept, i), bytes += length(i);
    struct msqid_ds s;
    OK(msgctl(full, IPC_STAT, &s));
    s.msg_qbytes = 8 * sizeof(uint64_t);
    OK(msgctl(full, IPC_SET, &s));
    /* Somebody who is gone has used it last. */
    pid_t dead = OK(fork());
    if (dead == 0) {
        struct message m;
        put(sent, 5, "dead", 4), put(sent, 6, "men", 3);
        CHECK(OK(msgrcv(sent, &m, LONG, 5, 0)) == 4, "a message");
        _exit(0);
    }
    ends_well(dead, "one that sent once");
    pid_t sender = OK(fork());
    if (sender == 0)
        for (uint64_t i = 0;; i++) {
            put(full, (long)i + 1, &i, sizeof i);
            if (!work_more()) _exit(0);
        }
    pid_t receiver = OK(fork());
    if (receiver == 0)
        for (uint64_t i = 1;; i++) {
            struct message m;
            CHECK(OK(msgrcv(empty, &m, LONG, (long)(i % 9 + 1), 0)) == 8 && m.type == (long)(i % 9 + 1), "a message of type %ld", m.type);
            uint64_t got;
            memcpy(&got, m.text, 8);
            if (got == 0) _exit(0);
            CHECK(got == i, "message %lu, not %lu", got, i);
        }
    uint64_t round = 0, taken = 0;
    for (; work_more(); round++) {
        looks(sent, 1, 3, dead, dead), looks(unused, 0, 0, 0, 0), looks(kept, KEPT, bytes, getpid(), round ? getpid() : 0);
        OK(msgctl(kept, IPC_STAT, &s));
        CHECK(OK(msgget(key, 0)) == kept && (s.msg_perm.mode & 0777) == 0640 && s.msg_perm.uid == geteuid(), "the keyed queue");
        OK(msgctl(unused, IPC_STAT, &s));
        CHECK((s.msg_perm.mode & 0777) == 0400 && s.msg_perm.__key == 0, "the unused queue");
        OK(msgctl(full, IPC_STAT, &s));
        CHECK(s.msg_qbytes == 8 * sizeof(uint64_t), "room for %lu bytes", (unsigned long)s.msg_qbytes);
        struct message m;
        for (int turn = 0; turn < 2; turn++, taken++) {
            CHECK(OK(msgrcv(full, &m, LONG, 0, 0)) == 8, "a message");
            CHECK(m.type == (long)taken + 1 && !memcmp(m.text, &taken, 8), "message %ld of the blocked sender", m.type);
        }
        uint64_t next = round + 1;
        put(empty, (long)(next % 9 + 1), &next, 8);
        work_sleep_us(4000);
        /* The whole queue goes round once. */
        for (int i = 0; i < KEPT; i++) {
            CHECK(OK(msgrcv(kept, &m, LONG, 0, IPC_NOWAIT)) == (ssize_t)length(i) && m.type == i % 3 + 1, "message %d is of type %ld", i, m.type);
            work_expect(m.text, length(i), (uint64_t)i, "a message");
            put_kept(kept, i);
            if (i == KEPT / 2) work_sleep_us(1000);
        }
        work_tick();
    }
    uint64_t nothing = 0;
    struct message m;
    put(empty, (long)((round + 1) % 9 + 1), &nothing, 8);
    ends_well(receiver, "the receiver");
    int status;
    while (OK(waitpid(sender, &status, WNOHANG)) == 0) {
        if (msgrcv(full, &m, LONG, 0, IPC_NOWAIT) < 0) CHECK(errno == ENOMSG, "the last of the sender's");
        work_sleep_us(1000);
    }
    CHECK(status == 0, "the sender ended with %x", status);
    for (int i = 1; i < KEPT; i += 3) {
        CHECK(OK(msgrcv(kept, &m, LONG, 2, IPC_NOWAIT)) == (ssize_t)length(i), "message %d by its type", i);
        work_expect(m.text, length(i), (uint64_t)i, "a message");
    }
    OK(msgctl(kept, IPC_RMID, NULL)), OK(msgctl(full, IPC_RMID, NULL)), OK(msgctl(empty, IPC_RMID, NULL));
    OK(msgctl(unused, IPC_RMID, NULL)), OK(msgctl(sent, IPC_RMID, NULL));
    return work_end();
}
