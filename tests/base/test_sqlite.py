"""Databases: opened alike, and begun anew when damaged."""

import sqlite3

import pytest

from lora_trainer.base.sqlite import open_database

SCHEMA = "create table if not exists jobs (id integer primary key, name text)"


def fill(path, rows=1):
    database = open_database(path, SCHEMA)
    with database:
        database.executemany("insert into jobs (name) values (?)", [("zib" * 99,)] * rows)
    database.close()


@pytest.mark.parametrize("durable, level", [(True, 2), (False, 0)])
def test_it_is_there_with_its_tables_and_keeps_what_is_written(tmp_path, durable, level):
    path = tmp_path / "new" / "jobs.sqlite3"
    fill(path)
    database = open_database(path, SCHEMA, durable=durable)
    row = database.execute("select * from jobs").fetchone()
    assert row["id"] == 1 and row["name"] == "zib" * 99
    for name, value in (("journal_mode", "wal"), ("synchronous", level), ("foreign_keys", 1)):
        assert database.execute(f"pragma {name}").fetchone()[0] == value
    database.close()


def test_a_damaged_one_is_kept_under_another_name_and_begun_anew(tmp_path):
    path, renamed = tmp_path / "jobs.sqlite3", []
    path.write_bytes(b"no database at all" * 100)
    (tmp_path / "jobs.sqlite3-wal").write_bytes(b"journal")
    database = open_database(path, SCHEMA, on_damage=renamed.append)
    assert database.execute("select count(*) from jobs").fetchone()[0] == 0
    database.close()
    [kept] = renamed
    assert kept.read_bytes() == b"no database at all" * 100 and kept.parent == tmp_path
    assert kept.name.startswith("jobs-broken-") and kept.suffix == ".sqlite3"


def test_damage_behind_the_beginning_is_found_where_asked_for(tmp_path):
    path, renamed = tmp_path / "jobs.sqlite3", []
    fill(path, rows=200)
    data = bytearray(path.read_bytes())
    data[3 * 4096 : 4 * 4096] = b"\xff" * 4096
    path.write_bytes(data)
    open_database(path, SCHEMA, on_damage=renamed.append).close()
    assert not renamed
    open_database(path, SCHEMA, check=True, on_damage=renamed.append).close()
    assert len(renamed) == 1


def test_what_the_disk_refuses_is_no_damage(tmp_path):
    (tmp_path / "jobs.sqlite3").mkdir()
    with pytest.raises(sqlite3.OperationalError):
        open_database(tmp_path / "jobs.sqlite3", SCHEMA, on_damage=pytest.fail)
    assert (tmp_path / "jobs.sqlite3").is_dir()
