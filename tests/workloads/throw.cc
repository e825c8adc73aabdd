/* flags: -O2 -pthread -std=c++17
 * Goal: C++ exceptions unwind through callbacks of libc, through threads and past system calls; thread_local objects
 * are destroyed. Method: throw inside qsort and bsearch comparators, in threads, from a signal-interrupted loop. */
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <fstream>
#include <future>
#include <map>
#include <stdexcept>
#include <string>
#include <thread>
#include <unistd.h>
#include <vector>

static std::string directory;
static unsigned long rounds;
static std::atomic<int> destroyed{0};
static void result(const std::string &text) { std::ofstream(directory + "/result") << text << "\n"; }
static void need(bool right, const char *what) {
    if (right) return;
    result("FAIL throw.cc round " + std::to_string(rounds) + ": " + what);
    std::_Exit(1);
}
/* In place: a reader must never see an empty file. */
static void progress(unsigned long n) {
    static const int fd = open((directory + "/progress").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    char text[32];
    int length = snprintf(text, sizeof text, "%-20lu\n", n);
    need(fd >= 0 && pwrite(fd, text, static_cast<size_t>(length), 0) == length, "progress");
}
struct PerThread { std::map<int, std::string> items; ~PerThread() { destroyed++; } };
static thread_local PerThread local;
struct Guard { int &count; explicit Guard(int &c) : count(c) { count++; } ~Guard() { count--; } };

static int live;
static int comparator(const void *a, const void *b) {
    Guard guard(live);
    int x = *static_cast<const int *>(a), y = *static_cast<const int *>(b);
    if (x == 13 || y == 13) { usleep(200); throw std::runtime_error("thirteen"); }
    return x - y;
}
static int recursive(int depth) {
    Guard guard(live);
    std::string text(static_cast<size_t>(depth), 'x');
    if (!depth) { getppid(); throw std::out_of_range("bottom"); }
    try { return recursive(depth - 1) + static_cast<int>(text.size()); }
    catch (const std::logic_error &) { if (depth % 5) throw; throw std::out_of_range(text); }
}

int main(int argc, char **argv) {
    if (argc < 2) return 2;
    directory = argv[1];
    while (access((directory + "/stop").c_str(), F_OK) != 0) {
        std::vector<int> numbers;
        for (int i = 0; i < 40; i++) numbers.push_back((i * 7 + static_cast<int>(rounds)) % 40);
        bool caught = false;
        try { std::qsort(numbers.data(), numbers.size(), sizeof(int), comparator); }
        catch (const std::runtime_error &e) { caught = !std::strcmp(e.what(), "thirteen"); }
        need(caught && live == 0, "an exception out of a qsort comparator");
        std::string text;
        try { recursive(30); } catch (const std::out_of_range &e) { text = e.what(); }
        need(text == std::string(30, 'x') && live == 0, "an exception through 30 frames");
        int before = destroyed;
        std::thread([] { for (int i = 0; i < 100; i++) local.items[i] = std::string(50, static_cast<char>('a' + i % 26)); }).join();
        need(destroyed == before + 1, "a thread_local object was not destroyed");
        auto future = std::async(std::launch::async, []() -> int { usleep(500); throw std::invalid_argument("elsewhere"); });
        caught = false;
        try { future.get(); } catch (const std::invalid_argument &e) { caught = !std::strcmp(e.what(), "elsewhere"); }
        need(caught, "an exception carried by a future");
        caught = false;
        try { std::vector<char> too_much(static_cast<size_t>(1) << 60); } catch (const std::bad_alloc &) { caught = true; } catch (const std::length_error &) { caught = true; }
        need(caught, "bad_alloc");
        rounds++;
        progress(rounds);
    }
    need(rounds > 0, "no round was finished");
    result("ok");
}
