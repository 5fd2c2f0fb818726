"""Where MLflow keeps its runs, and how we ask it to behave. Nothing here imports MLflow."""

from __future__ import annotations

import logging
import os
import sqlite3
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path


def is_remote() -> bool:
    """Whether MLFLOW_TRACKING_URI names a tracking server, which others may use as well."""
    return os.environ.get("MLFLOW_TRACKING_URI", "").startswith(("http://", "https://"))


def uri_of(out: Path) -> str:
    """Where runs are kept: MLFLOW_TRACKING_URI, or the SQLite file of OUT."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path(out).absolute()}/mlflow.db"


@cache
def use_write_ahead_log() -> None:
    """Let SQLite commit without waiting for the disk: 1 ms instead of 10 to 20.

    A power cut may then lose the last runs, but not the database; the ledger has them.
    """
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def prepare(connection: object, _: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            with suppress(sqlite3.OperationalError):  # a file system without shared memory
                connection.execute("PRAGMA journal_mode=WAL").close()
                connection.execute("PRAGMA synchronous=NORMAL").close()

    event.listen(Engine, "connect", prepare)


def be_quiet() -> None:
    """Keep MLflow from printing, and from calling home; before it is imported and after."""
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    }.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", module=r"(mlflow|alembic|sqlalchemy|google|pydantic)")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
