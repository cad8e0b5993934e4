"""SQLite files: opened alike everywhere, and put aside when they are broken, so that nobody is
locked out of their own pictures.
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
    on_damage: Callable[[Path], None] = lambda aside: None,
) -> sqlite3.Connection:
    """Open a database and make the tables of `schema` that it lacks; every thread may use it, one
    at a time.

    `durable`: what was committed survives a power cut. A file that is no database any more is
    renamed and begun anew; `on_damage` is told its new name. With `check` all of it is read for
    that, else only its beginning. Raises OSError and sqlite3.OperationalError (disk full, no
    permission).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return _open(path, schema, durable, check)
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:
        aside = path.with_name(f"{path.stem}-broken-{time.strftime('%Y%m%d-%H%M%S')}{path.suffix}")
        log.warning("%s is damaged (%s); it is kept as %s and begun anew", path, error, aside.name)
        path.replace(aside)
        for leftover in ("-wal", "-shm"):
            path.with_name(path.name + leftover).unlink(missing_ok=True)
        on_damage(aside)
        return _open(path, schema, durable, check)


def _open(path: Path, schema: str, durable: bool, check: bool) -> sqlite3.Connection:
    database = sqlite3.connect(path, check_same_thread=False, timeout=30)
    try:
        database.row_factory = sqlite3.Row
        database.execute("pragma journal_mode=wal")
        database.execute(f"pragma synchronous={'full' if durable else 'off'}")
        database.execute("pragma foreign_keys=on")
        if check and (found := database.execute("pragma quick_check(1)").fetchone()[0]) != "ok":
            raise sqlite3.DatabaseError(found)
        database.executescript(schema)
    except BaseException:
        database.close()
        raise
    return database
