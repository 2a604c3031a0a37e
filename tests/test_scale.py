"""Data larger than memory: what is read, tokenized and kept does not grow with the file."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("torch")
encoding = pytest.importorskip("tunekit_trl.encoding")

from tunekit import Pipeline  # noqa: E402
from tunekit.testing import save_tiny  # noqa: E402

SIZE = 80_000_000
STATUS = Path("/proc/self/status")


@pytest.fixture(scope="module")
def scale() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scale", Path(__file__).parent.parent / "benchmarks" / "scale.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def large(scale: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("large") / "large.jsonl"
    assert scale.write(path, SIZE, "conversation") > 50_000
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("model"), positions=2048))


@contextmanager
def measured() -> Iterator[dict[str, int]]:
    """``read``: bytes this process read; ``memory``: growth of its peak above what it held before."""

    def memory(name: str) -> int:
        return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(name)) * 1024

    def read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    except OSError:
        pytest.skip("peak memory cannot be measured here")
    out: dict[str, int] = {}
    before = memory("VmRSS"), read()
    yield out
    out |= {"memory": memory("VmHWM") - before[0], "read": read() - before[1]}


def training(model: str, data: Path, **more: Any) -> Pipeline:
    options: dict[str, Any] = {"max_steps": 3, "batch_size": 4, "max_length": 2048, "learning_rate": 1e-3, **more}
    return Pipeline(model=model).sft(data=str(data), **options)


def test_check_reads_the_beginning_only(model: str, large: Path) -> None:
    pipeline = training(model, large)
    assert not [finding for finding in pipeline.check() if finding.level == "error"]
    with measured() as used:
        pipeline.check()
    assert used["read"] < SIZE / 10 and used["memory"] < SIZE / 4


def test_preview_reads_the_beginning_only(model: str, large: Path) -> None:
    pipeline = training(model, large)
    assert len(str(pipeline.preview(n=2))) > 500
    with measured() as used:
        pipeline.preview(n=2)
    assert used["read"] < SIZE / 4 and used["memory"] < SIZE / 4


def test_training_tokenizes_what_it_reads_once_and_holds_little(
    model: str, large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    original = encoding.Encoder.examples

    def counting(self: Any, batch: Any, *rest: Any) -> Any:
        rows.append(len(batch))
        return original(self, batch, *rest)

    monkeypatch.setattr(encoding.Encoder, "examples", counting)
    training(model, large, max_steps=1).run(workdir=tmp_path / "warm", seed=0)
    assert sum(rows) == 4
    rows.clear()
    with measured() as used:
        first = training(model, large).run(workdir=tmp_path / "run", seed=0)
    assert sum(rows) == 12 and used["memory"] < SIZE
    details = first.step("sft").artifact.details["data"]
    assert details["rows"] == 12 and len(first.step("sft").history) == 3
    rows.clear()
    training(model, large, learning_rate=2e-3).run(workdir=tmp_path / "run", seed=0)
    assert not rows, "another run of the work folder uses the same tokens"
    training(model, large, max_steps=5).run(workdir=tmp_path / "run", seed=0)
    assert sum(rows) == 8, "more steps tokenize what is missing"
