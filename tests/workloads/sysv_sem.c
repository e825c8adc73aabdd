/* flags: -O2 -pthread
 * Goal: semaphore sets keep id, key, mode, values, who operated last, who waits, and what the end of a process undoes.
 * Method: two processes take turns; one holds adjustments all the time, one of each round ends in the middle of its own; two wait for
 * what comes at the end only; sets that nobody operates on; all is compared every round, and at the end everybody's undo happens. */
#include "work.h"
#include <sys/ipc.h>
#include <sys/sem.h>
enum { TURN, BACK, END, HELD, LENT, PASSING, DEAD, FULL, THREAD, COUNT = 90 };

static int set;

static void op(int number, int by, int flags) {
    struct sembuf one = {number, by, flags};
    OK(semop(set, &one, 1));
}
static int value(int number) { return OK(semctl(set, number, GETVAL)); }
static void is(int number, int wanted, pid_t last) {
    CHECK(value(number) == wanted, "semaphore %d is %d, not %d", number, value(number), wanted);
    pid_t pid = OK(semctl(set, number, GETPID));
    CHECK(pid == last, "%d operated on semaphore %d, not %d", pid, number, last);
}
static void ends_well(pid_t child, const char *what) {
    int status;
    CHECK(OK(waitpid(child, &status, 0)) == child && status == 0, "%s ended with %x", what, status);
}

static void *lender(void *nothing) {
    op(THREAD, 4, SEM_UNDO);
    return nothing;
}

/* Has taken and given all the time; undone at its end. */
static void hold(void) {
    op(HELD, -2, SEM_UNDO), op(LENT, 7, SEM_UNDO), op(FULL, -1, SEM_UNDO);
    pthread_t thread;
    PT(pthread_create(&thread, NULL, lender, NULL));
    PT(pthread_join(thread, NULL));
    op(BACK, 1, 0);
    op(END, -1, 0);
    _exit(0);
}

/* What killed programs of this sort have left behind: their own sets are of this many semaphores. */
static void sweep(void) {
    struct semid_ds s;
    int last = semctl(0, 0, SEM_INFO, &s);
    for (int i = 0; i <= last; i++) {
        int old = semctl(i, 0, SEM_STAT, &s);
        if (old < 0 || s.sem_perm.cuid != geteuid() || s.sem_nsems != COUNT) continue;
        pid_t pid = semctl(old, LENT, GETPID);
        if (pid > 0 && kill(pid, 0) < 0 && errno == ESRCH) semctl(old, 0, IPC_RMID);
    }
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    sweep();
    key_t key = (geteuid() ? 0x68000000 : 0x6f000000) | getpid();
    int stale = semget(key, 0, 0);
    if (stale >= 0) OK(semctl(stale, 0, IPC_RMID));
    set = OK(semget(IPC_PRIVATE, COUNT, 0600));
    int keyed = OK(semget(key, 3, IPC_CREAT | IPC_EXCL | 0640)), unused = OK(semget(IPC_PRIVATE, 2, 0400));
    OK(semctl(set, HELD, SETVAL, 5)), OK(semctl(set, FULL, SETVAL, 32767));
    op(LENT, 1, 0);
    unsigned short values[3] = {3, 1, 4};
    OK(semctl(keyed, 0, SETALL, values));
    for (int i = THREAD + 1; i < COUNT - 1; i++) op(i, i, 0);

    pid_t dead = OK(fork());
    if (dead == 0) op(DEAD, 9, 0), _exit(0);
    ends_well(dead, "one that operated once");
    pid_t holder = OK(fork());
    if (holder == 0) hold();
    op(BACK, -1, 0);
    pid_t waiter = OK(fork());
    if (waiter == 0) {
        struct sembuf all[2] = {{END, -1, 0}, {DEAD, -9, SEM_UNDO}};
        OK(semop(set, all, 2));
        _exit(0);
    }
    pid_t patient = OK(fork());
    if (patient == 0) {
        struct sembuf zero = {HELD, 0, 0};
        struct timespec most = {600, 0};
        OK(semtimedop(set, &zero, 1, &most));
        _exit(0);
    }
    pid_t player = OK(fork());
    if (player == 0)
        for (;;) {
            op(TURN, -1, 0);
            if (!work_more()) _exit(0);
            op(BACK, 1, 0);
        }

    while (work_more()) {
        op(TURN, 1, 0);
        struct timespec most = {20, 0};
        struct sembuf take = {BACK, -1, 0};
        if (semtimedop(set, &take, 1, &most) < 0) {
            CHECK(!work_more(), "no turn");
            break;
        }
        pid_t passing = OK(fork());
        if (passing == 0) {
            op(PASSING, 300, SEM_UNDO), op(PASSING, -100, SEM_UNDO), op(HELD, -1, SEM_UNDO);
            work_sleep_us(4000);
            _exit(0);
        }
        is(LENT, 8, holder), is(FULL, 32766, holder), is(THREAD, 4, holder), is(DEAD, 9, dead);
        for (int i = THREAD + 1; i < COUNT - 1; i++) is(i, i, getpid());
        is(COUNT - 1, 0, 0);
        for (int i = 0; i < 3; i++) CHECK(semctl(keyed, i, GETVAL) == values[i], "value %d", i);
        struct semid_ds s;
        OK(semctl(keyed, 0, IPC_STAT, &s));
        CHECK(OK(semget(key, 0, 0)) == keyed && (s.sem_perm.mode & 0777) == 0640 && s.sem_nsems == 3, "the keyed set");
        OK(semctl(unused, 0, IPC_STAT, &s));
        CHECK((s.sem_perm.mode & 0777) == 0400 && s.sem_nsems == 2 && s.sem_perm.__key == 0 && s.sem_perm.uid == geteuid(), "the unused set");
        CHECK(semctl(set, END, GETNCNT) <= 2 && value(END) == 0, "who waits");
        ends_well(passing, "one that passed by");
        is(PASSING, 0, passing), is(HELD, 3, passing);
        work_tick();
    }
    op(END, 1, 0), op(END, 1, 0);
    ends_well(holder, "the holder"), ends_well(waiter, "the waiter");
    is(LENT, 1, holder), is(FULL, 32767, holder), is(THREAD, 0, holder), is(HELD, 5, holder), is(DEAD, 9, waiter);
    op(HELD, -5, 0);
    ends_well(patient, "the patient one");
    op(TURN, 1, 0);
    ends_well(player, "the player");
    OK(semctl(set, 0, IPC_RMID)), OK(semctl(keyed, 0, IPC_RMID)), OK(semctl(unused, 0, IPC_RMID));
    return work_end();
}
