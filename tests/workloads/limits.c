/* flags: -O2 -pthread
 * Goal: what holo cannot restore is left alone, and protected again when it is gone. Method: the program has one such thing, named by its
 * argument, uses it each round, and gives it up when DIR/lift exists. */
#include "work.h"
#include <asm/ldt.h>
#include <arpa/inet.h>
#include <linux/aio_abi.h>
#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/perf_event.h>
#include <linux/rtnetlink.h>
#include <linux/seccomp.h>
#include <mqueue.h>
#include <poll.h>
#include <sys/fanotify.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>

#ifndef PIDFD_THREAD
#define PIDFD_THREAD O_EXCL
#endif

static int fd = -1, pipes[2][2];
static pid_t child;
static char *at;
static int id;
static mqd_t queue;
static atomic_int thread_go, thread_done;
static pthread_t thread;
static const char *program;

/* A child that answers a byte with a byte, until its questions end. */
static void answer(void) {
    char byte;
    OK(prctl(PR_SET_PDEATHSIG, SIGKILL));
    close(pipes[0][1]), close(pipes[1][0]);
    while (read(pipes[0][0], &byte, 1) == 1) CHECK(write(pipes[1][1], &byte, 1) == 1, "answer");
    _exit(0);
}
static void open_pipes(void) { OK(pipe(pipes[0])), OK(pipe(pipes[1])); }
static void close_ours(void) { close(pipes[0][0]), close(pipes[1][1]); }
static void ask_child(void) {
    char byte = 'q', back = 0;
    CHECK(write(pipes[0][1], &byte, 1) == 1 && read(pipes[1][0], &back, 1) == 1 && back == byte, "the child does not answer");
}
static void end_child(void) {
    close(pipes[0][1]), close(pipes[1][0]);
    CHECK(waitpid(child, NULL, __WALL) == child, "the child is not ours");
}
static void fork_child(void (*first)(void)) {
    open_pipes();
    child = OK(fork());
    if (child == 0) { first(); answer(); }
    close_ours();
    ask_child();
}

/* A grandchild that shares with us, whose parent does not any more. */
static void begin_sharing(void) {
    open_pipes();
    child = OK((pid_t)syscall(SYS_clone, CLONE_FILES | SIGCHLD, 0, 0, 0, 0));
    if (child == 0) {
        OK(prctl(PR_SET_PDEATHSIG, SIGKILL));
        pid_t inner = OK((pid_t)syscall(SYS_clone, CLONE_FILES | SIGCHLD, 0, 0, 0, 0));
        if (inner == 0) {
            char byte;
            OK(prctl(PR_SET_PDEATHSIG, SIGKILL));
            while (read(pipes[0][0], &byte, 1) == 1 && byte == 'q') CHECK(write(pipes[1][1], &byte, 1) == 1, "answer");
            _exit(0);
        }
        OK(unshare(CLONE_FILES));
        CHECK(waitpid(inner, NULL, 0) == inner, "inner");
        _exit(0);
    }
    ask_child();
}
static void end_sharing(void) {
    char byte = 'e';
    CHECK(write(pipes[0][1], &byte, 1) == 1 && waitpid(child, NULL, 0) == child, "the child is not ours");
}

/* Lives in our memory, on a stack of its own; no `vfork`, for we go on. */
static int in_our_memory(void *unused) {
    (void)unused;
    char byte;
    while (read(pipes[0][0], &byte, 1) == 1 && byte == 'q')
        if (write(pipes[1][1], &byte, 1) != 1) break;
    syscall(SYS_exit_group, 0);
    return 0;
}
static void begin_memory(void) {
    open_pipes();
    char *stack = OK((char *)mmap(NULL, 1 << 16, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    child = OK(clone(in_our_memory, stack + (1 << 16), CLONE_VM | SIGCHLD, NULL));
    ask_child();
}

static void *of_its_own(void *flags) {
    struct sembuf up = {0, 1, SEM_UNDO};
    if ((long)flags == CLONE_SYSVSEM) OK(semop(id, &up, 1));
    OK(unshare((int)(long)flags));
    if ((long)flags == CLONE_SYSVSEM) OK(semop(id, &up, 1));
    atomic_store(&thread_done, 1);
    while (!atomic_load(&thread_go)) work_sleep_us(1000);
    return NULL;
}
static void begin_thread(long flags) {
    PT(pthread_create(&thread, NULL, of_its_own, (void *)flags));
    while (!atomic_load(&thread_done)) work_sleep_us(1000);
}
static void begin_thread_files(void) { begin_thread(CLONE_FILES); }
static void begin_thread_directory(void) { begin_thread(CLONE_FS); }
static void end_thread(void) { atomic_store(&thread_go, 1); PT(pthread_join(thread, NULL)); }

static void own_network(void) { OK(unshare(CLONE_NEWUSER | CLONE_NEWNET)); }
static void own_mounts(void) { OK(unshare(CLONE_NEWUSER | CLONE_NEWNS)); }
static void begin_network(void) { fork_child(own_network); }
static void begin_mounts(void) { fork_child(own_mounts); }

static void own_filter(void) {
    struct sock_filter code[] = {BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    struct sock_fprog all = {.len = 1, .filter = code};
    OK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    OK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &all));
}
static void begin_filter(void) { fork_child(own_filter); }

static void own_program(void) {
    OK(dup2(pipes[0][0], 0)), OK(dup2(pipes[1][1], 1));
    close(pipes[0][1]), close(pipes[1][0]), close(pipes[0][0]), close(pipes[1][1]);
    execl(program, program, (char *)NULL);
    FAIL("%s", program);
}
static void begin_program(void) { fork_child(own_program); }

static void begin_shm(void) {
    id = OK(shmget(IPC_PRIVATE, 4 * 4096, 0600));
    at = OK((char *)shmat(id, NULL, 0));
    OK(shmctl(id, IPC_RMID, NULL));
    OK(munmap(at + 4096, 4096));
}
static void use_shm(void) { at[0]++, at[2 * 4096]++; CHECK(at[0] == at[2 * 4096], "the segment"); }
static void end_shm(void) { OK(shmdt(at)); }

static void begin_queue(void) {
    char name[64];
    snprintf(name, sizeof name, "/holo-limit-%d", getpid());
    struct mq_attr attr = {.mq_maxmsg = 4, .mq_msgsize = 8};
    queue = OK(mq_open(name, O_RDWR | O_CREAT | O_EXCL, 0600, &attr));
    OK(mq_unlink(name));
    OK(mq_send(queue, "m", 1, 0));
    OK(mq_notify(queue, &(struct sigevent){.sigev_notify = SIGEV_NONE}));
}
static void use_queue(void) {
    struct mq_attr attr;
    OK(mq_getattr(queue, &attr));
    CHECK(attr.mq_curmsgs == 1, "%ld messages", attr.mq_curmsgs);
}
static void end_queue(void) { OK(mq_notify(queue, NULL)); }

static void begin_watch(void) {
    int file = OK(open(work_path("watched"), O_RDWR | O_CREAT, 0600));
    fd = OK(inotify_init1(IN_NONBLOCK));
    OK(inotify_add_watch(fd, work_path("watched"), IN_MODIFY));
    OK(unlink(work_path("watched")));
    id = file;
}
static void use_watch(void) {
    char event[4096];
    CHECK(write(id, "x", 1) == 1 && read(fd, event, sizeof event) > 0, "no event");
}
static void end_fd(void) { close(fd); }

static void begin_pidfd(void) { fd = OK((int)syscall(SYS_pidfd_open, getppid(), 0)); }
static void *wait_for_go(void *tid) {
    *(atomic_int *)tid = gettid();
    while (!atomic_load(&thread_go)) work_sleep_us(1000);
    return NULL;
}
static void begin_pidfd_thread(void) {
    PT(pthread_create(&thread, NULL, wait_for_go, &thread_done));
    while (!atomic_load(&thread_done)) work_sleep_us(1000);
    fd = OK((int)syscall(SYS_pidfd_open, atomic_load(&thread_done), PIDFD_THREAD));
}
static void use_pidfd(void) { OK((int)syscall(SYS_pidfd_send_signal, fd, 0, NULL, 0)); }
static void end_pidfd_thread(void) { close(fd); end_thread(); }

static void begin_fanotify(void) { fd = OK(fanotify_init(FAN_CLASS_NOTIF | FAN_REPORT_FID | FAN_NONBLOCK, 0)); }
static void use_fanotify(void) { char event[4096]; CHECK(read(fd, event, sizeof event) < 0 && errno == EAGAIN, "an event"); }

static void begin_perf(void) {
    struct perf_event_attr attr = {.type = PERF_TYPE_SOFTWARE, .size = sizeof attr, .config = PERF_COUNT_SW_TASK_CLOCK};
    fd = OK((int)syscall(SYS_perf_event_open, &attr, 0, -1, -1, PERF_FLAG_FD_CLOEXEC));
}
static void use_perf(void) { uint64_t count; CHECK(read(fd, &count, sizeof count) == sizeof count && count > 0, "no count"); }

static void begin_bpf(void) {
    union bpf_attr attr = {.map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 8, .max_entries = 1};
    fd = OK((int)syscall(SYS_bpf, BPF_MAP_CREATE, &attr, sizeof attr));
}
static void use_bpf(void) {
    uint32_t key = 0;
    uint64_t value = 5;
    union bpf_attr attr = {.map_fd = (uint32_t)fd, .key = (uintptr_t)&key, .value = (uintptr_t)&value};
    OK((int)syscall(SYS_bpf, BPF_MAP_UPDATE_ELEM, &attr, sizeof attr));
}

static void begin_lease(void) {
    signal(SIGIO, SIG_IGN);
    close(OK(open(work_path("leased"), O_RDWR | O_CREAT, 0600)));
    fd = OK(open(work_path("leased"), O_RDONLY));
    OK(fcntl(fd, F_SETLEASE, F_RDLCK));
    CHECK(open(work_path("leased"), O_WRONLY | O_NONBLOCK) == -1 && errno == EWOULDBLOCK, "the lease is not broken");
}
static void use_lease(void) { CHECK(fcntl(fd, F_GETLEASE) == F_UNLCK, "the lease"); }
static void end_lease(void) { OK(fcntl(fd, F_SETLEASE, F_UNLCK)); }

/* Urgent data among what waits in a connection. */
static int peer;
static void begin_urgent(void) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof at;
    int listener = OK(socket(AF_INET, SOCK_STREAM, 0));
    OK(bind(listener, (struct sockaddr *)&at, length)), OK(listen(listener, 1));
    OK(getsockname(listener, (struct sockaddr *)&at, &length));
    peer = OK(socket(AF_INET, SOCK_STREAM, 0));
    if (connect(peer, (struct sockaddr *)&at, length)) FAIL("connect");
    fd = OK(accept(listener, NULL, NULL));
    close(listener);
    CHECK(send(peer, "before", 6, 0) == 6 && send(peer, "!", 1, MSG_OOB) == 1 && send(peer, "behind", 6, 0) == 6, "send");
}
static void use_urgent(void) {
    struct pollfd one = {.fd = fd, .events = POLLPRI};
    CHECK(poll(&one, 1, 1000) == 1 && one.revents & POLLPRI, "urgent data");
}
static void end_urgent(void) {
    char text[16];
    CHECK(recv(fd, text, 1, MSG_OOB) == 1 && *text == '!', "the urgent byte");
    CHECK(recv(fd, text, 16, 0) == 6 && !memcmp(text, "before", 6) && recv(fd, text, 16, 0) == 6 && !memcmp(text, "behind", 6), "the others");
    close(fd), close(peer);
}
/* The same when the byte was read, and not what is before it. */
static void begin_mark(void) {
    char byte;
    begin_urgent();
    use_urgent();
    CHECK(recv(fd, &byte, 1, MSG_OOB) == 1 && byte == '!', "the urgent byte");
}
static void use_mark(void) {
    int waiting;
    OK(ioctl(fd, FIONREAD, &waiting));
    CHECK(waiting == 6, "%d bytes before the mark", waiting);
}
static void end_mark(void) {
    char text[16];
    CHECK(recv(fd, text, 16, 0) == 6 && recv(fd, text, 16, 0) == 6 && !memcmp(text, "behind", 6), "the others");
    close(fd), close(peer);
}

/* The kernel has answered, and nobody has read it. */
static void begin_answer(void) {
    struct { struct nlmsghdr head; struct rtgenmsg what; } ask = {
        {.nlmsg_len = sizeof ask, .nlmsg_type = RTM_GETLINK, .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP}, {.rtgen_family = AF_UNSPEC}};
    fd = OK(socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE));
    CHECK(send(fd, &ask, sizeof ask, 0) == sizeof ask, "netlink");
}
static void use_answer(void) {
    struct nlmsghdr head;
    CHECK(recv(fd, &head, sizeof head, MSG_PEEK) == sizeof head && head.nlmsg_type == RTM_NEWLINK, "the answer");
}

static aio_context_t context;
/* Two, so that one is always under way. */
static int ends[2][2];
static void submit_poll(int which) {
    struct iocb one = {.aio_lio_opcode = IOCB_CMD_POLL, .aio_fildes = (uint32_t)ends[which][0], .aio_buf = POLLIN, .aio_data = (uint64_t)which};
    struct iocb *list = &one;
    CHECK(syscall(SYS_io_submit, context, 1, &list) == 1, "submit");
}
static void begin_aio(void) {
    OK((int)syscall(SYS_io_setup, 4, &context));
    for (int i = 0; i < 2; i++) OK(pipe(ends[i])), submit_poll(i);
}
static void come_back(int which) {
    struct io_event event;
    char byte;
    CHECK(write(ends[which][1], "x", 1) == 1 && syscall(SYS_io_getevents, context, 1, 1, &event, NULL) == 1, "aio");
    CHECK(event.res & POLLIN && event.data == (uint64_t)which, "another event");
    CHECK(read(ends[which][0], &byte, 1) == 1, "pipe");
}
static void use_aio(void) {
    for (int i = 0; i < 2; i++) come_back(i), submit_poll(i);
}
static void end_aio(void) { come_back(0), come_back(1); }

static void begin_undo(void) {
    id = OK(semget(IPC_PRIVATE, 1, 0600));
    begin_thread(CLONE_SYSVSEM);
}
static void use_undo(void) { CHECK(semctl(id, 0, GETVAL) == 2, "the semaphore"); }
static void end_undo(void) { OK(semctl(id, 0, IPC_RMID)); end_thread(); }

/* A table of segments, as programs for other systems want it. It cannot be given up: a child has it. */
static void own_table(void) {
    struct user_desc entry = {.entry_number = 0, .base_addr = 4096, .limit = 1, .seg_32bit = 1, .useable = 1};
    OK((int)syscall(SYS_modify_ldt, 1, &entry, sizeof entry));
}
static void begin_table(void) { fork_child(own_table); }

/* Pages that may not be touched, within a zone. */
static void begin_guards(void) {
    at = OK((char *)mmap(NULL, 8 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    memset(at, 5, 8 * 4096);
    OK(madvise(at + 3 * 4096, 4096, 102));
}
static void use_guards(void) {
    int ends_of[2];
    OK(pipe(ends_of));
    CHECK(write(ends_of[1], at + 3 * 4096, 1) == -1 && errno == EFAULT, "a guard");
    CHECK(write(ends_of[1], at + 4 * 4096, 1) == 1, "no guard");
    close(ends_of[0]), close(ends_of[1]);
}
static void end_guards(void) { OK(madvise(at + 3 * 4096, 4096, 103)); }

static void begin_hidden(void) { OK(prctl(PR_SET_DUMPABLE, 0)); }
static void end_hidden(void) { OK(prctl(PR_SET_DUMPABLE, 1)); }

static void nothing(void) {}

static const struct limit { const char *name; void (*begin)(void), (*use)(void), (*end)(void); } limits[] = {
    {"sharing", begin_sharing, ask_child, end_sharing},
    {"memory", begin_memory, ask_child, end_sharing},
    {"thread_files", begin_thread_files, nothing, end_thread},
    {"thread_directory", begin_thread_directory, nothing, end_thread},
    {"network", begin_network, ask_child, end_child},
    {"mounts", begin_mounts, ask_child, end_child},
    {"filter", begin_filter, ask_child, end_child},
    {"guards", begin_guards, use_guards, end_guards},
    {"table", begin_table, ask_child, end_child},
    {"program", begin_program, ask_child, end_child},
    {"hidden", begin_hidden, nothing, end_hidden},
    {"shm", begin_shm, use_shm, end_shm},
    {"undo", begin_undo, use_undo, end_undo},
    {"queue", begin_queue, use_queue, end_queue},
    {"watch", begin_watch, use_watch, end_fd},
    {"pidfd", begin_pidfd, use_pidfd, end_fd},
    {"pidfd_thread", begin_pidfd_thread, use_pidfd, end_pidfd_thread},
    {"fanotify", begin_fanotify, use_fanotify, end_fd},
    {"perf", begin_perf, use_perf, end_fd},
    {"bpf", begin_bpf, use_bpf, end_fd},
    {"lease", begin_lease, use_lease, end_lease},
    {"urgent", begin_urgent, use_urgent, end_urgent},
    {"mark", begin_mark, use_mark, end_mark},
    {"answer", begin_answer, use_answer, end_fd},
    {"aio", begin_aio, use_aio, end_aio},
};

int main(int argc, char **argv) {
    work_begin(argc, argv);
    if (argc > 3) program = argv[3];
    const struct limit *limit = limits, *end = limits + sizeof limits / sizeof *limits;
    while (limit < end && strcmp(limit->name, work_arg)) limit++;
    CHECK(limit < end, "there is no limit `%s`", work_arg);
    limit->begin();
    int lifted = 0;
    while (work_more()) {
        if (!lifted) limit->use();
        if (!lifted && access(work_path("lift"), F_OK) == 0) {
            limit->end();
            lifted = 1;
            OK(creat(work_path("lifted"), 0600));
        }
        work_tick();
        work_sleep_us(500);
    }
    return work_end();
}
