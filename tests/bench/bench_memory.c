/* flags: -O2
 * usage: bench_memory MIB READY [PAGES]: touches so much memory with content that does not compress, writes the file READY; then
 * changes the same PAGES pages, spread over all of it, every 10 ms, or without them a word every millisecond. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
int main(int argc, char **argv) {
    size_t bytes = (argc > 2 ? strtoul(argv[1], NULL, 10) : 0) << 20;
    uint64_t *p = mmap(NULL, bytes ? bytes : 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), x = 88172645463325252u;
    if (!bytes || p == MAP_FAILED) return 1;
    for (size_t i = 0; i < bytes / 8; i++) x ^= x << 13, x ^= x >> 7, x ^= x << 17, p[i] = x;
    FILE *f = fopen(argv[2], "w");
    if (!f) return 1;
    fclose(f);
    size_t pages = argc > 3 ? strtoul(argv[3], NULL, 10) : 0, all = bytes / 4096;
    for (uint64_t n = 1; pages; n++) {
        for (size_t i = 0; i < pages; i++) p[i * all / pages * 512] += n;
        usleep(10000);
    }
    for (uint64_t n = 0;; n++) { p[n % (bytes / 8)]++; usleep(1000); }
}
