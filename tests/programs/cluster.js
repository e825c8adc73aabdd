// HTTP server of a master and two workers that serves what http_client.py wants. Each write goes over the channel to the master, which
// demands that a load's numbers have no gap and confirms before the worker answers. A worker that ends is replaced.
//
// usage: node cluster.js PORT
const cluster = require('cluster'), crypto = require('crypto'), http = require('http');

function master() {
  const last = new Map(), started = new Map();
  const fail = what => { console.error('FAIL cluster.js:', what); process.exit(1); };
  cluster.on('message', (worker, { id, w, n }) => {
    if (n !== undefined) {
      if (n !== (last.get(w) || 0) + 1) fail(`load ${w}: ${n} after ${last.get(w)}`);
      last.set(w, n);
    }
    worker.send({ id, n: last.get(w) || 0 });
  });
  const fork = () => { const worker = cluster.fork(); started.set(worker.id, worker.process.pid); };
  cluster.on('exit', worker => {
    if (worker.process.pid !== started.get(worker.id)) fail('a worker ended with another pid');
    console.error(`worker ${worker.process.pid} ended`);
    fork();
  });
  for (let i = 0; i < 2; i++) fork();
}

function worker(port) {
  const bodies = [], waiting = new Map();
  for (let i = 1; i <= 8; i++)
    bodies[i] = crypto.createHash('md5').update(`f${i}`).digest('hex').repeat(200 * i * i) + '\n';
  let ids = 0;
  process.on('message', ({ id, n }) => { waiting.get(id)(n); waiting.delete(id); });
  const ask = question => new Promise(answer => {
    waiting.set(++ids, answer);
    process.send({ id: ids, ...question });
  });
  http.createServer(async (request, response) => {
    const url = new URL(request.url, 'http://x'), w = url.searchParams.get('w'), n = url.searchParams.get('n');
    if (url.pathname === '/last') return response.end(String(await ask({ w })));
    const body = bodies[+url.pathname.slice(2)];
    if (!body) return response.writeHead(404).end();
    if (n !== null) await ask({ w, n: +n });
    response.end(body);
  }).listen(port, '0.0.0.0');
}

if (cluster.isPrimary) master(); else worker(+process.argv[2]);
