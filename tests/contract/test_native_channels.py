"""Channels of compiled code: `channel.native` puts as `put` does, and `nbloop.native(f)` gets what `on_batch` gets."""

from __future__ import annotations

import ctypes
import gc
import sys
import weakref

import numpy as np
import pytest

numba = pytest.importorskip("numba", reason="numba is not installed")

import nbloop  # noqa: E402
from nbloop import LoopOverloadedError, LoopTerminatedError, ReentrantWaitError, compiled  # noqa: E402
from nbloop.kernels.base import layout  # noqa: E402
from nbloop.kernels.base.kernel import data  # noqa: E402
from nbloop.kernels.build import object_cache  # noqa: E402
from nbloop.kernels.channels import channel_methods  # noqa: E402
from tests.support.waiting import raises_elsewhere, wait_for  # noqa: E402

COMPILED = object_cache.status.mode == "compiled"
NUMBER = np.dtype([("n", "i8")])
TICK = np.dtype([("price", "f8"), ("size", "i4"), ("buy", "?")])
# What a call raises that does not compile; where the function is plain Python, `put` says the same.
NOT_COMPILED = (TypeError, numba.core.errors.TypingError)

only_compiled = pytest.mark.skipif(not COMPILED, reason="kernels run as plain Python")


@numba.njit
def put_one(ring, value):
    return ring.put(value)


@numba.njit(nogil=True)
def put_range(ring, first, count):
    stored = 0
    for n in range(first, first + count):
        stored += ring.put(n)
    return stored


@numba.njit
def put_tick(ring, price, size, buy):
    return ring.put(price, size, buy)


@numba.njit(nogil=True)
def put_array(ring, records):
    return ring.put_many(records)


@numba.njit
def try_to_put(ring, n):
    try:
        ring.put(n)
    except Exception:
        return False
    return True


@numba.njit
def collect(records, out, at):
    """A handler that copies numbers: `out` from at[0] on; at[1] counts batches, at[2] is the largest one."""
    for record in records:
        out[at[0]] = record["n"]
        at[0] += 1
    at[1] += 1
    at[2] = max(at[2], len(records))


def collector(most=1000):
    """Such a handler, and the arrays it writes."""
    out, at = np.zeros(most, np.int64), np.zeros(3, np.int64)
    return nbloop.native(collect, out, at), out, at


# --- values ------------------------------------------------------------------------------------------------------

KINDS = ("f8", "f4", "i1", "i4", "i8", "u2", "u8", "?")
INTS = (0, 1, -1, 127, 128, -128, -129, 255, 256, 65535, 65536, 2**24 + 1, 2**31 - 1, 2**31, -(2**31) - 1, 2**32)
INTS += (2**53 + 1, 2**62, 2**63 - 1, -(2**63))
REALS = (0.0, -0.0, 1.5, -0.5, -1.5, 255.5, 256.0, -128.5, 3.4028234e38, 3.5e38, -3.5e38, 1e300, 2.0**63, -(2.0**63))
REALS += (float("inf"), float("-inf"), float("nan"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("values", [INTS, REALS, (True, False)], ids=["ints", "reals", "bools"])
def test_values_are_those_of_put(loop, turns, kind, values):
    """docs: what `put` stores, compiled code stores; what it refuses as out of range, that refuses too."""
    got = []
    channel = loop.channel([("v", kind)], lambda records: got.append(records.tobytes()))
    ring = channel.native
    for value in values:
        got.clear()
        try:
            channel.put(value)
        except (OverflowError, ValueError):  # numpy cannot make an int of a nan
            with pytest.raises((OverflowError, ValueError), match="field 'v'"):
                put_one(ring, value)
            assert channel.waiting() == 0
        else:
            assert put_one(ring, value) is True
            turns(loop)
            (batch,) = got
            size = channel.dtype.itemsize
            assert batch[:size] == batch[size:], value


def test_a_large_unsigned_value(loop, turns):
    got = []
    channel = loop.channel([("v", "u8")], lambda records: got.extend(records["v"].tolist()))
    put_one(channel.native, np.uint64(2**64 - 1))
    turns(loop)
    assert got == [2**64 - 1]
    with pytest.raises(OverflowError, match="field 'v'"):
        put_one(loop.channel([("v", "i8")], print).native, np.uint64(2**63))


@pytest.mark.parametrize("align", [True, False])
def test_fields_of_any_place(loop, turns, align):
    """Packed or aligned, with padding that is zero."""
    dtype = np.dtype([("a", "i1"), ("b", "f8"), ("c", "?"), ("d", "f4"), ("e", "u2")], align=align)
    got = []
    ring = loop.channel(dtype, lambda records: got.append(records.tobytes())).native

    @numba.njit
    def put(ring, a, b, c, d, e):
        return ring.put(a, b, c, d, e)

    assert put(ring, -1, 0.1, True, 0.5, 65535) is True
    turns(loop)
    expected = np.zeros(1, dtype)
    for name, value in zip(dtype.names, (-1, 0.1, True, 0.5, 65535), strict=True):
        expected[name] = value
    assert got == [expected.tobytes()]


def test_what_does_not_compile(loop):
    """The wrong number of values, and values that are no numbers."""

    @numba.njit
    def put_two(ring):
        return ring.put(1, 2)

    ring = loop.channel(TICK, print).native
    with pytest.raises(NOT_COMPILED, match=r"price, size, buy|'buy'"):
        put_two(ring)
    with pytest.raises((*NOT_COMPILED, ValueError), match="'price'"):
        put_tick(ring, "x", 1, True)
    with pytest.raises(NOT_COMPILED):
        put_array(ring, np.zeros(3, NUMBER))


@only_compiled
def test_what_only_python_puts(loop):
    """Fields that are not plain numbers, and arrays whose records do not lie side by side."""
    ring = loop.channel([("when", "M8[s]")], print).native
    with pytest.raises(NOT_COMPILED, match="put_many"):
        put_one(ring, 1)
    assert put_array(ring, np.zeros(3, [("when", "M8[s]")])) == 3
    with pytest.raises(NOT_COMPILED, match="ascontiguousarray"):
        put_array(loop.channel(NUMBER, print).native, np.zeros(6, NUMBER)[::2])
    with pytest.raises(TypeError, match="records of"):
        loop.channel([("v", ">i4")], print).native  # noqa: B018


def test_arrays(loop, turns):
    """In one publication, round the end of the ring; none, and too many."""
    got = []
    ring = loop.channel(NUMBER, lambda records: got.extend(records["n"].tolist()), capacity=8).native
    first = 0
    for count in (3, 5, 0, 7, 8, 1):
        records = np.arange(first, first + count).view(NUMBER)
        records.flags.writeable = False
        assert put_array(ring, records) == count
        first += count
        turns(loop, 2)
    assert got == list(range(first))
    with pytest.raises(ValueError, match="records must be at most"):
        put_array(ring, np.zeros(9, NUMBER))


# --- full, closed ------------------------------------------------------------------------------------------------


def test_full(loop, turns):
    """contract: on_full says what becomes of it; a compiled function may catch the error."""
    channel = loop.channel(NUMBER, print, capacity=2)
    assert put_range(channel.native, 0, 2) == 2
    with pytest.raises(LoopOverloadedError, match="is full"):
        put_one(channel.native, 2)
    assert try_to_put(channel.native, 2) is False
    assert channel.waiting() == 2

    channel = loop.channel(NUMBER, print, capacity=2, on_full="drop_new")
    assert put_range(channel.native, 0, 5) == 2
    assert put_array(channel.native, np.zeros(2, NUMBER)) == 0
    assert channel.dropped == 5

    handler, out, at = collector()
    channel = loop.channel(NUMBER, handler, capacity=2, on_full="drop_old")
    assert put_range(channel.native, 0, 5) == 5
    turns(loop)
    assert (channel.dropped, out[:2].tolist(), at[0]) == (3, [3, 4], 2)


def test_waits_for_room(make_loop):
    """A producer that is detached waits, is woken, and loses nothing."""
    loop = make_loop()
    handler, out, at = collector()
    ring = loop.channel(NUMBER, handler, capacity=4, on_full="wait").native
    with loop:
        assert put_range(ring, 0, 1000) == 1000
    assert out.tolist() == list(range(1000))
    assert at[2] <= 4


def test_waits_no_longer_than_its_timeout(loop):
    channel = loop.channel(NUMBER, print, capacity=2, on_full="wait", timeout=0.01)
    put_range(channel.native, 0, 2)
    with pytest.raises(TimeoutError, match="within"):
        put_one(channel.native, 2)


def test_the_loops_own_thread_does_not_wait(make_loop, turns):
    errors = []
    loop = make_loop(on_error=lambda error, _context: errors.append(error))
    channel = loop.channel(NUMBER, lambda _records: put_range(channel.native, 1, 2), capacity=2, on_full="wait")
    channel.put(0)
    turns(loop)
    assert [type(error) for error in errors] == [ReentrantWaitError]


@pytest.mark.parametrize("on_full", ["raise", "wait"])
def test_after_the_end(make_loop, on_full):
    loop = make_loop()
    ring = loop.channel(NUMBER, print, on_full=on_full).native
    loop.close()
    with pytest.raises(LoopTerminatedError, match="no more records"):
        put_one(ring, 1)
    with pytest.raises(LoopTerminatedError):
        put_array(ring, np.zeros(2, NUMBER))


def test_the_end_wakes_who_waits(make_loop):
    loop = make_loop()
    channel = loop.channel(NUMBER, print, capacity=2, on_full="wait")
    with raises_elsewhere(LoopTerminatedError, put_range, channel.native, 0, 3):
        wait_for(lambda: channel._state.record["sleepers"])
        loop.close()


# --- delivery ----------------------------------------------------------------------------------------------------


def test_a_loop_that_sleeps_is_woken(make_loop, asleep):
    """By a thread that has no thread state then, each time anew."""
    handler, out, at = collector()
    with make_loop() as loop:
        ring = loop.channel(NUMBER, handler).native
        put_range(ring, 0, 0)
        for n in range(20):
            asleep(loop)
            assert put_range(ring, n, 1) == 1
            wait_for(lambda n=n: at[0] == n + 1)
    assert out[:20].tolist() == list(range(20))


def test_a_delivery_that_is_refused(run_script):
    """The loop's queues are closed, and the channel is not yet: a thread that is detached has to ask Python."""
    said = run_script("""
        import numba, nbloop, numpy as np
        from nbloop.kernels.base import layout
        from nbloop.kernels.methods import lifetime

        @numba.njit(nogil=True)
        def put_range(ring, first, count):
            for n in range(first, first + count):
                ring.put(n)

        loop = nbloop.Loop()
        channel = loop.channel([("n", "i8")], lambda records: print(records["n"].tolist()))
        ring = channel.native
        put_range(ring, 0, 0)
        lifetime.close_queues.bind(loop._state)()
        loop._record["lifecycle"] = layout.TERMINATING
        put_range(ring, 1, 2)
        assert channel._state.record["handle"]["queued"] == layout.CHANNEL_LATE
        loop.shutdown()
    """)
    assert said == "[1, 2]\n"


def test_max_delay(make_loop):
    """A batch that a compiled producer fills does not wait; one that it does not fill waits, and comes."""
    handler, out, at = collector()
    with make_loop() as loop:
        ring = loop.channel(NUMBER, handler, max_batch=4, max_delay=0.05).native
        put_range(ring, 0, 8)
        put_range(ring, 8, 3)
        wait_for(lambda: at[0] == 11)
    assert out[:11].tolist() == list(range(11))
    assert at[1] == 3


def test_producers(make_loop):
    """Rings of their own, the same handler."""
    handler, out, at = collector()
    loop = make_loop(auto_exit=True)
    channel = loop.channel(NUMBER, handler)
    rings = [channel.producer().native for _ in range(3)]
    for number, ring in enumerate(rings):
        put_range(ring, 10 * number, 5)
    loop.run()
    assert sorted(out[: at[0]].tolist()) == [*range(5), *range(10, 15), *range(20, 25)]


def test_compiled_and_python_producers(make_loop, together):
    """Four threads on one ring, two of them detached: nothing lost, nothing torn, each one's order kept."""
    each = 5000 if COMPILED else 200
    handler, out, at = collector(4 * each)
    loop = make_loop()
    channel = loop.channel(NUMBER, handler, capacity=64, max_batch=16, on_full="wait")

    def produce(who):
        if who % 2:
            assert put_range(channel.native, who * each, each) == each
        else:
            for n in range(who * each, (who + 1) * each):
                assert channel.put(n)

    put_range(channel.native, 0, 0)
    with loop:
        assert together(4, produce) == [None] * 4
    assert at[0] == 4 * each
    for who in range(4):
        mine = out[(out >= who * each) & (out < (who + 1) * each)]
        assert mine.tolist() == list(range(who * each, (who + 1) * each))


def test_a_thread_that_python_does_not_know(run_script):
    """Threads of Numba's own put records, and wake the loop."""
    run_script(
        """
        import numba, numpy as np, nbloop

        @numba.njit(parallel=True, nogil=True)
        def produce(ring, count):
            for i in numba.prange(count):
                ring.put(i)

        got = []
        with nbloop.Loop() as loop:
            ring = loop.channel([("n", "i8")], lambda records: got.extend(records["n"].tolist()), on_full="wait",
                                capacity=16).native
            produce(ring, 500)
        assert sorted(got) == list(range(500))
        """,
        NUMBA_NUM_THREADS="3",
    )


def test_a_ring_keeps_its_channel(make_loop):
    loop = make_loop(auto_exit=True)
    handler, out, _at = collector()
    channel = loop.channel(NUMBER, handler)
    ring, state = channel.native, weakref.ref(channel._state)
    del channel
    gc.collect()
    assert put_range(ring, 5, 2) == 2
    loop.run()
    assert out[:2].tolist() == [5, 6]
    del ring
    gc.collect()
    assert state() is None


def test_a_function_that_numba_has_kept(run_script, tmp_path):
    """``cache=True``: another process calls it without compiling, and nothing of this process is in it."""
    module = tmp_path / "kept_producer.py"
    module.write_text(
        "import numba\n@numba.njit(cache=True)\ndef produce(ring, n):\n    for i in range(n):\n        ring.put(i)\n",
        encoding="utf-8",
    )
    script = f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        import numpy, nbloop, kept_producer
        got = []
        loop = nbloop.Loop(auto_exit=True)
        for _ in range(numpy.random.default_rng().integers(1, 5)):
            channel = loop.channel([("n", "i8")], lambda records: got.extend(records["n"].tolist()))
        kept_producer.produce(channel.native, 5)
        loop.run()
        assert got == [0, 1, 2, 3, 4]
        print(sum(kept_producer.produce.stats.cache_hits.values()))
        """
    if not COMPILED:
        pytest.skip("kernels run as plain Python")
    assert [run_script(script, NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(2)] == ["0\n", "1\n"]


# --- handlers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_full", ["raise", "drop_old"])
def test_batches_of_a_handler(loop, turns, on_full):
    """In order, at most max_batch, round the ring, counted."""
    handler, out, at = collector()
    channel = loop.channel(NUMBER, handler, capacity=16, max_batch=6, on_full=on_full)
    sent = 0
    for count in (1, 5, 11, 16, 6, 13):
        put_range(channel.native, sent, count)
        sent += count
        turns(loop, 5)
    assert out[:sent].tolist() == list(range(sent))
    assert (channel.waiting(), channel.delivered, channel.batches, at[2]) == (0, sent, at[1], 6)


def test_arrays_of_any_shape(make_loop):
    """What a handler writes is the user's memory: strided, of several dimensions, of records; some read-only."""
    table = np.zeros((4, 6))[::2, ::3]
    last = np.zeros(1, TICK)
    factors = np.array([1.0, 10.0])
    factors.flags.writeable = False

    def handle(records, table, last, factors):
        for record in records:
            table[1, 0] += record["price"] * factors[1]
            table[0, 1] += record["size"]
            last["price"][0] = record["price"]
            last["buy"][0] = record["buy"]

    loop = make_loop(auto_exit=True)
    channel = loop.channel(TICK, nbloop.native(handle, table, last, factors))
    channel.put(1.5, 7, True)
    channel.put(2.0, 8, False)
    loop.run()
    assert table.tolist() == [[0.0, 15.0], [35.0, 0.0]]
    assert last.tolist() == [(2.0, 0, False)]


@pytest.mark.parametrize("on_full", ["raise", "drop_old"])
def test_an_exception_of_a_handler(make_loop, on_full):
    """contract: it goes to on_error, with the handler as its callback; its records count as delivered."""
    told = []
    loop = make_loop(auto_exit=True, on_error=lambda error, context: told.append((error, context["callback"])))

    @numba.njit
    def handle(records, seen):
        seen[0] += len(records)
        if records[0]["n"] == 0:
            raise KeyError("mine")

    seen = np.zeros(1, np.int64)
    handler = nbloop.native(handle, seen)
    channel = loop.channel(NUMBER, handler, max_batch=2, on_full=on_full)
    put_range(channel.native, 0, 6)
    loop.run()
    ((error, callback),) = told
    assert type(error) is KeyError
    assert error.args == ("mine",)
    assert callback is handler
    assert (seen[0], channel.delivered, channel.batches) == (6, 6, 3)


def test_a_handler_runs_no_python(make_loop):
    """docs: no frame, no view: the only Python function that is entered is the empty one that checks for interrupts."""
    if not COMPILED:
        pytest.skip("kernels run as plain Python")
    handler, _out, at = collector()
    loop = make_loop(auto_exit=True)
    channel = loop.channel(NUMBER, handler, max_batch=2)
    put_range(channel.native, 0, 20)
    entered = []
    sys.setprofile(lambda frame, event, _: entered.append(frame.f_code.co_qualname) if event == "call" else None)
    try:
        loop.run()
    finally:
        sys.setprofile(None)
    assert at[1] == 10
    assert not [name for name in entered if "collect" in name or "NativeHandler" in name]


def test_a_handler_is_callable(loop):
    """As Python calls it, in a test of one's own."""
    handler, out, at = collector()
    handler(np.array([(4,), (5,)], NUMBER))
    assert (out[:2].tolist(), at.tolist()) == ([4, 5], [2, 1, 2])
    assert "collect" in repr(handler)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((3,), TypeError, "function must be callable"),
        ((collect, [1]), TypeError, "arrays must be numpy arrays"),
        ((collect, 1.5), TypeError, "arrays must be numpy arrays"),
    ],
)
def test_bad_arguments_of_native(arguments, error, match):
    with pytest.raises(error, match=match):
        nbloop.native(*arguments)


@only_compiled
def test_a_handler_that_does_not_compile(loop):
    with pytest.raises(TypeError, match="on_batch cannot be compiled"):
        loop.channel(NUMBER, nbloop.native(lambda records: records.no_such_field))
    with pytest.raises(TypeError, match="on_batch cannot be compiled"):
        loop.channel(NUMBER, nbloop.native(collect, np.array([object()])))
    with pytest.raises(TypeError, match="on_batch cannot be compiled"):
        loop.channel(NUMBER, nbloop.native(collect))


@only_compiled
def test_without_numba(loop, monkeypatch):
    """The extra is missing: an ImportError says which, at once."""
    monkeypatch.setattr(compiled, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"nbloop\[jit\]") as told:
        loop.channel(NUMBER, print).native  # noqa: B018
    assert told.value.name == "numba"
    with pytest.raises(ImportError, match=r"nbloop\[jit\]"):
        nbloop.native(print)


def test_a_handler_belongs_to_its_channel(make_loop):
    """It lives as long as the state, and no longer: its entry is called by an address."""
    loop = make_loop(auto_exit=True)
    out, at = np.zeros(10, np.int64), np.zeros(3, np.int64)
    channel = loop.channel(NUMBER, nbloop.native(collect, out, at))
    gc.collect()
    channel.put(3)
    loop.run()
    assert out[0] == 3
    memory = weakref.ref(channel._state.on_batch)
    del channel
    gc.collect()
    assert memory() is None


def test_the_kernel_itself(loop):
    """What the C function answers, called as compiled code calls it; un-jitted, as plain Python."""
    channel = loop.channel(NUMBER, print, capacity=2)
    at = data(id(channel._state))
    source = np.arange(3)
    kernel = channel_methods.channel_put_native
    if kernel.address:
        put = ctypes.PYFUNCTYPE(ctypes.c_int64, *(ctypes.c_int64,) * 3)(kernel.address)
    else:
        put = kernel.function
    first = source.ctypes.data
    assert put(at, first, 3) == layout.NATIVE_TOO_MANY
    assert put(at, first, 2) == 2
    number = [kind for kind, _ in compiled.REFUSALS].index(LoopOverloadedError)
    assert put(at, first, 1) == layout.NATIVE_ERROR - number
    loop.close()
    number = [kind for kind, _ in compiled.REFUSALS].index(LoopTerminatedError)
    assert put(at, first, 1) == layout.NATIVE_ERROR - number
