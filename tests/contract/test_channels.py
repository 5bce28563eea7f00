"""Channels: what is put is delivered, once, in order, converted as numpy does; what is refused stores nothing."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import signal
import sys
import threading
import time
import weakref

import numpy as np
import pytest

import nbloop
from nbloop import (
    LoopOverloadedError,
    LoopTerminatedError,
    ReentrantWaitError,
)
from nbloop.js import JS
from nbloop.kernels.base import layout
from nbloop.kernels.build import object_cache
from nbloop.kernels.methods import lifetime
from nbloop.testing import VirtualClock
from tests.support.waiting import PATIENCE, wait_for

TICK = [("price", "f8"), ("size", "i4"), ("buy", "?")]
NUMBER = [("n", "i8")]


@pytest.fixture
def got():
    """What `on_batch` was called with: copies, in `got.batches`, and all records by `got.records(name)`."""

    class Got:
        def __init__(self):
            self.batches = []

        def __call__(self, records):
            self.batches.append(records.copy())

        def numbers(self, name="n"):
            return [value for batch in self.batches for value in batch[name].tolist()]

    return Got()


def numbers(*values):
    return np.array([(value,) for value in values], NUMBER)


# --- values ------------------------------------------------------------------------------------------------------

DTYPES = ("f8", "f4", "f2", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?", ">i4", ">f8", "c16", "S3", "U2")
VALUES = (
    *(0, 1, -1, 2, 127, 128, -128, -129, 255, 256, 65535, 65536, 2**24, 2**24 + 1, -(2**24) - 1, 2**30, -(2**30)),
    *(2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**32, 2**53, 2**53 + 1, 2**60 - 1, 2**60, 2**62, 2**63 - 1, 2**63),
    *(-(2**63) + 1, -(2**63), -(2**63) - 1, 2**64 - 1, 2**64, 10**400),
    *(0.0, -0.0, 1.5, -2.75, 1e-50, 3.4028234e38, 3.5e38, 1e300, -1e300, float("inf"), float("-inf"), float("nan")),
    *(True, False, None, "12", "x", b"ab", 1j, (), [1], np.int8(3), np.float32(1.5), np.bool_(True), object()),
)


def as_numpy(dtype, value):
    """What numpy makes of an assignment, or the kind of its error."""
    record = np.zeros(1, [("v", dtype)])
    try:
        with np.errstate(over="raise", invalid="raise"):
            record["v"][0] = value
    except FloatingPointError:
        return OverflowError
    except (TypeError, ValueError, OverflowError) as error:
        return type(error)
    return record.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_are_numpys(make_loop, dtype):
    """contract: put converts and checks each value as numpy does when it assigns it; an error names the field, and
    stores nothing.
    """
    loop = make_loop(auto_exit=True)
    got = []
    channel = loop.channel([("v", dtype)], lambda records: got.extend(record.tobytes() for record in records))
    expected = []
    for value in VALUES:
        meant = as_numpy(dtype, value)
        if isinstance(meant, bytes):
            assert channel.put(value) is True
            expected.append(meant)
        else:
            with pytest.raises(meant, match="field 'v' of "):
                channel.put(value)
    assert channel.waiting() == len(expected)
    loop.run()
    assert got == expected


def test_a_subclass_converts_itself(loop):
    """Its code is called before anything is claimed, and its exception is the caller's."""

    class Odd(float):
        def __float__(self):
            channel.put(2)
            raise KeyError("mine")

    channel = loop.channel([("v", "i8")], print)
    with pytest.raises(KeyError, match="mine"):
        channel.put(type("Index", (), {"__index__": lambda _: Odd().__float__()})())
    assert channel.waiting() == 1


@pytest.mark.parametrize("align", [True, False])
def test_fields_of_any_place_and_kind(make_loop, align):
    """Packed, aligned, nested, arrays of a known size, dates: every dtype without objects."""
    dtype = np.dtype(
        [
            *(("a", "i1"), ("b", "f8"), ("c", "i2"), ("d", "f4"), ("e", "?"), ("f", "u4"), ("g", "i8")),
            *(("h", [("x", "f4"), ("y", "u1")]), ("i", "f4", (3,)), ("j", "M8[ms]"), ("k", "S5")),
        ],
        align=align,
    )
    loop = make_loop(auto_exit=True)
    got = []
    channel = loop.channel(dtype, lambda records: got.append(records.copy()))
    values = (-1, 0.1, -300, 0.5, True, 2**32 - 1, 2**62, (1.5, 255), [1, 2, 3], np.datetime64(5, "ms"), b"hello")
    channel.put(*values)
    channel.put(**dict(reversed(list(zip(dtype.names, values, strict=True)))))
    loop.run()
    assert got[0].dtype == dtype
    expected = np.zeros(2, dtype)
    expected[:] = [values, values]
    assert (got[0] == expected).all()


def test_plain_fields_of_any_place(make_loop):
    """The same without a field that only numpy can write."""
    dtype = np.dtype([("a", "i1"), ("b", "f8"), ("c", "i2"), ("d", "f4"), ("e", "?"), ("f", "u4"), ("g", "i8")])
    loop = make_loop(auto_exit=True)
    got = []
    channel = loop.channel(dtype, lambda records: got.append(records.copy()), capacity=4)
    rows = [(i - 2, i / 3, -i, i / 4, i == 1, 2**32 - 1 - i, i - 2**62) for i in range(4)]
    for row in rows:
        channel.put(*row)
    loop.run()
    assert got[0].tolist() == np.array(rows, dtype).tolist()


@pytest.mark.parametrize(
    ("values", "named", "match"),
    [
        ((), {}, "no value for the fields 'price', 'size', 'buy'"),
        ((1.0, 2), {}, "no value for the fields 'buy'"),
        ((1.0, 2, True, 3), {}, "takes 3 values, for price, size, buy: 4 were given"),
        ((1.0, 2), {"bye": True}, "no field 'bye': its fields are price, size, buy"),
        ((1.0, 2), {"size": 2}, "two values for the field 'size'"),
    ],
)
def test_the_wrong_fields(loop, values, named, match):
    """contract: put: a value for each field."""
    channel = loop.channel(TICK, print)
    with pytest.raises(TypeError, match=match):
        channel.put(*values, **named)
    assert channel.waiting() == 0


# --- arguments ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"dtype": "f8"}, TypeError, "dtype must be a structured"),
        ({"dtype": []}, TypeError, "dtype must be a structured .* at least one field"),
        ({"dtype": [("a", "nonsense")]}, TypeError, "dtype must be a structured"),
        ({"dtype": 5}, TypeError, "dtype must be a structured"),
        ({"dtype": [("a", "O")]}, TypeError, "dtype must have no objects"),
        ({"dtype": [("a", [("b", "O")])]}, TypeError, "dtype must have no objects"),
        ({"dtype": [("a", "V0")]}, TypeError, "dtype must have a size"),
        ({"dtype": (np.dtype(TICK), (3,))}, TypeError, "dtype must be"),
        ({"on_batch": 5}, TypeError, "on_batch must be callable"),
        ({"capacity": 1000}, ValueError, "capacity must be a power of two"),
        ({"capacity": 1}, ValueError, "capacity must be from 2"),
        ({"capacity": 1 << 29}, ValueError, "capacity must be from 2"),
        ({"capacity": 64.0}, TypeError, "capacity must be an int"),
        ({"capacity": 1 << 28, "dtype": [("a", "S8000")]}, ValueError, "capacity must be at most"),
        ({"max_batch": 0}, ValueError, "max_batch must be from 1"),
        ({"max_batch": True}, TypeError, "max_batch must be an int"),
        ({"max_delay": 0}, ValueError, "max_delay must be more than 0"),
        ({"max_delay": float("nan")}, ValueError, "max_delay must be more than 0"),
        ({"max_delay": "1"}, TypeError, "max_delay must be a number"),
        ({"on_full": "explode"}, ValueError, "on_full must be one of 'raise', 'wait'"),
        ({"on_full": None}, TypeError, "on_full must be one of"),
        ({"timeout": 1}, ValueError, "timeout means something only with on_full"),
        ({"timeout": -1, "on_full": "wait"}, ValueError, "timeout must be from 0"),
        ({"name": 5}, TypeError, "name must be a str"),
    ],
)
def test_bad_arguments_of_channel(loop, options, error, match):
    """contract: each error names the argument."""
    arguments = {"dtype": TICK, "on_batch": print} | options
    with pytest.raises(error, match=match):
        loop.channel(arguments.pop("dtype"), arguments.pop("on_batch"), **arguments)
    assert loop._state.channels == {}


def test_no_memory_for_a_channel(loop):
    with pytest.raises((MemoryError, OSError, ValueError, OverflowError)):
        loop.channel([("a", "S4000")], print, capacity=1 << 28)
    assert loop._state.channels == {}


@pytest.mark.parametrize(
    ("records", "error"),
    [
        (np.zeros(3), TypeError),
        ([(1.0, 2, True)], TypeError),
        (np.zeros(2, [("price", "f8"), ("size", "i4")]), TypeError),
        (np.zeros(2, [("price", "f4"), ("size", "i4"), ("buy", "?")]), TypeError),
        (None, TypeError),
        (np.zeros(9, TICK), ValueError),
    ],
)
def test_bad_arguments_of_put_many(loop, records, error):
    channel = loop.channel(TICK, print, capacity=8)
    with pytest.raises(error, match="records must be"):
        channel.put_many(records)
    assert channel.waiting() == 0


# --- batches -----------------------------------------------------------------------------------------------------


def test_a_batch_is_what_there_is(loop, turns, got):
    """contract: on_batch gets up to max_batch records, in the order of the puts, one batch a turn."""
    channel = loop.channel(NUMBER, got, capacity=16, max_batch=4)
    for n in range(10):
        channel.put(n)
    turns(loop)
    assert [len(batch) for batch in got.batches] == [4]
    turns(loop, 3)
    assert [len(batch) for batch in got.batches] == [4, 4, 2]
    assert got.numbers() == list(range(10))
    assert (channel.waiting(), channel.delivered, channel.batches, channel.dropped) == (0, 10, 3, 0)


@pytest.mark.parametrize("on_full", ["raise", "wait", "drop_new", "drop_old"])
def test_round_and_round(loop, turns, got, on_full):
    """put and put_many, of all lengths, across the end of the ring."""
    channel = loop.channel(NUMBER, got, capacity=8, max_batch=5, on_full=on_full)
    put = 0
    for length in [*range(9), 3, 8, 1, 8, 5, 5, 5] * 3:
        assert channel.put_many(numbers(*range(put, put + length))) == length
        put += length
        if length < 8:
            channel.put(put)
            put += 1
        while channel.waiting():
            turns(loop)
    assert got.numbers() == list(range(put))
    assert channel.dropped == 0


def test_put_many_takes_any_array_of_the_dtype(loop, turns, got):
    """Reversed, strided, of two dimensions, read-only, of another dtype object: copied as they are read."""
    channel = loop.channel(NUMBER, got)
    array = numbers(*range(6))
    array.flags.writeable = False
    for each in (array[::-1], array[::2], array.reshape(2, 3), array.reshape(2, 3).T, array.astype([("n", "i8")])):
        channel.put_many(each)
        turns(loop)
        assert got.batches.pop()["n"].tolist() == each["n"].ravel().tolist()
    assert channel.put_many(array[:0]) == 0
    assert not loop.alive()


class Exaggerates(np.ndarray):
    size = property(lambda self: 1 << 20)


class Pretends(np.ndarray):
    dtype = property(lambda self: NUMBER)


class SaysContiguous(np.ndarray):
    flags = property(lambda self: self)
    c_contiguous = True


def test_put_many_asks_the_array_itself(loop, turns, got):
    """And not what a subclass of numpy's says that its size, its dtype and its layout are."""
    channel = loop.channel(NUMBER, got, capacity=1 << 21)
    assert channel.put_many(numbers(1, 2).view(Exaggerates)) == 2
    assert channel.put_many(numbers(3, 4, 5).view(SaysContiguous)[::2]) == 2
    with pytest.raises(TypeError, match="records must be"):
        channel.put_many(np.zeros(2, np.int8).view(Pretends))
    turns(loop)
    assert got.numbers() == [1, 2, 3, 5]


def test_a_view_of_the_ring(loop, turns):
    """contract: the records lie in the ring itself, are read-only, and nothing can make them writable."""
    seen = []

    def on_batch(records):
        seen.append(records.__array_interface__["data"][0])
        assert type(records) is np.ndarray
        with pytest.raises(ValueError, match="read-only"):
            records["n"] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            records.flags.writeable = True

    channel = loop.channel(NUMBER, on_batch, capacity=4, max_batch=2)
    for n in range(4):
        channel.put(n)
        turns(loop)
    assert [at - seen[0] for at in seen] == [0, 8, 16, 24]


KEPT = {
    "the batch": lambda records: records,
    "a slice": lambda records: records[:1],
    "a field": lambda records: records["n"],
    "a view of a view": lambda records: records["n"][::-1].reshape(-1, 1),
    "a record": lambda records: records[0],
    "its memory": memoryview,
    "an iterator": lambda records: records.flat,
}


@pytest.mark.parametrize("what", KEPT)
@pytest.mark.parametrize("on_full", ["raise", "drop_old"])
def test_a_kept_view_is_told(make_loop, turns, what, on_full):
    """contract: a view that outlives on_batch is a BufferError, which goes to on_error; a copy is none."""
    errors = []
    loop = make_loop(on_error=lambda error, context: errors.append((error, context)))
    kept = []
    channel = loop.channel(NUMBER, lambda records: kept.append(KEPT[what](records)), on_full=on_full, name="ticks")
    channel.put(1)
    turns(loop)
    [(error, context)] = errors
    assert isinstance(error, BufferError)
    assert "on_batch of ticks has kept" in str(error)
    assert context["callback"] is channel._on_batch
    kept.clear()
    turns(loop)
    errors.clear()
    copies = loop.channel(NUMBER, lambda records: kept.append(records.copy()["n"]), on_full=on_full)
    copies.put(1)
    turns(loop)
    assert errors == []


def test_an_exception_loses_no_other_batch(make_loop, turns, got):
    """contract: a callback that raises: on_error gets it, with on_batch as the callback; its records are delivered."""
    errors = []
    loop = make_loop(on_error=lambda error, context: errors.append((error, context["callback"], context["args"])))

    def on_batch(records):
        got(records)
        if records["n"][0] == 2:
            raise ZeroDivisionError

    channel = loop.channel(NUMBER, on_batch, max_batch=2)
    channel.put_many(numbers(*range(6)))
    turns(loop, 4)
    assert got.numbers() == list(range(6))
    assert [(type(error), callback, args) for error, callback, args in errors] == [(ZeroDivisionError, on_batch, ())]
    assert channel.delivered == 6


def test_an_interrupt_leaves_run(loop, turns, got):
    """contract: KeyboardInterrupt leaves run(); what was accepted stays."""

    def on_batch(records):
        got(records)
        if records["n"][0] == 0:
            raise KeyboardInterrupt

    channel = loop.channel(NUMBER, on_batch, max_batch=1)
    channel.put_many(numbers(0, 1))
    with pytest.raises(KeyboardInterrupt):
        loop.run()
    turns(loop, 2)
    assert got.numbers() == [0, 1]


def test_other_tasks_run_between_batches(loop, turns):
    """One batch a turn, before the external tasks of that turn."""
    ran = []
    channel = loop.channel(NUMBER, lambda records: ran.append(records["n"][0]), max_batch=1)
    channel.put_many(numbers(0, 1))
    loop.submit(ran.append, "a")
    loop.submit(lambda: loop.submit(ran.append, "b"))
    turns(loop, 3)
    assert ran == [0, "a", 1, "b"]


@pytest.mark.parametrize("on_full", ["raise", "drop_new", "drop_old", "wait"])
def test_a_put_from_on_batch(make_loop, on_full):
    """Re-entrant puts are delivered in a later batch, and keep an auto-exit loop alive."""
    loop = make_loop(auto_exit=True)
    ran = []

    def on_batch(records):
        for n in records["n"].tolist():
            ran.append(n)
            if n < 20:
                assert channel.put(n + 1)

    channel = loop.channel(NUMBER, on_batch, capacity=4, on_full=on_full)
    channel.put(0)
    loop.run()
    assert ran == list(range(21))


def test_max_delay(loop, turns, got):
    """contract: with max_delay a batch waits until it is full, or its first record has waited for so long."""
    clock = VirtualClock(loop)
    channel = loop.channel(NUMBER, got, capacity=8, max_batch=3, max_delay=0.5)
    channel.put(0)
    turns(loop)
    clock.advance(0.25)
    channel.put(1)
    turns(loop, 2)
    assert got.batches == []
    clock.advance(0.25)
    turns(loop)
    assert got.numbers() == [0, 1]
    channel.put_many(numbers(2, 3))
    turns(loop, 2)
    channel.put(4)
    turns(loop)
    assert got.numbers() == [0, 1, 2, 3, 4]
    assert [len(batch) for batch in got.batches] == [2, 3]
    clock.advance(10)  # the timer of the batch that was full is gone
    channel.put(5)
    turns(loop, 2)
    assert len(got.batches) == 2
    clock.advance(0.5)
    turns(loop)
    assert got.numbers() == [0, 1, 2, 3, 4, 5]
    assert not loop.alive()


def test_the_timer_of_a_full_batch_is_gone(loop, turns, got):
    """It would hand over the next batch too early."""
    clock = VirtualClock(loop)
    channel = loop.channel(NUMBER, got, max_batch=3, max_delay=0.5)
    channel.put(0)
    turns(loop)
    channel.put_many(numbers(1, 2))
    turns(loop, 2)
    assert len(got.batches) == 1
    clock.advance(0.3)
    channel.put(3)
    turns(loop, 2)
    clock.advance(0.3)
    turns(loop, 2)
    assert len(got.batches) == 1
    clock.advance(0.3)
    turns(loop, 2)
    assert len(got.batches) == 2


def test_max_delay_wakes_a_loop_that_sleeps(make_loop, asleep, got):
    loop = make_loop()
    channel = loop.channel(NUMBER, got, max_delay=0.05, max_batch=1000)
    with loop:
        asleep(loop)
        channel.put(1)
        wait_for(lambda: got.batches)
        asleep(loop)
        channel.put_many(numbers(*range(1000)))
        wait_for(lambda: len(got.batches) > 1)
    assert [len(batch) for batch in got.batches] == [1, 1000]


def test_max_delay_and_auto_exit(make_loop, got):
    """What waits for its batch to fill is work that is left."""
    loop = make_loop(auto_exit=True)
    channel = loop.channel(NUMBER, got, max_delay=0.01)
    channel.put(1)
    loop.run()
    assert got.numbers() == [1]


# --- full --------------------------------------------------------------------------------------------------------


def test_full_raises(loop, turns, got):
    """contract: on_full="raise": LoopOverloadedError, and nothing was stored."""
    channel = loop.channel(NUMBER, got, capacity=4)
    channel.put_many(numbers(0, 1, 2))
    with pytest.raises(LoopOverloadedError, match="full"):
        channel.put_many(numbers(8, 9))
    channel.put(3)
    with pytest.raises(LoopOverloadedError, match="full"):
        channel.put(9)
    turns(loop)
    assert got.numbers() == [0, 1, 2, 3]
    assert channel.dropped == 0


def test_full_drops_new(loop, turns, got):
    """contract: on_full="drop_new": False or 0, and counted."""
    channel = loop.channel(NUMBER, got, capacity=4, on_full="drop_new")
    assert channel.put_many(numbers(0, 1, 2)) == 3
    assert channel.put_many(numbers(8, 9)) == 0
    assert channel.put(3) is True
    assert channel.put(9) is False
    assert channel.put("9") is False
    turns(loop)
    assert got.numbers() == [0, 1, 2, 3]
    assert channel.dropped == 4


def test_full_drops_old(loop, turns, got):
    """contract: on_full="drop_old": the oldest make room, and are counted."""
    channel = loop.channel(NUMBER, got, capacity=4, on_full="drop_old")
    assert channel.put_many(numbers(0, 1, 2)) == 3
    assert channel.put_many(numbers(3, 4, 5)) == 3
    assert channel.put(6) is True
    turns(loop)
    assert got.numbers() == [3, 4, 5, 6]
    assert channel.dropped == 3
    assert channel.put_many(numbers(*range(4))) == 4
    assert channel.put_many(numbers(*range(4, 8))) == 4
    turns(loop)
    assert got.numbers()[4:] == [4, 5, 6, 7]
    assert channel.dropped == 7


def test_drop_old_while_a_batch_is_read(loop, turns):
    """What on_batch reads stays, however much is put meanwhile."""
    seen = []

    def on_batch(records):
        before = records["n"].tolist()
        if not seen:
            for n in range(100, 200):
                channel.put(n)
        assert records["n"].tolist() == before
        seen.append(before)

    channel = loop.channel(NUMBER, on_batch, capacity=4, on_full="drop_old")
    channel.put_many(numbers(0, 1, 2))
    turns(loop, 2)
    assert seen == [[0, 1, 2], [196, 197, 198, 199]]
    assert channel.dropped == 96


def test_full_waits(make_loop, got):
    """contract: on_full="wait": the producer waits for room, and its records come after those before."""
    loop = make_loop()
    channel = loop.channel(NUMBER, got, capacity=4, on_full="wait")
    channel.put_many(numbers(0, 1, 2, 3))
    waits = threading.Thread(target=lambda: [channel.put(n) for n in range(4, 40)])
    waits.start()
    wait_for(lambda: channel._state.record["sleepers"])
    with loop:
        waits.join(30)
        assert not waits.is_alive()
    assert got.numbers() == list(range(40))
    assert channel._state.record["sleepers"] == 0


def test_full_waits_for_its_timeout(loop, got, turns):
    """contract: on_full="wait": TimeoutError after `timeout` seconds, and nothing was stored."""
    channel = loop.channel(NUMBER, got, capacity=2, on_full="wait", timeout=0.02)
    channel.put_many(numbers(0, 1))
    with pytest.raises(TimeoutError, match=r"within 0.02 s"):
        channel.put(2)
    with pytest.raises(TimeoutError, match=r"room for 2 records"):
        channel.put_many(numbers(2, 3))
    turns(loop)
    assert got.numbers() == [0, 1]


def test_the_loops_own_thread_does_not_wait(make_loop, turns):
    """contract: on_full="wait": ReentrantWaitError on the loop's own thread."""
    errors = []
    loop = make_loop(on_error=lambda error, _context: errors.append(error))

    def on_batch(_records):
        channel.put(1)
        channel.put(2)

    channel = loop.channel(NUMBER, on_batch, capacity=2, on_full="wait")
    channel.put(0)
    turns(loop)
    assert [type(error) for error in errors] == [ReentrantWaitError]


@pytest.mark.parametrize("end", ["shutdown", "close"])
def test_the_end_wakes_who_waits(make_loop, end):
    """No producer waits for a loop that has ended."""
    loop = make_loop()
    channel = loop.channel(NUMBER, lambda _records: None, capacity=2, on_full="wait")
    channel.put_many(numbers(0, 1))
    outcome = []

    def put():
        try:
            outcome.append(channel.put_many(numbers(2, 3)))
        except LoopTerminatedError as error:
            outcome.append(error)

    threads = [threading.Thread(target=put) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_for(lambda: channel._state.record["sleepers"] == 3)
    getattr(loop, end)()
    for thread in threads:
        thread.join(30)
    assert [type(one) for one in outcome] == [LoopTerminatedError] * 3
    assert channel.delivered + channel.dropped == 2


def test_room_goes_to_who_came_first(loop, turns, got):
    """A producer of many is not overtaken for ever by those of one, and each is woken when there is room for it."""
    channel = loop.channel(NUMBER, got, capacity=4, max_batch=1, on_full="wait")
    channel.put_many(numbers(0, 1, 2, 3))
    many = threading.Thread(target=channel.put_many, args=(numbers(4, 5, 6),))
    many.start()
    gates = channel._room._gates
    wait_for(lambda: len(gates) == 1)
    one = threading.Thread(target=channel.put, args=(7,))
    one.start()
    wait_for(lambda: len(gates) == 2)
    turns(loop, 2)
    assert len(gates) == 2
    turns(loop)
    many.join(30)
    turns(loop)
    one.join(30)
    while channel.waiting():
        turns(loop)
    assert got.numbers() == list(range(8))


# --- producers ---------------------------------------------------------------------------------------------------


def test_producers(make_loop, together):
    """contract: producer(): the same on_batch, order kept for each, nothing lost."""
    loop = make_loop()
    seen = {who: [] for who in range(4)}

    def on_batch(records):
        for who, n in records.tolist():
            seen[who].append(n)

    channel = loop.channel([("who", "i4"), ("n", "i8")], on_batch, capacity=64, on_full="wait")

    def produce(who):
        handle = channel.producer() if who % 2 else channel
        for n in range(500):
            if n % 10:
                handle.put(who, n)
            else:
                handle.put_many(np.array([(who, n)], channel.dtype))

    with loop:
        together(4, produce)
    assert seen == {who: list(range(500)) for who in range(4)}


def test_a_producer_is_forgotten(loop, turns, got):
    """Its ring goes with its last reference, but not before what it put is delivered."""
    channel = loop.channel(NUMBER, got)
    put = channel.producer().put
    put(1)
    gone = weakref.ref(put.__self__)
    del put
    gc.collect()
    turns(loop)
    assert got.numbers() == [1]
    gc.collect()
    assert gone() is None
    assert len(loop._state.channels) == 1


def test_a_channel_is_forgotten(loop, turns, got):
    channel = loop.channel(NUMBER, got)
    channel.put(1)
    gone = weakref.ref(channel._state)
    del channel
    gc.collect()
    turns(loop)
    gc.collect()
    assert got.numbers() == [1]
    assert gone() is None
    assert loop._state.channels == {}


# --- ends --------------------------------------------------------------------------------------------------------


def every_put(channel):
    producer = channel.producer()
    return (
        lambda: channel.put(1),
        lambda: channel.put("1"),
        lambda: channel.put_many(numbers(1)),
        lambda: producer.put(1),
        lambda: producer.put_many(numbers(1)),
    )


@pytest.mark.parametrize("end", ["shutdown", "close"])
@pytest.mark.parametrize("on_full", ["raise", "wait", "drop_new", "drop_old"])
def test_after_the_end(make_loop, end, on_full):
    """contract: once the end has begun every call raises LoopTerminatedError, and stores nothing."""
    loop = make_loop()
    channel = loop.channel(NUMBER, print, on_full=on_full)
    calls = every_put(channel)
    getattr(loop, end)()
    for call in calls:
        with pytest.raises(LoopTerminatedError, match="takes no more records"):
            call()
    with pytest.raises(LoopTerminatedError, match="takes no new channels"):
        loop.channel(NUMBER, print)
    with pytest.raises(LoopTerminatedError, match="takes no new channels"):
        channel.producer()
    assert (channel.delivered, channel.dropped, channel.waiting()) == (0, 0, 0)


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize("max_delay", [None, 1000])
def test_shutdown_delivers(make_loop, running, max_delay, got):
    """contract: accepted records are delivered by shutdown, those that wait for a batch to fill included."""
    loop = make_loop()
    channel = loop.channel(NUMBER, got, max_batch=3, max_delay=max_delay)
    handle = channel.producer()
    if running:
        loop.start()
    for n in range(10):
        channel.put(n)
        handle.put(n)
    loop.shutdown()
    assert sorted(got.numbers()) == sorted([*range(10), *range(10)])
    assert channel.dropped == 0


def test_shutdown_delivers_a_batch_that_waits_to_fill(make_loop, got):
    """And does not wait for its timer."""
    loop = make_loop()
    channel = loop.channel(NUMBER, got, max_batch=3, max_delay=1000)
    loop.start()
    channel.put(1)
    wait_for(lambda: channel._state.record["handle"]["queued"] == layout.CHANNEL_FILLS)
    loop.shutdown(10)
    assert got.numbers() == [1]


def test_close_drops_and_counts(make_loop, got):
    """contract: close drops what was accepted, and counts it."""
    loop = make_loop()
    channel = loop.channel(NUMBER, got)
    channel.put_many(numbers(1, 2))
    channel.put(3)
    loop.close()
    assert (got.batches, channel.dropped, channel.waiting()) == ([], 3, 0)


def test_close_between_two_batches(make_loop, got):
    """The batch in progress ends, the rest is dropped."""
    loop = make_loop()
    closer = threading.Thread(target=loop.close)

    def on_batch(records):
        got(records)
        closer.start()
        wait_for(lambda: loop._record["interrupt"])

    channel = loop.channel(NUMBER, on_batch, max_batch=2)
    channel.put_many(numbers(*range(5)))
    loop.run()
    closer.join()
    assert got.numbers() == [0, 1]
    assert (channel.delivered, channel.dropped) == (2, 3)


def test_auto_exit_waits_for_records(make_loop, got):
    loop = make_loop(auto_exit=True)
    channel = loop.channel(NUMBER, got, max_batch=1)
    assert not loop.alive()
    channel.put_many(numbers(1, 2, 3))
    assert loop.alive()
    loop.run()
    assert got.numbers() == [1, 2, 3]


def test_auto_exit_against_puts(make_loop, together, got):
    """contract: auto-exit: accepted in the last instant runs, refused raises, and there is no third outcome."""
    refused = 0
    deadline = time.monotonic() + PATIENCE
    for pause in itertools.count():  # longer ones, until the loop has ended before the producers did
        if pause >= 40 and refused:
            break
        assert time.monotonic() < deadline, "the loop has never ended before the producers did"
        loop = make_loop(auto_exit=True)
        channel = loop.channel(NUMBER, got, max_batch=2)
        channel.put(0)
        stored = [1, 0, 0]

        def act(who, loop=loop, channel=channel, stored=stored, pause=pause):
            if who == 0:
                loop.run()
                return
            try:
                for n in range(50):
                    channel.put(n)
                    stored[who] += 1
                    for _ in range(who * pause):
                        loop.state  # noqa: B018 - some time, so that now and then there is nothing left
            except LoopTerminatedError:
                pass

        together(3, act)
        loop.wait(30)
        assert channel.delivered == sum(stored)
        assert channel.dropped == 0
        refused += sum(stored) < 101


@pytest.mark.parametrize("end", ["shutdown", "close"])
def test_ends_against_puts(make_loop, together, end):
    """Accepted = delivered + dropped, whenever the end begins, and shutdown drops none."""
    for round_ in range(20):
        loop = make_loop()
        channel = loop.channel(NUMBER, lambda _records: None, max_batch=16, capacity=256, on_full="wait")
        handles = [channel, channel.producer(), channel]
        stored = [0, 0, 0]
        begun = threading.Event()

        def act(who, loop=loop, handles=handles, stored=stored, begun=begun, round_=round_):
            if who == 3:
                loop.start()
                begun.wait(30)
                getattr(loop, end)()
                return
            with contextlib.suppress(LoopTerminatedError):
                while True:
                    handles[who].put(1)
                    stored[who] += 1
                    if stored[who] > 50 * round_:
                        begun.set()

        together(4, act)
        rings = {id(handle): handle for handle in handles}.values()
        assert sum(ring.delivered + ring.dropped for ring in rings) == sum(stored)
        if end == "shutdown":
            assert sum(ring.dropped for ring in rings) == 0


def refused_delivery(loop, channel):
    """Put a record whose delivery is refused, because the loop's queues are closed and the channel is not yet."""
    lifetime.close_queues.bind(loop._state)()
    loop._record["lifecycle"] = layout.TERMINATING
    assert channel.put(1)
    assert channel._state.record["handle"]["queued"] == layout.CHANNEL_LATE


@pytest.mark.parametrize("kept", [True, False])
def test_a_late_channel(make_loop, got, kept):
    """What was accepted after the loop's queues were closed is delivered, even if nobody refers to the channel."""
    loop = make_loop()
    channel = loop.channel(NUMBER, got)
    gone = weakref.ref(channel._state)
    refused_delivery(loop, channel)
    assert channel.put(2)  # tries again, and is late again
    if not kept:
        del channel
        gc.collect()
    assert gone() is not None
    loop.shutdown()
    assert got.numbers() == [1, 2]
    if kept:
        del channel
    gc.collect()
    assert gone() is None


def test_a_late_channel_that_is_dropped(make_loop, got):
    """Its reference is given back by `close()`, and by the put that comes after the end."""
    for ended in (False, True):
        loop = make_loop()
        channel = loop.channel(NUMBER, got)
        gone = weakref.ref(channel._state)
        if ended:
            loop.close()
            channel._state.record["handle"]["queue"]["tail"] = 0  # as if it had its ticket already
            channel.put(1)
            assert channel._state.record["handle"]["queued"] == layout.CHANNEL_IDLE
        else:
            refused_delivery(loop, channel)
            loop.close()
            assert (channel.dropped, got.batches) == (1, [])
        del channel
        gc.collect()
        assert gone() is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_fork(run_script):
    """contract: fork: the child's copy refuses; the parent is untouched."""
    said = run_script(
        """
        import os, nbloop, warnings
        warnings.simplefilter("ignore")
        loop = nbloop.Loop(auto_exit=True)
        channel = loop.channel([("n", "i8")], lambda records: print("got", records["n"].tolist(), flush=True))
        put = channel.put
        handle = channel.producer()
        channel.put(1)
        child = os.fork()
        if not child:
            for call in (channel.put, put, handle.put, lambda n: channel.producer(), lambda n: loop.channel("", n)):
                try:
                    call(2)
                except nbloop.ForkedLoopError:
                    print("refused", flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        loop.run()
        """
    )
    assert said.split("\n")[:-1] == ["refused"] * 5 + ["got [1]"]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers of signals")
def test_puts_from_signal_handlers(make_loop, got):
    """contract: put: any thread, signal handlers included."""
    loop = make_loop(auto_exit=True)
    channel = loop.channel([("who", "i4"), ("n", "i8")], got, capacity=1 << 16)
    handled = []
    numbered = itertools.count()

    def handler(*_):
        n = next(numbered)  # another one may interrupt it
        channel.put(1, n)
        handled.append(n)

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
    try:
        n = 0
        while len(handled) < 50 and n < 60_000:
            channel.put(0, n)
            n += 1
        wait_for(lambda: len(handled) >= 50)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    loop.run()
    records = np.concatenate(got.batches)
    assert records[records["who"] == 0]["n"].tolist() == list(range(n))
    assert sorted(records[records["who"] == 1]["n"].tolist()) == sorted(handled)


@pytest.mark.skipif(object_cache.status.mode != "compiled", reason="un-jitted states are not traversed")
def test_a_forgotten_loop(got):
    """Its channels refuse, and a channel in a cycle with it is collected."""
    loop = nbloop.Loop()
    channel = loop.channel(NUMBER, lambda records, loop=loop: got(records))
    put = channel.put
    put(1)
    gone = weakref.ref(loop)
    del loop, channel
    for _ in range(3):
        gc.collect()
    assert gone() is not None  # `put` keeps on_batch, which keeps the loop
    del put
    for _ in range(3):
        gc.collect()
    assert gone() is None


def test_a_forgotten_loop_refuses():
    loop = nbloop.Loop()
    put = loop.channel(NUMBER, print).put
    loop_gone = weakref.ref(loop)
    del loop
    gc.collect()
    assert loop_gone() is None
    with pytest.raises(LoopTerminatedError):
        put(1)


def test_references(make_loop):
    """contract: every path gives its references back."""
    loop = make_loop()
    value, text = int("1" + 25 * "0"), "z".join("ab")

    def on_batch(_records):
        raise ZeroDivisionError

    loop._on_error = lambda *_: None
    channel = loop.channel([("a", "f8"), ("s", "S2")], on_batch, capacity=4)
    channel.put(value, text)  # its built-in method is made
    loop.stop()
    loop.run()
    gc.collect()
    counted = (value, text, on_batch, channel._state, channel.dtype)
    before = [sys.getrefcount(one) for one in counted]
    for _ in range(20):
        channel.put(value, text)
        for call in (lambda: channel.put(text, value), lambda: channel.put(value), lambda: channel.put(q=1)):
            with pytest.raises((TypeError, ValueError)):
                call()
        loop.stop()
        loop.run()
    gc.collect()
    assert [sys.getrefcount(one) for one in counted] == before


def test_faces(loop):
    channel = loop.channel(TICK, print, name="ticks")
    assert repr(channel) == f"<nbloop.Channel ticks of {loop.name}>"
    assert repr(channel.producer()) == "<nbloop.ChannelProducer of ticks>"
    assert (channel.dtype, channel.capacity, channel.name, channel.loop) == (np.dtype(TICK), 65536, "ticks", loop)
    assert loop.channel(TICK, print).name.startswith(f"{loop.name}-channel-")
    with pytest.raises(TypeError, match="channel must be a"):
        nbloop.ChannelProducer(loop)
    assert channel.put.__name__ == "put"
    assert "one record" in channel.put.__doc__


def test_records_behind_the_end_of_the_ring_wait_once(make_loop, turns):
    """contract: `max_delay` bounds how long a record waits, also if its batch has to be cut where the ring ends."""
    loop = make_loop()
    clock = VirtualClock(loop)
    got = []
    channel = loop.channel(NUMBER, lambda records: got.append(records["n"].tolist()), capacity=8, max_delay=1.0)
    for numbers in (range(6), range(6, 10)):
        for n in numbers:
            channel.put(n)
        turns(loop, 2)
        clock.advance(1.1)
        turns(loop, 4)
    assert got == [[0, 1, 2, 3, 4, 5], [6, 7], [8, 9]]


# --- observed ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_delay", [None, 100.0])
def test_how_long_records_have_waited(make_loop, turns, max_delay):
    """contract: each batch counts once, from no later than its oldest record's put; a busy channel is no exception."""
    loop = make_loop(metrics=True)
    clock = VirtualClock(loop)
    channel = loop.channel(NUMBER, lambda _records: None, capacity=16, max_batch=4, max_delay=max_delay)

    def waited():
        (figures,) = loop.channels()
        return figures.delay.count, round(figures.delay.histogram.sum, 6), figures.delay.max

    def put(count):
        for n in range(count):
            channel.put(n)

    assert waited() == (0, 0, 0)
    clock.advance(5.0)
    put(4)
    clock.advance(0.5)
    turns(loop, 1)
    assert waited() == (1, 0.5, 0.5)
    clock.advance(5.0)
    put(8)
    for batch in range(1, 4):  # 4 more come before the ring is empty
        clock.advance(1.0)
        turns(loop, 1)
        if batch == 1:
            put(4)
    # Waited from the burst's begin: 1 s, 2 s; from the look at the first batch: 2 s.
    assert waited() == (4, 5.5, 2.0)
    assert channel.waiting() == 0
    clock.advance(5.0)
    put(4)
    turns(loop, 1)
    assert waited() == (5, 5.5, 2.0)


def test_a_channel_does_not_measure_for_nobody(loop):
    """contract: no delays without ``metrics=``."""
    channel = loop.channel(NUMBER, lambda _records: None)
    channel.put(1)
    assert [one.delay for one in loop.channels()] == [None]


def test_delays_of_coroutines(make_loop, turns):
    """contract: a batch that a coroutine takes has been delivered when it is taken."""
    loop = make_loop(metrics=True)
    clock = VirtualClock(loop)
    channel = loop.channel(NUMBER)
    channel.put(1)
    clock.advance(2.0)
    turns(loop, 2)
    JS(loop).spawn(anext(channel))
    turns(loop, 2)
    (figures,) = loop.channels()
    assert (figures.delivered, figures.delay.count, figures.delay.max) == (1, 1, 2.0)


def test_figures(loop, turns):
    """contract: Loop.channels() counts what has gone through each ring, by name; rings that are gone are not there."""
    channel = loop.channel(NUMBER, lambda _records: None, capacity=8, max_batch=2, on_full="drop_new", name="ticks")
    producer = channel.producer()
    for n in range(10):
        channel.put(n)
    producer.put(1)
    assert loop.channels() == [
        nbloop.ChannelFigures("ticks", capacity=8, waiting=8, delivered=0, batches=0, dropped=2),
        nbloop.ChannelFigures("ticks", capacity=8, waiting=1, delivered=0, batches=0, dropped=0),
    ]
    turns(loop, 2)
    del producer
    gc.collect()
    assert loop.channels() == [nbloop.ChannelFigures("ticks", 8, waiting=4, delivered=4, batches=2, dropped=2)]
    assert loop.what_keeps_alive() == {"internal tasks": 1}
    turns(loop, 2)
    channel.shutdown()
    assert loop.channels() == [nbloop.ChannelFigures("ticks", 8, waiting=0, delivered=8, batches=4, dropped=2)]
    assert loop.what_keeps_alive() == {}


def test_figures_for_prometheus(make_loop, turns):
    """A channel and its producers are one there."""
    prometheus_client = pytest.importorskip("prometheus_client")
    from nbloop.observe.prometheus import LoopCollector

    loop = make_loop(metrics=True)
    channel = loop.channel(NUMBER, lambda _records: None, capacity=4, on_full="drop_old", name="ticks")
    producer = channel.producer()
    channel.put_many(numbers(*range(4)))
    channel.put(4)
    producer.put(5)
    turns(loop)
    channel.put(6)
    registry = prometheus_client.CollectorRegistry()
    registry.register(LoopCollector(loop))
    labels = {"loop": loop.name, "channel": "ticks"}
    assert registry.get_sample_value("nbloop_channel_depth", labels) == 1
    assert registry.get_sample_value("nbloop_channel_batches_total", labels) == 2
    assert registry.get_sample_value("nbloop_channel_records_total", labels | {"end": "delivered"}) == 5
    assert registry.get_sample_value("nbloop_channel_records_total", labels | {"end": "dropped"}) == 1


def test_one_event_a_batch(make_loop):
    """contract: the recorder has each delivery, with its duration."""
    loop = make_loop(auto_exit=True, recorder=64)
    channel = loop.channel(NUMBER, lambda _records: None, max_batch=2)
    for n in range(5):
        channel.put(n)
    loop.run()
    events = [event for event in loop.recorder.events() if event.kind == "internal task"]
    assert len(events) == channel.batches == 3
    assert all(event.duration > 0 for event in events)
