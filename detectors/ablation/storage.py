"""Where the runs of an ablation are shared out: an Optuna storage, and a lock over its takers."""

from __future__ import annotations

import threading
import warnings
import zlib
from types import TracebackType
from typing import Any

from filelock import FileLock

try:
    import optuna
except ModuleNotFoundError:
    raise ModuleNotFoundError("ablations need Optuna. Run: pip install 'vfmdistill[ablation]'") from None
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy import URL, Connection, create_engine, make_url, text
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import NullPool

from vfmdistill.errors import DistillError, InputError

_SUPPORTED = "sqlite:///FILE or postgresql://USER@HOST/DATABASE"


class PatientStorage(RDBStorage):
    """Optuna's storage, whose sign of life outlives a moment in which the database does not answer.

    Optuna's thread that gives it ends with its first failure, and the run would be taken for dead.
    """

    def record_heartbeat(self, trial_id: int) -> None:
        """Note that a trial is being worked on."""
        try:
            super().record_heartbeat(trial_id)
        except StorageInternalError as error:
            warnings.warn(f"the storage did not take a sign of life, trying again: {error}", stacklevel=2)


def open_storage(url: str, *, heartbeat: int) -> PatientStorage:
    """Return the storage of a URL.

    Args:
        url: ``sqlite:///FILE`` for the processes of one machine, ``postgresql://…`` for those of many.
        heartbeat: seconds between two signs of life of a run; after three without one it is taken for dead.

    Raises:
        InputError: the URL is of another kind.
        DistillError: the database cannot be opened.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise InputError(f"--storage is no URL; expected {_SUPPORTED}.") from None  # it may hold a password
    kind, shown = parsed.get_backend_name(), parsed.render_as_string()
    options: dict[str, Any] = {"pool_pre_ping": True}
    if kind == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise InputError(f"storage {shown} is no file, which runs could share; expected {_SUPPORTED}.")
        options["connect_args"] = {"timeout": 60}
    elif kind == "postgresql":
        if parsed.drivername == "postgresql":  # SQLAlchemy would take psycopg2
            parsed = parsed.set(drivername="postgresql+psycopg")
    else:
        raise InputError(f"storage {shown} is of {kind}; expected {_SUPPORTED}.")
    full = parsed.render_as_string(hide_password=False)
    try:
        # Two that come to an empty database would both make its tables.
        with Turn(parsed, "tables"), warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return PatientStorage(full, engine_kwargs=options, heartbeat_interval=heartbeat, grace_period=3 * heartbeat)
    except ImportError as error:
        raise InputError(f"storage {shown}: {error}. Run: pip install 'vfmdistill[ablation]'") from None
    except Exception as error:  # whatever the driver raises
        raise DistillError(f"cannot open the storage {shown}: {_first_line(error)}") from error


class Turn:
    """The turn to change what is planned and who does it: one process or thread has it at a time, on all machines.

    Optuna lets two takers of a SQLite file have the same trial, and has no lock of its own. Whoever dies loses the
    turn. It may be given back early, by `release`.

    Args:
        url: of the database.
        name: of what is changed; those of other names do not wait for each other, except on one file.
    """

    _here = threading.Lock()  # between threads: a file lock belongs to the process

    def __init__(self, url: URL, name: str) -> None:
        self._url = url
        self._key = zlib.crc32(f"vfmdistill:{name}".encode())
        self._file: FileLock | None = None
        self._connection: Connection | None = None
        self._held = False

    def __enter__(self) -> Turn:
        self._here.acquire()
        self._held = True
        try:
            if self._url.get_backend_name() == "sqlite":
                self._file = FileLock(f"{self._url.database}.lock")
                self._file.acquire()
            else:
                self._connection = create_engine(self._url, poolclass=NullPool).connect()
                self._connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": self._key})
                self._connection.commit()  # the lock is the session's
        except BaseException:
            self.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """Give the turn back, unless that was done."""
        if not self._held:
            return
        self._held = False
        try:
            if self._file is not None:
                self._file.release()
            if self._connection is not None:
                self._connection.close()  # which ends the session, and with it the lock
        finally:
            self._file = self._connection = None
            self._here.release()


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
