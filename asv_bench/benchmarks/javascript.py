"""What do promises, and the timeouts and queues of the JavaScript view, cost?"""

from asv_bench import javascript, subprocesses, workloads
from asv_bench.drive import Asyncio, Nbloop
from asv_bench.measure import Probe, Sample, interleave, ratios
from nbloop.js import JS

from .common import ROUNDS, times_asyncio


class _View:
    """Both loops, neither running, and the view of one."""

    def setup(self, *_parameters: object) -> None:
        self.ours, self.theirs = Nbloop(), Asyncio()
        self.js = JS(self.ours.loop)

    def teardown(self, *_parameters: object) -> None:
        self.ours.close()
        self.theirs.close()

    def _ns(self, probe: Probe, name: str) -> float:
        return Sample.of(interleave(ROUNDS, [probe])[name]).median


class Promises(_View):
    """Made and dropped."""

    def track_create(self) -> float:
        """Decides whether a pending promise costs at most 300 ns."""
        return self._ns(javascript.create("promise", self.js), "promise")

    def track_with_resolvers(self) -> float:
        """Decides how much more the two resolving functions cost, which most promises of a program have."""
        return self._ns(javascript.create("promise", self.js), "promise+resolvers")

    track_create.unit = track_with_resolvers.unit = "ns"  # type: ignore[attr-defined]


class Chain(_View):
    """Promises that follow one another."""

    params = (10, 100)
    param_names = ("thens",)

    def track_chain(self, thens: int) -> float:
        """Decides whether a chain of 10 takes at most 10,000 ns from resolve to the last handler; 10 times at 100."""
        return self._ns(javascript.chain("chain", self.ours, self.js, thens), "chain")

    def track_chain_of_promises(self, thens: int) -> float:
        """Says what a handler that returns a promise costs, which Python has to adopt: three jobs, not one."""
        inner = self.js.resolve(1)
        return self._ns(javascript.chain("adopting", self.ours, self.js, thens, step=lambda _value: inner), "adopting")

    def track_beside_asyncio(self, thens: int) -> float:
        """Decides whether that is 5 times as fast as a task which awaits as many futures."""
        return times_asyncio(
            javascript.chain("nbloop", self.ours, self.js, thens),
            javascript.await_chain("asyncio", self.theirs, thens),
            rounds=20,
        )

    track_chain.unit = track_chain_of_promises.unit = "ns"  # type: ignore[attr-defined]
    track_beside_asyncio.unit = "times as fast as asyncio"  # type: ignore[attr-defined]


class All(_View):
    """`all` of promises that are resolved."""

    params = (100, 1_000)
    param_names = ("promises",)

    def track_all(self, promises: int) -> float:
        """Decides whether `all` of 100 takes at most 60,000 ns until its handler runs; 10 times as much at 1,000."""
        return self._ns(javascript.all_resolved("all", self.ours, self.js, promises, times=5), "all")

    def track_beside_asyncio(self, promises: int) -> float:
        """Decides whether it is at least as fast as `asyncio.gather` of futures that are done."""
        return times_asyncio(
            javascript.all_resolved("nbloop", self.ours, self.js, promises, times=5),
            javascript.gather_done("asyncio", self.theirs, promises, times=5),
            rounds=20,
        )

    track_all.unit = "ns"  # type: ignore[attr-defined]
    track_beside_asyncio.unit = "times as fast as asyncio"  # type: ignore[attr-defined]


class PromisesTimed(_View):
    """A program's turn, as asv compares it between commits."""

    params = (10, 1_000)
    param_names = ("promises",)

    def setup(self, promises: int) -> None:
        super().setup(promises)
        self.chain = javascript.chain("chain", self.ours, self.js, promises, times=1)
        self.all = javascript.all_resolved("all", self.ours, self.js, promises, times=1)

    def time_chain(self, _promises: int) -> None:
        """Decides whether a chain's time is its length's: promises that follow one another."""
        self.chain()

    def time_all(self, _promises: int) -> None:
        """Decides the same for `all`."""
        self.all()


class Timeouts(_View):
    """Set and cleared at once, as around each of many operations that do not time out."""

    params = (1_000, 100_000)
    param_names = ("pending",)

    def track_set_and_clear(self, pending: int) -> float:
        """Decides whether `set_timeout` + `clear_timeout` take at most 500 ns, also while many others wait."""
        return self._ns(javascript.timeouts("timeout", self.ours, self.js, pending), "timeout")

    def track_beside_asyncio(self, pending: int) -> float:
        """Decides whether that is 5 times as fast as `call_later` + `cancel`."""
        return times_asyncio(
            javascript.timeouts("nbloop", self.ours, self.js, pending),
            workloads.timer_pairs("asyncio", self.theirs, pending),
            rounds=20,
        )

    track_set_and_clear.unit = "ns"  # type: ignore[attr-defined]
    track_beside_asyncio.unit = "times as fast as asyncio"  # type: ignore[attr-defined]


class Queue(_View):
    """Items from `put` to coroutines that take them, in CPU time."""

    params = (1, 2, 4)
    param_names = ("takers",)

    def track_backlog(self, takers: int) -> float:
        """Decides whether an item of a backlog takes at most 3,000 ns, however many wait for the first."""
        return self._ns(javascript.queue("queue", self.ours, self.js, takers, "backlog"), "queue")

    track_backlog.unit = "ns"  # type: ignore[attr-defined]


class QueueOneByOne(_View):
    """One item at a time, in CPU time."""

    params = (1, 2)
    param_names = ("takers",)

    def track_one_by_one(self, takers: int) -> float:
        """Says what it costs to resume a coroutine for an item; decides whether that is the same if another waits."""
        return self._ns(javascript.queue("queue", self.ours, self.js, takers, "one by one"), "queue")

    def track_passed_on(self, takers: int) -> float:
        """Decides whether a taker that puts an item for another makes no more work than that. If it is alone, it takes
        its own item without a wait.
        """
        return self._ns(javascript.queue("queue", self.ours, self.js, takers, "passed on"), "queue")

    track_one_by_one.unit = track_passed_on.unit = "ns"  # type: ignore[attr-defined]


class BesideNode(_View):
    """In one run with Node, a process of its own."""

    def setup(self, *_parameters: object) -> None:
        super().setup()
        self.node = subprocesses.Node()

    def teardown(self, *_parameters: object) -> None:
        self.node.close()
        super().teardown()

    def track_queue_microtask(self) -> float:
        """Decides whether `queue_microtask`, schedule + run, takes no longer than Node's: at most 1. No answer
        without Node.
        """
        return self._ratio("microtask", workloads.burst("microtask", self.ours, self.js.queue_microtask))

    def track_set_immediate(self) -> float:
        """Decides the same for `set_immediate`."""
        return self._ratio("immediate", workloads.burst("immediate", self.ours, self.js.set_immediate))

    def _ratio(self, name: str, ours: Probe) -> float:
        if self.node.missing:
            return float("nan")
        values = interleave(ROUNDS, [ours, self.node])
        return Sample.of(ratios(values[f"{name}+run"], values[f"node {name}"])).median

    track_queue_microtask.unit = track_set_immediate.unit = "times Node's time"  # type: ignore[attr-defined]
