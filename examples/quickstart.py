"""The whole life of a small language model in one line, on embedded data and without any download.

    python examples/quickstart.py

It takes a few minutes on two CPU cores. Run it again: finished steps are reused.
"""

from __future__ import annotations

from rich.console import Console

from tunekit import Pipeline
from tunekit.display import summary_table


def main() -> None:
    line = Pipeline().pretrain().sft().align(method="dpo").lora(r=8).quantize("int4").evaluate(["mmlu", "gsm8k"])
    print(line.explain())
    result = line.run(workdir="runs/quickstart", progress=True)

    Console().print(summary_table(result))
    losses = [entry["loss"] for entry in result.step("pretrain").history]
    print(f"pretraining loss {losses[0]:.2f} -> {losses[-1]:.2f} in {len(losses)} steps")
    print("the int4 model says:", result.model.generate("What does `json.dumps` do?", max_new_tokens=30))


if __name__ == "__main__":
    main()
