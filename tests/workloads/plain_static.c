/* flags: -O2 -static
 * Goal: a static program, which a preload cannot reach, is left alone and reported. */
#include "work.h"
int main(int argc, char **argv) {
    work_begin(argc, argv);
    while (work_more()) work_sleep_us(5000), work_tick();
    return work_end();
}
