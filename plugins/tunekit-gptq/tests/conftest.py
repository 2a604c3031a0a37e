"""A step's context as the core makes it, and tiny models whose layers can be packed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tunekit.artifacts import Artifact
from tunekit.cancel import CancelToken
from tunekit.context import StepContext
from tunekit.data import load_dataset
from tunekit.plan import ComponentRef, ResolvedStep
from tunekit.plugins.hf import load_folder
from tunekit.plugins.protocols import LoadedModel
from tunekit_gptq.options import GptqOptions
from tunekit_gptq.quantizer import Gptq

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
STORIES = [
    {
        "prompt": [{"role": "user", "content": f"Tell me about {who} and the {what}."}],
        "completion": [{"role": "assistant", "content": f"Once upon a time, {who} saw a {what} and was very happy."}],
    }
    for who in ("Lily", "Tom", "Sue", "Ben", "Mia")
    for what in ("dog", "ball", "tree", "boat", "cake", "bird")
]


@dataclass
class Recorded:
    """A step's context and what the step reported."""

    context: StepContext
    notices: dict[str, str] = field(default_factory=dict)
    progress: list[tuple[float, float | None, str]] = field(default_factory=list)
    metrics: list[dict[str, float]] = field(default_factory=list)
    kept: list[LoadedModel] = field(default_factory=list)
    on_progress: Callable[[], None] | None = None

    @property
    def folder(self) -> Path:
        """The model folder that the step writes."""
        return self.context.dir / "model"

    def run(self) -> Artifact:
        """Run the step."""
        return Gptq().run(self.context)


def recorded(
    model: Path,
    home: Path,
    *,
    training_data: Sequence[Any] = (),
    data: Any = None,
    seed: int = 0,
    source: Path | None = None,
    plain_folder: bool = True,
    **options: Any,
) -> Recorded:
    """The context of a quantize step over ``model`` (or over ``source`` on disk) that works in ``home``."""
    seen: list[Recorded] = []

    def emit(kind: str, **fields: Any) -> None:
        if kind == "notice":
            seen[0].notices[fields["code"]] = fields["message"]
        elif kind == "progress":
            seen[0].progress.append((fields["done"], fields["total"], fields["unit"]))
            if seen[0].on_progress is not None:
                seen[0].on_progress()
        elif kind == "metrics":
            seen[0].metrics.append(fields["values"])

    home.mkdir(parents=True, exist_ok=True)
    component = ComponentRef(
        kind="quantizer", name="gptq", provider="tunekit-gptq", version="0", target="tunekit_gptq.quantizer:Gptq"
    )
    checked = GptqOptions(**options)
    context = StepContext(
        run_id="test",
        step=ResolvedStep(
            index=1,
            kind="quantize",
            name="quantize",
            component=component,
            options=checked.model_dump(),
            input=None,
            adapter=None,
            trains="-",
            data=None,
        ),
        options=checked,
        seed=seed,
        dir=home,
        cancel=CancelToken(),
        input=None,
        data=None if data is None else load_dataset(data),
        training_data=[load_dataset(rows) for rows in training_data],
        input_path=(source or model) if plain_folder else None,
        _component=Gptq,
        _load=lambda: load_folder(model),
        _keep=lambda loaded: seen[0].kept.append(loaded),
        _emit=emit,
    )
    seen.append(Recorded(context))
    return seen[0]


@pytest.fixture
def make_context(tmp_path: Path) -> Callable[..., Recorded]:
    """Builds the context of a quantize step that works in a folder of this test."""

    def make(model: Path, folder: Path | None = None, **rest: Any) -> Recorded:
        return recorded(model, folder or tmp_path / "step", **rest)

    return make


def tiny_llama(folder: Path, tokenizer: Path, hidden: int, intermediate: int) -> Path:
    """A random Llama of two layers with a borrowed tokenizer, which gets a chat template."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from tunekit.plugins.hf import save_model

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        initializer_range=0.06,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    loaded.chat_template = CHAT_TEMPLATE
    return save_model(LlamaForCausalLM(config), loaded, folder)


@pytest.fixture(scope="session")
def tiny(stories260k: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose layers have 64 or 128 inputs."""
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "model", stories260k, 64, 128)


@pytest.fixture(scope="session")
def odd(stories260k: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose layers have 96 or 160 inputs: 64 divides none of them, 32 all."""
    return tiny_llama(tmp_path_factory.mktemp("odd") / "model", stories260k, 96, 160)


@pytest.fixture(scope="session")
def narrow(stories260k: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of which no layer can be packed: 40 and 72 are no multiples of 32."""
    return tiny_llama(tmp_path_factory.mktemp("narrow") / "model", stories260k, 40, 72)


@pytest.fixture(scope="session")
def stories() -> list[dict[str, Any]]:
    """Thirty prompt-completion rows."""
    return STORIES


@dataclass
class Finished:
    """A step that ran."""

    record: Recorded
    artifact: Artifact

    @property
    def folder(self) -> Path:
        """The quantized model."""
        return self.record.folder


Quantized = Callable[..., Finished]


@pytest.fixture(scope="session")
def quantized(
    tmp_path_factory: pytest.TempPathFactory, tiny: Path, odd: Path, stories260k: Path, stories: list[dict[str, Any]]
) -> Quantized:
    """``quantized("int4")`` and so on: the step run once per session and kind."""
    kinds: dict[str, tuple[Path, dict[str, Any]]] = {
        "int4": (tiny, {"scheme": "int4"}),
        "int8": (tiny, {"scheme": "int8"}),
        "asymmetric": (tiny, {"sym": False, "group_size": 32, "plain_folder": False}),
        "ragged": (odd, {"group_size": 64, "desc_act": True}),
        "kept": (stories260k, {"group_size": 32}),
    }
    done: dict[str, Finished] = {}

    def run(kind: str) -> Finished:
        if kind not in done:
            model, options = kinds[kind]
            record = recorded(model, tmp_path_factory.mktemp(kind) / "step", training_data=[stories], **options)
            done[kind] = Finished(record, record.run())
        return done[kind]

    return run
