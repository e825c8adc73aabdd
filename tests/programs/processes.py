"""A Python program of many processes that checks itself: a pool, queues, a manager, shared memory and a shell's pipeline, rounds until
DIR/stop exists.

usage: processes.py DIR"""
import multiprocessing, os, subprocess, sys
from multiprocessing import shared_memory

directory = sys.argv[1]


def path(name):
    return os.path.join(directory, name)


def fail(what):
    with open(path("result"), "w") as f:
        f.write("FAIL processes.py: %s\n" % what)
    print(what, file=sys.stderr, flush=True)
    os._exit(1)


def need(right, what):
    if not right:
        fail(what)


def square(n):
    return n * n, os.getpid()


def echo(requests, answers, counter, name):
    block = shared_memory.SharedMemory(name=name)
    for item in iter(requests.get, None):
        with counter.get_lock():
            counter.value += 1
        block.buf[item % 4096] = item % 251
        answers.put((item, os.getpid(), os.getppid()))
    block.close()


def main():
    context = multiprocessing.get_context("fork")
    block = shared_memory.SharedMemory(create=True, size=4096)
    requests, answers, counter = context.Queue(), context.Queue(), context.Value("l", 0)
    workers = [context.Process(target=echo, args=(requests, answers, counter, block.name)) for _ in range(2)]
    for worker in workers:
        worker.start()
    pids = {worker.pid for worker in workers}
    rounds = 0
    with context.Pool(2) as pool, context.Manager() as manager, open(path("progress"), "w") as progress:
        table = manager.dict()
        members = {worker.pid for worker in pool._pool}
        while not os.path.exists(path("stop")):
            rounds += 1
            got = pool.map(square, range(rounds, rounds + 8))
            need([n for n, _ in got] == [n * n for n in range(rounds, rounds + 8)], "the pool's answers")
            need(set(pid for _, pid in got) <= members, "the pool has other processes")
            for i in range(4):
                requests.put(rounds + i)
            back = [answers.get(timeout=20) for _ in range(4)]
            need(sorted(item for item, _, _ in back) == list(range(rounds, rounds + 4)), "the workers' answers")
            need(all(pid in pids and parent == os.getpid() for _, pid, parent in back), "the workers' ids")
            need(counter.value == rounds * 4, "the counter is %d in round %d" % (counter.value, rounds))
            need(all(block.buf[(rounds + i) % 4096] == (rounds + i) % 251 for i in range(4)), "shared memory")
            table[rounds % 100] = rounds
            need(len(table) == min(rounds, 100) and table[rounds % 100] == rounds, "the manager's table")
            if rounds % 8 == 0:
                line = "seq %d | sort -rn | head -n 3 | tr '\\n' , | cat" % rounds
                said = subprocess.run(["/bin/bash", "-c", line], capture_output=True, timeout=30)
                wanted = "".join("%d," % n for n in range(rounds, rounds - 3, -1)).encode()
                need(said.stdout == wanted and said.returncode == 0, "the pipeline said %r" % (said,))
            progress.seek(0)
            progress.write("%-20d\n" % rounds)
            progress.flush()
        for _ in workers:
            requests.put(None)
        for worker in workers:
            worker.join(20)
            need(worker.exitcode == 0, "a worker ended with %r" % worker.exitcode)
    block.close()
    block.unlink()
    need(rounds > 0, "no rounds")
    with open(path("result"), "w") as f:
        f.write("ok\n")


try:
    main()
except Exception as error:
    fail(repr(error))
