/* flags: -O2
 * usage: bench_once MIB READY PAGES GO: touches so much memory with content that does not compress and writes the file READY; then,
 * whenever there is a file GO, changes PAGES pages once, other ones each time, spread over all of it, and removes GO. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
int main(int argc, char **argv) {
    size_t bytes = (argc > 4 ? strtoul(argv[1], NULL, 10) : 0) << 20;
    uint64_t *p = mmap(NULL, bytes ? bytes : 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), x = 88172645463325252u;
    if (!bytes || p == MAP_FAILED) return 1;
    madvise(p, bytes, MADV_NOHUGEPAGE);
    for (size_t i = 0; i < bytes / 8; i++) x ^= x << 13, x ^= x >> 7, x ^= x << 17, p[i] = x;
    FILE *f = fopen(argv[2], "w");
    if (!f) return 1;
    fclose(f);
    size_t pages = strtoul(argv[3], NULL, 10), all = bytes / 4096;
    for (uint64_t n = 1;; n++) {
        while (access(argv[4], F_OK) != 0) usleep(1000);
        for (size_t i = 0; i < pages; i++) p[(i * all / pages + n) % all * 512] += n;
        unlink(argv[4]);
    }
}
