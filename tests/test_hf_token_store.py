"""Token rows on disk: what goes in comes out, work is done once, and nothing damaged is used."""

from __future__ import annotations

import datetime
import os
import pickle
import signal
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

np = pytest.importorskip("numpy")

from tunekit.cancel import CancelToken  # noqa: E402
from tunekit.errors import ArtifactError, DataError, RunCancelled  # noqa: E402
from tunekit.plugins import hf  # noqa: E402
from tunekit.testing import warm  # noqa: E402


def context(folder: Path, *, cache: bool = True, cancel: CancelToken | None = None) -> Any:
    told: list[tuple[Any, ...]] = []
    return SimpleNamespace(
        dir=folder / "step",
        cache=folder / "cache" if cache else None,
        cancel=cancel or CancelToken(),
        progress=lambda *a: told.append(a),
        told=told,
    )


class Numbers:
    """Row ``n`` becomes ``n % 7 + 1`` tokens; every ``bad``-th row cannot be used. Counts its work."""

    def __init__(self, bad: int = 0, base: int = 0) -> None:
        self.bad, self.base = bad, base
        self.rows = 0
        self.calls = 0

    def __call__(self, rows: list[int]) -> list[hf.TokenRow | DataError]:
        self.rows += len(rows)
        self.calls += 1
        return [self.one(n) for n in rows]

    def one(self, n: int) -> hf.TokenRow | DataError:
        if self.bad and n % self.bad == 0:
            return DataError(f"row {n} is bad", code="no-targets", found="nothing", details={"n": n})
        ids = [self.base + n + k for k in range(n % 7 + 1)]
        labels = [i if k % 2 else -100 for k, i in enumerate(ids)]
        return hf.TokenRow(ids, labels, {"cut": n % 3}, {"other_ids": list(range(n % 4)), "label": [n - 5]})


def build(ctx: Any, rows: Any, encode: Any, **more: Any) -> hf.TokenStore:
    more = {"key": "k", "batch": 8, "shard_rows": 32, **more}
    return hf.TokenStore.build(ctx, "train", rows, encode, **more)


def forbidden(*_: Any) -> Any:
    raise AssertionError("this work was done before")


def never() -> Iterator[int]:
    forbidden()
    yield 0


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.mark.parametrize("base", [0, 65_450, 100_000])
def test_what_goes_in_comes_out(tmp_path: Path, base: int) -> None:
    encode = Numbers(base=base)
    store = build(context(tmp_path), range(100), encode)
    expected = [Numbers(base=base).one(n) for n in range(100)]
    assert len(store) == 100 and store.complete and store.encoded == 100
    for n in [99, *range(100), 3, -1]:
        row, want = store[n], expected[n]
        assert isinstance(want, hf.TokenRow)
        assert row["input_ids"].tolist() == want.input_ids and row["labels"].tolist() == want.labels
        assert row["other_ids"].tolist() == want.columns["other_ids"] and row["label"].tolist() == [n % 100 - 5]
    assert store.lengths.tolist() == [len(want.input_ids) for want in expected]  # type: ignore[union-attr]
    # A row's first token is never a target; these rows learn every second one.
    assert store.targets.tolist() == [(n % 7 + 1) // 2 for n in range(100)]
    assert store.facts == {
        "rows": 100,
        "tokens": sum(n % 7 + 1 for n in range(100)),
        "targets": sum((n % 7 + 1) // 2 for n in range(100)),
        "longest": 7,
        "cut": sum(n % 3 for n in range(100)),
        "problems": {},
    }
    stream = [i for want in expected for i in want.input_ids]  # type: ignore[union-attr]
    assert store.tokens(0, 10**9).tolist() == stream and store.tokens(101, 303).tolist() == stream[101:303]
    with pytest.raises(IndexError):
        store[100]
    copy = pickle.loads(pickle.dumps(store))
    assert copy[50]["input_ids"].tolist() == store[50]["input_ids"].tolist() and copy.facts == store.facts


def test_rows_without_labels_learn_all_but_their_first_token(tmp_path: Path) -> None:
    store = build(context(tmp_path), [3, 1, 0], lambda rows: [hf.TokenRow(list(range(n))) for n in rows])
    assert [row["labels"].tolist() for row in store] == [[0, 1, 2], [0], []]
    assert store.targets.tolist() == [2, 0, 0]


def test_two_bytes_a_token_and_one_bit_a_label(tmp_path: Path) -> None:
    store = build(context(tmp_path), range(4), lambda rows: [hf.TokenRow(list(range(10_000))) for _ in rows])
    size = sum(path.stat().st_size for path in store.folder.iterdir())
    assert size < 40_000 * (2 + 1 / 8) + 3_000


def test_a_finished_store_reads_and_tokenizes_nothing(tmp_path: Path) -> None:
    first = build(context(tmp_path), range(100), Numbers())
    ctx = context(tmp_path)
    ctx.dir = tmp_path / "another step"
    again = build(ctx, never(), forbidden)
    assert again.facts == first.facts and again.encoded == 0 and again.complete
    assert build(context(tmp_path), range(100), other := Numbers(), key="other").encoded == other.rows == 100


def test_only_what_a_limit_asks_for_is_tokenized(tmp_path: Path) -> None:
    encode = Numbers(bad=10)
    seen: list[int] = []
    few = build(context(tmp_path), range(10**9), encode, limit=50, on_problem=lambda n, _: seen.append(n))
    assert len(few) == 50 and not few.complete
    # 6 of the first 56 rows are bad: 0, 10, 20, 30, 40, 50.
    assert encode.rows == 56 and few.facts["problems"] == {"no-targets": 6} and seen == [1, 11, 21, 31, 41, 51]
    assert few.number(0) == 2 and few.number(49) == 56
    more = Numbers(bad=10)
    whole = build(context(tmp_path), range(200), more, on_problem=lambda *_: None)
    assert len(whole) == 180 and more.rows == 200 - 56 and whole.complete
    again = build(context(tmp_path), never(), forbidden, limit=50, on_problem=lambda *_: None)
    assert again.facts == few.facts and not again.complete


def test_only_as_many_rows_as_hold_the_tokens_asked_for(tmp_path: Path) -> None:
    encode = Numbers()
    store = build(context(tmp_path), range(10**9), encode, limit_tokens=100)
    assert encode.rows == 32  # whole batches
    assert store.facts["tokens"] == 105 and len(store) == 27 and not store.complete
    assert build(context(tmp_path), never(), forbidden, limit_tokens=100).facts == store.facts


def test_bad_rows_stop_or_are_counted_now_and_later(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 40 is bad"):
        build(context(tmp_path), range(1, 100), Numbers(bad=40))
    seen: list[tuple[int, str, Any]] = []

    def note(number: int, error: DataError) -> None:
        seen.append((number, error.message, error.details["n"]))

    store = build(context(tmp_path), range(1, 100), Numbers(bad=40), on_problem=note)
    assert seen == [(40, "row 40 is bad", 40), (80, "row 80 is bad", 80)] and len(store) == 97
    first, seen = seen, []
    again = build(context(tmp_path), never(), forbidden, on_problem=note)
    assert seen == first and again.facts == store.facts and [n for n, _ in again.problems] == [40, 80]
    with pytest.raises(DataError, match="row 40 is bad") as caught:
        build(context(tmp_path), never(), forbidden)
    assert caught.value.code == "no-targets" and caught.value.found == "nothing"


@pytest.mark.parametrize("harm", ["cut", "flip", "header", "gone", "empty"])
def test_a_damaged_shard_is_made_again_and_no_other(tmp_path: Path, harm: str) -> None:
    store = build(context(tmp_path), range(128), Numbers())
    whole = files(store.folder)
    path = sorted(store.folder.glob("*.tokens"))[1]
    content = bytearray(path.read_bytes())
    if harm == "gone":
        path.unlink()
    else:
        at = {"flip": len(content) - 100, "header": 40}.get(harm, 0)
        content[at] ^= 4
        path.write_bytes({"cut": content[: len(content) // 2], "empty": b""}.get(harm, bytes(content)))
    encode = Numbers()
    again = build(context(tmp_path), range(128), encode)
    assert encode.rows == 32 and files(again.folder) == whole and again.facts == store.facts


_KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_hf_token_store import Numbers, build, context

class Dies(Numbers):
    def __call__(self, rows):
        if self.rows >= 72:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(rows)

build(context(Path({folder!r})), range(200), Dies())
"""


def test_a_killed_build_goes_on_after_its_last_complete_shard(tmp_path: Path) -> None:
    script = textwrap.dedent(_KILLED).format(tests=str(Path(__file__).parent), folder=str(tmp_path / "killed"))
    child = warm.run(["-c", script])
    assert child.returncode == -signal.SIGKILL, child.stderr
    encode = Numbers()
    resumed = build(context(tmp_path / "killed"), range(200), encode)
    assert encode.rows == 200 - 64
    whole = build(context(tmp_path / "whole"), range(200), Numbers())
    assert files(resumed.folder) == files(whole.folder) and resumed.facts == whole.facts


def test_a_template_that_writes_the_date_makes_other_keys_on_other_days(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.utils import chat_template_utils

    from tunekit.testing import tiny_tokenizer

    class Day(datetime.datetime):
        day_now = 1

        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls(2026, 1, cls.day_now, tzinfo=tz)

    monkeypatch.setattr(chat_template_utils, "datetime", Day)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ strftime_now('%Y-%m-%d') }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    first = hf.tokenizer_fingerprint(tokenizer)
    assert hf.tokenizer_fingerprint(tokenizer) == first
    Day.day_now = 2
    assert hf.tokenizer_fingerprint(tokenizer) != first


def test_a_cancelled_build_keeps_its_shards(tmp_path: Path) -> None:
    token = CancelToken()

    def cancels(rows: list[int]) -> Any:
        if rows[0] >= 64:
            token.cancel()
        return Numbers()(rows)

    with pytest.raises(RunCancelled):
        build(context(tmp_path, cancel=token), range(200), cancels)
    encode = Numbers()
    assert len(build(context(tmp_path), range(200), encode)) == 200 and encode.rows == 200 - 64


def test_work_and_bytes_are_linear_in_the_rows(tmp_path: Path) -> None:
    done = {}
    for times in (1, 2, 4):
        encode = Numbers()
        store = build(context(tmp_path / str(times)), range(224 * times), encode)
        size = sum(path.stat().st_size for path in store.folder.glob("*.tokens"))
        done[times] = (encode.rows, encode.calls, size)
    assert [done[times][:2] for times in (1, 2, 4)] == [(224, 28), (448, 56), (896, 112)]
    assert done[4][2] - done[2][2] == pytest.approx(2 * (done[2][2] - done[1][2]), rel=0.01)


def test_two_builds_of_the_same_take_turns(tmp_path: Path) -> None:
    work: list[int] = []

    def slow(rows: list[int]) -> Any:
        work.extend(rows)
        threading.Event().wait(0.02)
        return Numbers()(rows)

    made: list[hf.TokenStore] = []
    threads = [
        threading.Thread(target=lambda: made.append(build(context(tmp_path), range(100), slow))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(work) == list(range(100)) and [len(store) for store in made] == [100, 100]


def test_a_full_disk_is_said_and_what_was_complete_is_kept(tmp_path: Path, make_disk: Callable[[str], Path]) -> None:
    disk = make_disk("256k")
    (disk / "ballast").write_bytes(b"x" * 150_000)

    def encode(rows: list[int]) -> Any:
        return [hf.TokenRow(list(range(1000))) for _ in rows]

    with pytest.raises(ArtifactError) as caught:
        build(context(disk), range(64), encode, shard_rows=16)
    assert caught.value.code == "disk-full" and "free" in caught.value.found
    (folder,) = (disk / "cache" / "tokens").iterdir()
    kept = len(list(folder.glob("*.tokens")))
    assert 0 < kept < 4 and not list(folder.glob(".*.tmp"))
    (disk / "ballast").unlink()
    done: list[int] = []
    store = build(context(disk), range(64), lambda rows: done.extend(rows) or encode(rows), shard_rows=16)  # type: ignore[func-returns-value]
    assert done == list(range(16 * kept, 64)) and store.facts["tokens"] == 64_000


def test_data_that_shrank_are_an_error(tmp_path: Path) -> None:
    build(context(tmp_path), range(100), Numbers(), limit=50)
    with pytest.raises(ArtifactError) as caught:
        build(context(tmp_path), range(20), Numbers())
    assert caught.value.code == "data-changed"


def test_rows_of_the_step_alone_can_be_dropped(tmp_path: Path) -> None:
    own = build(context(tmp_path, cache=False), range(10), Numbers())
    assert own.folder.is_relative_to(tmp_path / "step")
    own.discard()
    assert not list((tmp_path / "step").iterdir())
    shared = build(context(tmp_path), range(10), Numbers())
    shared.discard()
    assert len(build(context(tmp_path), never(), forbidden)) == 10


@pytest.mark.parametrize(
    "row",
    [hf.TokenRow([-1]), hf.TokenRow([2**32]), hf.TokenRow([1, 2], [1]), hf.TokenRow([1, 2], [1, 3])],
    ids=["negative", "large", "short", "foreign"],
)
def test_rows_that_cannot_be_kept_are_refused(tmp_path: Path, row: hf.TokenRow) -> None:
    with pytest.raises(ValueError, match="token"):
        build(context(tmp_path), [0], lambda _: [row])


def test_memory_of_pages_that_were_read_is_given_back(tmp_path: Path) -> None:
    """A memory map counts as memory of the process until it is released; 96 MB of rows must not stay."""
    ids = np.arange(1 << 20) % 60_000
    store = build(context(tmp_path), range(48), lambda rows: [hf.TokenRow(ids) for _ in rows], batch=4, shard_rows=8)

    def mapped() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssFile")) * 1024

    if not os.path.exists("/proc/self/status"):  # noqa: PTH110
        pytest.skip("no /proc here")
    before, most = mapped(), 0
    for index in range(48):
        assert int(store[index]["input_ids"][-1]) == ids[-1]
        most = max(most, mapped() - before)
    assert most < 80_000_000


def test_the_fingerprint_of_a_tokenizer() -> None:
    pytest.importorskip("transformers")
    from tunekit.testing import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    print_of = hf.tokenizer_fingerprint
    base = print_of(tokenizer)
    assert base == print_of(tiny_tokenizer())
    tokenizer(["some longer text"], truncation=True, max_length=2, padding="max_length")
    assert print_of(tokenizer) == base, "what a call asked for is no part of the tokenizer"
    template = tokenizer.chat_template
    tokenizer.chat_template = "{{ messages }}"
    changed = print_of(tokenizer)
    assert changed != base
    tokenizer.chat_template = template
    assert print_of(tokenizer) == base
    tokenizer.add_tokens(["<new>"])
    assert print_of(tokenizer) not in (base, changed)
    settings = {"max_length": 8}
    assert hf.token_key("d", tokenizer, settings) != hf.token_key("d", tokenizer, {"max_length": 9})
    assert hf.token_key("d", tokenizer, settings) != hf.token_key("e", tokenizer, settings)
