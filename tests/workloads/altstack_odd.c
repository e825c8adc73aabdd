/* flags: -O1 -pthread
 * Goal: alternate signal stacks that no two handlers could use at once, or none at all, are no trap for threads that park. Method: eight
 * threads, "shared" with one stack for all, "small" with one of the least size each, "turns" with stacks that threads hand on when
 * they end; all of them keep state on their own stacks, and what is not of holo's signal's making never touches the alternate ones.
 * One handler at a time still runs on the shared one. */
#include "work.h"
enum { THREADS = 8, BYTES = 64 * 1024, WORDS = 64 };
static char stacks[THREADS][BYTES] __attribute__((aligned(64)));
static pthread_mutex_t one = PTHREAD_MUTEX_INITIALIZER;
static _Thread_local char *own;
static _Thread_local volatile int handled;
static int shared, small;

static void handler(int signal) {
    (void)signal;
    char here;
    handled = &here >= own && &here < own + BYTES ? 1 : -1;
}

static void *thread(void *arg) {
    long index = (long)arg;
    own = stacks[shared ? 0 : index];
    stack_t stack = {.ss_sp = own, .ss_size = small ? 2048 : BYTES};
    OK(sigaltstack(&stack, NULL));
    volatile uint64_t words[WORDS];
    for (uint64_t round = 0; work_more(); round++) {
        for (int i = 0; i < WORDS; i++) words[i] = work_mix(round + i);
        if (round % 16 == 15) usleep(200);
        for (int i = 0; i < WORDS; i++) CHECK(words[i] == work_mix(round + i), "word %d of thread %ld", i, index);
        stack_t now;
        OK(sigaltstack(NULL, &now));
        CHECK(now.ss_sp == own && now.ss_size == stack.ss_size && now.ss_flags == 0, "stack of thread %ld", index);
        if (!small && round % 64 == 63) {
            PT(pthread_mutex_lock(&one));
            handled = 0;
            OK(syscall(SYS_tgkill, getpid(), gettid(), SIGUSR1));
            CHECK(handled == 1, "the handler ran %s", handled ? "on another stack" : "not at all");
            PT(pthread_mutex_unlock(&one));
        }
        if (!strcmp(work_arg, "turns") && round == 200) break;
        if (index == 0) work_tick();
    }
    return NULL;
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    shared = !strcmp(work_arg, "shared"), small = !strcmp(work_arg, "small");
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_ONSTACK | SA_RESTART};
    OK(sigaction(SIGUSR1, &action, NULL));
    pthread_t threads[THREADS];
    do {
        for (long i = 0; i < THREADS; i++) PT(pthread_create(&threads[i], NULL, thread, (void *)i));
        for (int i = 0; i < THREADS; i++) PT(pthread_join(threads[i], NULL));
    } while (work_more());
    return work_end();
}
