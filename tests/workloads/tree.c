/* flags: -O2 -pthread
 * Goal: an application of many processes stays what it is: ids, parents, groups, sessions, what is shared, who has ended.
 * Method: workers of every sort answer a question each round, over pipes and socket pairs, with all that they know of themselves, and
 * change memory, a file's offset and locks that they share with others; the parent compares all of it with what it was at the start. */
#include "work.h"
#include <poll.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/socket.h>

enum { WORKERS = 6, ENDED = 2 };
enum { PLAIN, GROUP, JOINED, SESSION, EXEC, NESTED };

struct answer { unsigned long round; pid_t pid, ppid, pgid, sid, inner; int status; char text[16]; };
struct common {
    pthread_mutex_t lock;
    pthread_cond_t turn;
    unsigned long sum, times, orphan_round, wanted;
    pid_t orphan, orphan_sid, orphan_parent, group;
};
static struct common *common;
static struct { pid_t pid; int to, from; struct answer first; } worker[WORKERS];
static volatile sig_atomic_t signalled;
static volatile pid_t signalled_by;
static int log_fd, segment_id;
static atomic_ulong *segment; /* System V */

static void on_usr1(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)context;
    signalled = info->si_value.sival_int, signalled_by = info->si_pid;
}

static int read_all(int fd, void *to, size_t bytes) {
    size_t done = 0;
    while (done < bytes) {
        ssize_t got = read(fd, (char *)to + done, bytes - done);
        if (got == 0) return 0;
        CHECK(got > 0, "read");
        done += got;
    }
    return 1;
}

/* What a process says of itself. */
static void describe(struct answer *a, pid_t inner) {
    a->pid = getpid(), a->ppid = getppid(), a->pgid = getpgrp(), a->sid = getsid(0), a->inner = inner;
    CHECK(a->pid == syscall(SYS_getpid) && a->pid == gettid(), "ids of one process");
    char path[64], stat[64];
    ssize_t got = readlink("/proc/self", stat, sizeof stat - 1);
    CHECK(got > 0, "readlink");
    stat[got] = 0;
    CHECK(atoi(stat) == a->pid, "/proc/self is %s, the process is %d", stat, a->pid);
    snprintf(path, sizeof path, "/proc/%d/stat", a->ppid);
    if (a->ppid > 1) CHECK(access(path, F_OK) == 0, "%s", path);
}

static void add_to_common(unsigned long value) {
    PT(pthread_mutex_lock(&common->lock));
    common->sum += value, common->times++;
    PT(pthread_cond_broadcast(&common->turn));
    PT(pthread_mutex_unlock(&common->lock));
}

/* Serves rounds until its questions end. */
static void serve(int kind, int from, int to) {
    int pair[2];
    pid_t inner = 0;
    if (kind == NESTED) {
        OK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair));
        inner = OK(fork());
        if (inner == 0) {
            struct answer a;
            close(pair[0]);
            while (recv(pair[1], &a, sizeof a, 0) == sizeof a) {
                describe(&a, 0);
                strcpy(a.text, "inner");
                CHECK(send(pair[1], &a, sizeof a, 0) == sizeof a, "send");
            }
            _exit(0);
        }
        close(pair[1]);
    }
    struct flock mine = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 100 + kind, .l_len = 1};
    OK(fcntl(log_fd, F_SETLK, &mine));
    unsigned long round;
    while (read_all(from, &round, sizeof round)) {
        struct answer a = {.round = round};
        describe(&a, inner);
        if (common) add_to_common(round);
        atomic_fetch_add(segment, round);
        if (kind == NESTED) {
            struct answer b = {.round = round};
            CHECK(send(pair[0], &b, sizeof b, 0) == sizeof b, "send");
            CHECK(recv(pair[0], &b, sizeof b, 0) == sizeof b, "recv");
            CHECK(b.round == round && b.pid == inner && b.ppid == a.pid && !strcmp(b.text, "inner"), "inner");
        }
        CHECK(write(log_fd, "x", 1) == 1, "log");
        strcpy(a.text, "worker");
        CHECK(write(to, &a, sizeof a) == sizeof a, "answer");
    }
    if (inner) {
        close(pair[0]);
        int status;
        CHECK(OK(waitpid(inner, &status, 0)) == inner && status == 0, "inner's end");
    }
    _exit(0);
}

/* A daemon: nobody's child, in a session of its own, whose leader is gone. */
static void make_orphan(void) {
    pid_t middle = OK(fork());
    if (middle == 0) {
        OK(setsid());
        common->orphan_sid = getpid();
        if (OK(fork()) != 0) _exit(0);
        while (getppid() == common->orphan_sid) usleep(200);
        common->orphan_parent = getppid();
        common->orphan = getpid();
        for (;;) {
            PT(pthread_mutex_lock(&common->lock));
            while (common->wanted == common->orphan_round) PT(pthread_cond_wait(&common->turn, &common->lock));
            CHECK(getsid(0) == common->orphan_sid && getpgrp() == common->orphan_sid, "the orphan's session");
            CHECK(getpid() == common->orphan, "the orphan's pid");
            common->orphan_round = common->wanted;
            unsigned long last = common->wanted == ~0ul;
            PT(pthread_cond_broadcast(&common->turn));
            PT(pthread_mutex_unlock(&common->lock));
            if (last) _exit(0);
        }
    }
    int status;
    CHECK(OK(waitpid(middle, &status, 0)) == middle && status == 0, "the daemon's parent");
    while (!common->orphan) usleep(200);
}

static void ask_orphan(unsigned long round) {
    PT(pthread_mutex_lock(&common->lock));
    common->wanted = round;
    PT(pthread_cond_broadcast(&common->turn));
    while (common->orphan_round != round) PT(pthread_cond_wait(&common->turn, &common->lock));
    PT(pthread_mutex_unlock(&common->lock));
}

static void start(int kind, char **argv) {
    int question[2], answer[2];
    if (kind % 2) {
        OK(socketpair(AF_UNIX, SOCK_STREAM, 0, question));
        OK(socketpair(AF_UNIX, SOCK_STREAM, 0, answer));
    } else {
        OK(pipe(question)), OK(pipe(answer));
    }
    pid_t pid = OK(fork());
    if (pid == 0) {
        for (int i = 0; i < kind; i++) close(worker[i].to), close(worker[i].from);
        close(question[1]), close(answer[0]);
        if (kind == GROUP) OK(setpgid(0, 0)), common->group = getpid();
        if (kind == JOINED) OK(setpgid(0, common->group));
        if (kind == SESSION) OK(setsid());
        if (kind == EXEC) {
            char from[16], to[16], file[16], id[16];
            snprintf(from, sizeof from, "%d", question[0]), snprintf(to, sizeof to, "%d", answer[1]);
            snprintf(file, sizeof file, "%d", log_fd), snprintf(id, sizeof id, "%d", segment_id);
            execl("/proc/self/exe", argv[0], argv[1], "served", from, to, file, id, NULL);
            FAIL("exec");
        }
        serve(kind, question[0], answer[1]);
    }
    close(question[0]), close(answer[1]);
    worker[kind].pid = pid, worker[kind].to = question[1], worker[kind].from = answer[0];
}

static void ask(int kind, unsigned long round, struct answer *a) {
    CHECK(write(worker[kind].to, &round, sizeof round) == sizeof round, "ask");
    CHECK(read_all(worker[kind].from, a, sizeof *a), "no answer of %d", kind);
    CHECK(a->round == round && !strcmp(a->text, "worker"), "answer of %d", kind);
    CHECK(a->pid == worker[kind].pid, "worker %d is %d", worker[kind].pid, a->pid);
    CHECK(a->ppid == getpid(), "parent of %d is %d", kind, a->ppid);
}

/* Ids of processes that have ended are not given out again until all others were. */
static void not_used_lately(pid_t pid) {
    static long last;
    char text[16] = "";
    int fd = OK(open("/proc/sys/kernel/pid_max", O_RDONLY | O_CLOEXEC));
    CHECK(read(fd, text, sizeof text - 1) > 0, "pid_max");
    close(fd);
    long max = atol(text), on = (pid - last + max) % max;
    CHECK(last == 0 || last >= max || on < max / 4, "process %d is made after %ld of %ld", pid, last, max);
    last = pid;
}

int main(int argc, char **argv) {
    if (argc > 6 && !strcmp(argv[2], "served")) {
        strcpy(work_dir, argv[1]);
        log_fd = atoi(argv[5]);
        segment = shmat(atoi(argv[6]), NULL, 0);
        CHECK(segment != (void *)-1, "shmat");
        serve(EXEC, atoi(argv[3]), atoi(argv[4]));
    }
    work_begin(argc, argv);
    struct sigaction act = {.sa_sigaction = on_usr1, .sa_flags = SA_SIGINFO | SA_RESTART};
    OK(sigaction(SIGUSR1, &act, NULL));
    log_fd = OK(open(work_path("log"), O_RDWR | O_CREAT | O_TRUNC, 0644));
    common = OK(mmap(NULL, 1 << 16, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    pthread_mutexattr_t mattr;
    pthread_condattr_t cattr;
    PT(pthread_mutexattr_init(&mattr)); PT(pthread_condattr_init(&cattr));
    PT(pthread_mutexattr_setpshared(&mattr, PTHREAD_PROCESS_SHARED)); PT(pthread_condattr_setpshared(&cattr, PTHREAD_PROCESS_SHARED));
    PT(pthread_mutex_init(&common->lock, &mattr)); PT(pthread_cond_init(&common->turn, &cattr));
    segment_id = OK(shmget(IPC_PRIVATE, 3 * 4096, IPC_CREAT | 0600));
    segment = shmat(segment_id, NULL, 0);
    CHECK(segment != (void *)-1, "shmat");
    make_orphan();
    for (int kind = 0; kind < WORKERS; kind++) {
        start(kind, argv);
        ask(kind, 0, &worker[kind].first);
    }
    CHECK(worker[SESSION].first.sid == worker[SESSION].pid && worker[JOINED].first.pgid == worker[GROUP].pid, "groups");
    unsigned long sum = 0, times = WORKERS - 1;
    unsigned long segment_sum = 0;
    off_t logged = WORKERS;
    pid_t ended[ENDED] = {0};
    for (unsigned long round = 1; work_more(); round++) {
        for (int kind = 0; kind < WORKERS; kind++) {
            struct answer a, *first = &worker[kind].first;
            ask(kind, round, &a);
            CHECK(a.pgid == first->pgid && a.sid == first->sid && a.inner == first->inner, "worker %d: group %d session %d inner %d, were %d %d %d", kind,
                  a.pgid, a.sid, a.inner, first->pgid, first->sid, first->inner);
            CHECK(getpgid(a.pid) == a.pgid && getsid(a.pid) == a.sid, "as the parent sees worker %d", kind);
            struct flock see = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 100 + kind, .l_len = 1};
            OK(fcntl(log_fd, F_GETLK, &see));
            CHECK(see.l_type == F_WRLCK && see.l_pid == a.pid, "the lock of worker %d is of %d (type %d)", kind, see.l_pid, see.l_type);
        }
        sum += round * (WORKERS - 1), times += WORKERS - 1, logged += WORKERS;
        CHECK(common->sum == sum && common->times == times, "shared memory: %lu of %lu, %lu of %lu", common->sum, sum, common->times, times);
        segment_sum += round * WORKERS;
        CHECK(atomic_load(segment) == segment_sum, "the segment: %lu, not %lu", atomic_load(segment), segment_sum);
        struct shmid_ds ds;
        OK(shmctl(segment_id, IPC_STAT, &ds));
        CHECK(ds.shm_segsz == 3 * 4096 && ds.shm_cpid == getpid() && (ds.shm_perm.mode & 0777) == 0600, "the segment's state");
        CHECK(OK(lseek(log_fd, 0, SEEK_CUR)) == logged, "the shared offset is %ld, not %ld", (long)lseek(log_fd, 0, SEEK_CUR), (long)logged);
        ask_orphan(round);
        /* Two that ended, one by a signal: waited for a round later. */
        for (int i = 0; i < ENDED; i++) {
            if (ended[i]) {
                int status;
                CHECK(OK(waitpid(ended[i], &status, 0)) == ended[i], "wait");
                if (i) CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM, "status %x", status);
                else CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 42, "status %x", status);
            }
            ended[i] = OK(fork());
            if (ended[i] == 0) {
                if (i == 0) _exit(42);
                signal(SIGTERM, SIG_DFL);
                raise(SIGTERM);
            }
        }
        /* A signal with a value, from a child that it names. */
        pid_t sender = OK(fork());
        if (sender == 0) {
            union sigval value = {.sival_int = (int)(round & 0xffff) + 1};
            OK(sigqueue(getppid(), SIGUSR1, value));
            _exit(0);
        }
        int status;
        CHECK(OK(waitpid(sender, &status, 0)) == sender && status == 0, "sender");
        not_used_lately(sender);
        CHECK(signalled == (int)(round & 0xffff) + 1 && signalled_by == sender, "signal %d by %d, not %d by %d", signalled, signalled_by,
              (int)(round & 0xffff) + 1, sender);
        work_sleep_us(3000);
        work_tick();
    }
    for (int i = 0; i < ENDED; i++)
        if (ended[i]) OK(waitpid(ended[i], NULL, 0));
    for (int kind = 0; kind < WORKERS; kind++) {
        int status;
        close(worker[kind].to);
        CHECK(OK(waitpid(worker[kind].pid, &status, 0)) == worker[kind].pid && status == 0, "end of worker %d: %x", kind, status);
    }
    ask_orphan(~0ul);
    OK(shmctl(segment_id, IPC_RMID, NULL));
    return work_end();
}
