/* flags: -O2 -pthread
 * Goal: monotonic clocks never run backwards or jump, through any stop or restore; realtime stays sane.
 * Method: threads read all clocks, by vdso and by system call, against a shared maximum. */
#include "work.h"
#include <sys/time.h>
static const clockid_t clocks[] = {CLOCK_MONOTONIC, CLOCK_MONOTONIC_COARSE, CLOCK_MONOTONIC_RAW, CLOCK_BOOTTIME};
enum { CLOCKS = 4 };
static _Atomic int64_t last[CLOCKS], last_system[CLOCKS];
static atomic_int end;


static void *body(void *arg) {
    while (!atomic_load(&end)) {
        for (int turn = 0; turn < 2000; turn++)
            for (int c = 0; c < CLOCKS; c++) {
                struct timespec t;
                /* The maximum is read before the clock, so another thread's later reading does no harm. */
                int64_t seen = atomic_load(&last[c]), now = work_now_us(clocks[c]);
                if (now < seen) FAIL("clock %d went back by %ld us", clocks[c], (long)(seen - now));
                while (seen < now && !atomic_compare_exchange_weak(&last[c], &seen, now));
                int64_t seen2 = atomic_load(&last_system[c]);
                OK(syscall(SYS_clock_gettime, clocks[c], &t));
                int64_t system = (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
                if (system < seen2) FAIL("clock %d by system call went back by %ld us", clocks[c], (long)(seen2 - system));
                while (seen2 < system && !atomic_compare_exchange_weak(&last_system[c], &seen2, system));
                if (clocks[c] != CLOCK_MONOTONIC_COARSE && system < now) FAIL("clock %d: vdso is ahead of the kernel by %ld us", clocks[c], (long)(now - system));
            }
        if (!arg) work_tick();
    }
    return arg;
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    int64_t cpu = work_now_us(CLOCK_PROCESS_CPUTIME_ID);
    time_t start = time(NULL);
    pthread_t t[2];
    for (long i = 0; i < 2; i++) PT(pthread_create(&t[i], NULL, body, (void *)i));
    while (work_more()) {
        struct timeval v;
        work_sleep_us(5000);
        OK(gettimeofday(&v, NULL));
        time_t now = time(NULL);
        CHECK(llabs((long long)now - v.tv_sec) <= 1, "time() and gettimeofday() differ");
        CHECK(now >= start - 2 && now < start + 3600, "realtime jumped");
        CHECK(work_now_us(CLOCK_PROCESS_CPUTIME_ID) >= 0 && cpu >= 0, "cpu clock");
    }
    atomic_store(&end, 1);
    for (int i = 0; i < 2; i++) PT(pthread_join(t[i], NULL));
    return work_end();
}
