"""What heartbeats say: how long tasks take, and differences between two looks."""

from __future__ import annotations

import pytest

from fastray.cluster.load import SECONDS_UNKNOWN, SHORT_S, Differences, QueueMeter, without_short


def test_a_class_that_was_never_seen_at_work_has_an_unknown_time():
    meter = QueueMeter()
    assert meter.look([(0, 5, 100, 2)], 10.0) == {"0": [5.0, SECONDS_UNKNOWN]}


def test_the_time_of_a_task_is_workers_times_time_over_tasks_taken():
    meter = QueueMeter()
    meter.look([(3, 50, 0, 2)], 10.0)
    assert meter.look([(3, 40, 10, 2)], 11.0) == {"3": [40.0, 0.2]}
    faster = meter.look([(3, 20, 110, 2)], 12.0)["3"][1]
    assert 0.02 < faster < 0.2  # a mean of both
    assert meter.look([(3, 20, 110, 2)], 13.0)["3"][1] == faster  # nothing was taken: nothing is learned


def test_what_idle_workers_take_tells_nothing():
    meter = QueueMeter()
    meter.look([(0, 0, 0, 2)], 10.0)
    assert meter.look([(0, 0, 1, 2)], 20.0) == {}
    assert meter.look([(0, 1, 1, 2)], 20.1) == {"0": [1.0, SECONDS_UNKNOWN]}


class Store:
    """What a node has been said to have, as the load table keeps it."""

    def __init__(self):
        self.version, self.available, self.queues = 0, {}, {}

    def hear(self, said):
        """Whether everything has to be sent again."""
        if said.full:
            self.available, self.queues = {}, {}
        elif said.version not in (self.version, self.version + 1):
            return True
        self.version = said.version
        self.available.update(said.available)
        self.queues.update(said.queues)
        self.queues = {name: queue for name, queue in self.queues.items() if queue}
        return False


LOOKS = [
    ({"CPU": 2.0, "disk": 1.0}, {}),
    ({"CPU": 2.0, "disk": 1.0}, {}),
    ({"CPU": 0.0, "disk": 1.0}, {"0": [5.0, 0.1]}),
    ({"CPU": 0.0, "disk": 1.0}, {"0": [3.0, 0.1], "1": [1.0, 0.2]}),
    ({"CPU": 2.0, "disk": 1.0}, {"1": [1.0, 0.2]}),
    ({"CPU": 2.0, "disk": 0.0}, {}),
]


def test_differences_add_up_to_what_there_is():
    differences, store = Differences(), Store()
    for available, queues in LOOKS:
        differences.acknowledged(resync=store.hear(differences.next(available, queues)))
        assert (store.available, store.queues) == (available, queues)
    assert differences.next(*LOOKS[-1]) == (store.version, False, {}, {})


@pytest.mark.parametrize("lost", range(len(LOOKS) - 1))
@pytest.mark.parametrize("answer", [True, False], ids=["the answer", "the beat"])
def test_after_a_beat_without_an_answer_everything_is_sent(lost, answer):
    differences, store = Differences(), Store()
    for number, (available, queues) in enumerate(LOOKS):
        said = differences.next(available, queues)
        if number == lost:
            if answer:
                store.hear(said)
            continue
        assert said.full == (number in (0, lost + 1))
        differences.acknowledged(resync=store.hear(said))
        assert (store.available, store.queues) == (available, queues)


def test_a_store_that_has_lost_the_node_asks_for_everything():
    differences, store = Differences(), Store()
    for available, queues in LOOKS[:3]:
        differences.acknowledged(resync=store.hear(differences.next(available, queues)))
    store = Store()
    said = differences.next(*LOOKS[3])
    assert store.hear(said)
    differences.acknowledged(resync=True)
    differences.acknowledged(resync=store.hear(differences.next(*LOOKS[4])))
    assert (store.available, store.queues) == LOOKS[4]


def test_nothing_to_say_is_what_was_acknowledged():
    differences, store = Differences(), Store()
    assert not differences.are_none({}, {})  # the first beat says that the node is there
    for available, queues in LOOKS:
        before = differences.are_none(available, queues)
        said = differences.next(available, queues)
        assert not differences.are_none(available, queues)  # nobody has heard it
        assert before == (not said.full and not said.available and not said.queues)
        differences.acknowledged(resync=store.hear(said))
        assert differences.are_none(available, queues)


def test_short_queues_are_left_out():
    long, short = [1000.0, SHORT_S / 1000], [1000.0, SHORT_S / 1001]
    unknown = [1.0, SECONDS_UNKNOWN]
    assert without_short({"0": long, "1": short, "2": unknown}) == {"0": long, "2": unknown}
