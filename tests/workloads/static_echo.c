/* flags: -O2 -static
 * Goal: a process of the application that a preload cannot reach. Method: answers a byte with a byte, until its questions end. */
#include <unistd.h>
int main(void) {
    char byte;
    while (read(0, &byte, 1) == 1)
        if (write(1, &byte, 1) != 1) return 1;
    return 0;
}
