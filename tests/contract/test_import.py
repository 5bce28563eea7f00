"""What importing does, and does not."""

from __future__ import annotations

import os
import sys
import sysconfig

import pytest

from nbloop.kernels.build import object_cache

EVERYTHING = """
import importlib, pkgutil, sys
import nbloop
for module in pkgutil.walk_packages(nbloop.__path__, "nbloop."):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except ImportError as error:  # an optional part whose library is not here
            assert not (error.name or "nbloop").startswith("nbloop"), error
nbloop.Loop(auto_exit=True).run()
"""


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python has a GIL to be on")
def test_gil_stays_off(run_script):
    """contract: importing never turns the GIL on: every module of the package, and a loop run."""
    run_script(EVERYTHING + "assert not sys._is_gil_enabled()", PYTHON_GIL="")


def test_warm_import_is_light(run_script):
    """contract: numba and llvmlite are imported only if kernels have to be compiled; here they have been by now."""
    out = run_script(
        "import sys, nbloop; nbloop.Loop(auto_exit=True).run();"
        "print({'numba', 'llvmlite', 'asyncio', 'importlib.metadata'} & set(sys.modules))"
    )
    assert out == "set()\n"


def test_import_warns_of_nothing(run_script):
    """contract: every module, with warnings as errors: nothing is read that this Python has deprecated."""
    run_script("import numpy, asyncio\nimport warnings\nwarnings.simplefilter('error')\n" + EVERYTHING)


def test_without_asyncios_policies(run_script):
    """contract, asyncio: as from Python 3.16 on. Nothing of them is read at import, and all else works."""
    run_script(
        """
        import asyncio
        vars(asyncio).pop("DefaultEventLoopPolicy", None)
        looked = []
        def missing(name):
            looked.append(name)
            raise AttributeError(name)
        asyncio.__getattr__ = missing
        import nbloop, nbloop.aio
        nbloop.run(asyncio.sleep(0))
        assert "DefaultEventLoopPolicy" not in looked
        for module in (nbloop, nbloop.aio):
            assert not hasattr(module, "EventLoopPolicy")
            try:
                module.EventLoopPolicy
            except AttributeError as error:
                assert "EventLoopPolicy" in str(error)
        """
    )


def used(program: str, environment: dict[str, str]) -> tuple[float, float]:
    """Processor time and most memory of a process of its own, in seconds and KiB."""
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", program], environment)
    _, status, usage = os.wait4(pid, 0)
    assert status == 0
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="the system does not say what a process has used")
@pytest.mark.skipif(object_cache.status.mode != "compiled", reason="kernels run as plain Python")
def test_import_costs_little_more_than_what_it_needs() -> None:
    """contract: with compiled kernels there, time at most 1.25 and memory at most 1.5 of `import numpy, asyncio`.

    The least of several rounds counts, because a busy machine makes each longer, and none shorter.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    programs = ("import numpy, asyncio", "import nbloop")
    for program in programs:  # what they import is compiled to bytecode
        used(program, environment)
    least = [(1e9, 1e9)] * 2
    for _ in range(20):
        for i, program in enumerate(programs):
            least[i] = tuple(map(min, least[i], used(program, environment)))  # type: ignore[assignment]
        (time, memory), (our_time, our_memory) = least
        if our_time <= 1.25 * time and our_memory <= 1.5 * memory:
            return
    pytest.fail(f"{our_time:.3f} s, {our_memory:.0f} KiB for nbloop; {time:.3f} s, {memory:.0f} KiB for the others")


def test_nothing_runs_by_itself(run_script):
    """contract: importing starts no thread and opens no descriptor."""
    run_script(
        """
        import os, sys, threading
        import numpy
        before = os.listdir("/proc/self/fd")
        import nbloop
        assert threading.active_count() == 1
        assert os.listdir("/proc/self/fd") == before
        """
    )


def test_exit_with_a_running_loop(run_script):
    """contract, start: at the interpreter's exit a loop that nobody shut down is not waited for, busy or asleep."""
    out = run_script(
        """
        import nbloop
        loops = [nbloop.Loop(fast_path_mode=mode) for mode in nbloop.FastPathMode for _ in "12"]
        for i, loop in enumerate(loops):
            loop.start()
            if i % 2:
                loop.schedule_interval(0, int)
        print("end")
        """
    )
    assert out == "end\n"


def test_public_names():
    """contract: every name in __all__ exists and is documented."""
    import nbloop

    for name in nbloop.__all__:
        assert getattr(nbloop, name).__doc__, name
    assert sys.modules["nbloop"].__version__


def test_methods_show_their_documentation(loop):
    """contract: the built-in methods of a loop have the names, signatures and docstrings of the class's."""
    import inspect

    for name in ("submit", "submit_many", "schedule_timer", "cancel_timer", "alive", "now", "stop"):
        method, documented = getattr(loop, name), getattr(type(loop), name)
        assert method.__name__ == name
        assert inspect.getdoc(method) == inspect.getdoc(documented)
        names = list(inspect.signature(documented).parameters)[1:]
        assert list(inspect.signature(method).parameters) == names


@pytest.mark.parametrize("kind", ["legacy", "isolated"])
@pytest.mark.parametrize("first", [False, True])
def test_a_subinterpreter_is_refused(run_script, kind, first):
    """contract, Forked copies: ImportError, whether the main interpreter has imported nbloop or not; there it works."""
    out = run_script(
        f"""
        import _interpreters as interpreters
        if {first}:
            import nbloop
        other = interpreters.create({kind!r})
        failed = interpreters.run_string(other, '''if True:
            try:
                import nbloop
            except ImportError as error:
                print(error, flush=True)
        ''')
        assert failed is None, failed
        interpreters.destroy(other)
        import nbloop
        loop, ran = nbloop.Loop(auto_exit=True), []
        loop.submit(ran.append, "works")
        loop.run()
        print(*ran)
        """
    )
    refused, works = out.splitlines()
    assert refused.startswith("nbloop works in the main interpreter only")
    assert works == "works"
