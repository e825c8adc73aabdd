/* flags: -O2 -pthread
 * Goal: restartable sequences stay registered. Method: libc's area must show the processor that the thread is pinned
 * to, in every thread, and a second registration of the same area must be refused as already done. */
#include "work.h"
#include <sys/rseq.h>
static atomic_int end;
static void check(int cpu) {
    volatile struct rseq *r = (volatile struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);
    for (int i = 0; i < 2000; i++) {
        unsigned id = r->cpu_id, start = r->cpu_id_start;
        CHECK((int)id >= 0, "cpu_id %d: not registered any more", (int)id);
        CHECK(cpu < 0 || (id == (unsigned)cpu && start == (unsigned)cpu), "cpu_id %u on processor %d", id, cpu);
        CHECK(cpu < 0 || sched_getcpu() == cpu, "sched_getcpu says %d on processor %d", sched_getcpu(), cpu);
    }
    long r2 = syscall(SYS_rseq, r, __rseq_size < 32 ? 32 : __rseq_size, 0, RSEQ_SIG);
    CHECK(r2 == -1 && errno == EBUSY, "a second registration returned %ld", r2);
}
static void *body(void *arg) {
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    for (int turn = 0; !atomic_load(&end); turn++) {
        int cpu = (int)(((long)arg + turn) % cpus);
        cpu_set_t set, one;
        PT(pthread_getaffinity_np(pthread_self(), sizeof set, &set));
        if (!turn && !CPU_ISSET(cpu, &set)) { check(-1); if (!arg) work_tick(); turn = -1; work_sleep_us(1000); continue; }
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        if (pthread_setaffinity_np(pthread_self(), sizeof one, &one)) continue;
        check(cpu);
        work_sleep_us(1000);
        check(cpu);
        if (!arg) work_tick();
    }
    return arg;
}
int main(int argc, char **argv) {
    pthread_t t[3];
    work_begin(argc, argv);
    if (!__rseq_size) { fprintf(stderr, "libc has not registered rseq: only a trivial round\n"); return work_tick(), work_end(); }
    for (long i = 0; i < 3; i++) PT(pthread_create(&t[i], NULL, body, (void *)i));
    while (work_more()) work_sleep_us(5000);
    atomic_store(&end, 1);
    for (int i = 0; i < 3; i++) PT(pthread_join(t[i], NULL));
    return work_end();
}
