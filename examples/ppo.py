"""Proximal policy optimisation, asynchronous: actors simulate CartPole, the learner takes whoever is ready.

    python examples/ppo.py                       # solves CartPole-v1, prints the return, draws ppo_return.png

Each simulator keeps its environments and collects rollouts with the weights it was given last. The learner waits for
the first that is ready, makes an update of that rollout (clipped objective, generalised advantages, Adam: Schulman et
al., 2017), stores the new weights once with `put` and sends that simulator on. So the others simulate while it
learns; their data is from a policy a few updates old, which the clipped ratio allows for.
"""

from __future__ import annotations

import argparse
import time
from collections import deque
from dataclasses import dataclass

import gymnasium
import numpy as np

import fastray

ENVIRONMENT, SOLVED, EPISODES = "CartPole-v1", 475.0, 100  # the mean return of so many episodes
HIDDEN, STEPS, COPIES = 64, 128, 8  # of a rollout: steps of each of the simulator's environments
DISCOUNT, SMOOTHING, CLIP, EPOCHS, BATCH = 0.99, 0.95, 0.2, 6, 256
Weights = list[np.ndarray]


@dataclass
class Rollout:
    """Arrays of shape (steps, copies) and, for `seen`, (steps, copies, inputs); the returns of ended episodes."""

    seen: np.ndarray
    actions: np.ndarray
    chances: np.ndarray  # logarithms, under the policy that acted
    advantages: np.ndarray
    targets: np.ndarray
    returns: list[float]


class Network:
    """Policy and value, a hidden layer each; gradients by hand."""

    @staticmethod
    def start(inputs: int, outputs: int, seed: int) -> Weights:
        random = np.random.default_rng(seed)
        sizes = [(inputs, HIDDEN, 1.0), (HIDDEN, outputs, 0.01), (inputs, HIDDEN, 1.0), (HIDDEN, 1, 1.0)]
        weights: Weights = []
        for rows, columns, scale in sizes:
            weights += [scale * random.normal(0, rows**-0.5, (rows, columns)), np.zeros(columns)]
        return weights

    @staticmethod
    def forward(w: Weights, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(logarithms of the chances, value, hidden layer of the policy, of the value)."""
        policy, value = np.tanh(x @ w[0] + w[1]), np.tanh(x @ w[4] + w[5])
        logits = policy @ w[2] + w[3]
        logits = logits - logits.max(axis=-1, keepdims=True)
        chances = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        return chances, (value @ w[6] + w[7])[..., 0], policy, value

    @staticmethod
    def gradient(w: Weights, x: np.ndarray, action: np.ndarray, old: np.ndarray, advantage: np.ndarray,
                 target: np.ndarray) -> Weights:  # fmt: skip
        """Of the clipped objective with an entropy bonus, and of the squared error of the value."""
        chances, value, policy_hidden, value_hidden = Network.forward(w, x)
        rows, n = np.arange(len(x)), len(x)
        ratio = np.exp(chances[rows, action] - old)
        clipped = np.where(advantage > 0, ratio > 1 + CLIP, ratio < 1 - CLIP)
        pull = np.where(clipped, 0.0, -ratio * advantage) / n  # d loss / d log chance of the action taken
        p = np.exp(chances)
        to_logits = -p * pull[:, None]
        to_logits[rows, action] += pull
        entropy = -(p * chances).sum(axis=1, keepdims=True)
        to_logits += 0.01 * p * (chances + entropy) / n
        to_value = (0.5 * (value - target) / n)[:, None]
        back_p = to_logits @ w[2].T * (1 - policy_hidden**2)
        back_v = to_value @ w[6].T * (1 - value_hidden**2)
        return [x.T @ back_p, back_p.sum(0), policy_hidden.T @ to_logits, to_logits.sum(0),
                x.T @ back_v, back_v.sum(0), value_hidden.T @ to_value, to_value.sum(0)]  # fmt: skip


# ---- simulators ----------------------------------------------------------------------------------------------


@fastray.remote
class Simulator:
    """Some copies of the environment that go on from one rollout to the next."""

    def __init__(self, seed: int) -> None:
        self.environments = [gymnasium.make(ENVIRONMENT, disable_env_checker=True) for _ in range(COPIES)]
        starts = [e.reset(seed=1000 * seed + k)[0] for k, e in enumerate(self.environments)]
        self.seen = np.array(starts, dtype=np.float64)
        self.sums = np.zeros(COPIES)
        self.random = np.random.default_rng(seed)

    def rollout(self, weights: Weights) -> Rollout:
        shape = (STEPS, COPIES)
        seen, actions = np.empty((*shape, self.seen.shape[1])), np.empty(shape, dtype=np.int64)
        chances, values, rewards, ends = (np.empty(shape) for _ in range(4))
        returns: list[float] = []
        for t in range(STEPS):
            log, values[t], _, _ = Network.forward(weights, self.seen)
            seen[t] = self.seen
            drawn = self.random.random(COPIES)[:, None]
            actions[t] = np.minimum((np.exp(log).cumsum(axis=1) < drawn).sum(axis=1), log.shape[1] - 1)
            chances[t] = log[np.arange(COPIES), actions[t]]
            for k in range(COPIES):
                rewards[t, k], ends[t, k] = self.step(k, int(actions[t, k]), weights, returns)
        _, last, _, _ = Network.forward(weights, self.seen)
        advantages = np.zeros(shape)
        ahead = np.zeros(COPIES)
        for t in reversed(range(STEPS)):
            following = last if t == STEPS - 1 else values[t + 1]
            error = rewards[t] + DISCOUNT * following * (1 - ends[t]) - values[t]
            advantages[t] = ahead = error + DISCOUNT * SMOOTHING * (1 - ends[t]) * ahead
        return Rollout(seen, actions, chances, advantages, advantages + values, returns)

    def step(self, k: int, action: int, weights: Weights, returns: list[float]) -> tuple[float, float]:
        """(reward, 1 at the end of an episode); an episode that was cut off gets the value of where it was."""
        observation, gain, terminated, truncated, _ = self.environments[k].step(action)
        reward = float(gain)
        self.sums[k] += reward
        if truncated and not terminated:
            reward += DISCOUNT * float(Network.forward(weights, observation[None])[1][0])
        if terminated or truncated:
            returns.append(float(self.sums[k]))
            self.sums[k] = 0.0
            observation, _ = self.environments[k].reset()
        self.seen[k] = observation
        return reward, float(terminated or truncated)


# ---- learning ------------------------------------------------------------------------------------------------


class Learner:
    """The weights, and Adam."""

    def __init__(self, seed: int, rate: float) -> None:
        probe = gymnasium.make(ENVIRONMENT)
        self.weights = Network.start(probe.observation_space.shape[0], int(probe.action_space.n), seed)
        self.first = [np.zeros_like(w) for w in self.weights]
        self.second = [np.zeros_like(w) for w in self.weights]
        self.rate, self.steps = rate, 0
        self.random = np.random.default_rng(seed)

    def learn(self, r: Rollout) -> None:
        n = r.actions.size
        x = r.seen.reshape(n, -1)
        columns = [array.reshape(n) for array in (r.actions, r.chances, r.advantages, r.targets)]
        columns[2] = (columns[2] - columns[2].mean()) / (columns[2].std() + 1e-8)
        for _ in range(EPOCHS):
            order = self.random.permutation(n)
            for rows in order.reshape(-1, BATCH):
                gradient = Network.gradient(self.weights, x[rows], *(column[rows] for column in columns))
                self.step(gradient)

    def step(self, gradient: Weights) -> None:
        norm = np.sqrt(sum(float((g * g).sum()) for g in gradient))
        self.steps += 1
        for i, g in enumerate(gradient):
            g = g * min(1.0, 0.5 / (norm + 1e-8))
            self.first[i] = 0.9 * self.first[i] + 0.1 * g
            self.second[i] = 0.999 * self.second[i] + 0.001 * g * g
            scale = np.sqrt(self.second[i] / (1 - 0.999**self.steps)) + 1e-5
            self.weights[i] = self.weights[i] - self.rate * self.first[i] / (1 - 0.9**self.steps) / scale


def train(arguments: argparse.Namespace) -> tuple[bool, list[tuple[int, float]]]:
    """(solved, (environment steps, mean return) of each update)."""
    learner = Learner(arguments.seed, arguments.rate)
    simulators = [Simulator.remote(arguments.seed + k) for k in range(arguments.simulators)]
    shared = fastray.put(learner.weights)
    pending = {simulator.rollout.remote(shared): simulator for simulator in simulators}
    recent: deque[float] = deque(maxlen=EPISODES)
    history: list[tuple[int, float]] = []
    start = time.perf_counter()
    for update in range(1, arguments.updates + 1):
        (ready,), _ = fastray.wait(list(pending))
        simulator = pending.pop(ready)
        rollout = fastray.get(ready)
        learner.learn(rollout)
        pending[simulator.rollout.remote(fastray.put(learner.weights))] = simulator
        recent.extend(rollout.returns)
        mean = float(np.mean(recent)) if recent else 0.0
        history.append((update * STEPS * COPIES, mean))
        solved = len(recent) == EPISODES and mean >= SOLVED
        if update % 20 == 0 or solved:
            seconds = time.perf_counter() - start
            print(
                f"update {update:4}: return {mean:6.1f} of the last {len(recent)} episodes, "
                f"{history[-1][0] / seconds:,.0f} steps/s",
                flush=True,
            )
        if solved:
            return True, history
    return False, history


def draw(history: list[tuple[int, float]], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    axes.plot(*zip(*history))
    axes.axhline(SOLVED, color="0.5", linestyle="--", linewidth=1)
    axes.annotate("solved", (0, SOLVED), color="0.4", va="bottom")
    axes.set(title=f"PPO on {ENVIRONMENT}", xlabel="steps", ylabel=f"mean return of {EPISODES} episodes")
    axes.margins(x=0.01)
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--simulators", type=int, default=4)
    parser.add_argument("--updates", type=int, default=1000, help="give up after that many")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="ppo_return.png", help="the plot; an empty string for none")
    arguments = parser.parse_args()
    fastray.init()
    start = time.perf_counter()
    solved, history = train(arguments)
    seconds = time.perf_counter() - start
    fastray.shutdown()
    if arguments.out:
        draw(history, arguments.out)
        print(f"plot: {arguments.out}")
    print(f"{ENVIRONMENT} {'solved' if solved else 'not solved'} after {len(history)} updates, {seconds:.1f} s")
    return 0 if solved else 1


if __name__ == "__main__":
    raise SystemExit(main())
