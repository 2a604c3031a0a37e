"""How long it takes to find N installed plugins: tunekit against plain pluggy.

Run it with ``python benchmarks/discovery.py [N ...] [--rounds R]``. It writes N real distributions into a temporary
folder and measures CPU time of fresh interpreters, less that of the same interpreter without any of them, least of R
rounds. Plain pluggy is ``PluginManager.load_setuptools_entrypoints`` plus one call of the registration hook; it stops
at the first plugin that fails, and knows neither distribution nor version of what it loads.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tunekit.testing import fake_dist

TUNEKIT = """
from tunekit import Session
session = Session()
found = len([e for e in session.components() if e.component.provider.startswith("many-")])
session.plugins()
"""

PLUGGY = """
import pluggy
from tunekit.plugins import hookspecs
manager = pluggy.PluginManager("tunekit")
manager.add_hookspecs(hookspecs)
manager.load_setuptools_entrypoints("tunekit")
found = len([s for specs in manager.hook.tunekit_trainers() for s in specs if s.name.startswith("many-")])
"""

MEASURE = """
import json, resource
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([used.ru_utime + used.ru_stime, found]))
"""


def cpu_seconds(code: str, site: Path, cache: Path) -> tuple[float, int]:
    """CPU seconds of a fresh interpreter that runs ``code`` with ``site`` on its path, and how many it found."""
    path = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-c", code + MEASURE],
        env={**os.environ, "PYTHONPATH": path, "PYTHONPYCACHEPREFIX": str(cache)},
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, found = json.loads(done.stdout)
    return seconds, found


def measure(count: int, rounds: int) -> tuple[float, float]:
    """CPU seconds that ``count`` plugins cost with tunekit, and with plain pluggy."""
    with tempfile.TemporaryDirectory(prefix="tunekit-discovery-") as folder:
        full, empty, cache = Path(folder, "full"), Path(folder, "empty"), Path(folder, "cache")
        empty.mkdir()
        for number in range(count):
            name = f"many-{number:04d}"
            fake_dist(full, name, component=name, files={"heavy.py": "WEIGHTS = list(range(10))\n"})
        best: dict[tuple[str, Path], float] = {}
        for number in range(rounds + 1):
            for code in (TUNEKIT, PLUGGY):
                for site in (full, empty):
                    seconds, found = cpu_seconds(code, site, cache)
                    if found != (count if site == full else 0):
                        raise SystemExit(f"{found} of {count} plugins were found")
                    if number:  # the first round fills the bytecode cache
                        best[code, site] = min(best.get((code, site), 99.0), seconds)
    return best[TUNEKIT, full] - best[TUNEKIT, empty], best[PLUGGY, full] - best[PLUGGY, empty]


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description="Discovery of N plugins by tunekit and by plain pluggy.")
    parser.add_argument("counts", metavar="N", type=int, nargs="*", default=[300], help="how many plugins")
    parser.add_argument("--rounds", type=int, default=7, help="rounds; the least time counts")
    chosen = parser.parse_args()
    print(f"{'plugins':>8} {'tunekit':>10} {'pluggy':>10} {'ratio':>7}")
    for count in chosen.counts:
        tunekit, pluggy = measure(count, chosen.rounds)
        print(f"{count:>8} {tunekit * 1000:>7.0f} ms {pluggy * 1000:>7.0f} ms {tunekit / pluggy:>7.2f}")


if __name__ == "__main__":
    main()
