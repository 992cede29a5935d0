"""Events to subscribers, each with a bounded queue.

    subscriber    a client's open stream; it knows the version that it has of each topic
    cut off       a subscriber that does not keep up: its stream ends, and it comes back with its versions

A subscriber is registered before the table that it gets is read, and skips events that the table had already.
Called by server.py and, through it, commit.py.
"""

from __future__ import annotations

import asyncio
from collections import deque

from fastray.gcs.table import Event
from fastray.gcs.tables import CHANNEL
from fastray.gcs.wire import Notice

QUEUE_EVENTS_MAX = 8192
NOTICE_ROWS_MAX = 512


class Subscriber:
    def __init__(self, client: bytes, topics: dict[str, int]) -> None:
        self.client = client
        self.topics = topics
        self.cut_off = False
        self._queue: deque[Event] = deque()
        self._wake = asyncio.Event()

    def offer(self, event: Event) -> None:
        if len(self._queue) >= QUEUE_EVENTS_MAX:
            self.cut()
        if not self.cut_off:
            self._queue.append(event)
            self._wake.set()

    def cut(self) -> None:
        self.cut_off = True
        self._queue.clear()
        self._wake.set()

    async def take(self) -> list[Notice]:
        """What has happened, at least one event; empty when cut off."""
        while not self._queue and not self.cut_off:
            self._wake.clear()
            await self._wake.wait()
        notices: list[Notice] = []
        for _ in range(min(len(self._queue), NOTICE_ROWS_MAX)):
            event = self._queue.popleft()
            if event.version:
                if event.version <= self.topics.get(event.topic, -1):
                    continue
                self.topics[event.topic] = event.version
            if notices and notices[-1].topic == event.topic and event.version:
                notices[-1].version = event.version
                notices[-1].rows.append((event.key, event.value))
            else:
                notices.append(Notice(event.topic, event.version, False, [(event.key, event.value)]))
        return notices


class Publisher:
    def __init__(self) -> None:
        self._by_topic: dict[str, set[Subscriber]] = {}
        self._by_client: dict[bytes, set[Subscriber]] = {}

    def add(self, subscriber: Subscriber) -> None:
        for topic in subscriber.topics:
            self._by_topic.setdefault(topic, set()).add(subscriber)
        self._by_client.setdefault(subscriber.client, set()).add(subscriber)

    def remove(self, subscriber: Subscriber) -> bool:
        """Whether it was the client's last."""
        for topic in subscriber.topics:
            listeners = self._by_topic.get(topic)
            if listeners is not None:
                listeners.discard(subscriber)
                if not listeners:
                    del self._by_topic[topic]
        streams = self._by_client[subscriber.client]
        streams.discard(subscriber)
        if not streams:
            del self._by_client[subscriber.client]
        return not streams

    def publish(self, events: list[Event], callbacks: list[tuple[bytes, Event]]) -> None:
        for event in events:
            for subscriber in self._by_topic.get(event.topic, ()):
                subscriber.offer(event)
        for client, event in callbacks:
            for subscriber in self._by_client.get(client, ()):
                subscriber.offer(event)

    def cut_all(self) -> None:
        """The server stops."""
        for streams in self._by_client.values():
            for subscriber in streams:
                subscriber.cut()

    @staticmethod
    def is_table(topic: str) -> bool:
        return not topic.startswith(CHANNEL)
