"""Client of SQL servers, by their own command line clients. Accounts, tellers and branches have sums that must be equal, and
equal to that of the history, in which each load's numbers must be without a gap.

usage: sql_client.py postgres|mariadb HOST PORT ORDER ..."""
import sys

sys.dont_write_bytecode = True
import atexit, service_client, subprocess

ACCOUNTS, TELLERS, BRANCHES = 2000, 10, 2
PG = "/usr/lib/postgresql/15/bin/"
COMMANDS = {
    "postgres": PG + "psql -X -q -A -t -F , -v ON_ERROR_STOP=1 -U postgres -h %s -p %s -d postgres",
    "mariadb": "/usr/bin/mariadb --no-defaults --batch --skip-column-names --unbuffered --protocol=tcp -u root -h %s -P %s mysql",
}
TABLES = """
create table accounts (id int primary key, branch int not null, balance bigint not null, filler char(60) not null)%(engine)s;
create table tellers (id int primary key, balance bigint not null)%(engine)s;
create table branches (id int primary key, balance bigint not null)%(engine)s;
create table history (load_no int, n int, delta bigint not null, primary key (load_no, n))%(engine)s;
"""
BEGIN = {
    "postgres": "begin isolation level repeatable read; create extension if not exists amcheck;",
    "mariadb": "start transaction with consistent snapshot;",
}
CHECK = """
select 'sums', sum(balance) from accounts; select 'sums', sum(balance) from tellers;
select 'sums', sum(balance) from branches; select 'sums', coalesce(sum(delta), 0) from history;
select 'rows', count(*) from accounts where length(filler) > 10; select 'rows', count(distinct id) from accounts;
select 'load', load_no, max(n), count(*), sum(n) from history group by load_no order by load_no;
"""
# Of pgbench, which runs beside, and of every index in the database.
MORE = """
select 'pgbench', (select sum(abalance) from pgbench_accounts), (select sum(tbalance) from pgbench_tellers),
 (select sum(bbalance) from pgbench_branches), (select coalesce(sum(delta), 0) from pgbench_history);
select 'index', c.relname, bt_index_parent_check(c.oid, true) from pg_index i join pg_class c on c.oid = i.indexrelid
 join pg_am a on a.oid = c.relam where a.amname = 'btree' and c.relpersistence = 'p' and i.indisvalid;
"""


class Client:
    def __init__(self, kind, host, port):
        self.kind, self.host, self.port = kind, host, port
        self.command = (COMMANDS[kind] % (host, port)).split()

    def connect(self):
        pass

    def ask(self, text):
        done = subprocess.run(self.command, input=text.encode(), capture_output=True, timeout=60)
        if done.returncode != 0:
            raise ConnectionError(done.stderr.decode())
        return [line.replace("\t", ",").split(",") for line in done.stdout.decode().splitlines()]

    def up(self):
        if self.ask("select 40 + 2;") != [["42"]]:
            sys.exit("40 + 2 is wrong")

    def fill(self):
        sql = [TABLES % {"engine": " engine=innodb" if self.kind == "mariadb" else ""}, "begin;"]
        for name, rows in (("tellers", TELLERS), ("branches", BRANCHES)):
            sql += ["insert into %s values (%d, 0);" % (name, i) for i in range(rows)]
        rows = ["(%d, %d, 0, '%s')" % (i, i % BRANCHES, "filler%d" % i * 4) for i in range(ACCOUNTS)]
        self.ask("\n".join(sql) + "insert into accounts values " + ",".join(rows) + "; commit;")
        if self.kind == "postgres":
            self.pgbench("-i", "-s", "1").wait()

    def pgbench(self, *options):
        command = [PG + "pgbench", "-q", "-n", "-U", "postgres", "-h", self.host, "-p", self.port, *options, "postgres"]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def put(self, load, n):
        if not hasattr(self, "process"):
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(self.command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT)
            if self.kind == "postgres":
                atexit.register(self.pgbench("-c", "2", "-T", "600").kill)
        delta = (n * 7919 + load * 31) % 2001 - 1000
        # Always in this order of tables: no deadlocks between loads.
        text = "begin; update accounts set balance = balance + %d where id = %d;" % (delta, n * 17 % ACCOUNTS)
        text += " update tellers set balance = balance + %d where id = %d;" % (delta, n % TELLERS)
        text += " update branches set balance = balance + %d where id = %d;" % (delta, n % BRANCHES)
        text += " insert into history values (%d, %d, %d); commit; select 'done', %d;\n" % (load, n, delta, n)
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()
        said = self.process.stdout.readline().decode().strip().replace("\t", ",")
        if said != "done,%d" % n:
            raise ConnectionError("instead of a commit: %s" % said)

    def verify(self, at_least):
        rows = self.ask(BEGIN[self.kind] + CHECK + (MORE if self.kind == "postgres" else ""))
        sums = [row[1] for row in rows if row[0] == "sums"]
        if len(sums) != 4 or len(set(sums)) != 1:
            sys.exit("the sums differ: %s" % sums)
        if any(len(set(row[1:])) != 1 for row in rows if row[0] == "pgbench"):
            sys.exit("pgbench's sums differ: %s" % [row for row in rows if row[0] == "pgbench"])
        if [row[1] for row in rows if row[0] == "rows"] != [str(ACCOUNTS)] * 2:
            sys.exit("accounts are lost: %s" % rows)
        last = [0] * len(at_least)
        for _, load, most, count, total in (row for row in rows if row[0] == "load"):
            n = int(most)
            if int(count) != n or int(total) != n * (n + 1) // 2:
                sys.exit("load %s has a gap: %s of %s" % (load, count, most))
            last[int(load)] = n
        return last


if __name__ == "__main__":
    service_client.main(Client(*sys.argv[1:4]), sys.argv[4], sys.argv[5:])
