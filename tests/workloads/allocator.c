/* flags: -O2 -pthread
 * Goal: another allocator (jemalloc, preloaded beside holo) and its own thread work. Method: threads allocate, resize and
 * free in patterns; ARG "required" insists that jemalloc serves malloc. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include "work.h"
static atomic_int end;
static void *body(void *arg) {
    enum { N = 300 };
    uint64_t *p[N] = {0}, bytes[N] = {0}, turn = (uint64_t)(long)arg << 40;
    while (!atomic_load(&end)) {
        for (int k = 0; k < 500; k++) {
            int i = (int)(work_mix(++turn) % N);
            if (p[i]) work_expect(p[i], bytes[i], (uint64_t)i, "block");
            uint64_t n = 8 * (1 + work_mix(turn * 3) % 3000);
            p[i] = k % 3 ? realloc(p[i], n) : (free(p[i]), aligned_alloc(64, (n + 63) & ~63ul));
            CHECK(p[i], "allocation of %lu", n);
            bytes[i] = n;
            work_fill(p[i], n, (uint64_t)i);
        }
        if (!arg) work_tick();
    }
    for (int i = 0; i < N; i++) free(p[i]);
    return NULL;
}
int main(int argc, char **argv) {
    pthread_t t[4];
    work_begin(argc, argv);
    Dl_info where;
    void *(*volatile allocate)(size_t) = malloc;
    CHECK(dladdr((void *)(uintptr_t)allocate, &where), "dladdr");
    if (!strcmp(work_arg, "required")) {
        void *found = dlsym(RTLD_DEFAULT, "malloc");
        CHECK(found && dladdr(found, &where) && strstr(where.dli_fname, "jemalloc"), "malloc is in %s", where.dli_fname);
    }
    for (long i = 0; i < 4; i++) PT(pthread_create(&t[i], NULL, body, (void *)i));
    while (work_more()) work_sleep_us(3000);
    atomic_store(&end, 1);
    for (int i = 0; i < 4; i++) PT(pthread_join(t[i], NULL));
    return work_end();
}
