"""The process that runs GPTQModel: ``python -m tunekit_gptq.worker job.json``.

GPTQModel prints, changes the environment, and may crash; here it can. What the parent needs goes out as JSON lines on
the original stdout: ``{"event": "layer", "done": 3, "total": 30}``, then ``{"event": "done", ...}`` or
``{"event": "error", "type": ..., "message": ..., "traceback": ...}``. Everything else goes to stderr. The process ends
when its stdin does: that is when the parent is gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

Send = Callable[[dict[str, Any]], None]

_PR_SET_PDEATHSIG = 1


def _channel() -> Send:
    """The original stdout for messages; from here on, prints go to stderr."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    lock = threading.Lock()

    def send(message: dict[str, Any]) -> None:
        with lock:
            out.write(json.dumps(message) + "\n")
            out.flush()

    return send


def _die_with_parent(parent: int) -> None:
    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        os._exit(3)

    if sys.platform == "linux":
        # A copy of the pipe in another child of the parent would keep stdin open; the kernel's signal does not mind.
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(3)
    threading.Thread(target=watch, daemon=True).start()


def quantize(job: dict[str, Any], send: Send) -> dict[str, Any]:
    """Quantize ``job["input"]`` into ``job["output"]`` with GPTQModel."""
    import torch

    random.seed(job["seed"])
    torch.manual_seed(job["seed"])
    import numpy

    numpy.random.seed(job["seed"] % 2**32)

    from gptqmodel import GPTQModel, QuantizeConfig
    from transformers import AutoConfig, AutoTokenizer

    device = job["device"]
    config = QuantizeConfig(
        bits=job["bits"],
        group_size=job["group_size"],
        sym=job["sym"],
        desc_act=job["desc_act"],
        damp_percent=job["damp_percent"],
        act_group_aware=job["group_size"] > 0 and not job["desc_act"],
        format=job["format"],
        dynamic={pattern: {} for pattern in job["keep"]} or None,
        device=device,
        offload_to_disk=True,
        offload_to_disk_path=job["offload"],
    )
    source = job["input"]
    total = int(getattr(AutoConfig.from_pretrained(source, local_files_only=True), "num_hidden_layers", 0) or 0)
    model = GPTQModel.load(source, config, dtype=getattr(torch, job["dtype"]) if job["dtype"] else "auto")

    class Layers:
        def layer_complete(self, *, layer_idx: int, submodule_finalized: bool) -> None:
            if not submodule_finalized:
                send({"event": "layer", "done": layer_idx + 1, "total": total or None})

    model.layer_callback = Layers()
    send({"event": "layer", "done": 0, "total": total or None})
    rows = json.loads(Path(job["calibration"]).read_text(encoding="utf-8"))["token_ids"]
    started = time.perf_counter()
    model.quantize(
        rows,
        batch_size=1,
        tokenizer=AutoTokenizer.from_pretrained(source, local_files_only=True),
        # Short rows were left out before, where they are counted; here none may vanish.
        calibration_data_min_length=0,
    )
    seconds = time.perf_counter() - started
    model.save(job["output"])
    return {"event": "done", "seconds": seconds}


def main(path: str) -> int:
    """Run the job in the file ``path``. Returns the exit code."""
    send = _channel()
    try:
        job = json.loads(Path(path).read_text(encoding="utf-8"))
        _die_with_parent(int(job["parent"]))
        send(quantize(job, send))
    except BaseException as error:  # noqa: BLE001  (whatever it is, the parent must hear of it)
        send(
            {
                "event": "error",
                "type": type(error).__name__,
                "message": str(error),
                "errno": getattr(error, "errno", None),
                "traceback": traceback.format_exc()[-4000:],
            }
        )
        # The log may lie on the disk that is full.
        with contextlib.suppress(OSError):
            traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1])
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    # Threads of GPTQModel's pools may hang at interpreter shutdown; the work is done and saved.
    os._exit(code)
