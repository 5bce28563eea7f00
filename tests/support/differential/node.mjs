// Runs programs in Node: one as a JSON string on each line of the input, its log as a JSON array on each line of the output.
//
// Each starts in an immediate, as one starts in a task of nbloop, and the next one starts when nothing is left of it: no immediate, no timeout, and,
// because that is looked at in an immediate of its own, no microtask either.
import { readFileSync } from "node:fs";

class Thrown extends Error {
  constructor(number) {
    super();
    this.number = number;
  }
}

const THENABLES = Symbol("thenable");
const MOST_CALLS = 60; // of thenables, in one program: they could resolve each other for ever
let events, calls, outstanding;

const log = (name, ...values) => void events.push([name, ...values.map(describe)].join(" "));

function describe(value) {
  if (Array.isArray(value)) return `[${value.map(describe).join(", ")}]`;
  if (value instanceof Thrown) return `E${value.number}`;
  if (value instanceof AggregateError) return `AggregateError${describe(value.errors)}`;
  if (value instanceof Error) return value.name;
  if (value instanceof Promise) return "promise";
  if (value?.[THENABLES]) return "thenable";
  if (value?.status) return `${value.status} ${describe(value.status === "fulfilled" ? value.value : value.reason)}`;
  return String(value);
}

const guarded = (callback) => () => {
  try {
    callback();
  } catch (error) {
    log("uncaught", error);
  }
};

process.on("unhandledRejection", (reason) => log("unhandled", reason));

function start(source) {
  const p = [], r = [], t = [];
  events = [];
  calls = 0;
  outstanding = new Set();

  const make = (k, executor) =>
    new Promise((resolve, reject) => {
      r[k] = { resolve, reject };
      executor();
    });
  const later = (k, schedule, cancel, callback) => {
    const run = guarded(callback);
    const id = schedule(() => {
      outstanding.delete(id);
      run();
    });
    outstanding.add(id);
    t[k] = () => {
      cancel(id);
      outstanding.delete(id);
    };
  };
  const names = {
    Thrown, log, p, r, make,
    defer: (k) => make(k, () => {}),
    call: (callback) => new Promise((resolve) => resolve(callback())),
    tick: (callback) => process.nextTick(guarded(callback)),
    micro: (callback) => queueMicrotask(guarded(callback)),
    immediate: (k, callback) => later(k, setImmediate, clearImmediate, callback),
    timeout: (k, ms, callback) => later(k, (run) => setTimeout(run, ms), clearTimeout, callback),
    clear: (k) => t[k]?.(),
    thenable: (number, k, mode, callback) => ({
      [THENABLES]: true,
      get then() {
        if (mode === "read") log(number);
        if (mode === "broken") throw new Thrown(number);
        if (mode === "inert") return number;
        return (resolve, reject) => {
          if (calls++ >= MOST_CALLS) return;
          r[k] = { resolve, reject };
          callback();
        };
      },
    }),
  };
  guarded(new Function("v", ...Object.keys(names), source).bind(null, undefined, ...Object.values(names)))();
}

const sources = readFileSync(0, "utf8").split("\n").filter(Boolean).map((line) => JSON.parse(line));

function next() {
  if (outstanding?.size) return setTimeout(next, 1);
  if (events) console.log(JSON.stringify(events));
  if (sources.length === 0) return;
  start(sources.shift());
  setImmediate(next);
}

setImmediate(next);
