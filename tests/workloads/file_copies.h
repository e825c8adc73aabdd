/* Files that a workload changes at random, and what memory says that is in them. */
#pragma once
#include "work.h"

enum { FILES = 6, BYTES_MAX = 600000 };

struct copy { int exists; size_t size; unsigned char *bytes; };
static struct copy files[FILES];
static int self;
static uint64_t state;
static unsigned char buffer[BYTES_MAX];

static uint64_t number(uint64_t below) { return (state = work_mix(state + 0x9e3779b97f4a7c15u)) % below; }
static const char *name(int f) {
    char text[32];
    snprintf(text, sizeof text, "p%d.f%d", self, f);
    return work_path(text);
}
static void fill(size_t len) {
    uint64_t seed = number(UINT64_MAX);
    for (size_t i = 0; i < len; i++) buffer[i] = (unsigned char)(work_mix(seed + i / 8) >> i % 8 * 8);
}
static size_t some_len(void) { return number(8) == 0 ? number(200000) + 1 : number(9000) + 1; }
static void resize(struct copy *c, size_t size) {
    if (size > c->size) memset(c->bytes + c->size, 0, size - c->size);
    c->size = size;
}
static void put(struct copy *c, size_t at, size_t len) {
    if (at + len > c->size) resize(c, at + len);
    memcpy(c->bytes + at, buffer, len);
}
static void compare(int f) {
    static unsigned char found[BYTES_MAX + 1];
    struct copy *c = &files[f];
    int fd = open(name(f), O_RDONLY | O_CLOEXEC);
    CHECK((fd >= 0) == c->exists, "file %d of %d: there: %d, wanted %d", f, self, fd >= 0, c->exists);
    if (fd < 0) return;
    ssize_t n = OK(read(fd, found, sizeof found));
    CHECK((size_t)n == c->size, "file %d of %d has %zd bytes, wanted %zu", f, self, n, c->size);
    for (ssize_t i = 0; i < n; i++) CHECK(found[i] == c->bytes[i], "file %d of %d: byte %zd of %zd is %02x, wanted %02x", f, self, i, n, found[i], c->bytes[i]);
    close(fd);
}
static void copies(void) {
    for (int f = 0; f < FILES; f++)
        files[f].bytes = OK(mmap(NULL, BYTES_MAX, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
}
