"""A small Redis client that fills, writes on and verifies by content.

usage: redis_client.py fill HOST PORT KEYS
       redis_client.py write HOST PORT NUMBER LOG [PAUSE_MS]   numbered writes until LOG.stop exists; LOG: what was acknowledged
       redis_client.py verify HOST PORT KEYS WRITERS   every key, and of each writer a gapless run of writes; prints JSON
       redis_client.py reload HOST PORT              the server forgets its memory and reads its append-only file"""
import hashlib, json, os, socket, sys, time


class Redis:
    def __init__(self, host, port, timeout=60):
        self.socket = socket.create_connection((host, int(port)), timeout=timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stream = self.socket.makefile("rb")

    def send(self, *commands):
        out = []
        for command in commands:
            out.append(b"*%d\r\n" % len(command))
            for word in command:
                word = word if isinstance(word, bytes) else str(word).encode()
                out.append(b"$%d\r\n%s\r\n" % (len(word), word))
        self.socket.sendall(b"".join(out))

    def reply(self):
        line = self.stream.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the server closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"-":
            raise RuntimeError(rest.decode())
        if kind == b":":
            return int(rest)
        if kind == b"$":
            n = int(rest)
            if n < 0:
                return None
            data = self.stream.read(n + 2)
            if len(data) != n + 2:
                raise ConnectionError("the server closed the connection")
            return data[:-2]
        if kind == b"*":
            return [self.reply() for _ in range(int(rest))]
        return rest

    def __call__(self, *command):
        self.send(command)
        return self.reply()


def value(name):
    return (hashlib.md5(name.encode()).hexdigest() * (1 + len(name) % 3)).encode()


def fill(redis, keys):
    for start in range(0, keys, 2000):
        names = ["key:%d" % i for i in range(start, min(start + 2000, keys))]
        redis.send(*[("SET", n, value(n)) for n in names])
        for _ in names:
            if redis.reply() != b"OK":
                sys.exit("SET was refused")


def write(redis, number, log, pause_ms=0):
    done = int(redis("GET", "last:%s" % number) or 0)
    with open(log, "a") as out:
        while not os.path.exists(log + ".stop"):
            n = done + 1
            name = "w:%s:%d" % (number, n)
            try:
                redis.send(("MULTI",), ("SET", name, value(name)), ("SET", "last:%s" % number, n), ("EXEC",))
                if [redis.reply() for _ in range(4)][3] != [b"OK", b"OK"]:
                    sys.exit("EXEC was refused")
            except (OSError, ConnectionError) as error:
                out.write("%d lost %.6f %s\n" % (done, time.time(), error))
                return
            done = n
            out.write("%d acknowledged %.6f\n" % (done, time.time()))
            out.flush()
            if pause_ms:
                time.sleep(pause_ms / 1000)


def expect(redis, names):
    for start in range(0, len(names), 2000):
        part = names[start : start + 2000]
        for name, got in zip(part, redis("MGET", *part)):
            if got != value(name):
                sys.exit("%s is %r, wanted %r" % (name, got, value(name)))


def verify(redis, keys, writers):
    expect(redis, ["key:%d" % i for i in range(keys)])
    last = {}
    for w in range(writers):
        n = int(redis("GET", "last:%d" % w) or 0)
        expect(redis, ["w:%d:%d" % (w, i) for i in range(1, n + 1)])
        if redis("EXISTS", "w:%d:%d" % (w, n + 1)):
            sys.exit("writer %d: a write after the last one" % w)
        last[w] = n
    size, wanted = redis("DBSIZE"), keys + sum(last.values()) + sum(1 for n in last.values() if n)
    if size != wanted:
        sys.exit("%d keys, wanted %d" % (size, wanted))
    print(json.dumps({"keys": keys, "last": [last[w] for w in range(writers)]}))


def main():
    what, host, port = sys.argv[1:4]
    redis = Redis(host, port)
    if what == "fill":
        fill(redis, int(sys.argv[4]))
    elif what == "write":
        write(redis, sys.argv[4], sys.argv[5], *map(float, sys.argv[6:7]))
    elif what == "verify":
        verify(redis, int(sys.argv[4]), int(sys.argv[5]))
    elif what == "reload":
        print(redis("DEBUG", "LOADAOF").decode())
    else:
        sys.exit(__doc__)


main()
