"""A Python program that checks itself: threads, a growing dict and a file, rounds until DIR/stop exists.

usage: work.py DIR"""
import ctypes, hashlib, os, queue, sys, threading, time

directory = sys.argv[1]
try:
    import numpy
except ImportError:
    numpy = None


def path(name):
    return os.path.join(directory, name)


def fail(what):
    with open(path("result"), "w") as f:
        f.write("FAIL work.py: %s\n" % what)
    print(what, file=sys.stderr, flush=True)
    os._exit(1)


def need(right, what):
    if not right:
        fail(what)


table, digest, requests, answers = {}, hashlib.sha256(), queue.Queue(4), queue.Queue()
local = threading.local()


def worker(number):
    try:
        local.sum = 0
        while True:
            n = requests.get()
            if n is None:
                return
            local.sum += n
            answers.put((n, sum(i * i for i in range(n % 500)), number))
    except BaseException as error:
        fail("worker %d: %r" % (number, error))


def main():
    workers = [threading.Thread(target=worker, args=(i,)) for i in range(3)]
    for thread in workers:
        thread.start()
    matrix = numpy.arange(400.0).reshape(20, 20) if numpy else None
    generator = (i * 7 % 1000003 for i in range(10**9))
    last_time, rounds = time.monotonic(), 0
    with open(path("log"), "w+") as log, open(path("progress"), "w") as progress:
        while not os.path.exists(path("stop")):
            rounds += 1
            for i in range(30):
                table["key %d.%d" % (rounds, i)] = (rounds, i, str(rounds) * 5)
            digest.update(b"%d" % rounds)
            log.write("round %d %s\n" % (rounds, digest.hexdigest()))
            log.flush()
            for i in range(8):
                requests.put(rounds + i)
            got = dict(answers.get(timeout=20)[:2] for _ in range(8))
            need(got == {rounds + i: sum(k * k for k in range((rounds + i) % 500)) for i in range(8)}, "answers of the threads")
            need(len(table) == rounds * 30, "the table has %d entries in round %d" % (len(table), rounds))
            some = (rounds * 7919) % rounds + 1
            need(table["key %d.%d" % (some, 29)] == (some, 29, str(some) * 5), "an entry changed")
            need(next(generator) == (rounds - 1) * 7 % 1000003, "the generator lost its place")
            if rounds % 50 == 0:
                check, position = hashlib.sha256(), log.tell()
                log.seek(0)
                for number, line in enumerate(log, 1):
                    check.update(b"%d" % number)
                    need(line == "round %d %s\n" % (number, check.hexdigest()), "line %d of the log" % number)
                need(number == rounds, "the log has %d lines in round %d" % (number, rounds))
                need(log.seek(0, 2) == position, "length of the log")
            if matrix is not None:
                need(abs(numpy.trace(matrix @ numpy.linalg.pinv(matrix)) - 2.0) < 1e-6, "numpy")
            before = time.monotonic()
            time.sleep(0.002)
            need(time.monotonic() - before >= 0.002, "sleep ended early")
            need(before >= last_time, "monotonic time went back")
            last_time = before
            progress.seek(0)
            progress.write("%-20d\n" % rounds)
            progress.flush()
    for thread in workers:
        requests.put(None)
    for thread in workers:
        thread.join(20)
        need(not thread.is_alive(), "a thread does not end")
    need(rounds > 0 and ctypes.CDLL(None).getpid() == os.getpid(), "end")
    with open(path("result"), "w") as f:
        f.write("ok\n")


try:
    main()
except Exception as error:
    fail(repr(error))
