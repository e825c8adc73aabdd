"""Client of HTTP servers that serve /f1 to /f8, each with known contents.

usage: http_client.py HOST PORT ORDER ...

A write is a request with the load and its number as query. /last?w=LOAD answers with the last number that the server recorded; a
server of files alone has no such page: then its log is verified by others."""
import sys

sys.dont_write_bytecode = True
import hashlib, http.client, service_client

FILES = 8


def body(i):
    return hashlib.md5(b"f%d" % i).hexdigest().encode() * (200 * i * i) + b"\n"


class Client:
    def __init__(self, host, port):
        self.host, self.port = host, int(port)

    def connect(self):
        self.http = http.client.HTTPConnection(self.host, self.port, timeout=20)

    def get(self, path):
        try:
            self.http.request("GET", path)
            answer = self.http.getresponse()
            return answer.status, answer.read()
        except http.client.HTTPException as error:
            raise ConnectionError("no whole answer: %r" % error)

    def file(self, i, query=""):
        status, got = self.get("/f%d%s" % (i, query))
        if status != 200 or got != body(i):
            sys.exit("/f%d%s: status %d, %d bytes, not what it should be" % (i, query, status, len(got)))

    def up(self):
        self.file(1)

    def fill(self):
        self.verify([])

    def put(self, load, n):
        self.file(1 + n % FILES, "?w=%d&n=%d" % (load, n))

    def verify(self, at_least):
        for i in range(1, FILES + 1):
            self.file(i)
        last = []
        for load, wanted in enumerate(at_least):
            # Workers answer; a new connection may be another worker's.
            self.connect()
            status, got = self.get("/last?w=%d" % load)
            last.append(int(got) if status == 200 else wanted)
        return last


if __name__ == "__main__":
    service_client.main(Client(*sys.argv[1:3]), sys.argv[3], sys.argv[4:])
