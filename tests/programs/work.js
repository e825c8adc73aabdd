// A node program that checks itself: a timer, an HTTP server and requests to it, rounds until DIR/stop exists.
'use strict';
const fs = require('fs'), http = require('http'), crypto = require('crypto'), path = require('path');
const directory = process.argv[2];
const file = (name) => path.join(directory, name);
let rounds = 0, ticks = 0, pending = 0, ended = false;
const table = new Map();

function fail(what) {
  if (ended) return;
  ended = true;
  fs.writeFileSync(file('result'), `FAIL work.js round ${rounds}: ${what}\n`);
  console.error(what);
  process.exit(1);
}
process.on('uncaughtException', (e) => fail(e.stack));
process.on('unhandledRejection', (e) => fail(e && e.stack));
const digest = (n) => crypto.createHash('sha256').update(String(n)).digest('hex');

const server = http.createServer((request, response) => {
  const n = Number(request.url.slice(1));
  response.end(JSON.stringify({ n, digest: digest(n), entries: table.size }));
});

function ask(n) {
  return new Promise((done, lost) => {
    const request = http.get({ host: '127.0.0.1', port: server.address().port, path: `/${n}`, agent: false }, (response) => {
      let text = '';
      response.on('data', (d) => (text += d));
      response.on('end', () => done(JSON.parse(text)));
      response.on('error', lost);
    });
    request.on('error', lost);
    request.setTimeout(20000, () => lost(new Error('no answer')));
  });
}

const progress = fs.openSync(file('progress'), 'w');
let last = process.hrtime.bigint();
const timer = setInterval(() => {
  ticks++;
  const now = process.hrtime.bigint();
  if (now < last) fail('monotonic time went back');
  last = now;
}, 10);

async function work() {
  while (!fs.existsSync(file('stop'))) {
    rounds++;
    for (let i = 0; i < 20; i++) table.set(`${rounds}.${i}`, { round: rounds, text: 'x'.repeat(i) });
    if (table.size !== rounds * 20) fail(`the table has ${table.size} entries`);
    const some = ((rounds * 7919) % rounds) + 1;
    if (table.get(`${some}.19`).round !== some) fail('an entry changed');
    const answer = await ask(rounds);
    if (answer.n !== rounds || answer.digest !== digest(rounds) || answer.entries !== table.size) fail(`answer ${JSON.stringify(answer)}`);
    const hash = await new Promise((done) => crypto.pbkdf2('p', String(rounds), 50, 16, 'sha256', (e, k) => (e ? fail(e) : done(k.toString('hex')))));
    if (hash !== crypto.pbkdf2Sync('p', String(rounds), 50, 16, 'sha256').toString('hex')) fail('a pool thread computed nonsense');
    await fs.promises.writeFile(file('written'), digest(rounds));
    if ((await fs.promises.readFile(file('written'), 'utf8')) !== digest(rounds)) fail('the file differs');
    await new Promise((done) => setTimeout(done, 3));
    fs.writeSync(progress, String(rounds).padEnd(20) + '\n', 0);
  }
  if (ticks < 2) fail('the timer is dead');
  clearInterval(timer);
  server.close();
  fs.writeFileSync(file('result'), 'ok\n');
}
server.listen(0, '127.0.0.1', work);
