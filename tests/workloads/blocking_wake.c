/* flags: -O2 -pthread -lutil
 * Goal: a call that blocks without limit survives stops and still gets what it waited for. Method: ARG names the call;
 * the main thread blocks in it, a second thread satisfies it after 150 ms with a value that the main thread checks. */
#include "work.h"
#include <linux/aio_abi.h>
#include <linux/futex.h>
#include <poll.h>
#include <pty.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <termios.h>
enum { DELAY_US = 150000 };
static pthread_t main_thread;
static pthread_barrier_t both;
static unsigned round_now;
static int ends[2], listener, epoll, lock_a, lock_b, queue = -1, sem = -1, pty_main, pty_user;
static uint32_t word;
static struct sockaddr_un address = {.sun_family = AF_UNIX};
struct call { const char *name; void (*setup)(void), (*block)(void), (*wake)(void); };
static void nothing(void) {}
static void handler(int n) { (void)n; }

static void sockets(void) { OK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends)); }
static void pipes(void) { OK(pipe(ends)); }
static void value(unsigned got) { CHECK(got == round_now, "value %u, wanted %u", got, round_now); }
static void read_end(void) { unsigned v; CHECK(read(ends[0], &v, 4) == 4, "read"); value(v); }
static void write_end(void) { CHECK(write(ends[1], &round_now, 4) == 4, "write"); }
static void recv_end(void) { unsigned v; CHECK(recv(ends[0], &v, 4, MSG_WAITALL) == 4, "recv"); value(v); }
static void recvmsg_end(void) {
    unsigned v;
    struct iovec iov = {&v, 4};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};
    CHECK(recvmsg(ends[0], &m, 0) == 4, "recvmsg");
    value(v);
}
static void poll_end(void) { struct pollfd p = {ends[0], POLLIN, 0}; CHECK(poll(&p, 1, -1) == 1 && p.revents == POLLIN, "poll"); read_end(); }
static void epoll_setup(void) { sockets(); epoll = OK(epoll_create1(0)); struct epoll_event e = {.events = EPOLLIN, .data.u64 = 0xabcdef0123456789}; OK(epoll_ctl(epoll, EPOLL_CTL_ADD, ends[0], &e)); }
static void epoll_end(void) { struct epoll_event e; CHECK(epoll_wait(epoll, &e, 1, -1) == 1, "epoll_wait"); CHECK(e.data.u64 == 0xabcdef0123456789, "data"); read_end(); }
static void futex_block(void) { while (__atomic_load_n(&word, __ATOMIC_SEQ_CST) != round_now) { long r = syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, round_now - 1, NULL, NULL, 0); CHECK(r == 0 || errno == EAGAIN, "futex"); } }
static void futex_wake(void) { __atomic_store_n(&word, round_now, __ATOMIC_SEQ_CST); OK(syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0)); }
static void listen_setup(void) {
    strcpy(address.sun_path + 1, "holo-wake-");
    sprintf(address.sun_path + 11, "%d", getpid());
    listener = OK(socket(AF_UNIX, SOCK_STREAM, 0));
    OK(bind(listener, (void *)&address, sizeof address));
    OK(listen(listener, 0));
}
static int client(void) { int c = OK(socket(AF_UNIX, SOCK_STREAM, 0)); OK(connect(c, (void *)&address, sizeof address)); return c; }
static void accept_block(void) { ends[0] = OK(accept(listener, NULL, NULL)); read_end(); close(ends[0]); }
static void accept_wake(void) { ends[1] = client(); write_end(); close(ends[1]); }
static void connect_setup(void) { listen_setup(); close(client()); } /* now the backlog of 1 is taken */
static void connect_block(void) { close(client()); }
static void connect_wake(void) { close(OK(accept(listener, NULL, NULL))); }
static void sem_setup(void) { sem = OK(semget(IPC_PRIVATE, 1, 0600)); }
static void sem_block(void) { struct sembuf b = {0, -1, 0}; OK(semop(sem, &b, 1)); }
static void sem_wake(void) { struct sembuf b = {0, 1, 0}; OK(semop(sem, &b, 1)); }
struct note { long type; unsigned v; };
static void msg_setup(void) { queue = OK(msgget(IPC_PRIVATE, 0600)); }
static void msg_block(void) { struct note n; CHECK(msgrcv(queue, &n, 4, 3, 0) == 4, "msgrcv"); value(n.v); }
static void msg_wake(void) { struct note n = {3, round_now}; OK(msgsnd(queue, &n, 4, 0)); }
static void pty_setup(void) {
    OK(openpty(&pty_main, &pty_user, NULL, NULL, NULL));
    struct termios t;
    OK(tcgetattr(pty_user, &t));
    cfmakeraw(&t);
    t.c_cc[VMIN] = 4;
    OK(tcsetattr(pty_user, TCSANOW, &t));
    ends[0] = pty_user, ends[1] = pty_main;
}
static int child;
static void wait_block(void) {
    child = OK(fork());
    if (!child) { usleep(DELAY_US); _exit((int)(round_now & 127)); }
    siginfo_t info;
    int status;
    if (round_now & 1) { CHECK(waitpid(child, &status, 0) == child, "waitpid"); value(WEXITSTATUS(status) | (round_now & ~127u)); }
    else { OK(waitid(P_PID, child, &info, WEXITED)); value(info.si_status | (round_now & ~127u)); }
}
static void flock_setup(void) { lock_a = OK(open(work_path("lock"), O_RDWR | O_CREAT, 0600)); lock_b = OK(open(work_path("lock"), O_RDWR)); OK(flock(lock_a, LOCK_EX)); }
static void flock_block(void) { OK(flock(lock_b, LOCK_EX)); OK(flock(lock_b, LOCK_UN)); OK(flock(lock_a, LOCK_EX)); }
static void flock_wake(void) { OK(flock(lock_a, LOCK_UN)); }
static void signal_setup(void) { struct sigaction a = {.sa_handler = handler}; OK(sigaction(SIGUSR1, &a, NULL)); sigset_t s; sigemptyset(&s); sigaddset(&s, SIGUSR2); PT(pthread_sigmask(SIG_BLOCK, &s, NULL)); }
static void pause_block(void) { int64_t t = work_now_us(CLOCK_MONOTONIC); CHECK(pause() == -1 && errno == EINTR, "pause"); CHECK(work_now_us(CLOCK_MONOTONIC) - t > DELAY_US / 2, "pause ended without a signal"); }
static void pause_wake(void) { PT(pthread_kill(main_thread, SIGUSR1)); }
static void sigsuspend_block(void) { sigset_t s; sigemptyset(&s); sigaddset(&s, SIGUSR2); int64_t t = work_now_us(CLOCK_MONOTONIC); CHECK(sigsuspend(&s) == -1 && errno == EINTR, "sigsuspend"); CHECK(work_now_us(CLOCK_MONOTONIC) - t > DELAY_US / 2, "sigsuspend ended without a signal"); }
static void sigwait_block(void) { sigset_t s; siginfo_t i; sigemptyset(&s); sigaddset(&s, SIGUSR2); CHECK(sigwaitinfo(&s, &i) == SIGUSR2, "sigwaitinfo"); value(i.si_value.sival_int); }
static void sigwait_wake(void) { union sigval v = {.sival_int = (int)round_now}; OK(sigqueue(getpid(), SIGUSR2, v)); }
/* The application's own EINTR must still come: without SA_RESTART a handler ends the read. */
static void eintr_block(void) { char c; CHECK(read(ends[0], &c, 1) == -1 && errno == EINTR, "a handler without SA_RESTART must end read"); }
static void eintr_setup(void) { pipes(); signal_setup(); }
static void restart_setup(void) { pipes(); signal_setup(); struct sigaction a = {.sa_handler = handler, .sa_flags = SA_RESTART}; OK(sigaction(SIGUSR1, &a, NULL)); }
static void restart_wake(void) { pause_wake(); work_sleep_us(50000); write_end(); }

/* The same, much more often: a signal that comes just when the thread is stopped must end the read all the same. The
 * kernel says that the thread is inside read before the signal is sent, so that it cannot come before the call. */
static int in_read(void) {
    char path[64], text[200] = "";
    snprintf(path, sizeof path, "/proc/self/task/%d/syscall", getpid());
    int fd = OK(open(path, O_RDONLY | O_CLOEXEC));
    if (read(fd, text, sizeof text - 1) < 0) text[0] = 0; /* it was running */
    close(fd);
    return text[0] == '0' && text[1] == ' ';
}
static void dense_wake(void) {
    static uint64_t turn;
    int64_t until = work_now_us(CLOCK_MONOTONIC) + 10000000;
    while (!in_read()) CHECK(work_now_us(CLOCK_MONOTONIC) < until, "the thread never reached read");
    work_sleep_us((long)(work_mix(++turn) % 1500));
    pause_wake();
}

static const struct call calls[] = {
    {"read_pipe", pipes, read_end, write_end}, {"read_socket", sockets, read_end, write_end}, {"read_pty", pty_setup, read_end, write_end},
    {"recv", sockets, recv_end, write_end}, {"recvmsg", sockets, recvmsg_end, write_end}, {"poll", sockets, poll_end, write_end},
    {"epoll", epoll_setup, epoll_end, write_end}, {"futex", nothing, futex_block, futex_wake}, {"accept", listen_setup, accept_block, accept_wake},
    {"connect", connect_setup, connect_block, connect_wake}, {"semop", sem_setup, sem_block, sem_wake}, {"msgrcv", msg_setup, msg_block, msg_wake},
    {"wait", nothing, wait_block, nothing}, {"flock", flock_setup, flock_block, flock_wake}, {"pause", signal_setup, pause_block, pause_wake},
    {"sigsuspend", signal_setup, sigsuspend_block, pause_wake}, {"sigwaitinfo", signal_setup, sigwait_block, sigwait_wake},
    {"own_eintr", eintr_setup, eintr_block, pause_wake}, {"own_eintr_dense", eintr_setup, eintr_block, dense_wake},
    {"own_restart", restart_setup, read_end, restart_wake},
};
static const struct call *chosen;
static atomic_int end;

static void *waker(void *arg) {
    sigset_t all;
    sigfillset(&all);
    PT(pthread_sigmask(SIG_BLOCK, &all, NULL));
    for (;;) {
        pthread_barrier_wait(&both);
        if (atomic_load(&end)) return arg;
        if (chosen->wake != dense_wake) work_sleep_us(DELAY_US);
        chosen->wake();
        pthread_barrier_wait(&both);
    }
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) if (!strcmp(calls[i].name, work_arg)) chosen = &calls[i];
    CHECK(chosen, "unknown call %s", work_arg);
    main_thread = pthread_self();
    chosen->setup();
    PT(pthread_barrier_init(&both, NULL, 2));
    pthread_t t;
    PT(pthread_create(&t, NULL, waker, NULL));
    while (work_more()) {
        round_now++;
        pthread_barrier_wait(&both);
        chosen->block();
        pthread_barrier_wait(&both);
        work_tick();
    }
    atomic_store(&end, 1);
    pthread_barrier_wait(&both);
    PT(pthread_join(t, NULL));
    if (sem >= 0) OK(semctl(sem, 0, IPC_RMID));
    if (queue >= 0) OK(msgctl(queue, IPC_RMID, NULL));
    return work_end();
}
