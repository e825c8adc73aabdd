"""Two processes that share a SQLite database in WAL mode: its index is memory that both map, its locks are record locks. Each commits
numbered transactions and notes what it committed in a log of its own, rounds until DIR/stop exists.

usage: wal.py DIR"""
import os, sqlite3, sys, time

directory = sys.argv[1]


def path(name):
    return os.path.join(directory, name)


def fail(what):
    with open(path("result"), "a") as f:
        f.write("FAIL wal.py: %s\n" % what)
    print(what, file=sys.stderr, flush=True)
    os._exit(1)


def need(right, what):
    if not right:
        fail(what)


def connect():
    database = sqlite3.connect(path("db"), timeout=60, isolation_level=None)
    mode = database.execute("pragma journal_mode=wal").fetchone()[0]
    need(mode == "wal", "the journal is %s" % mode)
    database.execute("pragma synchronous=normal")
    database.execute("pragma wal_autocheckpoint=50")
    return database


def check(database, committed, who):
    """One snapshot: no gap, sums that agree, nothing lost that this process has committed."""
    database.execute("begin")
    sums = dict(database.execute("select writer, total from sums"))
    for writer, most, count, total in database.execute(
        "select writer, max(n), count(*), sum(length(body) + n) from items group by writer"
    ):
        need(most == count, "writer %d: %d of %d" % (writer, count, most))
        need(total == sums[writer], "writer %d: the sum is %d, the items give %d" % (writer, sums[writer], total))
        if writer == who:
            need(most == committed, "writer %d committed %d, there are %d" % (writer, committed, most))
    database.execute("commit")


def writer(who, progress):
    database = connect()
    log = open(path("committed%d" % who), "w")
    n = 0
    while not os.path.exists(path("stop")):
        n += 1
        body = ("%d-%d " % (who, n)) * (1 + n % 97)
        database.execute("begin immediate")
        database.execute("insert into items values (?, ?, ?)", (who, n, body))
        database.execute("update sums set total = total + ? where writer = ?", (len(body) + n, who))
        database.execute("commit")
        log.write("%d\n" % n)
        log.flush()
        if n % 20 == 0:
            check(database, n, who)
        if progress:
            progress.seek(0)
            progress.write("%-20d\n" % n)
            progress.flush()
        time.sleep(0.002)
    database.close()


def main():
    database = connect()
    database.execute("create table items (writer int, n int, body text, primary key (writer, n))")
    database.execute("create table sums (writer int primary key, total int)")
    database.executemany("insert into sums values (?, 0)", [(0,), (1,)])
    database.close()
    child = os.fork()
    if child == 0:
        writer(1, None)
        os._exit(0)
    with open(path("progress"), "w") as progress:
        writer(0, progress)
    need(os.waitpid(child, 0) == (child, 0), "the other process did not end well")
    database = connect()
    need(database.execute("pragma integrity_check").fetchall() == [("ok",)], "integrity_check")
    for who in (0, 1):
        with open(path("committed%d" % who)) as log:
            numbers = [int(line) for line in log]
        need(numbers == list(range(1, len(numbers) + 1)), "the log of %d has a gap" % who)
        check(database, len(numbers), who)
    database.close()
    with open(path("result"), "w") as f:
        f.write("ok\n")


try:
    main()
except Exception as error:
    fail(repr(error))
