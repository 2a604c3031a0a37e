"""Data larger than memory: time and memory of ``check()``, ``preview()`` and 50 training steps on a generated file.

Run it with ``python benchmarks/scale.py [--size 5GB] [--shape conversation|text] [--folder DIR]``. It writes a JSONL
file of that size into a temporary folder and one of 2 MB beside it, measures each part in a fresh interpreter on both,
and removes them. The model is a tiny Llama with a tokenizer of bytes, so that memory above the model's is memory of the
data: the peak on the large file less the peak on the small one, which holds the model, the libraries and the same
training steps. Then it tokenizes 1, 2 and 4 parts of the file and prints rows per second of CPU time. Exits with 1 if a
limit is not met.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunekit.testing import save_tiny

CHECK_SECONDS = 5.0
MEMORY_MB = 700.0
LINEAR = 0.8

_WORDS = """
the a one some every old new small great quiet river mountain city garden window letter morning winter engine number
story teacher captain doctor child is was becomes finds opens carries follows remembers builds answers because when
after while before under over near with without and but so very almost never always
"""

CHILD = """
import json, resource, sys, time
job = json.loads(sys.argv[1])
out = {}
began = time.perf_counter()

def pipeline(**more):
    from tunekit import Pipeline
    made = Pipeline(model=job["model"])
    length = 4096 if job["shape"] == "conversation" else 512
    options = dict(data=job["data"], max_length=length, batch_size=8, learning_rate=1e-3, **more)
    return made.sft(**options) if job["shape"] == "conversation" else made.post_pretrain(**options)

def timed(work):
    began, used = time.perf_counter(), time.process_time()
    result = work()
    out["seconds"], out["cpu"] = time.perf_counter() - began, time.process_time() - used
    return result

if job["part"] == "check":
    made = pipeline(max_steps=50)
    found = timed(made.check)
    out["errors"] = [f.message for f in found if f.level == "error"]
elif job["part"] == "preview":
    made = pipeline(max_steps=50)
    shown = timed(lambda: str(made.preview(n=5)))
    out["shown"] = len(shown)
elif job["part"] == "train":
    made = pipeline(max_steps=50)
    result = timed(lambda: made.run(workdir=job["workdir"], seed=0))
    (step,) = [s for s in result.steps if s.kind in ("sft", "post_pretrain")]
    out["steps"] = len([row for row in step.history if "loss" in row])
elif job["part"] == "tokenize":
    from types import SimpleNamespace
    from pathlib import Path
    from tunekit.cancel import CancelToken
    from tunekit.data import load_dataset
    from tunekit.plugins import hf
    from tunekit.testing import tiny_tokenizer
    tokenizer = tiny_tokenizer()
    data = load_dataset(job["data"])
    ctx = SimpleNamespace(dir=Path(job["workdir"]), cache=Path(job["workdir"]), cancel=CancelToken(),
                          progress=lambda *a: None)
    if job["shape"] == "conversation":
        from tunekit_trl.encoding import Encoder
        encoder = Encoder(tokenizer, 4096)
        def encode(rows):
            return [hf.TokenRow(e.input_ids, e.labels) for e in encoder.examples(rows, data.schema, "all-assistant")]
    else:
        def encode(rows):
            return [hf.TokenRow(ids) for ids in tokenizer([row["text"] for row in rows])["input_ids"]]
    encode(data.peek(8))
    store = timed(lambda: hf.TokenStore.build(ctx, "rows", data.rows(), encode, key="scale", limit=job["rows"]))
    out |= {"rows": len(store), "tokens": store.facts["tokens"], "bytes": sum(
        path.stat().st_size for path in store.folder.glob("*.tokens"))}
out["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps(out))
"""


def sentences(rng: random.Random, count: int) -> str:
    """Sentences of seven to fourteen words."""
    made = (" ".join(rng.choices(_WORDS.split(), k=rng.randint(7, 14))) for _ in range(count))
    return " ".join(sentence.capitalize() + "." for sentence in made)


def rows(shape: str, seed: int = 0) -> Iterator[str]:
    """JSON lines without end, about 1 kB each, with ``@@`` where each row has its number."""
    rng = random.Random(seed)
    texts = [sentences(rng, rng.choice((1, 2, 3, 3, 4, 12))) for _ in range(2000)]
    while True:
        first, second, third = rng.choices(texts, k=3)
        if shape == "text":
            row: dict[str, Any] = {"text": f"@@ {first} {second} {third}"}
        else:
            turns = [("user", f"@@ {first}"), ("assistant", second), ("user", "And?"), ("assistant", third)]
            row = {"messages": [{"role": role, "content": content} for role, content in turns]}
        yield json.dumps(row) + "\n"


def write(path: Path, size: int, shape: str) -> int:
    """Write about ``size`` bytes of rows, no two of them equal; returns how many."""
    block: list[str] = []
    held = 0
    for line in rows(shape):
        block.append(line)
        held += len(line)
        if held >= min(size, 16 << 20):
            break
    written = count = 0
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        while written < size:
            for line in block:
                count += 1
                written += stream.write(line.replace("@@", str(count), 1))
    return count


def child(job: dict[str, Any], timeout: float) -> dict[str, Any]:
    """What a fresh interpreter measured."""
    command = [sys.executable, "-c", CHILD, json.dumps(job)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {timeout:.0f} s"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["?"])[-1][:300]}
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def size_of(text: str) -> int:
    """``5GB``, ``300MB`` or a number of bytes."""
    for suffix, factor in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if text.upper().endswith(suffix):
            return int(float(text[: -len(suffix)]) * factor)
    return int(text)


def main() -> int:
    """Generate, measure, print, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=size_of, default=size_of("5GB"), help="bytes of the large file")
    parser.add_argument("--shape", choices=("conversation", "text"), default="conversation")
    parser.add_argument("--folder", type=Path, default=None, help="where to make the temporary folder")
    parser.add_argument("--rows", type=int, default=5000, help="rows of the smallest tokenized part")
    parser.add_argument("--timeout", type=float, default=3600.0, help="seconds for each measurement")
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="tunekit-scale-", dir=asked.folder))
    try:
        return measure(folder, asked)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measure(folder: Path, asked: argparse.Namespace) -> int:
    """All measurements; the exit code."""
    large, small = folder / "large.jsonl", folder / "small.jsonl"
    count = write(large, asked.size, asked.shape)
    write(small, 2_000_000, asked.shape)
    print(f"{large.stat().st_size / 1e9:.2f} GB of {asked.shape} rows, {count:,} rows\n")
    model = folder / "model"
    save_tiny(model, positions=4096)
    verdicts: list[tuple[str, bool]] = []
    print(f"{'part':<10}{'seconds':>10}{'peak MB':>10}{'small MB':>10}{'above MB':>10}")
    for part in ("check", "preview", "train"):
        job = {"part": part, "shape": asked.shape, "model": str(model)}
        found = {
            name: child({**job, "data": str(path), "workdir": str(folder / f"{part}-{name}")}, asked.timeout)
            for name, path in (("small", small), ("large", large))
        }
        bad = found["large"].get("failed") or found["small"].get("failed") or found["large"].get("errors")
        if bad:
            print(f"{part:<10}failed: {bad}")
            verdicts.append((f"{part} works", False))
            continue
        above = found["large"]["peak_mb"] - found["small"]["peak_mb"]
        peak = found["large"]["peak_mb"], found["small"]["peak_mb"]
        print(f"{part:<10}{found['large']['seconds']:>10.2f}{peak[0]:>10.0f}{peak[1]:>10.0f}{above:>10.0f}")
        verdicts.append((f"{part}: below {MEMORY_MB:.0f} MB above the model's", above < MEMORY_MB))
        if part == "check":
            verdicts.append((f"check: below {CHECK_SECONDS:.0f} s", found["large"]["seconds"] < CHECK_SECONDS))
        if part == "train":
            verdicts.append(("train: 50 steps", found["large"]["steps"] == 50))
    print(f"\n{'rows':>10}{'CPU s':>10}{'rows/s':>10}{'tokens/s':>12}{'bytes/token':>13}")
    speeds = []
    for times in (1, 2, 4):
        job = {
            "part": "tokenize",
            "shape": asked.shape,
            "data": str(large),
            "workdir": str(folder / f"tokens-{times}"),
            "rows": asked.rows * times,
        }
        made = child(job, asked.timeout)
        if "failed" in made:
            print(made["failed"])
            verdicts.append(("tokenizing works", False))
            break
        speeds.append(made["rows"] / made["cpu"])
        print(
            f"{made['rows']:>10,}{made['cpu']:>10.2f}{speeds[-1]:>10,.0f}{made['tokens'] / made['cpu']:>12,.0f}"
            f"{made['bytes'] / made['tokens']:>13.2f}"
        )
    if len(speeds) == 3:
        verdicts.append((f"tokenizing is linear: speed at 4x at least {LINEAR} of 1x", speeds[2] >= LINEAR * speeds[0]))
    print()
    for text, good in verdicts:
        print(f"{'pass' if good else 'FAIL'}  {text}")
    return 0 if all(good for _, good in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
