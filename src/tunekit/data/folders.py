"""Folders and globs as one data set: the files of one kind in them, in the order of their paths."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from tunekit.data.files import data_error
from tunekit.data.readers import SUFFIXES, FileSource, known_kind
from tunekit.data.rows import RawRow
from tunekit.errors import DataError, nearest

__all__ = ["FilesSource", "folder_files", "glob_files", "has_magic", "open_files"]

_LOOKED_AT = 200
"""Files whose columns are compared when the data set is opened; those of the rest show when their rows are read."""

_TABLES = ("csv", "tsv", "parquet")

_HEAD = 5
"""Rows of each that are looked at."""

_BESIDE = re.compile(
    r"(readme|license|licence|notice|changelog|copying|authors|citation|dataset_infos?|state)\b.*", re.I
)
"""Stems of files that lie beside data and are none."""

_SPLITS = {
    "train": "train",
    "training": "train",
    "dev": "validation",
    "devel": "validation",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "eval": "validation",
    "evaluation": "validation",
    "heldout": "validation",
    "test": "test",
    "testing": "test",
}


class FilesSource:
    """Several files, read one after the other.

    Args:
        name: for people: the folder or pattern.
        root: the folder; names of files are told relative to it.
        files: sources of one kind.
        others: names of files that are not read.

    Attributes:
        files: the paths, in order.
        others: as above.
    """

    def __init__(self, name: str, root: Path, files: Sequence[FileSource], others: Sequence[str] = ()) -> None:
        self.name = name
        self.path: Path | None = root
        self._sources = tuple(files)
        self.others = tuple(others)
        self.files = tuple(source.path for source in files if source.path is not None)
        self.kind = files[0].kind
        self.rule = files[0].rule
        self.header = files[0].header
        self.sure_header = all(source.sure_header for source in files)

    def rows(self) -> Iterator[RawRow]:
        """The rows from the first on; each says in which file it stands."""
        number = 0
        for source in self._sources:
            for row in source.rows():
                number += 1
                row.file, row.in_file, row.number = source.path, row.number, number
                yield row

    def content_hash(self) -> str | None:
        """SHA-256 (hex) over the names and stored bytes of every file, so one more or less changes it too."""
        total = hashlib.sha256()
        for source in self._sources:
            assert source.path is not None
            total.update(f"{self._short(source.path)}\x00{source.content_hash()}\n".encode("utf-8", "surrogateescape"))
        return total.hexdigest()

    def length(self) -> int | None:
        """Rows of Parquet files, which state them; None for any other: they have to be read."""
        lengths = [source.length() for source in self._sources] if self.kind == "parquet" else [None]
        known = [length for length in lengths if length is not None]
        return sum(known) if len(known) == len(lengths) else None

    def size(self) -> int | None:
        """Bytes of all files, unpacked."""
        return sum(source.size() or 0 for source in self._sources)

    def _short(self, path: Path) -> str:
        assert self.path is not None
        try:
            return path.relative_to(self.path).as_posix()
        except ValueError:
            return str(path)

    def check_tables(self) -> None:
        """Compare the columns of tables, which must be the same in every file.

        Raises:
            DataError: naming two files that differ and their columns.
        """
        if self.kind in _TABLES:
            self._compare(lambda first, other: first ^ other)

    def check_needed(self, needed: Iterable[str]) -> None:
        """Look in every file for the columns that the format needs and the first file has.

        Raises:
            DataError: naming two files that differ and their columns.
        """
        names = set(needed)
        if self.kind not in _TABLES:
            self._compare(lambda first, other: (names & first) - other)

    def _compare(self, difference: Callable[[set[str], set[str]], set[str]]) -> None:
        first: tuple[Path, set[str]] | None = None
        for source in self._sources[:_LOOKED_AT]:
            values = [row.value for row in islice(source.rows(), _HEAD)]
            columns = {str(name) for value in values if isinstance(value, dict) for name in value}
            if not columns:
                continue
            assert source.path is not None
            if first is None:
                first = (source.path, columns)
            differ = difference(first[1], columns)
            if differ:
                raise self._differ(first, (source.path, columns), sorted(differ))

    def _differ(self, one: tuple[Path, set[str]], other: tuple[Path, set[str]], differ: list[str]) -> DataError:
        said = "; ".join(f"{self._short(path)}: {', '.join(sorted(columns)[:12])}" for path, columns in (one, other))
        return DataError(
            f"{self.name}: its files have different columns.",
            code="different-columns",
            found=said,
            fix=f"pass the files that belong together, such as {self._pattern()!r}, "
            "or mix({...}) with a format for each",
            details={"file": str(other[0]), "columns": differ, "files": [str(one[0]), str(other[0])]},
        )

    def _pattern(self) -> str:
        assert self.path is not None
        return str(self.path / f"NAME*{self.files[0].suffix}")


def has_magic(ref: str) -> bool:
    """Whether ``ref`` is a pattern such as ``corpus/*.jsonl``."""
    return glob.has_magic(ref)


def glob_files(pattern: str) -> list[Path]:
    """The files that a pattern names, sorted; ``**`` goes into folders.

    Raises:
        DataError: if there is none.
    """
    text = str(Path(pattern).expanduser())
    try:
        found = sorted(Path(name) for name in _expand(text) if Path(name).is_file())
    except (OSError, ValueError, re.error):
        found = []
    if found:
        return found
    folder = Path(text).parent
    names = sorted(item.name for item in folder.iterdir()) if not has_magic(str(folder)) and folder.is_dir() else []
    said = f"in {folder}: {', '.join(names[:8]) or 'nothing'}" + (" ..." if len(names) > 8 else "") if names else ""
    base = Path(text).name
    stripped = re.sub(r"[*?\[\]]", "", base)
    raise DataError(
        f"No file fits {pattern}.",
        code="missing-file",
        asked=pattern,
        found=said or (f"there is no folder {folder}" if not has_magic(str(folder)) and not folder.is_dir() else ""),
        suggestions=[str(folder / name) for name in nearest(stripped, names)],
        fix="" if names else "give the pattern from the current folder, or an absolute one",
        details={"file": pattern, "reason": "no such file"},
    )


def _expand(pattern: str) -> Iterator[str]:
    # Path.glob takes no absolute pattern.
    return glob.iglob(pattern, recursive=True)  # noqa: PTH207


def folder_files(folder: Path) -> tuple[list[Path], list[str]]:
    """The data files in a folder and the folders in it, sorted, and the names of what is no data and no README either.

    Hidden files are left out.

    Raises:
        DataError: if there is none, the files are the splits of one data set, or one is there packed and unpacked.
    """
    found: list[Path] = []
    others: list[str] = []
    beside: list[str] = []
    seen = {os.path.realpath(folder)}
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "_")))
        # Links are followed, but none back to where the walk has been.
        folders[:] = [name for name in folders if not _been(Path(place) / name, seen)]
        for name in sorted(names):
            path = Path(place) / name
            if name.startswith((".", "_")):
                continue
            if _BESIDE.fullmatch(name):
                beside.append(name)
            elif known_kind(path) is None:
                others.append(name)
            else:
                found.append(path)
    found.sort()
    if not found:
        others += beside
        raise DataError(
            f"{folder} is a folder without data files.",
            code="folder",
            found=f"in it: {', '.join(others[:8]) or 'nothing'}" + (" ..." if len(others) > 8 else ""),
            fix=f"data files end in {', '.join(SUFFIXES)} (each but .parquet also with .gz)",
            details={"file": str(folder)},
        )
    _refuse_splits(folder, found)
    there = set(found)
    double = next((path for path in found if path.suffix == ".gz" and path.with_suffix("") in there), None)
    if double is not None:
        raise DataError(
            f"{folder} holds {double.with_suffix('').name} twice, packed and unpacked.",
            code="folder-copies",
            found=f"{double.with_suffix('').relative_to(folder)}, {double.relative_to(folder)}",
            fix="take one of them away, or pass a pattern that names one",
            details={"file": str(double)},
        )
    return found, others


def _been(folder: Path, seen: set[str]) -> bool:
    real = os.path.realpath(folder)
    known = real in seen
    seen.add(real)
    return known


def _refuse_splits(folder: Path, files: Sequence[Path]) -> None:
    """Test data must not be trained on only because they lie beside the training data."""
    by_split: dict[str, Path] = {}
    for path in files:
        name = re.sub(r"held[^a-z/]?out", "heldout", path.relative_to(folder).as_posix().lower())
        words = re.split(r"[^a-z]+", name)
        by_split.setdefault(next((_SPLITS[word] for word in words if word in _SPLITS), "other"), path)
    if len(by_split) > 1 and not set(by_split) <= {"train", "other"}:
        chosen = by_split.get("train", by_split.get("other", files[0]))
        raise DataError(
            f"{folder} holds the splits of a data set ({', '.join(sorted(by_split))}), which are not read as one.",
            code="folder-splits",
            found=", ".join(str(path.relative_to(folder)) for path in by_split.values()),
            fix=f"pass one of them, such as {str(chosen)!r}; a pattern such as "
            f"{str(folder / ('*' + chosen.suffix))!r} reads them as one",
            details={"file": str(folder), "splits": sorted(by_split)},
        )


def open_files(
    name: str,
    root: Path,
    files: Sequence[Path],
    *,
    rule: str | None = None,
    header: str | None = None,
    others: Sequence[str] = (),
) -> FileSource | FilesSource:
    """One source over files of one kind.

    Args:
        name: the folder or pattern, as it was written.
        root: folder that the names of files are told relative to.
        files: existing files, in order.
        rule: for plain text, one of :data:`tunekit.data.readers.TEXT_RULES`; None detects one rule for all files.
        header: as for :class:`FileSource`.
        others: names of files beside them that are not read, for people.

    Raises:
        DataError: if they are of several kinds, or of none that is known.
    """
    kinds: dict[str, list[Path]] = {}
    for path in files:
        kind = known_kind(path)
        if kind is None:
            raise data_error(path, "the file name does not say what is in it", code="unknown-file-type")
        if kind == "parquet" and path.suffix.lower() == ".gz":
            raise data_error(
                path, "Parquet files are compressed inside", code="unknown-file-type", fix="gunzip the file"
            )
        kinds.setdefault(kind, []).append(path)
    if len(kinds) > 1:
        said = "; ".join(f"{len(paths)} {kind}: {paths[0].name}" for kind, paths in kinds.items())
        most = max(kinds.values(), key=len)[0]
        raise DataError(
            f"{name} holds data files of several kinds.",
            code="folder-kinds",
            found=said,
            fix=f"say which: {str(root / ('*' + most.suffix))!r}",
            details={"file": str(root), "kinds": sorted(kinds)},
        )
    sources = [FileSource(path, kind, rule=rule, header=header) for kind, paths in kinds.items() for path in paths]
    sources = _agree(name, root, sources, rule)
    return sources[0] if len(sources) == 1 and not others else FilesSource(name, root, sources, others)


def _agree(name: str, root: Path, sources: list[FileSource], rule: str | None) -> list[FileSource]:
    """The same kind, text rule and header for all: a short file must not be read otherwise than its neighbours."""
    found = {source.kind for source in sources}
    if len(found) > 1:
        # Tables or texts among which some look like CoNLL.
        some = {kind: next(s.name for s in sources if s.kind == kind) for kind in sorted(found)}
        raise DataError(
            f"{name} holds data files of several kinds.",
            code="folder-kinds",
            found="; ".join(f"{kind}: {example}" for kind, example in some.items()),
            fix="pass the files that belong together",
            details={"file": str(root), "kinds": sorted(found)},
        )
    kind = sources[0].kind
    if kind == "txt" and rule is None and len({source.rule for source in sources}) > 1:
        rules = [source.rule for source in sources]
        common = "separated" if "separated" in rules else "passages"
        return [FileSource(source.path, kind, rule=common) for source in sources if source.path is not None]
    if kind in ("csv", "tsv") and len({source.header for source in sources}) > 1:
        sure = {source.header for source in sources if source.sure_header}
        if len(sure) > 1:
            one, other = (next(s for s in sources if s.header is which and s.sure_header) for which in (True, False))
            raise DataError(
                f"{name}: some of its files have a header line, others have none.",
                code="different-columns",
                found=f"{one.name} has one, {other.name} has none",
                fix="pass the files that belong together",
                details={"file": str(root), "files": [str(one.path), str(other.path)]},
            )
        for source in sources:
            source.header = sure == {True}
    return sources
