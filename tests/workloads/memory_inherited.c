/* flags: -O2
 * Goal: memory that a parent and its child have in common is what it was. Method: 80 MiB, to which neither stores after the fork; both look
 * at it again and again. */
#include "work.h"
enum { BYTES = 80 << 20, PART = 1 << 20 };

int main(int argc, char **argv) {
    work_begin(argc, argv);
    char *all = OK(mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    work_fill(all, BYTES, 80);
    pid_t child = OK(fork());
    for (size_t at = 0; work_more(); at = (at + PART) % BYTES) {
        work_expect(all + at, PART, 80 + at / 8, "inherited");
        work_sleep_us(2000);
        if (child) work_tick();
    }
    if (!child) _exit(0);
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0, "the child ended with %x", status);
    return work_end();
}
