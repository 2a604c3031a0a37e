"""A plugin with step kinds that name a method of the pipeline. Without torch."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from tunekit.plugins import Artifact, DataOptions, Options, StepContext, StepSpec, hookimpl

api_version = 1


class DistillOptions(DataOptions):
    """What a distillation is told."""

    teacher: str
    """Model to learn from."""
    temperature: float = Field(default=1.0, gt=0)
    """Softens both distributions; divides
    the logits."""
    layers: list[int] = Field(default_factory=lambda: [0, 1])


class StampOptions(Options):
    text: str = "ok"
    """What to write."""


class Distill:
    def run(self, ctx: StepContext) -> Artifact:
        return Artifact(kind="report", details=ctx.options.model_dump(mode="json"))


class Stamp:
    def run(self, ctx: StepContext) -> Artifact:
        (ctx.dir / "stamp.txt").write_text(ctx.options.text)
        return Artifact(kind="report", details={"text": ctx.options.text})


def distill_spec(**fields: Any) -> StepSpec:
    return StepSpec(
        **{
            "name": "distill",
            "verb": "distill",
            "summary": "Learn from a larger model.",
            "target": "verb_plugin:Distill",
            "options": "verb_plugin:DistillOptions",
            "makes": "report",
            "adapters": True,
            **fields,
        }
    )


@hookimpl
def tunekit_steps() -> list[StepSpec]:
    return [
        distill_spec(),
        StepSpec(
            name="rubber-stamp",
            verb="stamp",
            target="verb_plugin:Stamp",
            options="verb_plugin:StampOptions",
            makes="report",
        ),
        StepSpec(name="plain", target="verb_plugin:Stamp", makes="report"),
    ]
