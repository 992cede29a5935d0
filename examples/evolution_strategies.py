"""Evolution strategies: a small policy learns CartPole or Pendulum; its rollouts are fastray tasks.

    python examples/evolution_strategies.py                      # CartPole-v1, in seconds
    python examples/evolution_strategies.py --env Pendulum-v1
    python examples/evolution_strategies.py --serial             # the same program without fastray

Each generation the policy is shared once with `put`; each task tries one random direction both ways
(antithetic sampling) and returns two rewards. Rewards become ranks, ranks weigh the directions, Adam takes
the step (Salimans et al., 2017). Observations are scaled by running statistics, which travel with the policy.
Directions and episodes follow from (seed, generation, task), and results are added up in the order of the
tasks: a seed gives the same run on any number of workers, and with --serial.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field

import gymnasium
import numpy as np
from tqdm import tqdm

import fastray

HIDDEN = 16


@dataclass
class Task:
    """What differs between the environments."""

    solved: float  # mean reward of EVALUATIONS episodes
    pairs: int  # directions a generation
    episodes: int  # of each policy tried
    sigma: float
    rate: float


TASKS = {
    "CartPole-v1": Task(solved=475, pairs=32, episodes=1, sigma=0.1, rate=0.05),
    "Pendulum-v1": Task(solved=-250, pairs=32, episodes=2, sigma=0.1, rate=0.3),
}
EVALUATIONS = 20


@dataclass
class Policy:
    """A network of one hidden layer as one flat vector, and the statistics its observations are scaled by."""

    weights: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray

    def action(self, space: gymnasium.Space, observation: np.ndarray) -> object:
        n, outputs = len(self.mean), outputs_of(space)
        hidden, rest = self.weights[: (n + 1) * HIDDEN], self.weights[(n + 1) * HIDDEN :]
        x = np.clip((observation - self.mean) / self.deviation, -5, 5)
        x = np.tanh(x @ hidden[HIDDEN:].reshape(n, HIDDEN) + hidden[:HIDDEN])
        y = x @ rest[outputs:].reshape(HIDDEN, outputs) + rest[:outputs]
        if isinstance(space, gymnasium.spaces.Discrete):
            return int(np.argmax(y))
        return np.tanh(y) * space.high


def outputs_of(space: gymnasium.Space) -> int:
    return int(space.n) if isinstance(space, gymnasium.spaces.Discrete) else int(np.prod(space.shape))


@dataclass
class Moments:
    """Count, sum and sum of squares of observations."""

    count: float = 1e-2
    total: np.ndarray | float = 0.0
    squares: np.ndarray | float = 1e-2

    def add(self, observations: np.ndarray) -> None:
        self.join(Moments(len(observations), observations.sum(0), np.square(observations).sum(0)))

    def join(self, other: Moments) -> None:
        self.count += other.count
        self.total = self.total + other.total
        self.squares = self.squares + other.squares

    def scaling(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        mean = np.broadcast_to(self.total / self.count, size)
        return mean, np.sqrt(np.maximum(self.squares / self.count - mean**2, 1e-2))


# ---- what runs as tasks -----------------------------------------------------------------------------------


def episode(environment: gymnasium.Env, policy: Policy, seed: int) -> tuple[float, np.ndarray]:
    """(reward, observations)."""
    observation, _ = environment.reset(seed=seed)
    seen, reward, over = [], 0.0, False
    while not over:
        seen.append(observation)
        action = policy.action(environment.action_space, observation)
        observation, gain, terminated, truncated, _ = environment.step(action)
        reward += float(gain)
        over = terminated or truncated
    return reward, np.asarray(seen, dtype=np.float64)


def direction(seed: tuple[int, ...], size: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size)


def try_direction(
    name: str, policy: Policy, seed: tuple[int, ...], sigma: float, episodes: int
) -> tuple[float, float, Moments]:
    """The rewards of the policy moved along a random direction, and against it; and what was observed."""
    noise = sigma * direction(seed, len(policy.weights))
    first_seed = int(np.random.default_rng(seed[:2]).integers(1 << 30))  # the same for a generation
    moments, rewards = Moments(0.0, 0.0, 0.0), []
    environment = gymnasium.make(name, disable_env_checker=True)
    for weights in (policy.weights + noise, policy.weights - noise):
        moved, total = Policy(weights, policy.mean, policy.deviation), 0.0
        for k in range(episodes):
            reward, observations = episode(environment, moved, first_seed + k)
            moments.add(observations)
            total += reward
        rewards.append(total / episodes)
    return rewards[0], rewards[1], moments


def evaluate(name: str, policy: Policy, seed: int) -> float:
    return episode(gymnasium.make(name, disable_env_checker=True), policy, seed)[0]


class Serial:
    """--serial: the three names of fastray this program uses, without fastray. Nothing else differs."""

    class RemoteFunction:
        def __init__(self, function):
            self.remote = function

    remote = RemoteFunction
    put = get = staticmethod(lambda value: value)


# ---- learning ---------------------------------------------------------------------------------------------


def ranks(rewards: np.ndarray) -> np.ndarray:
    """Rewards as ranks between -0.5 and 0.5; equal rewards share a rank."""
    _, inverse, counts = np.unique(rewards, return_inverse=True, return_counts=True)
    shared = np.cumsum(counts) - (counts + 1) / 2
    return shared[inverse] / max(1, rewards.size - 1) - 0.5


@dataclass
class Adam:
    rate: float
    first: np.ndarray | float = 0.0
    second: np.ndarray | float = 0.0
    steps: int = 0

    def step(self, gradient: np.ndarray) -> np.ndarray:
        self.steps += 1
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * np.square(gradient)
        scale = np.sqrt(self.second / (1 - 0.999**self.steps)) + 1e-8
        return self.rate * self.first / (1 - 0.9**self.steps) / scale


@dataclass
class History:
    tried: list[tuple[float, float, float]] = field(default_factory=list)  # mean, least, best of a generation
    evaluated: list[tuple[int, float]] = field(default_factory=list)
    solved: bool = False


def train(ray, arguments: argparse.Namespace) -> History:
    """`ray` is fastray, or Serial."""
    name, task, seed = arguments.env, TASKS[arguments.env], arguments.seed
    try_remotely, evaluate_remotely = ray.remote(try_direction), ray.remote(evaluate)
    probe = gymnasium.make(name)
    inputs, outputs = probe.observation_space.shape[0], outputs_of(probe.action_space)
    size = (inputs + 1) * HIDDEN + (HIDDEN + 1) * outputs
    weights = 0.1 * np.random.default_rng((seed, 0)).standard_normal(size)
    moments, adam, history = Moments(), Adam(task.rate), History()
    progress = tqdm(range(arguments.generations), unit="gen", disable=arguments.no_progress)
    for generation in progress:
        policy = ray.put(Policy(weights, *moments.scaling(inputs)))
        seeds = [(seed, generation, pair) for pair in range(task.pairs)]
        results = ray.get([try_remotely.remote(name, policy, s, task.sigma, task.episodes) for s in seeds])
        rewards = np.array([result[:2] for result in results])
        history.tried.append((rewards.mean(), rewards.min(), rewards.max()))
        line = f"generation {generation:3}: reward {rewards.mean():8.1f}, best {rewards.max():8.1f}"
        # A policy that the noise around it does not shake has earned an evaluation.
        if rewards.mean() >= task.solved * (0.7 if task.solved > 0 else 1.6) or generation % 5 == 0:
            trials = [evaluate_remotely.remote(name, policy, 1_000_000 + k) for k in range(EVALUATIONS)]
            mean = float(np.mean(ray.get(trials)))
            history.evaluated.append((generation, mean))
            history.solved = mean >= task.solved
            line += f", mean policy {mean:8.1f} over {EVALUATIONS} episodes"
        progress.write(line)
        if history.solved:
            break
        shaped = ranks(rewards)
        noise = np.array([direction(s, size) for s in seeds])
        gradient = (shaped[:, 0] - shaped[:, 1]) @ noise / (2 * task.pairs * task.sigma)
        weights = weights + adam.step(gradient - 0.005 * weights)
        for result in results:
            moments.join(result[2])
    progress.close()
    return history


def draw(history: History, name: str, path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    mean, least, best = np.array(history.tried).T
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    axes.fill_between(range(len(mean)), least, best, alpha=0.15, color="C0", label="least and best tried")
    axes.plot(mean, color="C0", label="mean of the policies tried")
    if history.evaluated:
        axes.plot(*zip(*history.evaluated), "o-", color="C1", label=f"mean policy, {EVALUATIONS} episodes")
    axes.axhline(TASKS[name].solved, color="0.5", linestyle="--", linewidth=1)
    axes.annotate("solved", (0, TASKS[name].solved), color="0.4", va="bottom")
    axes.set(title=f"Evolution strategies on {name}", xlabel="generation", ylabel="reward of an episode")
    axes.margins(x=0.01)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3, frameon=False)
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--env", choices=TASKS, default="CartPole-v1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--generations", type=int, default=300, help="give up after that many")
    parser.add_argument("--workers", type=int, default=None, help="worker processes (default: one per CPU)")
    parser.add_argument("--serial", action="store_true", help="run in this process, without fastray")
    parser.add_argument("--out", default="es_reward.png", help="the plot")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    arguments = parser.parse_args()
    if not arguments.serial:
        fastray.init(num_cpus=arguments.workers)
    start = time.perf_counter()
    history = train(Serial if arguments.serial else fastray, arguments)
    seconds = time.perf_counter() - start
    if not arguments.serial:
        fastray.shutdown()
    draw(history, arguments.env, arguments.out)
    end = "solved" if history.solved else "not solved"
    print(f"{arguments.env} {end} after {len(history.tried)} generations, {seconds:.1f} s")
    print(f"plot: {arguments.out}")
    return 0 if history.solved else 1


if __name__ == "__main__":
    raise SystemExit(main())
