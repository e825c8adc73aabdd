/* flags: -O2
 * Goal: files are at every epoch what memory says that they are, also where they are changed by calls that few programs make. Method:
 * such a call at random, on files of which there is a copy in memory; files and copies are compared all the time. What a kernel or
 * a file system does not know is left out. usage: DIR [SEED] */
#include "file_copies.h"
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/xattr.h>

#ifndef RWF_NOAPPEND
#define RWF_NOAPPEND 0x20 /* Linux 6.9 */
#endif
enum { PIPED = 60000, HANDLE_BYTES = 128, NR_OPENAT2 = 437, NR_FCHMODAT2 = 452, NR_SETXATTRAT = 463 };
static aio_context_t context;
static int pipe_in[2], pipe_out[2], dir_fd;

static int writable(int f, int flags) { return OK(open(name(f), O_RDWR | O_CLOEXEC | flags)); }
/* The kernel or the file system does not know it. */
static int unknown(long ret) {
    return ret < 0 && (errno == EOPNOTSUPP || errno == ENOSYS || errno == EINVAL || errno == EPERM);
}

/* From memory to a pipe, from that to another one, and from that into the file; the second copy goes there too, behind it. */
static void splices(struct copy *c, int fd, size_t at, size_t len) {
    len = len > PIPED ? PIPED : len;
    struct iovec v = {buffer, len};
    CHECK(vmsplice(pipe_in[1], &v, 1, 0) == (ssize_t)len, "vmsplice");
    CHECK(tee(pipe_in[0], pipe_out[1], len, 0) == (ssize_t)len, "tee");
    off_t to = (off_t)at;
    for (size_t done = 0; done < len;) done += (size_t)OK(splice(pipe_in[0], NULL, fd, &to, len - done, 0));
    put(c, at, len);
    OK(lseek(fd, to, SEEK_SET));
    int fits = at + 2 * len <= BYTES_MAX;
    static unsigned char dropped[PIPED];
    for (size_t done = 0; done < len;)
        done += (size_t)(fits ? OK(splice(pipe_out[0], NULL, fd, NULL, len - done, 0)) : OK(read(pipe_out[0], dropped, len - done)));
    if (fits) put(c, at + len, len);
}

/* The descriptor appends, but the call says where. */
static void not_appended(int f, struct copy *c, size_t at, size_t len) {
    int fd = writable(f, O_APPEND);
    struct iovec v = {buffer, len};
    off_t where = (off_t)at;
    if (number(2)) OK(lseek(fd, where, SEEK_SET)), where = -1;
    ssize_t n = pwritev2(fd, &v, 1, where, RWF_NOAPPEND);
    if (!unknown(n)) {
        CHECK(n == (ssize_t)len, "RWF_NOAPPEND");
        put(c, at, len);
    }
    close(fd);
}

static void allocates(int f, struct copy *c, size_t at, size_t len) {
    static const int modes[] = {0, FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, FALLOC_FL_ZERO_RANGE, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, FALLOC_FL_UNSHARE_RANGE};
    int mode = modes[number(6)], keeps = mode & FALLOC_FL_KEEP_SIZE, fd = writable(f, number(2) ? O_APPEND : 0);
    int ret = fallocate(fd, mode, (off_t)at, (off_t)len);
    close(fd);
    if (unknown(ret)) return;
    CHECK(ret == 0, "fallocate %x", mode);
    if (!keeps && at + len > c->size) resize(c, at + len);
    if ((mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE)) == 0 || at >= c->size) return;
    memset(c->bytes + at, 0, at + len > c->size ? c->size - at : len);
}

static void submits(int f, struct copy *c, size_t at, size_t len) {
    int appends = number(3) == 0, fd = writable(f, appends ? O_APPEND : 0);
    struct iovec v[2] = {{buffer, len / 2}, {buffer + len / 2, len - len / 2}};
    struct iocb request = {.aio_lio_opcode = IOCB_CMD_PWRITE, .aio_fildes = (uint32_t)fd, .aio_buf = (uintptr_t)buffer, .aio_nbytes = len, .aio_offset = (int64_t)at}, *list = &request;
    if (number(2)) request.aio_lio_opcode = IOCB_CMD_PWRITEV, request.aio_buf = (uintptr_t)v, request.aio_nbytes = 2;
    if (appends) request.aio_rw_flags = RWF_NOAPPEND;
    if (!appends && c->size + len <= BYTES_MAX && number(4) == 0) request.aio_rw_flags = RWF_APPEND, at = c->size;
    long made = syscall(SYS_io_submit, context, 1, &list);
    if (!unknown(made)) {
        CHECK(made == 1, "io_submit");
        struct io_event event;
        CHECK(OK(syscall(SYS_io_getevents, context, 1, 1, &event, NULL)) == 1, "io_getevents");
        if (event.res >= 0) {
            CHECK(event.res == (int64_t)len, "an asynchronous write of %ld bytes: %lld", (long)len, (long long)event.res);
            put(c, at, len);
        } else {
            CHECK(event.res == -EOPNOTSUPP || event.res == -EINVAL, "an asynchronous write: %lld", (long long)event.res);
        }
    }
    close(fd);
}

/* A child that has no descriptor of the file gets one, and writes. */
static void passes(struct copy *c, int fd, size_t at, size_t len) {
    int ends[2];
    OK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends));
    union { struct cmsghdr head; char bytes[CMSG_SPACE(sizeof fd)]; } control = {0};
    char byte = 0;
    struct iovec v = {&byte, 1};
    struct msghdr message = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    pid_t child = OK(fork());
    if (child == 0) {
        OK(close(fd));
        OK(recvmsg(ends[1], &message, 0));
        int got;
        memcpy(&got, CMSG_DATA(&control.head), sizeof got);
        _exit(pwrite(got, buffer, len, (off_t)at) == (ssize_t)len ? 0 : 1);
    }
    control.head = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof fd), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    memcpy(CMSG_DATA(&control.head), &fd, sizeof fd);
    OK(sendmsg(ends[0], &message, 0));
    int status;
    CHECK(OK(waitpid(child, &status, 0)) == child && status == 0, "child: %x", status);
    put(c, at, len);
    close(ends[0]), close(ends[1]);
}

/* Emptied, or cut, by names of other sorts. */
static void cuts(int f, struct copy *c, int fd, size_t at) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    const char *last = strrchr(name(f), '/') + 1;
    int new = -1;
    switch (number(5)) {
    case 0:
        new = OK(open(link, O_WRONLY | O_TRUNC | O_CLOEXEC));
        break;
    case 1:
        OK(truncate(link, (off_t)at));
        resize(c, at);
        return;
    case 2:
        new = OK(openat(dir_fd, last, O_WRONLY | O_TRUNC | O_CLOEXEC));
        break;
    case 3: {
        uint64_t how[3] = {O_WRONLY | O_TRUNC | O_CLOEXEC, 0, 8 /* RESOLVE_BENEATH */};
        new = (int)syscall(NR_OPENAT2, dir_fd, last, how, sizeof how);
        if (unknown(new)) return;
        break;
    }
    default: {
        union { struct file_handle head; char bytes[sizeof(struct file_handle) + HANDLE_BYTES]; } handle = {.head.handle_bytes = HANDLE_BYTES};
        int mount;
        if (name_to_handle_at(dir_fd, last, &handle.head, &mount, 0) < 0) return;
        new = open_by_handle_at(dir_fd, &handle.head, O_WRONLY | O_TRUNC | O_CLOEXEC);
        if (unknown(new)) return;
        break;
    }
    }
    CHECK(new >= 0, "emptied");
    resize(c, 0);
    close(new);
}

static void names(int f, int g, struct copy *c, struct copy *d, uint64_t seed) {
    char to[PATH_MAX + 64];
    strcpy(to, name(g));
    const char *from = name(f);
    switch (seed % 3) {
    case 0:
        if (renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE) == 0) {
            CHECK(f != g && !d->exists, "a name was replaced");
            struct copy swap = *d;
            *d = *c, *c = swap, c->exists = 0, c->size = 0;
        } else {
            CHECK(errno == EEXIST && d->exists, "RENAME_NOREPLACE");
        }
        break;
    case 1:
        if (f == g || !d->exists) break;
        OK(renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_EXCHANGE));
        struct copy swap = *d;
        *d = *c, *c = swap;
        break;
    default:
        /* An empty file made without being opened, in the place of what was there. */
        OK(unlink(from));
        OK(mknodat(dir_fd, strrchr(from, '/') + 1, S_IFREG | 0640, 0));
        resize(c, 0);
        break;
    }
}

static void attributes(int f, int fd, uint64_t seed) {
    const char *path = name(f);
    switch (seed % 5) {
    case 0:
        if (setxattr(path, "user.a", &seed, sizeof seed, XATTR_CREATE) < 0) CHECK(errno == EEXIST || errno == EOPNOTSUPP, "XATTR_CREATE");
        break;
    case 1:
        if (fsetxattr(fd, "user.a", &seed, 3, XATTR_REPLACE) < 0) CHECK(errno == ENODATA || errno == EOPNOTSUPP, "XATTR_REPLACE");
        break;
    case 2:
        if ((seed & 64 ? removexattr(path, "user.a") : fremovexattr(fd, "user.a")) < 0) CHECK(errno == ENODATA || errno == EOPNOTSUPP, "removexattr");
        break;
    case 3:
        if (syscall(NR_FCHMODAT2, dir_fd, strrchr(path, '/') + 1, 0600 + seed % 0100, 0) < 0) CHECK(errno == ENOSYS, "fchmodat2");
        struct { uint64_t value; uint32_t size, flags; } value = {(uintptr_t)&seed, sizeof seed, 0};
        if (syscall(NR_SETXATTRAT, AT_FDCWD, path, 0, "user.b", &value, sizeof value) < 0) CHECK(errno == ENOSYS || errno == EOPNOTSUPP, "setxattrat");
        break;
    default:
        path = work_path("socket");
        unlink(path);
        OK(mknod(path, S_IFSOCK | 0600, 0));
        break;
    }
}

/* Shares blocks with another file, where the file system can. */
static void clones(int f, int g, struct copy *c, struct copy *d, int fd) {
    if (f == g || !d->exists) return;
    int from = OK(open(name(g), O_RDONLY | O_CLOEXEC));
    size_t block = 4096, at = number(c->size / block + 1) * block, source = number(d->size / block + 1) * block;
    struct file_clone_range range = {.src_fd = from, .src_offset = source, .dest_offset = at};
    if (number(2) || at + d->size - source > BYTES_MAX) {
        if (ioctl(fd, FICLONE, from) == 0) memcpy(buffer, d->bytes, d->size), put(c, 0, d->size);
        else CHECK(unknown(-1), "FICLONE");
    } else if (source < d->size) {
        /* To the end of the other one. */
        if (ioctl(fd, FICLONERANGE, &range) == 0) memcpy(buffer, d->bytes + source, d->size - source), put(c, at, d->size - source);
        else CHECK(unknown(-1), "FICLONERANGE");
    }
    close(from);
}

static void step(void) {
    int f = (int)number(FILES), g = (int)number(FILES);
    struct copy *c = &files[f], *d = &files[g];
    size_t len = some_len(), at = number(number(4) == 0 ? BYTES_MAX - len : c->size + 1);
    if (at + len > BYTES_MAX) at = BYTES_MAX - len;
    if (!c->exists) {
        close(OK(open(name(f), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600)));
        c->exists = 1, c->size = 0;
        return;
    }
    int fd = writable(f, 0);
    fill(len);
    switch (number(10)) {
    case 0: splices(c, fd, at, len); break;
    case 1: {
        struct iovec v = {buffer, len};
        OK(lseek(fd, (off_t)at, SEEK_SET));
        CHECK(pwritev2(fd, &v, 1, -1, 0) == (ssize_t)len, "pwritev2 at the position");
        put(c, at, len);
        break;
    }
    case 2: not_appended(f, c, at, len); break;
    case 3: allocates(f, c, at, len); break;
    case 4: submits(f, c, at, len); break;
    case 5: passes(c, fd, at, len); break;
    case 6: cuts(f, c, fd, at); break;
    case 8: clones(f, g, c, d, fd); break;
    case 7: names(f, g, c, d, number(UINT64_MAX)); break;
    default: attributes(f, fd, number(UINT64_MAX)); break;
    }
    close(fd);
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    state = work_mix(strtoul(work_arg, NULL, 10) + 1);
    copies();
    OK(syscall(SYS_io_setup, 4, &context));
    OK(pipe2(pipe_in, O_CLOEXEC)), OK(pipe2(pipe_out, O_CLOEXEC));
    dir_fd = OK(open(work_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    for (uint64_t round = 1; work_more(); round++) {
        for (int i = 0; i < 6; i++) step();
        compare((int)number(FILES));
        if (round % 8 == 0)
            for (int f = 0; f < FILES; f++) compare(f);
        work_tick();
        work_sleep_us(300);
    }
    for (int f = 0; f < FILES; f++) compare(f);
    return work_end();
}
