"""What importing does, and does not."""

from __future__ import annotations

import ast
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


BESIDES = """
import pathlib, sys, numpy, asyncio
before = {*sys.modules}
import nbloop
more = {*sys.modules} - before
print(sorted(name for name in more if name.partition(".")[0] != "nbloop"))
print(len(more))
status = pathlib.Path("/proc/self/status")  # not getrusage, whose most memory is that of the process before its exec
print(status.exists() and status.read_text().partition("VmHWM:")[2].split()[0])
"""
# What nbloop's own modules need of Python's and numpy's; CPython's build decides which of the small ones are in C.
NEEDED = {"copy", "dataclasses", "gc", "hashlib", "json", "mmap", "numpy.typing", "queue", "sysconfig"}
WITH_THEM = ("_", "json.", "ctypes.", "importlib.", "numpy._typing.")


@pytest.mark.skipif(object_cache.status.mode != "compiled", reason="kernels run as plain Python")
def test_import_needs_little(run_script) -> None:
    """contract: with compiled kernels there, beside numpy and asyncio few modules are needed, and half as much memory
    again at most. How long it takes is measured by `asv_bench.benchmarks.imports`.
    """
    modules, count, memory = run_script(BESIDES).splitlines()
    others = {name for name in ast.literal_eval(modules) if not name.startswith(WITH_THEM)}
    assert others <= NEEDED
    assert int(count) <= 150
    alone = run_script(BESIDES.replace("import nbloop", "")).splitlines()[2]
    if memory != "False":
        assert int(memory) <= 1.5 * int(alone)


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
