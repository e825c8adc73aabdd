/* flags: -O2 -pthread
 * Goal: fork from a busy threaded process never hangs or corrupts. Method: 300 forks while three threads allocate,
 * write and lock; each child allocates, prints and exits with its number. */
#include "work.h"
static atomic_int end;
static void *busy(void *arg) {
    while (!atomic_load(&end)) {
        char *p[50];
        for (int i = 0; i < 50; i++) p[i] = malloc((size_t)(i * 97 + 1)), p[i][0] = 1;
        FILE *f = fopen("/dev/null", "w");
        CHECK(f, "fopen");
        fprintf(f, "%d", (int)(long)arg);
        fclose(f);
        for (int i = 0; i < 50; i++) free(p[i]);
    }
    return arg;
}
int main(int argc, char **argv) {
    pthread_t t[3];
    work_begin(argc, argv);
    for (long i = 0; i < 3; i++) PT(pthread_create(&t[i], NULL, busy, (void *)i));
    for (int n = 0; n < 300 || work_more(); n++) {
        pid_t pid = OK(fork());
        if (!pid) {
            char *p = malloc(100000), line[64];
            memset(p, n, 100000);
            free(p);
            int fd = open("/dev/null", O_WRONLY);
            if (fd < 0 || write(fd, line, (size_t)snprintf(line, sizeof line, "%d\n", n)) < 0) _exit(200);
            _exit(n % 100);
        }
        int status = 0, waited = 0;
        for (; waited < 10000; waited++) {
            pid_t got = waitpid(pid, &status, WNOHANG);
            CHECK(got == 0 || got == pid, "waitpid returned %d", got);
            if (got == pid) break;
            work_sleep_us(1000);
        }
        if (waited == 10000) kill(pid, SIGKILL);
        CHECK(waited < 10000, "child %d hangs", n);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == n % 100, "child %d: status %x", n, status);
        work_tick();
    }
    atomic_store(&end, 1);
    for (int i = 0; i < 3; i++) PT(pthread_join(t[i], NULL));
    return work_end();
}
