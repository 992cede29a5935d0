"""Evolution strategies: a small policy learns CartPole or Pendulum. The same program three times:

    python examples/evolution_strategies.py                      # rollouts are tasks; CartPole-v1, in seconds
    python examples/evolution_strategies.py --mode actors        # twenty workers that keep their simulator
    python examples/evolution_strategies.py --mode serial        # without fastray
    python examples/evolution_strategies.py --env Pendulum-v1

What differs is in the section "tasks, actors, serial": the decorator, `.remote` and `get`.

Each generation the policy is shared once with `put`; each direction is tried both ways (antithetic sampling) and
gives two rewards. Rewards become ranks, ranks weigh the directions, Adam takes the step (Salimans et al., 2017).
Observations are scaled by running statistics, which travel with the policy. Directions and episodes follow from
(seed, generation, direction), and results are added up in order: a seed gives the same run in any mode and on any
number of processes.
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
    episodes: int  # of each policy tried
    sigma: float
    rate: float


TASKS = {
    "CartPole-v1": Task(solved=475, episodes=1, sigma=0.1, rate=0.05),
    "Pendulum-v1": Task(solved=-250, episodes=2, sigma=0.1, rate=0.3),
}
EVALUATIONS = 20
WORKERS = 20  # directions a generation; as many actors
GENERATIONS = 200


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


# ---- one rollout -------------------------------------------------------------------------------------------


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
    environment: gymnasium.Env, policy: Policy, seed: tuple[int, ...], task: Task
) -> tuple[float, float, Moments]:
    """The rewards of the policy moved along a random direction, and against it; and what was observed."""
    noise = task.sigma * direction(seed, len(policy.weights))
    first_seed = int(np.random.default_rng(seed[:2]).integers(1 << 30))  # the same for a generation
    moments, rewards = Moments(0.0, 0.0, 0.0), []
    for weights in (policy.weights + noise, policy.weights - noise):
        moved, total = Policy(weights, policy.mean, policy.deviation), 0.0
        for k in range(task.episodes):
            reward, observations = episode(environment, moved, first_seed + k)
            moments.add(observations)
            total += reward
        rewards.append(total / task.episodes)
    return rewards[0], rewards[1], moments


def make(name: str) -> gymnasium.Env:
    return gymnasium.make(name, disable_env_checker=True)


# ---- tasks, actors, serial -----------------------------------------------------------------------------------


@fastray.remote
def simulate(name: str, policy: Policy, seed: tuple[int, ...]) -> tuple[float, float, Moments]:
    return try_direction(make(name), policy, seed, TASKS[name])


@fastray.remote
def evaluate(name: str, policy: Policy, seed: int) -> float:
    return episode(make(name), policy, seed)[0]


@fastray.remote
class Worker:
    """Keeps its simulator from one call to the next."""

    def __init__(self, name: str) -> None:
        self.environment, self.task = make(name), TASKS[name]

    def do_simulation(self, policy: Policy, seed: tuple[int, ...]) -> tuple[float, float, Moments]:
        return try_direction(self.environment, policy, seed, self.task)

    def evaluate(self, policy: Policy, seed: int) -> float:
        return episode(self.environment, policy, seed)[0]


class Tasks:
    def __init__(self, name: str) -> None:
        self.name = name

    def rewards(self, policy: Policy, seeds: list[tuple[int, ...]]) -> list:
        shared = fastray.put(policy)
        return fastray.get([simulate.remote(self.name, shared, seed) for seed in seeds])

    def evaluations(self, policy: Policy, seeds: list[int]) -> list[float]:
        shared = fastray.put(policy)
        return fastray.get([evaluate.remote(self.name, shared, seed) for seed in seeds])


class Actors:
    def __init__(self, name: str) -> None:
        self.workers = [Worker.remote(name) for _ in range(WORKERS)]

    def rewards(self, policy: Policy, seeds: list[tuple[int, ...]]) -> list:
        shared = fastray.put(policy)
        return fastray.get([self.workers[j].do_simulation.remote(shared, seeds[j]) for j in range(WORKERS)])

    def evaluations(self, policy: Policy, seeds: list[int]) -> list[float]:
        shared = fastray.put(policy)
        return fastray.get([self.workers[j].evaluate.remote(shared, seeds[j]) for j in range(WORKERS)])


class Serial:
    def __init__(self, name: str) -> None:
        self.workers = [Worker.__wrapped__(name) for _ in range(WORKERS)]

    def rewards(self, policy: Policy, seeds: list[tuple[int, ...]]) -> list:
        return [self.workers[j].do_simulation(policy, seeds[j]) for j in range(WORKERS)]

    def evaluations(self, policy: Policy, seeds: list[int]) -> list[float]:
        return [self.workers[j].evaluate(policy, seeds[j]) for j in range(WORKERS)]


MODES = {"tasks": Tasks, "actors": Actors, "serial": Serial}


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


class Learner:
    """The policy, and how it learns from the rewards of the directions tried."""

    def __init__(self, name: str, seed: int) -> None:
        self.task = TASKS[name]
        probe = gymnasium.make(name)
        self.inputs, outputs = probe.observation_space.shape[0], outputs_of(probe.action_space)
        size = (self.inputs + 1) * HIDDEN + (HIDDEN + 1) * outputs
        self.weights = 0.1 * np.random.default_rng((seed, 0)).standard_normal(size)
        self.moments, self.adam = Moments(), Adam(self.task.rate)

    def policy(self) -> Policy:
        return Policy(self.weights, *self.moments.scaling(self.inputs))

    def compute_update(self, results: list, seeds: list[tuple[int, ...]]) -> None:
        shaped = ranks(np.array([result[:2] for result in results]))
        noise = np.array([direction(seed, len(self.weights)) for seed in seeds])
        gradient = (shaped[:, 0] - shaped[:, 1]) @ noise / (2 * len(seeds) * self.task.sigma)
        self.weights = self.weights + self.adam.step(gradient - 0.005 * self.weights)
        for result in results:
            self.moments.join(result[2])


def train(arguments: argparse.Namespace) -> History:
    simulator = MODES[arguments.mode](arguments.env)
    learner, history = Learner(arguments.env, arguments.seed), History()
    solved = learner.task.solved
    progress = tqdm(range(arguments.generations), unit="gen", disable=arguments.no_progress)
    for generation in progress:
        policy = learner.policy()
        seeds = [(arguments.seed, generation, j) for j in range(WORKERS)]
        results = simulator.rewards(policy, seeds)
        rewards = np.array([result[:2] for result in results])
        history.tried.append((rewards.mean(), rewards.min(), rewards.max()))
        line = f"generation {generation:3}: reward {rewards.mean():8.1f}, best {rewards.max():8.1f}"
        # A policy that the noise around it does not shake has earned an evaluation.
        if rewards.mean() >= solved * (0.7 if solved > 0 else 1.6) or generation % 5 == 0:
            mean = float(np.mean(simulator.evaluations(policy, [1_000_000 + k for k in range(EVALUATIONS)])))
            history.evaluated.append((generation, mean))
            history.solved = mean >= solved
            line += f", mean policy {mean:8.1f} over {EVALUATIONS} episodes"
        progress.write(line)
        if history.solved:
            break
        learner.compute_update(results, seeds)
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
    parser.add_argument("--generations", type=int, default=GENERATIONS, help="give up after that many")
    parser.add_argument("--workers", type=int, default=None, help="worker processes (default: one per CPU)")
    parser.add_argument("--mode", choices=MODES, default="tasks", help="what rollouts are")
    parser.add_argument("--out", default="es_reward.png", help="the plot")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    arguments = parser.parse_args()
    if arguments.mode != "serial":
        fastray.init(num_cpus=arguments.workers)
    start = time.perf_counter()
    history = train(arguments)
    seconds = time.perf_counter() - start
    fastray.shutdown()
    draw(history, arguments.env, arguments.out)
    end = "solved" if history.solved else "not solved"
    print(f"{arguments.env} ({arguments.mode}) {end} after {len(history.tried)} generations, {seconds:.1f} s")
    print(f"plot: {arguments.out}")
    return 0 if history.solved else 1


if __name__ == "__main__":
    raise SystemExit(main())
