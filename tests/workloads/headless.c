/* flags: -O2 -pthread
 * Goal: processes whose first thread has ended (pthread_exit in main) are whole applications, or parts of one. Method: the first
 * process is one, with a child that is one and a child that executes a program in a thread that is not the first, in every round;
 * all count in shared memory, statuses are checked. With a second argument `later` it is one process whose first thread ends once
 * DIR/leave exists. */
#include "work.h"
static struct shared { atomic_ulong turns[2]; atomic_int stop; } *shared;
static char **program;
static pid_t child;

static void *count(void *index) {
    atomic_ulong *turns = &shared->turns[(long)index];
    while (!atomic_load(&shared->stop)) {
        atomic_fetch_add(turns, 1);
        work_sleep_us(1000);
    }
    exit(7);
}

static void *execute(void *unused) {
    (void)unused;
    char *argv[] = {program[0], work_dir, "executed", NULL};
    execv(program[0], argv);
    FAIL("exec");
}

static void wait_for(pid_t pid, int code) {
    int status;
    CHECK(waitpid(pid, &status, 0) == pid, "waitpid");
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == code, "status %x", status);
}

static void *body(void *unused) {
    (void)unused;
    unsigned long before = 0;
    while (work_more()) {
        pid_t pid = OK(fork());
        if (pid == 0) {
            pthread_t thread;
            PT(pthread_create(&thread, NULL, execute, NULL));
            pthread_exit(NULL);
        }
        wait_for(pid, 5);
        /* The child goes on. */
        for (int tries = 0; atomic_load(&shared->turns[1]) == before; tries++) {
            CHECK(tries < 20000, "the child does not count");
            work_sleep_us(1000);
        }
        before = atomic_load(&shared->turns[1]);
        CHECK(waitpid(child, &(int){0}, WNOHANG) == 0, "the child has ended");
        CHECK(gettid() != getpid(), "the first thread");
        work_tick();
    }
    atomic_store(&shared->stop, 1);
    wait_for(child, 7);
    exit(work_end());
}

static void *tick(void *unused) {
    (void)unused;
    while (work_more()) {
        work_tick();
        work_sleep_us(1000);
    }
    exit(work_end());
}

static void leave_later(void) {
    pthread_t thread;
    PT(pthread_create(&thread, NULL, tick, NULL));
    while (access(work_path("leave"), F_OK)) work_sleep_us(1000);
    pthread_exit(NULL);
}

int main(int argc, char **argv) {
    program = argv;
    if (argc == 3 && !strcmp(argv[2], "executed")) return getpid() == gettid() ? 5 : 6;
    work_begin(argc, argv);
    if (argc == 3) leave_later();
    shared = OK(mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    pthread_t thread;
    child = OK(fork());
    PT(pthread_create(&thread, NULL, child ? body : count, (void *)1L));
    pthread_exit(NULL);
}
