"""The feedback store: many writers, kills, forks, damage; the same over SQLite and PostgreSQL."""

from __future__ import annotations

import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from postgres_server import postgres

from tunekit.errors import ArtifactError, DataError, OptionsError
from tunekit.feedback import FeedbackStore, hash_user, redact_pii

WRITERS, EACH = 8, 2500

WRITER = """
import sys
from tunekit.feedback import FeedbackStore

store, writer, each = FeedbackStore(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
step, at = 1, 0
while at < each:
    part = range(at, min(at + step, each))
    if step == 1:
        store.record(f"question {at}", f"answer {writer}", thumbs=at % 2 == 0, id=f"{writer}-{at}")
    else:
        store.record_many(
            {"prompt": f"question {n}", "completion": f"answer {writer}", "thumbs": n % 2 == 0, "id": f"{writer}-{n}"}
            for n in part
        )
    at = part[-1] + 1
    print(at, flush=True)
    step = 1 if at < 100 else 20
"""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where an empty store can be made."""
    if request.param == "sqlite":
        return str(tmp_path / "feedback.db")
    url: str = request.getfixturevalue("server")
    import psycopg

    with psycopg.connect(url) as connection:
        connection.execute("DROP TABLE IF EXISTS tunekit_feedback, tunekit_feedback_settings")
    return url


def written(place: str, writer: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, place, str(writer), str(EACH)], stdout=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_eight_writers_of_which_two_are_killed(place: str) -> None:
    """20,000 records: what was acknowledged is there, whole, and a second try of a killed writer doubles nothing."""
    running = [written(place, writer) for writer in range(WRITERS)]
    acknowledged = [0] * WRITERS

    def follow(writer: int) -> None:
        for line in running[writer].stdout or ():
            acknowledged[writer] = int(line)
            if writer < 2 and acknowledged[writer] >= 60 + 400 * writer:
                running[writer].send_signal(signal.SIGKILL)

    threads = [threading.Thread(target=follow, args=(writer,)) for writer in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
    codes = [process.wait(240) for process in running]
    assert codes == [-signal.SIGKILL] * 2 + [0] * 6

    store = FeedbackStore(place)
    assert store.verify() == len(store)
    found = {record.id: record for record in store.records()}
    for writer, count in enumerate(acknowledged):
        assert count >= 60 and all(f"{writer}-{n}" in found for n in range(count))
    assert acknowledged[2:] == [EACH] * 6 and max(acknowledged[:2]) < EACH
    for writer in range(2):
        assert written(place, writer).wait(240) == 0
    assert store.verify() == WRITERS * EACH
    record = {record.id: record for record in store.records()}["1-2499"]
    assert (record.prompt, record.completion, record.thumbs) == ("question 2499", "answer 1", False)
    store.close()


def test_a_record_comes_back_as_it_was_written(place: str) -> None:
    with FeedbackStore(place) as store:
        tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
        id = store.record(
            [{"role": "user", "content": "1+1?\u00e9\u4e2d"}],
            "2",
            rating=7,
            scale=(0, 10),
            edit="two",
            chosen_over=["3", [{"role": "assistant", "content": "4"}]],
            tools=tools,
            user_hash="u",
            model_hash="m",
            source="chat",
            meta={"page": [1, None]},
            time="2026-05-01T12:00:00+00:00",
        )
        (record,) = store.records()
        (copy,) = pickle.loads(pickle.dumps(store)).records()
    assert record == copy and record.id == id
    assert record.edit == [{"role": "assistant", "content": "two"}] and record.tools == tools
    assert [other[0]["content"] for other in record.chosen_over if isinstance(other, list)] == ["3", "4"]
    assert (record.rating, record.scale, record.fraction()) == (7.0, (0.0, 10.0), 0.7)
    assert (record.time, record.meta, record.source) == (1777636800.0, {"page": [1, None]}, "chat")


def test_a_record_that_is_sent_again_is_written_once(place: str) -> None:
    with FeedbackStore(place) as store:
        for _ in range(2):
            assert store.record("q", "a", thumbs=True, id="one", time=5.0) == "one"
        with pytest.raises(DataError, match="another record with the id 'one'"):
            store.record("q", "a", thumbs=False, id="one", time=5.0)
        for name in ("user_hash", "model_hash", "source"):
            with pytest.raises(DataError) as caught:
                store.record("q", "a", thumbs=True, id="one", **{name: "other"})  # type: ignore[arg-type]
            assert caught.value.details == {"id": "one", "fields": [name]}
        assert store.record("q", "a", thumbs=True, id="one", time=6.0) == "one"
        with pytest.raises(DataError, match=r"Record 2: .*says nothing"):
            store.record_many([{"prompt": "q", "completion": "b", "thumbs": True}, {"prompt": "q", "completion": "c"}])
        assert len(store) == 1, "all or none"


def test_a_store_keeps_its_scale(place: str) -> None:
    with FeedbackStore(place, scale=(0, 10)) as store:
        store.record("q", "a", rating=5)
    with FeedbackStore(place) as store:
        store.record("q", "b", rating=5)
        store.record("q", "c", rating=5, scale=(1, 5))
        with pickle.loads(pickle.dumps(store)) as again:
            assert [record.fraction() for record in again.records()] == [0.5, 0.5, 1.0]
            again.record("q", "d", rating=10)
        with pytest.raises(OptionsError, match="on a scale from 0 to 10") as caught:
            FeedbackStore(place, scale=(1, 5))
        assert caught.value.asked == "scale=(1, 5)" and caught.value.code == "scale"
        store.forget(ids=[record.id for record in store.records() if record.scale == (0.0, 10.0)])
    FeedbackStore(place, scale=(1, 5)).close()
    with FeedbackStore(place) as store, pytest.raises(DataError, match="outside the scale from 1 to 5"):
        store.record("q", "e", rating=6)


def test_a_store_of_the_usual_scale_refuses_another_once_it_has_ratings(place: str) -> None:
    with FeedbackStore(place) as store:
        store.record("q", "a", thumbs=True, meta={"note": '"scale":[1.0,5.0]'})
        FeedbackStore(place, scale=(0, 1)).close()
        FeedbackStore(place, scale=(1, 5)).close()
        store.record("q", "a", rating=4)
        with pytest.raises(OptionsError, match="on a scale from 1 to 5"):
            FeedbackStore(place, scale=(0, 1))
        FeedbackStore(place, scale=(1.0, 5.0)).close()


@pytest.mark.skipif(os.name == "nt", reason="an open file cannot be removed there")
def test_nothing_is_acknowledged_once_the_file_is_gone_or_another_one(tmp_path: Path) -> None:
    path = tmp_path / "f.db"
    store = FeedbackStore(path)
    store.record("q", "a", thumbs=True)
    path.rename(tmp_path / "away.db")
    for call in (lambda: store.record("q", "b", thumbs=True), lambda: len(store), lambda: list(store.records())):
        with pytest.raises(ArtifactError, match="removed") as caught:
            call()
        assert caught.value.code == "store-moved"
    (tmp_path / "away.db").rename(path)
    store.record("q", "c", thumbs=True)
    assert store.verify() == 2
    path.unlink()
    with FeedbackStore(path) as other:
        with pytest.raises(ArtifactError, match="replaced by another one"):
            store.record("q", "d", thumbs=True)
        assert len(other) == 0
    store.close()
    store.record("q", "e", thumbs=True)
    with FeedbackStore(path) as other:
        assert [record.completion for record in other.records()] == ["e"] and other.verify() == 1
    store.close()
    strict = FeedbackStore(path, create=False)
    strict.close()
    path.unlink()
    with pytest.raises(ArtifactError, match="no feedback store"):
        strict.record("q", "f", thumbs=True)
    assert not path.exists()


def test_a_reader_sees_one_moment_and_holds_up_no_writer(place: str) -> None:
    with FeedbackStore(place) as store:
        store.record_many({"prompt": f"q{n}", "completion": "a", "thumbs": True, "time": n} for n in range(2500))
        seen = 0
        for record in store.records():
            seen += 1
            if seen % 500 == 0:
                store.record(record.prompt, "b", thumbs=False, time=5000)
        assert seen == 2500 and len(store) == 2505


def test_a_forked_process_writes_through_a_connection_of_its_own(place: str) -> None:
    store = FeedbackStore(place)
    store.record("q", "parent", thumbs=True)
    child = os.fork()
    if child == 0:
        try:
            store.record("q", "child", thumbs=True)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    store.record("q", "parent again", thumbs=True)
    assert store.verify() == 3
    store.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_nothing_that_a_forked_process_was_told_is_written_gets_lost(place: str) -> None:
    """The parent leaves the store while its child writes, which takes the log away; and a reader is under way."""
    store = FeedbackStore(place)
    store.record_many({"prompt": f"q{n}", "completion": "a", "thumbs": True, "time": n} for n in range(1500))
    reader = store.records()
    assert next(reader).prompt == "q0"
    (told, tell), (left, leave) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            store.record("child first", "a", thumbs=True)
            os.write(tell, b"x")
            os.read(left, 1)
            for number in range(20):
                store.record(f"child {number}", "a", thumbs=True)
            assert sum(1 for _ in reader) == 1499
            os._exit(0)
        finally:
            os._exit(1)
    os.read(told, 1)
    assert len(store) == 1501
    store.close()
    with FeedbackStore(place) as other:
        assert len(other) == 1501
    os.write(leave, b"x")
    assert os.waitpid(child, 0)[1] == 0
    assert sum(1 for _ in reader) == 1499
    assert store.verify() == 1521
    store.close()
    for end in (told, tell, left, leave):
        os.close(end)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_process_that_is_forked_while_a_thread_writes_can_write(tmp_path: Path) -> None:
    store = FeedbackStore(tmp_path / "f.db", timeout=2, durability="normal")
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            store.record("thread", "a", thumbs=True)

    thread = threading.Thread(target=write)
    thread.start()
    codes = []
    for _ in range(12):
        child = os.fork()
        if child == 0:
            try:
                store.record("child", "a", thumbs=True)
                os._exit(0)
            finally:
                os._exit(1)
        codes.append(os.waitpid(child, 0)[1])
    done.set()
    thread.join()
    assert codes == [0] * 12
    assert sum(record.prompt == "child" for record in store.records()) == 12
    store.verify()
    store.close()


def test_a_fork_past_python_is_refused(tmp_path: Path) -> None:
    """A server in C may fork without telling Python; then the connection cannot be closed in time."""
    script = """
import ctypes, os, sys
from tunekit.errors import ArtifactError
from tunekit.feedback import FeedbackStore
store = FeedbackStore(sys.argv[1])
child = ctypes.PyDLL(None).fork()
if child == 0:
    try:
        store.record("q", "a", thumbs=True)
    except ArtifactError as error:
        os._exit(7 if error.code == "forked-store" else 1)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
store.record("q", "a", thumbs=True)
assert store.verify() == 1
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "f.db")], check=True, timeout=60)


def test_a_user_is_forgotten(place: str) -> None:
    with FeedbackStore(place) as store:
        store.record("q", "a unicorn for them", thumbs=True, user_hash="gone", time=1)
        store.record("q", "a", thumbs=True, user_hash="stays", time=2)
        store.record("q", "b", thumbs=True, time=3)
        assert store.forget(user_hash="gone") == 1
        assert store.forget(before=3, user_hash="stays") == 1
        assert [record.completion for record in store.records()] == ["b"]
        with pytest.raises(OptionsError):
            store.forget()
        store.record("q", "c", thumbs=True, id="c")
        with pytest.raises(OptionsError, match="pass a list"):
            store.forget(ids="abc")
        assert store.forget(ids=["c"]) == 1
        with pytest.raises(OptionsError, match="every unknown user"):
            store.forget(user_hash="")
    if "://" not in place:
        assert b"unicorn" not in Path(place).read_bytes()


def test_a_changed_record_is_found(place: str) -> None:
    with FeedbackStore(place) as store:
        store.record("q", "a", thumbs=True, id="good")
        store.record("q", "b", thumbs=True, id="torn")
        change = "SET body = replace(body, '\"b\"', '\"c\"') WHERE id = 'torn'"
        if "://" in place:
            import psycopg

            with psycopg.connect(place) as connection:
                connection.execute(f"UPDATE tunekit_feedback {change}")
        else:
            with sqlite3.connect(place) as other:
                other.execute(f"UPDATE records {change}")
        with pytest.raises(DataError, match="damaged") as caught:
            store.verify()
        assert caught.value.details["ids"] == ["torn"]
        assert store.forget(ids=["torn"]) == 1 and store.verify() == 1


def test_files_that_are_no_store_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("nothing of the kind, " * 100)
    with pytest.raises(ArtifactError) as caught:
        FeedbackStore(tmp_path / "text.db")
    assert caught.value.code == "not-a-store"
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE customers (name TEXT)")
    with pytest.raises(ArtifactError, match="another program"):
        FeedbackStore(tmp_path / "other.db")
    with pytest.raises(ArtifactError, match="no feedback store"):
        FeedbackStore(tmp_path / "none.db", create=False)
    for wrong in (":memory:", "mysql://host/name"):
        with pytest.raises(OptionsError):
            FeedbackStore(wrong)


def test_a_password_in_the_url_of_data_is_refused_and_not_shown() -> None:
    from tunekit.feedback import opened

    for url in ("postgresql://u:secretpw@127.0.0.1:1/x", "postgresql+psycopg://127.0.0.1:1/x?password=secretpw"):
        with pytest.raises(OptionsError, match="PGPASSWORD") as caught:
            opened(url)
        assert "secretpw" not in str(caught.value) + repr(caught.value.__dict__)
    pytest.importorskip("psycopg")
    for url in ("postgresql://u:secretpw@127.0.0.1:1/x", "postgresql://127.0.0.1:1/x?user=u&password=secretpw"):
        with pytest.raises(ArtifactError, match="Failed opening") as failed:
            FeedbackStore(url)
        assert "secretpw" not in str(failed.value) and "127.0.0.1:1/x" in str(failed.value)


def test_a_store_that_others_hold_is_busy_only_after_the_time_out(tmp_path: Path) -> None:
    store = FeedbackStore(tmp_path / "f.db", timeout=0.2)
    holder = sqlite3.connect(tmp_path / "f.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(ArtifactError) as caught:
        store.record("q", "a", thumbs=True)
    assert caught.value.code == "feedback-busy"
    holder.execute("COMMIT")
    store.record("q", "a", thumbs=True)
    assert len(store) == 1
    holder.close()
    store.close()


@pytest.mark.parametrize(
    ("judgement", "field"),
    [
        ({}, ""),
        ({"thumbs": 0}, "thumbs"),
        ({"thumbs": "maybe"}, "thumbs"),
        ({"rating": 6}, "rating"),
        ({"rating": float("nan")}, "rating"),
        ({"rating": 3, "scale": (5, 1)}, "scale"),
        ({"edit": " a "}, "edit"),
        ({"chosen_over": ["b", "a"]}, "chosen_over[1]"),
        ({"thumbs": True, "user_hash": "ann@example.org"}, "user_hash"),
        ({"thumbs": True, "meta": {"x": object()}}, "meta"),
        ({"thumbs": True, "time": "yesterday"}, "time"),
        ({"thumbs": True, "completion": " "}, "completion"),
    ],
)
def test_wrong_judgements_name_their_field(tmp_path: Path, judgement: dict[str, object], field: str) -> None:
    with FeedbackStore(tmp_path / "f.db") as store:
        with pytest.raises(DataError) as caught:
            store.record_many([{"prompt": "q", "completion": "a", **judgement}])
        assert caught.value.details["field"] == field
        assert len(store) == 0


@pytest.mark.parametrize(
    ("judgement", "match"),
    [
        ({"rating": 10**400}, "rating.*not a finite number"),
        ({"rating": 10**5000}, "rating.*thousands of digits"),
        ({"thumbs": 10**5000}, "thumbs.*thousands of digits"),
        ({"rating": 3, "scale": (0, 10**400)}, "scale"),
        ({"thumb": True}, "no field 'thumb'"),
    ],
)
def test_odd_judgements_are_refused_in_words(tmp_path: Path, judgement: dict[str, object], match: str) -> None:
    with FeedbackStore(tmp_path / "f.db") as store, pytest.raises(DataError, match=f"Record 1: .*{match}"):
        store.record_many([{"prompt": "q", "completion": "a", **judgement}])


def test_a_misspelt_field_gets_the_nearest_one(tmp_path: Path) -> None:
    with FeedbackStore(tmp_path / "f.db") as store:
        with pytest.raises(DataError) as caught:
            store.record_many([{"prompt": "q", "completion": "a", "thumb": True}])
        assert caught.value.suggestions[0] == "thumbs" and caught.value.details == {"field": "thumb", "row": 1}
        with pytest.raises(DataError, match="field 'completion' is missing"):
            store.record_many([{"prompt": "q", "thumbs": True}])
        with pytest.raises(DataError, match=r"Record 1: .* is text, not the arguments"):
            store.record_many(["q"])  # type: ignore[list-item]


def test_scalars_of_tables_are_recorded(tmp_path: Path) -> None:
    np = pytest.importorskip("numpy")
    with FeedbackStore(tmp_path / "f.db", scale=(np.int64(0), np.int64(10))) as store:
        store.record("q", "a", rating=np.int64(4), thumbs=np.True_, time=np.float64(5))
        store.record(
            "q", "b", rating=np.float32(0.5), thumbs=np.int64(-1), scale=(np.float32(0), np.float32(1)), time=6
        )
        first, second = store.records()
    assert (first.rating, first.thumbs, first.time, first.scale) == (4.0, True, 5.0, (0.0, 10.0))
    assert (second.rating, second.thumbs, second.scale) == (0.5, False, (0.0, 1.0))


@pytest.mark.parametrize(
    ("where", "arguments", "match"),
    [
        (3, {}, "where is 3"),
        ("f.db", {"scale": 5}, "scale is 5"),
        ("f.db", {"scale": (5, 1)}, "scale is"),
        ("f.db", {"timeout": "5"}, "timeout is '5'"),
        ("f.db", {"redact": "pii"}, "redact is 'pii'"),
    ],
)
def test_wrong_arguments_of_a_store_are_named_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: object, arguments: dict[str, object], match: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionsError, match=match):
        FeedbackStore(where, **arguments)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_folder_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is a folder") as caught:
        FeedbackStore(tmp_path)
    assert str(tmp_path / "feedback.db") in (caught.value.fix or "")


def test_what_is_redacted_never_reaches_the_file(tmp_path: Path) -> None:
    with FeedbackStore(tmp_path / "f.db", redact=redact_pii) as store:
        store.record(
            "mail ann@example.org",
            "or call +49 30 1234567",
            edit=[{"role": "assistant", "content": "ip 192.168.7.9"}],
            meta={"card": "4111 1111 1111 1111"},
        )
        (record,) = store.records()
    assert record.prompt == [{"role": "user", "content": "mail <EMAIL>"}] and record.meta == {"card": "<CARD>"}
    with FeedbackStore(tmp_path / "copy.db", redact=redact_pii) as copy:
        with FeedbackStore(tmp_path / "raw.db") as raw:
            raw.record(
                "mail ann@example.org", "a", thumbs=True, id="x", time=1, user_hash="u", meta={"ip": "192.168.7.9"}
            )
            assert copy.add(raw.records()) == 1
        (copied,) = copy.records()
    assert (copied.prompt, copied.meta, copied.id) == ("mail <EMAIL>", {"ip": "<IP>"}, "x")
    (tmp_path / "raw.db").unlink()
    held = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    for secret in (b"ann@", b"1234567", b"192.168", b"4111 1111"):
        assert secret not in held


def test_pseudonyms() -> None:
    import hashlib
    import hmac

    secret = b"0123456789abcdef"
    assert hash_user("ann", secret) == hmac.new(secret, b"ann", hashlib.sha256).hexdigest()[:32]
    with pytest.raises(OptionsError, match="15 bytes"):
        hash_user("ann", secret[:15])
    assert hash_user(42, secret) == hash_user("42", secret)
    for user in (None, True, "", 4.2, b"ann"):
        with pytest.raises(OptionsError, match="it is a name or a number"):
            hash_user(user, secret)  # type: ignore[arg-type]
    with pytest.raises(OptionsError, match="text or bytes"):
        hash_user("ann", None)  # type: ignore[arg-type]
