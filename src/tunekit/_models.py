"""The models of a run: read from disk at most once, handed from step to step in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunekit import storage
from tunekit._work import Work
from tunekit.errors import ArtifactError, StepError, nearest
from tunekit.plan import TRAINING_KINDS, ResolvedPlan
from tunekit.plugins.protocols import LoadedModel, ModelSource
from tunekit.session import Session

__all__ = ["Models"]

_BASE = "(base)"


class Models:
    """Gives each step its input model."""

    def __init__(self, resolved: ResolvedPlan, session: Session, objects: Mapping[str, Any]) -> None:
        self._resolved = resolved
        self._session = session
        self._objects = objects
        self._live: dict[str, LoadedModel] = {}
        self._base_hash: str | None = None

    def pin_base(self) -> None:
        """Note which weights the base model has as the run begins: no others are loaded later."""
        if self._resolved.model is not None and self._base_hash is None:
            self._base_hash = self.base().fingerprint()

    def verify(self, item: Work) -> None:
        """Make sure that the files of a step's input model are still the ones the plan names.

        Raises:
            ArtifactError: if they are not.
        """
        if item.input is None:
            if item.step.kind != "pretrain":
                self._same_base(self.base())
        elif item.input_model is not None:
            self._same_step(item, item.input_model)

    def base(self) -> ModelSource:
        """The pipeline's base model.

        Raises:
            StepError: if it has none.
        """
        if self._resolved.model is None:
            raise StepError("The pipeline has no base model.", code="no-model", fix="Pipeline(model=...)")
        return self._session.resolve_model(self._resolved.model, objects=self._objects)

    def get(self, item: Work) -> LoadedModel:
        """The step's input model: the one in memory, else from disk after its hash was compared.

        A step that changes the model takes it out of memory, so that no other step sees the changed weights.

        Raises:
            StepError: if all weights of a quantized model would be trained. ``check`` finds that where an earlier step
                quantized it; a base model shows it only once it is loaded.
        """
        owner = item.input.name if item.input is not None else _BASE
        loaded = self._live.pop(owner, None) or self._from_disk(item)
        if (
            item.step.kind in TRAINING_KINDS
            and item.step.adapter is None
            and getattr(loaded.model, "is_quantized", False)
        ):
            raise StepError(
                f"Step {item.name} would train all weights of a quantized model; quantized weights cannot be trained.",
                code="quantized-training",
                asked=str(loaded.path or self._resolved.model),
                fix="pass the model that it was made from, and quantize after training",
            )
        if not item.changes_model:
            self._live[owner] = loaded
        return loaded

    def keep(self, name: str, loaded: LoadedModel) -> None:
        """Take a step's result for the steps to come."""
        self._live[name] = loaded

    def published(self, item: Work) -> None:
        """Tell a kept model where its files ended up."""
        kept = self._live.get(item.name)
        if (
            kept is not None
            and item.artifact is not None
            and item.artifact.model is not None
            and item.folder is not None
        ):
            kept.path = item.folder / item.artifact.model.path
            kept.weights_hash = item.artifact.model.weights_hash

    def free(self, done: Work, work: Sequence[Work]) -> None:
        """Let go of the models that no step after ``done`` starts from."""
        later = [other for other in work if other.step.index > done.step.index]
        needed = {other.input.name if other.input else _BASE for other in later if other.step.kind != "pretrain"}
        for name in list(self._live):
            if name not in needed:
                del self._live[name]

    def input_hash(self, item: Work) -> str:
        """Hash of the weights that :meth:`get` gives; empty for random weights."""
        if item.input is not None:
            artifact = item.input.artifact
            return artifact.model.weights_hash if artifact is not None and artifact.model is not None else ""
        if item.step.kind == "pretrain" or self._resolved.model is None:
            return ""
        if self._base_hash is None:
            self._base_hash = self.base().fingerprint()
        return self._base_hash

    def input_path(self, item: Work) -> Path | None:
        """Folder with the input model, if it lies in one."""
        if item.input is not None:
            return item.input_model
        if item.step.kind == "pretrain" or self._resolved.model is None:
            return None
        base = self.base()
        return Path(base.ref).expanduser().absolute() if base.kind == "folder" else None

    def of_step(self, name: str, work: Sequence[Work]) -> LoadedModel:
        """The model of a finished step, read from disk anew.

        Raises:
            ArtifactError: if there is no such step, it has not run yet or made no model, or its files were changed.
        """
        source = next((item for item in work if item.name == name), None)
        path = None
        if source is not None and source.folder is not None and source.artifact is not None:
            card = source.artifact.model
            path = source.folder / card.path if card is not None else None
        if source is None or path is None or source.artifact is None or source.artifact.model is None:
            made = [item.name for item in work if item.artifact is not None and item.artifact.model is not None]
            raise ArtifactError(
                f"There is no model of a step {name!r}" + (", which has made none yet." if source is not None else "."),
                code="no-step-model",
                asked=f"step:{name}",
                found=f"steps with a model: {', '.join(made) or 'none'}",
                suggestions=nearest(name, made),
                fix="name an earlier step that makes a model",
            )
        expected = source.artifact.model.weights_hash
        self._same_files(source, path, expected)
        loaded = self._session.resolve_model(str(path)).load()
        loaded.path, loaded.weights_hash = path, expected
        return loaded

    def _from_disk(self, item: Work) -> LoadedModel:
        if item.input is None:
            if item.step.kind == "pretrain":
                raise StepError("pretrain starts from random weights; there is no input model.", code="no-model")
            source = self.base()
            self._same_base(source)
            loaded = source.load()
            # Files may be swapped while they are read.
            self._same_base(source)
            return loaded
        artifact, path = item.input.artifact, item.input_model
        if artifact is None or artifact.model is None or path is None:
            raise StepError(
                f"Step {item.name} needs a model, but its input {item.input.name} made a report.",
                code="no-model",
                fix=f"name another step: {item.step.kind}(input=...)",
            )
        self._same_step(item, path)
        loaded = self._session.resolve_model(str(path)).load()
        loaded.path, loaded.weights_hash = path, artifact.model.weights_hash
        return loaded

    def _same_step(self, item: Work, path: Path) -> None:
        if item.input is not None:
            self._same_files(item.input, path, self.input_hash(item))

    @staticmethod
    def _same_files(source: Work, path: Path, expected: str) -> None:
        found = storage.weights_digest(path)
        if found != expected:
            raise ArtifactError(
                f"The weights in {path} are not the ones that step {source.name} wrote.",
                code="weights-changed",
                asked=f"weights {expected[:12]}",
                found=f"weights {found[:12]}",
                fix=f"restore the folder, or delete {source.folder} to run {source.name} again",
            )

    def _same_base(self, source: ModelSource) -> None:
        # A model in memory is what it is; training it is what changes it.
        if self._base_hash is None or source.kind == "memory":
            return
        found = source.fingerprint()
        if found != self._base_hash:
            raise ArtifactError(
                f"The model {source.ref} is not the one that the run began with.",
                code="weights-changed",
                asked=f"fingerprint {self._base_hash[:12]}",
                found=f"fingerprint {found[:12]}",
                fix="restore its files, or run the pipeline again: it starts from what is there then",
            )
