"""``python -m nbloop``: the arguments of `demo`, `doctor` and `top`.

Problem: a command line has to be quick, and to fail in one clear line. Idea: only the chosen command is imported, and
what a user can get wrong (a file that is not there, a count of none, a closed pipe, Ctrl-C) ends in a message and a
status, never in a traceback.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from . import __version__

INTERRUPTED = 130  # what a shell reports for a command that Ctrl-C ended


def _count(text: str) -> int:
    try:
        value = int(text.replace("_", "").replace(",", ""))
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, not {text!r}")
    return value


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="nbloop" if not sys.argv[0].endswith("__main__.py") else "python -m nbloop",
        description="A lock-free event loop for free-threaded Python: see it work, and see what this machine gives it.",
    )
    parser.add_argument("--version", action="version", version=f"nbloop {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        help="count the words of a real text with threads and a loop, on nbloop and on asyncio",
        description="Producer threads parse the lines of a text and submit each line's word counts to a loop, which "
        "merges them: first nbloop, then asyncio, the same code on both. Ends with a table of both, and with the "
        "proof that the totals are equal (status 1 if they are not).",
    )
    demo.add_argument("--file", metavar="PATH", help="a text of yours (default: the standard library's sources)")
    demo.add_argument(
        "--lines", type=_count, default=200_000, metavar="N", help="read so many at most (default: 200,000)"
    )
    demo.add_argument("--producers", type=_count, default=4, metavar="N", help="parsing threads (default: 4)")
    demo.add_argument("--plain", action="store_true", help="plain lines, even on a terminal with rich installed")

    doctor = commands.add_parser(
        "doctor",
        help="say what of this machine and this Python the loop can use, and what would make it slow",
        description="What of this machine and this Python the loop can use, and what would make it slow.",
    )
    doctor.add_argument("--json", action="store_true", help="the same facts as JSON")

    top = commands.add_parser(
        "top",
        help="show the figures of running loops, live, even of one that hangs",
        description='Every loop of this user that was made with metrics="shared" (or under NBLOOP_METRICS=shared): '
        "what it is in, rates, depths, delays. Its process is not asked, so one that hangs is shown as well. Ctrl-C "
        "ends it.",
    )
    top.add_argument("pid", type=_count, nargs="?", metavar="PID", help="only the loops of this process")
    top.add_argument("--once", action="store_true", help="one look, as a table; status 1 if there is no loop")
    top.add_argument("--json", action="store_true", help="one look, as JSON; status 1 if there is no loop")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the status that the process should end with."""
    parser = make_parser()
    options = parser.parse_args(argv)
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
        parser.print_help()
        return 0
    except KeyboardInterrupt:
        print("nbloop: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has left: so do we, without a second complaint at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
