/* flags: -O2 -pthread
 * Goal: open files keep number, offset, flags and sharing. Method: descriptors opened with different flags, at chosen
 * numbers, duplicates that share an offset, an unlinked file, a directory half read; offsets move every round. */
#include "work.h"
#include <dirent.h>
#include <sys/file.h>

static void flags_are(int fd, int status, int descriptor, const char *what) {
    int mask = O_ACCMODE | O_APPEND | O_NONBLOCK | O_SYNC | O_DIRECTORY | O_NOFOLLOW | O_PATH;
    int got = OK(fcntl(fd, F_GETFL)), cloexec = OK(fcntl(fd, F_GETFD));
    CHECK((got & mask) == status, "%s: status flags %o, wanted %o", what, got & mask, status);
    CHECK(cloexec == descriptor, "%s: FD_CLOEXEC is %d", what, cloexec);
}
static void opened_at(int fd, const char *name) {
    char link[64], to[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = OK(readlink(link, to, sizeof to - 1));
    to[n] = 0;
    CHECK(!strcmp(to, work_path(name)), "descriptor %d is %s", fd, to);
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    uint64_t out[64], in[64];
    int plain = OK(open(work_path("plain"), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0640));
    int append = OK(open(work_path("log"), O_WRONLY | O_APPEND | O_CREAT | O_TRUNC, 0644));
    int reader = OK(open(work_path("log"), O_RDONLY | O_NONBLOCK));
    int at_200 = OK(dup3(plain, 200, 0)), at_77 = OK(fcntl(append, F_DUPFD_CLOEXEC, 77));
    int second = OK(open(work_path("plain"), O_RDONLY));
    int ghost = OK(open(work_path("ghost"), O_RDWR | O_CREAT | O_TRUNC, 0600));
    int ghost_reader = OK(open(work_path("ghost"), O_RDONLY));
    OK(unlink(work_path("ghost")));
    int temporary = open(work_dir, O_TMPFILE | O_RDWR, 0600);
    int directory = OK(open(work_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC)), null = OK(open("/dev/null", O_RDWR)), zero = OK(open("/dev/zero", O_RDONLY));
    int place = OK(open(work_dir, O_PATH));
    OK(close(OK(open(work_path("moving"), O_WRONLY | O_CREAT, 0600))));
    off_t offset = 0;
    for (uint64_t round = 1; work_more(); round++) {
        work_fill(out, sizeof out, round);
        CHECK(write(plain, out, sizeof out) == sizeof out, "write");
        offset += sizeof out;
        CHECK(write(append, out, 256) == 256 && write(at_77, out + 32, 256) == 256, "append");
        CHECK(pwrite(ghost, out, sizeof out, round % 7 * 512) == sizeof out, "ghost");
        if (temporary >= 0) CHECK(pwrite(temporary, out, sizeof out, 512) == sizeof out, "temporary");
        OK(lseek(second, (off_t)round, SEEK_SET));
        int nameless = open(work_dir, O_TMPFILE | O_RDWR, 0640);
        if (nameless >= 0) CHECK(write(nameless, out, sizeof out) == sizeof out, "a file without a name");
        work_sleep_us(4000);
        if (nameless >= 0) {
            char link[64];
            snprintf(link, sizeof link, "/proc/self/fd/%d", nameless);
            OK(linkat(AT_FDCWD, link, AT_FDCWD, work_path("named"), AT_SYMLINK_FOLLOW));
            int named = OK(open(work_path("named"), O_RDONLY));
            CHECK(read(named, in, sizeof in) == sizeof in && !memcmp(in, out, sizeof in), "a file that was given a name differs");
            OK(close(named)), OK(close(nameless)), OK(unlink(work_path("named")));
        }
        CHECK(lseek(at_200, 0, SEEK_CUR) == offset && lseek(plain, 0, SEEK_CUR) == offset, "shared offset %ld, wanted %ld", (long)lseek(at_200, 0, SEEK_CUR), (long)offset);
        CHECK(lseek(second, 0, SEEK_CUR) == (off_t)round, "offset of a second opening");
        CHECK(read(reader, in, sizeof in) == sizeof in && !memcmp(in, out, sizeof in), "the log read back differs");
        CHECK(pread(plain, in, sizeof in, offset - (off_t)sizeof in) == sizeof in && !memcmp(in, out, sizeof in), "the file read back differs");
        CHECK(pread(ghost_reader, in, sizeof in, round % 7 * 512) == sizeof in && !memcmp(in, out, sizeof in), "the unlinked file differs");
        if (temporary >= 0) CHECK(pread(temporary, in, sizeof in, 512) == sizeof in && !memcmp(in, out, sizeof in), "O_TMPFILE differs");
        struct stat s;
        OK(fstat(ghost, &s));
        CHECK(s.st_nlink == 0, "the unlinked file has %d links", (int)s.st_nlink);
        OK(fstat(append, &s));
        CHECK(s.st_size == (off_t)(round * 512) && (s.st_mode & 07777) == 0644, "log: size %ld mode %o", (long)s.st_size, s.st_mode);
        OK(fstatat(place, "plain", &s, 0));
        CHECK(s.st_size == offset, "through O_PATH");
        /* From a directory that is open to a path, and back: both are of one mount. */
        OK(renameat(directory, "moving", AT_FDCWD, work_path("moved")));
        OK(renameat(AT_FDCWD, work_path("moved"), directory, "moving"));
        flags_are(plain, O_RDWR, FD_CLOEXEC, "plain");
        flags_are(at_200, O_RDWR, 0, "dup3 to 200");
        flags_are(append, O_WRONLY | O_APPEND, 0, "append");
        flags_are(at_77, O_WRONLY | O_APPEND, FD_CLOEXEC, "F_DUPFD_CLOEXEC");
        flags_are(reader, O_RDONLY | O_NONBLOCK, 0, "reader");
        flags_are(directory, O_RDONLY | O_DIRECTORY, FD_CLOEXEC, "directory");
        opened_at(plain, "plain"), opened_at(append, "log");
        char bytes[16];
        CHECK(write(null, "x", 1) == 1 && read(zero, bytes, 16) == 16, "devices");
        int next = OK(dup(0));
        CHECK(next == place + 1, "the next free descriptor is %d", next);
        close(next);
        if (round % 16 == 0) { OK(ftruncate(plain, 0)); OK(lseek(at_200, 0, SEEK_SET)); offset = 0; }
        work_tick();
    }
    return work_end();
}
