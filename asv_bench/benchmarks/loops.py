"""What does a process of N asyncio loops take of memory, beside N processes of one?"""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import asyncio, sys, nbloop
async def main(worker):
    await worker.broadcast(asyncio.sleep, 0)
    if worker.primary:
        print("up", flush=True)
        await asyncio.to_thread(sys.stdin.read)
nbloop.serve(main, loops=int(sys.argv[1]))
"""


def megabytes(processes: int, loops: int) -> float:
    """Proportional set size of so many processes with so many loops each, all of which run: pages that several
    processes share count once.
    """
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(loops)]
    made = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(processes)]
    try:
        for process in made:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
        lines = [Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines() for process in made]
        return sum(int(line.split()[1]) for of in lines for line in of if line.startswith("Pss:")) / 1024
    finally:
        for process in made:
            process.communicate(b"")


if __name__ == "__main__":
    for count in (2, 4, 8):
        pairs = [(megabytes(1, count), megabytes(count, 1)) for _ in range(3)]
        shares = [one / many for one, many in pairs]
        one, many = (statistics.median(of) for of in zip(*pairs, strict=True))
        spread = f"{min(shares):.2f} to {max(shares):.2f}"
        print(f"{count} loops: {one:.0f} MB, {count} processes: {many:.0f} MB, {spread} of it")
