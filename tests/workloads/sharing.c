/* flags: -O2 -pthread
 * Goal: processes that share their descriptors or their directory (clone with CLONE_FILES, CLONE_FS) share them on, and those that do
 * not stay apart.
 * Method: in turns each opens a file with new contents at a number, changes its directory and its file mode mask; every process
 * compares what it has with what it must have. One pair are parent and child, one are siblings that share nothing with
 * their parent; one child ends without SIGCHLD. */
#include "work.h"
#include <sys/prctl.h>

enum { MAIN, FILES, DIRECTORY, FIRST, SECOND, PROCESSES };
enum { NUMBER = 60 };
/* Which of them are one for descriptors, and which for directories. */
static const int files_of[PROCESSES] = {0, 0, 1, 2, 2}, directory_of[PROCESSES] = {0, 1, 0, 2, 2};

static struct common {
    atomic_ulong turn; /* counts up; whose it is: turn % PROCESSES */
    atomic_ulong checked;
    atomic_int silent_status, second;
    unsigned long files[3], directory[3]; /* of which turn each is */
} *common;

static void wait_for(atomic_ulong *word, unsigned long value) {
    while (atomic_load(word) < value) {
        struct timespec t = {0, 100000};
        nanosleep(&t, NULL);
    }
}

static const char *dir_name(unsigned long turn) {
    static char path[PATH_MAX + 128];
    snprintf(path, sizeof path, "%s/d%lu", work_dir, turn % 7);
    return path;
}

/* Not by umask(), which would change what others see. */
static unsigned long own_umask(void) {
    char line[128];
    unsigned long mask = -1;
    FILE *file = fopen("/proc/self/status", "re");
    CHECK(file, "status");
    while (fgets(line, sizeof line, file)) sscanf(line, "Umask: %lo", &mask);
    fclose(file);
    return mask;
}

static void compare(int who) {
    char wanted[32], text[32] = "", here[PATH_MAX];
    unsigned long files = common->files[files_of[who]], directory = common->directory[directory_of[who]];
    snprintf(wanted, sizeof wanted, "turn %lu", files);
    if (files) {
        CHECK(pread(NUMBER, text, sizeof text - 1, 0) > 0 && !strcmp(text, wanted), "process %d reads `%s`, not `%s`", who, text, wanted);
        CHECK(fcntl(NUMBER + 1, F_GETFD) == (files % 2 ? FD_CLOEXEC : -1), "process %d: the number above, at turn %lu", who, files);
    }
    if (directory) {
        CHECK(getcwd(here, sizeof here) && !strcmp(here, dir_name(directory)), "process %d is in %s, not in %s", who, here, dir_name(directory));
        CHECK(own_umask() == directory % 0100, "process %d has the mask %lo, not %lo", who, own_umask(), directory % 0100);
    }
}

static void act(int who, unsigned long turn) {
    char path[PATH_MAX + 64], text[32];
    snprintf(path, sizeof path, "%s/f%d", work_dir, who);
    int fd = OK(open(path, O_RDWR | O_CREAT | O_TRUNC, 0600));
    int length = snprintf(text, sizeof text, "turn %lu", turn);
    CHECK(write(fd, text, length) == length, "write");
    OK(dup2(fd, NUMBER));
    if (turn % 2) OK(dup3(fd, NUMBER + 1, O_CLOEXEC));
    close(fd);
    if (turn % 2 == 0) close(NUMBER + 1);
    OK(chdir(dir_name(turn)));
    umask(turn % 0100);
    common->files[files_of[who]] = turn, common->directory[directory_of[who]] = turn;
}

/* One that is not the first. */
__attribute__((noreturn)) static void serve(int who) {
    OK(prctl(PR_SET_PDEATHSIG, SIGKILL));
    for (unsigned long turn = 1;; turn++) {
        wait_for(&common->turn, turn);
        if (turn % PROCESSES == (unsigned long)who) {
            act(who, turn);
            atomic_fetch_add(&common->checked, 1);
        }
        /* All compare after the one whose turn it is has acted. */
        wait_for(&common->checked, (turn - 1) * (PROCESSES + 1) + 1);
        compare(who);
        atomic_fetch_add(&common->checked, 1);
    }
}

static pid_t share(unsigned long flags) { return OK((pid_t)syscall(SYS_clone, flags, 0, 0, 0, 0)); }

int main(int argc, char **argv) {
    work_begin(argc, argv);
    common = OK(mmap(NULL, sizeof *common, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    char whole[PATH_MAX];
    CHECK(realpath(work_dir, whole), "realpath");
    strcpy(work_dir, whole);
    for (unsigned long turn = 0; turn < 7; turn++) OK(mkdir(dir_name(turn), 0777));
    if (share(CLONE_FILES | SIGCHLD) == 0) serve(FILES);
    if (share(CLONE_FS | SIGCHLD) == 0) serve(DIRECTORY);
    pid_t first = share(SIGCHLD);
    if (first == 0) {
        pid_t second = share(CLONE_PARENT | CLONE_FILES | CLONE_FS);
        if (second == 0) serve(SECOND);
        atomic_store(&common->second, second);
        serve(FIRST);
    }
    while (!atomic_load(&common->second)) work_sleep_us(1000);
    pid_t silent = share(0);
    if (silent == 0) {
        OK(prctl(PR_SET_PDEATHSIG, SIGKILL));
        for (;;) pause();
    }
    for (unsigned long turn = 1; work_more(); turn++) {
        atomic_store(&common->turn, turn);
        if (turn % PROCESSES == MAIN) {
            act(MAIN, turn);
            atomic_fetch_add(&common->checked, 1);
        }
        wait_for(&common->checked, (turn - 1) * (PROCESSES + 1) + 1);
        compare(MAIN);
        atomic_fetch_add(&common->checked, 1);
        wait_for(&common->checked, turn * (PROCESSES + 1));
        CHECK(waitpid(silent, NULL, WNOHANG) == -1 && errno == ECHILD, "a child without a signal is no child for wait");
        CHECK(waitpid(silent, NULL, WNOHANG | __WCLONE) == 0, "it is one for __WCLONE");
        CHECK(waitpid(atomic_load(&common->second), NULL, WNOHANG) == 0, "the sibling's child is ours");
        work_tick();
        work_sleep_us(200);
    }
    return work_end();
}
