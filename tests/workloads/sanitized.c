/* flags: -O1 -g -fsanitize=address -pthread
 * Goal: programs with a sanitizer run under holo: its run-time library insists on being the first one, reserves terabytes, and looks for
 * leaks at the end. Method: threads allocate, check and free, and ask what is known of the blocks; children do the same. */
#include "work.h"
#include <sanitizer/asan_interface.h>
enum { BLOCKS = 200 };

/* Little is kept of what was freed: epochs are to be small. */
const char *__asan_default_options(void) { return "quarantine_size_mb=1:thread_local_quarantine_size_kb=64"; }

static void *churn(void *seed) {
    for (long round = 0; round < 20; round++) {
        char *blocks[BLOCKS];
        for (long i = 0; i < BLOCKS; i++) blocks[i] = malloc(64 + i * 8), work_fill(blocks[i], 64 + i * 8, (long)seed + i);
        for (long i = 0; i < BLOCKS; i++) {
            work_expect(blocks[i], 64 + i * 8, (long)seed + i, "a block");
            CHECK(!__asan_address_is_poisoned(blocks[i]) && __asan_address_is_poisoned(blocks[i] - 1), "where a block begins");
            __asan_poison_memory_region(blocks[i] + 16, 16);
        }
        for (long i = 0; i < BLOCKS; i++) {
            CHECK(__asan_region_is_poisoned(blocks[i], 64) == blocks[i] + 16, "what was marked");
            free(blocks[i]);
        }
    }
    return seed;
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    while (work_more()) {
        pthread_t threads[3];
        for (long i = 0; i < 3; i++) PT(pthread_create(&threads[i], NULL, churn, (void *)(i * 1000)));
        for (long i = 0; i < 3; i++) PT(pthread_join(threads[i], NULL));
        pid_t pid = OK(fork());
        if (!pid) _exit(churn((void *)7L) == (void *)7L ? 3 : 4);
        int status;
        CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 3, "a child");
        work_tick();
    }
    return work_end();
}
