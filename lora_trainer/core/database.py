"""SQLite files: opened alike everywhere, and put aside when they are broken, so that nobody is locked out of their own pictures."""
import logging
import sqlite3
import time
from pathlib import Path

log = logging.getLogger(__name__)


def open_database(path: Path, schema: str, *, durable: bool = True) -> sqlite3.Connection:
    """Open a database and make the tables of `schema` that it lacks; every thread may use it, one at a time.

    `durable`: what was committed survives a power cut. A file that is no database any more is renamed and begun anew.
    Raises OSError and sqlite3.OperationalError (disk full, no permission).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return _open(path, schema, durable)
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:
        aside = path.with_name(f"{path.stem}-broken-{time.strftime('%Y%m%d-%H%M%S')}{path.suffix}")
        log.warning("%s is damaged (%s); it is kept as %s and begun anew", path, error, aside.name)
        path.replace(aside)
        for leftover in ("-wal", "-shm"):
            path.with_name(path.name + leftover).unlink(missing_ok=True)
        return _open(path, schema, durable)


def _open(path: Path, schema: str, durable: bool) -> sqlite3.Connection:
    database = sqlite3.connect(path, check_same_thread=False, timeout=30)
    try:
        database.row_factory = sqlite3.Row
        database.execute("pragma journal_mode=wal")
        database.execute(f"pragma synchronous={'full' if durable else 'off'}")
        database.execute("pragma foreign_keys=on")
        database.executescript(schema)
    except BaseException:
        database.close()
        raise
    return database
