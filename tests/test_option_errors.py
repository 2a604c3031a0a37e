"""What is said of wrong options."""

from __future__ import annotations

from pydantic import create_model

from tunekit._option_errors import option_findings
from tunekit.plugins import Options


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
