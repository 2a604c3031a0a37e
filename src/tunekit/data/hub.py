"""Data sets on the hub: how they are spelt, and how they are read through the package ``datasets``."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunekit.data.objects import MemorySource, object_source
from tunekit.data.readers import SUFFIXES
from tunekit.errors import DataError, MissingDependencyError, nearest

__all__ = ["HubRef", "hub_ref", "hub_source", "looks_like_hub_id", "saved_source"]

_HUB_ID = re.compile(
    r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::(?P<config>[\w.-]+))?(?:@(?P<split>[\w.+-]+(\[[\d%:]*\])?))?"
)
_KEYS = ("hub", "config", "split", "revision", "streaming")


@dataclass(frozen=True, kw_only=True)
class HubRef:
    """A data set on the hub: ``owner/name``, ``owner/name:config``, ``owner/name:config@validation``."""

    name: str
    config: str | None = None
    split: str = "train"
    """A split, or a part of one as ``datasets`` spells it: ``train[:1000]``, ``train[10%:20%]``."""
    revision: str | None = None
    streaming: bool = False
    """Read rows over the network as they are needed, in place of downloading the data set."""

    def __str__(self) -> str:
        text = self.name + (f":{self.config}" if self.config else "")
        return text if self.split == "train" else f"{text}@{self.split}"


def looks_like_hub_id(ref: str) -> bool:
    """Whether ``ref`` is spelt ``owner/name[:config][@split]`` and names neither an existing path nor a data file."""
    if not _HUB_ID.fullmatch(ref) or Path(ref).exists() or Path(ref).parts[0] in (".", ".."):
        return False
    suffixes = [suffix.lower() for suffix in Path(ref).suffixes]
    if suffixes and (suffixes[-1] in SUFFIXES or suffixes[-1] == ".gz"):
        return False
    return not Path(Path(ref).parts[0]).is_dir()


def hub_ref(ref: str | Mapping[str, Any], *, streaming: bool = False) -> HubRef:
    """``owner/name:config@split``, or ``{"hub": "owner/name", "split": ..., "streaming": true}``, taken apart.

    Raises:
        DataError: if it is none.
    """
    facts: dict[str, Any] = {}
    if isinstance(ref, Mapping):
        facts = dict(ref)
        unknown = [key for key in facts if key not in _KEYS]
        if unknown:
            raise DataError(
                f"A hub data set has no {unknown[0]!r}.",
                code="hub",
                asked=repr(dict(ref))[:200],
                suggestions=nearest(str(unknown[0]), _KEYS),
                fix=f"use {', '.join(_KEYS)}",
            )
        ref = facts.pop("hub")
    parts = _HUB_ID.fullmatch(ref) if isinstance(ref, str) else None
    given = {key: value for key, value in facts.items() if value is not None}
    texts = all(isinstance(given[key], str) for key in ("config", "split", "revision") if key in given)
    if parts is None or not texts or not isinstance(given.get("streaming", False), bool):
        raise DataError(
            f"{ref!r:.100} is no data set of the hub.",
            code="hub",
            asked=repr(ref)[:200],
            fix="write owner/name, owner/name:config or owner/name:config@split",
        )
    spelt = {key: value for key, value in parts.groupdict().items() if value is not None}
    return HubRef(**{"streaming": streaming, **spelt, **given})


def _datasets(asked: str) -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        raise MissingDependencyError(
            f"There is no file {asked}, and reading it from the hub needs the package datasets.",
            asked=asked,
            fix="pip install datasets",
        ) from error


def hub_source(ref: HubRef) -> MemorySource:
    """Open a data set of the hub, or the copy of it in the cache of ``datasets``.

    Raises:
        DataError: if it cannot be had: no connection, no such data set, configuration or split, or no access.
        MissingDependencyError: if ``datasets`` is not installed.
    """
    datasets = _datasets(str(ref))
    try:
        data = datasets.load_dataset(
            ref.name, ref.config, split=ref.split, revision=ref.revision, streaming=ref.streaming
        )
    except Exception as error:
        # The hub client raises many kinds; each means that the data are not there.
        raise _hub_error(ref, error) from error
    return object_source(data, str(ref))


def _hub_error(ref: HubRef, error: Exception) -> DataError:
    text = str(error).strip()
    kinds = [kind.__name__ for kind in type(error).__mro__]
    said = f"{type(error).__name__}: {' '.join(text.split())[:400]}"
    fix = "give the path of a local file, or load the data set yourself and pass the object"
    reason = f"the data set {ref.name} could not be read from the hub"
    lowered = text.lower()
    if "gated" in lowered or "GatedRepoError" in kinds or "401" in text or "403" in text:
        reason = f"the data set {ref.name} is on the hub, but not open to you"
        fix = "ask for access on its page, and log in (huggingface-cli login)"
    elif (
        "offline" in lowered
        or "OfflineModeIsEnabled" in kinds
        or "ConnectionError" in kinds
        or "couldn't reach" in lowered
    ):
        reason = f"the data set {ref.name} could not be read from the hub: there is no connection"
    elif "config" in lowered and any(word in lowered for word in ("find", "found", "missing", "specify", "multiple")):
        which = f"no configuration {ref.config!r}" if ref.config else "several configurations"
        reason = f"the data set {ref.name} has {which}"
        fix = f"name one: {ref.name}:CONFIG"
    elif "unknown split" in lowered or "bad split" in lowered:
        reason = f"the data set {ref.name} has no split {ref.split!r}"
        fix = f"name one: {ref.name}{':' + ref.config if ref.config else ''}@SPLIT"
    return DataError(
        f"There is no file {ref}, and {reason}.",
        code="hub",
        asked=str(ref),
        found=said,
        fix=fix,
        details={"file": str(ref), "split": ref.split},
    )


def saved_source(folder: Path) -> MemorySource | None:
    """A folder that ``datasets`` wrote with ``save_to_disk``; None if it is something else.

    Raises:
        DataError: if it holds several splits, or is damaged.
        MissingDependencyError: if ``datasets`` is not installed.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(item.name for item in folder.iterdir() if (item / "state.json").is_file())
        raise DataError(
            f"{folder} holds several data sets.",
            code="dataset-splits",
            found=f"splits {', '.join(splits)}",
            fix=f"pass one of them, such as {str(folder / (splits or ['train'])[0])!r}",
            details={"file": str(folder)},
        )
    if not ((folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()):
        return None
    try:
        data = _datasets(str(folder)).load_from_disk(str(folder))
    except MissingDependencyError:
        raise
    except Exception as error:
        raise DataError(
            f"{folder} is no data set that datasets wrote, or is damaged.",
            code="unreadable-file",
            found=f"{type(error).__name__}: {str(error)[:200]}",
            fix="save it again with save_to_disk",
            details={"file": str(folder)},
        ) from error
    return object_source(data, folder.name)
