"""Run one module of CPython's own asyncio tests with nbloop's loop instead of asyncio's::

    python conformance/cpython.py test_events

The tests are those of the interpreter that runs this. Wherever a test makes an asyncio loop, by name or through the
policy, it gets an `nbloop.EventLoop`, so what it asserts about its loop is asserted about ours. Tests of the internals
of asyncio's own loop are skipped, each for a reason given here; a skipped test that no longer exists is an error.
"""

from __future__ import annotations

import importlib.util
import signal
import sys
import unittest
from collections.abc import Iterator

from stand import stand_for_asyncio

# Modules of `test.test_asyncio` that make loops, as far as this Python has them. The others test proactors, Windows and
# plain data structures.
KNOWN = (
    "test_base_events",
    "test_buffered_proto",
    "test_context",
    "test_eager_task_factory",
    "test_events",
    "test_free_threading",  # since 3.14
    "test_futures",
    "test_futures2",
    "test_graph",  # since 3.14
    "test_locks",
    "test_pep492",
    "test_queues",
    "test_runners",
    "test_selector_events",
    "test_sendfile",
    "test_server",
    "test_server_context",  # since 3.15
    "test_sock_lowlevel",
    "test_ssl",
    "test_sslproto",
    "test_staggered",
    "test_streams",
    "test_subprocess",
    "test_taskgroups",
    "test_tasks",
    "test_threads",
    "test_timeouts",
    "test_tools",  # since 3.14
    "test_unix_events",
    "test_waitfor",
)

NO_SELF_PIPE = "asks for the pair of sockets by which asyncio's loop wakes itself; ours wakes by futex or eventfd"
ONE_SELECTOR = "the same tests with another of asyncio's selectors; ours has one place to wait in"
MOCKED_SIGNALS = (
    "looks at asyncio's calls of the module `signal`; ours are others (tests/contract/test_signals.py, tests/aio)"
)
EXCLUDED = {
    "test_events.EPollEventLoopTests.test_internal_fds": NO_SELF_PIPE,
    "test_events.PollEventLoopTests": ONE_SELECTOR,
    "test_events.SelectEventLoopTests": ONE_SELECTOR,
    "test_unix_events.SelectorEventLoopSignalTests.test_add_signal_handler_install_error": MOCKED_SIGNALS,
    "test_unix_events.SelectorEventLoopSignalTests.test_add_signal_handler_install_error2": MOCKED_SIGNALS,
    "test_unix_events.SelectorEventLoopSignalTests.test_add_signal_handler_install_error3": MOCKED_SIGNALS,
    "test_unix_events.SelectorEventLoopSignalTests.test_add_signal_handler_setup_error": MOCKED_SIGNALS,
    "test_unix_events.SelectorEventLoopSignalTests.test_close": MOCKED_SIGNALS,
    "test_unix_events.SelectorEventLoopSignalTests.test_remove_signal_handler": MOCKED_SIGNALS,
    "test_unix_events.SelectorEventLoopSignalTests.test_remove_signal_handler_2": MOCKED_SIGNALS,
    "test_unix_events.SelectorEventLoopSignalTests.test_remove_signal_handler_error": MOCKED_SIGNALS,
    "test_unix_events.SelectorEventLoopSignalTests.test_remove_signal_handler_error2": MOCKED_SIGNALS,
}
if sys.version_info >= (3, 15):
    EXCLUDED["test_unix_events.PidfdChildWatcherTests.test_pidfd_closed_when_waitpid_raises"] = (
        "counts descriptors around the first that the loop watches; our epoll and eventfd are opened then, not before"
    )


def available() -> bool:
    """Whether this interpreter comes with the tests of its library."""
    return importlib.util.find_spec("test") is not None and importlib.util.find_spec("test.test_asyncio") is not None


MODULES = tuple(m for m in KNOWN if available() and importlib.util.find_spec(f"test.test_asyncio.{m}") is not None)


def each(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from each(test)
        else:
            yield test


def main(module: str) -> int:
    if (
        signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    ):  # as a shell without job control has it for what runs behind it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    stand_for_asyncio()
    loaded = unittest.defaultTestLoader.loadTestsFromName(f"test.test_asyncio.{module}")
    excluded = {name: 0 for name in EXCLUDED if name.split(".")[0] == module}
    suite = unittest.TestSuite()
    for test in each(loaded):
        name = test.id().removeprefix("test.test_asyncio.")
        if found := [one for one in excluded if name == one or name.startswith(one + ".")]:
            excluded[found[0]] += 1
        else:
            suite.addTest(test)
    result = unittest.TextTestRunner().run(suite)
    for name, count in excluded.items():
        print(f"left out: {count} of {name}: {EXCLUDED[name]}")
    if stale := [name for name, count in excluded.items() if count == 0]:
        print(f"there is no such test to leave out: {', '.join(stale)}")
        return 1
    print(f"{result.testsRun} run, {len(result.skipped)} skipped by CPython, {len(result.failures)} failures")
    return 0 if result.wasSuccessful() and result.testsRun else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
