"""The command line, run as a user runs it: as a process, by what it prints and the status it ends with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

import nbloop
from nbloop.__main__ import main

pytestmark = pytest.mark.parallel_threads(1)  # processes, and output that is captured for the whole process

SIX = ("the cat and the dog", "", "the end", "Größe 5 x1", "a\x0cb", "the")


def run(*arguments: str, status: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "nbloop", *arguments],
        check=False,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"} | environment,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("\n".join(SIX * 20) + "\n", encoding="utf-8")
    return file


def test_no_command_prints_help_with_both(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert "demo" in shown
    assert "doctor" in shown


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert nbloop.__version__ in capsys.readouterr().out


def test_demo_counts_a_file_and_proves_equal_totals(text: Path) -> None:
    done = run("demo", "--file", str(text), "--producers", "3")
    assert "120 lines" in done.stdout
    assert "all totals are equal" in done.stdout
    # By hand: the cat and the dog (5), the end (2), Größe x1 (2), a b (2), the (1); different: 9 words.
    rows = [line.split() for line in done.stdout.splitlines()]
    totals = {row[0]: row[-3:] for row in rows if row and row[0] in {"counted", "nbloop", "producer()", "asyncio"}}
    assert set(totals) == {"counted", "nbloop", "producer()", "asyncio"}
    assert {tuple(row[:2]) for row in totals.values()} == {("240", "9")}
    assert len({row[2] for row in totals.values()}) == 1
    assert "the 80" in done.stdout
    for row in (
        "lines/s, end to end",
        "submit, per call (p50)",
        "hop, loop asleep (p50)",
        "submit to run (p99)",
        "echo, CPU time a request",
        "HTTP, CPU time a request",
    ):
        assert row in done.stdout
    assert done.stderr == ""


def test_demo_reads_the_standard_library_up_to_lines() -> None:
    done = run("demo", "--lines", "100", "--producers", "1", "--plain")
    assert "100 lines of this Python's standard library" in done.stdout
    assert "all totals are equal" in done.stdout


def test_demo_with_fewer_lines_than_producers(tmp_path: Path) -> None:
    file = tmp_path / "one.txt"
    file.write_text("one")
    assert "all totals are equal" in run("demo", "--file", str(file), "--producers", "4").stdout


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--file", "no-such-file.txt"), "cannot read no-such-file.txt: No such file"),
        (("--file", "."), "cannot read .: "),
        (("--file", ""), "cannot read"),
        (("--lines", "0"), "argument --lines: must be a whole number, at least 1, not '0'"),
        (("--producers", "many"), "argument --producers: must be a whole number, at least 1, not 'many'"),
    ],
)
def test_demo_refuses_what_it_can_not_do(
    arguments: tuple[str, ...], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main(["demo", *arguments])
    except SystemExit as ended:  # argparse's way
        status = int(ended.code or 0)
    shown = capsys.readouterr()
    assert status == 2
    assert complaint in shown.err
    assert shown.out == ""


def test_demo_refuses_an_empty_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "empty.txt"
    file.touch()
    assert main(["demo", "--file", str(file)]) == 2
    assert "it is empty" in capsys.readouterr().err


def test_unequal_totals_are_status_1(
    text: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nbloop.cli import corpus

    honest = corpus.Tally.merge
    monkeypatch.setattr(corpus.Tally, "merge", lambda tally, counts: honest(tally, {**counts, "invented": 1}))
    assert main(["demo", "--file", str(text), "--producers", "1", "--plain"]) == 1
    assert "NOT equal" in capsys.readouterr().out


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_demo_ends_cleanly_on_ctrl_c() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "nbloop", "demo", "--lines", "400"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("Measuring"):
            break
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.strip() == "nbloop: interrupted"


def test_doctor_as_json_tells_the_truth() -> None:
    facts = json.loads(run("doctor", "--json").stdout)
    assert facts["versions"]["nbloop"] == nbloop.__version__
    assert facts["versions"]["numpy"]
    assert facts["python"]["version"] == sys.version.split(maxsplit=1)[0].rstrip("+")
    assert facts["python"]["free_threaded_build"] == bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    assert facts["python"]["gil_enabled"] == sys._is_gil_enabled()
    assert facts["costs"]["submit_ns"] > 0
    assert (facts["sleeping"]["spin_ns"] > 0) == (facts["cores"]["usable"] > 1)
    if facts["kernels"]["mode"] == "compiled" and facts["kernels"]["problem"] is None:
        assert Path(facts["kernels"]["file"]).stat().st_size == facts["kernels"]["file_bytes"]
    complaints = " ".join(trouble["what"] for trouble in facts["slow"])
    assert ("GIL" in complaints) == sys._is_gil_enabled()


def test_doctor_complains_of_what_is_slow() -> None:
    facts = json.loads(run("doctor", "--json", NBLOOP_PARK="lock", NUMBA_DISABLE_JIT="1", PYTHONDEVMODE="1").stdout)
    assert facts["kernels"]["mode"] == "interpreted"
    assert facts["sleeping"]["fast_path"]["how"] == "lock"
    complaints = " ".join(trouble["what"] for trouble in facts["slow"])
    for word in ("un-jitted", "lock", "development mode"):
        assert word in complaints
    assert all(trouble["advice"] for trouble in facts["slow"])


def test_doctor_as_text() -> None:
    shown = run("doctor").stdout
    for title in ("Python", "Kernels", "Machine", "Measured now", "What makes it slow here"):
        assert f"\n{title}\n" in shown


def test_doctor_does_not_import_numba() -> None:
    code = "import sys; from nbloop.__main__ import main; main(['doctor']); sys.exit('numba' in sys.modules)"
    nbloop_loaded = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, timeout=60)
    assert nbloop_loaded.returncode == 0


SCRIPT = """
import itertools, sys, threading, nbloop

def work(n):
    for _ in range(n):
        bytearray(1000)
    any(itertools.repeat(False, 100 * n))  # so long that no pause of the sampler's thread hides all of it

loop = nbloop.Loop(auto_exit=True, name="one of/mine")
for _ in range(20):
    loop.submit(work, 20_000)
loop.run()
print(__name__, *sys.argv[1:])
del loop
if "--fail" in sys.argv:
    raise ValueError("no")
sys.exit(int(sys.argv[-1]))
"""


def profiled(folder: Path, *arguments: str, status: int) -> subprocess.CompletedProcess[str]:
    script = folder / "script.py"
    script.write_text(SCRIPT)
    return run(
        "profile", "--output", str(folder / "out"), *arguments[:-1], str(script), *arguments[-1].split(), status=status
    )


def test_profile_runs_a_script_and_writes_what_tools_read(tmp_path: Path) -> None:
    from tests.support.pprof_schema import decode

    done = profiled(tmp_path, "--hertz", "500", "--trace", "--trace --hertz 7", status=7)
    assert done.stdout == "__main__ --trace --hertz 7\n"
    message, _ = decode((tmp_path / "out" / "profile.pb.gz").read_bytes())
    assert message.string_table[message.default_sample_type] == "cpu"
    kinds = [message.string_table[one.type] for one in message.sample_type]
    assert kinds[:3] == ["samples", "cpu", "wall"]
    assert "work" in message.string_table
    assert not any("runpy" in text or text.endswith("cli/profile.py") for text in message.string_table)
    for clock in ("cpu", "wall"):
        drawn = json.loads((tmp_path / "out" / f"{clock}.speedscope.json").read_text())
        assert any(frame["name"] == "work" for frame in drawn["shared"]["frames"])
    if nbloop.kernels.object_cache.status.mode == "compiled":
        assert kinds[3:] == ["alloc_objects", "alloc_space"]
        space = sum(sample.value[4] for sample in message.sample)
        assert 400_000 * 1000 * 0.7 < space < 400_000 * 1300
    contention = json.loads((tmp_path / "out" / "contention.json").read_text())
    assert contention["one of/mine"]["wakes_elided"] == 20  # though the loop is gone
    trace = json.loads((tmp_path / "out" / "trace-one_of_mine.json").read_text())
    assert sum(event["name"] == "work" for event in trace["traceEvents"]) == 20
    assert "work (script.py)" in done.stderr
    assert not (tmp_path / "out" / "heap.pb.gz").exists()


def test_profile_shows_what_the_script_raises(tmp_path: Path) -> None:
    done = profiled(tmp_path, "--fail", status=1)
    trace = done.stderr[done.stderr.index("Traceback") :]
    assert trace.splitlines()[1].startswith(f'  File "{tmp_path}/script.py", line ')
    assert trace.endswith("ValueError: no\n")
    assert (tmp_path / "out" / "profile.pb.gz").exists()


def test_profile_of_memory_and_of_a_module(tmp_path: Path) -> None:
    (tmp_path / "held.py").write_text("kept = [bytearray(100_000) for _ in range(20)]\n")
    run(
        *("profile", "--memory", "--output", str(tmp_path / "out"), "-m", "held", "-m"),
        PYTHONPATH=os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]),
    )
    assert (tmp_path / "out" / "heap.pb.gz").stat().st_size > 100


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("no-such-file.py",), "No such file"),
        (("--output", "/dev/null/x", __file__), "/dev/null"),
        (("--hertz", "1001", "x.py"), "must be from 1 to 1000"),
        ((), "required: SCRIPT"),
    ],
)
def test_profile_refuses(arguments: tuple[str, ...], complaint: str) -> None:
    done = run("profile", *arguments, status=2)
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


BENCHMARKS = """
import asyncio
made = []
def bench_lists(b):
    made.append(b.n)
    waste = [bytes(50_000) for _ in range(100)]
    b.reset_timer()
    for _ in b:
        [None] * 100
    b.stop_timer()
    waste = [bytes(50_000) for _ in range(100)]
async def bench_sleep(b):
    for _ in b:
        await asyncio.sleep(0)
def helper(b): raise AssertionError
"""


def benchmarked(folder: Path, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    (folder / "mine.py").write_text(BENCHMARKS)
    return run("bench", str(folder / "mine.py"), "--count", "5", "--time", "0.005", *arguments, status=status)


def test_bench_measures_a_file_and_compares_two_runs(tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    done = benchmarked(tmp_path, "--save", str(old))
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines()[1:]}
    assert set(rows) == {"lists", "sleep"}
    assert int(rows["lists"][1].replace(",", "")) > 100
    figures = json.loads(old.read_text())["benchmarks"]["lists"]
    assert len(figures["ns"]) == 5
    if nbloop.kernels.object_cache.status.mode == "compiled":
        assert all(800 < one < 1000 for one in figures["bytes"])  # a list of 100 words, and not what was made around it
        assert all(1.9 < one < 2.3 for one in figures["allocs"])
    saved = json.loads(old.read_text())
    saved["benchmarks"]["lists"]["ns"] = [100.0, 110.0, 90.0, 105.0, 95.0]
    old.write_text(json.dumps(saved))
    saved["benchmarks"]["lists"]["ns"] = [300.0, 310.0, 290.0, 305.0, 295.0]
    del saved["benchmarks"]["sleep"]
    new.write_text(json.dumps(saved))
    shown = run("bench", "--compare", str(old), str(new)).stdout
    (row,) = (line.split() for line in shown.splitlines() if line.split()[:1] == ["lists"] and "%" in line)
    assert row == ["lists", "100", "300", "+200.0%", "0.008"]  # 2 of the 252 ways to divide ten into two times five
    assert "only in" in shown
    same = run("bench", "--compare", str(old), str(old)).stdout
    assert "%" not in same


def test_bench_has_benchmarks_of_its_own() -> None:
    done = run("bench", "--count", "1", "--time", "0.001")
    assert len(done.stdout.splitlines()) > 8
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("no-such-file.py",), "No such file"),
        ((str(Path(__file__).parent),), "is a folder"),
        (("--only", "nothing like that"), "no function bench_NAME"),
        (("--time", "0"), "must be a number of seconds"),
        (("--compare", "no-such-file.json", __file__), "No such file"),
        (("--compare", __file__, __file__), "is not a run that bench --save has written"),
    ],
)
def test_bench_refuses(arguments: tuple[str, ...], complaint: str) -> None:
    done = run("bench", *arguments, status=2)
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr
