/* flags: -O2
 * Goal: a program with System V semaphores runs on untouched while it cannot be replicated. Method: two processes take turns. */
#include "work.h"
#include <sys/ipc.h>
#include <sys/sem.h>

int main(int argc, char **argv) {
    work_begin(argc, argv);
    int set = OK(semget(IPC_PRIVATE, 2, IPC_CREAT | 0600));
    struct sembuf take[2] = {{0, -1, 0}, {1, -1, 0}}, give[2] = {{0, 1, 0}, {1, 1, 0}};
    pid_t child = OK(fork());
    if (child == 0)
        for (;;) {
            OK(semop(set, &take[0], 1));
            if (!work_more()) _exit(0);
            OK(semop(set, &give[1], 1));
        }
    while (work_more()) {
        OK(semop(set, &give[0], 1));
        struct timespec most = {10, 0};
        if (semtimedop(set, &take[1], 1, &most) < 0) {
            CHECK(!work_more(), "no turn");
            break;
        }
        work_sleep_us(2000);
        work_tick();
    }
    OK(semop(set, &give[0], 1));
    int status;
    CHECK(OK(waitpid(child, &status, 0)) == child && status == 0, "the child's end");
    OK(semctl(set, 0, IPC_RMID));
    return work_end();
}
