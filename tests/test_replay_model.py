"""The replay buffer against a plain reference: histories in lists, nothing shared, nothing fast."""

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from awsgd_rl.base import Draw
from awsgd_rl.replay import ReplayBuffer, ReplaySample

DISCOUNT = 0.9


@dataclass
class Transition:
    env: int
    observation: float
    action: int
    reward: float
    next_observation: float
    terminated: bool
    truncated: bool
    before_is_follower: bool
    """Whether the environment's transition before leads here."""


class Reference:
    """Every transition ever added, with its environment; a slot is the remainder of its number."""

    def __init__(self, capacity: int, n_envs: int, n_step: int, alpha: float, epsilon: float):
        self.capacity, self.n_step, self.alpha, self.epsilon = capacity, n_step, alpha, epsilon
        self.history: list[Transition] = []
        self.priorities: dict[int, float] = {}
        self.running: list[float | None] = [None] * n_envs

    @property
    def alive(self) -> range:
        return range(max(0, len(self.history) - self.capacity), len(self.history))

    def add(self, rows: list[tuple[Any, ...]], valid: list[bool]) -> None:
        added = []
        for env, row in enumerate(rows):
            if not valid[env]:
                self.running[env] = None
                continue
            transition = Transition(env, *row, before_is_follower=self.running[env] == row[0])
            ended = transition.terminated or transition.truncated
            self.running[env] = None if ended else transition.next_observation
            self.history.append(transition)
            added.append(len(self.history) - 1)
        slots = [number % self.capacity for number in added]
        others = [p for slot, p in self.priorities.items() if slot not in slots]
        for slot in slots:
            self.priorities[slot] = max(others, default=1.0)

    def update(self, slots: list[int], stamp: int, signal: list[float]) -> None:
        for slot, x in zip(slots, signal, strict=True):
            number = max(k for k in self.alive if k % self.capacity == slot)
            if number < stamp:
                self.priorities[slot] = abs(x) + self.epsilon

    def transition(self, slot: int) -> tuple[float, int, float, float, float]:
        number = max(k for k in self.alive if k % self.capacity == slot)
        first = last = self.history[number]
        total, steps = first.reward, 1
        for later in self.history[number + 1 :]:
            if steps == self.n_step or last.terminated or last.truncated:
                break
            if later.env != first.env:
                continue
            if not later.before_is_follower:
                break
            total += DISCOUNT**steps * later.reward
            last, steps = later, steps + 1
        discount = 0.0 if last.terminated else DISCOUNT**steps
        return first.observation, first.action, total, last.next_observation, discount

    def probabilities(self, uniform_share: float) -> list[float]:
        masses = [self.priorities[slot] ** self.alpha for slot in range(len(self.alive))]
        uniform = uniform_share / len(masses)
        return [(1 - uniform_share) * mass / sum(masses) + uniform for mass in masses]


class Machine(RuleBasedStateMachine):
    """Adds, draws, updates, saves and restores, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.seed = 0

    def teardown(self) -> None:
        self.folder.cleanup()

    @initialize(
        capacity=st.integers(3, 11),
        n_envs=st.integers(1, 3),
        n_step=st.integers(1, 4),
        alpha=st.sampled_from([0.0, 0.6, 1.0]),
        uniform_share=st.sampled_from([0.0, 0.2]),
        compiled=st.booleans(),
    )
    def start(
        self,
        capacity: int,
        n_envs: int,
        n_step: int,
        alpha: float,
        uniform_share: float,
        compiled: bool,
    ) -> None:
        self.settings: dict[str, Any] = {
            "n_envs": n_envs,
            "n_step": n_step,
            "alpha": alpha,
            "uniform_share": uniform_share,
            "compiled": compiled,
            "discount": DISCOUNT,
            "epsilon": 0.01,
        }
        self.capacity, self.n_envs, self.uniform_share = capacity, n_envs, uniform_share
        self.buffer = self.make()
        self.reference = Reference(capacity, n_envs, n_step, alpha, 0.01)
        self.now = [0.0] * n_envs
        self.samples: list[ReplaySample] = []

    def make(self) -> ReplayBuffer:
        self.seed += 1
        space = spaces.Box(-np.inf, np.inf, ())
        return ReplayBuffer(
            self.capacity, space, spaces.Discrete(3), seed=self.seed, **self.settings
        )

    @rule(data=st.data())
    def add(self, data: st.DataObject) -> None:
        rows, valid = [], []
        for env in range(self.n_envs):
            # Few values, so that an observation often equals one of another episode.
            draw = data.draw(
                st.tuples(
                    st.integers(0, 2),
                    st.floats(-2, 2, width=32),
                    st.integers(0, 2),
                    st.sampled_from(["", "", "", "terminated", "truncated", "both", "jump"]),
                    st.sampled_from([True, True, True, True, False]),
                )
            )
            action, reward, next_observation, event, added = draw
            terminated, truncated = event in ("terminated", "both"), event in ("truncated", "both")
            rows.append(
                (self.now[env], action, reward, float(next_observation), terminated, truncated)
            )
            valid.append(added)
            if added:
                ended = terminated or truncated or event == "jump"
                self.now[env] = 5.0 if ended else float(next_observation)
        columns = [np.array(column) for column in zip(*rows, strict=True)]
        observations, actions, rewards, next_observations, terminated_, truncated_ = columns
        self.buffer.add(
            observations.astype(np.float32),
            actions,
            rewards,
            next_observations.astype(np.float32),
            terminated_,
            truncated_,
            valid=np.array(valid),
        )
        self.reference.add(rows, valid)

    @precondition(lambda self: self.buffer.size > 0)
    @rule(count=st.integers(1, 5))
    def draw(self, count: int) -> None:
        self.samples = [*self.samples[-2:], self.buffer.sample(count)]

    @precondition(lambda self: self.samples)
    @rule(data=st.data(), which=st.integers(0, 2))
    def update(self, data: st.DataObject, which: int) -> None:
        sample = self.samples[which % len(self.samples)]
        slots = sample.draw.items.tolist()
        signal = [data.draw(st.floats(-3, 3, width=32)) for _ in slots]
        self.buffer.update(sample, torch.tensor(signal))
        self.reference.update(slots, sample.stamp, signal)

    @rule()
    def save_and_restore(self) -> None:
        path = Path(self.folder.name) / "buffer.safetensors"
        self.buffer.save(path)
        restored = self.make()
        restored.restore(path)
        if self.buffer.size > 0:
            for mine, other in zip(
                self.buffer.sample(4).draw, restored.sample(4).draw, strict=True
            ):
                assert torch.equal(mine, other)
        self.buffer = restored

    @invariant()
    def agree(self) -> None:
        if not hasattr(self, "buffer"):
            return
        n = self.buffer.size
        assert n == len(self.reference.alive)
        if n == 0:
            return
        slots = torch.arange(n)
        sample = self.buffer.transitions(Draw(slots, torch.zeros(n)))
        expected = [self.reference.transition(slot) for slot in range(n)]
        observations, actions, rewards, next_observations, discounts = zip(*expected, strict=True)
        assert sample.observations.tolist() == list(observations)
        assert sample.actions.tolist() == list(actions)
        assert sample.next_observations.tolist() == list(next_observations)
        torch.testing.assert_close(sample.rewards, torch.tensor(rewards, dtype=torch.float32))
        torch.testing.assert_close(sample.discounts, torch.tensor(discounts, dtype=torch.float32))
        assert self.buffer.proposal is not None
        q = self.buffer.proposal.log_prob(slots).exp()
        want = torch.tensor(self.reference.probabilities(self.uniform_share), dtype=torch.float64)
        torch.testing.assert_close(q, want, rtol=1e-12, atol=0.0)
        assert math.isclose(float(q.sum()), 1.0, rel_tol=1e-12)


Machine.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


class TestAgainstReference(Machine.TestCase):  # type: ignore[name-defined,misc]
    pass


pytestmark = pytest.mark.filterwarnings("error")
