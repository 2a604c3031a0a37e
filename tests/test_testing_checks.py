"""check_plugin and ``tunekit plugins check`` on distributions that are really there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tunekit.errors import UnknownNameError
from tunekit.testing import Check, check_plugin, fake_dist, run_with

CHECK = """
import json
from tunekit.testing import check_plugin
print(json.dumps({check.name: [check.problem, check.skipped] for check in check_plugin(NAME)}))
"""


def checked(site: Path, name: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = run_with(site, CHECK.replace("NAME", repr(name)))
    return found


def problems(found: dict[str, list[str]]) -> dict[str, str]:
    return {name: problem for name, (problem, _) in found.items() if problem}


def cli(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "tunekit.cli", "plugins", "check", *arguments]
    env = {**os.environ, "PYTHONPATH": path, "COLUMNS": "200"}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)


def test_a_good_distribution_has_no_problem(tmp_path: Path) -> None:
    fake_dist(tmp_path, "acme-rl")
    found = checked(tmp_path, "Acme.RL")
    assert problems(found) == {}
    assert not any(skipped for _, skipped in found.values())


def test_the_kinds_of_fake_distributions(tmp_path: Path) -> None:
    fake_dist(tmp_path, "acme-broken", kind="broken-import")
    fake_dist(tmp_path, "acme-future", kind="future-api")
    broken = problems(checked(tmp_path, "acme-broken"))
    assert list(broken) == ["entry_point_loads"]
    assert "RuntimeError: the import of acme-broken fails" in broken["entry_point_loads"]
    assert 'acme_broken/plugin.py", line 3' in broken["entry_point_loads"], "the traceback is there"
    future = problems(checked(tmp_path, "acme-future"))
    assert set(future) == {"api_version_is_stated", "session_loads_it"}


def test_a_plugin_that_ends_the_process_is_a_failure_and_not_the_end(tmp_path: Path) -> None:
    fake_dist(tmp_path, "acme-exit", source="import sys\nsys.exit(3)\n")
    assert "SystemExit: 3" in problems(checked(tmp_path, "acme-exit"))["entry_point_loads"]


DECORATED = """
from tunekit.plugins import benchmark

api_version = 1


@benchmark(name="capitals", summary="Capitals of Europe", sample=True)
class Capitals:
    def rows(self, source, options):
        yield {"id": "0"}

    def request(self, row):
        raise NotImplementedError

    def judge(self, row, response):
        raise NotImplementedError

    def protocol(self):
        return {}
"""


def test_what_a_packaged_plugin_decorates_is_checked_too(tmp_path: Path) -> None:
    fake_dist(tmp_path, "acme-fine", source=DECORATED)
    assert problems(checked(tmp_path, "acme-fine")) == {}
    fake_dist(tmp_path, "acme-off", source=DECORATED.replace("judge(self, row, response)", "judge(self, response)"))
    assert problems(checked(tmp_path, "acme-off")) == {
        "targets_have_the_right_shape": "the target acme_off.plugin:Capitals is no benchmark: its judge cannot be "
        "called as judge(row, response); it is judge(self, response)"
    }


NEEDS = """
from tunekit.plugins import ExporterSpec, hookimpl

api_version = 1


@hookimpl
def tunekit_exporters():
    return [ExporterSpec(name="onyx", target="acme_x.component:Exporter", summary="Writes ONYX", requires=("onyx>=2",))]
"""


def test_a_component_whose_packages_are_missing_is_skipped_and_an_extra_covers_it(tmp_path: Path) -> None:
    fake_dist(tmp_path, "acme-x", source=NEEDS, requires=('onyx>=2; extra == "onyx"',))
    found = checked(tmp_path, "acme-x")
    assert problems(found) == {}
    skipped = {name: why for name, (_, why) in found.items() if why}
    assert skipped == dict.fromkeys(
        ("targets_can_be_imported", "targets_have_the_right_shape"), "exporter onyx needs onyx>=2"
    )


def test_a_distribution_that_is_not_there_has_near_names() -> None:
    with pytest.raises(UnknownNameError) as caught:
        check_plugin("tunekit-tlr")
    assert caught.value.suggestions[0] == "tunekit-trl"
    assert caught.value.fix == "type tunekit-trl"


def test_a_distribution_without_a_plugin() -> None:
    with pytest.raises(UnknownNameError, match="'packaging' has a tunekit plugin") as caught:
        check_plugin("packaging")
    assert '[project.entry-points.tunekit] packaging = "package.plugin"' in caught.value.fix


def test_the_command_passes_a_good_one(tmp_path: Path) -> None:
    fake_dist(tmp_path, "acme-rl")
    done = cli(tmp_path, "acme-rl")
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    assert all(line.startswith("ok ") for line in lines)
    assert last == f"acme-rl: {len(lines)} checks passed"


def test_the_command_fails_a_bad_one_in_text_and_json(tmp_path: Path) -> None:
    fake_dist(tmp_path, "acme-loud", source="print('hello')\napi_version = 1\n")
    done = cli(tmp_path, "acme-loud")
    assert done.returncode == 1
    assert "failed import is silent\n    importing the entry point writes: 'hello'" in done.stdout
    assert "acme-loud: 2 of " in done.stdout
    done = cli(tmp_path, "acme-loud", "--json")
    data = json.loads(done.stdout)
    assert (done.returncode, data["ok"], data["exit_code"], data["distribution"]) == (1, False, 1, "acme-loud")
    failed = [Check(**row).name for row in data["checks"] if row["problem"]]
    assert failed == ["import_is_silent", "specs_are_valid"]


def test_the_command_names_the_nearest_distribution(tmp_path: Path) -> None:
    fake_dist(tmp_path, "acme-rl")
    done = cli(tmp_path, "acme-lr")
    assert done.returncode == 2
    assert "acme-rl" in done.stderr and "No installed distribution 'acme-lr' has a tunekit plugin" in done.stderr
