"""A shell with job control on a pseudo-terminal of ours: a pipeline of five in the background and a job in the foreground are stopped
and let go on, rounds until DIR/stop exists.

usage: jobs.py DIR"""
import os, pty, re, select, sys, time

directory = sys.argv[1]
seen = b""


def path(name):
    return os.path.join(directory, name)


def fail(what):
    with open(path("result"), "w") as f:
        f.write("FAIL jobs.py: %s; seen: %r\n" % (what, seen[-400:]))
    print(what, file=sys.stderr, flush=True)
    os._exit(1)


def read_until(fd, pattern, what):
    """What the terminal shows up to `pattern`."""
    global seen
    until = time.monotonic() + 20
    while True:
        found = re.search(pattern, seen)
        if found:
            shown, seen = seen[: found.end()], seen[found.end() :]
            return shown
        if time.monotonic() > until:
            fail(what)
        if select.select([fd], [], [], 0.1)[0]:
            data = os.read(fd, 4096)
            if not data:
                fail("end of file: " + what)
            seen += data


def say(fd, text):
    os.write(fd, text.encode())


def order(fd, text, pattern, what):
    say(fd, text + "\n")
    shown = read_until(fd, pattern.encode(), what)
    read_until(fd, rb"READY> ", what + ": no prompt")
    return shown


def main():
    pid, fd = pty.fork()
    if pid == 0:
        os.environ.update({"PS1": "READY> ", "TERM": "dumb", "HISTFILE": "/dev/null"})
        os.chdir(directory)
        os.execv("/bin/bash", ["bash", "--norc", "--noediting", "-i"])
    read_until(fd, rb"READY> ", "the first prompt")
    # It says when all five have started: a process that is stopped before that is not holo's yet.
    source = "python3 -c 'import time; print(1, flush=True); time.sleep(1000)'"
    say(fd, source + " | cat | sed -u s/1/up/ | grep --line-buffered up | cat &\n")
    read_until(fd, rb"(\n|> )up\r\n", "the pipeline")
    say(fd, "\n")
    read_until(fd, rb"READY> ", "the prompt after the pipeline")
    rounds = 0
    with open(path("progress"), "w") as progress:
        while rounds == 0 or not os.path.exists(path("stop")):
            rounds += 1
            order(fd, "kill -STOP %1; until jobs | grep -q Stopped; do sleep 0.01; done; jobs", r"\[1\]\S?\s+Stopped[^\n]*sleep.1000[^\n]*\r\n", "the stop")
            say(fd, "cat\n")
            read_until(fd, rb"cat\r\n", "cat")
            say(fd, "first %d\n" % rounds)
            read_until(fd, b"first %d\r\nfirst %d\r\n" % (rounds, rounds), "what cat says")
            say(fd, "\x1a")
            read_until(fd, rb"\[2\]\+\s+Stopped\s+cat\r\n", "Ctrl-Z")
            read_until(fd, rb"READY> ", "the prompt after Ctrl-Z")
            time.sleep(0.02)
            shown = order(fd, "jobs; echo done", r"\ndone\r\n", "the jobs")
            if len(re.findall(rb"Stopped", shown)) != 2:
                fail("two are stopped: %r" % shown)
            order(fd, "bg %1", r"\[1\]\S?\s+python3[^\n]*&\r\n", "bg")
            shown = order(fd, "jobs; echo done", r"\ndone\r\n", "the jobs")
            if not re.search(rb"\[1\]\S?\s+Running\s+python3", shown) or not re.search(rb"\[2\]\S?\s+Stopped\s+cat", shown):
                fail("one runs, one is stopped: %r" % shown)
            say(fd, "fg %2\n")
            read_until(fd, rb"fg %2\r\ncat\r\n", "fg")
            say(fd, "second %d\n" % rounds)
            read_until(fd, b"second %d\r\nsecond %d\r\n" % (rounds, rounds), "what cat says again")
            say(fd, "\x04")
            read_until(fd, rb"READY> ", "the end of cat")
            progress.seek(0)
            progress.write("%-20d\n" % rounds)
            progress.flush()
    order(fd, "kill %1; wait; echo over", r"\nover\r\n", "the end of the pipeline")
    say(fd, "exit\n")
    if os.waitpid(pid, 0)[1] != 0:
        fail("the shell's end")
    with open(path("result"), "w") as f:
        f.write("ok\n" if rounds else "no rounds\n")


main()
