"""A new virtual environment, wheels, and nothing else: the example plugin comes and goes, and the tutorial works.

The environment is made once. It gets tunekit and two of its plugins from wheels that are built here, everything else
from the package registry, in the versions of ``constraints.txt``. The wheels are installed by their paths: the registry
holds another package called tunekit.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
TUTORIAL = ROOT / "docs" / "tutorial" / "first-plugin.md"
BLOCK = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TORCH = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))


class Fresh:
    """The environment."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.wheels = home / "wheels"
        self.bin = home / "venv" / "bin"
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("TUNEKIT_", "VIRTUAL_ENV", "PYTHONPATH", "PYTHONDONTWRITE", "PYTEST_", "COV_"))
        }
        self.env = {
            **kept,
            "PATH": f"{self.bin}{os.pathsep}{kept['PATH']}",
            "PIP_FIND_LINKS": f"{self.wheels} {kept.get('PIP_FIND_LINKS', '')}".strip(),
            "PIP_CONSTRAINT": str(ROOT / "constraints.txt"),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            # Of ten thousand modules few are ever imported; those are compiled then.
            "PIP_NO_COMPILE": "1",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "COLUMNS": "100",
        }

    def call(self, *command: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            list(map(str, command)), cwd=cwd or self.home, env=self.env, capture_output=True, text=True, timeout=600
        )

    def run(self, *command: str | Path, cwd: Path | None = None) -> str:
        made = self.call(*command, cwd=cwd)
        assert made.returncode == 0, f"{command}\n{made.stdout[-4000:]}\n{made.stderr[-4000:]}"
        return made.stdout

    def plugins(self) -> dict[str, Any]:
        """What ``tunekit plugins`` knows."""
        document: dict[str, Any] = json.loads(self.run(self.bin / "tunekit", "plugins", "--json"))
        return document

    def files(self) -> set[str]:
        """Every file of the installed packages, but bytecode, which grows with what is imported."""
        (site,) = (self.home / "venv" / "lib").glob("python*/site-packages")
        found = {str(path.relative_to(site)) for path in site.rglob("*") if "__pycache__" not in path.parts}
        return found | {f"bin/{path.name}" for path in self.bin.iterdir()}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Fresh:
    made = Fresh(tmp_path_factory.mktemp("fresh"))
    sources = [ROOT, *(ROOT / "plugins" / f"tunekit-{name}" for name in ("transformers", "evals", "example"))]
    pip = ("-m", "pip", "-q")
    made.run(sys.executable, *pip, "wheel", "--no-deps", "--no-build-isolation", "-w", made.wheels, *sources)
    made.run(sys.executable, "-m", "venv", made.home / "venv")
    made.run(made.bin / "python", *pip, "install", TORCH)
    (core,) = made.wheels.glob("tunekit-*.whl")
    others = [next(made.wheels.glob(f"tunekit_{name}-*.whl")) for name in ("transformers", "evals")]
    made.run(made.bin / "python", *pip, "install", f"{core}[testing]", *others)
    code = "import importlib.metadata as m; print(m.distribution('tunekit').read_text('direct_url.json'))"
    assert made.wheels.as_uri() in made.run(made.bin / "python", "-c", code), "tunekit comes from the wheel built here"
    return made


# ------------------------------------------------------------------ the example comes and goes

USE = """
import json
from pathlib import Path
from tunekit import Pipeline
from tunekit.testing import save_tiny

save_tiny("tiny")
rows = [{"chat": f"user: Say {word}.\\nassistant: {word}"} for word in ("red", "green", "blue", "teal")]
Path("log.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
line = (
    Pipeline(model="tiny")
    .sft(data="log.jsonl", format="chatlog", method="plain", max_steps=2, batch_size=2)
    .quantize("int8", method="rtn")
    .evaluate(["capitals"])
    .track("csvlog", path="metrics.csv")
)
line.to_yaml("plan.yaml")
"""


def test_the_example_is_found_used_and_removed_without_a_trace(fresh: Fresh, tmp_path: Path) -> None:
    python, tunekit = fresh.bin / "python", fresh.bin / "tunekit"
    (wheel,) = fresh.wheels.glob("tunekit_example-*.whl")
    before = fresh.files()
    providers = {record["provider"] for record in fresh.plugins()["plugins"]}
    assert providers == {"tunekit", "tunekit-transformers", "tunekit-evals"}

    fresh.run(python, "-m", "pip", "install", "-q", wheel)
    listed = fresh.plugins()
    record = next(record for record in listed["plugins"] if record["provider"] == "tunekit-example")
    assert (record["state"], record["version"], record["problems"]) == ("loaded", "0.1.0", [])
    mine = {item["kind"]: item["name"] for item in listed["components"] if item["provider"] == "tunekit-example"}
    assert mine == {
        "trainer": "plain",
        "quantizer": "rtn",
        "benchmark": "capitals",
        "format": "chatlog",
        "reward": "words",
        "tracker": "csvlog",
    }

    fresh.run(python, "-c", USE, cwd=tmp_path)
    result = json.loads(fresh.run(tunekit, "run", "plan.yaml", "--workdir", "run", "--json", cwd=tmp_path))
    assert [step["component"] for step in result["steps"]][:2] == [
        "tunekit-example/plain 0.1.0",
        "tunekit-example/rtn 0.1.0",
    ]
    assert result["steps"][1]["model"]["quantized"] == "rtn int8"
    assert (result["scores"]["capitals"]["n"], result["scores"]["capitals"]["comparable"]) == (12, False)
    logged = (tmp_path / "metrics.csv").read_text().splitlines()
    assert sum(",sft," in line and ",loss," in line for line in logged) == 2

    fresh.run(python, "-m", "pip", "uninstall", "-q", "-y", "tunekit-example")
    listed = fresh.plugins()
    assert {record["provider"] for record in listed["plugins"]} == providers
    assert not [item for item in listed["components"] if item["provider"] == "tunekit-example"]
    assert "example" not in fresh.run(tunekit, "plugins")
    made = fresh.call(tunekit, "check", "plan.yaml", "--json", cwd=tmp_path)
    findings = json.loads(made.stdout)["findings"]
    assert made.returncode == 1, made.stdout
    missing = " ".join(finding["message"] for finding in findings if finding["level"] == "error")
    for name in ("plain", "rtn", "capitals", "csvlog"):
        assert f"'{name}'" in missing, missing
    left = {name for name in fresh.files() - before if "example" in name.lower()}
    assert not left
    assert before <= fresh.files(), "nothing that belongs to others was removed"


# ------------------------------------------------------------------ the tutorial, word for word


def commands(text: str) -> Iterator[tuple[str, str]]:
    """Each command of a console block, and the output that the page shows for it."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield command, output


def shows(expected: str, output: str) -> bool:
    """Whether ``output`` is what the page shows; ``...`` there stands for anything."""
    lines = "\n".join(line.rstrip() for line in expected.strip().splitlines())
    pattern = re.escape(lines).replace(re.escape("..."), ".*")
    return (
        re.fullmatch(pattern, "\n".join(line.rstrip() for line in output.strip().splitlines()), re.DOTALL) is not None
    )


def apply(diff: str, path: Path) -> None:
    """Replace the lines that begin with ``-`` by those that begin with ``+``."""
    lines = diff.splitlines()
    old = "\n".join(line[1:] for line in lines if line.startswith("-"))
    new = "\n".join(line[1:] for line in lines if line.startswith("+"))
    text = path.read_text()
    assert text.count(old) == 1, f"{path} does not hold the lines that the page changes:\n{old}"
    path.write_text(text.replace(old, new))


def follow(page: str, fresh: Fresh, cwd: Path) -> Path:
    """Do what the page says, from top to bottom; returns the folder in which it ends."""
    where = fresh.home / "where"
    for language, title, body in BLOCK.findall(page):
        if language == "console":
            for command, expected in commands(body):
                made = fresh.call("bash", "-c", f"{command} 2>&1; code=$?; pwd > '{where}'; exit $code", cwd=cwd)
                cwd = Path(where.read_text().strip())
                fails = "FAILED" in expected
                assert made.returncode == fails, f"$ {command}\n{made.stdout[-6000:]}"
                assert shows(expected or "...", made.stdout), f"$ {command}\n{made.stdout}\nthe page says:\n{expected}"
        elif language == "diff":
            apply(body, cwd / title)
        else:
            assert title, f"a listing without a title would not be tested:\n{body}"
            (cwd / title).write_text(body)
    return cwd


def test_the_tutorial_ends_in_a_working_plugin(fresh: Fresh, tmp_path: Path) -> None:
    page = TUTORIAL.read_text()
    assert len(BLOCK.findall(page)) == page.count("\n```") // 2, "every block is read"
    project = follow(page, fresh, tmp_path)
    assert project == tmp_path / "acme-trivia"
    assert (project / "dist" / "acme_trivia-0.1.0-py3-none-any.whl").is_file()

    where = fresh.run(fresh.bin / "python", "-c", "import acme_trivia; print(acme_trivia.__file__)", cwd=tmp_path)
    assert "site-packages" in where, "the wheel is installed, not the folder"
    listed = fresh.plugins()
    assert {"acme-trivia/trivia"} == {c["id"] for c in listed["components"] if c["provider"] == "acme-trivia"}
    rows = (project / "runs" / "trivia").rglob("trivia.jsonl")
    assert [len(path.read_text().splitlines()) for path in rows] == [8], "all questions were scored"
    fresh.run(fresh.bin / "python", "-m", "pip", "uninstall", "-q", "-y", "acme-trivia")


@pytest.mark.parametrize(
    ("expected", "output", "same"),
    [
        ("a\n...\nz\n", "a\nb\nc\nz\n", True),
        ("3 passed in ...\n", "3 passed in 0.1s\n", True),
        ("3 passed in ...\n", "13 passed in 0.1s\n", False),
        ("a\nz\n", "a\nb\nz\n", False),
        ("a.c", "abc", False),
    ],
)
def test_how_output_is_compared(expected: str, output: str, same: bool) -> None:
    assert shows(expected, output) is same
