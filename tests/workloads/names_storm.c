/* flags: -O2
 * Goal: what an application makes, writes to, moves and removes by name is after a restore as its memory has it, and nothing else is there.
 * Method: files, directories, links and queues are made, changed, moved and removed at random, by names of every sort, and closed at once;
 * memory has what there should be, and all of it is compared in every round. usage: DIR SEED */
#include "names_model.h"
/* A call for a name that must not fail. */
#define DO(call, path) ({ __typeof__(call) did_ = (call); CHECK(did_ >= 0, "%s", path); did_; })

/* A name for a call: relative to a directory. */
struct name {
    int dir;
    char text[NAME_BYTES];
};

/* One of the names of something. */
static const struct name *say_as(struct name *as, const char *path) {
    char parent[PATH_BYTES];
    strcpy(parent, path);
    char *own = strrchr(parent, '/');
    *own++ = 0;
    as->dir = AT_FDCWD;
    snprintf(as->text, sizeof as->text, "%s", path);
    switch (below(9)) {
    case 0: snprintf(as->text, sizeof as->text, "%s/%s", work_dir, path); break;
    case 1: snprintf(as->text, sizeof as->text, "./%s", path); break;
    case 2: snprintf(as->text, sizeof as->text, "%s/.//%s", parent, own); break;
    case 3: snprintf(as->text, sizeof as->text, "%s/../%s", entries[0].path, path); break;
    case 4:
        as->dir = DO(open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC), parent);
        strcpy(as->text, own);
        break;
    case 5: snprintf(as->text, sizeof as->text, "through%s", path + strlen(entries[0].path)); break;
    default: break;
    }
    return as;
}
static const struct name *say(const char *path) {
    static struct name name;
    return say_as(&name, path);
}
static void said(const struct name *name) {
    if (name->dir != AT_FDCWD) OK(close(name->dir));
}

static void fill(struct node *node, unsigned at, unsigned bytes) {
    for (unsigned i = at; i < at + bytes; i++) node->data[i] = (unsigned char)roll();
    if (at + bytes > node->bytes) node->bytes = at + bytes;
}

/* Writes what memory has from `at` on, at the end or there. */
static void write_from(const char *path, int flags, const struct node *node, unsigned at, unsigned bytes) {
    const struct name *name = say(path);
    int fd = DO(openat(name->dir, name->text, flags | O_CLOEXEC, node->mode), name->text);
    said(name);
    if (bytes) CHECK((flags & O_APPEND ? write(fd, node->data + at, bytes) : pwrite(fd, node->data + at, bytes, at)) == (ssize_t)bytes, "write");
    OK(close(fd));
}

static void op_make(void) {
    const char *path = fresh();
    if (!path) return;
    struct node *node = node_new(FILE_, below(4) ? 0644 : 0600);
    fill(node, 0, (unsigned)(const int[]){0, 1, 100, 5000}[below(4)]);
    write_from(path, O_WRONLY | O_CREAT | O_EXCL, node, 0, node->bytes);
    add(path, node);
}

/* Also by a child, which is gone before an epoch may see it. */
static void op_append(void) {
    struct entry *entry = any(FILE_, 1);
    unsigned at = entry ? entry->node->bytes : BYTES_MAX, bytes = 1 + below(300);
    if (at + bytes > BYTES_MAX) return;
    fill(entry->node, at, bytes);
    if (below(4)) {
        write_from(entry->path, O_WRONLY | O_APPEND, entry->node, at, bytes);
        return;
    }
    int status;
    pid_t child = OK(fork());
    if (child == 0) {
        write_from(entry->path, O_WRONLY | O_APPEND, entry->node, at, bytes);
        _exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0, "a child ended with %x", status);
}

static void op_change(void) {
    struct entry *entry = any(FILE_, 1);
    unsigned bytes = entry ? entry->node->bytes : 0;
    if (!bytes) return;
    unsigned at = below(bytes), len = 1 + below(bytes - at);
    fill(entry->node, at, len);
    write_from(entry->path, O_RDWR, entry->node, at, len);
}

/* Emptied and written anew, or given another length. */
static void op_cut(void) {
    struct entry *entry = any(FILE_, 1);
    if (!entry) return;
    struct node *node = entry->node;
    unsigned bytes = below(6000);
    if (below(2)) {
        node->bytes = 0;
        fill(node, 0, bytes);
        write_from(entry->path, O_WRONLY | O_CREAT | O_TRUNC, node, 0, bytes);
        return;
    }
    const struct name *name = say(entry->path);
    const char *whole = name->dir == AT_FDCWD ? name->text : entry->path;
    DO(truncate(whole, bytes), whole);
    said(name);
    if (bytes > node->bytes) memset(node->data + node->bytes, 0, bytes - node->bytes);
    node->bytes = bytes;
}

static void rename_as(const char *from, const char *to, unsigned flags) {
    struct name one, other;
    say_as(&one, from), say_as(&other, to);
    DO(renameat2(one.dir, one.text, other.dir, other.text, flags), to);
    said(&one), said(&other);
}

static void op_rename(void) {
    struct entry *entry = any(FILE_ | DIR_ | LINK_ | QUEUE_, 1);
    const char *to = fresh();
    if (!entry || !to || is_below(to, entry->path) || is_too_long(entry->path, to)) return;
    rename_as(entry->path, to, 0);
    rename_all(entry->path, to);
}

/* Over another one, or in exchange for it. */
static void op_replace(void) {
    struct entry *from = any(FILE_ | LINK_ | QUEUE_, 1), *to = any(FILE_ | LINK_ | QUEUE_, 1);
    if (!from || from->node == to->node) return;
    if (below(2)) {
        struct node *node = from->node;
        rename_as(from->path, to->path, RENAME_EXCHANGE);
        from->node = to->node, to->node = node;
        return;
    }
    rename_as(from->path, to->path, 0);
    to->node->names--;
    to->node = from->node, to->node->names++;
    forget(from);
}

/* A directory for something else. */
static void op_exchange(void) {
    const struct entry *one = any(DIR_, 1), *other = any(FILE_ | DIR_ | LINK_, 1);
    if (!one || is_below(one->path, other->path) || is_below(other->path, one->path)) return;
    if (is_too_long(one->path, other->path) || is_too_long(other->path, one->path)) return;
    char a[PATH_BYTES], b[PATH_BYTES];
    strcpy(a, one->path), strcpy(b, other->path);
    rename_as(a, b, RENAME_EXCHANGE);
    rename_all(a, "/exchanged"), rename_all(b, a), rename_all("/exchanged", b);
}

/* What is refused changes nothing. */
static void op_refused(void) {
    const struct entry *one = any(DIR_, 1), *other = any(DIR_, 1), *there = any(FILE_ | DIR_ | LINK_ | QUEUE_, 0);
    CHECK(mkdir(there->path, 0700) < 0 && errno == EEXIST, "%s was made", there->path);
    if (!one || one == other || is_empty(other)) return;
    struct name from, to;
    say_as(&from, one->path), say_as(&to, other->path);
    CHECK(renameat(from.dir, from.text, to.dir, to.text) < 0, "%s has become %s", one->path, other->path);
    said(&from), said(&to);
}

static void op_directory(void) {
    const char *path = fresh();
    if (!path) return;
    mode_t mode = below(4) ? 0755 : 0700;
    const struct name *name = say(path);
    DO(mkdirat(name->dir, name->text, mode), name->text);
    said(name);
    add(path, node_new(DIR_, mode));
}

static void op_remove(void) {
    struct entry *entry = any(FILE_ | DIR_ | LINK_ | QUEUE_, 1);
    if (!entry || (entry->node->kind == DIR_ && !is_empty(entry))) return;
    const struct name *name = say(entry->path);
    DO(unlinkat(name->dir, name->text, entry->node->kind == DIR_ ? AT_REMOVEDIR : 0), entry->path);
    said(name);
    forget(entry);
}

static void op_link(void) {
    static const char *const targets[] = {"nowhere", "a", "b", "../own", "/etc/passwd", "."};
    const char *path = fresh();
    if (!path) return;
    struct node *node = node_new(LINK_, 0);
    const char *target = targets[below(6)];
    node->bytes = (unsigned)strlen(target);
    memcpy(node->data, target, node->bytes);
    const struct name *name = say(path);
    DO(symlinkat(target, name->dir, name->text), name->text);
    said(name);
    add(path, node);
}

static void op_hard_link(void) {
    struct entry *entry = any(FILE_, 1);
    const char *to = fresh();
    if (!entry || !to) return;
    struct name one, other;
    say_as(&one, entry->path), say_as(&other, to);
    DO(linkat(one.dir, one.text, other.dir, other.text, 0), to);
    said(&one), said(&other);
    add(to, entry->node);
}

static void op_queue(void) {
    const char *path = fresh();
    if (!path) return;
    const struct name *name = say(path);
    DO(mkfifoat(name->dir, name->text, 0600), name->text);
    said(name);
    add(path, node_new(QUEUE_, 0600));
}

static void op_mode(void) {
    struct entry *entry = any(FILE_ | DIR_, 1);
    if (!entry) return;
    mode_t mode = entry->node->mode ^ 0050;
    DO(chmod(entry->path, mode), entry->path);
    entry->node->mode = mode;
}

static void (*const ops[])(void) = {
    op_make, op_make, op_append, op_append, op_append, op_change, op_cut, op_rename, op_rename, op_replace, op_exchange, op_directory,
    op_refused, op_remove, op_remove, op_link, op_hard_link, op_queue, op_mode,
};

int main(int argc, char **argv) {
    work_begin(argc, argv);
    random_state = strtoull(work_arg, NULL, 10);
    umask(0);
    OK(chdir(work_dir));
    OK(mkdir("own", 0755));
    OK(symlink("own", "through"));
    add("own", node_new(DIR_, 0755));
    while (work_more()) {
        for (int step = 0; step < 8; step++) {
            ops[below(sizeof ops / sizeof *ops)]();
            if (entry_count > ENTRIES * 3 / 4) op_remove();
        }
        compare_all();
        work_tick();
        work_sleep_us(2000);
    }
    return work_end();
}
