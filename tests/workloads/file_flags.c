/* flags: -O2
 * Goal: flags of files and directories (chattr) are in the epoch as they were at its cut, and there again after a restore; what is
 * immutable or append-only is open and mapped again as it was before it became so.
 * Method: flags that any user may set are turned at random, by descriptors that stay open, of which the kernel tells nobody, and by
 * new ones, and compared with what memory has of them. Root besides has a log that only grows, settings that are released only to be
 * changed, and directories of both kinds, to which the kernel must refuse what it refused before.
 * usage: DIR */
#include "work.h"
#include <linux/fs.h>
#include <sys/ioctl.h>
enum { THINGS = 24, ANY = FS_NODUMP_FL | FS_NOATIME_FL, HOLDING = FS_IMMUTABLE_FL | FS_APPEND_FL, WORDS = 512, GROWN = 40 };
static struct { int fd, flags; } things[THINGS];
static uint64_t state, words[WORDS], *mapped;
static int log_fd, settings_fd, grown;
static uint64_t settings_seed;

static uint64_t number(uint64_t below) { return (state = work_mix(state + 0x9e3779b97f4a7c15u)) % below; }
static const char *name(int thing) {
    char text[16];
    snprintf(text, sizeof text, thing % 2 ? "dir%d" : "file%d", thing);
    return work_path(text);
}
static int of(int fd) {
    int flags;
    OK(ioctl(fd, FS_IOC_GETFLAGS, &flags));
    return flags & (ANY | HOLDING);
}
static int try_set(int fd, int wanted) {
    int flags;
    if (ioctl(fd, FS_IOC_GETFLAGS, &flags)) return -1;
    flags = (flags & ~(ANY | HOLDING)) | wanted;
    return ioctl(fd, FS_IOC_SETFLAGS, &flags);
}
static void set_name(const char *what, int wanted) {
    int fd = OK(open(work_path(what), O_RDONLY | O_CLOEXEC));
    OK(try_set(fd, wanted));
    close(fd);
}
static void expect(const char *path, int wanted) {
    int fd = OK(open(path, O_RDONLY | O_CLOEXEC));
    CHECK(of(fd) == wanted, "%s has flags %x, not %x", path, of(fd), wanted);
    close(fd);
}
static void refused(int result, const char *what) { CHECK(result == -1 && errno == EPERM, "%s was done", what); }

static void turn(void) {
    int thing = (int)number(THINGS), wanted = (int)number(4) * FS_NODUMP_FL;
    if (number(2)) {
        OK(try_set(things[thing].fd, wanted));
    } else {
        int fd = OK(open(name(thing), O_RDONLY | O_CLOEXEC));
        OK(try_set(fd, wanted));
        close(fd);
    }
    things[thing].flags = wanted;
    /* Together with content, too. */
    if (thing % 2 == 0 && number(4) == 0) CHECK(pwrite(things[thing].fd, &state, 8, (off_t)number(8) * 4096) == 8, "write");
}
static void compare(void) {
    for (int i = 0; i < THINGS; i++)
        CHECK(of(things[i].fd) == things[i].flags, "%s has flags %x, not %x", name(i), of(things[i].fd), things[i].flags);
    int one = (int)number(THINGS);
    expect(name(one), things[one].flags);
}

static void make_held(void) {
    log_fd = OK(open(work_path("log"), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    settings_fd = OK(open(work_path("settings"), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    OK(ftruncate(log_fd, sizeof words));
    mapped = mmap(NULL, sizeof words, PROT_READ | PROT_WRITE, MAP_SHARED, log_fd, 0);
    CHECK(mapped != MAP_FAILED, "map");
    work_fill(words, sizeof words, settings_seed = 1);
    CHECK(pwrite(settings_fd, words, sizeof words, 0) == sizeof words, "settings");
    OK(mkdir(work_path("shut"), 0700));
    close(OK(open(work_path("shut/file"), O_WRONLY | O_CREAT | O_CLOEXEC, 0600)));
    OK(mkdir(work_path("grows"), 0700));
    OK(try_set(log_fd, FS_APPEND_FL | FS_NODUMP_FL));
    OK(try_set(settings_fd, FS_IMMUTABLE_FL));
    set_name("shut", FS_IMMUTABLE_FL), set_name("grows", FS_APPEND_FL);
}
static void use_held(unsigned long round) {
    expect(work_path("log"), FS_APPEND_FL | FS_NODUMP_FL), expect(work_path("settings"), FS_IMMUTABLE_FL);
    expect(work_path("shut"), FS_IMMUTABLE_FL), expect(work_path("grows"), FS_APPEND_FL);
    /* Through what was open before it was append-only. */
    uint64_t found;
    CHECK(pwrite(log_fd, &round, 8, 8) == 8 && pread(log_fd, &found, 8, 0) == 8, "log");
    CHECK(found == mapped[0] && mapped[1] == round, "the map is not the log");
    mapped[0] = round;
    refused(open(work_path("log"), O_WRONLY | O_CLOEXEC), "opening the log to overwrite it");
    close(OK(open(work_path("log"), O_WRONLY | O_APPEND | O_CLOEXEC)));
    CHECK(pread(settings_fd, words, sizeof words, 0) == sizeof words, "settings");
    work_expect(words, sizeof words, settings_seed, "settings");
    refused(open(work_path("settings"), O_RDWR | O_CLOEXEC), "opening the settings");
    refused(unlink(work_path("settings")), "removing the settings");
    refused(open(work_path("shut/new"), O_WRONLY | O_CREAT | O_CLOEXEC, 0600), "a file in what is immutable");
    refused(unlink(work_path("shut/file")), "removing from what is immutable");
    if (number(4) == 0) {
        OK(try_set(settings_fd, 0));
        work_fill(words, sizeof words, settings_seed = round + 2);
        CHECK(pwrite(settings_fd, words, sizeof words, 0) == sizeof words, "settings");
        OK(try_set(settings_fd, FS_IMMUTABLE_FL));
    }
    char text[32];
    snprintf(text, sizeof text, "grows/%d", grown);
    if (grown < GROWN && number(4) == 0) {
        close(OK(open(work_path(text), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600)));
        grown++;
    }
    if (grown > 0) refused(unlink(work_path("grows/0")), "removing from what only grows");
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    for (int i = 0; i < THINGS; i++) {
        if (i % 2) OK(mkdir(name(i), 0700));
        things[i].fd = OK(open(name(i), i % 2 ? O_RDONLY | O_CLOEXEC : O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    }
    int has_any = try_set(things[0].fd, 0) == 0;
    if (!has_any) fprintf(stderr, "SKIPPED: no flags here: %s\n", strerror(errno));
    int may_hold = has_any && try_set(things[0].fd, FS_IMMUTABLE_FL) == 0 && try_set(things[0].fd, 0) == 0;
    if (may_hold) make_held();
    for (unsigned long round = 1; work_more(); round++) {
        for (int i = 0; has_any && i < 4; i++) turn();
        if (has_any) compare();
        if (may_hold) use_held(round);
        work_tick();
        work_sleep_us(500);
    }
    return work_end();
}
