"""What clients of servers under test have in common: the orders up, fill, load and verify. A client has the methods

connect()             a new connection
up()                  raises unless the server answers
fill()                contents that never change
put(load, n)          write number n of a load; returns when it is acknowledged, raises OSError when the connection is lost
verify(at_least)      checks all contents; the last number of each load"""
import sys, time, os


def load(client, number, log):
    n = 0
    client.connect()
    with open(log, "a") as out:
        while not os.path.exists(log + ".stop"):
            try:
                client.put(number, n + 1)
            except (OSError, EOFError) as error:
                out.write("%d lost %.6f %s\n" % (n, time.time(), error))
                return
            n += 1
            out.write("%d acknowledged %.6f\n" % (n, time.time()))
            out.flush()
            time.sleep(0.001)


def main(client, order, rest):
    if order == "up":
        try:
            client.connect()
            client.up()
        except (OSError, EOFError) as error:
            sys.exit("not up: %s" % error)
    elif order == "fill":
        client.connect()
        client.fill()
    elif order == "load":
        load(client, int(rest[0]), rest[1])
    elif order == "verify":
        client.connect()
        print(*client.verify([int(n) for n in rest]))
    else:
        sys.exit("no such order: %s" % order)
