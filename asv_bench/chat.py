"""The chat room of examples/chat_room.py with a thousand members, on one loop and on two.

    python -m asv_bench.chat [--md docs/scale.md]

The room is a process of its own, this one is all of its members. The rooms take turns. CPU time is that of the room's
process, and so does not depend on what the members take of the two cores; the rate does.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from . import report
from .descriptors import room

PROGRAM = Path(__file__).parents[1] / "examples" / "chat_room.py"
MEMBERS = 1000
LINES = 40
AT_ONCE = 4  # members that speak at the same time
LINE = b"what one says, all the others hear: 64 bytes with the newline ..\n"[-64:]
ROUNDS = 5
TICK = os.sysconf("SC_CLK_TCK")


class Room:
    """A running room and its members."""

    def __init__(self, loops: int) -> None:
        command = [sys.executable, "-W", "ignore", str(PROGRAM), "0", str(loops)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        port = int(self._process.stdout.readline().split()[-1])
        self._poll = select.epoll()
        self._members = {}
        for _ in range(MEMBERS):
            member = socket.create_connection(("127.0.0.1", port), timeout=30)
            self._members[member.fileno()] = member
            self._poll.register(member, select.EPOLLIN)
        self._hear(self._speak(1), MEMBERS * len(LINE))  # all are in, once all have heard it

    def _speak(self, count: int) -> None:
        for member in list(self._members.values())[:count]:
            member.sendall(LINE)

    def _hear(self, _: None, missing: int) -> None:
        while missing:
            for descriptor, _events in self._poll.poll(30):
                missing -= len(self._members[descriptor].recv(1 << 16))

    def _cpu(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def round(self) -> tuple[float, float]:
        """Seconds, and seconds of the room's CPU time, for `LINES` lines to all."""
        begun, cpu = time.perf_counter(), self._cpu()
        for _ in range(LINES // AT_ONCE):
            self._hear(self._speak(AT_ONCE), AT_ONCE * MEMBERS * len(LINE))
        return time.perf_counter() - begun, self._cpu() - cpu

    def close(self) -> None:
        """End it."""
        self._process.send_signal(signal.SIGINT)
        for member in self._members.values():
            member.close()
        self._poll.close()
        self._process.communicate(timeout=60)


@contextlib.contextmanager
def rooms(counts: Sequence[int]) -> Iterator[list[Room]]:
    """A room for each number of loops."""
    with contextlib.ExitStack() as stack:
        made = []
        for loops in counts:
            made.append(one := Room(loops))
            stack.callback(one.close)
        yield made


def table() -> str:
    """Markdown: medians of interleaved rounds."""
    room()
    counts = (1, 2)
    with rooms(counts) as made:
        seen = [[one.round() for one in made] for _ in range(ROUNDS)]
    lines = ["| loops | lines to all, a second | CPU time for a line to one member |", "|---|---|---|"]
    for at, loops in enumerate(counts):
        took = statistics.median(one[at][0] for one in seen)
        cpu = statistics.median(one[at][1] for one in seen)
        lines.append(f"| {loops} | {LINES / took:,.0f} | {cpu / (LINES * MEMBERS) * 1e6:.2f} µs |")
    shares = sorted(one[1][1] / one[0][1] for one in seen)
    rates = sorted(one[0][0] / one[1][0] for one in seen)
    lines += [
        "",
        f"Two loops against one: {statistics.median(rates):.2f}x the lines ({rates[0]:.2f} to {rates[-1]:.2f}),",
    ]
    lines += [f"{statistics.median(shares):.2f}x the CPU time ({shares[0]:.2f} to {shares[-1]:.2f})."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--md", type=Path, help="write the table into this file, between its marks")
    options = parser.parse_args()
    text = f"{report.prose(report.heading() + '.')}\n\n{table()}"
    print(text)
    if options.md:
        report.write(options.md, text, "written by python -m asv_bench.chat")
