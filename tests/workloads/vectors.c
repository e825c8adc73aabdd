/* flags: -O2 -pthread
 * Goal: a system call keeps every vector register, as the kernel does. Method: load all XMM, YMM or ZMM registers and
 * the mask registers that the processor has, call stubs of libc that contain nothing but the instruction, compare. */
#include "work.h"
#define V64(n) "vmovdqu64 " #n "*64(%0), %%zmm" #n "\n\t"
#define S64(n) "vmovdqu64 %%zmm" #n ", " #n "*64(%1)\n\t"
#define V32(n) "vmovdqu " #n "*64(%0), %%ymm" #n "\n\t"
#define S32(n) "vmovdqu %%ymm" #n ", " #n "*64(%1)\n\t"
#define LOW(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
#define HIGH(X) X(16) X(17) X(18) X(19) X(20) X(21) X(22) X(23) X(24) X(25) X(26) X(27) X(28) X(29) X(30) X(31)
#define ACROSS_CALL "sub $136, %%rsp\n\t and $-64, %%rsp\n\t call *%%r13\n\t mov %%r12, %%rsp\n\t"
static uint8_t in[32 * 64] __attribute__((aligned(64))), out[32 * 64] __attribute__((aligned(64)));
static uint64_t masks[8];

static long across(long (*call)(void), int wide) {
    long result;
    register void *to __asm__("rbx") = out;
    register void *from __asm__("r14") = in;
    register void *stub __asm__("r13") = (void *)call;
    if (wide)
        __asm__ volatile("mov %%rsp, %%r12\n\t" LOW(V64) HIGH(V64)
                         "mov $0x1234567890, %%rax\n\t kmovq %%rax, %%k1\n\t kmovq %%rax, %%k7\n\t" ACROSS_CALL
                         LOW(S64) HIGH(S64) "mov %%rax, %2\n\t kmovq %%k1, %%rax\n\t mov %%rax, %5\n\t kmovq %%k7, %%rax\n\t mov %%rax, %6\n\t vzeroupper"
                         : "+r"(from), "+r"(to), "=m"(result), "+r"(stub), "+m"(in), "=m"(masks[0]), "=m"(masks[1])
                         :: "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "memory", "cc");
    else
        __asm__ volatile("mov %%rsp, %%r12\n\t" LOW(V32) ACROSS_CALL LOW(S32) "mov %%rax, %2\n\t vzeroupper"
                         : "+r"(from), "+r"(to), "=m"(result), "+r"(stub)
                         :: "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "memory", "cc");
    return result;
}

int main(int argc, char **argv) {
    work_begin(argc, argv);
    if (!__builtin_cpu_supports("avx")) {
        fprintf(stderr, "this processor has no AVX: only a trivial round\n");
        return work_tick(), work_end();
    }
    int wide = __builtin_cpu_supports("avx512bw") && strcmp(work_arg, "ymm") != 0;
    long parent = getppid();
    for (uint64_t round = 0; work_more(); round++) {
        for (int i = 0; i < 200; i++) {
            work_fill(in, sizeof in, round * 1000 + i);
            memset(out, 0, sizeof out);
            long got = across((long (*)(void))getppid, wide);
            CHECK((int)got >= 0 && (round > 0 || got == parent), "getppid returned %ld", got);
            across((long (*)(void))sched_yield, wide);
            for (int n = 0; n < (wide ? 32 : 16); n++)
                CHECK(memcmp(in + n * 64, out + n * 64, wide ? 64 : 32) == 0, "vector register %d lost over a call", n);
            CHECK(!wide || (masks[0] == 0x1234567890 && masks[1] == 0x1234567890), "mask register lost over a call");
        }
        work_tick();
    }
    return work_end();
}
