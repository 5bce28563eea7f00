"""The environment of scripts/ecosystem, which `NBLOOP_ECOSYSTEM` names, and servers for its libraries."""

from __future__ import annotations

import contextlib
import getpass
import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

SECONDS = 120.0
BIN = Path(os.environ["NBLOOP_ECOSYSTEM"]) / "bin"
SERVERS = {"REDIS_URL": "redis_url", "DATABASE_URL": "database_url", "NATS_URL": "nats_url"}


def installed(library: str) -> bool:
    command = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({library!r}) is None)"
    return subprocess.run([BIN / "python", "-c", command], check=False).returncode == 0


@pytest.fixture
def environment() -> dict[str, str]:
    return os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONDONTWRITEBYTECODE": "1"}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


@contextlib.contextmanager
def served(command: list[str], ready: str) -> Iterator[None]:
    """A server that runs until the block ends, and has said that it is ready."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        assert server.stdout is not None
        for line in server.stdout:
            if ready in line:
                break
        try:
            yield
        finally:
            server.terminate()
            server.communicate(timeout=SECONDS)


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    with served(command, "Ready to accept connections"):
        yield f"redis://127.0.0.1:{port}"


def postgres_programs() -> Path | None:
    """The folder of initdb and pg_ctl, which Debian keeps out of the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    where = shutil.which("initdb")
    return None if where is None else Path(where).parent


@pytest.fixture
def database_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A cluster of its own, not of root, whom PostgreSQL refuses."""
    programs = postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed")
    user, prefix = getpass.getuser(), []
    if os.getuid() == 0:
        user = "postgres"
        try:
            pwd.getpwnam(user)
        except KeyError:
            pytest.skip("PostgreSQL refuses root, and there is no user postgres")
        prefix = ["runuser", "-u", user, "--"]
    folder = Path(subprocess.check_output([*prefix, "mktemp", "-d"], text=True, cwd="/").strip())
    port = free_port()

    def run(program: str, *arguments: str) -> None:
        command = [*prefix, str(programs / program), "-D", str(folder / "data"), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=SECONDS, cwd="/")

    options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={folder} -c fsync=off"
    try:
        run("initdb", "--auth=trust", "--no-sync", "-U", user)
        run("pg_ctl", "-w", "-o", options, "-l", str(folder / "log"), "start")
        try:
            yield f"postgresql://{user}@127.0.0.1:{port}/postgres"
        finally:
            run("pg_ctl", "-w", "-m", "immediate", "stop")
    finally:
        subprocess.run([*prefix, "rm", "-rf", str(folder)], check=True, cwd="/")


@pytest.fixture
def nats_url() -> Iterator[str]:
    if shutil.which("nats-server") is None:
        pytest.skip("nats-server is not installed")
    port = free_port()
    with served(["nats-server", "--addr", "127.0.0.1", "--port", str(port)], "Server is ready"):
        yield f"nats://127.0.0.1:{port}"
