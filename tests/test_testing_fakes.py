"""Tiny models, toy rows, isolated sessions, fake distributions."""

from __future__ import annotations

import csv
import hashlib
from base64 import urlsafe_b64encode
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

import pytest

from tunekit.data import SCHEMAS, load_dataset
from tunekit.testing import (
    fake_dist,
    isolated_session,
    run_with,
    save_tiny,
    tiny_model,
    tiny_pair,
    tiny_tokenizer,
    toy_rows,
)
from tunekit.testing.fakes import SPECIALS

# ---------------------------------------------------------------- rows


@pytest.mark.parametrize("shape", SCHEMAS)
def test_toy_rows_are_canonical_rows_of_their_shape(shape: str) -> None:
    rows = toy_rows(shape, 16)
    data = load_dataset(rows, accepts=(shape,))
    assert data.schema == shape
    read = list(data.rows())
    besides = {"columns"} if shape == "prompt" else set()
    assert len(read) == 16 and [set(row) for row in read] == [{*SCHEMAS[shape], *besides}] * 16
    assert len({len(str(row)) for row in rows}) >= 8, "rows are of unequal lengths"
    assert len({str(row) for row in rows}) == 16, "no row stands twice"


@pytest.mark.parametrize("shape", SCHEMAS)
def test_toy_rows_are_decided_by_their_arguments(shape: str) -> None:
    assert toy_rows(shape, 40, seed=3) == toy_rows(shape, 40, seed=3)
    assert toy_rows(shape, 16, seed=3) != toy_rows(shape, 16, seed=4)
    assert toy_rows(shape, 40)[:16] == toy_rows(shape, 16)


def test_toy_rows_of_another_shape() -> None:
    with pytest.raises(ValueError, match="'pairs' is no row shape; known: text, prompt_completion"):
        toy_rows("pairs")


def test_feedback_has_both_labels_and_the_label_is_right() -> None:
    rows = toy_rows("feedback", 20)
    assert [row["label"] for row in rows] == [True, False] * 10
    assert all(row["label"] != row["completion"].startswith("no") for row in rows)


# ---------------------------------------------------------------- models


def weights(model: Any) -> str:
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(name.encode() + tensor.numpy().tobytes())
    return total.hexdigest()


def test_a_tiny_model_is_decided_by_its_arguments_and_draws_no_numbers() -> None:
    torch = pytest.importorskip("torch")
    state = torch.random.get_rng_state()
    first = weights(tiny_model(seed=1))
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(100)
    assert weights(tiny_model(seed=1)) == first
    assert weights(tiny_model(seed=2)) != first


def test_a_tiny_model_is_as_asked() -> None:
    torch = pytest.importorskip("torch")
    model = tiny_model()
    assert not model.training and {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert (
        sum(p.numel() for p in model.parameters()) == 288 * 32 + 2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64 + 64) + 32
    )
    loose = tiny_model(tied=False, hidden=64, layers=3, vocabulary=300, positions=64)
    assert loose.get_input_embeddings().weight is not loose.get_output_embeddings().weight
    assert loose.config.num_hidden_layers == 3 and loose.get_input_embeddings().weight.shape == (300, 64)


def test_the_tokenizer_has_one_token_per_byte() -> None:
    tokenizer = tiny_tokenizer()
    text = "Grüße, 42 €\n\t<b>"
    ids = tokenizer.encode(text)
    assert len(ids) == len(text.encode()) and min(ids) >= len(SPECIALS) and tokenizer.decode(ids) == text
    assert tokenizer.convert_tokens_to_ids(list(SPECIALS)) == [0, 1, 2, 3, 4]
    assert len(tokenizer) == 261
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (0, 2, None)


def test_variants_of_the_tokenizer() -> None:
    assert tiny_tokenizer(bos=True).encode("a")[0] == SPECIALS.index("<bos>")
    same = tiny_tokenizer(pad_is_eos=True)
    assert same.pad_token_id == same.eos_token_id == 2
    assert tiny_tokenizer(None).chat_template is None
    messages = [{"role": "user", "content": "hi"}]
    shown = tiny_tokenizer().apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert shown == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_a_saved_tiny_model_is_the_one_in_memory(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = save_tiny(tmp_path / "tiny", seed=5, bos=True)
    model, tokenizer = tiny_pair(seed=5, bos=True)
    assert weights(transformers.AutoModelForCausalLM.from_pretrained(folder)) == weights(model)
    again = transformers.AutoTokenizer.from_pretrained(folder)
    assert again.encode("Grüße") == tokenizer.encode("Grüße")
    assert again.chat_template == tokenizer.chat_template


# ---------------------------------------------------------------- sessions


def test_an_isolated_session_ignores_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEKIT_DISABLE_PLUGINS", "tunekit-trl,tunekit-peft")
    monkeypatch.setenv("TUNEKIT_ALLOW_PLUGINS", "tunekit-evals")
    states = {record.provider: record.state for record in isolated_session().plugins()}
    assert {states[name] for name in ("tunekit-trl", "tunekit-peft", "tunekit-evals")} == {"loaded"}


def test_an_isolated_session_takes_what_it_is_given() -> None:
    import toy_plugin

    alone = isolated_session(toy_plugin, autoload=False)
    assert {entry.component.provider for entry in alone.components()} == {"tunekit", "inline"}
    less = {record.provider: record.state for record in isolated_session(disable=["tunekit-trl"]).plugins()}
    assert less["tunekit-trl"] == "disabled" and less["tunekit-peft"] == "loaded"


def test_an_isolated_session_has_an_allow_list() -> None:
    states = {record.provider: record.state for record in isolated_session(allow=["Tunekit_PEFT"]).plugins()}
    assert states["tunekit-trl"] == "disabled"
    assert states["tunekit-peft"] == states["tunekit"] == "loaded"


# ---------------------------------------------------------------- distributions


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    fake_dist(folder, "acme-good", "1.2")
    fake_dist(folder, "acme-broken", "1.3", kind="broken-import")
    fake_dist(folder, "acme-future", "9.0", kind="future-api")
    fake_dist(folder, "acme-clash", "1.4", kind="name-clash")
    return folder


def test_a_session_treats_each_kind_as_it_should(site: Path) -> None:
    states, loaded, clash = run_with(
        site,
        """
        import json
        from tunekit import Session
        from tunekit.errors import AmbiguousNameError
        session = Session()
        states = {r.provider: [r.version, r.state, r.reason] for r in session.plugins() if "acme" in r.provider}
        loaded = session.registry.find("trainer", "toy", "align").component.label
        try:
            session.registry.find("trainer", "dpo", "align")
        except AmbiguousNameError as error:
            clash = error.details["spellings"]
        print(json.dumps([states, loaded, clash]))
        """,
    )
    assert states["acme-good"] == ["1.2", "loaded", ""]
    assert states["acme-broken"][1:] == ["broken", "RuntimeError: the import of acme-broken fails"]
    assert states["acme-future"][1] == "incompatible" and "plugin API 99" in states["acme-future"][2]
    assert states["acme-clash"][1] == "loaded"
    assert loaded == "acme-good/toy 1.2"
    assert clash == ["acme-clash/dpo", "tunekit-trl/dpo"]


def test_the_files_are_those_of_the_record(site: Path) -> None:
    info = fake_dist(site, "acme-more", "2.0", files={"data/rows.txt": "a\n"}, requires=("packaging>=24",))
    assert info == site / "acme_more-2.0.dist-info"
    with (info / "RECORD").open() as stream:
        rows = {path: (digest, size) for path, digest, size in csv.reader(stream)}
    there = [path for folder in (info, site / "acme_more") for path in folder.rglob("*") if path.is_file()]
    assert {path.relative_to(site).as_posix() for path in there} == set(rows)
    for path, (digest, size) in rows.items():
        if not path.endswith("/RECORD"):
            content = (site / path).read_bytes()
            expected = urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            assert (digest, int(size)) == (f"sha256={expected}", len(content))
    dist = Distribution.at(info)
    assert (dist.name, dist.version, dist.requires) == ("acme-more", "2.0", ["packaging>=24"])
    assert [(p.group, p.name, p.value) for p in dist.entry_points] == [("tunekit", "acme-more", "acme_more.plugin")]


def test_an_unknown_kind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'fine' is no kind of distribution; known: good, broken-import"):
        fake_dist(tmp_path, "acme", kind="fine")  # type: ignore[arg-type]


def test_an_interpreter_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        run_with(tmp_path, "1 / 0")


def test_the_environment_of_the_interpreter(tmp_path: Path) -> None:
    assert run_with(tmp_path, "import os; print(os.environ['ACME_MODE'])", ACME_MODE="4") == 4
