"""`asyncio.AbstractEventLoop` on nbloop's core.

Problem: an asyncio program uses some hundred methods: transports, TLS, subprocesses, resolvers, workers. Idea: nearly
all of them are asyncio's own Python, well maintained, and need only six things from a loop: call soon, call soon from
another thread, call at a time, watch a descriptor, run, and stop. So this is asyncio's selector loop with those six
replaced. One kernel call does what asyncio does in Python for each callback (a deque, a heap, a selector's list, a byte
through a socket to wake up)::

    call_soon, call_soon_threadsafe   submit: one queue, one order over all threads, a wake only if the loop sleeps
    call_at, call_later               a timer that submits the handle when it is due
    add_reader, add_writer            a watch that submits the handle when it is ready (selector.py)
    run_forever, stop                 the core's run and stop

The order is asyncio's: one queue, first in, first out. Timers and descriptors submit their callbacks and do not call
them, so a callback that became ready earlier runs earlier, as in asyncio. It loses where Python is left: a program that
spends its time in asyncio's transports gains little.

New over asyncio: `call_soon_threadsafe` makes no system call while the loop is awake; a handle may be cancelled from
any thread; a cancelled timer is gone at once; signals reach a loop in any thread; `core` has metrics, a watchdog, a
recorder, a virtual clock for tests, and the rest of `nbloop.Loop`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import inspect
import signal
import socket
import warnings
import weakref
from asyncio import base_events as _base_events
from asyncio import constants, format_helpers, trsock
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from sys import _getframe
from threading import get_ident
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..awaiting import set_done
from ..errors import ForkedLoopError, LoopTerminatedError
from ..kernels.base.kernel import data, method
from ..kernels.calls.handles import AIO
from ..kernels.methods import asyncio_methods as kernels
from ..kernels.methods.asyncio_methods import FAR, KEPT_SLOT, SHARE_SLOT, WORDS_SLOT, AioWords
from ..kernels.turn.stream import flush_streams
from ..loop import Loop
from .datagrams import FAMILIES, DatagramTransport
from .guard import name_loops
from .handles import (
    WORDS_AT,
    Handle,
    LockedHandle,
    Step,
    TimerHandle,
    new_words,
    note_debug,
    run,
    run_watched,
    tools_make_tasks,
    tools_watch,
)
from .replaced_clock import ReplacedClock
from .selector import READ, WRITE, Selector
from .tls import TlsProtocol
from .transports import (
    KERNELS_SOCKET,
    TRANSPORTS_HAVE_CONTEXTS,
    KernelTransport,
    StreamTransport,
    accept_plainly,
    kernels_take,
    numbers_of,
    plain_accept,
)

base_events: Any = _base_events  # its stubs lack the names that are used here

EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)  # after which a listener rests
UNPOLLED_TURNS = 7  # consecutive turns without a poll while callbacks are ready: one turn of eight polls
WHOLE_QUEUE = 1 << 40  # tasks in a turn: asyncio's turn, too, runs all that is ready when it begins


def _task_raised(of: weakref.ref[EventLoop], error: BaseException, context: dict[str, Any]) -> None:
    """A callback that was given to the core, and not to asyncio, has raised."""
    loop = of()
    if loop is not None:
        message = f"Exception in {context['kind']} {context['callback']!r}"
        loop.call_exception_handler({"message": message, "exception": error})


def _signal_arrived(of: weakref.ref[EventLoop], sig: int) -> None:
    loop = of()
    if loop is not None:
        loop._handle_signal(sig)  # asyncio's: it finds the handle, and forgets one that was cancelled


class Core(Loop):
    """The `nbloop.Loop` of an asyncio loop."""

    _children_ignore = True
    # A spin before a sleep saves the thread that wakes the loop a system call, and costs a server 4 to 6 % of its CPU
    # time: descriptors end its sleeps, and only a system call sees them.
    _spin_most = 0
    _unpolled_most = UNPOLLED_TURNS


class EventLoop(AioWords, asyncio.SelectorEventLoop):
    """An asyncio event loop. It has everything that `asyncio.AbstractEventLoop` has; anything not described here works
    as in asyncio.

    `call_soon_threadsafe`, `stop`, and `cancel` of the handles are thread-safe. `call_soon` and `call_at` check their
    thread in debug mode only, as asyncio's do, and do no harm from another one.

    `name`, `metrics`, `recorder` and the constructor's errors are those of `nbloop.Loop`; `core` is the loop of that
    class. A closed loop raises RuntimeError, as asyncio's does. Scheduling a callback and a task's step take O(1), a
    timer O(log timers), an event of a descriptor O(1). All times are seconds.

    >>> import nbloop
    >>> loop = nbloop.EventLoop(name="mine")
    >>> loop.run_until_complete(asyncio.sleep(0.001, "done"))
    'done'
    >>> loop.close()
    """

    _transports: ClassVar[Any] = weakref.WeakValueDictionary()  # by number; asyncio's constructor makes the loop's own
    _replaced_clock: ReplacedClock | None = None
    _made = False  # until then there is nothing to close: options were refused, or a signal's handler has raised

    if TYPE_CHECKING:  # asyncio's, which its stubs do not name
        _closed: bool
        _selector: Selector
        _stopping: bool
        _thread_id: int | None
        _current_handle: asyncio.Handle | None

        _signal_handlers: dict[int, asyncio.Handle]

        def _handle_signal(self, sig: int) -> None: ...
        def _check_closed(self) -> None: ...
        def _check_thread(self) -> None: ...
        def _check_callback(self, callback: object, method: str) -> None: ...
        def _run_forever_setup(self) -> None: ...
        def _start_serving(self, *arguments: Any) -> None: ...

        def _run_forever_cleanup(self) -> None: ...

    def __init__(
        self,
        *,
        name: str | None = None,
        metrics: bool | Literal["shared"] | None = None,
        recorder: int | None = None,
    ) -> None:
        with contextlib.suppress(AttributeError):
            WORDS_SLOT.__get__(self)
            raise RuntimeError("__init__ of this loop was called before: make another loop")
        # Nothing that the loop keeps may keep the loop. So a loop that is closed and forgotten is freed at once;
        # otherwise its mappings would stay until the next collection.
        raised = functools.partial(_task_raised, weakref.ref(self))
        self._core = Core(name=name, metrics=metrics, recorder=recorder, ingress_budget=WHOLE_QUEUE, on_error=raised)
        self._submit = self._core.submit
        self._now = self._core.now
        _TIME.__set__(self, self._now)  # no Python frame; and for `super().time()`
        # What `call_soon` returns to a caller that ignores it.
        unseen = Handle(Handle.cancel, (), weakref.proxy(self), copy_context())
        self._flush = flush_streams.bind(self._core._state)
        words = new_words()
        sees_cancels = type(self)._timer_handle_cancelled is not _FORGETS
        self._runner = kernels.handle_run.bind(words)
        for at, word in (
            (AIO.STATE, data(id(self._core._state))),
            (AIO.UNSEEN, id(unseen)),
            (AIO.LOOP_CLASS, id(EventLoop)),
            (AIO.CORE, 0 if sees_cancels else id(self._core._state)),
            (AIO.CLOCK, id(self._now) if type(self).call_at is _CALL_AT and type(self).time is _TIME else 0),
        ):
            words[at // 8] = word
        KEPT_SLOT.__set__(self, (unseen, self._core._state, self._now))
        WORDS_SLOT.__set__(self, words)
        self._core._record["handles"] = WORDS_AT
        super().__init__(Selector(self._core, lambda handle: self._run(handle)))  # noqa: PLW0108 - debug mode changes it
        self._made = True

    def __del__(self, _warn: Callable[..., object] = warnings.warn) -> None:
        if self._made:
            super().__del__(_warn)  # type: ignore[call-arg]

    @property
    def core(self) -> Loop:
        """The `nbloop.Loop` under this loop: its figures, watchdog, recorder, and its other ways in. Use the asyncio
        loop to run, stop and close it.
        """
        return self._core

    # --- what each callback, future and step of a task asks for: built-in methods, and no Python frame

    @method(kernels.aio_call_soon)
    def call_soon(  # type: ignore[override, empty-body]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """Run ``callback(*args)`` after all that is ready already. O(1)."""

    @method(kernels.aio_call_soon_threadsafe)
    def call_soon_threadsafe(  # type: ignore[override, empty-body]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """`call_soon` from any thread, signal handlers included. It wakes the loop only if the loop sleeps. Since
        Python 3.14 `cancel` and `cancelled` of the handle wait while another thread runs its callback, as asyncio's do.
        """

    @method(kernels.aio_call_later)
    def call_later(  # type: ignore[override, empty-body]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Run ``callback(*args)`` once, no earlier than `delay` seconds from now. O(1) for a distant time, else O(log
        n). Any thread.
        """

    @method(kernels.aio_call_at)
    def call_at(  # type: ignore[override, empty-body]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Run ``callback(*args)`` once, no earlier than `when` on the clock of `time`; otherwise as `call_later`. If
        `time` has been replaced, it waits at most the difference between that clock's time and `when` at the call.
        """

    @method(kernels.aio_timer_cancelled)
    def _timer_handle_cancelled(self, handle: TimerHandle) -> None:
        """Take the timer of a handle out of the core. `cancel` of a handle calls this if Python made the handle, or if
        a loop is in debug mode. If a subclass has its own, `cancel` always calls that.
        """

    @method(kernels.aio_create_future)
    def create_future(self) -> asyncio.Future[Any]:  # type: ignore[empty-body]
        """A future of this loop. Any thread."""

    @method(kernels.aio_create_task)
    def create_task[T](  # type: ignore[empty-body]
        self,
        coro: Coroutine[Any, Any, T],
        *,
        name: object = None,
        context: Context | None = None,
        **_options: Any,
    ) -> asyncio.Task[T]:
        """A task of this loop, as asyncio's method makes it. asyncio's passes its keyword arguments on in a dict, and
        takes twice as long. The loop's thread.
        """

    @method(kernels.aio_get_debug)
    def get_debug(self) -> bool:  # type: ignore[empty-body]
        """Is asyncio's debug mode on? Any thread."""

    # --- scheduling in rare cases: debug mode, odd arguments, a closed loop. The methods are written out, because
    # `_note` expects the caller's frame two above its own.

    def _call_soon(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> asyncio.Handle:
        if type(callback) is Step:
            name_loops(callback)
        handle = Handle(callback, args, self, copy_context() if context is None else context)
        if self._debug:
            self._check_thread()
            self._note(handle, callback, "call_soon")
        self._add_callback(handle)
        return handle

    def _call_soon_threadsafe(
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = LockedHandle(callback, args, self, copy_context() if context is None else context)
        if self._debug:
            self._note(handle, callback, "call_soon_threadsafe")
        self._add_callback(handle)
        return handle

    def _call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        if delay is None:
            raise TypeError("delay must be a number of seconds, not None")
        timer = self.call_at(self.time() + delay, callback, *args, context=context)
        if self._debug:
            self._forget_frame(timer)
        return timer

    def _call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        if when is None:
            raise TypeError("when must be a number of seconds, not None")
        timer = TimerHandle(when, callback, args, self, copy_context() if context is None else context)
        if self._debug:
            self._check_thread()
            self._note(timer, callback, "call_at")
        own = when
        replaced = self.time is not self._now
        if replaced:  # a tool's clock: wait on ours for the time that is left on it
            own = self._now() + (when - self.time())
        try:
            timer._scheduled = self._core.schedule_timer_at(min(own, FAR), self._submit, self._run, timer)
        except LoopTerminatedError:
            self._check_closed()
            raise
        if replaced:  # and it may jump
            self._arm_by_replaced_clock(when, timer)
        return timer

    def _add_callback(self, handle: asyncio.Handle) -> None:
        try:
            self._submit(self._run, handle)
        except LoopTerminatedError:
            self._check_closed()
            raise

    # --- running

    def run_forever(self) -> None:
        """Run until `stop`. Callbacks that are ready by then have run; those that they made ready wait for the next
        run. If `asyncio.Handle._run` has been replaced before this call, the replacement is called for each callback,
        task steps included.
        """
        self._choose_run()
        if self._replaced_clock:
            self._submit(self._ask_replaced_clock)
        self._run_forever_setup()
        try:
            self._core.run()
        finally:
            self._core._record["stop"] = 0  # forget a stop that an exception has overtaken, as asyncio does
            try:
                self._flush()
            finally:
                self._run_forever_cleanup()

    def stop(self) -> None:
        """Have `run_forever` return after the turn in progress, or after the first one of the next. Any thread."""
        super().stop()
        self._core.stop()

    def close(self) -> None:
        """Drop all that is scheduled, and release the loop's system resources. RuntimeError while it runs."""
        if self.is_running():
            raise RuntimeError("Cannot close a running event loop")
        if not self.is_closed():
            if self._core._forked:  # a child's copy ends nothing
                self._signal_handlers.clear()
            super().close()
            self._replaced_clock = None
            self._run = self._run_handle = self._runner  # they may be methods, which keep the loop
            with contextlib.suppress(AttributeError):
                SHARE_SLOT.__delete__(self)  # so does the selector, which is in it
            with contextlib.suppress(ForkedLoopError):
                self._core.close()

    # --- descriptors: what asyncio's four public methods call, which looks up each number in eight frames there

    def _ensure_fd_no_transport(self, fd: object) -> None:
        if type(fd) is not int or fd in self._transports.data:
            super()._ensure_fd_no_transport(fd)  # type: ignore[misc]

    def _add_reader(
        self, fd: Any, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        return self._add_watcher(fd, READ, callback, args, context)

    def _add_writer(
        self, fd: Any, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        return self._add_watcher(fd, WRITE, callback, args, context)

    def _add_watcher(
        self, fd: Any, side: int, callback: Callable[..., object], args: tuple[Any, ...], context: Context | None
    ) -> asyncio.Handle:
        if self._closed:
            self._check_closed()
        if self._debug:
            handle = asyncio.Handle(callback, args, self, context)
            self._forget_frame(handle)
        else:
            handle = Handle(callback, args, self, copy_context() if context is None else context)
        before = self._selector.put(fd, side, handle)
        if before is not None:
            before.cancel()
        return handle

    def _remove_reader(self, fd: Any) -> bool:
        return not self._closed and self._remove_watcher(fd, READ)

    def _remove_writer(self, fd: Any) -> bool:
        return not self._closed and self._remove_watcher(fd, WRITE)

    def _remove_watcher(self, fd: Any, side: int) -> bool:
        before = self._selector.put(fd, side, None)
        if before is None:
            return False
        before.cancel()
        return True

    # --- transports

    def _make_socket_transport(
        self, sock: Any, protocol: Any, waiter: Any = None, *, extra: Any = None, server: Any = None, **context: Any
    ) -> Any:
        """Make the transport of each connected socket, also of accepted ones. This method and
        `_make_datagram_transport` choose the kind of transport.
        """
        if type(sock) is not KERNELS_SOCKET and not kernels_take(sock):
            return super()._make_socket_transport(  # type: ignore[misc]
                sock, protocol, waiter, extra=extra, server=server, **context
            )
        return StreamTransport(self, sock, protocol, waiter, extra, server, **context)

    def _make_ssl_transport(
        self,
        rawsock: Any,
        protocol: Any,
        sslcontext: Any,
        waiter: Any = None,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = constants.SSL_HANDSHAKE_TIMEOUT,
        ssl_shutdown_timeout: float | None = constants.SSL_SHUTDOWN_TIMEOUT,
        **more: Any,
    ) -> Any:
        """TLS from the beginning, over `_make_socket_transport`."""
        self._ensure_fd_no_transport(rawsock)  # before there is a protocol to take down
        tls = TlsProtocol(
            *(self, protocol, sslcontext, waiter, server_side, server_hostname),
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
        )
        self._make_socket_transport(rawsock, tls, **more)
        return tls._app_transport

    async def start_tls(
        self,
        transport: Any,
        protocol: Any,
        sslcontext: Any,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> Any:
        """Start TLS on an open transport; return the transport that `protocol` is to use. The loop's thread.

        The transport first sends what it has to send. Data that a server's `StreamReader` has received, and the program
        has not read, is the client's first record.
        """
        if base_events.ssl is None:
            raise RuntimeError("Python ssl module is not available")
        if not isinstance(sslcontext, base_events.ssl.SSLContext):
            raise TypeError(f"sslcontext is expected to be an instance of ssl.SSLContext, got {sslcontext!r}")
        if not getattr(transport, "_start_tls_compatible", False):
            raise TypeError(f"transport {transport!r} is not supported by start_tls()")
        waiter = self.create_future()
        tls = TlsProtocol(
            *(self, protocol, sslcontext, waiter, server_side, server_hostname),
            call_connection_made=False,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
        )
        transport.pause_reading()  # until the protocol has its transport
        tls.takes_over(transport)
        transport.set_protocol(tls)
        begins = self.call_soon(tls.connection_made, transport)
        reads = self.call_soon(transport.resume_reading)
        try:
            await waiter
        except BaseException:
            transport.close()
            begins.cancel()
            reads.cancel()
            raise
        return tls._app_transport

    def _make_datagram_transport(self, sock: Any, protocol: Any, *arguments: Any, **more: Any) -> Any:
        """Make the transport of each socket of `create_datagram_endpoint`."""
        if not kernels_take(sock) or sock.family not in FAMILIES:
            return super()._make_datagram_transport(sock, protocol, *arguments, **more)  # type: ignore[misc]
        self._ensure_fd_no_transport(sock)
        return DatagramTransport(self, sock, protocol, *arguments, **more)

    def _accept_connection(  # its arguments are asyncio's
        self,
        factory: Any,
        sock: Any,
        sslcontext: Any = None,
        server: Any = None,
        backlog: int = 100,
        ssl_handshake_timeout: float | None = constants.SSL_HANDSHAKE_TIMEOUT,
        ssl_shutdown_timeout: float | None = constants.SSL_SHUTDOWN_TIMEOUT,
        context: Context | None = None,  # since Python 3.15
    ) -> None:
        """Accept the waiting connections. Without free descriptors the listener rests, and resumes once; asyncio before
        3.14 goes on trying, and resumes once for each failure.
        """
        timeouts = ssl_handshake_timeout, ssl_shutdown_timeout
        accept = sock.accept
        if getattr(type(sock), "accept", None) is plain_accept:  # it is not overridden
            accept = functools.partial(accept_plainly, sock, *numbers_of(sock))
        for _ in range(backlog + 1):  # as asyncio since 3.14: with 0 there is one
            try:
                conn, address = accept()
                if self._debug:
                    base_events.logger.debug("%r got a new connection from %r: %r", server, address, conn)
                conn.setblocking(False)
            except ConnectionAbortedError:
                continue
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if sock.fileno() == -1:  # the last connection's factory has closed the server
                    return
                if error.errno not in EXHAUSTED:
                    raise
                message = "socket.accept() out of system resource"
                self.call_exception_handler(
                    {"message": message, "exception": error, "socket": trsock.TransportSocket(sock)}
                )
                self._remove_reader(sock.fileno())
                arguments: tuple[Any, ...] = (factory, sock, sslcontext, server, backlog, *timeouts)
                if TRANSPORTS_HAVE_CONTEXTS:
                    arguments = (*arguments, context)
                self.call_later(constants.ACCEPT_RETRY_DELAY, self._serve_again, *arguments)
                return
            extra = {"peername": address}
            its = copy_context() if context is None else context.copy()
            own: dict[str, Any] = {} if context is None else {"context": its}
            if sslcontext is None:
                its.run(self._welcome, factory, conn, extra, server, **own)
            else:
                self.create_task(
                    self._accept_connection2(factory, conn, extra, sslcontext, server, *timeouts, **own), **own
                )

    def _welcome(self, factory: Any, conn: socket.socket, extra: dict[str, Any], server: Any, **own: Any) -> None:
        """Make protocol and transport of a connection at once, in a context of its own. asyncio does it in a task: that
        costs more than the accept itself, and the server may be closed before the task runs.
        """
        protocol = None
        try:
            protocol = factory()
            if server is None or server._serving:
                self._make_socket_transport(conn, protocol, extra=extra, server=server, **own)
            else:  # the factory has closed it, and nothing waits for this connection's end
                conn.close()
        except BaseException as error:
            conn.close()
            if isinstance(error, (SystemExit, KeyboardInterrupt)):
                raise
            if self._debug:  # as asyncio
                context = {"message": "Error on transport creation for incoming connection", "exception": error}
                if protocol is not None:
                    context["protocol"] = protocol
                self.call_exception_handler(context)

    async def _accept_connection2(  # for a connection that begins with a handshake: a task waits for it
        self,
        factory: Any,
        conn: socket.socket,
        extra: dict[str, Any],
        sslcontext: Any,
        server: Any,
        *timeouts: Any,
        **own: Any,
    ) -> None:
        try:
            if server is None or server.is_serving():
                await super()._accept_connection2(  # type: ignore[misc]
                    factory, conn, extra, sslcontext, server, *timeouts, **own
                )
        finally:
            if conn.fileno() not in self._transports:  # the server was closed meanwhile, or the factory has raised
                conn.close()

    def _serve_again(self, factory: Any, sock: Any, *rest: Any) -> None:
        if sock.fileno() != -1:  # closed meanwhile
            self._start_serving(factory, sock, *rest)

    @property
    def _nest_patched(self) -> bool:
        """nest_asyncio reads this before it replaces parts of asyncio's turn. This loop has none of those parts."""
        raise RuntimeError(
            "nest_asyncio cannot patch nbloop's EventLoop, whose turns are compiled and not re-entrant; run the inner"
            " coroutine in another thread, or use asyncio's own loop"
        )

    # --- the caller's own sockets
    #
    # asyncio takes the connection or the bytes in a callback, and gives them to a future. If the waiting task is
    # cancelled in the same turn, they are lost. Here a future only says that there is something to take, and the task
    # takes it when it resumes. So removing the reader costs no callback, either.

    def sock_recv(self, sock: socket.socket, nbytes: int) -> Coroutine[Any, Any, bytes]:
        """Receive up to `nbytes`. The loop's thread. A call that is cancelled has taken nothing from the socket."""
        return self._take(sock, "recv", nbytes)

    def sock_recv_into(self, sock: socket.socket, buf: Any) -> Coroutine[Any, Any, int]:
        """`sock_recv` into a buffer; returns the number of bytes."""
        return self._take(sock, "recv_into", buf)

    def sock_recvfrom(self, sock: socket.socket, bufsize: int) -> Coroutine[Any, Any, tuple[bytes, Any]]:
        """Receive a datagram of up to `bufsize` bytes; returns it and its sender. A call that is cancelled has taken
        nothing from the socket.
        """
        return self._take(sock, "recvfrom", bufsize)

    def sock_recvfrom_into(
        self, sock: socket.socket, buf: Any, nbytes: int = 0
    ) -> Coroutine[Any, Any, tuple[int, Any]]:
        """`sock_recvfrom` into the first `nbytes` of a buffer, or into all of it for 0."""
        return self._take(sock, "recvfrom_into", buf, nbytes)

    async def sock_accept(self, sock: socket.socket) -> tuple[socket.socket, Any]:
        """Accept a connection; returns its socket, which does not block, and the peer's address. A call that is
        cancelled has accepted nothing.
        """
        conn, address = await self._take(sock, "accept")
        conn.setblocking(False)
        return conn, address

    async def _take(self, sock: socket.socket, method: str, *arguments: Any) -> Any:
        """Call a method of the socket until it does not block."""
        base_events._check_ssl_socket(sock)
        if self._debug and sock.gettimeout() != 0:
            raise ValueError("the socket must be non-blocking")
        while True:
            try:
                return getattr(sock, method)(*arguments)
            except (BlockingIOError, InterruptedError):
                pass
            await self._readable(sock)

    async def _readable(self, sock: socket.socket) -> None:
        """Wait until there is, or has been, something to take: another task may take it first."""
        fd = sock.fileno()
        self._ensure_fd_no_transport(fd)
        ready = self.create_future()
        reader = self._add_reader(fd, set_done, ready)
        try:
            await ready
        finally:
            if not reader.cancelled():  # else another one has taken its place
                self._remove_reader(fd)

    # --- signals

    def add_signal_handler(  # type: ignore[override]
        self, sig: int, callback: Callable[..., object], *args: Any
    ) -> None:
        """Run ``callback(*args)`` for each arrival of a signal. Any thread, whichever thread the loop runs in."""
        if inspect.iscoroutinefunction(callback) or asyncio.iscoroutine(callback):
            raise TypeError("coroutines cannot be used with add_signal_handler()")
        self._check_signal(sig)
        self._check_closed()
        handle = Handle(callback, args, self, copy_context())
        try:
            self._core.add_signal_handler(sig, _signal_arrived, weakref.ref(self), sig)
        except ValueError as error:
            raise RuntimeError(f"sig {sig} cannot be caught") from error
        self._signal_handlers[sig] = handle

    def remove_signal_handler(self, sig: int) -> bool:
        """Undo `add_signal_handler`; the signal gets back the meaning that it had before. False: there was none."""
        self._check_signal(sig)
        return self._signal_handlers.pop(sig, None) is not None and self._core.remove_signal_handler(sig)

    @staticmethod
    def _check_signal(sig: object) -> None:
        if not isinstance(sig, int):
            raise TypeError(f"sig must be an int, not {sig!r}")
        if sig not in signal.valid_signals():
            raise ValueError(f"invalid signal number {sig}")

    # --- what went wrong, and debug mode

    def _callback_raised(
        self, handle: Any, callback: Callable[..., object], args: tuple[Any, ...], error: BaseException
    ) -> None:
        called = format_helpers._format_callback_source(callback, args)
        context = {"message": f"Exception in callback {called}", "exception": error, "handle": handle}
        if handle._source_traceback:
            context["source_traceback"] = handle._source_traceback
        self.call_exception_handler(context)

    def _note(self, handle: Any, callback: object, method: str) -> None:
        """Debug mode: check what is scheduled, and remember where."""
        self._check_callback(callback, method)
        handle._source_traceback = format_helpers.extract_stack(_getframe(2))

    @staticmethod
    def _forget_frame(handle: Any) -> None:
        """Drop the innermost frame that was noted: it is one of this class, of a method that calls another."""
        if handle._source_traceback:
            del handle._source_traceback[-1]

    def set_debug(self, enabled: bool) -> None:
        """asyncio's debug mode: the loop checks what is scheduled, remembers where, and logs slow callbacks."""
        if enabled:
            note_debug(self, True)
        super().set_debug(bool(enabled))  # a word that kernels compare
        if not enabled:
            note_debug(self, False)
        self._choose_run()
        for transport in list(self._transports.values()):
            if isinstance(transport, KernelTransport):
                transport.aim()

    def _choose_run(self) -> None:
        """Choose what runs a handle: the kernel, unless a tool or debug mode observes it, or timers wait on a replaced
        clock; and what makes a task: the kernel, unless a tool has replaced asyncio's method.
        """
        tools = tools_watch()
        clock = self._replaced_clock is not None and self._replaced_clock.watched
        words = WORDS_SLOT.__get__(self)
        words[AIO.TOOLS // 8] = tools or clock
        words[AIO.TASKS_SLOWLY // 8] = tools_make_tasks(super().create_task)
        self._run_seen = run_watched if tools else run
        self._run_handle = self._run_in_debug if self._debug else run_watched if tools else self._runner
        self._run = self._run_by_replaced_clock if clock else self._run_handle

    def _run_by_replaced_clock(self, handle: asyncio.Handle) -> None:
        try:
            self._run_handle(handle)
        finally:
            del handle  # as in `run`
            self._ask_replaced_clock()

    def _arm_by_replaced_clock(self, when: float, timer: TimerHandle) -> None:
        """Note a timer that was armed while the loop had another clock. Any thread, as `call_at`."""
        if self._replaced_clock is None:
            self.__dict__.setdefault("_replaced_clock", ReplacedClock())  # one, whichever thread is first
        clock = self._replaced_clock
        assert clock is not None
        clock.arm(when, timer)
        if not clock.watched:
            clock.watched = True
            if self._thread_id in (None, get_ident()):
                self._choose_run()
            self._submit(self._ask_replaced_clock)  # after all that is queued, and would not ask

    def _ask_replaced_clock(self) -> None:
        """Queue the timers that are due on the clock that replaces ours. A callback may have moved that clock."""
        clock = self._replaced_clock
        if clock is None:  # closed
            return
        try:
            if self.time is self._now:  # ours is back
                clock.forget()
            for timer in clock.due(self.time()):
                if self._core.cancel_timer(timer._scheduled):  # else it was cancelled, or our clock came first
                    self._submit(self._run, timer)
        finally:
            clock.watched = bool(clock)
            if clock.watched != (self._run == self._run_by_replaced_clock):
                self._choose_run()

    def _run_in_debug(self, handle: asyncio.Handle) -> None:
        start = self.time()
        self._current_handle = handle
        try:
            self._run_seen(handle)
        finally:
            self._current_handle = None
        took = self.time() - start
        if took >= self.slow_callback_duration:
            base_events.logger.warning("Executing %s took %.3f seconds", base_events._format_handle(handle), took)
        del handle  # as in `run`

    def __repr__(self) -> str:
        return (
            f"<nbloop.EventLoop {self._core.name} running={self.is_running()} closed={self.is_closed()}"
            f" debug={self._debug}>"
        )

    # --- the core wakes the loop: no pair of sockets

    def _make_self_pipe(self) -> None:
        pass

    def _close_self_pipe(self) -> None:
        pass

    def _write_to_self(self) -> None:
        pass


# Our own, although a tool may have replaced them when a loop is made.
_CALL_AT, _FORGETS = EventLoop.call_at, EventLoop._timer_handle_cancelled
_TIME: Any = EventLoop.time
