"""``python -m nbloop``: the arguments of its commands.

Problem: a command line must start fast and fail with one clear line. Idea: only the chosen command is imported, and
every user error (a missing file, a count of zero, a closed pipe, Ctrl-C) ends in a message and a status, never in a
traceback.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from . import __version__

INTERRUPTED = 130  # the status that a shell reports for a command ended by Ctrl-C


def _count(text: str) -> int:
    try:
        value = int(text.replace("_", "").replace(",", ""))
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, at least 1, not {text!r}")
    return value


def _hertz(text: str) -> int:
    value = _count(text)
    if value > 1000:
        raise argparse.ArgumentTypeError(f"must be from 1 to 1000, not {text!r}")
    return value


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError(f"must be a number of seconds, at most 3600, not {text!r}")
    return value


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="nbloop" if not sys.argv[0].endswith("__main__.py") else "python -m nbloop",
        description="A lock-free event loop for free-threaded Python: see it work, and check this machine for it.",
    )
    parser.add_argument("--version", action="version", version=f"nbloop {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        help="count the words of a real text with threads and a loop, on nbloop and on asyncio",
        description="Producer threads parse the lines of a text and submit each line's word counts to a loop, which "
        "merges them: first nbloop, then asyncio, with the same code. It ends with a table that compares both, and "
        "checks that all totals are equal (status 1 if they are not).",
    )
    demo.add_argument("--file", metavar="PATH", help="the text to read (default: the standard library's sources)")
    demo.add_argument(
        "--lines", type=_count, default=200_000, metavar="N", help="read at most N lines (default: 200,000)"
    )
    demo.add_argument("--producers", type=_count, default=4, metavar="N", help="parsing threads (default: 4)")
    demo.add_argument("--plain", action="store_true", help="plain lines, even on a terminal with rich installed")

    doctor = commands.add_parser(
        "doctor",
        help="report what the loop can use on this machine and Python, and what would make it slow",
        description="Reports what the loop can use on this machine and Python, and what would make it slow.",
    )
    doctor.add_argument("--json", action="store_true", help="print the same facts as JSON")

    top = commands.add_parser(
        "top",
        help="show live figures of running loops, even of one that hangs",
        description='Shows every loop of this user that was made with metrics="shared" (or under '
        "NBLOOP_METRICS=shared): its current callback, rates, queue depths, delays. It reads shared memory without "
        "involving the loop's process, so it also works for one that hangs. Ctrl-C ends it.",
    )
    top.add_argument("pid", type=_count, nargs="?", metavar="PID", help="only the loops of this process")
    top.add_argument("--once", action="store_true", help="print one table and exit; status 1 if there is no loop")
    top.add_argument("--json", action="store_true", help="print JSON once and exit; status 1 if there is no loop")

    profile = commands.add_parser(
        "profile",
        help="run a script, and write where its time and memory went",
        description="Runs a script as python would, samples all of its threads, and writes into a folder: CPU time, "
        "waiting and allocations for pprof and speedscope, what threads cost each other on each loop, and with "
        "--trace the last events of each loop for Perfetto. A summary goes to standard error.",
        epilog="Example: python -m nbloop profile --trace server.py --port 8000",
    )
    profile.add_argument("--output", default="nbloop-profile", metavar="DIR", help="default: nbloop-profile")
    profile.add_argument("--hertz", type=_hertz, default=100, metavar="N", help="samples per second (default: 100)")
    profile.add_argument(
        "--memory", action="store_true", help="also what is held at the end, by tracemalloc, which slows the script"
    )
    profile.add_argument("--trace", action="store_true", help="also a trace of each loop's last 65,536 events")
    profile.add_argument("-m", action="store_true", dest="as_module", help="run a module, as python -m does")
    profile.add_argument("program", metavar="SCRIPT", help="the script, or with -m the module")
    profile.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="its arguments")

    bench = commands.add_parser(
        "bench",
        help="measure time, allocations and bytes of one operation: nbloop's own, or of your benchmarks",
        description="Runs each function bench_NAME(b) of the files: it does something b.n times, and b.reset_timer() "
        "forgets what came before. Without a file, nbloop's own. Compares two saved runs as benchstat does.",
        epilog="Example: python -m nbloop bench mine.py --save old.json; ...; python -m nbloop bench mine.py --save "
        "new.json; python -m nbloop bench --compare old.json new.json",
    )
    bench.add_argument("files", nargs="*", metavar="FILE", help="Python files with functions bench_NAME(b)")
    bench.add_argument("--only", default="*", metavar="PATTERN", help="names to run, such as 'submit*' (default: all)")
    bench.add_argument("--count", type=_count, default=10, metavar="N", help="rounds of each (default: 10)")
    bench.add_argument("--time", type=_seconds, default=0.1, metavar="S", help="seconds of a round (default: 0.1)")
    bench.add_argument("--save", metavar="PATH", help="write all rounds, for --compare")
    bench.add_argument("--compare", nargs=2, metavar=("OLD", "NEW"), help="compare two saved runs, and measure nothing")

    serve = commands.add_parser(
        "serve",
        help="serve an ASGI application on every core of one process",
        usage="%(prog)s [-h] [--loops N] [--lifespan {each,primary}] [--placement {system,least busy}] "
        "[--require-free-threading] [an option of uvicorn ...] MODULE:APP",
        description="Serve an ASGI application with uvicorn (pip install nbloop[asgi]), on several loops of one "
        "process. All other options are uvicorn's own, without --workers, --reload, --loop and --fd.",
        epilog="Example: python -m nbloop serve shop:app --loops 4 --port 8000 --log-level warning",
    )
    serve.add_argument("--loops", type=_count, metavar="N", help="loops (default: the cores that may be used)")
    serve.add_argument(
        "--lifespan",
        choices=("each", "primary"),
        default="each",
        help="on every loop, or once a process (default: each)",
    )
    serve.add_argument("--placement", choices=("system", "least busy"), help="who spreads connections over the loops")
    serve.add_argument("--require-free-threading", action="store_true", help="refuse to start with the GIL on")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status."""
    parser = make_parser()
    options, rest = parser.parse_known_args(argv)
    if rest and options.command != "serve":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        if options.command == "demo":
            from .cli import demo

            return demo.main(options.file, lines=options.lines, producers=options.producers, plain=options.plain)
        if options.command == "doctor":
            from .cli import doctor

            return doctor.main(as_json=options.json)
        if options.command == "top":
            from .cli import top

            return top.main(options.pid, once=options.once, as_json=options.json)
        if options.command == "profile":
            from .cli import profile

            return profile.main(
                options.program,
                options.arguments,
                as_module=options.as_module,
                folder=options.output,
                hertz=options.hertz,
                memory=options.memory,
                trace=options.trace,
            )
        if options.command == "bench":
            from .cli import bench

            if options.compare is not None:
                return bench.compare(*options.compare)
            return bench.main(
                options.files, pattern=options.only, count=options.count, seconds=options.time, save=options.save
            )
        if options.command == "serve":
            try:
                from . import asgi
            except ImportError as error:
                print(f"nbloop: serve needs uvicorn: pip install nbloop[asgi] ({error})", file=sys.stderr)
                return 1

            return asgi.main(
                rest,
                loops=options.loops,
                lifespan=options.lifespan,
                placement=options.placement,
                require_free_threading=options.require_free_threading,
            )
        parser.print_help()
        return 0
    except KeyboardInterrupt:
        print("nbloop: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output closed it: exit too, without a second error at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
