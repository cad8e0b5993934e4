"""SQLite databases: opened alike everywhere; a damaged one is renamed and replaced by an empty
one, so that nobody is locked out of their own data.
"""

import logging
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)


def open_database(
    path: Path,
    schema: str,
    *,
    durable: bool = True,
    check: bool = False,
    on_damage: Callable[[Path], None] = lambda renamed: None,
) -> sqlite3.Connection:
    """Open a database and create the tables of `schema` that it lacks; any thread may use it, one
    at a time.

    With `durable`, commits survive a power cut. A damaged file is renamed and replaced by a new
    one; `on_damage` is called with its new name. With `check` the whole file is read for damage,
    else only its beginning. Raises OSError and sqlite3.OperationalError (disk full, no permission).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return _open(path, schema, durable, check)
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:
        on_damage(_rename_damaged(path, error))
        return _open(path, schema, durable, check)


def _rename_damaged(path: Path, error: sqlite3.DatabaseError) -> Path:
    """Rename a damaged database and delete its journals; returns its new path."""
    renamed = path.with_name(f"{path.stem}-broken-{time.strftime('%Y%m%d-%H%M%S')}{path.suffix}")
    log.warning("%s is damaged (%s); it is kept as %s and begun anew", path, error, renamed.name)
    path.replace(renamed)
    for journal in ("-wal", "-shm"):
        path.with_name(path.name + journal).unlink(missing_ok=True)
    return renamed


def _open(path: Path, schema: str, durable: bool, check: bool) -> sqlite3.Connection:
    database = sqlite3.connect(path, check_same_thread=False, timeout=30)
    try:
        database.row_factory = sqlite3.Row
        database.execute("pragma journal_mode=wal")
        database.execute(f"pragma synchronous={'full' if durable else 'off'}")
        database.execute("pragma foreign_keys=on")
        if check:
            found = database.execute("pragma quick_check(1)").fetchone()[0]
            if found != "ok":
                raise sqlite3.DatabaseError(found)
        database.executescript(schema)
    except BaseException:
        database.close()
        raise
    return database
