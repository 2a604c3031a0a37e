"""Child processes that are forks of one that has its libraries loaded: what they share, and what they do not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torch")

from tunekit.testing import warm

TOLD = """
import os, sys, torch
print(sys.argv[1:], os.getcwd(), os.environ.get("COLOUR"), __name__, sys.stdin.read() == "")
print("torch" in sys.modules, "tunekit_trl" in sys.modules, "tunekit.testing" in sys.modules, file=sys.stderr)
"""


def test_a_child_gets_what_a_process_gets(tmp_path: Path) -> None:
    done = warm.run(["-c", TOLD, "a", "b c"], env={**os.environ, "COLOUR": "red"}, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"['a', 'b c'] {tmp_path} red __main__ True\n")
    assert done.stderr == "True False False\n", "libraries are loaded; plugins and suites are not"


@pytest.mark.parametrize(
    ("code", "ends", "says"),
    [
        ("raise SystemExit", 0, ""),
        ("import sys; sys.exit(7)", 7, ""),
        ("import sys; sys.exit('no paper')", 1, "no paper\n"),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL, ""),
        ("1 / 0", 1, "ZeroDivisionError: division by zero\n"),
        ("import atexit, sys; atexit.register(sys.stderr.write, 'bye')", 0, "bye"),
        ("import threading, sys; threading.Timer(0.1, sys.stderr.write, ['late']).start()", 0, "late"),
        ("import subprocess; subprocess.run('echo inner >&2', shell=True, check=True)", 0, "inner\n"),
    ],
)
def test_how_it_ends_and_what_it_says(code: str, ends: int, says: str) -> None:
    done = warm.run(["-c", code])
    cold = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == cold.returncode == ends
    assert done.stderr.endswith(says) and cold.stderr.endswith(says)
    assert bool(done.stderr) == bool(cold.stderr)


def test_modules_files_and_search_paths(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "beside.py").write_text("WORD = 'beside'\n")
    script = tmp_path / "there" / "script.py"
    script.write_text("import beside, sys\nprint(beside.WORD, sys.argv[0] == __file__, __name__)\n")
    assert warm.run([script]).stdout == "beside True __main__\n"
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "there")}
    assert warm.run(["-m", "script"], env=env).stdout == "beside True __main__\n"
    assert warm.run(["-c", "import beside; print(beside.WORD)"], env=env).stdout == "beside\n"
    assert warm.run(["-c", "import beside"]).returncode == 1, "the path of one child is not that of the next"


def test_children_share_nothing_that_they_change() -> None:
    code = "import sys, os, random, numpy; print(hasattr(sys, 'mark'), 'MARK' in os.environ)\n"
    code += "sys.mark = os.environ['MARK'] = 'x'; print(random.random(), numpy.random.random())"
    first, second = (warm.run(["-c", code]).stdout.splitlines() for _ in range(2))
    assert first[0] == second[0] == "False False"
    assert not set(first[1].split()) & set(second[1].split()), "random generators begin anew"


def test_several_run_at_once_and_one_can_be_ended(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "meet")
    here = warm.start(["-c", "print(open('meet').read())"], cwd=tmp_path)
    there = warm.start(["-c", "open('meet', 'w').write('met')"], cwd=tmp_path)
    assert here.communicate(60).stdout == "met\n" and there.communicate(60).returncode == 0

    stuck = warm.start(["-c", "print('waits', flush=True); import time; time.sleep(600)"])
    assert stuck.poll() is None and stuck.pid != os.getpid()
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        stuck.communicate(1.0)
    assert caught.value.stdout == "waits\n"
    with pytest.raises(ProcessLookupError):
        os.kill(stuck.pid, 0)


def test_libraries_are_loaded_anew_for_variables_that_they_read_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm, "LIBRARIES", ("huggingface_hub.constants",))
    code = "import huggingface_hub.constants as c; print(c.HF_HUB_OFFLINE)"
    for text, known in (("0", "False\n"), ("1", "True\n")):
        assert warm.run(["-c", code], env={**os.environ, "HF_HUB_OFFLINE": text}).stdout == known


@pytest.mark.skipif(sys.platform != "linux", reason="other systems start fresh interpreters")
def test_the_process_that_forks_ends_with_the_one_that_started_it() -> None:
    code = "from tunekit.testing import warm; warm.LIBRARIES = ('json',)\n"
    code += "done = warm.run(['-c', 'print(1)']); print(done.stdout)\n"
    code += "(parent,) = warm._PARENTS.values(); print(parent._process.pid, parent._address, flush=True)\n"
    code += "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    pid, address = done.stdout.split()[1:]
    process = Path(f"/proc/{pid}/cmdline")
    for _ in range(200):
        # What ended and was not waited for has an empty command.
        if not process.exists() or not process.read_bytes():
            break
        time.sleep(0.05)
    else:
        pytest.fail(f"process {pid} runs on")
    assert not Path(address).exists()
