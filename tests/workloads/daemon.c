/* flags: -O2
 * Goal: a program that makes itself a daemon stays part of the application, and stands for it where it was the first process.
 * Method: the process that was started ends at once, its child counts on in a session of its own. */
#include "work.h"

int main(int argc, char **argv) {
    work_begin(argc, argv);
    if (OK(fork()) != 0) _exit(0);
    pid_t session = OK(setsid());
    while (work_more()) {
        CHECK(getsid(0) == session && getpid() == session, "session %d", getsid(0));
        work_tick();
        work_sleep_us(300);
    }
    return work_end();
}
