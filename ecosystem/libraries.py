"""What programs do with the libraries of docs/recipes.md, on asyncio's loop and on nbloop's.

    python libraries.py asyncio|nbloop LIBRARY

prints what each check of the library raised, as JSON. It runs in the environment of scripts/ecosystem.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import nbloop

type Check = Callable[[], Coroutine[Any, Any, None]]

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.SelectorEventLoop,
    "nbloop": nbloop.new_event_loop,
}
SECONDS = 30.0
MESSAGE = bytes(range(256)) * 4096  # 1 MB

CHECKS: dict[str, list[Check]] = {}


def check(library: str) -> Callable[[Check], Check]:
    """The decorated coroutine function uses a library, and raises if that does not do what it should."""

    def add(function: Check) -> Check:
        CHECKS.setdefault(library, []).append(function)
        return function

    return add


# --- HTTP


@contextlib.asynccontextmanager
async def aiohttp_server() -> Any:
    """A client's session with a server in the same loop."""
    import aiohttp
    from aiohttp import web

    async def echo(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        async for chunk in request.content.iter_chunked(65536):
            await response.write(chunk)
        return response

    async def sleep(_request: web.Request) -> web.Response:
        await asyncio.sleep(60)
        return web.Response()

    async def talk(request: web.Request) -> web.WebSocketResponse:
        one = web.WebSocketResponse()
        await one.prepare(request)
        async for message in one:
            await one.send_bytes(message.data)
        return one

    async def hello(_request: web.Request) -> web.Response:
        return web.json_response({"hello": "world"})

    app = web.Application()
    app.add_routes(
        [web.get("/", hello), web.post("/echo", echo), web.get("/sleep", sleep), web.get("/talk", talk)],
    )
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as session:
            yield session
    finally:
        await runner.cleanup()


@check("aiohttp")
async def aiohttp_answers() -> None:
    async with aiohttp_server() as session:

        async def get() -> Any:
            async with session.get("/") as response:
                return await response.json()

        assert await asyncio.gather(*(get() for _ in range(200))) == [{"hello": "world"}] * 200


@check("aiohttp")
async def aiohttp_streams_both_ways() -> None:
    async with aiohttp_server() as session, session.post("/echo", data=MESSAGE) as response:
        assert await response.read() == MESSAGE


@check("aiohttp")
async def aiohttp_times_out() -> None:
    import aiohttp

    async with aiohttp_server() as session:
        try:
            async with session.get("/sleep", timeout=aiohttp.ClientTimeout(total=0.05)):
                raise AssertionError("no time-out")
        except TimeoutError:
            pass


@check("aiohttp")
async def aiohttp_talks_through_a_websocket() -> None:
    async with aiohttp_server() as session, session.ws_connect("/talk") as one:
        for size in (0, 1, 125, 65536, 1_000_000):
            await one.send_bytes(bytes(size))
            assert await one.receive_bytes() == bytes(size)


async def iterate(chunks: list[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


@contextlib.asynccontextmanager
async def uvicorn_server() -> Any:
    """A client of httpx's with a Starlette application of uvicorn's in the same loop, and what its lifespan did."""
    import httpx
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse, StreamingResponse
    from starlette.routing import Route

    happened = []

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> Any:
        happened.append("begun")
        yield
        happened.append("ended")

    async def hello(request: Request) -> PlainTextResponse:
        return PlainTextResponse(f"hello {request.path_params['name']}")

    async def echo(request: Request) -> StreamingResponse:
        chunks = [chunk async for chunk in request.stream()]  # httpx reads no answer before it has sent its request
        return StreamingResponse(iterate(chunks))

    app = Starlette(
        routes=[Route("/hello/{name}", hello), Route("/echo", echo, methods=["POST"])],
        lifespan=lifespan,
    )
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.001)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            yield client, happened
    finally:
        server.should_exit = True
        await serving


@check("uvicorn")
@check("httpx")
async def uvicorn_answers() -> None:
    async with uvicorn_server() as (client, _):
        answers = await asyncio.gather(*(client.get(f"/hello/{number}") for number in range(100)))
        assert [answer.text for answer in answers] == [f"hello {number}" for number in range(100)]


@check("uvicorn")
@check("httpx")
async def uvicorn_streams_both_ways() -> None:
    async with uvicorn_server() as (client, _):
        assert (await client.post("/echo", content=MESSAGE)).content == MESSAGE


@check("uvicorn")
async def uvicorn_runs_a_lifespan() -> None:
    async with uvicorn_server() as (client, happened):
        assert (await client.get("/nowhere")).status_code == 404
        assert happened == ["begun"]
    assert happened == ["begun", "ended"]


@check("httpx")
async def httpx_times_out() -> None:
    import httpx

    async def silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await over.wait()
        writer.close()

    over = asyncio.Event()
    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server, httpx.AsyncClient(timeout=0.05) as client:
        port = server.sockets[0].getsockname()[1]
        try:
            await client.get(f"http://127.0.0.1:{port}")
            raise AssertionError("no time-out")
        except httpx.ReadTimeout:
            over.set()


@check("websockets")
async def websockets_talk() -> None:
    from websockets.asyncio.client import connect
    from websockets.asyncio.server import ServerConnection, serve

    async def echo(connection: ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)

    async def talk(port: int) -> None:
        async with connect(f"ws://127.0.0.1:{port}") as connection:
            for message in ("", "text", MESSAGE):
                await connection.send(message)
                assert await connection.recv() == message
            await (await connection.ping())

    async with serve(echo, "127.0.0.1", 0, max_size=None) as server:
        await asyncio.gather(*(talk(server.sockets[0].getsockname()[1]) for _ in range(10)))


@check("websockets")
async def websockets_close_with_a_code() -> None:
    from websockets.asyncio.client import connect
    from websockets.asyncio.server import ServerConnection, serve
    from websockets.exceptions import ConnectionClosedError

    async def refuse(connection: ServerConnection) -> None:
        await connection.close(1008, "no")

    async with serve(refuse, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with connect(f"ws://127.0.0.1:{port}") as connection:
            try:
                await connection.recv()
                raise AssertionError("open")
            except ConnectionClosedError:
                assert (connection.close_code, connection.close_reason) == (1008, "no")


@check("tornado")
async def tornado_answers() -> None:
    import tornado.httpclient
    import tornado.httpserver
    import tornado.testing
    import tornado.web

    class Hello(tornado.web.RequestHandler):
        def get(self, name: str) -> None:
            self.write(f"hello {name}")

    server = tornado.httpserver.HTTPServer(tornado.web.Application([("/(.*)", Hello)]))
    sock, port = tornado.testing.bind_unused_port()
    server.add_socket(sock)
    client = tornado.httpclient.AsyncHTTPClient(force_instance=True)
    answers = await asyncio.gather(*(client.fetch(f"http://127.0.0.1:{port}/{number}") for number in range(20)))
    assert [answer.body.decode() for answer in answers] == [f"hello {number}" for number in range(20)]
    client.close()
    server.stop()
    await server.close_all_connections()


@check("tornado")
async def tornado_streams_call_back_and_time_out() -> None:
    import tornado.gen
    import tornado.ioloop
    import tornado.iostream
    import tornado.tcpserver

    class Echo(tornado.tcpserver.TCPServer):
        async def handle_stream(self, stream: tornado.iostream.IOStream, _address: Any) -> None:
            await stream.write(await stream.read_until(b"\n"))

    server = Echo()
    server.listen(0, "127.0.0.1")
    [sock] = server._sockets.values()
    import socket

    stream = tornado.iostream.IOStream(socket.socket())
    await stream.connect(sock.getsockname())
    await stream.write(b"a line\n")
    assert await stream.read_until(b"\n") == b"a line\n"
    ticks: list[None] = []
    periodic = tornado.ioloop.PeriodicCallback(lambda: ticks.append(None), 1)
    periodic.start()
    while len(ticks) < 3:
        await asyncio.sleep(0.001)
    periodic.stop()
    try:
        await tornado.gen.with_timeout(tornado.ioloop.IOLoop.current().time() + 0.01, stream.read_until(b"never"))
        raise AssertionError("no time-out")
    except (tornado.util.TimeoutError, tornado.iostream.StreamClosedError):
        pass
    stream.close()
    server.stop()


# --- structured concurrency, locks, queues


@check("anyio")
async def anyio_cancels() -> None:
    import anyio

    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep_forever)
        with anyio.move_on_after(0.01) as scope:
            await anyio.sleep_forever()
        assert scope.cancelled_caught
        group.cancel_scope.cancel()


@check("anyio")
async def anyio_listens_and_connects() -> None:
    import anyio

    async def echo(stream: Any) -> None:
        async with stream:
            async for chunk in stream:
                await stream.send(chunk)

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, echo)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            await stream.send(b"hello")
            assert await stream.receive() == b"hello"
        group.cancel_scope.cancel()


@check("anyio")
async def anyio_uses_threads_and_processes() -> None:
    import anyio
    import anyio.from_thread
    import anyio.to_thread

    assert await anyio.to_thread.run_sync(lambda: anyio.from_thread.run(asyncio.sleep, 0, "back")) == "back"
    done = await anyio.run_process([sys.executable, "-c", "print('hello')"])
    assert done.stdout == b"hello\n"


@check("aiologic")
async def aiologic_locks_between_threads_and_tasks() -> None:
    import aiologic

    lock, total = aiologic.Lock(), [0]

    def in_a_thread() -> None:
        for _ in range(200):
            with lock:
                total[0] += 1

    async def in_a_task() -> None:
        for _ in range(200):
            async with lock:
                before = total[0]
                await asyncio.sleep(0)
                total[0] = before + 1

    await asyncio.gather(*(asyncio.to_thread(in_a_thread) for _ in range(2)), *(in_a_task() for _ in range(2)))
    assert total == [800]


@check("aiologic")
async def aiologic_events_and_semaphores() -> None:
    import aiologic

    event, semaphore = aiologic.Event(), aiologic.Semaphore(2)
    waiting = asyncio.gather(*(event for _ in range(10)))
    await asyncio.to_thread(event.set)
    assert all(await waiting)
    async with semaphore, semaphore:
        assert not semaphore.green_acquire(blocking=False)


@check("culsans")
async def culsans_queues_between_threads_and_tasks() -> None:
    import culsans

    queue: culsans.Queue[int] = culsans.Queue(maxsize=10)
    put = asyncio.to_thread(lambda: [queue.sync_q.put(number) for number in range(500)])
    got, _ = await asyncio.gather(take(queue.async_q, 500), put)
    assert got == list(range(500))
    await queue.aclose()


async def take(queue: Any, count: int) -> list[int]:
    return [await queue.get() for _ in range(count)]


@check("janus")
async def janus_queues_between_threads_and_tasks() -> None:
    import janus

    queue: janus.Queue[int] = janus.Queue(maxsize=10)
    put = asyncio.to_thread(lambda: [queue.sync_q.put(number) for number in range(500)])
    got, _ = await asyncio.gather(take(queue.async_q, 500), put)
    assert got == list(range(500))
    await queue.aclose()


# --- databases and brokers


@check("redis")
async def redis_counts_and_pipes() -> None:
    import redis.asyncio

    async with redis.asyncio.Redis.from_url(os.environ["REDIS_URL"]) as client:
        await client.delete("count")
        await asyncio.gather(*(client.incr("count") for _ in range(50)))
        async with client.pipeline() as pipe:
            pipe.get("count")
            pipe.set("large", MESSAGE)
            pipe.get("large")
            assert await pipe.execute() == [b"50", True, MESSAGE]


@check("redis")
async def redis_publishes_and_blocks() -> None:
    import redis.asyncio

    async with redis.asyncio.Redis.from_url(os.environ["REDIS_URL"]) as client:
        async with client.pubsub() as channel:
            await channel.subscribe("news")
            assert (await anext(channel.listen()))["type"] == "subscribe"
            await client.publish("news", "hello")
            assert (await anext(channel.listen()))["data"] == b"hello"
        pop = asyncio.create_task(client.blpop("list", 10))
        await client.rpush("list", "item")
        assert await pop == (b"list", b"item")


@check("asyncpg")
async def asyncpg_asks_through_a_pool() -> None:
    import asyncpg

    async with asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=1, max_size=4) as pool:
        squares = await asyncio.gather(*(pool.fetchval("SELECT $1::int * $1", number) for number in range(50)))
        assert squares == [number * number for number in range(50)]


@check("asyncpg")
async def asyncpg_rolls_back_cancels_and_listens() -> None:
    import asyncpg

    one = await asyncpg.connect(os.environ["DATABASE_URL"])
    try:
        await one.execute("CREATE TEMPORARY TABLE t (n int)")
        with contextlib.suppress(ZeroDivisionError):
            async with one.transaction():
                await one.execute("INSERT INTO t VALUES (1)")
                raise ZeroDivisionError
        assert await one.fetchval("SELECT count(*) FROM t") == 0
        try:
            await one.fetchval("SELECT pg_sleep(60)", timeout=0.05)
            raise AssertionError("no time-out")
        except TimeoutError:
            pass
        await one.copy_records_to_table("t", records=[(number,) for number in range(1000)])
        assert await one.fetchval("SELECT sum(n) FROM t") == 499500
        heard: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        await one.add_listener("news", lambda *told: heard.set_result(told[-1]))
        await one.execute("NOTIFY news, 'hello'")
        assert await heard == "hello"
    finally:
        await one.close()


@check("nats-py")
async def nats_publishes_and_answers() -> None:
    import nats

    client = await nats.connect(os.environ["NATS_URL"])

    async def answer(message: Any) -> None:
        await message.respond(message.data[::-1])

    await client.subscribe("reverse", cb=answer)
    assert (await client.request("reverse", b"hello", timeout=SECONDS)).data == b"olleh"
    news = await client.subscribe("news")
    await asyncio.gather(*(client.publish("news", b"%d" % number) for number in range(200)))
    assert [int((await news.next_msg(SECONDS)).data) for _ in range(200)] == list(range(200))
    await client.drain()


# --- others


@check("distributed")
async def distributed_computes() -> None:
    from distributed import Client, LocalCluster

    options: Any = {"n_workers": 2, "processes": False, "dashboard_address": None, "asynchronous": True}
    async with LocalCluster(**options) as cluster, Client(cluster, asynchronous=True) as client:
        squares = client.map(lambda number: number * number, range(100))
        assert await client.submit(sum, squares) == 328350
        try:
            await client.submit(lambda: 1 / 0)
            raise AssertionError("no error")
        except ZeroDivisionError:
            pass


@check("pytest-asyncio")
async def pytest_asyncio_runs_tests() -> None:
    loop = asyncio.get_running_loop()
    text = f"""
import asyncio, pytest, nbloop
make = {"nbloop.new_event_loop" if isinstance(loop, nbloop.EventLoop) else "asyncio.SelectorEventLoop"}
def pytest_asyncio_loop_factories(config, item):
    return {{"it": make}}
"""
    tests = f"""
import asyncio, pytest, pytest_asyncio
@pytest_asyncio.fixture
async def value():
    await asyncio.sleep(0)
    yield 1
    await asyncio.sleep(0)
@pytest.mark.asyncio
async def test_value(value):
    assert value == 1
    assert type(asyncio.get_running_loop()).__module__ == {type(loop).__module__!r}
@pytest.mark.asyncio
async def test_time_out():
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await asyncio.sleep(60)
"""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "conftest.py").write_text(text, encoding="utf-8")
        (Path(folder) / "test_it.py").write_text(tests, encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", folder]
        child = await asyncio.create_subprocess_exec(*command, cwd=folder, stdout=subprocess.PIPE)
        said, _ = await child.communicate()
        assert b"2 passed" in said, said.decode()


def main(loop: str, library: str) -> None:
    raised: dict[str, str | None] = {}
    for one in CHECKS[library]:
        raised[one.__name__] = None
        try:
            with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
                runner.run(asyncio.wait_for(one(), SECONDS))
        except Exception as error:
            raised[one.__name__] = repr(error)
    print(json.dumps(raised))


if __name__ == "__main__":
    main(*sys.argv[1:])
