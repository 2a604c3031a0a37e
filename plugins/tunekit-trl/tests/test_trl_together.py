"""What processes of a distributed training tell each other; two of them are in test_trl_pair_processes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tunekit.errors import RunCancelled, StepError
from tunekit.plugins import hf
from tunekit.testing.beside import beside
from tunekit_trl import alignment
from tunekit_trl.together import refuse_sharded, together

unpaired = beside(__file__, "test_trl_unpaired")


def test_alone_nothing_changes() -> None:
    assert together(lambda: 3, 1, "counted") == 3
    with pytest.raises(ZeroDivisionError):
        together(lambda: 1 / 0, 1, "counted")

    def cancelled() -> None:
        raise RunCancelled("enough", fix="go on")

    with pytest.raises(RunCancelled, match="enough"):
        together(cancelled, 1, "counted")


@pytest.mark.parametrize(
    ("fsdp", "deepspeed", "found"), [(True, False, "kto under FSDP"), (False, True, "kto under DeepSpeed")]
)
def test_weights_in_shards_are_refused(fsdp: bool, deepspeed: bool, found: str) -> None:
    with pytest.raises(StepError) as caught:
        refuse_sharded(SimpleNamespace(is_fsdp_enabled=fsdp, is_deepspeed_enabled=deepspeed), "kto")
    assert caught.value.code == "sharded" and caught.value.asked == found
    refuse_sharded(SimpleNamespace(is_fsdp_enabled=False, is_deepspeed_enabled=False), "kto")


@pytest.mark.parametrize("method", ["kto", "bco"])
def test_single_answers_are_refused_before_anything_is_computed(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Sharded(hf.CompletionTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.is_fsdp_enabled = True

    monkeypatch.setattr(hf, "CompletionTrainer", Sharded)
    monkeypatch.setattr(alignment, "reference_logps", lambda *_: pytest.fail("the reference is computed"))
    with pytest.raises(StepError) as caught:
        unpaired.run(method, tmp_path)
    assert caught.value.code == "sharded"
