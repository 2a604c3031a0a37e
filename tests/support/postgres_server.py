"""A PostgreSQL server for tests, if its programs are installed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        there = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
        found = str(there[-1]) if there else None
    if found is None:
        pytest.skip(f"not run on PostgreSQL: there is no {name} here")
    return found


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """Starts a server in a temporary folder; gives the URL of an empty database. Skips where that cannot be."""
    pytest.importorskip("sqlalchemy", reason="not run on PostgreSQL: SQLAlchemy is not installed")
    pytest.importorskip("psycopg", reason="not run on PostgreSQL: psycopg is not installed")
    initdb, server = _program("initdb"), _program("postgres")
    as_user: dict[str, str] = {}
    if os.geteuid() == 0:  # the server refuses to run as root
        name = next((name for name in ("postgres", "nobody") if _is_user(name)), None)
        if name is None:
            pytest.skip("not run on PostgreSQL: there is no user but root")
        as_user = {"user": name}
    # Not in pytest's folder, which other users may not enter.
    with tempfile.TemporaryDirectory(prefix="tunekit-postgres-", ignore_cleanup_errors=True) as folder:
        if as_user:
            shutil.chown(folder, as_user["user"])
        with _served(Path(folder), initdb, server, as_user) as url:
            yield url


@contextlib.contextmanager
def _served(folder: Path, initdb: str, server: str, as_user: dict[str, str]) -> Iterator[str]:
    data = folder / "data"
    made = subprocess.run(
        [initdb, "-D", data, "-U", "tunekit", "-A", "trust", "-E", "UTF8", "--locale=C"],
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
        **as_user,  # type: ignore[call-overload]
    )
    if made.returncode:
        pytest.skip(f"not run on PostgreSQL: initdb fails: {made.stderr.strip()[-200:]}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = subprocess.Popen(
        [server, "-D", data, "-p", str(port), "-k", "", "-c", "listen_addresses=127.0.0.1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        **as_user,  # type: ignore[call-overload]
    )
    url = f"postgresql://tunekit@127.0.0.1:{port}/postgres"
    try:
        _wait(url, running)
        yield url
    finally:
        # A fast shutdown, which does not wait for clients.
        running.send_signal(signal.SIGINT)
        running.wait(30)


def _is_user(name: str) -> bool:
    import pwd

    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _wait(url: str, running: subprocess.Popen[bytes]) -> None:
    import time

    import psycopg

    for _ in range(150):
        try:
            psycopg.connect(url, connect_timeout=2).close()
            return
        except psycopg.OperationalError:
            assert running.poll() is None, "the server ended"
            time.sleep(0.1)
    pytest.fail("the server does not answer")
