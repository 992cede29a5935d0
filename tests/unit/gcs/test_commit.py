"""Group commit on a store that the test holds: who waits for what, what is published when, a disk that is full."""

from __future__ import annotations

import asyncio
import threading

from fastray.gcs import commit
from fastray.gcs.commit import Committer
from fastray.gcs.function_table import Value
from fastray.gcs.records import Node
from fastray.gcs.store import MemoryStore, StoreError
from fastray.gcs.table import Changes, Event


class HeldStore(MemoryStore):
    """Each write waits until it is let go; `fail` makes it fail."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Semaphore(0)
        self.let_go = threading.Semaphore(0)
        self.fail = False
        self.groups = []

    def append(self, group):
        self.begun.release()
        assert self.let_go.acquire(timeout=20)
        if self.fail:
            raise StoreError("no space left")
        self.groups.append(group)
        super().append(group)


class World:
    def __init__(self) -> None:
        self.store = HeldStore()
        self.published: list[str] = []
        self.committer = Committer(self.store, lambda events, _: self.published.extend(e.topic for e in events))

    def change(self, name: str, *, urgent: bool = False, row=None, table: str = "kv") -> None:
        changes = Changes()
        changes.rows[table, name.encode()] = row or Value(b"v")
        changes.events.append(Event(name, 1, b"", b""))
        changes.urgent = urgent
        self.committer.add(changes)

    async def begun(self) -> None:
        await asyncio.to_thread(self.store.begun.acquire)


def test_what_comes_during_a_write_is_the_next_group():
    async def run():
        world = World()
        world.change("a")
        first = asyncio.ensure_future(world.committer.settled())
        await world.begun()
        for name in "bcb":
            world.change(name)
        second = asyncio.ensure_future(world.committer.settled())
        world.store.let_go.release()
        await first
        assert not second.done()
        assert world.published == ["a"]
        world.store.let_go.release()
        await second
        assert [sorted(key for _, key, _ in group.rows) for group in world.store.groups] == [[b"a"], [b"b", b"c"]]
        assert world.published == ["a", "b", "c", "b"]
        await world.committer.settled()  # nothing to wait for
        await world.committer.close()

    asyncio.run(run())


def test_a_death_is_published_at_once_after_what_was_before_it():
    async def run():
        world = World()
        world.change("joined")
        world.change("died", urgent=True)
        assert world.published == ["joined", "died"]
        world.change("after")
        assert world.published == ["joined", "died"]
        world.store.let_go.release()
        await world.committer.settled()
        assert world.published == ["joined", "died", "after"]
        await world.committer.close()

    asyncio.run(run())


def test_a_row_that_changes_before_the_write_is_written_as_it_is_then():
    async def run():
        world = World()
        world.change("first")
        await world.begun()
        node = Node(b"n", "h:1", {})
        world.change("n", row=node, table="node")
        node.reason = "changed"
        world.store.let_go.release(2)
        await world.committer.settled()
        ((_, _, value),) = world.store.groups[1].rows
        assert b"changed" in value
        assert [group.durable for group in world.store.groups] == [True, True]
        world.change("o", table="object")
        world.store.let_go.release()
        await world.committer.settled()
        assert world.store.groups[2].durable is False
        await world.committer.close()

    asyncio.run(run())


def test_a_full_disk_answers_nobody_and_goes_on_when_there_is_room(monkeypatch):
    monkeypatch.setattr(commit, "RETRY_EVERY_S", 0.001)

    async def run():
        world = World()
        world.store.fail = True
        world.change("a")
        waiting = asyncio.ensure_future(world.committer.settled())
        for _ in range(3):
            await world.begun()
            world.store.let_go.release()
        await world.begun()
        assert world.committer.failing == "no space left"
        assert not waiting.done()
        assert world.published == []
        world.store.fail = False
        world.store.let_go.release()
        await waiting
        assert (world.committer.failing, world.published, len(world.store.groups)) == ("", ["a"], 1)
        await world.committer.close()

    asyncio.run(run())
