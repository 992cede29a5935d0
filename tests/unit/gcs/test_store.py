"""The stores: what is appended comes back, together or not at all; one writer; a bounded history."""

from __future__ import annotations

import os

import pytest

from fastray.exceptions import InvalidOptionError
from fastray.gcs.store import Group, MemoryStore, StoreError, open_store
from fastray.gcs.store_sqlite import GROUPS_MAX, Reader, SqliteStore

ROWS = [("kv", b"a", b"1"), ("kv", b"b", b"2"), ("node", b"a", b"3")]


@pytest.fixture(params=["memory", "sqlite"])
def store(request, tmp_path):
    store = MemoryStore() if request.param == "memory" else SqliteStore(str(tmp_path / "gcs.db"))
    yield store
    store.close()


def test_rows_are_kept_replaced_and_deleted(store):
    store.append(Group(ROWS, [], True))
    store.append(Group([("kv", b"a", None), ("kv", b"b", b"4"), ("kv", b"none", None)], [], False))
    assert sorted(store.load()) == [("kv", b"b", b"4"), ("node", b"a", b"3")]


def test_history_is_found_by_key_newest_first(store):
    store.append(Group([], [(b"t", b"1"), (b"u", b"2"), (b"t", b"3")], False))
    assert store.history(b"", 2) == [b"3", b"2"]
    assert store.history(b"t", 10) == [b"3", b"1"]
    assert store.history(b"none", 10) == []


def test_a_database_is_read_again_and_belongs_to_its_user(tmp_path):
    path = tmp_path / "new" / "gcs.db"
    store = open_store(f"sqlite:{path}")
    store.append(Group(ROWS, [(b"t", b"1")], True))
    store.close()
    again = open_store(f"sqlite:{path}")
    assert sorted(again.load()) == ROWS
    assert again.history(b"", 5) == [b"1"]
    again.append(Group(ROWS, [], True))
    files = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    assert files == dict.fromkeys(("gcs.db", "gcs.db-wal", "gcs.db-shm", "gcs.db.lock"), 0o600)
    again.close()
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_durable_groups_are_synced_and_others_are_not(tmp_path):
    store = SqliteStore(str(tmp_path / "gcs.db"))
    levels = []
    for durable in (False, True, False):
        store.append(Group(ROWS, [], durable))
        levels.append(store._db.execute("PRAGMA synchronous").fetchone()[0])
    assert levels == [1, 2, 1]  # NORMAL, FULL, NORMAL
    assert store._db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    store.close()


def test_history_is_trimmed(tmp_path):
    store = SqliteStore(str(tmp_path / "gcs.db"), history_max=10)
    for number in range(100):
        store.append(Group([], [(b"t", b"%d" % number)], False))
    kept = store.history(b"", 1000)
    assert kept[0] == b"99"
    assert 10 <= len(kept) < 20
    store.close()


def test_a_second_server_is_refused(tmp_path):
    store = SqliteStore(str(tmp_path / "gcs.db"))
    with pytest.raises(StoreError, match="another server has this store open"):
        SqliteStore(str(tmp_path / "gcs.db"))
    store.close()
    SqliteStore(str(tmp_path / "gcs.db")).close()


def test_a_group_that_cannot_be_written_is_not_there_at_all(tmp_path):
    store = SqliteStore(str(tmp_path / "gcs.db"))
    store.append(Group(ROWS, [], True))
    store._db.execute("PRAGMA max_page_count = 20")  # a full disk
    with pytest.raises(StoreError, match="full"):
        store.append(Group([("kv", b"%d" % i, os.urandom(1000)) for i in range(1000)], [], True))
    assert sorted(store.load()) == ROWS
    store._db.execute("PRAGMA max_page_count = 100000")
    store.append(Group([("kv", b"c", b"5")], [], True))
    assert len(list(store.load())) == 4
    store.close()


def test_a_file_that_is_no_database_says_so(tmp_path):
    path = tmp_path / "gcs.db"
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(StoreError, match="not a database"):
        SqliteStore(str(path))


@pytest.mark.parametrize("url", ["", "memory:x", "sqlite:", "redis://host", "/path"])
def test_an_unknown_url_is_refused(url):
    with pytest.raises(InvalidOptionError, match="neither memory: nor sqlite:"):
        open_store(url)


# ---- a standby reads along ----------------------------------------------------------------------------


@pytest.fixture
def followed(tmp_path):
    store = SqliteStore(str(tmp_path / "gcs.db"), followed=True)
    store.append(Group(ROWS, [], True))
    reader = Reader(store.path)
    yield store, reader
    reader.close()
    store.close()


def test_a_reader_has_all_rows_and_then_the_news_in_order(followed):
    store, reader = followed
    assert sorted(reader.load()) == ROWS
    assert reader.news() == []
    store.append(Group([("kv", b"a", b"5")], [], True))
    store.append(Group([("kv", b"a", None), ("kv", b"c", b"6")], [], False))
    assert reader.news() == [("kv", b"a", b"5"), ("kv", b"a", None), ("kv", b"c", b"6")]
    assert reader.news() == []


def test_a_reader_that_missed_a_group_has_to_load_again(followed):
    store, reader = followed
    reader.load()
    for number in range(2 * GROUPS_MAX):
        store.append(Group([("kv", b"a", b"%d" % number)], [], False))
    assert reader.news() is None
    assert ("kv", b"a", b"%d" % (2 * GROUPS_MAX - 1)) in reader.load()
    assert reader.news() == []


def test_a_reader_of_a_server_that_is_not_followed_has_to_load_again(tmp_path):
    store = SqliteStore(str(tmp_path / "gcs.db"))
    reader = Reader(store.path)
    assert reader.load() == []
    store.append(Group(ROWS, [], True))
    assert reader.news() is None
    assert sorted(reader.load()) == ROWS
    assert reader.news() == []
    reader.close()
    store.close()
