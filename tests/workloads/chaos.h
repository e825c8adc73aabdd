/* What the parts of chaos.c share: the random numbers, the ledger of all its processes, the worker's own place. */
#ifndef CHAOS_H
#define CHAOS_H
#include "work.h"
#include <poll.h>
#include <spawn.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <netinet/in.h>

enum { WORKERS = 4, PAGE = 4096 };

/* Shared by all processes, from before the first fork. */
struct ledger {
    pthread_mutex_t lock;            /* robust */
    unsigned long left, right;       /* equal whenever the lock is free */
    atomic_ulong steps[WORKERS];
    atomic_ulong daemons[WORKERS];   /* tokens of processes that nobody waits for */
    atomic_int ends_with[WORKERS];   /* the status with which a worker is about to end, -1: it goes on */
};
static struct ledger *ledger;
static int me;                       /* index of this worker */
static char **program;               /* argv of the first process */
static pid_t my_pid, my_parent;

static uint64_t random_state;
static uint64_t roll(void) { return work_mix(random_state += 0x9e3779b97f4a7c15u); }
static unsigned below(unsigned n) { return roll() % n; }

/* Adds to both halves of the ledger; a process that died between them is made good. */
static void ledger_add(unsigned long n) {
    int got = pthread_mutex_lock(&ledger->lock);
    if (got == EOWNERDEAD) {
        ledger->right = ledger->left;
        got = pthread_mutex_consistent(&ledger->lock);
    }
    PT(got);
    CHECK(ledger->left == ledger->right, "halves %lu, %lu", ledger->left, ledger->right);
    ledger->left += n;
    if (roll() % 8 == 0) sched_yield();
    ledger->right += n;
    PT(pthread_mutex_unlock(&ledger->lock));
}

/* Content of a stream or file at word `i`. */
static uint64_t word(uint64_t seed, uint64_t i) { return work_mix(seed + i); }
#endif
