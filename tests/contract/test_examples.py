"""The programs in examples/, each in a process of its own, with real clients."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import itertools
import os
import random
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@contextlib.contextmanager
def running(name, *args, stderr=None):
    """An example with these arguments; Ctrl-C ends it, and it ends well."""
    program = subprocess.Popen(
        [sys.executable, EXAMPLES / name, *map(str, args)], stdout=subprocess.PIPE, stderr=stderr, text=True
    )
    try:
        yield program
        program.send_signal(signal.SIGINT)
        assert program.wait(30) == 0
    finally:
        program.kill()
        program.communicate()


@pytest.fixture
def echo_port():
    with running("echo_server.py") as program:
        line = program.stdout.readline()
        assert line.startswith("listening on port ")
        yield int(line.split()[-1])


def exchange(port, sent, chunk=60_000):
    """Send all, close the half, and read what comes back, at once on two ends of one connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        got, at = bytearray(), 0
        client.setblocking(False)
        if not sent:
            client.shutdown(socket.SHUT_WR)
        while True:
            readable, writable, _ = select.select([client], [client] if at < len(sent) else [], [], 30)
            assert readable or writable, f"stuck after {at} sent and {len(got)} received"
            if writable:
                at += client.send(sent[at : at + chunk])
                if at == len(sent):
                    client.shutdown(socket.SHUT_WR)
            if readable:
                part = client.recv(chunk)
                if not part:
                    return bytes(got)
                got += part


def test_echo(echo_port):
    """What is sent comes back, whatever its size, then the end."""
    for size in (0, 1, 64, 5_000_000):
        sent = random.Random(size).randbytes(size)
        assert hashlib.sha256(exchange(echo_port, sent)).digest() == hashlib.sha256(sent).digest()


def test_echo_many(echo_port):
    """A hundred clients at once, one of which never reads: the others get their echoes."""
    with socket.create_connection(("127.0.0.1", echo_port)) as deaf:
        deaf.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                deaf.send(bytes(1 << 20))
        clients = [socket.create_connection(("127.0.0.1", echo_port), timeout=30) for _ in range(100)]
        for _ in range(3):
            for number, client in enumerate(clients):
                client.sendall(f"{number:064}".encode())
            for number, client in enumerate(clients):
                assert client.recv(64, socket.MSG_WAITALL) == f"{number:064}".encode()
        for client in clients:
            client.close()


@pytest.mark.skipif(shutil.which("socat") is None, reason="socat is not installed")
def test_echo_with_socat(echo_port):
    done = subprocess.run(
        ["socat", "-t30", "-", f"TCP:127.0.0.1:{echo_port}"],
        input=b"hello\n",
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == b"hello\n"


@pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
def test_tail(tmp_path):
    """Appended, created, replaced, truncated, and a named pipe: each line is printed, once."""
    old, new, pipe = tmp_path / "old.log", tmp_path / "new.log", tmp_path / "pipe"
    old.write_text("before\n")
    os.mkfifo(pipe)
    with running("tail_files.py", old, new, pipe, stderr=subprocess.PIPE) as program:
        assert program.stderr.readline() == "following\n"

        def shows(line):
            assert program.stdout.readline() == line + "\n"

        with old.open("a") as file:
            file.write("appended\n")
        shows("appended")
        new.write_text("created\n")
        shows("created")
        (tmp_path / "other").write_text("replaced\n")
        (tmp_path / "other").rename(old)
        shows("replaced")
        pipe.write_text("piped\n")
        shows("piped")
        new.write_text("cut\n")
        shows("cut")


def test_slow_down():
    """All is done, the producer is made to wait again and again, and no wait lets all tasks pile up.

    How many tasks that takes is the machine's affair: a loop's thread that is not given a core for 20 ms finds 100,000.
    """
    done = subprocess.run(
        [sys.executable, EXAMPLES / "slow_down.py", "5"], capture_output=True, text=True, timeout=120, check=True
    )
    words = done.stdout.split()
    assert words[1:3] == ["tasks", "done,"]
    assert int(words[words.index("waited") + 1]) == 5
    assert int(words[words.index("most") + 1]) < int(words[0])


def test_blocked_asyncio():
    """The watchdog names the coroutine that blocks the loop, and the program goes on."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / "blocked_asyncio.py"], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.startswith("blocked for 0.")
    assert "in forgetful, line" in done.stdout


def test_ticks():
    """All ways to hand over the same records give the same volumes, which the program itself checks."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / "ticks.py", "3000"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("records a second") == (3 if importlib.util.find_spec("numba") is None else 4)
    assert re.search(r"EEE +[\d,]+ +\d+\.\d{4}\n", done.stdout)


@contextlib.contextmanager
def chat_room(members):
    """A room on two loops, and the files of members that are in."""
    with running("chat_room.py", 0, 2, stderr=subprocess.DEVNULL) as program, contextlib.ExitStack() as stack:
        port = int(program.stdout.readline().split()[-1])
        files = []
        for number in range(members):
            one = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            files.append(stack.enter_context(one.makefile("rwb")))
            files[-1].write(b"in %d\n" % number)
            files[-1].flush()
        for number, file in enumerate(files):  # who hears itself is in
            while file.readline() != b"in %d\n" % number:
                pass
        yield files


def test_chat_room():
    """All members hear all lines, those of one member in its order, whichever loop each is connected to."""
    with chat_room(30) as files:
        for number, file in enumerate(files[:3]):
            file.write(b"".join(b"%d says %d\n" % (number, line) for line in range(20)))
            file.flush()
        for file in files:
            says = (line for line in iter(file.readline, b"") if b"says" in line)
            heard = list(itertools.islice(says, 60))
            for number in range(3):
                assert [line for line in heard if line.startswith(b"%d " % number)] == [
                    b"%d says %d\n" % (number, line) for line in range(20)
                ]


def test_a_deaf_member_of_a_chat_room_is_cut_off():
    """The others hear all."""
    line, count = b"x" * 32000 + b"\n", 1000  # more than the system keeps for a socket
    with chat_room(3) as (deaf, speaker, other):
        for _ in range(count):
            speaker.write(line)
            speaker.flush()
            for file in (speaker, other):
                while file.readline() != line:
                    pass
        heard = 0
        with contextlib.suppress(ConnectionError):
            while part := deaf.read(1 << 20):
                heard += len(part)
        assert heard < count * len(line)
