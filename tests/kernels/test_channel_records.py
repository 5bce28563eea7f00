"""The ring of a channel beside a deque: put, deliver, drop, close, in any order. And what `put` writes in a field."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nbloop.channel import ON_FULL, _fields
from nbloop.kernels.base import layout
from nbloop.kernels.base.capi import PyErr_GetRaisedException
from nbloop.kernels.base.kernel import data
from nbloop.kernels.base.layout import REFUSED_CLOSED, REFUSED_FULL
from nbloop.kernels.channels import channel_methods, fields, records
from nbloop.kernels.ingress import ticket_queue
from tests.support import naive, rig


class Channels(RuleBasedStateMachine):
    """One thread does everything, so each answer is exact."""

    @initialize(
        bits=st.integers(1, 4), most=st.integers(1, 16), on_full=st.sampled_from(["raise", "drop_new", "drop_old"])
    )
    def begin(self, bits, most, on_full):
        capacity = 1 << bits
        most = min(most, capacity)
        self.memory = rig.Memory()
        self.ring = rig.Ring(self.memory, capacity=capacity, max_batch=most, on_full=ON_FULL[on_full])
        self.twin = naive.Records(capacity, most, on_full)
        self.copied = on_full == "drop_old"
        self.next = 0

    @rule(count=st.integers(1, 16))
    def put(self, count):
        count = min(count, self.twin.capacity)
        values = np.arange(self.next, self.next + count)
        self.next += count
        said = self.twin.put(*values.tolist())
        stored = channel_methods.copy_in(self.ring.at, values.ctypes.data, count)
        if said is None:
            assert stored == count
        elif said == naive.FULL and self.twin.on_full == "drop_new":
            assert stored == 0
        else:
            assert stored == channel_methods.RAISED
            assert PyErr_GetRaisedException() != 0
            asked = {naive.FULL: layout.ASK_FULL, naive.CLOSED: layout.ASK_CLOSED}
            assert self.ring.asked.pop() == asked[said]

    @rule()
    def turn(self):
        head = int(self.ring.record["handle"]["queue"]["head"])
        wrap = self.twin.capacity - head % self.twin.capacity
        expected = self.twin.take(self.twin.capacity if self.copied else wrap)
        assert self.ring.turn() == bool(expected)
        if expected:
            assert self.ring.batches.pop() == expected
        assert self.ring.batches == []

    @rule()
    def look(self):
        """A claim of more than there is room for, or of anything once it is closed, changes nothing."""
        room = self.twin.capacity - len(self.twin.items)
        said = records.records_claim(self.ring.at, room + 1)
        assert said == (-REFUSED_CLOSED if self.twin.closed else -REFUSED_FULL)

    @precondition(lambda self: not self.twin.closed)
    @rule()
    def close(self):
        self.twin.closed = True
        ticket_queue.queue_close(self.ring.at + records.RING)

    @invariant()
    def same(self):
        record = self.ring.record
        assert self.ring.waiting() == len(self.twin.items)
        assert record["dropped"] == self.twin.dropped
        assert record["taking"] == 0
        queue = record["handle"]["queue"]
        assert queue["head"] <= record["published"] or not self.twin.items
        assert (record["handle"]["queued"] == layout.CHANNEL_BUSY) == bool(self.twin.items)

    def teardown(self):
        while "ring" in self.__dict__ and self.ring.turn():
            pass


TestChannels = Channels.TestCase
TestChannels.settings = rig.MACHINE

KINDS = ("f8", "f4", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")


@given(
    kind=st.sampled_from([*KINDS, "?", "f2", ">i4", "S2", "c16"]),
    value=st.integers() | st.integers(-(2**64), 2**64) | st.floats() | st.floats(width=32) | st.booleans() | st.text(),
    lead=st.integers(0, 7),
)
def test_plain_values_are_written_as_numpy_does(kind, value, lead):
    """What `field_fits` accepts is written to the bit as numpy writes it, at any place; numpy refuses none of it."""
    dtype = np.dtype([("lead", f"V{lead + 1}"), ("value", kind)])
    table = _fields(dtype)
    channel = np.zeros(layout.CHANNEL.dtype.itemsize // 8, np.int64)
    record = channel.view(layout.CHANNEL.dtype)[0]
    record["float_type"], record["int_type"], record["true"], record["false"] = map(id, (float, int, True, False))
    at = data(id(channel))
    field = table.ctypes.data + 32
    written, expected = np.zeros((2, 1), dtype)
    if not fields.field_fits(at, field, id(value)):
        plain = type(value) is float and kind == "f8"
        assert not plain
        return
    fields.field_write(at, field, id(value), written.ctypes.data)
    with np.errstate(all="ignore"):
        expected["value"][0] = value
    with np.errstate(over="raise"):
        np.zeros(1, dtype)["value"][0] = value
    assert written.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        *(("i8", 2**63 - 1), ("u8", 2**63 - 1), ("i8", -(2**63) + 1), ("i8", 2**60), ("u4", 2**32 - 1)),
        *(("i8", -(2**30)), ("i8", 2**30 - 1), ("f8", 2**53), ("f8", -(2**53)), ("f4", 2**24), ("f4", 3.4028234e38)),
        *(("f4", float("inf")), ("f8", float("nan"))),
    ],
)
def test_what_is_plain(kind, value):
    """The extremes of the quick path, which would else go unnoticed: numpy gives the same, in a microsecond."""
    dtype = np.dtype([("value", kind)])
    table = _fields(dtype)
    channel = np.zeros(layout.CHANNEL.dtype.itemsize // 8, np.int64)
    record = channel.view(layout.CHANNEL.dtype)[0]
    record["float_type"], record["int_type"] = id(float), id(int)
    written, expected = np.zeros((2, 1), dtype)
    assert fields.field_fits(data(id(channel)), table.ctypes.data, id(value))
    fields.field_write(data(id(channel)), table.ctypes.data, id(value), written.ctypes.data)
    expected["value"][0] = value
    assert written.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("kind", "value"), [("i8", 2**63), ("f4", 3.5e38), ("f4", 2**24 + 1), ("i4", 2**31), ("i8", 0.5)]
)
def test_what_is_not(kind, value):
    """Numpy rounds, or refuses."""
    table = _fields(np.dtype([("value", kind)]))
    channel = np.zeros(layout.CHANNEL.dtype.itemsize // 8, np.int64)
    record = channel.view(layout.CHANNEL.dtype)[0]
    record["float_type"], record["int_type"] = id(float), id(int)
    assert not fields.field_fits(data(id(channel)), table.ctypes.data, id(value))
