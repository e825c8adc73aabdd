/* flags: -O2 -pthread
 * Goal: descriptors of processes lead to them, living, ended and gone; a lease is held and told of. Method: a sleeping child, a zombie,
 * one that was waited for, the program itself; each round signals and polls go through all; somebody opens what is leased. */
#include "work.h"
#include <poll.h>
#include <sys/pidfd.h>

static volatile sig_atomic_t told, told_fd;
static void on_lease(int signal, siginfo_t *info, void *context) { (void)signal, (void)context, told_fd = info->si_fd, told++; }
static volatile sig_atomic_t woken;
static void on_usr1(int signal) { (void)signal, woken++; }

static int ended(int fd) {
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return OK(poll(&p, 1, 0));
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    struct sigaction action = {.sa_handler = on_usr1};
    OK(sigaction(SIGUSR1, &action, NULL));
    action.sa_sigaction = on_lease, action.sa_flags = SA_SIGINFO;
    OK(sigaction(SIGRTMIN + 2, &action, NULL));
    int pipes[2];
    OK(pipe(pipes));
    pid_t sleeper = OK(fork());
    if (sleeper == 0) {
        close(pipes[0]);
        for (int seen = 0;; seen++) {
            while (woken == seen) usleep(200);
            CHECK(write(pipes[1], "w", 1) == 1, "write");
        }
    }
    pid_t zombie = OK(fork());
    if (zombie == 0) _exit(7);
    pid_t gone = OK(fork());
    if (gone == 0) pause();
    int of_sleeper = OK(pidfd_open(sleeper, 0)), of_zombie = OK(pidfd_open(zombie, 0)), of_gone = OK(pidfd_open(gone, PIDFD_NONBLOCK));
    int of_self = OK(pidfd_open(getpid(), 0)), copy = OK(dup(of_self));
    OK(kill(gone, SIGKILL));
    OK(waitpid(gone, NULL, 0));
    siginfo_t info;
    OK(waitid(P_PID, zombie, &info, WEXITED | WNOWAIT));
    int leased = OK(open(work_path("leased"), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
    CHECK(write(leased, "text", 4) == 4, "write");
    close(leased);
    leased = OK(open(work_path("leased"), O_RDONLY | O_CLOEXEC));
    OK(fcntl(leased, F_SETSIG, SIGRTMIN + 2));
    OK(fcntl(leased, F_SETLEASE, F_RDLCK));
    while (work_more()) {
        CHECK(!ended(of_sleeper) && ended(of_zombie) && ended(of_gone) && !ended(of_self) && !ended(copy), "who has ended");
        CHECK(fcntl(of_gone, F_GETFL) & O_NONBLOCK && !(fcntl(of_self, F_GETFL) & O_NONBLOCK), "flags");
        int before = woken;
        OK(pidfd_send_signal(of_sleeper, SIGUSR1, NULL, 0)), OK(pidfd_send_signal(copy, SIGUSR1, NULL, 0));
        char byte;
        CHECK(OK(read(pipes[0], &byte, 1)) == 1 && woken == before + 1, "a signal to oneself");
        CHECK(pidfd_send_signal(of_gone, 0, NULL, 0) == -1 && errno == ESRCH, "one that is gone");
        OK(waitid(P_PIDFD, of_zombie, &info, WEXITED | WNOWAIT));
        CHECK(info.si_pid == zombie && info.si_code == CLD_EXITED && info.si_status == 7, "the zombie is %d", info.si_pid);
        CHECK(waitid(P_PIDFD, of_gone, &info, WEXITED) == -1 && errno == ECHILD, "one that is gone");
        info.si_pid = -1;
        OK(waitid(P_PIDFD, of_sleeper, &info, WEXITED | WNOHANG));
        CHECK(info.si_pid == 0, "the sleeper is %d", info.si_pid);
        CHECK(OK(fcntl(leased, F_GETLEASE)) == F_RDLCK && told == 0, "the lease is %d", fcntl(leased, F_GETLEASE));
        work_sleep_us(3000);
        work_tick();
    }
    CHECK(open(work_path("leased"), O_WRONLY | O_NONBLOCK) == -1 && errno == EWOULDBLOCK, "a file that is leased is opened");
    for (int i = 0; i < 2000 && !told; i++) usleep(500);
    CHECK(told == 1 && told_fd == leased, "told %d times, of %d", told, told_fd);
    OK(fcntl(leased, F_SETLEASE, F_UNLCK));
    OK(pidfd_send_signal(of_sleeper, SIGKILL, NULL, 0));
    OK(waitid(P_PIDFD, of_sleeper, &info, WEXITED));
    CHECK(info.si_pid == sleeper && info.si_status == SIGKILL, "the sleeper's end");
    OK(waitid(P_PIDFD, of_zombie, &info, WEXITED));
    CHECK(info.si_pid == zombie, "the zombie");
    return work_end();
}
