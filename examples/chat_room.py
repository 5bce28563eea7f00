"""A chat room on several loops: what one member says, all hear, whichever loop they are connected to.

    python examples/chat_room.py [PORT [LOOPS]]     # prints where it listens; Ctrl-C ends it
    socat - TCP:127.0.0.1:PORT

Each loop has the members that are connected to it, and only this loop writes to them. A line goes once to each loop, so
what goes between loops does not grow with the room. A member's next line is read when all loops have its last one. A
member that does not read is cut off: it delays nobody, and costs at most `MOST` bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys

import nbloop

MOST = 1 << 20  # bytes that wait for one member

members: dict[asyncio.AbstractEventLoop, set[asyncio.StreamWriter]] = {}  # of each loop, in whose thread it is used


async def say(line: bytes) -> None:
    """To the members of this loop."""
    for member in members[asyncio.get_running_loop()]:
        if member.transport.get_write_buffer_size() > MOST:
            member.transport.abort()
        else:
            member.write(line)


async def main(worker: nbloop.Worker) -> None:
    mine = members[worker.loop] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mine.add(writer)
        with contextlib.suppress(ConnectionError):
            async for line in reader:
                await worker.broadcast(say, line)
        mine.discard(writer)
        writer.close()

    sock = worker.listen("127.0.0.1", port)
    await worker.broadcast(asyncio.sleep, 0)  # all loops run
    async with await asyncio.start_server(serve, sock=sock, backlog=1024) as server:
        if worker.primary:
            print("listening on port", sock.getsockname()[1], flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    with contextlib.suppress(KeyboardInterrupt):
        nbloop.serve(main, loops=int(sys.argv[2]) if len(sys.argv) > 2 else None)
