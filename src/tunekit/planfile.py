"""Plan files: YAML and JSON.

A file holds what a script would type. Paths in it are relative to the current directory, as in a script. Steps are
written short (``- sft: {data: alpaca.json, epochs: 1}``) or in full (``- {kind: sft, name: sft, options: {...}}``).

YAML is read by the rules of YAML 1.2: ``1e-4`` is a number, ``no`` and ``on`` are text, no key may stand twice.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit._secrets import REASON, masked, password_advice, password_places, refuse_passwords
from tunekit._tasks import choose_method
from tunekit._values import STEP_KIND, STEP_NAME
from tunekit.errors import ArtifactError, PipelineError, TunekitError, nearest
from tunekit.plan import MAX_SEED, SCHEMA, STEP_KINDS, AdapterPlan, Plan, StepPlan, check_seed, free_name, thaw

if TYPE_CHECKING:
    import yaml

__all__ = ["dump_json", "dump_yaml", "load_json", "load_yaml", "read_plan", "write"]

HEADER = """\
# tunekit plan. Run it: tunekit run THIS_FILE   Look at it: tunekit explain THIS_FILE
# Paths are relative to the directory in which tunekit runs.
"""

TOP_KEYS = ("schema", "model", "seed", "adapter", "lora", "qlora", "track", "steps")
FULL_KEYS = ("kind", "name", "method", "input", "adapter", "options")
OWN_KEYS = ("name", "method", "input", "adapter", "lora", "qlora")
FIRST_OPTION = {"quantize": "scheme", "evaluate": "benchmarks"}
MAX_NODES = 500_000

_Path = tuple[str | int, ...]


# ---------------------------------------------------------------- writing


def dump_yaml(plan: Plan) -> str:
    """The plan as YAML, in the short form."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
            super().increase_indent(flow, False)

    Dumper.yaml_implicit_resolvers = {
        key: list(value) for key, value in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }
    # Text such as "1e-4" must be quoted, because the loader takes it for a number.
    Dumper.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+0123456789."))
    data = plan.to_data()
    taken: set[str] = set()
    data["steps"] = [_short(step, taken) for step in plan.steps]
    return HEADER + yaml.dump(data, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=110)


def _short(step: StepPlan, taken: set[str]) -> Any:
    body: dict[str, Any] = {}
    full = step.to_data()
    if step.name != free_name(step.kind, taken):
        body["name"] = step.name
    taken.add(step.name)
    for key in ("method", "input", "adapter"):
        if key in full:
            body[key] = full[key]
    clash = set(step.options) & set(OWN_KEYS)
    if clash or step.kind == "kind":
        return full
    body.update(thaw(step.options))
    return {step.kind: body} if body else step.kind


def dump_json(plan: Plan) -> str:
    """The plan as JSON, in the full form of ``Plan.to_data``."""
    return json.dumps(plan.to_data(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write(text: str, path: str | os.PathLike[str] | None) -> str:
    """Write ``text`` to ``path``, if there is one, and return it.

    Raises:
        ArtifactError: if it cannot be written.
    """
    if path is not None:
        target = Path(path)
        aside = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            aside.write_text(text, encoding="utf-8")
            aside.replace(target)
        except OSError as error:
            aside.unlink(missing_ok=True)
            raise ArtifactError(
                f"The plan cannot be written to {target}.", code="plan-file", found=str(error)
            ) from error
    return text


# ---------------------------------------------------------------- reading


def read_plan(path: str | os.PathLike[str]) -> Plan:
    """The plan in a file: JSON if its name ends in ``.json``, else YAML. Raises as :func:`load_yaml` does."""
    return load_yaml(Path(path))


def load_yaml(source: str | os.PathLike[str]) -> Plan:
    """The plan in a YAML file, or in YAML text. A file whose name ends in ``.json`` is read as JSON.

    Raises:
        ArtifactError: if the file cannot be read.
        PipelineError: if it is no valid plan; it lists every problem with file and line.
    """
    import yaml

    text, where = _text(source, looks_like_text=lambda s: "\n" in s or re.search(r":(\s|$)", s) is not None)
    if where.lower().endswith(".json"):
        return load_json(source)
    try:
        node = yaml.compose(text, Loader=_loader())
        reader = _YamlReader()
        data = reader.value(node, ()) if node is not None else None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None else 0
        raise _invalid(where, [(line, masked(str(getattr(error, "problem", None) or error)))]) from error
    except RecursionError as error:
        raise _invalid(where, [(0, "it is nested too deeply")]) from error
    return _plan(data, where, reader.lines, reader.problems)


def load_json(source: str | os.PathLike[str]) -> Plan:
    """The plan in a JSON file, or in JSON text. Raises as :func:`load_yaml` does."""
    text, where = _text(source, looks_like_text=lambda s: s.lstrip().startswith(("{", "[")))
    problems: list[tuple[int, str]] = []

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for key, value in items:
            if key in made:
                problems.append((0, f"the key {key!r} stands twice"))
            made[key] = value
        return made

    try:
        data = json.loads(text, object_pairs_hook=pairs)
    except ValueError as error:
        line = getattr(error, "lineno", 0)
        raise _invalid(where, [(line, getattr(error, "msg", str(error)))]) from error
    except RecursionError as error:
        raise _invalid(where, [(0, "it is nested too deeply")]) from error
    return _plan(data, where, {}, problems)


def _text(source: str | os.PathLike[str], looks_like_text: Any) -> tuple[str, str]:
    if isinstance(source, str) and looks_like_text(source):
        return source, ""
    refuse_passwords({"source": source})
    path = Path(source)
    try:
        return path.read_text(encoding="utf-8-sig"), str(path)
    except (OSError, UnicodeDecodeError) as error:
        near: tuple[str, ...] = ()
        if isinstance(error, FileNotFoundError) and path.parent.is_dir():
            near = nearest(path.name, (item.name for item in path.parent.iterdir()))
        reason = f"{error.strerror}" if isinstance(error, OSError) else f"it is not UTF-8 text ({error.reason})"
        raise ArtifactError(
            f"The plan file {path} cannot be read: {reason}.",
            code="plan-file",
            asked=str(path),
            suggestions=[str(path.parent / name) for name in near],
        ) from error


def _invalid(where: str, problems: list[tuple[int, str]], code: str = "plan-file", fix: str = "") -> PipelineError:
    shown = []
    for line, text in problems:
        place = ":".join(part for part in (where, str(line) if line else "") if part)
        shown.append(f"{place}: {text}" if where else (f"line {line}: {text}" if line else text))
    count = len(problems)
    return PipelineError(
        f"{where or 'The text'} is no valid plan: {'one problem' if count == 1 else f'{count} problems'}.",
        code=code,
        found="\n         ".join(shown),
        fix=fix,
        details={"file": where, "problems": [{"line": line, "message": text} for line, text in problems]},
    )


FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
RESOLVERS: tuple[tuple[str, str, str], ...] = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", f"(?:{FLOAT.pattern})", "-+0123456789."),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("merge", r"<<", "<"),
)


def _loader() -> type[yaml.SafeLoader]:
    import yaml

    class Loader(yaml.SafeLoader):
        """Scalars by the core schema of YAML 1.2."""

    Loader.yaml_implicit_resolvers = {}
    for tag, pattern, first in RESOLVERS:
        starts = [character if character != "\0" else "" for character in first]
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"(?:{pattern})$"), starts)
    return Loader


class _YamlReader:
    """Plain data out of a YAML tree, with the line of every part."""

    def __init__(self) -> None:
        self.lines: dict[_Path, int] = {}
        self.problems: list[tuple[int, str]] = []
        self._count = 0

    def value(self, node: yaml.Node, path: _Path) -> Any:
        import yaml

        self._count += 1
        if self._count > MAX_NODES:
            raise yaml.YAMLError("it is too large; keep data in files of their own")
        line = node.start_mark.line + 1
        self.lines[path] = line
        if isinstance(node, yaml.MappingNode):
            return dict(self._mapping(node, path))
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        return self._scalar(node, path, line)

    def _mapping(self, node: yaml.MappingNode, path: _Path) -> Iterator[tuple[str, Any]]:
        import yaml

        seen: set[str] = set()
        merged: dict[str, Any] = {}
        own: list[tuple[str, Any]] = []
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == "tag:yaml.org,2002:merge":
                for item in value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]:
                    value = self.value(item, path)
                    if isinstance(value, dict):
                        merged = {**value, **merged}
                    else:
                        self.problems.append((line, "<< needs a mapping"))
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append((line, "a key must be plain text"))
                continue
            key = str(key_node.value)
            if key in seen:
                self.problems.append((line, f"the key {key!r} stands twice"))
            seen.add(key)
            own.append((key, self.value(value_node, (*path, key))))
            self.lines[(*path, key)] = line
        yield from {**merged, **dict(own)}.items()

    def _scalar(self, node: yaml.Node, path: _Path, line: int) -> Any:
        kind = node.tag.rpartition(":")[2]
        text = str(node.value)
        if kind == "str":
            return text
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        if kind == "int":
            return int(text)
        if kind == "float":
            number = math.nan if text.lower().endswith(("inf", "nan")) else float(text)
            if not math.isfinite(number):
                self.problems.append((line, f"{_shown(path)} is {text}, which no plan can hold"))
                return None
            return number
        self.problems.append(
            (line, f"{_shown(path)} has the type {node.tag}; a plan holds text, numbers, true, false, null")
        )
        return None


def _shown(path: _Path) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else str(part))
    return text or "the plan"


class _Problems:
    def __init__(self, where: str, lines: Mapping[_Path, int], found: list[tuple[int, str]]) -> None:
        self.where = where
        self.lines = lines
        self.found = found

    def add(self, path: _Path, message: str) -> None:
        place = path
        while place and place not in self.lines:
            place = place[:-1]
        self.found.append((self.lines.get(place, 0), f"{_shown(path)}: {message}"))

    def unknown(self, path: _Path, key: str, known: tuple[str, ...]) -> None:
        close = nearest(key, known, limit=1)
        hint = f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
        self.add((*path, key), f"unknown key{hint}")


def _plan(data: Any, where: str, lines: Mapping[_Path, int], found: list[tuple[int, str]]) -> Plan:
    _refuse_passwords(data, where, lines)
    problems = _Problems(where, lines, found)
    if not isinstance(data, dict):
        problems.add((), f"a plan is a mapping with the key 'steps', not {_kind(data)}")
        raise _invalid(where, problems.found)
    schema = data.get("schema", SCHEMA)
    if schema != SCHEMA or isinstance(schema, bool):
        newer = isinstance(schema, int) and not isinstance(schema, bool) and schema > SCHEMA
        hint = "; it was written by a newer tunekit: pip install -U tunekit" if newer else ""
        problems.add(("schema",), f"this tunekit reads schema {SCHEMA}, not {schema!r}{hint}")
        raise _invalid(where, problems.found)
    for key in data:
        if key not in TOP_KEYS:
            problems.unknown((), key, TOP_KEYS)
    model = data.get("model")
    if model is not None and (not isinstance(model, str) or not model):
        problems.add(("model",), f"is text, not {_kind(model)}")
        model = None
    if isinstance(model, str) and model.startswith("object:"):
        problems.add(("model",), "an object in memory cannot be named in a file")
    seed = data.get("seed")
    if seed is not None:
        try:
            check_seed(seed)
        except PipelineError:
            problems.add(("seed",), f"is a whole number from 0 to {MAX_SEED}, not {seed!r}")
            seed = None
    adapter = _adapter(data, (), problems)
    plan = Plan(
        model=model,
        steps=_steps(data.get("steps"), problems),
        adapter=adapter if isinstance(adapter, AdapterPlan) else None,
        seed=seed,
        trackers=_trackers(data.get("track"), problems),
    )
    if problems.found:
        raise _invalid(where, sorted(problems.found, key=lambda item: item[0]))
    return plan


def _refuse_passwords(data: Any, where: str, lines: Mapping[_Path, int]) -> None:
    """Before anything else is said of the plan: what is said may show what stands there."""
    problems, fix = _Problems(where, lines, []), ""
    for path, scheme in password_places(data):
        problems.add(path, REASON)
        fix = fix or password_advice(path, scheme)
    if problems.found:
        raise _invalid(where, problems.found, code="password-in-url", fix=fix)


def _kind(value: Any) -> str:
    names = {type(None): "nothing", bool: "true/false", int: "a number", float: "a number", str: "text", list: "a list"}
    return names.get(type(value), "a mapping")


def _adapter(data: Mapping[str, Any], path: _Path, problems: _Problems) -> AdapterPlan | str | None:
    """The adapter of a plan or step; ``inherit`` if it says nothing."""
    written = [key for key in ("adapter", "lora", "qlora") if key in data]
    if not written:
        return "inherit"
    if len(written) > 1:
        problems.add((*path, written[1]), f"the adapter is set twice: {written[0]} and {written[1]}")
    key = written[0]
    value = data[key]
    if key != "adapter":
        if value is None:
            value = {}
        if not isinstance(value, dict):
            problems.add((*path, key), f"is a mapping of options such as {{r: 8}}, not {_kind(value)}")
            return "inherit"
        if "name" in value:
            problems.add((*path, key, "name"), f"{key} is the name already")
        return AdapterPlan(key, value)
    if value is None:
        return None
    if isinstance(value, str) and value:
        return AdapterPlan(value)
    if isinstance(value, dict):
        try:
            return AdapterPlan.from_data(value)
        except TunekitError as error:
            problems.add((*path, key), error.message)
            return "inherit"
    problems.add((*path, key), f"is a name, a mapping such as {{name: lora, r: 8}}, or null, not {_kind(value)}")
    return "inherit"


def _trackers(value: Any, problems: _Problems) -> tuple[Mapping[str, Any], ...]:
    if value is None:
        return ()
    items = value if isinstance(value, list) else [value]
    found: list[Mapping[str, Any]] = []
    for index, item in enumerate(items):
        if isinstance(item, str) and item:
            found.append({"name": item})
        elif isinstance(item, dict) and isinstance(item.get("name"), str) and item["name"]:
            found.append(item)
        else:
            problems.add(("track", index), "is a name, or a mapping with a name")
    return tuple(found)


def _steps(value: Any, problems: _Problems) -> tuple[StepPlan, ...]:
    if value is None:
        value = []
    if not isinstance(value, list):
        problems.add(("steps",), f"is a list, not {_kind(value)}")
        return ()
    steps: list[StepPlan] = []
    names: set[str] = set()
    # Names that are written count first, as they are taken by whoever wrote them.
    for index, item in enumerate(value):
        step = _step(item, ("steps", index), names, problems)
        if step is None:
            continue
        if step.name in names:
            problems.add(("steps", index), f"two steps are called {step.name!r}; give one another name")
        names.add(step.name)
        steps.append(step)
    return tuple(steps)


def _step(item: Any, path: _Path, taken: set[str], problems: _Problems) -> StepPlan | None:
    if isinstance(item, str):
        item = {item: None}
    if not isinstance(item, dict) or not item:
        problems.add(path, f"a step is a name or a mapping such as {{sft: {{epochs: 1}}}}, not {_kind(item)}")
        return None
    if "kind" in item:
        return _full_step(item, path, taken, problems)
    if len(item) != 1:
        problems.add(path, f"a step has one key, its kind; found {', '.join(item)} (check the indentation below it)")
        return None
    kind, body = next(iter(item.items()))
    path = (*path, kind)
    if body is None:
        body = {}
    elif not isinstance(body, dict):
        if kind in FIRST_OPTION:
            body = {FIRST_OPTION[kind]: body}
        elif kind == "export" and isinstance(body, str):
            body = {"format": body}
        else:
            problems.add(path, f"is a mapping of options, not {_kind(body)}")
            return None
    body = dict(body)
    if kind == "export" and "format" in body:
        if "method" in body:
            problems.add((*path, "method"), "format and method say the same; keep one")
        body["method"] = body.pop("format")
    if kind == "evaluate" and isinstance(body.get("benchmarks"), str):
        body["benchmarks"] = [body["benchmarks"]]
    options = {key: value for key, value in body.items() if key not in OWN_KEYS}
    return _made(kind, body, options, path, taken, problems)


def _full_step(item: dict[str, Any], path: _Path, taken: set[str], problems: _Problems) -> StepPlan | None:
    for key in item:
        if key not in FULL_KEYS:
            problems.unknown(path, key, FULL_KEYS)
    options = item.get("options")
    if options is not None and not isinstance(options, dict):
        problems.add((*path, "options"), f"is a mapping, not {_kind(options)}")
        options = None
    for key in set(options or ()) & set(FULL_KEYS):
        problems.add((*path, "options", key), f"{key} belongs beside options, not into them")
    return _made(item["kind"], item, options or {}, path, taken, problems)


def _made(
    kind: Any, body: Mapping[str, Any], options: dict[str, Any], path: _Path, taken: set[str], problems: _Problems
) -> StepPlan | None:
    if not isinstance(kind, str) or not STEP_KIND.fullmatch(kind):
        problems.add(path, f"{kind!r} is no step kind; known: {', '.join(STEP_KINDS)}, and those of plugins")
        return None
    texts: dict[str, str | None] = {}
    for key in ("name", "method", "input"):
        value = body.get(key)
        if value is not None and not isinstance(value, str):
            problems.add((*path, key), f"is text, not {_kind(value)}")
            value = None
        if value is not None and key != "method" and not STEP_NAME.fullmatch(value):
            problems.add((*path, key), f"{value!r} is no step name: letters, digits, '.', '-' and '_'")
            value = None
        texts[key] = value
    try:
        method = choose_method(kind, texts["method"], options)
    except PipelineError as error:
        problems.add(path, error.message)
        method = None
    return StepPlan(
        kind=kind,
        name=texts["name"] or free_name(kind, taken),
        method=method,
        options=options,
        input=texts["input"],
        adapter=_adapter(body, path, problems),
    )
