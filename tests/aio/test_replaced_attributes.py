"""Whatever a program writes into the attributes of a loop, its core, transports and handles, nothing crashes.

An exception is all right, and so is a loop that works no more. For each attribute, a forked child replaces or deletes
it, makes garbage where freed objects were, and then uses the loop for all that reads it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.arrivals import compiled_only

pytestmark = [compiled_only, pytest.mark.skipif(not hasattr(os, "fork"), reason="the children are forked")]

PROGRAM = '''
import asyncio, gc, logging, os, signal, socket, sys, warnings

import nbloop

logging.disable(logging.CRITICAL)
warnings.simplefilter("ignore")
PATIENCE = 10


class Stream(asyncio.Protocol):
    def data_received(self, data):
        pass


class Datagrams(asyncio.DatagramProtocol):
    def datagram_received(self, data, addr):
        pass


class Rig:
    def __init__(self):
        self.loop = nbloop.new_event_loop()
        self.near, self.far = socket.socketpair()
        self.far.setblocking(False)
        self.loop.run_until_complete(self.open())
        self.handle = self.loop.call_soon(int)
        self.timer = self.loop.call_later(0.0001, int)

    async def open(self):
        self.transport, _ = await self.loop.create_connection(Stream, sock=self.near)
        self.endpoint, _ = await self.loop.create_datagram_endpoint(Datagrams, local_addr=("127.0.0.1", 0))
        self.address = self.endpoint.get_extra_info("sockname")
        self.sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        await asyncio.sleep(0)

    def parts(self):
        return {
            "loop": self.loop, "core": self.loop.core, "selector": self.loop._selector, "transport": self.transport,
            "stream": self.transport._stream, "endpoint": self.endpoint, "datagrams": self.endpoint._datagrams,
            "handle": self.handle, "timer": self.timer,
        }

    def use(self):
        attempt(self.loop.run_until_complete, self.work())
        attempt(self.transport.close)
        attempt(self.endpoint.close)
        attempt(self.loop.run_until_complete, asyncio.sleep(0))
        attempt(self.loop.close)
        attempt(self.loop.call_soon, int)
        attempt(self.loop.run_forever)

    async def work(self):
        loop = asyncio.get_running_loop()
        for _ in range(3):
            await asyncio.sleep(0)
            for schedule in (loop.call_soon, loop.call_soon_threadsafe):
                attempt(schedule, int)
            attempt(loop.call_later, 0, int)
            attempt(self.far.send, bytes(100))
            attempt(self.sender.sendto, bytes(100), self.address)
            attempt(self.transport.write, bytes(100))
            attempt(self.endpoint.sendto, bytes(100), self.address)
            near, far = socket.socketpair()
            try:
                transport, _ = await loop.create_connection(Stream, sock=near)
                endpoint, _ = await loop.create_datagram_endpoint(Datagrams, local_addr=("127.0.0.1", 0))
                attempt(transport.write, bytes(100))
                far.send(bytes(100))
                await asyncio.sleep(0)
                transport.close()
                endpoint.close()
            except BaseException:
                pass
            far.close()
            attempt(loop.add_reader, self.sender, int)
            attempt(loop.remove_reader, self.sender)
            await asyncio.create_task(asyncio.sleep(0))
            await asyncio.sleep(0.0001)
            garbage()


def attempt(function, *arguments):
    try:
        function(*arguments)
    except BaseException:
        pass


def garbage():
    """Objects in the place of what was freed."""
    gc.collect()
    return [bytearray(size) for size in range(16, 400, 8) for _ in range(20)]


def names(part):
    found = set(getattr(part, "__dict__", ()))
    for kind in type(part).__mro__:
        slots = vars(kind).get("__slots__", ())
        found.update([slots] if isinstance(slots, str) else slots)
    return sorted(found - {"__weakref__", "__dict__", "stop"})  # without `stop` the core runs for ever


def replace(kind, name, how):
    rig = Rig()
    part = rig.parts()[kind]
    if name is None:
        part.__dict__.clear()
    elif how == "deleted":
        delattr(part, name)
    else:
        setattr(part, name, {"a number": 7, "a tuple": (), "None": None}[how])
    del part
    if kind in ("handle", "timer"):
        rig.handle = rig.timer = None
    kept = garbage()
    rig.use()


kind = sys.argv[1]
rig = Rig()
part = rig.parts()[kind]
cases = [(name, how) for name in names(part) for how in ("a number", "a tuple", "None", "deleted")]
if hasattr(part, "__dict__"):
    cases.append((None, "deleted"))
rig.use()
del rig, part
gc.collect()
gc.freeze()  # so that a collection is short
for name, how in cases:
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        signal.alarm(PATIENCE)  # without its `_runner`, say, a loop may run for ever
        attempt(replace, kind, name, how)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGALRM:
        print(f"{kind}.{name}, {how}: signal {os.WTERMSIG(status)}")
print(len(cases), "cases")
'''


@pytest.mark.parametrize(
    "kind", ["loop", "core", "selector", "transport", "stream", "endpoint", "datagrams", "handle", "timer"]
)
def test_nothing_crashes(kind: str) -> None:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, kind], check=False, capture_output=True, text=True, timeout=500, cwd=root
    )
    assert done.returncode == 0, done.stderr
    *crashes, last = done.stdout.splitlines()
    assert crashes == []
    assert int(last.split()[0]) > 4
