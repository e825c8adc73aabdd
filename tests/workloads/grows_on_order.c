/* flags: -O2
 * Goal: memory that grows when it is told to. Method: a file "grow" in the directory makes it touch 48 MiB more, and is removed
 * then; a few pages change all the time. */
#include "work.h"
#include <sys/mman.h>
enum { PAGE = 4096, SOME = 64, MORE = 12288 };

static char *touched(size_t pages, int value) {
    char *at = OK(mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    for (size_t i = 0; i < pages; i++) at[i * PAGE] = (char)value;
    return at;
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    char *some = touched(SOME, 0), *more = NULL;
    for (unsigned char round = 1; work_more(); round++) {
        for (int i = 0; i < SOME; i++) CHECK(some[i * PAGE] == (char)(round - 1), "page %d", i), some[i * PAGE] = (char)round;
        if (access(work_path("grow"), F_OK) == 0) {
            CHECK(!more, "told twice");
            more = touched(MORE, 7);
            OK(unlink(work_path("grow")));
        }
        for (int i = 0; more && i < MORE; i++) CHECK(more[i * PAGE] == 7, "later page %d", i);
        work_tick();
        work_sleep_us(2000);
    }
    return work_end();
}
