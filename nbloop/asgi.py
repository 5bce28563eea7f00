"""An ASGI application on every core of one process: uvicorn's server, once on each loop of `nbloop.serve`.

Problem: ``uvicorn --workers N`` is N processes, with N copies of everything. Idea: uvicorn's protocols and its `Config`
stay as they are; each worker runs a uvicorn server of its own, and they listen at one address. Needs
``pip install nbloop[asgi]``.

**h11.** What all loops use costs all of them. Each use writes the object's reference count, which takes an atomic
instruction on any thread but the one that made the object; and on free-threaded CPython 3.13 a look-up in a dict whose
keys are tuples takes the dict's lock. h11 has tables and patterns at which the loops would meet a hundred times a
request. With the two tables of tuples shared, two loops took 360 µs of CPU time a request instead of 120, and answered
a fifth of the requests; with only the rest shared, they took 9 % more CPU time, and answered 0.82 of the requests of
two processes instead of 0.93. So each loop's thread makes a copy of h11, and of uvicorn's module that uses it. To leave
the original to the first loop is worse than no copies at all: that loop did not make it. h11's exceptions are not
copied, because an application may name them.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, Literal

import click
import h11
import h11._util
import uvicorn
from uvicorn.protocols.http import auto, h11_impl
from uvicorn.protocols.http.h11_impl import H11Protocol

from .aio import Queue, Worker, serve
from .aio.listening import Placement
from .lock import ModuleLock

type Lifespan = Literal["each", "primary"]

_NOTHING = object()
# Options that `serve` decides, or that need processes of their own.
REFUSED = ("workers", "reload", "reload_dirs", "reload_includes", "reload_excludes", "loop", "fd")
SET_UP_ONCE = ("log_level", "access_log", "env_file")  # `Config` applies them to the process, and to nothing else
UNSUPPORTED = "is not supported by nbloop.asgi: loops are threads of this process"


def run(
    app: Any,
    *,
    loops: int | None = None,
    lifespan: Lifespan = "each",
    placement: Placement | None = None,
    require_free_threading: bool = False,
    host: str = "127.0.0.1",
    port: int = 8000,
    uds: str | None = None,
    **config: Any,
) -> None:
    """Serve an ASGI application, or what ``"module:attribute"`` names, on several loops of this process.

    `loops`, `require_free_threading`, signals and exceptions are those of `nbloop.serve`; `placement` is that of
    `Worker.listen`. With ``lifespan="each"`` the application's lifespan runs on every loop, so what it makes belongs to
    that loop; with "primary" it runs on the first loop only, begins before the others serve, and ends after them. The
    server listens at `host` and `port`, or at the path `uds`. `config` are other options of `uvicorn.Config`;
    `workers`, `reload` and its like, `loop` and `fd` raise ValueError.

    At the end each loop stops accepting, finishes requests within `timeout_graceful_shutdown`, and runs the lifespan's
    end. SystemExit with uvicorn's status (3) if the application fails to start. Main thread only.

    On free-threaded Python each loop has its own copy of h11 and of uvicorn's protocol over it, so a change that the
    program makes to them has no effect: name the original then, as ``http=H11Protocol``.

    O(loops) to start; a request costs what uvicorn and the application take.

    >>> run("shop:app", workers=4)
    Traceback (most recent call last):
    ValueError: workers is not supported by nbloop.asgi: loops are threads of this process
    """
    if (name := _refused(config)) is not None:
        raise ValueError(f"{name} {UNSUPPORTED}")
    if lifespan not in ("each", "primary"):
        raise ValueError(f'lifespan must be "each" or "primary", not {lifespan!r}')
    # This reads the environment's file and sets up logging, which resets levels and closes handlers. So the loops must
    # not do it again: theirs get none of the options that say how.
    uvicorn.Config(app, **config)
    config = {name: value for name, value in config.items() if name not in SET_UP_ONCE} | {"log_config": None}
    started: Queue[None] = Queue()
    one = lifespan == "primary"
    begun: list[int] = []  # the workers, other than the first, whose `main` was called
    drained: Queue[int] = Queue()  # those that serve no more

    async def main(worker: Worker) -> None:
        if one and not worker.primary:
            begun.append(worker.index)
            try:
                await started.get()
                await _serve(worker, uvicorn.Server(_config(app, worker.index, lifespan="off", **config)))
            finally:
                drained.put_nowait(worker.index)
        else:
            server = uvicorn.Server(_config(app, worker.index, **config))
            if one:
                server = _Primary(server.config, worker.count - 1, started, drained)
            await _serve(worker, server)

    async def _serve(worker: Worker, server: uvicorn.Server) -> None:
        sock = worker.listen(host, port, placement=placement) if uds is None else worker.listen_unix(uds)
        task = asyncio.create_task(server.serve(sockets=[sock]))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            server.should_exit = True
            if one and worker.primary:
                # The group is cancelled. A worker whose `main` has not been called by now never gets that call.
                for index in set(range(1, worker.count)).difference(begun):
                    drained.put_nowait(index)
            await task
            raise

    serve(main, loops=loops, name="nbloop-asgi", require_free_threading=require_free_threading)


def _refused(config: Mapping[str, Any]) -> str | None:
    """The first of these options that is not supported."""
    return next((name for name in REFUSED if config.get(name)), None)


# By the worker's index. Another `run` in the process uses them again, because classes and functions are immortal once a
# free-threaded process has had two threads.
_protocols: dict[int, type[asyncio.Protocol]] = {}
_making = ModuleLock()  # two copies that are made at once would get the same patterns from the cache of `re`


def _config(app: Any, index: int, *, http: Any = "auto", **options: Any) -> uvicorn.Config:
    """For the worker of that index: with an h11 of its own, where uvicorn would take h11 and there is no GIL."""
    takes_h11 = http == "h11" or (http == "auto" and auto.AutoHTTPProtocol is H11Protocol)
    if takes_h11 and not sys._is_gil_enabled():
        if index not in _protocols:
            with contextlib.suppress(ImportError, OSError, AttributeError), _making:  # where there is no such code
                _protocols[index] = _own_protocol(f"_nbloop_h11_{index}")
        http = _protocols.get(index, http)
    return uvicorn.Config(app, http=http, **options)


def _own_protocol(name: str) -> type[asyncio.Protocol]:
    """uvicorn's protocol over a copy of h11, the package `name`. h11's modules import one another by relative names, so
    under another package's name they import copies. The package itself does not: its names are looked up in them.
    """
    package = _new_module(name, h11)
    package.__package__, package.__path__ = name, list(h11.__path__)
    re.purge()  # or the copies would get the original's patterns
    util = importlib.import_module(f"{name}._util")
    for attribute, value in vars(h11._util).items():
        if isinstance(value, type) and issubclass(value, Exception):
            setattr(util, attribute, value)
    parts = {
        module: importlib.import_module(full.replace("h11", name, 1))
        for full, module in list(sys.modules.items())
        if full.startswith("h11.")
    }
    for attribute, value in list(vars(h11).items()):
        for module, copy in parts.items():
            if getattr(module, attribute, _NOTHING) is value:
                setattr(package, attribute, getattr(copy, attribute))
    protocol = _new_module(f"{name}_protocol", h11_impl)
    loader: Any = h11_impl.__loader__
    exec(loader.get_code(h11_impl.__name__), vars(protocol))
    protocol.h11 = package  # type: ignore[attr-defined]
    return protocol.H11Protocol  # type: ignore[no-any-return]


def _new_module(name: str, of: ModuleType) -> ModuleType:
    """A module that stands for the same source, which it has not executed yet."""
    module = sys.modules[name] = ModuleType(name, of.__doc__)
    module.__file__, module.__package__ = of.__file__, of.__package__
    return module


class _Primary(uvicorn.Server):
    """The server whose lifespan is the process's."""

    def __init__(self, config: uvicorn.Config, others: int, started: Queue[None], drained: Queue[int]) -> None:
        super().__init__(config)
        self._others, self._begun, self._drained = others, started, drained

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets=sockets)
        if self.should_exit:
            return
        for _ in range(self._others):
            self._begun.put_nowait(None)
        end = self.lifespan.shutdown

        async def after_the_others() -> None:
            serving = set(range(1, self._others + 1))
            while serving:
                serving.discard(await self._drained.get())
            await end()

        self.lifespan.shutdown = after_the_others  # type: ignore[method-assign]


def main(
    arguments: Sequence[str],
    *,
    loops: int | None,
    lifespan: Lifespan,
    placement: Placement | None,
    require_free_threading: bool,
) -> int:
    """``python -m nbloop serve``: `arguments` are those of uvicorn's command line, of which only uvicorn knows which
    one is the application. 2 for arguments that are wrong.
    """
    try:
        context: Any = uvicorn.main.make_context("nbloop serve", list(arguments))
    except click.exceptions.Exit as ends:  # `--version`
        return ends.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    given = context.params
    if given.get("app_dir") is not None:
        sys.path.insert(0, given["app_dir"])
    given["headers"] = [tuple(header.split(":", 1)) for header in given.get("headers") or ()]
    known = inspect.signature(uvicorn.Config).parameters
    config = {
        name: value
        for name, value in given.items()
        if name in known and name not in ("app", "lifespan") and value is not None
    }
    for option in uvicorn.main.params:  # what was not given is not refused
        if option.name in REFUSED and context.get_parameter_source(option.name).name == "DEFAULT":
            config.pop(option.name, None)
    if (name := _refused(config)) is not None:
        print(f"nbloop: --{name.replace('_', '-')} {UNSUPPORTED}", file=sys.stderr)
        return 2
    run(
        given["app"],
        loops=loops,
        lifespan=lifespan,
        placement=placement,
        require_free_threading=require_free_threading,
        **config,
    )
    return 0
