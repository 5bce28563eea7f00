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
    for row in ("lines/s, end to end", "submit, per call (p50)", "hop, loop asleep (p50)", "submit to run (p99)"):
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
