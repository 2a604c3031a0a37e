"""Known mistakes of training code, put back one at a time: the test that stands for each must fail.

The table of traps and tests is docs/explanation/traps.md.
"""

from __future__ import annotations

import importlib.util
import inspect
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tunekit_trl.encoding")

import numpy as np  # noqa: E402

from tunekit.data import formats_base, messages, select  # noqa: E402
from tunekit.errors import TunekitError  # noqa: E402
from tunekit.plan import thaw  # noqa: E402
from tunekit.plugins.hf import batches, checkpoints, completion_trainer, losses, segments, token_trainer  # noqa: E402
from tunekit_peft import adapter  # noqa: E402
from tunekit_transformers import packing, vocabulary  # noqa: E402
from tunekit_trl import alignment, encoding, objectives, rendering  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
TRL = "plugins/tunekit-trl/tests/"
TRANSFORMERS = "plugins/tunekit-transformers/tests/"
IGNORED = -100

Patch = pytest.MonkeyPatch


@cache
def module(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"sabotaged_{Path(path).stem}", ROOT / path)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def mean_of_means(patch: Patch) -> None:
    """Each micro-batch divided by its own targets, then by the number of micro-batches."""
    original = token_trainer.TokenTrainer.training_step

    def step(self: Any, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        own = max(1, inputs["target_count"]) * self.args.gradient_accumulation_steps
        return original(self, model, inputs, torch.tensor(own))

    patch.setattr(token_trainer.TokenTrainer, "training_step", step)


def mean_of_means_of_pairs(patch: Patch) -> None:
    """Each micro-batch of pairs divided by its own pairs and tokens."""
    original = completion_trainer.CompletionTrainer._loss_of

    def loss_of(self: Any, model: Any, rows: Any, totals: Any = None) -> Any:
        each = self.args.gradient_accumulation_steps
        own = {name: each * value for name, value in self.objective.totals(rows, self._ask).items()}
        return original(self, model, rows, own)

    patch.setattr(completion_trainer.CompletionTrainer, "_loss_of", loss_of)


def base_as_reference(patch: Patch) -> None:
    """The reference is the model that the first step of the chain started from."""
    original = alignment.reference_logps

    def reference(ctx: Any, trainer: Any, groups: Any) -> Any:
        kept = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
        base = dict(module(TRL + "trl_driver.py").tiny_model().named_parameters())
        with torch.no_grad():
            for name, weight in trainer.model.named_parameters():
                plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
                if plain in base:
                    weight.copy_(base[plain])
            found = original(ctx, trainer, groups)
            for name, weight in trainer.model.named_parameters():
                weight.copy_(kept[name])
        return found

    patch.setattr(alignment, "reference_logps", reference)


def reference_that_moves(patch: Patch) -> None:
    """The policy as it is in place of the policy as it was."""
    original = objectives.DpoObjective.loss

    def loss(self: Any, logps: Any, rows: Any, totals: Any) -> Any:
        sums = logps.sums().detach().tolist()
        moved = [
            {**row, "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
            for row, chosen, rejected in zip(rows, sums[::2], sums[1::2], strict=True)
        ]
        return original(self, logps, moved, totals)

    patch.setattr(objectives.DpoObjective, "loss", loss)


def mean_of_nothing(patch: Patch) -> None:
    def loss(logits: Any, targets: Any, *, smoothing: float = 0.0) -> Any:
        return losses.TokenLoss(torch.nn.functional.cross_entropy(logits, targets), torch.tensor(0))

    patch.setattr(module("tests/test_hf_losses.py"), "token_loss", loss)


def rows_without_targets_pass(patch: Patch) -> None:
    patch.setattr(encoding.Example, "targets", property(lambda self: 1))


def special_tokens_twice(patch: Patch) -> None:
    """What a template wrote is tokenized as if no template had been there."""
    original = encoding.Encoder._encode

    def encode(self: Any, texts: list[str]) -> Any:
        return original(self, texts) | {
            "input_ids": self.tokenizer(texts, add_special_tokens=True, truncation=False, padding=False)["input_ids"]
        }

    patch.setattr(encoding.Encoder, "_encode", encode)


def masked(which: Callable[[Any], set[int]]) -> Callable[[Patch], None]:
    def sabotage(patch: Patch) -> None:
        original = encoding.Encoder._example

        def example(self: Any, *parts: Any) -> Any:
            made = original(self, *parts)
            made.labels = [IGNORED if label in which(self) else label for label in made.labels]
            return made

        patch.setattr(encoding.Encoder, "_example", example)

    return sabotage


def tokens_of_the_whole(patch: Patch) -> None:
    """The prompt loses its last token to one that holds characters of the answer."""
    patch.setattr(encoding.Encoder, "_apart", lambda self, items, tokens: tokens)


def the_last_turn_only(patch: Patch) -> None:
    original = rendering._targets
    patch.setattr(rendering, "_targets", lambda *parts: original(*parts)[-1:])


def answers_by_text(patch: Patch) -> None:
    """An answer begins where its words are found first."""

    def begin(self: Any, messages: Any, number: int, text: str, tools: Any) -> int:
        return text.find(messages[number]["content"])

    patch.setattr(rendering.ChatRenderer, "_begin", begin)


def nulls_stay(patch: Patch) -> None:
    for place in (messages, formats_base):
        patch.setattr(place, "without_nulls", thaw)


def first_tokens_are_targets(patch: Patch) -> None:
    patch.setattr(batches, "_positions", lambda row: np.arange(1, len(row["input_ids"]) + 1))


def one_segment(patch: Patch) -> None:
    """A mask of ones: every document of a sequence sees those before it."""

    class Joined(segments._Segments):
        def __init__(self, parts: tuple[Any, ...], causal: bool, masks: Any) -> None:
            super().__init__((segments._Part(0, sum(part.length for part in parts)),), causal, (None,))

    patch.setattr(segments, "_Segments", Joined)


def blocks_teach_first_tokens(patch: Patch) -> None:
    original = packing.BlockDataset.__getitem__

    def row(self: Any, index: int) -> Any:
        made = original(self, index)
        return {**made, "labels": made["input_ids"]}

    patch.setattr(packing.BlockDataset, "__getitem__", row)


def tokens_without_embedding_pass(patch: Patch) -> None:
    original = packing._Documents.__init__
    patch.setattr(
        packing._Documents,
        "__init__",
        lambda self, tokenizer, known, *rest: original(self, tokenizer, None, *rest),
    )


def resize_unties(patch: Patch) -> None:
    tests = module(TRANSFORMERS + "test_transformers_tokenizers.py")
    original = vocabulary.extend_embeddings

    def extend(model: Any, *rest: Any, **more: Any) -> None:
        original(model, *rest, **more)
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())

    patch.setattr(tests, "extend_embeddings", extend)


def new_tokens_left_alone(patch: Patch) -> None:
    patch.setattr(adapter, "_new_tokens", lambda model: None)


def any_checkpoint_resumes(patch: Patch) -> None:
    patch.setattr(checkpoints, "problem", lambda folder: None)


def unseeded_shuffle(patch: Patch) -> None:
    original = select._permutation
    patch.setattr(select, "_permutation", lambda count, seed: original(count, random.randrange(1 << 30)))


@dataclass(frozen=True)
class Trap:
    name: str
    sabotage: Callable[[Patch], None]
    path: str
    test: str
    arguments: dict[str, Any] = field(default_factory=dict)


TRAPS_FILE = TRL + "test_trl_traps.py"
TRAPS = (
    Trap(
        "T1-mean-of-means",
        mean_of_means,
        TRL + "test_trl_fidelity.py",
        "test_the_loss_is_the_same_however_batches_are_run",
        {"architecture": "llama"},
    ),
    Trap(
        "T2-mean-of-nothing",
        mean_of_nothing,
        "tests/test_hf_losses.py",
        "test_nothing_to_learn_is_a_loss_of_zero_on_the_graph",
    ),
    Trap(
        "T3-empty-rows-trained",
        rows_without_targets_pass,
        TRAPS_FILE,
        "test_cut_answers_are_counted_and_never_trained_without_an_end",
    ),
    Trap("T5-special-tokens-twice", special_tokens_twice, TRAPS_FILE, "test_exactly_one_begin_of_text"),
    Trap(
        "T6-padding-masked-by-id",
        masked(lambda encoder: {encoder.tokenizer.pad_token_id}),
        TRAPS_FILE,
        "test_the_end_is_learned_whatever_pads",
        {"pad": "<|im_end|>"},
    ),
    Trap(
        "T7-stop-outside-the-answer",
        masked(lambda encoder: set(encoder.stops)),
        TRAPS_FILE,
        "test_end_that_the_next_turn_writes_belongs_to_the_answer",
    ),
    Trap("T8-boundary-merged", tokens_of_the_whole, TRAPS_FILE, "test_prompt_keeps_its_own_tokens"),
    Trap(
        "T9-last-turn-only",
        the_last_turn_only,
        TRAPS_FILE,
        "test_every_turn_is_learned_and_nothing_else",
        {"template": "CHATML", "settings": {}, "expected": "~Yo<|im_end|>\n~Ok<|im_end|>\n"},
    ),
    Trap(
        "T10-answers-found-by-text",
        answers_by_text,
        TRAPS_FILE,
        "test_every_turn_is_learned_and_nothing_else",
        {"template": "CHATML", "settings": {}, "expected": "~Yo<|im_end|>\n~Ok<|im_end|>\n"},
    ),
    Trap("T11-null-keys", nulls_stay, TRAPS_FILE, "test_null_keys_of_columnar_files_are_not_written"),
    Trap(
        "T12-first-token-is-a-target",
        first_tokens_are_targets,
        "tests/test_hf_batches.py",
        "test_a_micro_batch_is_one_sequence_in_which_no_first_token_is_a_target",
    ),
    Trap(
        "T12-mask-of-ones",
        one_segment,
        TRL + "test_trl_fidelity.py",
        "test_a_packed_example_sees_nothing_of_the_others",
    ),
    Trap(
        "T12-blocks-teach-first-tokens",
        blocks_teach_first_tokens,
        TRANSFORMERS + "test_transformers_packing.py",
        "test_every_token_is_a_target_once",
        {"length": 8},
    ),
    Trap(
        "T18-resize-unties",
        resize_unties,
        TRANSFORMERS + "test_transformers_tokenizers.py",
        "test_new_embeddings_are_the_mean_of_their_parts",
        {"tied": True},
    ),
    Trap(
        "T19-token-without-embedding",
        tokens_without_embedding_pass,
        TRANSFORMERS + "test_transformers_packing.py",
        "test_a_token_without_an_embedding_is_an_error",
    ),
    Trap(
        "T19-new-tokens-left-alone",
        new_tokens_left_alone,
        "plugins/tunekit-peft/tests/test_peft_lora.py",
        "test_embeddings_of_new_tokens_are_trained_and_merged",
        {"ties": True},
    ),
    Trap(
        "T34-any-checkpoint-resumes",
        any_checkpoint_resumes,
        "tests/test_hf_training.py",
        "test_weights_alone_are_no_checkpoint_to_continue_from",
    ),
    Trap(
        "T35-unseeded-shuffle",
        unseeded_shuffle,
        "tests/test_data_select.py",
        "test_shuffling_is_a_permutation_by_seed",
    ),
    Trap(
        "T1-mean-of-means-of-pairs",
        mean_of_means_of_pairs,
        TRL + "test_trl_pairs.py",
        "test_eight_at_once_are_one_eight_times",
        {"method": "cpo"},
    ),
    Trap(
        "T13-base-as-reference",
        base_as_reference,
        TRL + "test_trl_dpo.py",
        "test_reference_after_sft_through_an_adapter_is_the_merged_model",
    ),
    Trap(
        "T13-reference-that-moves",
        reference_that_moves,
        TRL + "test_trl_pairs.py",
        "test_held_out_pairs_are_judged_against_the_unchanged_reference",
        {"lora": None},
    ),
)


@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.name)
def test_a_mistake_that_is_put_back_is_found(trap: Trap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tests = module(trap.path)
    test = getattr(tests, trap.test)
    arguments = dict(trap.arguments)
    if arguments.get("template") == "CHATML":
        arguments["template"] = tests.driver.CHATML
    wanted = inspect.signature(test).parameters
    arguments |= {
        name: value for name, value in (("tmp_path", tmp_path), ("monkeypatch", monkeypatch)) if name in wanted
    }
    with monkeypatch.context() as patch:
        trap.sabotage(patch)
        with pytest.raises((AssertionError, TunekitError, pytest.fail.Exception)):
            test(**arguments)


def test_the_table_of_traps_names_tests_that_exist() -> None:
    page = (ROOT / "docs" / "explanation" / "traps.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:tests|plugins)/[\w/-]+\.py)::(\w+)`", page)
    assert len(named) > 20
    for path, test in named:
        text = (ROOT / path).read_text(encoding="utf-8")
        assert re.search(rf"^\s*def {test}\(", text, re.M), f"{path}::{test}"
    for trap in TRAPS:
        assert (trap.path, trap.test) in named, trap.name
