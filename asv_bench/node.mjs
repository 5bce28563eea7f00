// What Node.js needs for what `asv_bench.compare` sets beside nbloop. Each line on the standard input asks for one
// round; the answer is a line of JSON: ns to schedule and run one callback with an empty body, by name.
//
// As in the Python workloads, a burst is scheduled within a callback and then runs to its end. To Node's advantage a
// round is the median of five bursts in a row, after one that does not count, and all code has been compiled before
// the first round.
import { createInterface } from "node:readline";

const BURST = 1000;
const BURSTS = 5;

function nothing() {}

const workloads = {
  microtask(done) {
    const start = process.hrtime.bigint();
    for (let i = 0; i < BURST; i++) queueMicrotask(nothing);
    queueMicrotask(() => done(Number(process.hrtime.bigint() - start) / BURST));
  },
  immediate(done) {
    const start = process.hrtime.bigint();
    for (let i = 0; i < BURST; i++) setImmediate(nothing);
    setImmediate(() => done(Number(process.hrtime.bigint() - start) / BURST));
  },
};

function once(workload) {
  return new Promise((resolve) => setImmediate(() => workload(resolve)));
}

async function round(bursts) {
  const answer = {};
  for (const [name, workload] of Object.entries(workloads)) {
    await once(workload);
    const times = [];
    for (let i = 0; i < bursts; i++) times.push(await once(workload));
    answer[name] = times.sort((a, b) => a - b)[bursts >> 1];
  }
  return answer;
}

await round(100);
for await (const _line of createInterface({ input: process.stdin })) {
  console.log(JSON.stringify(await round(BURSTS)));
}
