/* flags: -O2 -pthread -mavx2
 * Goal: every register of user code survives a stop at any instruction. Method: a tight loop in assembly holds a
 * pattern in the general, x87, XMM and YMM registers, the flags and MXCSR, and compares at its end. */
#include "work.h"
static const uint64_t pattern[4] __attribute__((aligned(32))) = {0x1122334455667788, 0x99aabbccddeeff00, 0x0123456789abcdef, 0xfedcba9876543210};

static uint64_t spin(uint64_t turns) {
    uint64_t out[4] __attribute__((aligned(32))), wrong, flags;
    long double x87 = 3.14159265358979323846L, x87_out;
    __asm__ volatile(
        "fldt %[x87]\n\t"
        "vmovdqa (%[p]), %%ymm15\n\t"
        "vmovdqa %%ymm15, %%ymm3\n\t"
        "vpaddq %%ymm15, %%ymm15, %%ymm7\n\t"
        "mov $0x5a5a5a5a5a5a5a5a, %%r15\n\t"
        "mov %%r15, %%r8\n\t not %%r8\n\t"
        "mov %%r15, %%r9\n\t mov %%r15, %%r10\n\t mov %%r15, %%r12\n\t mov %%r15, %%r13\n\t"
        "xor %[wrong], %[wrong]\n\t"
        "std\n\t"
        "1: lea (%%r15,%%r8), %%r14\n\t"
        "cmp $-1, %%r14\n\t jne 2f\n\t"
        "cmp %%r9, %%r10\n\t jne 2f\n\t"
        "cmp %%r12, %%r13\n\t jne 2f\n\t"
        "cmp %%r9, %%r12\n\t jne 2f\n\t"
        "vpcmpeqq %%ymm3, %%ymm15, %%ymm0\n\t"
        "vpmovmskb %%ymm0, %%r14d\n\t"
        "cmp $-1, %%r14d\n\t jne 2f\n\t"
        "dec %[turns]\n\t jnz 1b\n\t jmp 3f\n\t"
        "2: mov $1, %[wrong]\n\t"
        "3: pushfq\n\t pop %[flags]\n\t cld\n\t"
        "vpsubq %%ymm15, %%ymm7, %%ymm7\n\t"
        "vmovdqa %%ymm7, (%[out])\n\t"
        "fstpt %[x87_out]\n\t vzeroupper"
        : [turns] "+r"(turns), [wrong] "=&r"(wrong), [flags] "=&r"(flags), [x87_out] "=m"(x87_out)
        : [p] "r"(pattern), [out] "r"(out), [x87] "m"(x87)
        : "r8", "r9", "r10", "r12", "r13", "r14", "r15", "xmm0", "xmm3", "xmm7", "xmm15", "cc", "memory");
    CHECK(!wrong, "a register changed in the loop");
    CHECK(flags & 0x400, "direction flag lost");
    CHECK(memcmp(out, pattern, 32) == 0, "upper half of a YMM register lost");
    CHECK(x87_out == x87, "x87 stack lost");
    return turns;
}

static atomic_int end;
static void *body(void *arg) {
    uint32_t mine = 0x1f80 | ((uint32_t)(long)arg & 3) << 13, now; /* rounding mode by thread */
    __asm__ volatile("ldmxcsr %0" ::"m"(mine));
    uint16_t control = 0x37f | (uint16_t)((long)arg & 3) << 10, control_now;
    __asm__ volatile("fldcw %0" ::"m"(control));
    while (!atomic_load(&end)) {
        spin(3000000);
        __asm__ volatile("stmxcsr %0" : "=m"(now));
        CHECK((now & 0x6000) == (mine & 0x6000), "MXCSR is %x, was %x", now, mine);
        __asm__ volatile("fnstcw %0" : "=m"(control_now));
        CHECK(control_now == control, "x87 control word is %x, was %x", control_now, control);
        if (arg == (void *)1) work_tick();
    }
    return NULL;
}

int main(int argc, char **argv) {
    pthread_t t[2];
    work_begin(argc, argv);
    for (long i = 0; i < 2; i++) PT(pthread_create(&t[i], NULL, body, (void *)(i + 1)));
    while (work_more()) work_sleep_us(2000);
    atomic_store(&end, 1);
    for (int i = 0; i < 2; i++) PT(pthread_join(t[i], NULL));
    return work_end();
}
