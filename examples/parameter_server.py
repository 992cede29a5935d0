"""A parameter server, synchronous and asynchronous: actors that hold a model's weights, actors that compute gradients.

    python examples/parameter_server.py                  # both, and how many updates a second each makes
    python examples/parameter_server.py --mode async --workers 4

The model is a network of one hidden layer that tells two interleaved spirals apart. In the synchronous form each
round waits for the gradients of all workers and applies their mean; in the asynchronous form a worker's gradient is
applied when it comes, and the worker goes on with the weights as they are then (`wait` says whose it is). The
weights go to all workers as one object that nobody copies.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

import fastray

POINTS, HIDDEN, BATCH = 2000, 64, 256
GOAL = 0.97  # accuracy on points that were not trained on
Weights = list[np.ndarray]


def spirals(seed: int, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Points of two spirals with some noise, shape (points, 2), and which spiral each is of."""
    random = np.random.default_rng(seed)
    label = np.arange(points) % 2
    turn = np.sqrt(random.uniform(0.02, 1, points)) * 2.5 * np.pi
    angle = turn + np.pi * label
    place = np.stack([turn * np.cos(angle), turn * np.sin(angle)], axis=1) / 8
    return place + random.normal(0, 0.015, place.shape), label


class Model:
    """A network of one hidden layer in numpy: features of the place, tanh, logistic loss."""

    @staticmethod
    def features(x: np.ndarray) -> np.ndarray:
        radius, angle = np.hypot(x[:, 0], x[:, 1]), np.arctan2(x[:, 1], x[:, 0])
        waves = [f(k * angle) * np.cos(m * radius) for f in (np.cos, np.sin) for k in (1, 2) for m in (4, 8)]
        return np.stack([x[:, 0], x[:, 1], radius, *waves, *(np.sin(8 * x).T), *(np.cos(8 * x).T)], axis=1)

    @staticmethod
    def start(inputs: int) -> Weights:
        random = np.random.default_rng(0)
        first = random.normal(0, inputs**-0.5, (inputs, HIDDEN))
        return [first, np.zeros(HIDDEN), random.normal(0, HIDDEN**-0.5, HIDDEN), np.zeros(1)]

    @staticmethod
    def probability(weights: Weights, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        hidden = np.tanh(x @ weights[0] + weights[1])
        return 1 / (1 + np.exp(-(hidden @ weights[2] + weights[3]))), hidden

    @staticmethod
    def gradient(weights: Weights, x: np.ndarray, label: np.ndarray) -> Weights:
        probability, hidden = Model.probability(weights, x)
        error = (probability - label) / len(label)
        back = np.outer(error, weights[2]) * (1 - hidden**2)
        return [x.T @ back, back.sum(0), hidden.T @ error, np.array([error.sum()])]


@fastray.remote
class ParameterServer:
    """The weights; gradients are applied with momentum."""

    def __init__(self, rate: float) -> None:
        self.weights = Model.start(Model.features(np.zeros((1, 2))).shape[1])
        self.speed = [np.zeros_like(w) for w in self.weights]
        self.rate = rate
        x, self.test_label = spirals(99, 1000)
        self.test = Model.features(x)

    def apply(self, *gradients: Weights) -> Weights:
        """The mean of the gradients is applied; returns the weights after it."""
        for i, parts in enumerate(zip(*gradients)):
            self.speed[i] = 0.9 * self.speed[i] - self.rate * np.mean(parts, axis=0)
            self.weights[i] = self.weights[i] + self.speed[i]
        return self.weights

    def get(self) -> Weights:
        return self.weights

    def accuracy(self) -> float:
        probability, _ = Model.probability(self.weights, self.test)
        return float(np.mean((probability > 0.5) == self.test_label))


@fastray.remote
class Worker:
    """A part of the data."""

    def __init__(self, index: int) -> None:
        x, self.label = spirals(index, POINTS)
        self.x = Model.features(x)
        self.random = np.random.default_rng(index)

    def gradient(self, weights: Weights) -> Weights:
        batch = self.random.integers(0, len(self.label), BATCH)
        return Model.gradient(weights, self.x[batch], self.label[batch])


def run(mode: str, count: int, updates: int, rate: float) -> float:
    """Trains until GOAL or `updates` gradients; the accuracy at the end."""
    server = ParameterServer.remote(rate)
    workers = [Worker.remote(i) for i in range(count)]
    fastray.get([worker.__ray_ready__.remote() for worker in workers])
    start, accuracy, done = time.perf_counter(), 0.0, 0
    weights = server.get.remote()
    pending = {worker.gradient.remote(weights): worker for worker in workers}
    report = max(1, updates // 50)
    while done < updates and accuracy < GOAL:
        if mode == "sync":
            weights = server.apply.remote(*pending)  # references: the server waits for them, not we
            pending = {worker.gradient.remote(weights): worker for worker in workers}
            done += count
            if done % (16 * count) == 0:
                fastray.wait([weights])  # not more than a few rounds ahead of the server
        else:
            (ready,), _ = fastray.wait(list(pending))
            worker = pending.pop(ready)
            pending[worker.gradient.remote(server.apply.remote(ready))] = worker
            done += 1
        if done % report < (count if mode == "sync" else 1):
            accuracy = fastray.get(server.accuracy.remote())
            print(f"{mode:5}: {done:6} gradients, accuracy {accuracy:.3f}")
    seconds = time.perf_counter() - start
    print(f"{mode:5}: {done / seconds:,.0f} gradients/s, accuracy {accuracy:.3f} after {seconds:.1f} s")
    return accuracy


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mode", choices=("sync", "async", "both"), default="both")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--updates", type=int, default=20_000, help="gradients, at most")
    parser.add_argument("--rate", type=float, default=0.1)
    arguments = parser.parse_args()
    fastray.init()
    modes = ("sync", "async") if arguments.mode == "both" else (arguments.mode,)
    reached = [run(mode, arguments.workers, arguments.updates, arguments.rate) for mode in modes]
    fastray.shutdown()
    return 0 if min(reached) >= GOAL else 1


if __name__ == "__main__":
    raise SystemExit(main())
