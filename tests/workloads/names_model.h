/* What names_storm.c knows of the names that it has made: in memory alone. */
#ifndef NAMES_MODEL_H
#define NAMES_MODEL_H
#include "work.h"
#include <dirent.h>

enum { ENTRIES = 64, BYTES_MAX = 8192, PATH_BYTES = 600, NAME_BYTES = 2 * PATH_MAX };
enum kind { FILE_ = 1, DIR_ = 2, LINK_ = 4, QUEUE_ = 8 };

/* What names lead to: its content, or where a link leads to. */
struct node {
    enum kind kind;
    mode_t mode;
    int names;
    unsigned bytes;
    unsigned char data[BYTES_MAX];
};
struct entry {
    char path[PATH_BYTES];
    struct node *node;
};

static struct node nodes[ENTRIES];
/* The first one is the directory that all others are in. */
static struct entry entries[ENTRIES];
static int entry_count;
static uint64_t random_state;

static uint64_t roll(void) { return work_mix(random_state += 0x9e3779b97f4a7c15u); }
static unsigned below(unsigned n) { return (unsigned)(roll() % n); }

static struct entry *find(const char *path) {
    for (int i = 0; i < entry_count; i++)
        if (!strcmp(entries[i].path, path)) return &entries[i];
    return NULL;
}

/* Is it `top`, or in it? */
static int is_below(const char *path, const char *top) {
    size_t len = strlen(top);
    return !strncmp(path, top, len) && (path[len] == 0 || path[len] == '/');
}

/* One of those kinds, of those from number `first` on. */
static struct entry *any(int kinds, int first) {
    int left = 0;
    for (int i = first; i < entry_count; i++) left += (entries[i].node->kind & kinds) != 0;
    if (left == 0) return NULL;
    left = (int)below((unsigned)left);
    for (int i = first;; i++)
        if (entries[i].node->kind & kinds && left-- == 0) return &entries[i];
}

/* A name that nothing has; none: this time there is none. */
static const char *fresh(void) {
    static char path[PATH_BYTES];
    const char *dir = any(DIR_, 0)->path;
    if (entry_count == ENTRIES || strlen(dir) > PATH_BYTES / 3) return NULL;
    snprintf(path, sizeof path, "%.300s/%c%s", dir, 'a' + (char)below(8), (const char *const[]){"", "1", " 2", "\xc3\xbc"}[below(4)]);
    return find(path) ? NULL : path;
}

static struct node *node_new(enum kind kind, mode_t mode) {
    struct node *node = nodes;
    while (node->names) node++;
    node->kind = kind, node->mode = mode, node->bytes = 0;
    return node;
}

static void add(const char *path, struct node *node) {
    strcpy(entries[entry_count].path, path);
    entries[entry_count++].node = node;
    node->names++;
}

static void forget(struct entry *entry) {
    entry->node->names--;
    *entry = entries[--entry_count];
}

static int is_empty(const struct entry *dir) {
    int inside = 0;
    for (int i = 0; i < entry_count; i++) inside += is_below(entries[i].path, dir->path);
    return inside == 1;
}

/* Gives all that is at `from` or below names at `to` instead. */
static void rename_all(const char *from, const char *to) {
    char old[PATH_BYTES], path[2 * PATH_BYTES];
    strcpy(old, from);
    for (int i = 0; i < entry_count; i++) {
        if (!is_below(entries[i].path, old)) continue;
        snprintf(path, sizeof path, "%s%s", to, entries[i].path + strlen(old));
        CHECK(strlen(path) < PATH_BYTES, "a path");
        strcpy(entries[i].path, path);
    }
}

/* Would something that gets the name `to` have too long a path? */
static int is_too_long(const char *from, const char *to) {
    size_t longest = 0;
    for (int i = 0; i < entry_count; i++)
        if (is_below(entries[i].path, from) && strlen(entries[i].path) > longest) longest = strlen(entries[i].path);
    return longest - strlen(from) + strlen(to) >= PATH_BYTES / 2;
}

/* What is found to be otherwise. */
static char wrong[600];
static void tell(char how, const char *path) {
    size_t len = strlen(wrong);
    if (len + 200 < sizeof wrong) snprintf(wrong + len, sizeof wrong - len, " %c%.190s", how, path);
}

/* How what is there differs: in its type, mode or content. */
static char difference(const char *path, const struct node *node, const struct stat *now) {
    static unsigned char data[BYTES_MAX + 1];
    static const mode_t types[] = {[FILE_] = S_IFREG, [DIR_] = S_IFDIR, [LINK_] = S_IFLNK, [QUEUE_] = S_IFIFO};
    if ((now->st_mode & S_IFMT) != types[node->kind]) return 't';
    if (node->kind != LINK_ && (now->st_mode & 07777) != node->mode) return 'm';
    ssize_t got = 0;
    if (node->kind == LINK_) got = OK(readlink(path, (char *)data, sizeof data));
    if (node->kind == FILE_) {
        int fd = OK(open(path, O_RDONLY | O_CLOEXEC));
        got = OK(read(fd, data, sizeof data));
        OK(close(fd));
    }
    int is_same = (node->kind & (DIR_ | QUEUE_)) || (got == (ssize_t)node->bytes && !memcmp(data, node->data, node->bytes));
    return is_same ? 0 : 'c';
}

/* Compares all that is in a directory; how many names that are known. */
static int compare(const char *path) {
    int known = 0;
    char name[PATH_BYTES + NAME_MAX];
    DIR *dir = opendir(path);
    CHECK(dir != NULL, "%s", path);
    for (struct dirent *one; (one = readdir(dir));) {
        if (!strcmp(one->d_name, ".") || !strcmp(one->d_name, "..")) continue;
        snprintf(name, sizeof name, "%.590s/%s", path, one->d_name);
        struct stat now;
        OK(lstat(name, &now));
        const struct entry *entry = find(name);
        char how = entry ? difference(name, entry->node, &now) : '+';
        known += entry != NULL;
        if (how) tell(how, name);
        if (S_ISDIR(now.st_mode)) known += compare(name);
    }
    OK(closedir(dir));
    return known;
}

static void compare_all(void) {
    int known = 1 + compare(entries[0].path);
    struct stat now;
    for (int i = 0; i < entry_count && known < entry_count; i++)
        if (lstat(entries[i].path, &now) < 0) tell('-', entries[i].path);
    CHECK(!*wrong && known == entry_count, "more (+), less (-), other type, mode or content (t, m, c):%s; %d of %d", wrong, known, entry_count);
}
#endif
