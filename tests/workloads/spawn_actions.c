/* flags: -O2 -pthread
 * Goal: a child that shares its parent's memory (vfork, posix_spawn, system, popen) never changes the parent's signal
 * actions or mask. Method: children set actions while the parent takes signals; each handler is checked afterwards. */
#include "work.h"
#include <spawn.h>
static atomic_uint took;
static void handler(int n) { (void)n; atomic_fetch_add(&took, 1); }
static void expect(const char *after) {
    struct sigaction now;
    unsigned before = atomic_load(&took);
    OK(sigaction(SIGUSR1, NULL, &now));
    CHECK(now.sa_handler == handler, "%s: the handler is gone", after);
    OK(raise(SIGUSR1));
    CHECK(atomic_load(&took) == before + 1, "%s: the handler did not run", after);
}
static void *other(void *arg) {
    while (!atomic_load((atomic_int *)arg)) {
        PT(pthread_kill(pthread_self(), SIGUSR1));
        work_sleep_us(500);
    }
    return NULL;
}
/* As a browser's sandbox makes a child that is to change its root: its thread-local memory is a piece of what is at hand. */
static char words[64 << 10] __attribute__((aligned(64))), stack[64 << 10] __attribute__((aligned(64)));
static int in_strange_memory(void *arg) {
    (void)arg;
    _exit(chdir("/") ? 1 : 5);
}

int main(int argc, char **argv) {
    extern char **environ;
    atomic_int end = 0;
    pthread_t t;
    int status;
    pid_t pid;
    work_begin(argc, argv);
    struct sigaction a = {.sa_handler = handler, .sa_flags = SA_RESTART};
    OK(sigaction(SIGUSR1, &a, NULL));
    while (work_more()) {
        expect("start");
        CHECK(system("true") == 0, "system");
        expect("system");
        FILE *f = popen("echo hello", "r");
        char line[16] = "";
        CHECK(f && fgets(line, sizeof line, f) && pclose(f) == 0 && !strcmp(line, "hello\n"), "popen gave '%s'", line);
        expect("popen");
        posix_spawnattr_t attr;
        sigset_t all;
        sigfillset(&all);
        PT(posix_spawnattr_init(&attr));
        PT(posix_spawnattr_setsigdefault(&attr, &all));
        PT(posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGDEF));
        PT(posix_spawnp(&pid, "true", NULL, &attr, (char *[]){"true", NULL}, environ));
        CHECK(waitpid(pid, &status, 0) == pid && status == 0, "posix_spawn: %x", status);
        expect("posix_spawn");
        memset(words, 0xa5, sizeof words);
        pid = OK(clone(in_strange_memory, stack + sizeof stack, CLONE_VM | CLONE_VFORK | CLONE_SETTLS | SIGCHLD, NULL, NULL, words + sizeof words / 2, NULL));
        CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 5, "strange memory: %x", status);
        expect("a child with strange thread-local memory");
        pid = OK(vfork());
        if (pid == 0) {
            signal(SIGUSR1, SIG_IGN);
            execlp("false", "false", (char *)NULL);
            _exit(9);
        }
        CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 1, "vfork: %x", status);
        expect("vfork and exec");
        pid = OK(vfork());
        if (pid == 0) {
            signal(SIGUSR1, SIG_DFL);
            execl("/nonexistent", "x", (char *)NULL);
            _exit(3);
        }
        CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 3, "vfork: %x", status);
        expect("vfork without exec");
        pid = OK(fork());
        if (pid == 0) {
            struct sigaction now;
            signal(SIGUSR1, SIG_IGN);
            if (sigaction(SIGUSR1, NULL, &now) || now.sa_handler != SIG_IGN || raise(SIGUSR1)) _exit(1);
            signal(SIGUSR1, SIG_DFL);
            raise(SIGUSR1);
            _exit(2);
        }
        CHECK(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) && WTERMSIG(status) == SIGUSR1, "fork: %x", status);
        expect("fork");
        atomic_store(&end, 0);
        PT(pthread_create(&t, NULL, other, &end));
        for (int i = 0; i < 5; i++) CHECK(system("exit 4") == 4 << 8, "system in a threaded program");
        atomic_store(&end, 1);
        PT(pthread_join(t, NULL));
        expect("system with threads");
        work_tick();
    }
    return work_end();
}
