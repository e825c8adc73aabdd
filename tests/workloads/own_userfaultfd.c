/* flags: -O2
 * Goal: a userfaultfd of the application's own works on memory that epochs watch. Method: after some epochs it is made,
 * write-protects touched memory, and must be given it. While it is open the application is unprotected. */
#include "work.h"
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
enum { PAGE = 4096, PAGES = 64 };
int main(int argc, char **argv) {
    work_begin(argc, argv);
    char *at = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(at != MAP_FAILED, "mmap");
    for (int round = 0; work_more(); round++) {
        for (int i = 0; i < PAGES; i++) *(uint64_t *)(at + i * PAGE) = work_mix(i + round);
        work_sleep_us(20000);
        if (round % 4 == 3) {
            int fd = OK(syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY));
            struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP};
            OK(ioctl(fd, UFFDIO_API, &api));
            struct uffdio_register zone = {.range = {(uintptr_t)at, PAGES * PAGE}, .mode = UFFDIO_REGISTER_MODE_WP};
            OK(ioctl(fd, UFFDIO_REGISTER, &zone));
            struct uffdio_writeprotect protect = {.range = zone.range, .mode = 0};
            OK(ioctl(fd, UFFDIO_WRITEPROTECT, &protect));
            for (int i = 0; i < PAGES; i++) *(uint64_t *)(at + i * PAGE) = work_mix(i + round);
            work_sleep_us(5000);
            close(fd);
        }
        for (int i = 0; i < PAGES; i++) CHECK(*(uint64_t *)(at + i * PAGE) == work_mix(i + round), "page %d", i);
        work_tick();
    }
    return work_end();
}
