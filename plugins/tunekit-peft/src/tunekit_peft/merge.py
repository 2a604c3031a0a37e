"""The step ``merge()``: the merged model of an adapter-trained step as a result of its own."""

from __future__ import annotations

from tunekit.errors import StepError
from tunekit.plugins import Artifact, LoadedModel, ModelCard, StepContext, hf

__all__ = ["MergeStep"]


class MergeStep:
    """The component behind ``merge()``.

    A step that trains through an adapter has merged it already, and proven the merge. This step writes the same plain
    model once more, in a folder named after it, and carries the proof along.
    """

    def run(self, ctx: StepContext) -> Artifact:
        """Write the merged model.

        Raises:
            StepError: if the step before was not trained through an adapter (code ``nothing-to-merge``).
            ArtifactError: if the disk is full or cannot be written.
        """
        proof = ctx.input.details.get("merge_proof") if ctx.input is not None else None
        if ctx.input is None or ctx.input.model is None or not proof:
            raise StepError(
                f"There is no adapter to merge in step {ctx.step.name!r}.",
                code="nothing-to-merge",
                found="a model that was not trained through an adapter" if ctx.input else "the base model",
                fix="leave merge() out; steps that train through an adapter merge it by themselves",
            )
        loaded = ctx.model()
        folder = ctx.dir / "model"
        hf.save_model(loaded.model, loaded.tokenizer, folder)
        ctx.keep(LoadedModel(model=loaded.model, tokenizer=loaded.tokenizer, path=folder))
        total, _ = hf.count_parameters(loaded.model)
        ctx.notice(
            "already-merged",
            f"The step {ctx.input.step or 'before'} merged its adapter when it ended; merge() writes that model again.",
        )
        return Artifact(
            kind="model",
            model=ModelCard(path=folder.name, parameters=total, dtype=ctx.input.model.dtype),
            details={"parameters": total, "merge_proof": dict(proof), "merged_step": ctx.input.step},
        )
