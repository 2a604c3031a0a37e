"""From feedback to a better model and back: record, train, ask the new model, record again.

    python examples/feedback_loop.py [model]

Users are played by a rule: they like short answers. The model is a folder, a hub id or a short name.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tunekit import Pipeline
from tunekit.feedback import FeedbackStore, hash_user, redact_pii

MODEL = sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m-instruct"
SECRET = b"a secret of the application"
PROMPTS = [
    f"Tell me about {thing}." for thing in ("a dog", "the sun", "a boat", "snow", "a tree", "bread", "rain", "a bird")
]


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="feedback-"))
    store = FeedbackStore(folder / "feedback.db", redact=redact_pii)
    for number, prompt in enumerate(PROMPTS):
        user = hash_user(f"user {number % 3}", SECRET)
        short, long = f"{prompt[14:-1].capitalize()}.", f"{prompt[14:-1].capitalize()}. " + "And so on. " * 8
        store.record(prompt, short, chosen_over=long, user_hash=user, model_hash="first")
    print(store.statistics())
    train, held_out, report = store.split(0.25, seed=2)
    print(report.text())
    print("method:", store.best_method())

    pipeline = (
        Pipeline(model=MODEL)
        .align(data=train, validation=held_out, max_steps=8, batch_size=2, learning_rate=5e-4, max_length=128)
        .lora(r=8)
    )
    result = pipeline.run(workdir=folder / "run")
    for line in result.step("align").history[-3:]:
        print({name: line[name] for name in ("step", "loss", "eval_loss") if name in line})

    # The next round: the new model answers, users judge, and the store grows.
    assert result.model is not None
    answer = result.model.generate(PROMPTS[0], max_new_tokens=24)
    store.record(PROMPTS[0], answer or "...", thumbs=len(answer) < 60, user_hash=hash_user("user 0", SECRET))
    print(f"{len(store)} judgements in {store.name}, for the next run")


if __name__ == "__main__":
    main()
