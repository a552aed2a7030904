"""A PostgreSQL of the system's own, started for the tests and thrown away after them."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

Place = str | Path
_NOBODY = "nobody"  # it refuses to be run by root


def _programs() -> Path:
    """Where initdb and pg_ctl are, of the newest version. Without them: skipped, and a failure where CI is "true"."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    message = "no PostgreSQL in /usr/lib/postgresql: run scripts/install-postgres.sh as root"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


def _run(folder: Path, *command: str) -> None:
    """As somebody who is not root, who may not look at where root's tests are run."""
    prefix = ["setpriv", f"--reuid={_NOBODY}", "--regid=nogroup", "--clear-groups"] if os.getuid() == 0 else []
    done = subprocess.run(
        [*prefix, *command], cwd=folder, capture_output=True, text=True, env={"PATH": os.environ["PATH"], "LC_ALL": "C"}
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def postgres() -> Iterator[Callable[[], str]]:
    """Makes an empty schema and returns its URL. The server listens on a socket in its own folder and on no port."""
    programs = _programs()
    folder = Path(tempfile.mkdtemp(prefix="danlu-pg-"))  # short: a socket's path has a hundred characters at most
    if os.getuid() == 0:
        shutil.chown(folder, _NOBODY, "nogroup")
    data, numbers = folder / "data", itertools.count()
    initdb, ctl = (str(programs / name) for name in ("initdb", "pg_ctl"))
    options = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off -c max_connections=60"
    try:
        _run(folder, initdb, "-D", str(data), "-U", "keeper", "--auth=trust", "-E", "UTF8", "--no-sync")
        _run(folder, ctl, "-D", str(data), "-l", str(folder / "log"), "-o", options, "-w", "start")

        def make() -> str:
            name = f"votes{next(numbers)}"
            with psycopg.connect(f"host={folder} user=keeper dbname=postgres", autocommit=True) as connection:
                connection.execute(f"CREATE SCHEMA {name}")
            return f"postgresql://keeper@/postgres?host={folder}&options=-csearch_path%3D{name}"

        yield make
    finally:
        if (data / "postmaster.pid").exists():
            _run(folder, ctl, "-D", str(data), "-m", "immediate", "-w", "stop")
        shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A new store's place, on each of the two databases."""
    return tmp_path / "store" / "p.sqlite" if request.param == "sqlite" else request.getfixturevalue("postgres")()
