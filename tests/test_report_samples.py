"""Samples in the report: escaped, with the numbers of the step."""

from __future__ import annotations

from tunekit import _report_samples as written


def test_samples_and_their_numbers_are_shown() -> None:
    details = {
        "samples": {
            "n": 4,
            "max_new_tokens": 64,
            "cut_off": {"before": 3, "after": 0},
            "rows": [{"prompt": "<b>", "before": "a", "after": "<i>", "before_score": 1.0, "after_score": 2.5}],
        },
        "win_rate": {
            "value": 0.75,
            "ci_low": 0.3,
            "ci_high": 0.95,
            "n": 4,
            "reward_before": 1.0,
            "reward_after": 2.5,
        },
        "kl_to_start": {"per_token": 0.25, "per_sequence": 1.5},
    }
    told = {fact.label: fact.value for fact in written.sample_facts(details)}
    assert told["win rate"].startswith("75.0% against the start, 95% CI 0.3000 to 0.9500, 4 prompts")
    assert told["samples"] == "4, cut off after 64 tokens: 3 before and 0 after training"
    assert told["reward"] == "1.0000 -> 2.5000"
    assert told["KL to the start"] == "0.2500 nats a token, 1.5000 a completion"
    html = written.samples(details)
    assert "&lt;b&gt;" in html and "&lt;i&gt;" in html and "<i>" not in html and "reward 2.5000" in html


def test_steps_without_samples_show_nothing() -> None:
    assert written.samples({}) == "" and written.sample_facts({}) == []
    (told,) = written.sample_facts({"kl_to_start": {"problem": "gone"}})
    assert told.tone == "warn" and "gone" in told.value
    failed = written.sample_facts({"samples": {"problem": "no text"}, "win_rate": {"problem": "no score"}})
    assert [(fact.label, fact.tone) for fact in failed] == [("samples", "warn"), ("win rate", "warn")]
    assert "no text" in failed[0].value and "no score" in failed[1].value
