"""A loop that is taken down, in whatever order the collector calls the finalisers of its cycle."""

from __future__ import annotations

import gc
import sys

import pytest

from nbloop import Loop, LoopTerminatedError

AT_EXIT = """
import ctypes, os
from nbloop.kernels.base.interpreter import MethodDef

def freed(definition, write=os.write, set=ctypes.memset, address=ctypes.addressof, size=ctypes.sizeof(MethodDef)):
    write(1, b"freed")
    set(address(definition), 0xFF, size)  # what the allocator's next owner may write there

MethodDef.__del__ = freed
from nbloop import Loop

loop = Loop()
promise = loop.promisify(int)
kept = [loop, loop.submit, promise, loop._workers]
kept.append(kept)
"""


class Late:
    """Its finaliser calls what it was given, and notes what came of it."""

    def __init__(self, noted):
        self.noted = noted

    def __del__(self):
        try:
            self.call(self.callback)
        except BaseException as error:
            self.noted.append(type(error))
        else:
            self.noted.append(None)


class Task:
    """What is submitted and dropped."""

    def __call__(self):
        raise AssertionError("nothing is run here")


@pytest.fixture
def collected(no_collections):
    """No collection but those that a test asks for."""
    return gc.collect


@pytest.mark.slow
@pytest.mark.parametrize("first", [True, False], ids=["finaliser first", "loop first"])
@pytest.mark.parametrize("busy", [True, False], ids=["with work", "at rest"])
def test_handle_within_one_collection_with_its_loop(collected, busy, first):
    """contract, Around callbacks: a forgotten loop is closed; the collector has forgotten its handles by then."""
    noted, task = [], Task()
    references = sys.getrefcount(task)
    for _ in range(20):
        late = [Late(noted)] if first else []
        loop = Loop()
        handle = loop.producer()
        if busy:
            handle.submit(task)
        late += [Late(noted)]
        for one in late:
            one.call, one.callback, one.loop = handle.submit, task, loop
        loop.late = late
        del loop, handle, late, one
        collected()
    assert sys.getrefcount(task) == references
    # Before the loop's own finaliser a submit may be accepted; after it each is refused.
    assert set(noted) <= {None, LoopTerminatedError}
    assert len(noted) == (40 if first else 20)
    assert LoopTerminatedError in noted


def test_handle_that_outlives_a_forgotten_loop(collected):
    """contract, Around callbacks: methods taken from it live on; those then raise LoopTerminatedError."""
    task = Task()
    references = sys.getrefcount(task)
    loop = Loop()
    loop.me = loop
    handle = loop.producer()
    handle.submit(task)
    submit = handle.submit
    del handle, loop
    collected()
    with pytest.raises(LoopTerminatedError):
        submit(task)
    assert sys.getrefcount(task) == references


def test_built_ins_outlive_their_modules(run_script):
    """The interpreter empties the modules before it collects for the last time, and then deallocates built-ins: their
    deallocation reads the `MethodDef` that they were made from.
    """
    assert run_script(AT_EXIT) == ""
