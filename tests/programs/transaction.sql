-- A long transaction whose result is one line. The journal lies beside the database.
PRAGMA journal_mode = DELETE;
PRAGMA cache_size = 200;
CREATE TABLE item (id INTEGER PRIMARY KEY, part INTEGER, text TEXT, value REAL);
BEGIN;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500000)
  INSERT INTO item SELECT i, i * 7919 % 101, printf('text %d', i * 31 % 1009), i * 0.5 FROM n;
COMMIT;
CREATE INDEX by_part ON item (part, text);
BEGIN;
UPDATE item SET value = value + part WHERE part % 3 = 0;
DELETE FROM item WHERE id % 17 = 0;
WITH RECURSIVE n(i) AS (SELECT 1000001 UNION ALL SELECT i + 1 FROM n WHERE i < 1300000)
  INSERT INTO item SELECT i, i * 104729 % 97, hex(i * 65537), i * 0.25 FROM n;
UPDATE item SET text = text || '+' WHERE part % 5 = 1;
SAVEPOINT half;
DELETE FROM item WHERE part < 50;
ROLLBACK TO half;
COMMIT;
CREATE TABLE summary AS SELECT part, count(*) AS n, sum(value) AS total, min(text) AS low, max(text) AS high FROM item GROUP BY part;
BEGIN;
UPDATE item SET value = value - (SELECT n FROM summary WHERE summary.part = item.part);
COMMIT;
PRAGMA integrity_check;
SELECT 'result', count(*), sum(value), sum(length(text)), (SELECT sum(total) FROM summary), (SELECT group_concat(low) FROM summary WHERE part < 5) FROM item;
