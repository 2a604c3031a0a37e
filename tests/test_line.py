"""The mission line and its parts with the real plugins, on small models."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import line_driver
import pytest

from tunekit import Pipeline, Session
from tunekit.errors import ArtifactError, CheckFailed, StepError
from tunekit.events import Event, StepFailed
from tunekit.plugins import AdapterSpec, hookimpl
from tunekit.results import RunResult
from tunekit.testing import warm

PAIRS = [
    {"prompt": f"Say {word}.", "chosen": f"{word}!", "rejected": "No, I will not."}
    for word in ("yes", "good day", "thanks", "hello", "fine", "sure", "please", "well")
]


class Watch:
    """Counts what goes through the door: weights read from disk, and attempts to reach a network."""

    def __init__(self) -> None:
        self.loads: list[str] = []
        self.network: list[Any] = []


@pytest.fixture(scope="module")
def watched() -> Iterator[Watch]:
    from transformers import PreTrainedModel

    watch = Watch()
    original = PreTrainedModel.from_pretrained.__func__

    def counted(cls: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
        watch.loads.append(str(path))
        return original(cls, path, *args, **kwargs)

    def refused(name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            watch.network.append((name, args))
            raise OSError("no network in this test")

        return call

    patch = pytest.MonkeyPatch()
    patch.setattr(PreTrainedModel, "from_pretrained", classmethod(counted))
    patch.setattr(socket, "getaddrinfo", refused("getaddrinfo"))
    patch.setattr(socket, "create_connection", refused("create_connection"))
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: Any) -> Any:
        if self.family == getattr(socket, "AF_UNIX", None):
            return connect(self, address)
        return refused("connect")(address)

    patch.setattr(socket.socket, "connect", local_only)
    yield watch
    patch.undo()


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory, watched: Watch) -> tuple[RunResult, list[Event], Watch]:
    """The literal line, with each step made small and nothing else changed."""
    seen: list[Event] = []
    environment = dict(os.environ)
    result = (
        Pipeline()
        .pretrain(**{**line_driver.PRETRAIN, "context": 2048})
        .sft(max_steps=6, limit=24, batch_size=4, learning_rate=5e-3, max_length=128)
        .align(method="dpo", max_steps=4, limit=8, batch_size=4, learning_rate=1e-3, max_length=128)
        .lora(r=8)
        .quantize("int4")
        .evaluate(["mmlu", "gsm8k"], limit=8, max_new_tokens=8)
        .run(workdir=tmp_path_factory.mktemp("line"), on_event=seen.append)
    )
    assert dict(os.environ) == environment
    return result, seen, watched


def test_every_step_did_its_work(line: tuple[RunResult, list[Event], Watch]) -> None:
    result, _, _ = line
    assert [(step.name, step.trains) for step in result.steps] == [
        ("pretrain", "full"),
        ("sft", "lora r=8"),
        ("align", "lora r=8"),
        ("quantize", "-"),
        ("evaluate", "-"),
    ]
    pretrain, sft, align, quantize, evaluate = (step.artifact for step in result.steps)
    assert pretrain.trained_parameters == pretrain.model.parameters
    assert 0 < sft.trained_parameters < sft.model.parameters == pretrain.model.parameters
    assert result.step("align").history[0]["loss"] == pytest.approx(0.693147, abs=1e-5), (
        "ln 2: the reference is the input"
    )
    hashes = [artifact.model.weights_hash for artifact in (pretrain, sft, align, quantize)]
    assert len(set(hashes)) == 4
    assert quantize.details["size_after"] < quantize.details["size_before"]
    assert quantize.model.quantized == "gptq int4"
    calibration = json.dumps(quantize.details["calibration"])
    assert "stdlib-instructions" in calibration and "stdlib-preferences" in calibration
    for score in result.scores.values():
        assert score.n == 8 and score.ci_low <= score.value <= score.ci_high
        assert score.weights_hash == hashes[-1], "the scores are those of the int4 model"
        assert not score.comparable and "sample: not comparable" in score.source
        assert len(score.rows) == 8
    assert evaluate.scores.keys() == {"mmlu", "gsm8k"}


def test_each_merge_is_proven(line: tuple[RunResult, list[Event], Watch]) -> None:
    for name in ("sft", "align"):
        proof = line[0].step(name).artifact.details["merge_proof"]
        assert proof["max_abs_diff"] <= proof["tolerance"] < proof["base_diff"] * 1.001
        assert proof["changed_tensors"] > 0
        assert (line[0].step(name).adapter_path / "adapter_model.safetensors").is_file()


def test_no_model_is_read_from_disk_between_steps(line: tuple[RunResult, list[Event], Watch]) -> None:
    result, _, watch = line
    folders = [Path(path).parent.name.rpartition("-")[0] for path in watch.loads]
    # Two reads are those of the merge proof, which must look at what lies on the disk. The last one (without a path:
    # the weights are unpacked first) is the int4 model, which a process of its own wrote; evaluate reads nothing.
    assert folders == ["02-sft", "03-align", ""], watch.loads
    assert result.status == "finished"


def test_no_network_is_touched(line: tuple[RunResult, list[Event], Watch]) -> None:
    assert line[2].network == []


def test_the_int4_model_loads_and_speaks(line: tuple[RunResult, list[Event], Watch]) -> None:
    model = line[0].model
    assert model.path.parent.name == "04-quantize"
    text = model.generate("What does `json.dumps` do?", max_new_tokens=5)
    assert isinstance(text, str)
    assert model.generate([{"role": "user", "content": "What does `json.dumps` do?"}], max_new_tokens=5) == text
    assert text == model.generate("What does `json.dumps` do?", max_new_tokens=5)
    raw = model.generate("json", max_new_tokens=5, chat=False)
    assert isinstance(raw, str)


def drive(workdir: Path, *args: str, fresh: bool = False) -> subprocess.CompletedProcess[str]:
    """``fresh``: in a new interpreter, whose hashes are other ones."""
    arguments = [line_driver.__file__, str(workdir), *args]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    if fresh:
        command = [sys.executable, *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=env, timeout=600)
    return warm.run(arguments, env=env, timeout=600)


def losses(workdir: Path) -> list[tuple[int, float]]:
    lines = (workdir / "02-sft" / "metrics.jsonl").read_text().splitlines()
    return [(entry["step"], entry["loss"]) for entry in map(json.loads, lines)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, float]]:
    folder = tmp_path_factory.mktemp("whole")
    done = drive(folder, fresh=True)
    assert done.returncode == 0, done.stderr
    return losses(folder)


def test_sft_killed_in_the_middle_continues_exactly(tmp_path: Path, uninterrupted: list[tuple[int, float]]) -> None:
    killed = drive(tmp_path, "--die-at", "7")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    again = drive(tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines()[0] == "sft evaluate", "pretrain was finished and is not repeated"
    assert losses(tmp_path) == uninterrupted
    assert [step for step, _ in uninterrupted] == list(range(1, 13))


def test_a_truncated_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path: Path, uninterrupted: list[tuple[int, float]]
) -> None:
    killed = drive(tmp_path, "--die-at", "7")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (newest,) = (tmp_path / ".partial").glob("02-sft-*/checkpoints/checkpoint-6")
    (weights,) = newest.glob("adapter_model.safetensors")
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    again = drive(tmp_path)
    assert again.returncode == 0, again.stderr
    (notice,) = (line for line in again.stdout.splitlines() if "checkpoint-6" in line)
    assert "adapter_model.safetensors" in notice and "checkpoint-4 is used" in notice
    assert losses(tmp_path) == uninterrupted


class _Sabotage:
    """LoRA whose merge does something else."""

    def __init__(self, options: Any) -> None:
        from tunekit_peft.adapter import LoraAdapter

        self._real = LoraAdapter(options)

    def attach(self, model: Any, *, seed: int) -> Any:
        return self._real.attach(model, seed=seed)

    def save(self, model: Any, folder: Path) -> None:
        self._real.save(model, folder)

    def detached(self, model: Any) -> Any:
        return self._real.detached(model)


class MergesNothing(_Sabotage):
    def merge(self, model: Any) -> Any:
        return model.unload()


class MergesTwice(_Sabotage):
    def merge(self, model: Any) -> Any:
        import torch

        merged = self._real.merge(model)
        with torch.no_grad():
            merged.model.layers[0].mlp.down_proj.weight.mul_(1.05)
        return merged


class Saboteurs:
    @hookimpl
    def tunekit_adapters(self) -> list[AdapterSpec]:
        common = {"options": "tunekit_peft.options:LoraOptions"}
        return [
            AdapterSpec(name="merges-nothing", target=f"{__name__}:MergesNothing", **common),
            AdapterSpec(name="merges-too-much", target=f"{__name__}:MergesTwice", **common),
        ]


@pytest.mark.parametrize(("name", "says"), [("merges-nothing", "equal the base"), ("merges-too-much", "differ by")])
def test_a_wrong_merge_fails_the_run(stories260k: Path, tmp_path: Path, name: str, says: str) -> None:
    sys.modules.setdefault(__name__, sys.modules[MergesNothing.__module__])
    seen: list[Event] = []
    pipeline = Pipeline(model=str(stories260k)).sft(
        data=[{"prompt": "Once", "completion": " upon a time"}], max_steps=2
    )
    with pytest.raises(StepError, match=says) as caught:
        pipeline.adapter(name, r=4).run(workdir=tmp_path, session=Session(plugins=[Saboteurs()]), on_event=seen.append)
    assert caught.value.code == "merge-proof"
    assert any(isinstance(event, StepFailed) for event in seen)
    assert not (tmp_path / "01-sft").exists(), "nothing of it is published"


def test_a_loss_that_is_not_a_number_stops_and_keeps_the_last_good_checkpoint(
    stories260k: Path, tmp_path: Path
) -> None:
    rows = [{"text": "Once upon a time there was a little girl."}] * 8
    pipeline = Pipeline(model=str(stories260k)).sft(
        data=rows, max_steps=20, batch_size=1, checkpoint_every=1, learning_rate=1e30, max_grad_norm=0.0, warmup=0.0
    )
    with pytest.raises(StepError) as caught:
        pipeline.run(workdir=tmp_path)
    assert caught.value.code == "nan-loss"
    assert "learning_rate" in caught.value.fix
    assert not (tmp_path / "01-sft").exists()


def test_the_reference_of_dpo_after_sft_is_the_sft_model(stories260k: Path, tmp_path: Path) -> None:
    """A first loss of ln 2 says that policy and reference agree; that the reference is not the base is seen by scoring
    the pairs with both."""
    sft = Pipeline(model=str(stories260k)).sft(
        data=[{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in PAIRS],
        max_steps=8,
        learning_rate=1e-2,
    )
    both = sft.align(method="dpo", data=PAIRS, max_steps=1, batch_size=8).lora(r=4).run(workdir=tmp_path / "both")
    base = Pipeline(model=str(stories260k)).align(method="dpo", data=PAIRS, max_steps=1, batch_size=8).lora(r=4)
    base_result = base.run(workdir=tmp_path / "base")
    first, first_base = both.step("align").history[0], base_result.step("align").history[0]
    assert first["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert first["logps/chosen"] > first_base["logps/chosen"] + 1.0


@pytest.fixture
def small_disk(make_disk: Callable[[str], Path]) -> Path:
    return make_disk("5m")


def test_a_disk_that_fills_while_checkpoints_are_written(stories260k: Path, small_disk: Path) -> None:
    """Weights and optimizer state of the model are about 3 MB, so the second checkpoint does not fit any more."""
    rows = [{"text": "Once upon a time there was a little girl."}] * 8
    pipeline = Pipeline(model=str(stories260k)).sft(data=rows, max_steps=6, batch_size=1, checkpoint_every=2)
    with pytest.raises(ArtifactError) as caught:
        pipeline.run(workdir=small_disk / "w")
    assert caught.value.code == "disk-full"
    assert "MB free" in str(caught.value)
    subprocess.run(["mount", "-o", "remount,size=50m", str(small_disk)], check=True)
    result = pipeline.run(workdir=small_disk / "w")
    assert [entry["step"] for entry in result.step("sft").history] == [1, 2, 3, 4, 5, 6]


def test_a_model_folder_without_a_tokenizer_is_refused_at_once(stories260k: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((stories260k / name).read_bytes())
    with pytest.raises(CheckFailed, match="tokenizer"):
        Pipeline(model=str(tmp_path)).sft(data=[{"text": "a"}]).run(workdir=tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_a_model_in_memory_is_not_changed(stories260k: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(stories260k, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(stories260k)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pipeline = Pipeline(model=(model, tokenizer)).sft(data=[{"text": "Once upon a time"}], max_steps=2)
    result = pipeline.run(workdir=tmp_path)
    assert result.step("sft").artifact.model.parameters == 260_032
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.real
@pytest.mark.slow
def test_the_base_model_scores_as_the_reference_harness(shared_data: Path, smollm2: str, tmp_path: Path) -> None:
    reference = json.loads((shared_data / "reference" / "smollm2-135m-instruct-q4_1.json").read_text())
    items = reference["tasks"]["mmlu_anatomy_0shot"]["items"][:60]
    pipeline = Pipeline(model=smollm2).evaluate(
        ["mmlu"], data=str(shared_data), subjects=["anatomy"], num_fewshot=0, limit=len(items)
    )
    score = pipeline.run(workdir=tmp_path).scores["mmlu"]
    assert score.value == sum(item["pred"] == item["gold"] for item in items) / len(items)
    assert ["ABCD".index(row.prediction) for row in score.rows] == [item["pred"] for item in items]
    for row, item in zip(score.rows, items, strict=True):
        assert row.logprobs == pytest.approx(item["sum_logprob"], abs=1e-3)
    assert score.comparable and str(shared_data) in score.source
