"""Copies of every class of the package are refused, or right: copy, deepcopy, pickle, and subclasses that try."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import enum
import gc
import importlib
import inspect
import pickle
import pkgutil
import socket
import weakref

import numpy as np
import pytest

import nbloop
from nbloop import js
from nbloop.kernels.base import layout
from nbloop.kernels.promises.classes import Resolver, ResultSlots, View
from nbloop.kernels.state.state import ChannelWords, HandleWords, LoopWords, Memory
from nbloop.observe import metrics
from nbloop.testing import VirtualClock
from nbloop.unique import Unique

# Classes of objects that a program does not get hold of, each with the one that does and refuses, or has no state.
INTERNAL = {
    "Allocated",  # a tuple of two numbers
    "Resumed",  # a base
    *(
        "Scheduling",
        "Lifecycle",
        "Part",
        "Descriptors",
        "Unique",
        "EventualWords",
        "ResultSlotsWords",
        "ResolverWords",
        "StreamWords",
        "SocketWords",
        "AioWords",
        "State",
    ),
    *("Poller", "Parker", "Target", "TablePoller", "Collector"),  # bases and protocols
    *(
        "Reporting",
        "Refusing",
        "Hooked",
        "Awaited",
        "Measured",
        "Served",
        "ServedGroup",
        "Core",
        "Recorded",
        "Owner",
        "Signal",
        "Sleeping",
        "Promised",
    ),
    *("Callee", "Sharer", "SharerGroup"),
    *(
        "EpollPoller",
        "KqueuePoller",
        "LockParker",
        "FdTable",
        "CountingLock",
        "ModuleLock",
        "Latch",
        "LoopSignals",
        "Places",
        "ReplacedClock",
    ),  # of a loop
    *("Entrance", "Room", "Taker", "Ends"),  # of a channel
    *("Fields", "Record"),  # of the kernels: modules of offsets
    *(
        "Running",
        "Rejections",
        "Workers",
        "Waiters",
        "Coroutines",
        "Living",
        "Sleep",
        "Once",
    ),  # of a promise, a view, a loop
    *("Kernel", "MethodDef", "TwinMethod", "Status", "External", "Darwin", "FreeBSD"),  # of the process
    *("StandIn", "Sited", "Spawning", "Owed"),  # what is scheduled in the place of a callback
    *("Selector", "KernelTransport", "StreamSocket"),  # of an EventLoop
    "TlsProtocol",  # of a StreamTransport
    *("Listeners", "Front", "Back"),  # of a WorkerGroup: sockets and locks, which refuse by themselves
    *("Call", "Outcome"),  # of a Worker that waits for another one: a future of its loop
    "LoopCollector",  # has a loop, and a name
    *("RingType", "RingModel"),  # what Numba knows of a NativeRing
    "Clock",  # two numbers of the machine's
}


def classes():
    for module in pkgutil.walk_packages(nbloop.__path__, "nbloop."):
        if ".cli" in module.name or module.name.endswith("__main__"):
            continue
        try:
            found = importlib.import_module(module.name)
        except ImportError:  # of another system, or of a library that is not installed
            continue
        for name, kind in vars(found).items():
            if inspect.isclass(kind) and kind.__module__ == module.name and not name.startswith("_"):
                yield kind


CLASSES = list(dict.fromkeys(classes()))
REFUSED = [kind for kind in CLASSES if issubclass(kind, Unique) and kind.__name__ not in INTERNAL]

COPIES = {"copy": copy.copy, "deepcopy": copy.deepcopy}
COPIES |= {
    f"pickle {protocol}": lambda one, protocol=protocol: pickle.loads(pickle.dumps(one, protocol))
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
}
each_way = pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES)


@pytest.fixture
def unique(make_loop, tmp_path):
    """One of each class that refuses, by class."""
    from nbloop.aio import Queue, WorkerGroup
    from nbloop.aio.datagrams import Datagrams
    from nbloop.aio.tls import SSLTransport
    from nbloop.aio.transports import Stream, share_of
    from nbloop.js import scopes
    from nbloop.kernels.promises.classes import Eventual
    from nbloop.observe import serve, shared
    from nbloop.observe.profile import Profiler

    with contextlib.ExitStack() as end:
        loop = make_loop(recorder=64, metrics="shared")
        view = js.JS(loop)
        promise, resolve, _reject = view.with_resolvers()
        eventual = Eventual()
        eventual._view = view._view
        producer = loop.producer()
        channel = loop.channel([("n", "i8")], print)
        watchdog = loop.watch(1000)
        end.callback(watchdog.stop)
        aio = nbloop.new_event_loop()
        end.callback(aio.close)
        stream = Stream(weakref.ref(aio), end.enter_context(socket.socket()), share_of(aio))
        datagrams = Datagrams(aio, end.enter_context(socket.socket()), aio)
        ends = [end.enter_context(one) for one in socket.socketpair()]
        for one in ends:
            one.setblocking(False)
        bound = end.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        bound.bind(("127.0.0.1", 0))

        async def connect():
            loop = asyncio.get_running_loop()
            connection, _ = await loop.create_connection(asyncio.Protocol, sock=ends[0])
            endpoint, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, sock=bound)
            return connection, endpoint

        transports = aio.run_until_complete(connect())
        end.callback(lambda: aio.run_until_complete(asyncio.sleep(0)))  # in which what is closed next ends
        for transport in transports:
            end.callback(transport.close)
        tls = SSLTransport(aio, None)
        tls._closed = True
        clock_loop = make_loop()
        group = nbloop.LoopGroup(1)
        end.callback(group.close)
        workers = WorkerGroup("workers")
        workers._add(nbloop.new_event_loop())
        end.callback(workers._waiting.close)
        end.callback(workers._close)
        served = end.enter_context(serve(loop))
        queue = Queue()
        made = [
            *(loop, view, promise, eventual, resolve.__self__, ResultSlots(view._view, print), producer),
            *(view._view, loop._state, loop._state.base, producer._state, loop.recorder, watchdog, loop._shared),
            *(nbloop.LoopExecutor(loop), promise.future(), group, group._state, workers, workers.workers[0]),
            *(queue, queue._put.__self__),
            *(view.timeout(1), view.group(), scopes.Scope(view), view.queue(), view.on(js.EventTarget(), "x")),
            view.once(js.EventTarget(), "x"),
            *(channel, channel.producer(), channel._state, channel.native, nbloop.native(print)),
            *(js.AbortController(), js.AbortController().signal, js.EventTarget(), view.performance),
            *(
                aio,
                aio.call_soon(print),
                aio.call_soon_threadsafe(print),
                aio.call_later(100, print),
                VirtualClock(clock_loop),
                served,
            ),
            *(shared.loops()[0], Profiler(), nbloop.EventLoopPolicy(), stream, datagrams),
            *(*transports, tls),
        ]
        yield {type(one): one for one in made}


def test_every_class_is_decided():
    """A new class is refused, is in RIGHT with an example, or is argued to be internal."""
    undecided = [
        kind.__qualname__
        for kind in CLASSES
        if not issubclass(kind, (Unique, enum.Enum))
        and kind.__name__ not in INTERNAL
        and kind not in {type(one) for one in right()}
    ]
    assert undecided == []
    public = {getattr(module, name) for module in (nbloop, js, nbloop.observe) for name in module.__all__}
    assert {kind for kind in public if inspect.isclass(kind)} <= set(CLASSES)


@each_way
def test_refused(unique, make_copy):
    assert set(unique) == set(REFUSED)
    for one in unique.values():
        with pytest.raises(TypeError, match=r"cannot be copied|copies of its own type"):
            print(type(one), make_copy(one))


@each_way
@pytest.mark.parametrize("name", ["__reduce__", "__reduce_ex__"])
def test_refused_to_subclasses(unique, make_copy, name):
    """Even a class that reduces itself as `object` would is refused: its words would be restored."""
    for base in (js.Promise, nbloop.Producer, js.JS, nbloop.Loop, js.EventTarget):

        class Copied(base):
            __slots__ = ()

        def reduce(self, protocol=4, kind=Copied):
            import copyreg

            slots = {n: getattr(self, n) for n in ("_view",) if hasattr(self, n)}
            return copyreg.__newobj__, (kind,), (getattr(self, "__dict__", None), slots)

        setattr(Copied, name, reduce)
        one = Copied.__new__(Copied)
        for slot in ("_view", "_state"):
            with contextlib.suppress(AttributeError):
                setattr(one, slot, getattr(unique[base], slot))
        with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
            make_copy(one)


def test_arrays_of_words(unique):
    """numpy's own ways to make an array of another: one of the same type would be taken for the whole."""
    for kind in (LoopWords, HandleWords, ChannelWords, View, Memory):
        array = unique[kind]
        for make in (
            lambda a: a.copy(),
            lambda a: a.view(),
            lambda a: a[:2],
            lambda a: a.reshape(-1),
            lambda a: np.array(a, subok=True),
            lambda a: a.astype(np.int64, copy=True),
            lambda a: a.__copy__(),
            lambda a: a + 1,
        ):
            with pytest.raises(TypeError):
                make(array)
        assert type(array.view(np.ndarray)) is np.ndarray
        assert type(np.array(array)) is np.ndarray
    gc.collect()  # what is left of the refused copies
    unique[nbloop.Loop].submit(print)


@pytest.mark.parametrize("kind", [LoopWords, HandleWords, ChannelWords, View, Memory])
def test_arrays_that_are_only_typed_as_words(kind):
    """They own nothing, and the collector follows none of their words."""
    words = getattr(kind, "kind", layout.STATE.dtype).itemsize // 8
    made = [kind((words,), np.int64) for _ in range(3)]
    gc.collect()
    del made
    gc.collect()


@each_way
def test_a_promise_within_something_else(loop, make_copy):
    """The reviewers' program: a deep copy of a promise was one that used memory after it was freed."""
    promise = js.JS(loop).resolve(1)
    for one in ([promise], {"a": (promise,)}):
        if make_copy is copy.copy:  # of the list, or the dictionary
            assert make_copy(one) == one
        else:
            with pytest.raises(TypeError, match="cannot be copied"):
                make_copy(one)


def test_a_copy_of_a_transport_does_not_close_it(unique):
    """The finaliser of asyncio's transport closes the socket, which a copy would share."""
    for one in list(unique.values()):
        if isinstance(one, asyncio.BaseTransport):
            with contextlib.suppress(TypeError):
                copy.copy(one)
            gc.collect()
            assert not hasattr(one, "_sock_fd") or one.get_extra_info("socket").fileno() == one._sock_fd


def test_initialised_once(loop):
    with pytest.raises(RuntimeError, match="already initialised"):
        loop.__init__()
    loop.submit(loop.stop)
    loop.run()


def test_methods_of_a_class_take_its_instances_only(loop):
    handle = loop.producer()
    view = js.JS(loop)
    for method, wrong in (
        (nbloop.Producer.submit, loop),
        (nbloop.Producer.submit_many, loop),
        (nbloop.Channel.put, loop),
        (nbloop.Channel.put, handle),
        (nbloop.Loop.submit, handle),
        (nbloop.Loop.cancel_timer, view),
        (js.JS.set_timeout, loop),
        (js.Promise.then, view),
        (js.Promise.then, object()),
        (Resolver.resolve, view.resolve()),
    ):
        with pytest.raises(TypeError, match="doesn't apply to"):
            method(wrong, print)


def test_made_without_its_maker(loop):
    """An instance that was not initialised refuses, and so does a producer of something else than a handle's words."""
    for call in (
        lambda: js.Promise.__new__(js.Promise).then(print),
        lambda: Resolver.__new__(Resolver).resolve(1),
        lambda: nbloop.Producer(loop, loop._state),
        lambda: nbloop.Producer(loop, np.zeros(1000, np.int64)),
        lambda: js.JS(object()),
    ):
        with pytest.raises(TypeError):
            call()
    for kind in (nbloop.Loop, nbloop.Producer, nbloop.Channel, nbloop.ChannelProducer, js.JS):
        bare = kind.__new__(kind)
        for name in dir(bare):
            with contextlib.suppress(AttributeError, TypeError):
                getattr(bare, name)
        del bare
    gc.collect()


def right():
    """An example of each class whose copies are right: figures, events, errors."""
    loop = nbloop.Loop(metrics=True, recorder=64)
    loop.submit(len, "four")
    loop.submit(loop.stop)
    loop.run()
    seen = loop.metrics()
    event = loop.recorder.events()[-1]
    histogram = metrics.Histogram()
    histogram.add(1.0)
    performance = js.JS(loop).performance
    performance.mark("here")
    from nbloop.observe import contention, pprof, profile, stacks, watchdog

    yield from (seen, seen.latency, seen.queue_current, metrics.Running("task", 1.0), histogram, event)
    total = contention.totals(loop)
    yield from (total, total.retries, performance.get_entries()[0], js.Event("a"), js.CustomEvent("a", detail=[1]))
    yield stacks.Call(*("x" for _ in stacks.Call._fields))
    yield pprof.Place(*("x" for _ in pprof.Place._fields))
    yield nbloop.ChannelFigures("ticks", 4, 3, 2, 1, 0)
    yield profile.Profile(1.0, 2.0, 0.01, {})
    yield profile.Run(*(0 for _ in inspect.signature(profile.Run).parameters))
    yield watchdog.Blockage(*(0 for _ in inspect.signature(watchdog.Blockage).parameters))
    yield watchdog.BlockedIn(*(0 for _ in inspect.signature(watchdog.BlockedIn).parameters))
    for kind in vars(nbloop.errors).values():
        if inspect.isclass(kind) and issubclass(kind, Exception):
            yield kind("why")
    yield nbloop.PollerFailedError(5, "why")
    yield from (js.AbortError("why"), js.InvalidStateError("why"), js.RejectedError([1]), js.NoPromisesError("why"))
    yield js.CancelledError("why")
    group = js.AggregateError("all", [ValueError("1"), js.RejectedError(2)])
    group.reasons = [ValueError("1"), 2]
    yield group
    loop.close()


def said(one):
    """What there is to compare of it."""
    if isinstance(one, BaseExceptionGroup):
        return [repr(error) for error in one.exceptions], repr(one.reasons), one.args[0]
    if isinstance(one, Exception):
        return one.args, vars(one)
    if isinstance(one, metrics.Histogram):
        return one.buckets(), one.count, one.sum, one.max
    if isinstance(one, js.Event):
        return vars(one)
    return repr(one)


@each_way
def test_right(make_copy):
    for one in [*right(), *nbloop.IOEvents, *nbloop.LoopState, *nbloop.FastPathMode]:
        made = make_copy(one)
        assert type(made) is type(one)
        assert said(made) == said(one)


def test_a_deep_copy_of_figures_is_another():
    histogram = metrics.Histogram()
    made = copy.deepcopy(histogram)
    made.add(1.0)
    assert histogram.count == 0
    assert made.count == 1
