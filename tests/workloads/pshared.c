/* flags: -O2 -pthread
 * Goal: what processes synchronise by in shared memory, and counters and timers that they share, work on. Method: three processes meet at
 * a barrier each round and add under every sort of lock; named and unnamed semaphores hand a turn from one to the next; one dies holding
 * a robust mutex; an eventfd, a timerfd and a signalfd made by one are read by another. */
#include "work.h"
#include <semaphore.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
enum { MEMBERS = 3 };

static struct common {
    pthread_barrier_t start, end;
    pthread_mutex_t plain, robust, inherit;
    pthread_rwlock_t readers;
    pthread_cond_t turned;
    sem_t turn[MEMBERS];
    unsigned long sums[4], turns, whose, waits, inherited;
    int over;
} *common;
static sem_t *named;
static int counter, timer, signals;

static void lock_robust(void) {
    int error = pthread_mutex_lock(&common->robust);
    if (error == EOWNERDEAD) error = pthread_mutex_consistent(&common->robust), common->inherited++;
    PT(error);
}

static void take_part(unsigned member, unsigned long round) {
    int met = pthread_barrier_wait(&common->start);
    CHECK(met == 0 || met == PTHREAD_BARRIER_SERIAL_THREAD, "the barrier");
    PT(pthread_mutex_lock(&common->plain));
    common->sums[0] += round;
    PT(pthread_mutex_unlock(&common->plain));
    lock_robust();
    common->sums[1] += round;
    if (member == 0) usleep(500);
    PT(pthread_mutex_unlock(&common->robust));
    PT(pthread_mutex_lock(&common->inherit));
    common->sums[2] += round;
    if (member == 1) usleep(500);
    PT(pthread_mutex_unlock(&common->inherit));
    PT(pthread_rwlock_wrlock(&common->readers));
    common->sums[3] += round;
    PT(pthread_rwlock_unlock(&common->readers));
    PT(pthread_rwlock_rdlock(&common->readers));
    CHECK(common->sums[3] >= round, "a sum");
    PT(pthread_rwlock_unlock(&common->readers));
    /* One after the other, in the order of their numbers: by unnamed semaphores, then by a condition. */
    OK(sem_wait(&common->turn[member]));
    CHECK(common->turns % MEMBERS == member, "the turn is %lu's", common->turns % MEMBERS);
    common->turns++;
    OK(sem_post(&common->turn[(member + 1) % MEMBERS]));
    PT(pthread_mutex_lock(&common->plain));
    while (common->whose % MEMBERS != member) {
        common->waits++;
        PT(pthread_cond_wait(&common->turned, &common->plain));
    }
    common->whose++;
    PT(pthread_cond_broadcast(&common->turned));
    PT(pthread_mutex_unlock(&common->plain));
    OK(sem_wait(named));
    OK(eventfd_write(counter, member + 1));
    OK(sem_post(named));
    met = pthread_barrier_wait(&common->end);
    CHECK(met == 0 || met == PTHREAD_BARRIER_SERIAL_THREAD, "the barrier");
}

static void member_lives(unsigned member) {
    for (unsigned long round = 1;; round++) {
        take_part(member, round);
        if (common->over) _exit(0);
    }
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    common = OK(mmap(NULL, sizeof *common, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    pthread_mutexattr_t m;
    PT(pthread_mutexattr_init(&m)); PT(pthread_mutexattr_setpshared(&m, PTHREAD_PROCESS_SHARED));
    PT(pthread_mutex_init(&common->plain, &m));
    PT(pthread_mutexattr_setrobust(&m, PTHREAD_MUTEX_ROBUST)); PT(pthread_mutex_init(&common->robust, &m));
    PT(pthread_mutexattr_setprotocol(&m, PTHREAD_PRIO_INHERIT)); PT(pthread_mutex_init(&common->inherit, &m));
    pthread_barrierattr_t b;
    PT(pthread_barrierattr_init(&b)); PT(pthread_barrierattr_setpshared(&b, PTHREAD_PROCESS_SHARED));
    PT(pthread_barrier_init(&common->start, &b, MEMBERS)); PT(pthread_barrier_init(&common->end, &b, MEMBERS));
    pthread_rwlockattr_t r;
    PT(pthread_rwlockattr_init(&r)); PT(pthread_rwlockattr_setpshared(&r, PTHREAD_PROCESS_SHARED)); PT(pthread_rwlock_init(&common->readers, &r));
    pthread_condattr_t c;
    PT(pthread_condattr_init(&c)); PT(pthread_condattr_setpshared(&c, PTHREAD_PROCESS_SHARED)); PT(pthread_cond_init(&common->turned, &c));
    for (unsigned i = 0; i < MEMBERS; i++) OK(sem_init(&common->turn[i], 1, i == 0));
    char name[64];
    snprintf(name, sizeof name, "/holo-work-%d", getpid());
    named = sem_open(name, O_CREAT | O_EXCL, 0600, 1);
    CHECK(named != SEM_FAILED, "%s", name);
    OK(sem_unlink(name));
    counter = OK(eventfd(0, EFD_NONBLOCK)), timer = OK(timerfd_create(CLOCK_MONOTONIC, 0));
    sigset_t set;
    sigemptyset(&set), sigaddset(&set, SIGUSR2);
    OK(sigprocmask(SIG_BLOCK, &set, NULL));
    signals = OK(signalfd(-1, &set, 0));
    pid_t members[MEMBERS];
    for (unsigned i = 1; i < MEMBERS; i++)
        if ((members[i] = OK(fork())) == 0) member_lives(i);
    for (unsigned long round = 1, done = 0; !done; round++) {
        done = !work_more();
        /* The lock of one who dies is everybody's again. */
        pid_t dying = OK(fork());
        if (dying == 0) {
            lock_robust();
            struct itimerspec soon = {.it_value.tv_nsec = 1000000};
            OK(timerfd_settime(timer, 0, &soon, NULL));
            OK(kill(getppid(), SIGUSR2));
            work_sleep_us(1500);
            _exit(0);
        }
        int status;
        CHECK(OK(waitpid(dying, &status, 0)) == dying && status == 0, "one that dies ended with %x", status);
        uint64_t expired;
        CHECK(OK(read(timer, &expired, 8)) == 8 && expired == 1, "the timer of another expired %lu times", expired);
        struct signalfd_siginfo info;
        CHECK(OK(read(signals, &info, sizeof info)) == sizeof info && info.ssi_pid == (uint32_t)dying, "a signal of %d", info.ssi_pid);
        common->over = done;
        take_part(0, round);
        CHECK(common->inherited == round, "%lu locks of the dead", common->inherited);
        for (int i = 0; i < 4; i++) CHECK(common->sums[i] == MEMBERS * round * (round + 1) / 2, "sum %d is %lu", i, common->sums[i]);
        uint64_t count;
        CHECK(OK(read(counter, &count, 8)) == 8 && count == 6, "the counter is %lu", count);
        int value;
        OK(sem_getvalue(named, &value));
        CHECK(value == 1, "the named semaphore is %d", value);
        work_tick();
    }
    for (unsigned i = 1; i < MEMBERS; i++) {
        int status;
        CHECK(OK(waitpid(members[i], &status, 0)) == members[i] && status == 0, "member %u ended with %x", i, status);
    }
    return work_end();
}
