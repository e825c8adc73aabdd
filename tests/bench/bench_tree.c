/* flags: -O2 -pthread
 * usage: bench_tree PROCESSES THREADS MIB PAGES READY: so many processes with so many threads in all touch so much memory
 * in all, with content that does not compress, and change so many pages in all every 10 ms; the file READY says when. */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
static uint64_t *memory;
static size_t words, pages_each;
static void *change(void *arg) {
    size_t part = (size_t)arg, all = words / 512;
    for (uint64_t n = 1;; n++) {
        for (size_t i = 0; i < pages_each; i++) memory[(part * pages_each + i) * 7919 % all * 512] += n;
        usleep(10000);
    }
    return NULL;
}
static void *rest(void *arg) { for (;;) pause(); return arg; }
int main(int argc, char **argv) {
    if (argc < 6) return 1;
    size_t processes = strtoul(argv[1], NULL, 10), threads = strtoul(argv[2], NULL, 10) / processes;
    size_t bytes = (strtoul(argv[3], NULL, 10) << 20) / processes;
    pages_each = strtoul(argv[4], NULL, 10) / processes;
    int ready[2];
    if (pipe(ready)) return 1;
    int first = 1;
    for (size_t i = 1; i < processes && first; i++) first = fork() > 0;
    memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return 1;
    madvise(memory, bytes, MADV_NOHUGEPAGE);
    words = bytes / 8;
    uint64_t x = (uint64_t)getpid();
    for (size_t i = 0; i < words; i++) { x ^= x << 13; x ^= x >> 7; x ^= x << 17; memory[i] = x; }
    for (size_t i = 2; i < threads; i++) {
        pthread_t thread;
        pthread_create(&thread, NULL, rest, NULL);
    }
    pthread_t thread;
    if (threads > 1) pthread_create(&thread, NULL, change, (void *)0);
    if (write(ready[1], "", 1) != 1) return 1;
    if (first) {
        char byte;
        for (size_t i = 0; i < processes; i++) if (read(ready[0], &byte, 1) != 1) return 1;
        FILE *f = fopen(argv[5], "w");
        if (!f) return 1;
        fclose(f);
    }
    if (threads > 1) rest(NULL);
    change((void *)0);
}
