/* flags: -O2
 * Goal: programs that take long between exec and their first instruction, as with hundreds of libraries, are awaited. Method: the loader
 * is held up by the choice of a function, which it makes before any constructor; there is nearly always a child in that state; it
 * says what it got. */
#include "work.h"

static int answer_fast(int x) { return x + 1; }

/* Nothing is relocated yet: it calls nobody. */
static int (*choose(void))(int) {
    struct timespec nap = {0, 250 * 1000000L};
    long ret;
    __asm__ volatile("syscall" : "=a"(ret) : "a"(SYS_nanosleep), "D"(&nap), "S"(0) : "rcx", "r11", "memory");
    return answer_fast;
}
int answer(int) __attribute__((ifunc("choose")));

int main(int argc, char **argv) {
    if (argc == 3 && !strcmp(argv[1], "--answer")) return answer(atoi(argv[2]));
    work_begin(argc, argv);
    char self[PATH_MAX] = "";
    OK(readlink("/proc/self/exe", self, sizeof self - 1));
    for (int x = 0; work_more(); x = (x + 1) % 100) {
        char text[16];
        snprintf(text, sizeof text, "%d", x);
        pid_t pid = OK(fork());
        if (!pid) {
            execl(self, "slow_loader", "--answer", text, NULL);
            _exit(200);
        }
        int status;
        CHECK(waitpid(pid, &status, 0) == pid, "waitpid");
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == x + 1, "status %x", status);
        work_tick();
        work_sleep_us(10000);
    }
    return work_end();
}
