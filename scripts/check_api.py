"""Compare the public API with the last release, and fail on a change that breaks its users.

    python scripts/check_api.py

The last release is the newest tag ``v*`` that leads here. Without one (a shallow clone, the first release) there is
nothing to compare with; that is said, and is no failure. What is compared, with griffe, from sources alone:

- every name of tunekit's public modules, through the tables of its lazy facades, which griffe alone does not follow;
- each package under ``plugins/``, by griffe's own rule: what has no leading underscore.

griffe sees removed names, parameters and bases, changed kinds and orders, and changed defaults of functions and
dataclasses. It does not compare annotations, nor the defaults of pydantic options: those are held by the snapshots in
``tests/api``.

A breakage that is wanted stands in ``scripts/known_breakages.toml`` with its reason. An entry that no longer matches
anything fails as well, so the list is empty again after a release.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import griffe
from public_api import FACADES, ROOT, called_by_pytest, public_objects


def git(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)


def last_tag(root: Path) -> str | None:
    """The newest tag ``v*`` that leads to the current commit."""
    try:
        found = git(root, "describe", "--tags", "--abbrev=0", "--match", "v*")
    except FileNotFoundError:  # no git here
        return None
    return found.stdout.strip() or None


def breakages(root: Path, tag: str) -> Iterator[str]:
    """Everything that breaks a user of ``tag``, one line each."""
    if _was_there(root, tag, "src/tunekit"):
        old, new = _both(root, tag, "tunekit", "src")
        for facade in FACADES:
            yield from _of_facade(facade, public_objects(old, facade), public_objects(new, facade))
    for path in sorted(root.glob("plugins/*/src/*/__init__.py")):
        package, source = path.parent.name, path.parent.parent.relative_to(root).as_posix()
        if _was_there(root, tag, f"{source}/{package}"):
            old, new = _both(root, tag, package, source)
            for found in griffe.find_breaking_changes(old, new):
                yield f"{found.obj.path}{_part(found)}: {found.kind.value}{_change(found)}"


def _was_there(root: Path, tag: str, path: str) -> bool:
    return git(root, "cat-file", "-e", f"{tag}:{path}").returncode == 0


def _both(root: Path, tag: str, package: str, source: str) -> tuple[griffe.Object, griffe.Object]:
    old = griffe.load_git(package, ref=tag, repo=root, search_paths=[source], allow_inspection=False)
    new = griffe.load(package, search_paths=[root / source], allow_inspection=False)
    return old, new  # type: ignore[return-value]


def _of_facade(facade: str, old: dict[str, griffe.Object], new: dict[str, griffe.Object]) -> Iterator[str]:
    for name in sorted(old.keys() - new.keys()):
        yield f"{facade}.{name}: {griffe.BreakageKind.OBJECT_REMOVED.value}"
    for name in sorted(old.keys() & new.keys()):
        for found in griffe.find_breaking_changes(_root(name, old[name]), _root(name, new[name])):
            if called_by_pytest(found.obj) and found.kind is not griffe.BreakageKind.OBJECT_REMOVED:
                continue
            home = max((old[name].path, new[name].path), key=lambda path: found.obj.path.startswith(path))
            place = found.obj.path.removeprefix(home) if found.obj.path.startswith(home) else f".{found.obj.name}"
            yield f"{facade}.{name}{place}{_part(found)}: {found.kind.value}{_change(found)}"


def _root(name: str, thing: griffe.Object) -> griffe.Module:
    """A module that holds one object, which counts as public wherever it is defined."""
    module = griffe.Module("root")
    thing.public = True
    module.members[name] = thing
    return module


def _part(found: griffe.Breakage) -> str:
    for value in (found.old_value, found.new_value):
        if isinstance(value, griffe.Parameter):
            return f"({value.name})"
    return ""


def _change(found: griffe.Breakage) -> str:
    if isinstance(found, griffe.ParameterChangedDefaultBreakage):
        return f": {found.old_value.default} -> {found.new_value.default}"
    if isinstance(found, griffe.ReturnChangedTypeBreakage):
        return f": {found.old_value} -> {found.new_value}"
    return ""


def known_breakages(path: Path) -> dict[str, str]:
    """What is allowed to break, and why. Raises ``SystemExit`` for an entry without a reason."""
    if not path.exists():
        return {}
    allowed: dict[str, str] = {}
    for entry in tomllib.loads(path.read_text(encoding="utf-8")).get("breakage", []):
        if not str(entry.get("reason", "")).strip():
            raise SystemExit(f"{path}: the entry {entry.get('what')!r} has no reason")
        allowed[entry["what"]] = entry["reason"]
    return allowed


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare the public API with the last release.")
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository; default: this one")
    root = parser.parse_args().root.resolve()
    tag = last_tag(root)
    if tag is None:
        print("api: no tag v* leads here (first release, or a shallow clone); there is nothing to compare with")
        return 0
    allowed = known_breakages(root / "scripts" / "known_breakages.toml")
    found = list(dict.fromkeys(breakages(root, tag)))
    new = [line for line in found if line not in allowed]
    stale = [what for what in allowed if what not in found]
    for line in new:
        print(f"api: breaks users of {tag}: {line}")
    for what in stale:
        print(f"api: scripts/known_breakages.toml: nothing breaks like this any more, remove it: {what}")
    if new:
        print("api: keep the old way working and deprecate it (docs/explanation/stability.md),")
        print("api: or, for a release that may break, add to scripts/known_breakages.toml what stands behind the tag,")
        print("api: with a reason.")
    if not new and not stale:
        print(f"api: nothing breaks users of {tag}" + (f"; {len(found)} known breakages" if found else ""))
    return 1 if new or stale else 0


if __name__ == "__main__":
    sys.exit(main())
