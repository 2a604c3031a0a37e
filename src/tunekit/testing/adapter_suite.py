"""Tests that every adapter has to pass."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from tunekit.errors import OptionsError
from tunekit.testing.fakes import toy_rows
from tunekit.testing.model_probes import (
    changed_tensors,
    distance,
    expressive_pair,
    file_hashes,
    logits,
    peft_config,
    probe_rows,
    run_watched,
    scale_of,
    tensor_hashes,
    tied,
    told,
)
from tunekit.testing.suite import Suite

if TYPE_CHECKING:
    from tunekit._registry import Entry
    from tunekit.session import Session

__all__ = ["AdapterSuite"]

_TIES = pytest.mark.parametrize("ties", [True, False], ids=["tied", "untied"])


class AdapterSuite(Suite):
    """An adapter trains a small part of a model, leaves the rest alone, and folds into it without a trace.

    Override :meth:`model` for another architecture, and :meth:`load` if the saved adapter is not read by PEFT.
    """

    kind = "adapter"

    options: ClassVar[Mapping[str, Any]] = {}
    """Options of the adapter."""
    bad_options: ClassVar[tuple[Mapping[str, Any], ...]] = ()
    """Options that must be refused, besides an unknown name and a rank ``r`` of 0."""
    largest_share: ClassVar[float] = 0.5
    """Most trained parameters, as a share of the tiny model's. Small models make adapters look large."""
    learning_rate: ClassVar[float] = 1e-2
    """Learning rate that makes the toy loss fall within 12 AdamW steps."""
    identity_tolerance: ClassVar[float] = 1e-6
    """Largest difference of the logits before any training, as a share of the largest logit."""
    merge_tolerance: ClassVar[float] = 2e-5
    """Largest difference between merged and attached model in float32, as a share of the largest logit."""

    # ---------------------------------------------------------------- what a subclass may change

    def model(self, *, tied: bool = True) -> Any:
        """A tiny model in float32 and evaluation mode; the same weights each time."""
        return expressive_pair(tied=tied)[0]

    def load(self, base: Any, folder: Path) -> Any:
        """``base`` with the adapter in ``folder`` on it, read without tunekit. Default: by PEFT."""
        if not (folder / "adapter_config.json").is_file():
            pytest.fail(
                f"{folder} holds {', '.join(sorted(file_hashes(folder))) or 'nothing'}, which PEFT does not read: "
                "override load(base, folder)",
                pytrace=False,
            )
        peft = pytest.importorskip("peft")
        config = peft_config(peft.PeftConfig.from_pretrained(str(folder)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # about names of transformers that PEFT still uses
            return peft.PeftModel.from_pretrained(base, str(folder), config=config).eval()

    # ---------------------------------------------------------------- fixtures

    @pytest.fixture
    def adapter(self, session: Session, entry: Entry) -> Any:
        """The adapter, made with :attr:`options`."""
        return self._made(session, entry, self.options)

    # ---------------------------------------------------------------- tests

    @_TIES
    def test_identity_at_start(self, adapter: Any, ties: bool) -> None:
        base = self.model(tied=ties)
        before = logits(base)
        attached = adapter.attach(base, seed=1)
        attached.eval()
        off, limit = distance(before, logits(attached)), self.identity_tolerance * scale_of(before)
        assert off <= limit, told(
            f"right after attach the logits are off by {off:.3g}",
            f"at most {limit:.3g}: training starts from the base model",
            "both factors of the update are drawn at random; one of them has to start at zero",
        )

    def test_only_few_parameters_train(self, adapter: Any) -> None:
        base = self.model()
        own = {parameter.data_ptr() for parameter in base.parameters()}
        total = sum(parameter.numel() for parameter in base.parameters())
        attached = adapter.attach(base, seed=1)
        trained = {name: p for name, p in attached.named_parameters() if p.requires_grad}
        assert trained, told(
            "no parameter of the attached model requires a gradient", "the adapter's do", "all are frozen"
        )
        open_base = sorted(name for name, p in trained.items() if p.data_ptr() in own)
        assert not open_base, told(
            f"base weights require a gradient: {', '.join(open_base[:4])}",
            "only the adapter's parameters do",
            "the base is not frozen before the adapter is put on: base.requires_grad_(False)",
        )
        share = sum(p.numel() for p in trained.values()) / total
        assert share <= self.largest_share, told(
            f"{share:.0%} of the base's number of parameters are trained",
            f"at most {self.largest_share:.0%} (largest_share)",
            "embeddings or whole layers are copied into the adapter",
        )

    def test_loss_falls(self, adapter: Any) -> None:
        attached = adapter.attach(self.model(), seed=1)
        losses = self._train(attached, steps=12)
        assert losses[-1] < 0.98 * losses[0], told(
            f"in 12 AdamW steps on one batch the loss went from {losses[0]:.4f} to {losses[-1]:.4f}",
            "it falls",
            "the update never reaches the output, or learning_rate does not suit this adapter",
        )

    def test_training_leaves_the_base_alone(self, adapter: Any) -> None:
        base = self.model()
        before, kept = logits(base), dict(base.named_parameters())
        copies = {name: parameter.detach().clone() for name, parameter in kept.items()}
        attached = adapter.attach(base, seed=1)
        self._train(attached)
        changed = sorted(name for name, parameter in kept.items() if not bool((parameter == copies[name]).all()))
        assert not changed, told(
            f"attach and 6 AdamW steps changed base weights: {', '.join(changed[:4])}",
            "the same bits",
            "base weights are in the optimizer (weight decay moves them without a gradient), or are overwritten",
        )
        with adapter.detached(attached):
            off = distance(before, logits(attached))
        assert off == 0, told(
            f"inside detached() the logits differ from the base's by {off:.3g}",
            "0: the reference model of preference training is computed this way",
            "one of the adapter's parts stays on, such as a bias, a scale, or a copied layer",
        )

    def test_detached_restores_the_adapter(self, adapter: Any) -> None:
        attached = adapter.attach(self.model(), seed=1)
        self._train(attached)
        before, flags = logits(attached), {name: p.requires_grad for name, p in attached.named_parameters()}
        with adapter.detached(attached):
            assert distance(before, logits(attached)) > 0, told(
                "detached() changes nothing: the logits are those of base plus adapter", "those of the base", "a no-op"
            )
        mistake = "what detached() switches is put back after the yield, not in a finally clause"
        self._is_back(attached, before, flags, "after detached()", mistake)
        with pytest.raises(KeyError), adapter.detached(attached):
            raise KeyError("raised inside detached()")
        self._is_back(attached, before, flags, "after an exception inside detached()", mistake)

    @_TIES
    def test_merged_equals_attached(self, adapter: Any, ties: bool) -> None:
        base = self.model(tied=ties)
        start = logits(base)
        attached = self._perturbed(adapter.attach(base, seed=1))
        expected = logits(attached)
        merged = adapter.merge(attached).eval()
        off, limit = distance(expected, logits(merged)), self.merge_tolerance * scale_of(expected)
        assert off <= limit, told(
            f"logits of the merged and of the attached model differ by {off:.3g}; base and attached differ by "
            f"{distance(start, expected):.3g}",
            f"at most {limit:.3g}",
            "the scale (alpha / r) is left out, factors are swapped, or a layer is passed over",
        )

    @_TIES
    def test_merge_leaves_a_plain_model(self, adapter: Any, ties: bool) -> None:
        plain = self.model(tied=ties)
        kinds, keys = {type(m) for m in plain.modules()}, list(plain.state_dict())
        merged = adapter.merge(self._perturbed(adapter.attach(copy.deepcopy(plain), seed=1)))
        assert type(merged) is type(plain), f"merge gives a {type(merged).__name__}, not a {type(plain).__name__}"
        found = list(merged.state_dict())
        assert found == keys, told(
            f"the merged model has the tensors {sorted(set(found) ^ set(keys))[:4]} more or less than the base",
            "the same names, so that any tool of the field reads it",
            "wrapper modules stay around the layers",
        )
        odd = sorted({type(m).__name__ for m in merged.modules() if type(m) not in kinds})
        assert not odd, f"modules of the adapter stay in the merged model: {', '.join(odd)}"
        marks = [mark for mark in ("peft_config", "active_adapter") if mark in vars(merged)]
        assert not marks, f"the merged model is still marked as one with an adapter: {', '.join(marks)}"
        dtypes = {str(p.dtype) for p in merged.parameters()}
        assert dtypes == {"torch.float32"}, told(
            f"the merged weights are {', '.join(sorted(dtypes))}", "float32 as in the base", "merging casts"
        )

    def test_merge_is_as_exact_as_the_bases_type(self, adapter: Any) -> None:
        import torch

        # The same base in both types (what bfloat16 cannot hold is rounded before), and the same adapter.
        half = self.model().to(torch.bfloat16)
        full = copy.deepcopy(half).float()
        half, full = (self._perturbed(adapter.attach(base, seed=1)) for base in (half, full))
        trained = {name: parameter for name, parameter in half.named_parameters() if parameter.requires_grad}
        small = sorted({str(p.dtype) for p in trained.values() if p.dtype.itemsize < 4})
        assert not small, f"on a bfloat16 base trained parameters are {', '.join(small)}: AdamW updates are lost in it"
        with torch.no_grad():
            for name, parameter in full.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(trained[name])
        half, full = adapter.merge(half), adapter.merge(full)
        for (name, low), high in zip(half.named_parameters(), full.parameters(), strict=True):
            assert low.dtype == torch.bfloat16, f"{name} of a bfloat16 base is {low.dtype} after the merge"
            low, high = low.detach().float(), high.detach()
            off = (low - high).abs()
            # bfloat16 has 8 bits: one rounding costs half a unit in the last, 2^-9 of the value's next power of two.
            worst = float((off / high.abs().clamp(min=1e-4)).max())
            assert worst <= 2.0**-8, told(
                f"{name} of a bfloat16 base is off by up to {worst:.2%} from the merge in float32",
                f"at most {2.0**-8:.2%}: base and update added in float32, and the sum rounded once",
                "the update is rounded to the base's type first, which shows where the two nearly cancel",
            )

    @_TIES
    def test_embeddings_survive_merge_and_reload(self, adapter: Any, ties: bool, tmp_path: Path) -> None:
        from tunekit.plugins import hf
        from tunekit.testing.fakes import tiny_tokenizer

        merged = adapter.merge(self._perturbed(adapter.attach(self.model(tied=ties), seed=1))).eval()
        said, are = bool(merged.config.tie_word_embeddings), tied(merged)
        assert said is ties and are is ties, told(
            f"after the merge of a base with {'tied' if ties else 'untied'} embeddings the config says tied={said} and "
            f"the tensors are tied={are}",
            f"{ties} for both",
            "merging gives the output layer a weight of its own; call merged.tie_weights() where the base was tied",
        )
        expected = logits(merged)
        hf.save_model(merged, tiny_tokenizer(), tmp_path / "merged")
        again = hf.load_folder(tmp_path / "merged").model
        off = distance(expected, logits(again))
        assert off == 0 and tied(again) is ties, told(
            f"saved and loaded again the logits differ by {off:.3g}, and tied embeddings are {tied(again)}",
            f"0, and {ties}",
            "config and tensors disagree about tying, so that loading overwrites one of the two",
        )

    def test_saved_adapter_loads_without_tunekit(self, adapter: Any, tmp_path: Path) -> None:
        base = self.model()
        fresh = copy.deepcopy(base)
        attached = self._perturbed(adapter.attach(base, seed=1))
        expected = logits(attached)
        trained = sum(p.numel() * p.element_size() for p in attached.parameters() if p.requires_grad)
        adapter.save(attached, tmp_path / "adapter")
        files = file_hashes(tmp_path / "adapter")
        size = sum((tmp_path / "adapter" / name).stat().st_size for name in files)
        assert size <= 1.5 * trained + 48_000, told(
            f"the adapter's folder has {size:,} bytes for {trained:,} bytes of trained weights",
            "the adapter alone",
            "the state of the whole model is saved",
        )
        start = logits(fresh)
        off, limit = distance(expected, logits(self.load(fresh, tmp_path / "adapter"))), 1e-6 * scale_of(expected)
        assert off <= limit, told(
            f"loaded again on the base the logits are off by {off:.3g}; base and adapter differ by "
            f"{distance(start, expected):.3g}",
            f"at most {limit:.3g}",
            "a layer is missing in the file, or the scale in the config is another one",
        )
        assert distance(expected, logits(attached)) == 0, "save() changed the model that it saved"

    def test_start_depends_on_the_seed_alone(self, adapter: Any) -> None:
        import torch

        def start(seed: int, outside: int) -> dict[str, Any]:
            torch.manual_seed(outside)
            state = torch.random.get_rng_state()
            attached = adapter.attach(self.model(), seed=seed)
            moved = not torch.equal(torch.random.get_rng_state(), state)
            assert not moved, told(
                "attach() moves torch's global random state",
                "the caller's is left as it was",
                "torch.manual_seed outside of torch.random.fork_rng()",
            )
            return {name: p.detach().clone() for name, p in attached.named_parameters() if p.requires_grad}

        with torch.random.fork_rng():
            first, same, other = start(5, 0), start(5, 123), start(6, 0)
        differ = sorted(name for name in first if not torch.equal(first[name], same[name]))
        assert not differ, told(
            f"with one seed the adapter starts differently: {', '.join(differ[:3])}",
            "attach(model, seed=...) decides alone",
            "seed is not used, and the global random state decides",
        )
        drawn = any(bool((value != value.reshape(-1)[0]).any()) for value in first.values() if value.numel() > 1)
        if drawn:
            assert any(not torch.equal(first[name], other[name]) for name in first), told(
                "seeds 5 and 6 give the same start", "another one", "a fixed seed"
            )

    def test_dropout_is_off_in_evaluation(self, session: Session, entry: Entry) -> None:
        model = session.options_model(entry.component)
        known = "dropout" in getattr(model, "model_fields", {})
        adapter = self._made(session, entry, {**self.options, "dropout": 0.5} if known else self.options)
        attached = self._perturbed(adapter.attach(self.model(), seed=1))
        attached.eval()
        plain = logits(attached)
        assert distance(plain, logits(attached)) == 0, told(
            "two passes in evaluation mode differ",
            "the same logits",
            "functional dropout without training=self.training",
        )
        if known:
            attached.train()
            assert distance(plain, logits(attached)) > 0, told(
                "dropout=0.5 changes nothing in training mode", "other logits in each pass", "the option is not used"
            )
            attached.eval()
            assert distance(plain, logits(attached)) == 0, "after train() and eval() the logits are other ones"

    def test_trains_in_a_pipeline(self, session: Session, tmp_path: Path) -> None:
        from tunekit.pipeline import Pipeline
        from tunekit.plugins import hf

        if session.registry.get("trainer", "sft", "sft") is None:
            pytest.skip("no trainer for sft is installed")
        model, tokenizer = expressive_pair()
        base, source = tensor_hashes(model), hf.save_model(model, tokenizer, tmp_path / "base")
        files = file_hashes(source)
        pipeline = (
            Pipeline(model=str(source))
            .sft(data=toy_rows("prompt_completion", 16), max_steps=12, batch_size=8, learning_rate=self.learning_rate)
            .adapter(self.name, **self.options)
        )
        ran = run_watched(pipeline, session, tmp_path / "run")
        losses = ran.events.losses("sft")
        half = len(losses) // 2
        early, late = sum(losses[:half]) / half, sum(losses[half:]) / (len(losses) - half)
        assert late < early, told(
            f"the loss went from {early:.4f} (mean of the first {half} steps) to {late:.4f}",
            "it falls",
            "the optimizer was given parameters that are not the adapter's, or learning_rate does not suit it",
        )
        assert file_hashes(source) == files, "training through the adapter wrote into the folder of the base model"
        assert not ran.strays, f"files were left in the current directory: {ran.strays[:4]}"
        proof = ran.step.artifact.details.get("merge_proof")
        assert proof and ran.step.adapter_path is not None, (
            f"the trainer left no adapter with a merge proof; details: {sorted(ran.step.artifact.details)}"
        )
        merged = hf.load_folder(ran.step.folder / "model").model
        again = self.load(hf.load_folder(source).model, ran.step.adapter_path)
        off, limit = distance(logits(merged), logits(again)), self.merge_tolerance * scale_of(logits(merged))
        assert off <= limit, told(
            f"the model of the step and base plus its adapter, both read from disk, differ by {off:.3g}",
            f"at most {limit:.3g}",
            "the adapter is saved after the merge, or before the last optimizer step",
        )
        changed = changed_tensors(base, tensor_hashes(merged))
        assert changed, "the step wrote the base model unchanged"

    def test_bad_options_are_refused(self, session: Session, entry: Entry) -> None:
        model = session.options_model(entry.component)
        bad: list[Mapping[str, Any]] = [{"no_such_option": 1}, *self.bad_options]
        if "r" in getattr(model, "model_fields", {}):
            bad.append({"r": 0})
        for options in bad:
            with pytest.raises(OptionsError) as caught:
                session.parse_options(entry.component, {**self.options, **options})
                pytest.fail(
                    told(f"options {options} are taken", "an error", "the options are not derived from Options"),
                    pytrace=False,
                )
            assert str(caught.value)

    # ---------------------------------------------------------------- details

    def _made(self, session: Session, entry: Entry, options: Mapping[str, Any]) -> Any:
        from tunekit.plugins import Adapter

        made = session.load(entry.component)(session.parse_options(entry.component, options))
        assert isinstance(made, Adapter), f"{entry.component.target} lacks one of attach, save, merge and detached"
        return made

    def _train(self, attached: Any, steps: int = 6) -> list[float]:
        """AdamW with weight decay on one batch, over what requires a gradient; in evaluation mode afterwards."""
        import torch

        vocabulary = int(attached.get_input_embeddings().weight.shape[0])
        ids = torch.tensor(probe_rows(min(vocabulary, 40), rows=4, tokens=16, seed=3))
        trained = [parameter for parameter in attached.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=self.learning_rate, weight_decay=0.1)
        losses = []
        attached.train()
        for _ in range(steps):
            loss = attached(input_ids=ids, labels=ids).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        attached.eval()
        return losses

    @staticmethod
    def _perturbed(attached: Any) -> Any:
        """The model with every trained parameter moved, the same way each time: none of them is zero afterwards."""
        import torch

        draw = torch.Generator().manual_seed(17)
        with torch.no_grad():
            for parameter in attached.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=draw).to(parameter) * 0.05)
        attached.eval()
        return attached

    @staticmethod
    def _is_back(attached: Any, before: Any, flags: Mapping[str, bool], when: str, mistake: str) -> None:
        off = distance(before, logits(attached))
        assert off == 0, told(f"{when} the logits are off by {off:.3g}", "those of base plus adapter", mistake)
        now = {name: p.requires_grad for name, p in attached.named_parameters()}
        wrong = sorted(name for name in flags if now.get(name) != flags[name])
        assert not wrong, told(f"{when} requires_grad is another one for {', '.join(wrong[:3])}", "as before", mistake)
