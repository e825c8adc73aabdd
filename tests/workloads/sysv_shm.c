/* flags: -O2 -pthread
 * Goal: System V segments keep id, key, mode, size, content, attachments. Method: a keyed one, a private one attached twice,
 * one with another's protection, a removed one, one that is not attached; each is used and looked at every round. */
#include "work.h"
#include <sys/ipc.h>
#include <sys/shm.h>
enum { BYTES = 40000, WORDS = BYTES / 8 };

static void looks(int id, unsigned mode, unsigned long attached, size_t bytes, key_t key) {
    struct shmid_ds s;
    OK(shmctl(id, IPC_STAT, &s));
    CHECK((s.shm_perm.mode & 07777) == mode, "mode of %d is %o", id, s.shm_perm.mode);
    CHECK(s.shm_nattch == attached, "%d is attached %lu times", id, (unsigned long)s.shm_nattch);
    CHECK(s.shm_segsz == bytes && s.shm_perm.__key == key, "%d: %zu bytes, key %x", id, s.shm_segsz, s.shm_perm.__key);
    CHECK(s.shm_cpid == getpid() && s.shm_perm.uid == geteuid(), "%d is of %d", id, s.shm_cpid);
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    key_t key = (geteuid() ? 0x68000000 : 0x6f000000) | getpid();
    /* Of an earlier program with this pid that was killed. */
    int stale = shmget(key, 0, 0);
    if (stale >= 0) OK(shmctl(stale, IPC_RMID, NULL));
    int keyed = OK(shmget(key, BYTES, IPC_CREAT | IPC_EXCL | 0640)), twice = OK(shmget(IPC_PRIVATE, BYTES, 0600));
    int removed = OK(shmget(IPC_PRIVATE, 1, 0600)), idle = OK(shmget(IPC_PRIVATE, 3 * BYTES, 0400));
    volatile uint64_t *a = OK(shmat(keyed, NULL, 0)), *b = OK(shmat(twice, NULL, 0));
    const volatile uint64_t *c = OK(shmat(twice, NULL, SHM_RDONLY));
    char *d = OK(shmat(removed, NULL, 0));
    OK(shmctl(removed, IPC_RMID, NULL));
    OK(mprotect((char *)b + 4096, 4096, PROT_READ));
    CHECK(mprotect((void *)c, 4096, PROT_READ | PROT_WRITE) == -1 && errno == EACCES, "a read-only attachment");
    for (uint64_t round = 1; work_more(); round++) {
        work_fill((void *)a, BYTES, round), b[0] = round, b[WORDS - 1] = ~round, d[4095] = (char)round;
        work_sleep_us(4000);
        work_expect((void *)a, BYTES, round, "keyed");
        CHECK(c[0] == round && c[WORDS - 1] == ~round && b[512] == 0, "the two attachments differ");
        CHECK(d[4095] == (char)round, "the removed segment");
        CHECK(OK(shmget(key, 0, 0)) == keyed, "the key leads to %d", shmget(key, 0, 0));
        looks(keyed, 0640, 1, BYTES, key), looks(twice, 0600, 4, BYTES, 0), looks(removed, 01600, 1, 1, 0), looks(idle, 0400, 0, 3 * BYTES, 0);
        CHECK(mprotect((void *)c, 4096, PROT_READ | PROT_WRITE) == -1 && errno == EACCES, "the read-only attachment can be written");
        volatile uint64_t *again = OK(shmat(twice, NULL, 0));
        CHECK(again[WORDS - 1] == ~round, "attached again");
        OK(shmdt((void *)again));
        work_tick();
    }
    OK(shmdt(d));
    struct shmid_ds s;
    CHECK(shmctl(removed, IPC_STAT, &s) == -1 && errno == EINVAL, "the removed segment is still there");
    OK(shmctl(keyed, IPC_RMID, NULL)), OK(shmctl(twice, IPC_RMID, NULL)), OK(shmctl(idle, IPC_RMID, NULL));
    return work_end();
}
