"""What processes of a distributed training tell each other; two of them are in test_trl_pair_processes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tunekit.errors import RunCancelled, StepError
from tunekit_trl.together import refuse_sharded, together


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
