"""Tests that every exporter has to pass."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from tunekit.testing.model_probes import (
    CORE_FILES,
    Ran,
    StepWatch,
    changed_tensors,
    distance,
    expressive_pair,
    file_hashes,
    logits,
    run_cancelled,
    run_watched,
    scale_of,
    tokenizer_differences,
    told,
)
from tunekit.testing.suite import Suite, suite_session

if TYPE_CHECKING:
    from tunekit.pipeline import Pipeline
    from tunekit.session import Session

__all__ = ["ExporterSuite"]

_RUNS: pytest.StashKey[_Runs] = pytest.StashKey()
_TIES = pytest.mark.parametrize("ties", [True, False], ids=["tied", "untied"])


_ENDS = re.compile(r"(the id of )?(bos|eos)_token\b")
"""How a difference in the tokens that begin or end a text begins."""


class ExporterSuite(Suite):
    """An exporter writes a model in another format, complete, and the same bytes each time.

    Override :meth:`reload` for a format that is no model folder, and the class attributes for what the format keeps.
    """

    kind = "exporter"

    options: ClassVar[Mapping[str, Any]] = {}
    """Options of the export step."""
    bad_options: ClassVar[tuple[Mapping[str, Any], ...]] = ()
    """Options that check() must refuse, besides an unknown name."""
    tolerance: ClassVar[float] = 1e-5
    """Largest difference of the logits, as a share of the largest logit; larger for formats that round."""

    # ---------------------------------------------------------------- what a subclass may change

    def pair(self, *, tied: bool = True) -> tuple[Any, Any]:
        """Model and tokenizer to export: with a chat template, and BOS before every text."""
        return expressive_pair(tied=tied, bos=True)

    def reload(self, path: Path) -> tuple[Any, Any]:
        """Model and tokenizer read from what was exported. Default: ``path`` is a model folder.

        ``path`` is what the artifact's ``details["path"]`` names below the step's folder, or else that folder.
        """
        from tunekit.plugins import hf

        if not (path / "config.json").is_file():
            pytest.fail(
                f"{path} holds {', '.join(sorted(file_hashes(path))) or 'nothing'} and is no model folder: override "
                "reload(path) with what reads this format",
                pytrace=False,
            )
        loaded = hf.load_folder(path)
        return loaded.model, loaded.tokenizer

    # ---------------------------------------------------------------- tests

    @pytest.fixture
    def runs(self, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> _Runs:
        """Runs of the exporter, each made once per class."""
        parent = request.node.getparent(pytest.Class)
        runs: _Runs | None = parent.stash.get(_RUNS, None)
        if runs is None:
            runs = parent.stash[_RUNS] = _Runs(self, tmp_path_factory.mktemp("exporter"))
        return runs

    def test_writes_below_its_folder(self, runs: _Runs) -> None:
        ran = runs.get()
        assert _exported(ran), told(
            "the step's folder holds no file of the exporter", "the export", "it is written somewhere else"
        )
        assert _path(ran).exists(), f'details["path"] names {_path(ran)}, which is not there'
        assert not ran.strays, told(
            f"files were left in the current directory: {ran.strays[:4]}",
            "only ctx.dir is written to",
            "a relative path that does not start at ctx.dir",
        )

    def test_says_what_it_wrote(self, runs: _Runs) -> None:
        artifact = runs.get().step.artifact
        assert artifact.kind == "report" and artifact.model is None, told(
            f"the artifact is of kind {artifact.kind!r} with model={artifact.model}",
            "kind 'report' without a model: later steps go on from the model that was exported",
            "a trainer's artifact was copied",
        )
        data = artifact.to_data()
        assert json.loads(json.dumps(data)) == data, "the artifact holds values that are no JSON types"

    def test_same_files_twice(self, runs: _Runs) -> None:
        once = runs.get()
        # A time that gets into a file may be in whole seconds.
        time.sleep(max(0.0, 1.1 - (time.time() - runs.ended)))
        again = runs.get(again=True)
        left, right = _exported(once), _exported(again)
        differ = sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name))
        assert not differ, told(
            f"two exports of one model differ in {', '.join(differ[:4])}",
            "the same bytes",
            "a time, an absolute path, a random id, or the order of a set gets into the file",
        )

    @_TIES
    def test_reload_gives_the_models_logits(self, runs: _Runs, ties: bool) -> None:
        model, _ = self.reload(_path(runs.get(ties=ties)))
        expected = logits(runs.pairs[ties][0])
        off, limit = distance(expected, logits(model)), self.tolerance * scale_of(expected)
        assert off <= limit, told(
            f"with {'tied' if ties else 'untied'} embeddings the logits of the export are off by {off:.3g}",
            f"at most {limit:.3g}",
            "rows are permuted for another layout of rotary positions, a tensor is transposed, or tied embeddings are "
            "written as zeros",
        )

    def test_tokenizer_travels(self, runs: _Runs) -> None:
        # The other two tests take the template and the two tokens; all else is found here.
        lost = [t for t in self._lost(runs) if not t.startswith("chat_template") and not _ENDS.match(t)]
        assert not lost, told(
            f"the exported tokenizer is another one: {'; '.join(lost)}",
            "the same token ids",
            "a normaliser, a pre-tokenizer or the list of special tokens was left out",
        )

    def test_chat_template_travels(self, runs: _Runs) -> None:
        lost = [text for text in self._lost(runs) if text.startswith("chat_template")]
        assert not lost, told(
            f"{lost[0] if lost else ''}",
            "the same template",
            "only the vocabulary is exported; without its template a chat model answers gibberish",
        )

    def test_eos_and_bos_travel(self, runs: _Runs) -> None:
        lost = [text for text in self._lost(runs) if _ENDS.match(text)]
        assert not lost, told(
            f"special tokens differ: {'; '.join(lost)}",
            "the same BOS and EOS",
            "flags for begin and end tokens are left at the format's default, so that generation never ends",
        )
        model, _ = self.reload(_path(runs.get()))
        expected = getattr(runs.pairs[True][0].generation_config, "eos_token_id", None)
        config = getattr(model, "generation_config", None)
        if expected is not None and config is not None:
            assert config.eos_token_id == expected, told(
                f"generation of the exported model ends at token {config.eos_token_id}, of the input at {expected}",
                "the same",
                "the generation config is not exported",
            )

    def test_input_is_untouched(self, runs: _Runs) -> None:
        ran = runs.get()
        assert ran.seen is not None
        changed = changed_tensors(ran.seen.before, ran.seen.after)
        assert not changed, told(
            f"the input model in memory was changed: {', '.join(changed[:4])}",
            "steps that come later may start from the same model",
            "model.half() and model.to(...) work in place; convert a copy, or tensor by tensor",
        )
        template = getattr(ran.seen.input.tokenizer, "chat_template", None)
        assert template == runs.pairs[True][1].chat_template, "the input's tokenizer was changed in memory"
        assert file_hashes(runs.source) == runs.source_files, "files in the folder of the input model changed"

    def test_wrong_options_are_refused(self, runs: _Runs, session: Session) -> None:
        for options in ({"no_such_option": 1}, *self.bad_options):
            found = [f for f in runs.pipeline(runs.pairs[True], **options).check(session) if f.level == "error"]
            assert found, told(
                f"check() takes the options {options}",
                "an error",
                "the options model allows extra fields; derive it from tunekit.plugins.Options",
            )

    def test_cancel_leaves_nothing_half_written(self, runs: _Runs, session: Session, tmp_path: Path) -> None:
        problem = run_cancelled(runs.pipeline(str(runs.source)), session, tmp_path / "run", "export")
        assert not problem, told(
            f"after a cancel {problem}",
            "RunCancelled soon, and nothing published",
            "ctx.cancel is never looked at; call ctx.cancel.raise_if_cancelled() between tensors or files",
        )
        # The same folder again: what the cancelled step left there must not get into the export.
        ran = run_watched(runs.pipeline(str(runs.source)), session, tmp_path / "run")
        assert _exported(ran) == _exported(runs.get()), told(
            "the export after a cancelled one has other files than an export that was left alone",
            "the same files",
            "files of the first attempt are appended to, or left in place",
        )

    # ---------------------------------------------------------------- details

    def _lost(self, runs: _Runs) -> list[str]:
        _, tokenizer = self.reload(_path(runs.get()))
        return tokenizer_differences(runs.pairs[True][1], tokenizer)


class _Runs:
    """Runs of one exporter, each made when it is first asked for."""

    def __init__(self, suite: ExporterSuite, home: Path) -> None:
        self.suite = suite
        self.home = home
        self.done: dict[tuple[bool, bool], Ran] = {}
        self.ended = 0.0
        self.pairs = {ties: suite.pair(tied=ties) for ties in (True, False)}
        self.source = home / "input"
        for part in self.pairs[True]:
            part.save_pretrained(self.source)
        self.source_files = file_hashes(self.source)

    def pipeline(self, model: Any, **options: Any) -> Pipeline:
        """``Pipeline(model).export(name)``."""
        from tunekit.pipeline import Pipeline

        return Pipeline(model=model).export(self.suite.name, **{**self.suite.options, **options})

    def get(self, *, ties: bool = True, again: bool = False) -> Ran:
        """The export of the tied model from its folder, or of the untied one in memory."""
        key = (ties, again)
        if key not in self.done:
            watch = StepWatch("export")
            session = suite_session(self.suite.plugins, watch)
            model = str(self.source) if ties else self.pairs[False]
            workdir = self.home / f"{'tied' if ties else 'untied'}{'-again' if again else ''}"
            self.done[key] = run_watched(self.pipeline(model), session, workdir, watch)
            self.ended = time.time()
        return self.done[key]


def _exported(ran: Ran) -> dict[str, str]:
    return file_hashes(ran.step.folder, leave_out=CORE_FILES)


def _path(ran: Ran) -> Path:
    return ran.step.folder / str(ran.step.artifact.details.get("path", ""))
