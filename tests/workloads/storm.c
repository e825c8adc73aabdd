/* flags: -O2 -pthread
 * Goal: signals at any instruction of any call do no harm. Method: a timer every 200 us and a thread that sends more,
 * handlers that make system calls, while threads allocate, map, open, lock and fork nothing; content is checked. */
#include "work.h"
#include <sys/time.h>
static atomic_ulong caught, by_handler;
static atomic_int end;
static pthread_t workers[3];
static int pipe_fds[2];
static void handler(int n) {
    int saved = errno;
    struct timespec t;
    char c = (char)n;
    clock_gettime(CLOCK_MONOTONIC, &t);
    if (syscall(SYS_gettid) != gettid()) _exit(77);
    if (write(pipe_fds[1], &c, 1) == 1) atomic_fetch_add(&by_handler, 1);
    atomic_fetch_add(&caught, 1);
    errno = saved;
}
static void *worker(void *arg) {
    uint64_t turn = (uint64_t)(long)arg << 32;
    while (!atomic_load(&end)) {
        char *p[20];
        size_t bytes[20];
        turn++;
        for (int i = 0; i < 20; i++) bytes[i] = 8 * (1 + work_mix(turn + i) % (i == 19 ? 40000 : 400)), p[i] = malloc(bytes[i]), work_fill(p[i], bytes[i], turn + i);
        char *m = mmap(NULL, 16384, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(m != MAP_FAILED, "mmap");
        int fd = OK(open("/proc/self/comm", O_RDONLY | O_CLOEXEC));
        CHECK(read(fd, m, 100) > 0, "read");
        errno = 1234;
        CHECK(close(fd) == 0 && errno == 1234, "errno was changed behind the program's back: %d", errno);
        CHECK(munmap(m, 16384) == 0, "munmap");
        for (int i = 0; i < 20; i++) work_expect(p[i], bytes[i], turn + i, "block"), free(p[i]);
        if (!arg) work_tick();
    }
    return NULL;
}
int main(int argc, char **argv) {
    work_begin(argc, argv);
    OK(pipe2(pipe_fds, O_NONBLOCK | O_CLOEXEC));
    struct sigaction a = {.sa_handler = handler, .sa_flags = SA_RESTART};
    OK(sigaction(SIGALRM, &a, NULL)), OK(sigaction(SIGUSR1, &a, NULL)), OK(sigaction(SIGRTMIN + 6, &a, NULL));
    for (long i = 0; i < 3; i++) PT(pthread_create(&workers[i], NULL, worker, (void *)i));
    struct itimerval v = {{0, 200}, {0, 200}};
    OK(setitimer(ITIMER_REAL, &v, NULL));
    for (unsigned n = 0; work_more(); n++) {
        for (int i = 0; i < 3; i++) PT(pthread_kill(workers[i], i == 1 ? SIGRTMIN + 6 : SIGUSR1));
        char drop[4096];
        ssize_t got = read(pipe_fds[0], drop, sizeof drop);
        CHECK(got > 0 || errno == EAGAIN, "pipe");
        struct timespec t = {0, 300000};
        while (nanosleep(&t, &t) && errno == EINTR);
    }
    atomic_store(&end, 1);
    for (int i = 0; i < 3; i++) PT(pthread_join(workers[i], NULL));
    CHECK(atomic_load(&caught) > 100, "only %lu signals came", atomic_load(&caught));
    return work_end();
}
