"""Runs the Python code of documentation pages, one after another, each in a namespace and an empty folder of its own.

    python run_pages.py PAGE.md ... > results.json

One process for many pages: what costs the time is to import the libraries. A page is run as ``__main__``, as a reader
would run it. Standard output of the pages goes to standard error.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import runpy
import sys
import tempfile
import traceback
from pathlib import Path

BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def code_of(page: Path) -> str:
    """All Python blocks of a page, as one program."""
    return "\n".join(BLOCK.findall(page.read_text(encoding="utf-8")))


def run(page: Path) -> dict[str, object]:
    """What became of a page: the error, if there was one, and whether torch is loaded after it."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as scripts, tempfile.TemporaryDirectory() as folder:
        script = Path(scripts) / f"{page.stem}.py"
        script.write_text(code_of(page), encoding="utf-8")
        os.chdir(folder)
        try:
            with contextlib.redirect_stdout(sys.stderr):
                runpy.run_path(str(script), run_name="__main__")
            error = ""
        except (Exception, SystemExit):
            error = traceback.format_exc()
        finally:
            os.chdir(before)
    return {"error": error, "torch": "torch" in sys.modules}


if __name__ == "__main__":
    print(json.dumps({name: run(Path(name)) for name in sys.argv[1:]}))
