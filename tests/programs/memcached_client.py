"""Client of memcached: values that can be computed, over several connections, so that several threads serve them.

usage: memcached_client.py HOST PORT ORDER ..."""
import sys

sys.dont_write_bytecode = True
import hashlib, service_client, socket

KEYS, CONNECTIONS = 5000, 4


def value(name):
    return (hashlib.md5(name.encode()).hexdigest() * (1 + 7 * len(name) % 40)).encode()


class Connection:
    def __init__(self, host, port):
        self.socket = socket.create_connection((host, port), timeout=20)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stream = self.socket.makefile("rb")

    def line(self):
        line = self.stream.readline()
        if not line.endswith(b"\r\n"):
            raise EOFError("the server closed the connection")
        return line[:-2]

    def set(self, pairs):
        self.socket.sendall(b"".join(b"set %s 5 0 %d\r\n%s\r\n" % (k.encode(), len(v), v) for k, v in pairs))
        for name, _ in pairs:
            said = self.line()
            if said != b"STORED":
                sys.exit("set %s: %r" % (name, said))

    def get(self, names):
        self.socket.sendall(b"get %s\r\n" % b" ".join(n.encode() for n in names))
        found = {}
        while True:
            words = self.line().split()
            if words == [b"END"]:
                return found
            data = self.stream.read(int(words[3]) + 2)
            if words[0] != b"VALUE" or words[2] != b"5" or not data.endswith(b"\r\n"):
                sys.exit("get: %r" % words)
            found[words[1].decode()] = data[:-2]


class Client:
    def __init__(self, host, port):
        self.address = (host, int(port))

    def connect(self):
        self.connections = [Connection(*self.address) for _ in range(CONNECTIONS)]

    def up(self):
        for connection in self.connections:
            connection.get(["up"])

    def fill(self):
        names = ["key:%d" % i for i in range(KEYS)]
        for start in range(0, KEYS, 250):
            part = [(n, value(n)) for n in names[start : start + 250]]
            self.connections[start // 250 % CONNECTIONS].set(part)

    def put(self, load, n):
        name = "w:%d:%d" % (load, n)
        self.connections[n % CONNECTIONS].set([(name, value(name)), ("last:%d" % load, b"%d" % n)])
        # Another thread has it too, and old values are still there.
        names = [name, "key:%d" % (n * 7 % KEYS)]
        if self.connections[(n + 1) % CONNECTIONS].get(names) != {k: value(k) for k in names}:
            sys.exit("%s: other values than were set" % names)

    def expect(self, names):
        for start in range(0, len(names), 100):
            part = names[start : start + 100]
            found = self.connections[start // 100 % CONNECTIONS].get(part)
            wrong = [n for n in part if found.get(n) != value(n)]
            if wrong:
                sys.exit("%s are wrong, of the first there is %r" % (wrong, found.get(wrong[0])))

    def verify(self, at_least):
        self.expect(["key:%d" % i for i in range(KEYS)])
        last = []
        for load in range(len(at_least)):
            n = int(self.connections[0].get(["last:%d" % load]).get("last:%d" % load, b"0"))
            # Write n+1 may have come without its number.
            self.expect(["w:%d:%d" % (load, i) for i in range(1, n + 1)])
            last.append(n)
        return last


if __name__ == "__main__":
    service_client.main(Client(*sys.argv[1:3]), sys.argv[3], sys.argv[4:])
