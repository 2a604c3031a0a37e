"""What the suites do in a fresh interpreter: independence of hashing, imports, and what survives a kill."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunekit._lazy import load_target

__all__ = ["Reference", "call_in_child", "check_data", "reference", "request_digests", "resolve_reference", "track"]

Reference = Mapping[str, str]
"""Code that a child can load: ``target``, an import string; or ``module``, ``file`` and perhaps ``attribute``."""

HEAVY = ("torch", "transformers", "datasets", "pandas", "numpy")


def reference(thing: Any) -> Reference:
    """How a child finds a module, a class or a function.

    Raises:
        ValueError: for anything that has no place in a file, such as an instance or a local class.
    """
    if isinstance(thing, str):
        return {"target": thing}
    if inspect.ismodule(thing):
        return {"module": thing.__name__, "file": thing.__file__ or ""}
    name = getattr(thing, "__qualname__", "")
    if not name or "<locals>" in name:
        raise ValueError(
            f"{thing!r} cannot be found by another process: move it to the top of a module, or name it in `plugins` as "
            '"pkg.module:attribute"'
        )
    return {"module": thing.__module__, "file": inspect.getsourcefile(thing) or "", "attribute": name}


def resolve_reference(found: Reference) -> Any:
    """The code behind a reference.

    Raises:
        ImportError: if it cannot be imported.
    """
    target = found.get("target")
    if target is not None:
        return load_target(target) if ":" in target else importlib.import_module(target)
    value: Any = _module(found["module"], found["file"])
    for part in filter(None, found.get("attribute", "").split(".")):
        value = getattr(value, part)
    return value


def _module(name: str, file: str) -> Any:
    if name in sys.modules:
        return sys.modules[name]
    try:
        return importlib.import_module(name)
    except ImportError:
        # Test files are often no importable modules.
        spec = importlib.util.spec_from_file_location(name, file) if file else None
        if spec is None or spec.loader is None:
            raise
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module


def call_in_child(
    function: str, arguments: Mapping[str, Any], *, env: Mapping[str, str] | None = None, killed: bool = False
) -> Any:
    """Call a function of this module in a fresh interpreter and return its JSON result.

    Args:
        function: its name.
        arguments: keyword arguments, JSON types.
        env: further environment variables.
        killed: whether the child ends by SIGKILL; the result is then None.

    Raises:
        RuntimeError: if the child ends otherwise than expected, with what it wrote to standard error.
    """
    with tempfile.TemporaryDirectory() as folder:
        job, result = Path(folder) / "job.json", Path(folder) / "result.json"
        job.write_text(json.dumps({"path": sys.path, "function": function, "arguments": dict(arguments)}), "utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "tunekit.testing.children", str(job), str(result)],
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if done.returncode != (-9 if killed else 0):
            raise RuntimeError(f"the child ended with {done.returncode}:\n{done.stderr}")
        return None if killed else json.loads(result.read_text("utf-8"))


def request_digests(
    benchmark: Reference, source: str | None, options: Mapping[str, Any], limit: int | None = None
) -> list[list[str]]:
    """Id and hash of the request of every row, in order."""
    made = resolve_reference(benchmark)()
    rows = list(made.rows(None if source is None else Path(source), options))[:limit]
    return digests(made, rows)


def digests(benchmark: Any, rows: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """Id and hash of the request of each row."""
    return [
        [str(row["id"]), hashlib.sha256(repr(benchmark.request(row)).encode("utf-8", "surrogatepass")).hexdigest()]
        for row in rows
    ]


def check_data(plugins: Sequence[Reference], data: str, format: str) -> dict[str, Any]:
    """What ``check`` says of a step that reads ``data``, which heavy modules that imported, and the rows."""
    from tunekit.pipeline import Pipeline
    from tunekit.testing import toys
    from tunekit.testing.sessions import isolated_session

    session = isolated_session(*map(resolve_reference, plugins), toys)
    findings = Pipeline(model="toy-model").step("toy-read", data=data, format=format).check(session)
    read = session.resolve_dataset(data, format=format)
    return {
        "errors": [str(finding) for finding in findings if finding.level == "error"],
        "heavy": [name for name in HEAVY if name in sys.modules],
        "fingerprint": read.fingerprint(),
        "rows": list(read.rows()),
    }


def track(plugins: Sequence[Reference], name: str, options: Mapping[str, Any], workdir: str, kill_at: int) -> None:
    """Run toy steps with a tracker, and die in the second."""
    from tunekit.pipeline import Pipeline
    from tunekit.testing import toys
    from tunekit.testing.sessions import isolated_session

    session = isolated_session(*map(resolve_reference, plugins), toys)
    line = Pipeline(model="toy-model").step("toy-work").step("toy-work", name="second", kill_at=kill_at)
    line.track(name, **options).run(workdir, session=session)


def main(arguments: Sequence[str]) -> None:
    """``children JOB RESULT``: call the job's function and write what it returns."""
    job = json.loads(Path(arguments[0]).read_text("utf-8"))
    sys.path[:] = job["path"]
    found = globals()[job["function"]](**job["arguments"])
    Path(arguments[1]).write_text(json.dumps(found), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
