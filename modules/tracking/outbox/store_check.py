"""Whether a tracking store can be used, asked before any work: its URI, then the store itself.

A new SQLite store is made here, under a lock and as a draft: MLflow lays out its tables step by step, and a second
process that does so at the same time, or a kill, would leave a file that nothing can open.
"""

from __future__ import annotations

import errno
import os
import re
import sqlite3
import tempfile
import threading
import time
from contextlib import closing
from functools import partial
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit

import mlflow
import sqlalchemy
from filelock import BaseFileLock
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from ...system.atomic import draft_of, remove_abandoned
from ...system.paths import place_to_write
from ...system.process_locks import file_lock
from ...system.redaction import redact_text
from .store import NO_SERVER, be_brief, explain

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
HOST_AND_PORT = re.compile(r"(localhost|[\w.-]+:\d+)(/\S*)?")
OTHER = "tracking.tracking_uri=… or MLFLOW_TRACKING_URI (sqlite:///mlflow.db is a file that needs no server)"

NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS)
"""Errors of file systems that have no hard links, as those of memory sticks."""

SOMEBODY_WRITES = 3.0
"""Seconds since the last change of a file within which unfinished tables are somebody's who is making them now."""


def require_store(uri: str, seconds: float = 10.0) -> None:
    """Raises ValueError, in one line, if the tracking store can't be used or doesn't answer within `seconds`."""
    be_brief()
    if reason := wrong_form(uri):
        raise unusable(uri, reason, "Name it anew with")
    path = sqlite_file(uri)
    try:
        if path:
            make_store(path)
        within(seconds, partial(reach, uri))
        if is_database(uri):  # outside of the time limit: several processes may wait while one makes the tables
            with creation_lock(uri):
                ask(uri)
    except Exception as error:
        raise unusable(uri, *explain(error, uri)) from None  # a library's own message may hold a password


def unusable(uri: str, reason: str, remedy: str) -> ValueError:
    return ValueError(f"the tracking store {redact_text(uri)} can't be used: {reason}. {remedy} {OTHER}")


def is_database(uri: str) -> bool:
    return uri.partition(":")[0].partition("+")[0] in DATABASES


def sqlite_file(uri: str) -> Path | None:
    """The file of an SQLite store."""
    found = re.fullmatch(r"sqlite(?:\+\w+)?:///([^?]+)(\?.*)?", uri)
    return Path(found[1]) if found else None


def wrong_form(uri: str) -> str | None:
    """What is wrong with a URI that can't be one of a store; None where MLflow may be asked."""
    scheme, slashes, rest = uri.partition("://")
    if scheme != (lower := scheme.lower()) and slashes and (lower in ("http", "https", "file") or is_database(lower)):
        return f"the scheme is spelt in lower case, {redact_text(f'{lower}://{rest}')}"
    if scheme in ("http", "https"):
        return wrong_address(uri)
    if slashes and is_database(uri):
        if not scheme.startswith("sqlite"):
            return None
        if rest in ("", "/", "/:memory:"):
            return "a store in memory would end with this process"
        return None if rest.startswith("/") else f"a file is named with three slashes, sqlite:///{rest}"
    if scheme == "postgres":
        return f"the scheme is spelt postgresql, {redact_text('postgresql' + uri[len(scheme) :])}"
    if HOST_AND_PORT.fullmatch(uri):
        return f"a server's address begins with its scheme, http://{uri}"
    if Path(uri).suffix in (".db", ".sqlite", ".sqlite3") or uri.lower().startswith("sqlite:"):
        return f"a database file is named sqlite:///{re.sub('^(?i:sqlite|file):/*', '', uri)}"
    is_path = not slashes and not re.match(r"(?!file:)[a-z][\w+.-]+:", uri)  # arn:aws:… is a plugin's
    if (is_path or scheme == "file") and not uri.startswith(("databricks", "uc:")) and no_file_store():
        return (
            "MLflow 3 keeps no runs in a folder any more; `mlflow migrate-filestore` moves those of one to a database"
        )
    return None


def wrong_address(uri: str) -> str | None:
    """What is wrong with the host and port of an http URI."""
    try:
        parts = urlsplit(uri)
        host = parts.hostname
    except ValueError:
        return "its host can't be read: an IPv6 address stands in brackets, http://[::1]:5000"
    if not host:
        return "it names no host"
    if not re.fullmatch(r"[\w.-]+|[\da-f:.]+(%\w+)?", host):
        return f"{host!r} can't be the name of a host"
    try:
        return None if parts.port != 0 else "its port is 0: one is a number from 1 to 65535"
    except ValueError:
        return "its port is no number from 1 to 65535"


def no_file_store() -> bool:
    return os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() not in ("true", "1")


def within(seconds: float, function: partial[None]) -> None:
    """Calls the function; TimeoutError if that takes longer, whatever hangs."""
    failure: list[Exception] = []

    def work() -> None:
        try:
            function()
        except Exception as error:
            failure.append(error)

    working = threading.Thread(target=work, daemon=True)
    working.start()
    working.join(seconds)
    if working.is_alive():
        raise TimeoutError(f"no answer within {seconds:g} s")
    if failure:
        raise failure[0]


def reach(uri: str) -> None:
    """A server is asked something; to a database a connection is made, as MLflow itself would try for minutes."""
    if not is_database(uri):
        ask(uri)
        return
    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        if (path := sqlite_file(uri)) and path.stat().st_size:
            connection.execute(sqlalchemy.text("BEGIN IMMEDIATE"))  # refused where nothing can be written


def ask(uri: str) -> None:
    """Asks for an experiment, which an MLflow server knows or knows not; {} is what other services say to anything."""
    client = MlflowClient(uri)
    try:
        found = client.get_experiment_by_name("Default")
    except MlflowException as error:
        if error.error_code != "PERMISSION_DENIED":
            raise
        client.search_experiments(max_results=1)  # a server with users may show some of them their own alone
        return
    if found is not None and not found.experiment_id:
        raise ValueError(NO_SERVER)


def creation_lock(uri: str) -> BaseFileLock:
    """Of this user on this machine, for one store."""
    place = sqlite_file(uri)
    name = sha256(str(place.resolve() if place else uri).encode()).hexdigest()[:16]
    user = os.getuid() if hasattr(os, "getuid") else 0
    return file_lock(Path(tempfile.gettempdir()) / f"moyun-store-{user}-{name}.lock")


def make_store(path: Path) -> None:
    """Makes the SQLite store where there is none; otherwise sees to it that its tables are those of this MLflow.

    A link stays, and the file that it leads to is made. ValueError where a pipe or device is there.
    """
    path = place_to_write(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "this is a folder", str(path))
    if is_empty(path):
        with creation_lock(f"sqlite:///{path}"):
            if is_empty(path):
                lay_out(path)
    while (wrong := wrong_tables(path)) and time.time() - path.stat().st_mtime < SOMEBODY_WRITES:
        time.sleep(0.1)
    if wrong:
        raise ValueError(wrong)


def is_empty(path: Path) -> bool:
    return not path.exists() or not path.stat().st_size


def lay_out(path: Path) -> None:
    """The tables and MLflow's first experiment, in a draft that becomes the file."""
    draft = draft_of(path)
    if below := next((parent for parent in path.parents if parent.exists() and not parent.is_dir()), None):
        raise NotADirectoryError(errno.ENOTDIR, "this is no folder", str(below))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path.parent)
        draft.write_bytes(b"")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    try:
        MlflowClient(f"sqlite:///{draft.absolute()}").search_experiments(max_results=1)
        if path.exists():  # and empty
            path.unlink()
        try:
            os.link(draft, path)
        except FileExistsError:  # somebody without the lock was faster: theirs stays
            pass
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            draft.rename(path)
    finally:
        draft.unlink(missing_ok=True)


def wrong_tables(path: Path) -> str | None:
    """What keeps this MLflow from using a file's tables; None where they are its own, or there are none of MLflow's."""
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True)) as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not {"alembic_version", "experiments", "runs"} & tables:
            return None
        versions = database.execute("SELECT version_num FROM alembic_version") if "alembic_version" in tables else ()
        version = next((str(found) for (found,) in versions), None)
        runs = database.execute("SELECT count(*) FROM runs").fetchone()[0] if "runs" in tables else 0
    newest, known = revisions()
    if version == newest:
        return None
    if not runs:
        return f"its tables are half made or another MLflow's, without any run: move {path} away, and it is made anew"
    if version in known:
        return f"its tables are of an earlier MLflow: copy it, then run `mlflow db upgrade sqlite:///{path}`"
    return f"its tables are of a later MLflow than {mlflow.__version__}: install the MLflow that made them"


def revisions() -> tuple[str | None, set[str]]:
    """(the newest, all) versions of the tables that this MLflow knows."""
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
    return scripts.get_current_head(), {script.revision for script in scripts.walk_revisions()}
