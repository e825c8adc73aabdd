/* flags: -O2 -pthread
 * Goal: a thread that cannot be parked. Method: it blocks every signal with its own syscall instruction, which libholo does
 * not see, and never leaves user code. */
#include "work.h"
int main(int argc, char **argv) {
    work_begin(argc, argv);
    uint64_t all = ~0ull;
    long result;
    register long size __asm__("r10") = 8;
    __asm__ volatile("syscall" : "=a"(result) : "a"(SYS_rt_sigprocmask), "D"(SIG_BLOCK), "S"(&all), "d"(0), "r"(size) : "rcx", "r11", "memory");
    CHECK(result == 0, "rt_sigprocmask returned %ld", result);
    while (work_more()) {
        volatile unsigned turns = 0;
        while (turns < 1000000) turns++;
        work_tick();
    }
    return work_end();
}
