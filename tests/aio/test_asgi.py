"""`nbloop.asgi` and ``python -m nbloop serve``: uvicorn's server on every loop of one process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import signal
import subprocess
import sys
import time
import urllib.request

import pytest

from tests.support.waiting import PATIENCE

pytest.importorskip("uvicorn")

APP = """
import json, os, threading

log = []

async def app(scope, receive, send):
    mine = threading.current_thread().name
    if scope["type"] == "lifespan":
        while True:
            what = (await receive())["type"]
            log.append([what, mine])
            await send({"type": what + ".complete"})
            if what == "lifespan.shutdown":
                os.write(1, json.dumps(log).encode() + b"\\n")  # whole, although another loop may write, too
                return
    body = json.dumps(mine).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})

async def broken(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

def make():
    made_by = threading.current_thread().name

    async def one(scope, receive, send):
        assert threading.current_thread().name == made_by
        await app(scope, receive, send)

    return one
"""


@pytest.fixture
def serving(tmp_path):
    """`with serving(*options) as (port, child)`: the command line, with its application answering."""
    (tmp_path / "shop.py").write_text(APP)

    @contextlib.contextmanager
    def serving(*options, app="shop:app"):
        port = random.randrange(15_000, 30_000)  # below the range that the system gives to clients
        command = [sys.executable, "-W", "ignore", "-m", "nbloop", "serve", app, "--app-dir", str(tmp_path)]
        child = subprocess.Popen(
            [*command, "--port", str(port), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield (port, child)
        finally:
            child.kill()
            child.communicate()

    return serving


def ask(port, child):
    """What the application answers, as soon as it does; the child must live."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=PATIENCE) as answer:
                return json.load(answer)
        except (ConnectionError, urllib.error.URLError) as error:
            refused = error if isinstance(error, ConnectionError) else error.reason
            if not isinstance(refused, ConnectionError):
                raise
            assert child.poll() is None, child.stderr.read()
            assert time.monotonic() < until, "nobody serves"
            time.sleep(0.01)


@pytest.mark.parametrize("placement", ["system", "least busy"] if sys.platform == "linux" else ["least busy"])
def test_every_loop_answers_and_all_end(serving, placement):
    with serving("--loops", "2", "--placement", placement, "--log-level", "warning") as (port, child):
        seen = {ask(port, child)}
        until = time.monotonic() + PATIENCE
        while len(seen) < 2 and time.monotonic() < until:
            seen.add(ask(port, child))
        child.send_signal(signal.SIGTERM)
        out, errors = child.communicate(timeout=PATIENCE)
    assert seen == {"nbloop-asgi-0", "nbloop-asgi-1"}
    assert child.returncode == 143, errors
    log = max(map(json.loads, out.splitlines()), key=len)
    assert sorted(log[:2]) == [["lifespan.startup", f"nbloop-asgi-{i}"] for i in range(2)]
    assert sorted(log[2:]) == [["lifespan.shutdown", f"nbloop-asgi-{i}"] for i in range(2)]


def test_a_factory_makes_an_application_for_each_loop(serving):
    """It answers on the loop whose thread has called the factory; otherwise uvicorn answers 500, and `ask` raises."""
    with serving("--loops", "2", "--factory", app="shop:make") as (port, child):
        seen = set()
        until = time.monotonic() + PATIENCE
        while len(seen) < 2 and time.monotonic() < until:
            seen.add(ask(port, child))
        child.send_signal(signal.SIGTERM)
        _, errors = child.communicate(timeout=PATIENCE)
    assert seen == {"nbloop-asgi-0", "nbloop-asgi-1"}, errors


def test_a_lifespan_of_the_process(serving):
    with serving("--loops", "2", "--lifespan", "primary", "--log-level", "warning") as (port, child):
        ask(port, child)
        child.send_signal(signal.SIGTERM)
        out, errors = child.communicate(timeout=PATIENCE)
    assert child.returncode == 143, errors
    assert json.loads(out) == [["lifespan.startup", "nbloop-asgi-0"], ["lifespan.shutdown", "nbloop-asgi-0"]]


def test_a_worker_that_never_begins_does_not_hold_up_the_end(run_script):
    """SIGTERM comes when the first loop serves and the second's thread has not begun. Nothing calls its `main` then."""
    run_script("""
import os, signal, threading
from nbloop import asgi
from nbloop.aio import serving

cancelled, log = threading.Event(), []
start, cancel, startup = serving.Worker._start, serving.WorkerGroup._cancel, asgi._Primary.startup

def late(worker, main):
    begins = (lambda: cancelled.wait(30) and start(worker, main)) if worker.index else (lambda: start(worker, main))
    threading.Thread(target=begins).start()

def noted(group):
    cancel(group)
    cancelled.set()

async def started(server, sockets=None):
    await startup(server, sockets=sockets)
    os.kill(os.getpid(), signal.SIGTERM)

serving.Worker._start, serving.WorkerGroup._cancel, asgi._Primary.startup = late, noted, started

async def app(scope, receive, send):
    assert scope["type"] == "lifespan"
    for _ in range(2):
        log.append((await receive())["type"])
        await send({"type": log[-1] + ".complete"})

try:
    asgi.run(app, loops=2, lifespan="primary", port=0, log_level="warning")
except SystemExit as end:
    assert end.code == 143
assert log == ["lifespan.startup", "lifespan.shutdown"]
""")


@pytest.mark.parametrize("lifespan", ["each", "primary"])
def test_logging_is_set_up_before_the_loops_begin(run_script, lifespan):
    """And not again by each loop, when others log already: that resets the levels, and closes the handlers."""
    run_script(
        """
import logging.config, os, signal, threading
import uvicorn
from nbloop import asgi

set_up, began = logging.config.dictConfig, []
by = []
logging.config.dictConfig = lambda config: (by.append(threading.current_thread().name), set_up(config))

async def app(scope, receive, send):
    for _ in range(2):
        what = (await receive())["type"]
        await send({"type": what + ".complete"})
        began.append(what)
        if what == "lifespan.startup":
            access.setLevel(logging.ERROR)  # the application's own choice
            access.handlers = [mine]
            end_if_all_have_begun()

def configured(config):
    configure(config)
    made.append(config)
    end_if_all_have_begun()

def end_if_all_have_begun():
    if len(made) == 3 and began:  # the one that sets up, and those of the loops
        made.append(None)
        os.kill(os.getpid(), signal.SIGTERM)

made = []
configure, uvicorn.Config.configure_logging = uvicorn.Config.configure_logging, configured
access, mine = logging.getLogger("uvicorn.access"), logging.NullHandler()
try:
    asgi.run(app, loops=2, lifespan="LIFESPAN", port=0, log_level="warning", access_log=False)
except SystemExit as end:
    assert end.code == 143
assert by == ["MainThread"], by
assert (access.level, access.handlers) == (logging.ERROR, [mine])
assert logging.getLogger("uvicorn.error").level == logging.WARNING
""".replace("LIFESPAN", lifespan)
    )


def test_ctrl_c(serving):
    with serving("--loops", "2") as (port, child):
        ask(port, child)
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=PATIENCE)
    assert child.returncode == 130, errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("lifespan", ["each", "primary"])
def test_an_application_that_fails_to_start(serving, lifespan):
    with serving("--loops", "2", "--lifespan", lifespan, app="shop:broken") as (_, child):
        _, errors = child.communicate(timeout=PATIENCE)
    assert child.returncode == 3
    assert "no database" in errors


@pytest.mark.parametrize("option", ["workers", "reload", "fd"])
def test_what_takes_processes_is_refused(option):
    from nbloop import asgi

    with pytest.raises(ValueError, match=option):
        asgi.run(None, **{option: 2})
    with pytest.raises(ValueError, match="lifespan"):
        asgi.run(None, lifespan="on")


def objects_of(module):
    """What a module of h11 made, or holds, that has a reference count of its own and is not of the standard library."""
    kinds = (type, dict, list, re.Pattern)
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, kinds)
        and not name.startswith("__")
        and getattr(value, "__module__", "h11").startswith("h11")
    }


def test_loops_share_nothing_of_h11():
    """Its modules, and uvicorn's protocol, are copies; those of one loop refer to one another only."""
    import h11
    from uvicorn.protocols.http.h11_impl import H11Protocol

    from nbloop import asgi

    copies = [asgi._own_protocol(f"_h11_of_test_{number}") for number in range(2)]
    assert len({H11Protocol, *copies}) == 3
    shared = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "h11"}
    assert len(shared) > 8
    for number, protocol in enumerate(copies):
        package = sys.modules[protocol.__module__].h11
        assert package.__name__ == f"_h11_of_test_{number}"
        assert set(h11.__all__) <= set(vars(package))
        for name in h11.__all__:
            shared_too = name.endswith("Error")  # which an application may name
            assert (getattr(package, name) is getattr(h11, name)) == shared_too, name
        for name, module in shared.items():
            copy = sys.modules[name.replace("h11", package.__name__, 1)]
            for attribute, value in objects_of(module).items():
                shared_too = isinstance(value, type) and issubclass(value, Exception)
                assert (getattr(copy, attribute) is value) == shared_too, (name, attribute)


def test_a_copy_of_h11_answers():
    import h11 as original

    from nbloop import asgi

    protocol = asgi._own_protocol("_h11_that_answers")
    h11 = sys.modules[protocol.__module__].h11
    one = h11.Connection(h11.SERVER)
    for _ in range(3):
        one.receive_data(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
        assert isinstance(one.next_event(), h11.Request)
        assert isinstance(one.next_event(), h11.EndOfMessage)
        assert one.send(h11.Response(status_code=204, headers=[])).startswith(b"HTTP/1.1 204")
        one.send(h11.EndOfMessage())
        one.start_next_cycle()
    one.receive_data(b"nonsense\r\n\r\n")
    with pytest.raises(original.RemoteProtocolError):
        one.next_event()


@pytest.mark.parametrize("http", ["auto", "h11", "httptools"])
def test_each_worker_has_its_own_h11_where_there_is_no_gil(http):
    from uvicorn.protocols.http.auto import AutoHTTPProtocol
    from uvicorn.protocols.http.h11_impl import H11Protocol

    from nbloop import asgi

    takes_h11 = http == "h11" or (http == "auto" and AutoHTTPProtocol is H11Protocol)
    chosen = [asgi._config("shop:app", index, http=http).http for index in (0, 1, 2, 1)]
    if takes_h11 and not sys._is_gil_enabled():
        assert len({H11Protocol, *chosen}) == 4
        assert chosen[1] is chosen[3]
        assert all(issubclass(one, asyncio.Protocol) and one.__name__ == "H11Protocol" for one in chosen)
    else:
        assert chosen == [http] * 4


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("shop:app", "--port", "abc"), "'abc' is not a valid integer"),
        (("shop:app", "--workers", "2"), "--workers is not supported"),
        (("shop:app", "--fd", "3"), "--fd is not supported"),
        (("--no-such-option", "shop:app"), "No such option"),
        ((), "Missing argument 'APP'"),
    ],
)
def test_serve_refuses_in_a_line(arguments, complaint):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "nbloop", "serve", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_options_may_come_before_the_application():
    """Only uvicorn knows which of them take a value."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "nbloop", "serve", "--port", "0", "--loops", "1", "no_such_module:app"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert 'Could not import module "no_such_module"' in done.stderr
