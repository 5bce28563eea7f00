"""Finalisers that run while the interpreter ends: other threads stand still then, so nothing may wait for one."""

from __future__ import annotations

import json

WAITS = {
    # What is made before, and what the finaliser calls.
    "loop.shutdown": ("", "loop.shutdown()"),
    "loop.shutdown, with time": ("", "loop.shutdown(30)"),
    "loop.close": ("", "loop.close()"),
    "loop.wait": ("", "loop.wait()"),
    "loop.call": ("", "loop.call(int)"),
    "promise.result": ("promise = js.JS(loop).with_resolvers()[0]", "promise.result()"),
    "group.shutdown": ("group = nbloop.LoopGroup(2); group.start()", "group.shutdown()"),
    "group.close": ("group = nbloop.LoopGroup(2); group.start()", "group.close()"),
    "group.wait": ("group = nbloop.LoopGroup(2); group.start()", "group.wait()"),
    "channel.put": (
        "channel = nbloop.Loop().channel([('a', 'i8')], print, capacity=2, on_full='wait')",
        "[channel.put(n) for n in range(9)]",
    ),
    "queue.get_wait": ("queue = nbloop.aio.Queue()", "queue.get_wait()"),
    "queue.put_wait": ("queue = nbloop.aio.Queue(1); queue.put_nowait(1)", "queue.put_wait(2)"),
    "loop.start": ("other = nbloop.Loop()", "other.start()"),
}
ENDS = {
    "watchdog.stop": ("watchdog = loop.watch(1)", "watchdog.stop()"),
    "profiler.stop": ("profiler = Profiler(); profiler.start()", "profiler.stop()"),
    "server.close": ("server = serve(loop)", "server.close()"),
    "executor.shutdown": ("executor = nbloop.LoopExecutor(loop); executor.submit(int)", "executor.shutdown()"),
    "a loop of its own": ("other = nbloop.Loop(auto_exit=True); other.submit(int)", "other.run()"),
    "loop.submit": ("", "loop.submit(int)"),
}


def test_no_finaliser_waits_for_a_thread(run_script):
    """contract: what would wait raises PythonFinalizationError; what only ends a thread returns."""
    cases = {name: make for name, (make, _) in (WAITS | ENDS).items()}
    calls = {name: call for name, (_, call) in (WAITS | ENDS).items()}
    functions = "".join(
        f"""
def case_{number}():
    loop = nbloop.Loop()
    loop.start()
    loop.call(int)
    {cases[name] or "pass"}
    def call():
        {calls[name]}
    return {name!r}, call
"""
        for number, name in enumerate(cases)
    )
    out = run_script(
        "import os, sys\nimport nbloop\nimport nbloop.aio\nfrom nbloop import js\nfrom nbloop.observe import serve\n"
        "from nbloop.observe.profile import Profiler\n"
        + functions
        + f"""
class Finaliser:
    def __init__(self, calls):
        self.calls = calls
    def __del__(self, write=os.write, finalizing=sys.is_finalizing):
        assert finalizing()
        for name, call in self.calls:
            try:
                call()
            except PythonFinalizationError:
                said = "raised"
            except BaseException as error:
                said = repr(error)
            else:
                said = "returned"
            write(1, f'["{{name}}", "{{said}}"]\\n'.encode())

# The interpreter lets go of this first, while all modules are still whole.
sys.last_value = Finaliser([globals()[f"case_{{number}}"]() for number in range({len(cases)})])
"""
    )
    said = dict(json.loads(line) for line in out.splitlines())
    assert said == dict.fromkeys(WAITS, "raised") | dict.fromkeys(ENDS, "returned")
