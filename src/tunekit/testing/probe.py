"""The half of :mod:`tunekit.testing.checks` that runs in a fresh interpreter and says what it saw, as JSON.

``main(request)`` takes ``{"task": "record" | "options" | "targets", ...}`` and returns plain data. Nothing here judges.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import inspect
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tunekit.testing.state import HEAVY, global_state, state_changes

__all__ = ["main"]

UNKNOWN = "tunekit_no_such_option"


def main(request: Mapping[str, Any]) -> dict[str, Any]:
    """Do the task of ``request`` and say what was seen."""
    tasks: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
        "record": record,
        "options": options,
        "targets": targets,
    }
    return tasks[request["task"]](request)


def run_file(path: str) -> None:
    """Read a request from the JSON file ``path`` and put the answer in its place."""
    file = Path(path)
    answer = main(json.loads(file.read_text(encoding="utf-8")))
    file.write_text(json.dumps(answer), encoding="utf-8")


# ---------------------------------------------------------------- the record module


def record(request: Mapping[str, Any]) -> dict[str, Any]:
    """Import the modules of the entry points, one after another, and look at their hooks and specs."""
    # What a plugin may use is there already, so that only its own doing counts.
    importlib.import_module("tunekit.plugins.marker")
    importlib.import_module("tunekit.plugins.specs")
    found: dict[str, Any] = {"points": [], "heavy": [], "changes": [], "output": ""}
    before = global_state()
    loaded: list[tuple[dict[str, Any], Any]] = []
    written: list[str] = []
    with _captured(written):
        for name, value in request["points"]:
            point: dict[str, Any] = {"name": name, "module": value, "error": "", "traceback": "", "hooks": []}
            found["points"].append(point)
            try:
                loaded.append((point, _load(value)))
            except (KeyboardInterrupt, GeneratorExit):
                raise
            except BaseException as error:  # noqa: BLE001  (a plugin may even call sys.exit)
                point["error"] = f"{type(error).__name__}: {error}"
                point["traceback"] = traceback.format_exc()
    found["heavy"] = [name for name in HEAVY if name in sys.modules]
    found["changes"] = state_changes(before, global_state(settle=before["threads"]))
    found["output"] = "".join(written)
    for point, plugin in loaded:
        point["api_version"] = _plain(inspect.getattr_static(plugin, "api_version", None))
        point["hooks"] = [_hook(name, function) for name, function in _functions(plugin)]
        point["specs"], point["spec_errors"] = _specs(plugin)
        point["state"], point["reason"], point["problems"] = _session_says(plugin)
    found["heavy_after_listing"] = [name for name in HEAVY if name in sys.modules and name not in found["heavy"]]
    return found


def _load(value: str) -> Any:
    module, _, attributes = value.partition(":")
    plugin: Any = importlib.import_module(module)
    for part in filter(None, attributes.split(".")):
        plugin = getattr(plugin, part)
    return plugin


@contextlib.contextmanager
def _captured(into: list[str]) -> Iterator[None]:
    """Keep what is written to standard output and error, by Python or below it."""
    with tempfile.TemporaryFile() as stream:
        sys.stdout.flush()
        sys.stderr.flush()
        kept = [os.dup(number) for number in (1, 2)]
        streams = sys.stdout, sys.stderr
        try:
            for number in (1, 2):
                os.dup2(stream.fileno(), number)
            yield
        finally:
            for each in streams:
                each.flush()
            for number, saved in zip((1, 2), kept, strict=True):
                os.dup2(saved, number)
                os.close(saved)
        stream.seek(0)
        into.append(stream.read().decode(errors="replace"))


def _functions(plugin: Any) -> list[tuple[str, Any]]:
    """Functions that are hooks, or are called like one."""
    from tunekit._loading import functions_in

    return [
        (name, function)
        for name, function in functions_in(plugin)
        if name.startswith("tunekit_") or isinstance(getattr(function, "tunekit_impl", None), dict)
    ]


def _hook(name: str, function: Any) -> dict[str, Any]:
    opts = getattr(function, "tunekit_impl", None)
    marked = isinstance(opts, dict)
    parameters = list(inspect.signature(function).parameters.values())
    return {
        "name": (opts.get("specname") if isinstance(opts, dict) else "") or name,
        "marked": marked,
        "wrapper": bool(isinstance(opts, dict) and (opts.get("wrapper") or opts.get("hookwrapper"))),
        "generator": inspect.isgeneratorfunction(function),
        "parameters": [parameter.name for parameter in parameters],
        "defaults": [parameter.name for parameter in parameters if parameter.default is not parameter.empty],
        "unplain": [
            str(parameter)
            for parameter in parameters
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.KEYWORD_ONLY)
        ],
    }


def _specs(plugin: Any) -> tuple[list[dict[str, Any]], list[str]]:
    """The specs of registration hooks and decorators, whether or not a session would take the plugin."""
    from tunekit._loading import decorated_in
    from tunekit._manager import REGISTRATION
    from tunekit._registry import spec_problem
    from tunekit.plugins.decorators import decorations

    specs: list[dict[str, Any]] = []
    errors: list[str] = []

    def take(spec: Any, expected: type[Any], where: str, at_hand: tuple[str, ...] = ()) -> None:
        problem = spec_problem(spec, expected, objects=at_hand)
        if problem:
            errors.append(f"{where}: {problem}")
        if dataclasses.is_dataclass(spec) and isinstance(spec, expected):
            data = {field.name: _plain(getattr(spec, field.name)) for field in dataclasses.fields(spec)}
            specs.append({"kind": expected.kind, **data})

    for name, function in _functions(plugin):
        opts = getattr(function, "tunekit_impl", None)
        hook = (opts.get("specname") if isinstance(opts, dict) else None) or name
        if hook not in REGISTRATION or not isinstance(opts, dict):
            continue
        try:
            answer = list(function())
        except (Exception, SystemExit) as error:  # noqa: BLE001
            errors.append(f"{hook} failed: {type(error).__name__}: {error}")
            continue
        for spec in answer:
            take(spec, REGISTRATION[hook], hook)
    for thing in decorated_in(plugin, own=True):
        for decoration in decorations(thing):
            at_hand = ("target", "options") if decoration.options else ("target",)
            take(decoration.spec, type(decoration.spec), thing.__qualname__, at_hand)
    return specs, errors


def _session_says(plugin: Any) -> tuple[str, str, list[str]]:
    from tunekit.testing.sessions import isolated_session

    session = isolated_session(plugin, autoload=False)
    records = [record for record in session.plugins() if record.provider != "tunekit"]
    state = next((record for record in records if record.state != "loaded"), records[0] if records else None)
    if state is None:
        return "missing", "the session does not list it", []
    return state.state, state.reason, [problem for record in records for problem in record.problems]


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)


# ---------------------------------------------------------------- options models


def options(request: Mapping[str, Any]) -> dict[str, Any]:
    """Import options models and try them."""
    importlib.import_module("tunekit.plugins.options")
    before = global_state()
    found = {target: _options_model(target) for target in request["models"]}
    return {
        "models": found,
        "heavy": [name for name in HEAVY if name in sys.modules and name != "pydantic"],
        "changes": state_changes(before, global_state(settle=before["threads"])),
    }


def _options_model(target: str) -> dict[str, Any]:
    from tunekit._lazy import load_target

    seen: dict[str, Any] = {
        "error": "",
        "model": False,
        "schema": "",
        "round_trip": "",
        "unknown_refused": False,
        "undocumented": [],
        "fields": [],
        "further_data": False,
    }
    try:
        model = load_target(target)
    except Exception as error:  # noqa: BLE001
        seen["error"] = f"{type(error).__name__}: {error}"
        return seen
    seen["model"] = inspect.isclass(model) and hasattr(model, "model_validate_json")
    if not seen["model"]:
        seen["found"] = repr(model)
        return seen
    seen["fields"] = list(model.model_fields)
    own = getattr(model, "further_data", None)
    seen["further_data"] = own is not None and not own.__module__.startswith("tunekit.plugins.")
    seen["undocumented"] = [name for name, field in model.model_fields.items() if not (field.description or "").strip()]
    try:
        json.dumps(model.model_json_schema())
    except Exception as error:  # noqa: BLE001
        seen["schema"] = f"{type(error).__name__}: {error}"
    seen["round_trip"] = _round_trip(model)
    seen["unknown_refused"] = _refuses_unknown(model)
    return seen


def _round_trip(model: Any) -> str:
    """How the defaults of a model change on their way through JSON; empty if they do not."""
    from pydantic import ValidationError

    required = {name for name, field in model.model_fields.items() if field.is_required()}
    made = model.model_construct()
    data: dict[str, Any] = {}
    for name in model.model_fields:
        if name in required:
            continue
        try:
            data |= made.model_dump(mode="json", include={name})
            json.dumps(data, allow_nan=False)
        except Exception as error:  # noqa: BLE001
            return f"the default of {name} cannot be written as JSON: {type(error).__name__}: {error}"
    text = json.dumps(data)
    try:
        again = model.model_validate_json(text)
    except ValidationError as error:
        # Required options have no default that could be wrong, and rules over several options may need them.
        wrong = [item for item in error.errors(include_url=False) if item["loc"] and item["loc"][0] not in required]
        if wrong:
            first = wrong[0]
            return f"the default of {first['loc'][0]} is refused: {first['msg']} (its JSON: {text})"
        if not required:
            return f"the defaults are refused: {error.errors(include_url=False)[0]['msg']}"
        return ""
    except Exception as error:  # noqa: BLE001
        return f"the defaults cannot be read again: {type(error).__name__}: {error}"
    for name in model.model_fields:
        if name not in required and getattr(again, name) != getattr(made, name):
            return f"the default of {name} comes back as {getattr(again, name)!r}, was {getattr(made, name)!r}"
    return ""


def _refuses_unknown(model: Any) -> bool:
    from pydantic import ValidationError

    try:
        model.model_validate_json(json.dumps({UNKNOWN: 1}))
    except ValidationError as error:
        return any(item["loc"] == (UNKNOWN,) for item in error.errors(include_url=False))
    except Exception:  # noqa: BLE001
        return False
    return False


# ---------------------------------------------------------------- targets

METHODS: Mapping[str, Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    # method -> positional arguments, keyword arguments
    "trainer": {"run": (("ctx",), ())},
    "quantizer": {"run": (("ctx",), ())},
    "exporter": {"run": (("ctx",), ())},
    "step": {"run": (("ctx",), ())},
    "adapter": {
        "attach": (("model",), ("seed",)),
        "save": (("model", "folder"), ()),
        "merge": (("model",), ()),
        "detached": (("model",), ()),
    },
    "benchmark": {
        "rows": (("source", "options"), ()),
        "request": (("row",), ()),
        "judge": (("row", "response"), ()),
        "protocol": ((), ()),
    },
    "tracker": {"on_event": (("event",), ()), "close": ((), ())},
}
BUILT_WITH: Mapping[str, tuple[str, ...]] = {
    "trainer": (),
    "quantizer": (),
    "exporter": (),
    "step": (),
    "benchmark": (),
    "adapter": ("options",),
    "tracker": ("options",),
    "model": (),
    "dataset": (),
    "format": ("row",),
}


def targets(request: Mapping[str, Any]) -> dict[str, Any]:
    """Import targets and look at their shape.

    ``request["targets"]``: pairs of kind and import string. ``request["libraries"]``: modules of their requirements,
    which may change what they like while they are imported.
    """
    for library in request["libraries"]:
        with contextlib.suppress(Exception):
            importlib.import_module(library)
    before = global_state()
    found = []
    for kind, target in request["targets"]:
        try:
            error, shape = "", _shape(kind, target)
        except Exception as raised:  # noqa: BLE001
            error, shape = f"{type(raised).__name__}: {raised}", ""
        found.append({"kind": kind, "target": target, "error": error, "shape": shape})
    return {"targets": found, "changes": state_changes(before, global_state(settle=before["threads"]))}


def _shape(kind: str, target: str) -> str:
    from tunekit._lazy import load_target

    value = load_target(target)
    if not callable(value):
        return f"it is {value!r}, which cannot be called"
    if kind == "reward":
        return _reward_shape(target, value)
    if kind not in BUILT_WITH:
        return ""
    arguments = BUILT_WITH[kind]
    wanted = f"{target.partition(':')[2]}({', '.join(arguments)})"
    if not _takes(value, len(arguments), ()):
        return f"it cannot be called as {wanted}"
    for method, (positional, keywords) in METHODS.get(kind, {}).items():
        function = getattr(value, method, None)
        call = f"{method}({', '.join([*positional, *(f'{word}=...' for word in keywords)])})"
        if function is None:
            return f"it has no method {call}"
        if not callable(function):
            return f"its {method} is {function!r}, not a method"
        bound = not inspect.isclass(value) or _is_bound(value, method)
        if not _takes(function, len(positional) + (0 if bound else 1), keywords):
            return f"its {method} cannot be called as {call}; it is {method}{inspect.signature(function)}"
    return ""


def _reward_shape(target: str, value: Any) -> str:
    """A class whose objects can be called with prompts and completions, or a function that can."""
    call = "(prompts=..., completions=..., **columns)"
    name = target.partition(":")[2]
    if not inspect.isclass(value):
        # A factory takes the options; a function that scores takes the batch.
        return "" if _takes(value, 1, ()) or _takes_some(value) else f"it cannot be called as {name}{call}"
    if not any("__call__" in vars(base) for base in value.__mro__):
        return f"its objects cannot be called: it has no method __call__{call}"
    if not (_takes(value, 0, ()) or _takes(value, 1, ())):
        return f"it cannot be called as {name}() or {name}(options)"
    scores = getattr(value, "__call__")  # noqa: B004, B009  (the method, not whether there is one)
    return "" if _takes_some(functools.partial(scores, None)) else f"its __call__ cannot be called as __call__{call}"


def _takes_some(function: Any) -> bool:
    try:
        inspect.signature(function).bind_partial(prompts=(), completions=())
    except (TypeError, ValueError):
        return False
    return True


def _is_bound(owner: type, method: str) -> bool:
    return isinstance(inspect.getattr_static(owner, method), staticmethod | classmethod)


def _takes(function: Any, positional: int, keywords: tuple[str, ...]) -> bool:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return True  # written in C: nothing is known
    try:
        signature.bind(*range(positional), **dict.fromkeys(keywords))
    except TypeError:
        return False
    return True
