"""Tests that every quantizer has to pass."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from tunekit.errors import TunekitError, nearest
from tunekit.testing.fakes import toy_rows
from tunekit.testing.model_probes import (
    Ran,
    StepWatch,
    changed_tensors,
    distance,
    expressive_pair,
    file_hashes,
    logits,
    peft_config,
    run_cancelled,
    run_watched,
    scale_of,
    tied,
    tokenizer_differences,
    told,
)
from tunekit.testing.suite import Suite, find_entry, suite_session

if TYPE_CHECKING:
    from tunekit._registry import Entry
    from tunekit.pipeline import Pipeline
    from tunekit.plugins.protocols import Finding, LoadedModel
    from tunekit.session import Session

__all__ = ["QuantizerSuite"]

_RUNS: pytest.StashKey[_Runs] = pytest.StashKey()


class QuantizerSuite(Suite):
    """A quantizer makes a smaller model that computes nearly the same, and computes the same whenever it is loaded.

    Each scheme is run once and shared by the tests of the class. Override :meth:`pair` for another architecture,
    :meth:`calibration_rows` for other data, and the class attributes for what the quantizer promises.
    """

    kind = "quantizer"

    schemes: ClassVar[tuple[str, ...]] = ()
    """Schemes to test; empty: those that the spec declares."""
    options: ClassVar[Mapping[str, Any]] = {}
    """Further options of the quantize step."""
    shrinks_to: ClassVar[Mapping[str, float]] = {}
    """Scheme to the largest size of the weight files, as a share of the input's. Default: from the width in the
    scheme's name, 0.15 of the linear weights for scales and padding, and everything else unchanged."""
    closeness: ClassVar[Mapping[str, float]] = {}
    """Scheme to the largest error of the logits, as a share of their norm. Default: 0.05 from 8 bits on, 0.5 from 4."""
    reload_tolerance: ClassVar[float] = 0.0
    """Largest difference between the logits of two loads, as a share of the largest logit. 0: the same bits."""

    # ---------------------------------------------------------------- what a subclass may change

    def pair(self, *, tied: bool = True) -> tuple[Any, Any]:
        """The full-precision model and its tokenizer."""
        return expressive_pair(tied=tied, hidden=64, bos=True)

    def calibration_rows(self) -> list[dict[str, Any]]:
        """Rows for quantizers that are calibrated."""
        return toy_rows("text", 24)

    def with_adapter(self, model: Any, session: Session) -> Any:
        """``model`` with an adapter on it, not merged. Default: LoRA as installed, else of PEFT."""
        return attached_by_default(model, session)

    # ---------------------------------------------------------------- tests

    @pytest.fixture
    def runs(self, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> _Runs:
        """Runs of the quantizer, each made once per class."""
        parent = request.node.getparent(pytest.Class)
        runs: _Runs | None = parent.stash.get(_RUNS, None)
        if runs is None:
            runs = parent.stash[_RUNS] = _Runs(self, tmp_path_factory.mktemp("quantizer"))
        return runs

    @pytest.fixture
    def first(self) -> str:
        """The first scheme."""
        return _schemes(type(self))[0]

    def test_reload_gives_the_same_logits(self, runs: _Runs, session: Session, scheme: str) -> None:
        ran = runs.get(scheme)
        loads = [logits(_load(ran, session).model) for _ in range(2)]
        if ran.seen is not None and ran.seen.kept is not None:
            loads.append(logits(ran.seen.kept.model))
        limit = self.reload_tolerance * scale_of(loads[0])
        for what, found in zip(("loaded again", "handed on by the step with ctx.keep"), loads[1:], strict=False):
            off = distance(loads[0], found)
            assert off <= limit, told(
                f"{scheme}: logits of the model loaded from the folder and of the one {what} differ by {off:.3g}",
                f"at most {limit:.3g}",
                "something that decides the weights (scales, zero points, an outlier list, a random seed) is not in "
                "the files; or ctx.keep gets the model before it was rounded as the files are",
            )

    def test_size_shrinks_as_declared(self, runs: _Runs, scheme: str) -> None:
        ran = runs.get(scheme)
        before = runs.size_before
        share = _model_size(ran) / before
        limit = self.shrinks_to.get(scheme) or _share_by_width(scheme, runs.linear_share)
        assert share <= limit, told(
            f"{scheme}: the weight files have {_model_size(ran):,} bytes, {share:.1%} of the input's {before:,}",
            f"at most {limit:.1%}",
            "the rounded weights are stored in float (fake quantization), or the original is stored beside them",
        )
        assert ran.step.artifact.model is not None
        assert ran.step.artifact.model.quantized, told(
            "the artifact's ModelCard.quantized is empty", 'method and width, such as "gptq int4"', "a default was left"
        )

    def test_logits_stay_close(self, runs: _Runs, session: Session, scheme: str) -> None:
        full = logits(runs.pairs[True][0])
        found = logits(_load(runs.get(scheme), session).model)
        error = float((found - full).norm() / full.norm()) if found.shape == full.shape else float("inf")
        limit = self.closeness.get(scheme) or _error_by_width(scheme)
        assert error <= limit, told(
            f"{scheme}: the logits are off by {error:.3g} of their norm",
            f"at most {limit:.3g}",
            "scales belong to the wrong axis or group, a zero point is off by one, or layers are swapped",
        )

    def test_input_is_untouched(self, runs: _Runs, scheme: str) -> None:
        ran = runs.get(scheme)
        assert ran.seen is not None
        changed = changed_tensors(ran.seen.before, ran.seen.after)
        assert not changed, told(
            f"{scheme}: the input model in memory was changed: {', '.join(changed[:4])}",
            "steps that come later may start from the same model",
            "weights are replaced in the model that ctx.model() gives; work on a copy, or layer by layer",
        )
        assert file_hashes(runs.source) == runs.source_files, told(
            f"{scheme}: files in the folder of the input model changed", "only ctx.dir is written to", "save in place"
        )
        assert not ran.strays, told(
            f"{scheme}: files were left in the current directory: {ran.strays[:4]}",
            "only ctx.dir is written to",
            "a library writes its cache or log to a relative path",
        )

    def test_tokenizer_travels(self, runs: _Runs, session: Session, scheme: str) -> None:
        ran = runs.get(scheme)
        lost = tokenizer_differences(runs.pairs[True][1], _load(ran, session).tokenizer)
        assert not lost, told(
            f"{scheme}: the tokenizer beside the model is another one: {'; '.join(lost)}",
            "tokenizer files and chat template as they were",
            "only the weights are saved; call tokenizer.save_pretrained(folder), or copy the input's files",
        )

    @pytest.mark.parametrize("ties", [True, False], ids=["tied", "untied"])
    def test_embeddings_stay_as_they_are(self, runs: _Runs, session: Session, first: str, ties: bool) -> None:
        loaded = _load(runs.get(first, ties=ties), session).model
        assert bool(loaded.config.tie_word_embeddings) is ties and tied(loaded) is ties, told(
            f"the input's embeddings are {'tied' if ties else 'not tied'}; of the quantized model the config says "
            f"{bool(loaded.config.tie_word_embeddings)} and the tensors {tied(loaded)}",
            "as in the input",
            "the output layer is quantized or copied apart while the config still says tied",
        )
        full = logits(runs.pairs[ties][0])
        error = float((logits(loaded) - full).norm() / full.norm())
        limit = self.closeness.get(first) or _error_by_width(first)
        assert error <= limit, told(
            f"with {'tied' if ties else 'untied'} embeddings the logits are off by {error:.3g} of their norm",
            f"at most {limit:.3g}",
            "the output layer is read from the wrong tensor",
        )

    def test_same_seed_same_weights(self, runs: _Runs, first: str) -> None:
        import torch

        once = runs.get(first)
        # What a careless component draws from is moved, so that it cannot come out equal by chance.
        torch.rand(7)
        again = runs.get(first, again=True)
        found = [ran.step.artifact.model.weights_hash for ran in (once, again) if ran.step.artifact.model]
        assert found[0] == found[1], told(
            f"two runs with seed 0 wrote weights {found[0][:12]} and {found[1][:12]}",
            "the same seed and data, the same bytes",
            "calibration rows are drawn from the global random state, not from random.Random(ctx.seed); or the order "
            "of a set, a path or a time gets into the file",
        )

    @pytest.mark.parametrize("form", ["wrapped", "injected"])
    def test_attached_adapter_is_refused(
        self, runs: _Runs, session: Session, first: str, form: str, tmp_path: Path
    ) -> None:
        model, tokenizer = self.pair()
        attached = self.with_adapter(model, session)
        if form == "injected":
            if not hasattr(attached, "get_base_model"):
                pytest.skip("this adapter puts no wrapper around the model")
            attached = attached.get_base_model()
        error = None
        try:
            runs.pipeline((attached, tokenizer), first).run(session=session, workdir=tmp_path / "run", seed=0)
        except TunekitError as caught:
            error = caught
        assert error is not None, told(
            "a model with an attached adapter was quantized",
            "StepError, such as: merge the adapter into its base first",
            "the adapter is dropped, or frozen into the result, and nobody is told",
        )
        clear = error.code != "step-crashed" and "adapter" in str(error).lower() and bool(error.fix)
        assert clear, told(
            f"it was refused with [{error.code}] {error.message} {error.fix}",
            "a StepError that speaks of the adapter, with a fix",
            "the refusal comes from a library that met a layer it does not know",
        )

    def test_quantizing_twice_is_refused(self, runs: _Runs, session: Session, first: str, tmp_path: Path) -> None:
        twice = self._quantize(runs.pipeline(runs.pairs[True], first), first)
        codes = [finding.code for finding in _errors(twice, session)]
        assert "quantized-twice" in codes, f"check() of quantize().quantize() says {codes}"
        loaded = _load(runs.get(first), session)
        for what, model in (
            ("its folder", str(loaded.path)),
            ("the model in memory", (loaded.model, loaded.tokenizer)),
        ):
            try:
                runs.pipeline(model, first).run(session=session, workdir=tmp_path / what, seed=0)
            except TunekitError as error:
                assert error.code != "step-crashed", told(
                    f"{what} was refused by a crash: {error.found}", "a StepError with a fix", "nothing looks at it"
                )
            else:
                pytest.fail(
                    told(
                        f"a quantized model was quantized again, from {what}",
                        "an error: rounding what was rounded hides how much was lost",
                        "neither quantization_config nor model.is_quantized is looked at",
                    )
                )

    def test_training_on_the_result_is_refused(
        self, runs: _Runs, session: Session, entry: Entry, first: str, tmp_path: Path
    ) -> None:
        rows = toy_rows("prompt_completion", 8)
        if session.registry.get("trainer", "sft", "sft") is None:
            pytest.skip("no trainer for sft is installed")
        quantized = runs.pipeline(runs.pairs[True], first)
        full = [finding.code for finding in quantized.sft(data=rows).check(session)]
        assert "quantized-training" in full, f"check() of full training on the result says {full}"
        allowed = tuple(getattr(entry.spec, "trainable_with", ()))
        for adapter in sorted({other.spec.name for other in session.components("adapter")}):
            codes = [f.code for f in quantized.sft(data=rows).adapter(adapter).check(session)]
            assert ("adapter-after-quantize" not in codes) is (adapter in allowed), (
                f"trainable_with is {allowed}, and check() of training {adapter} on the result says {codes}"
            )
        from tunekit.pipeline import Pipeline

        # The folder alone, as a later program meets it.
        alone = Pipeline(model=str(_folder(runs.get(first)))).sft(data=rows, max_steps=2)
        try:
            alone.run(session=session, workdir=tmp_path / "train", seed=0)
        except TunekitError as error:
            assert error.code != "step-crashed", told(
                f"training on the result ends in {error}",
                "an error that says what is wrong and what to do",
                "nothing refuses the training, and the optimizer stumbles over weights that cannot be trained",
            )
            return
        pytest.fail(
            told(
                "all weights of the quantized folder were trained",
                "an error: an update of rounded weights is lost or cannot be stored",
                "the loader gives a model that looks plain; set model.is_quantized = True and freeze its weights",
            )
        )

    def test_unknown_scheme_names_the_nearest(self, runs: _Runs, session: Session, first: str) -> None:
        wrong = f"{first}x"
        close = nearest(wrong, _schemes(type(self)), limit=1)[0]
        found = _errors(self._quantize(self._base(runs.pairs[True]), wrong), session)
        assert found, told(
            f"check() takes the scheme {wrong!r}",
            "an error",
            "schemes=(...) of the spec is empty, and the option scheme is a str; make it a Literal[...]",
        )
        text = " ".join(f"{finding.message} {finding.fix}" for finding in found)
        assert close in text, told(f"check() says: {text}", f"the nearest scheme, {close}", "schemes are checked late")

    def test_unknown_option_is_refused(self, runs: _Runs, session: Session, first: str) -> None:
        found = _errors(self._quantize(self._base(runs.pairs[True]), first, no_such_option=1), session)
        assert found, told(
            "check() takes an option that does not exist",
            "an error",
            "the options model allows extra fields; derive it from tunekit.plugins.Options",
        )

    def test_cancel_stops_it(self, runs: _Runs, session: Session, first: str, tmp_path: Path) -> None:
        problem = run_cancelled(runs.pipeline(str(runs.source), first), session, tmp_path / "run", "quantize")
        assert not problem, told(
            f"after a cancel {problem}",
            "RunCancelled soon, and nothing published",
            "ctx.cancel is never looked at; call ctx.cancel.raise_if_cancelled() between layers",
        )

    # ---------------------------------------------------------------- details

    def _base(self, model: Any) -> Pipeline:
        from tunekit.pipeline import Pipeline

        return Pipeline(model=model)

    def _quantize(self, pipeline: Pipeline, scheme: str, **options: Any) -> Pipeline:
        spec = find_entry(self._session(), type(self).__name__, self.kind, self.name).spec
        wanted = {**self.options, **options}
        if getattr(spec, "calibrated", False):
            wanted.setdefault("data", self.calibration_rows())
        return pipeline.quantize(scheme, method=self.name, **wanted)

    def _session(self, *plugins: Any) -> Session:
        return suite_session(self.plugins, *plugins)

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """One test for each scheme."""
        if "scheme" in metafunc.fixturenames and metafunc.cls is not None:
            metafunc.parametrize("scheme", _schemes(metafunc.cls))


class _Runs:
    """Runs of one quantizer, each made when it is first asked for."""

    def __init__(self, suite: QuantizerSuite, home: Path) -> None:
        self.suite = suite
        self.home = home
        self.done: dict[tuple[str, bool, bool], Ran] = {}
        self.pairs = {ties: suite.pair(tied=ties) for ties in (True, False)}
        self.source = home / "input"
        for part in self.pairs[True]:
            part.save_pretrained(self.source)
        self.source_files = file_hashes(self.source)
        model = self.pairs[True][0]
        self.size_before = sum(p.stat().st_size for p in self.source.glob("*.safetensors"))
        self.linear_share = _linear_bytes(model) / sum(p.numel() * p.element_size() for p in model.parameters())

    def pipeline(self, model: Any, scheme: str) -> Pipeline:
        """``Pipeline(model).quantize(scheme)``."""
        return self.suite._quantize(self.suite._base(model), scheme)

    def get(self, scheme: str, *, ties: bool = True, again: bool = False) -> Ran:
        """The run of a scheme: on the tied model from its folder, or on the untied one in memory."""
        key = (scheme, ties, again)
        if key not in self.done:
            watch = StepWatch("quantize")
            model = str(self.source) if ties else self.pairs[False]
            workdir = self.home / f"{scheme}-{'tied' if ties else 'untied'}{'-again' if again else ''}"
            session = self.suite._session(watch)
            self.done[key] = run_watched(self.pipeline(model, scheme), session, workdir, watch)
        return self.done[key]


def attached_by_default(model: Any, session: Session) -> Any:
    """``model`` with a LoRA adapter that changes what it computes: by the installed plugin, else by PEFT."""
    import torch

    entry = session.registry.get("adapter", "lora")
    if entry is not None:
        made = session.load(entry.component)(session.parse_options(entry.component, {"r": 2}))
        attached = made.attach(model, seed=0)
    else:
        peft = pytest.importorskip("peft", reason="with_adapter() needs a LoRA plugin or peft, or an override")
        attached = peft.get_peft_model(model, peft_config(peft.LoraConfig(r=2, target_modules="all-linear")))
    with torch.no_grad():
        for number, parameter in enumerate(p for p in attached.parameters() if p.requires_grad):
            parameter.fill_(0.01 * (1 + number % 3))
    return attached.eval()


def _schemes(cls: type[QuantizerSuite]) -> list[str]:
    if cls.schemes:
        return list(cls.schemes)
    session = suite_session(cls.plugins)
    spec = find_entry(session, cls.__name__, cls.kind, cls.name).spec
    found = list(getattr(spec, "schemes", ()))
    if not found:
        pytest.fail(f"{cls.__name__}: the spec of {cls.name} declares no schemes=(...)", pytrace=False)
    return found


def _folder(ran: Ran) -> Path:
    assert ran.step.artifact.model is not None, "the quantizer returned an artifact without model=ModelCard(...)"
    return ran.step.folder / ran.step.artifact.model.path


def _load(ran: Ran, session: Session) -> LoadedModel:
    return session.resolve_model(str(_folder(ran))).load()


def _model_size(ran: Ran) -> int:
    assert ran.step.artifact.model is not None
    return ran.step.artifact.model.size_bytes


def _linear_bytes(model: Any) -> int:
    import torch

    head = model.get_output_embeddings()
    found = 0
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            found += module.weight.numel() * module.weight.element_size()
    return found


def _width(scheme: str) -> int:
    digits = re.search(r"\d+", scheme)
    if digits is None:
        pytest.fail(
            f"the scheme {scheme!r} has no width in its name: declare it in shrinks_to and closeness", pytrace=False
        )
    return int(digits[0])


def _share_by_width(scheme: str, linear_share: float) -> float:
    return linear_share * (_width(scheme) / 32 + 0.15) + (1 - linear_share)


def _error_by_width(scheme: str) -> float:
    width = _width(scheme)
    # a model of zeros is off by 1.0
    return 0.05 if width >= 8 else 0.5 if width >= 4 else 0.9


def _errors(pipeline: Pipeline, session: Session) -> list[Finding]:
    return [finding for finding in pipeline.check(session) if finding.level == "error"]


def _codes(findings: list[Finding]) -> str:
    return ", ".join(finding.code for finding in findings) or "nothing"
