/* flags: -O2 -static
 * Overwrites all of a file, for a moment: a program that does not run under holo. usage: static_writer FILE BYTE */
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv) {
    static char bytes[1 << 16];
    int fd = argc == 3 ? open(argv[1], O_WRONLY) : -1;
    if (fd < 0) return 1;
    memset(bytes, argv[2][0], sizeof bytes);
    for (int i = 0; i < 16; i++)
        if (pwrite(fd, bytes, sizeof bytes, (off_t)i * (off_t)sizeof bytes) != sizeof bytes) return 1;
    return 0;
}
