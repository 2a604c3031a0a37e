"""What is said of wrong options."""

from __future__ import annotations

from typing import Any

from pydantic import create_model

from tunekit import Pipeline, Session
from tunekit._option_errors import option_findings
from tunekit.plugins import DataOptions, Options, trainer


class _Own(Options):
    metric: str = "acc"


def test_an_unknown_option_is_near_to_one_that_is_looked_at_elsewhere() -> None:
    values = {"numfewshot": 3}
    options, (finding,) = option_findings(
        _Own, values, step="evaluate", what="settings['mmlu']", also=("num_fewshot", "limit")
    )
    assert options is None and finding.details["suggestions"] == ["num_fewshot"]
    assert finding.details["known"] == ["metric", "num_fewshot", "limit"]
    assert option_findings(_Own, values, step=None, what="")[1][0].details["known"] == ["metric"]


def test_of_many_options_the_shared_and_the_own_ones_are_named() -> None:
    many = create_model("Many", __base__=Options, **{f"o{number}": (int, 0) for number in range(40)})
    _, (finding,) = option_findings(many, {"xyzzy": 1}, step="align", what="")
    assert finding.fix == (
        "use one of the options: o0, o1, o2, o3, ..., o32, o33, o34, o35, o36, o37, o38, o39 "
        "(tunekit plugins show lists all 40)"
    )
    assert len(finding.details["known"]) == 40


def test_an_option_of_other_methods_names_them() -> None:
    def method(name: str, *options: str, data: str = "preference") -> type[Any]:
        made = create_model(f"Options_{name}", __base__=DataOptions, **dict.fromkeys(options, (float, 1.0)))
        target = type(f"Method_{name}", (), {"__doc__": "A method.", "run": lambda self, ctx: None})
        return trainer(name=name, stage="align", data=(data,), options=made)(target)

    methods = [method(name, "each", *own) for name, own in (("ay", ["gamma"]), ("bee", ["gamma"]), ("see", ["two"]))]
    methods += [method(f"m{number}", "each") for number in range(3)] + [method("bare")]
    # One that learns from other data is named only where no other has the option.
    methods += [method("far", "gamma", "clip", data="prompt")]
    session = Session(plugins=methods, autoload=False)

    def said(**options: float) -> tuple[str, str]:
        line = Pipeline(session=session).align(method="bare", data=[], adapter=None, **options)
        (found,) = [finding for finding in line.check() if finding.code == "unknown-option"]
        return found.message, found.fix

    assert said(gamma=1.0) == ("bare has no option 'gamma'; ay and bee have it.", "take ay or bee, or leave gamma out")
    assert said(clip=1.0) == ("bare has no option 'clip'; far has it.", "take far, or leave clip out")
    assert said(two=1.0) == ("bare has no option 'two'; see has it.", "take see, or leave two out")
    assert said(each=1.0) == ("bare has no option 'each'; ay, bee, m0 and 3 others have it.", "leave each out")
    assert said(xyzzy=1.0)[1].startswith("use one of the options: data, ")
