"""A replay buffer that draws by priority, in two stages or uniformly, and says the probability.

    buffer = ReplayBuffer(1_000_000, env.observation_space, env.action_space, n_envs=8)
    buffer.add(observations, actions, rewards, next_observations, terminated, truncated)
    sample = buffer.sample(256)
    td_errors = ...  # [256]
    weights = annealed_weights(sample.draw.log_q, buffer.size, beta=0.4)
    (weights * td_errors.square()).mean().backward()
    buffer.update(sample, td_errors)

Weights are no business of the buffer: `weights.annealed_weights` has them, with β and the
normaliser of your choice.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal, final

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from awsgd_rl.base import Draw
from awsgd_rl.replay_fields import check, check_flags, check_rewards, join, to_array
from awsgd_rl.replay_priorities import PriorityProposal
from awsgd_rl.replay_sample import ReplaySample, pick
from awsgd_rl.replay_storage import TransitionRing
from awsgd_rl.sampling import draw_uniforms
from awsgd_rl.two_stage import two_stage_draw
from awsgd_rl.validation import (
    require_integer,
    require_name,
    require_positive,
    require_probability,
)

__all__ = ["PROPOSALS", "ReplayBuffer", "ReplaySample"]

PROPOSALS: Final = ("priority", "uniform", "two-stage")


@final
class ReplayBuffer:
    """A ring of transitions on a device, with a proposal to draw from it.

    Proposals:
      "priority": q ∝ p^α (Schaul 2016), kept in a sum tree. `update` sets p = |signal| + ε, where
        the signal is the TD error, or the norm of a sample's gradient. New transitions have the
        largest priority that is there, or 1 in an empty buffer: that of a slot which was lowered
        or overwritten does not count any more.
      "two-stage": `ratio` times as many transitions as wanted are drawn uniformly, `score` tells
        what each is worth, and the batch is drawn from them by that (LaBER; Lahire 2022).
      "uniform".
    Each of the first two can be mixed with uniform draws (`uniform_share`). Draws are with
    replacement.

    Slots are taken in order of arrival, so capacity is met exactly for any number of environments.
    A transition's next observation is stored once, as the observation of the same environment's
    next transition, if it is that one bit for bit; otherwise (an episode ended; the newest; or what
    was added does not follow) it is kept aside, in memory that grows with the number of those.

    An n-step return ends at the end of the episode, at the newest transition of its environment, or
    where what was added does not follow: it then is a return of fewer steps, whose discount and
    next observation say so. It never enters another episode, another environment, or what the
    write pointer has overwritten.

    On a CUDA device `add` waits for the device; `sample` and `update` do not, but for the scores of
    two-stage draws, which are checked.

    Args:
      capacity: number of transitions N, at least `n_envs`.
      observation_space: of one environment: Box, Discrete, MultiDiscrete, MultiBinary or a Dict of
        them. Box keeps its dtype (uint8 images stay uint8), integers are stored in the narrowest.
      action_space: of one environment; the same kinds.
      n_envs: number of environments E that add a row at a time.
      device: where everything lies.
      proposal: "priority", "uniform" or "two-stage".
      alpha: exponent of priorities; 0 is uniform.
      epsilon: ε, added to each |signal|.
      uniform_share: share of uniform draws, in [0, 1] (two-stage: of the second stage, below 1).
      stratified: one draw of each of B equal parts of q ("priority"; see `TableProposal`).
      ratio: candidates for each draw ("two-stage").
      n_step: steps of a return.
      discount: per step, in [0, 1].
      min_size: transitions that must be stored before the first sample.
      seed: of the buffer's own generator.
      compiled: use compiled kernels; None does on the CPU. Both ways draw the same.

    Attributes:
      kind: which of the three proposals it is.
      proposal: the `PriorityProposal`, or None for the other two.
      generator: of all draws that are not given one.

    Raises:
      ValueError: if a setting is out of range or a space is not supported.
    """

    def __init__(
        self,
        capacity: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        *,
        n_envs: int = 1,
        device: torch.device | str = "cpu",
        proposal: Literal["priority", "uniform", "two-stage"] = "priority",
        alpha: float = 0.6,
        epsilon: float = 1e-6,
        uniform_share: float = 0.0,
        stratified: bool = False,
        ratio: int = 4,
        n_step: int = 1,
        discount: float = 0.99,
        min_size: int = 1,
        seed: int = 0,
        compiled: bool | None = None,
    ) -> None:
        self.n_envs = require_integer("n_envs", n_envs)
        self.capacity = require_integer("capacity", capacity)
        if capacity < n_envs:
            raise ValueError(f"capacity is {capacity}, expected at least n_envs, {n_envs}")
        if capacity >= 2**31:
            raise ValueError(f"capacity is {capacity}, expected below 2**31")
        self.kind = require_name("proposal", proposal, PROPOSALS)
        self.epsilon = require_positive("epsilon", epsilon)
        self.uniform_share = require_probability("uniform_share", uniform_share)
        if proposal == "two-stage" and uniform_share == 1.0:
            raise ValueError('uniform_share is 1, expected below 1, or proposal="uniform"')
        self.ratio = require_integer("ratio", ratio)
        self.n_step = require_integer("n_step", n_step)
        self.discount = require_probability("discount", discount)
        self.min_size = require_integer("min_size", min_size)
        if min_size > capacity:
            raise ValueError(f"min_size is {min_size}, expected at most the capacity, {capacity}")
        self.device = torch.empty(0, device=device).device
        on_cpu = self.device.type == "cpu"
        if compiled and not on_cpu:
            raise ValueError(f"got compiled kernels and device {self.device}, expected cpu")
        self.compiled = on_cpu if compiled is None else compiled
        self.observation_space, self.action_space = observation_space, action_space
        self.seed = require_integer("seed", seed, minimum=0)
        self.generator = torch.Generator(self.device).manual_seed(self.seed)
        self._all = np.ones(n_envs, np.bool_)
        self._ring = TransitionRing(
            capacity,
            observation_space,
            action_space,
            n_envs=n_envs,
            device=self.device,
            compiled=self.compiled,
        )
        self.proposal: PriorityProposal | None = None
        if proposal == "priority":
            self.proposal = PriorityProposal(
                capacity,
                alpha=alpha,
                uniform_share=uniform_share,
                stratified=stratified,
                device=self.device,
                compiled=self.compiled,
            )

    def __getstate__(self) -> dict[str, Any]:
        state = vars(self).copy()
        state["generator"] = self.generator.get_state()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.generator = torch.Generator(self.device)
        self.generator.set_state(state["generator"])

    def __len__(self) -> int:
        return self._ring.size

    @property
    def size(self) -> int:
        """Number of transitions stored: the n of weights."""
        return self._ring.size

    @property
    def added(self) -> int:
        """Number of transitions ever added."""
        return self._ring.added

    @property
    def position(self) -> int:
        """The slot that is written next."""
        return self._ring.added % self.capacity

    @property
    def nbytes(self) -> int:
        """Bytes of memory in use on the device, priorities included."""
        return self._ring.nbytes + (0 if self.proposal is None else self.proposal.nbytes)

    def add(
        self,
        observations: Any,
        actions: Any,
        rewards: Any,
        next_observations: Any,
        terminated: Any,
        truncated: Any,
        *,
        valid: Any = None,
    ) -> None:
        """Adds one transition of each environment.

        Args:
          observations: [E, ...] arrays, tensors or lists; for a Dict space a dict of these.
          actions: [E, ...].
          rewards: [E] finite.
          next_observations: [E, ...] what the step led to. Where an episode ended this is its
            final observation, not the first one of the next: under Gymnasium's SAME_STEP
            autoreset it is in `infos["final_obs"]`, in SB3 in `info["terminal_observation"]`.
          terminated: [E] bool: the episode ended in the environment, no value follows.
          truncated: [E] bool: it was cut off, and the final observation's value counts.
          valid: [E] bool: which rows to add; None adds all. Under Gymnasium's NEXT_STEP autoreset
            (the default) the step after an episode's end only resets: pass
            `valid=~(previous_terminated | previous_truncated)`.

        Raises:
          ValueError: if a shape or dtype does not fit, an integer is outside its space, or a reward
            is NaN or infinite. Nothing is stored then.
        """
        ring, n = self._ring, self.n_envs
        rows = check("observations", ring.observation_fields, observations, n)
        next_rows = check("next_observations", ring.observation_fields, next_observations, n)
        action_rows = check("actions", ring.action_fields, actions, n)
        reward_row = check_rewards(rewards, n)
        ends, cut = check_flags("terminated", terminated, n), check_flags("truncated", truncated, n)
        added = self._all if valid is None else check_flags("valid", valid, n)
        ring.pack(rows, action_rows, reward_row, next_rows, ends)
        slots = ring.write(ends | cut, added)
        if self.proposal is not None:
            self.proposal.enter(slots if valid is None else slots[slots >= 0], ring.size)

    def interrupt(self, envs: Any = None) -> None:
        """Says that what environments add next does not follow what they added last.

        For a reset in the middle of an episode. (A next observation that differs from the
        observation added next is noticed without this; an equal one is not.)

        Args:
          envs: indices of environments; None means all.

        Raises:
          ValueError: if an index is out of range.
        """
        chosen = np.arange(self.n_envs) if envs is None else np.atleast_1d(to_array(envs))
        if chosen.dtype.kind not in "iu" or not ((chosen >= 0) & (chosen < self.n_envs)).all():
            raise ValueError(f"envs is {chosen}, expected indices from 0 to {self.n_envs - 1}")
        self._ring.interrupt(chosen)

    def sample(
        self,
        batch_size: int,
        *,
        score: Callable[[ReplaySample], Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> ReplaySample:
        """Draws transitions, with replacement.

        Args:
          batch_size: number of draws B; may exceed the number stored.
          score: for "two-stage", and only for it: takes the candidates, a sample of n = ratio · B,
            and returns their [n] scores, finite and non-negative: |TD error|, or a bound of the
            gradient norm. Called without gradient.
          generator: of the buffer's device; None takes the buffer's own.

        Returns:
          The sample: new tensors, yours to change.

        Raises:
          ValueError: if batch_size is below 1, fewer than `min_size` transitions are stored, or
            `score` is missing, not wanted, or returns something else.
        """
        if type(batch_size) is not int or batch_size < 1:
            batch_size = require_integer("batch_size", batch_size)
        size = self._ring.size
        if size < self.min_size:
            raise ValueError(
                f"{size} transitions are stored, expected at least {self.min_size}: add more "
                "before the first sample"
            )
        if (score is None) == (self.kind == "two-stage"):
            expected = "one to score candidates" if score is None else "none"
            raise ValueError(f'score is {score}, expected {expected} with proposal="{self.kind}"')
        generator = self.generator if generator is None else generator
        if score is not None:
            return self._sample_two_stage(batch_size, score, generator)
        if self.proposal is not None:
            # No parameter is in it: the context of `draw`, without gradient, is not needed.
            return self._gather(self.proposal._draw(batch_size, generator, None))
        return self._gather(self._draw_uniformly(batch_size, generator))

    def transitions(self, draw: Draw) -> ReplaySample:
        """The transitions of a draw that was made elsewhere: of another proposal, or in turn.

        Reads the slots to check them, so on a CUDA device it waits for them.

        Args:
          draw: slots [B], long, on the buffer's device, and their log probabilities [B].

        Returns:
          The sample.

        Raises:
          ValueError: if there is none, or a slot is not filled.
        """
        slots = draw.items
        if slots.dtype != torch.long or slots.dim() != 1 or len(slots) == 0:
            raise ValueError(
                f"slots have shape {tuple(slots.shape)} and type {slots.dtype}, expected a vector "
                "of one or more long"
            )
        low, high = (int(bound) for bound in torch.aminmax(slots))
        if low < 0 or high >= self.size:
            raise ValueError(
                f"slots range from {low} to {high}, expected filled ones, 0 to {self.size - 1}"
            )
        return self._gather(draw)

    def _gather(self, draw: Draw) -> ReplaySample:
        observations, actions, rewards, next_observations, discounts = self._ring.read(
            draw.items, self.n_step, self.discount
        )
        fields = self._ring.observation_fields
        return ReplaySample(
            join(fields, observations),
            join(self._ring.action_fields, actions),
            rewards,
            join(fields, next_observations),
            discounts,
            draw,
            self._ring.added,
        )

    def update(self, sample: ReplaySample, signal: Tensor) -> None:
        """Sets the priorities of what was drawn to |signal| + ε; of several draws the last counts.

        A slot that was overwritten since keeps the priority of its new transition. Without
        priorities ("uniform", "two-stage") the signal is checked, and nothing else happens.

        Args:
          sample: as `sample` returned it.
          signal: [B] TD errors of any sign, or gradient norms; finite.

        Raises:
          ValueError: if shapes differ, a number is NaN, infinite or too large, or the sample is
            newer than the buffer. No priority has changed then. On a CUDA device a bad number is
            not waited for: the priorities stay as they are, and a later `update` or `save` raises.
        """
        signal = signal.detach()
        if signal.shape != sample.draw.items.shape:
            raise ValueError(
                f"signal has shape {tuple(signal.shape)}, expected {tuple(sample.draw.items.shape)}"
                ": one number per draw"
            )
        if not 0 <= sample.stamp <= self.added:
            raise ValueError(
                f"the sample was drawn after {sample.stamp} transitions and the buffer has had "
                f"{self.added}: it is of another buffer, or of one that was restored since"
            )
        if signal.dtype not in (torch.float32, torch.float64):
            signal = signal.double()
        signal = signal.to(self.device)
        if self.proposal is not None:
            self.proposal.update(
                sample.draw.items, signal, self.epsilon, sample.stamp, self._ring.added
            )
        elif self.device.type == "cpu" and not bool(signal.isfinite().all()):
            raise ValueError("signal has a NaN or infinite number, expected finite ones")

    def set_priorities(self, slots: Tensor, priorities: Tensor) -> None:
        """Writes priorities as they are, before the exponent; of several for a slot the last.

        Args:
          slots: [B] long, filled ones.
          priorities: [B] finite and positive.

        Raises:
          ValueError: if shapes differ, a slot is not filled, or a priority is zero, negative, NaN,
            infinite or too large; or if the buffer has no priorities. Nothing is written then.
        """
        proposal = self.proposal
        if proposal is None:
            raise ValueError(f'proposal="{self.kind}" has no priorities, expected "priority"')
        proposal.set(slots, priorities)

    def save(self, path: str | Path) -> None:
        """Writes everything into one file: transitions, priorities, position and generator.

        Args:
          path: a safetensors file, which appears whole, in place of an older one, or not at all.
        """
        from awsgd_rl.replay_file import write

        write(self, Path(path))

    def restore(self, path: str | Path) -> None:
        """Reads what `save` wrote. On the CPU the run then goes on bit for bit.

        The settings of draws and returns stay those of this buffer. The generator is restored if
        the file is of the same kind of device.

        Args:
          path: of a buffer of the same capacity, spaces, number of environments, kind of proposal
            and alpha.

        Raises:
          ValueError: if the file is missing, cut short or damaged, or of a buffer that differs. The
            buffer is then as it was.
        """
        from awsgd_rl.replay_file import read

        read(self, Path(path))

    def _sample_two_stage(
        self,
        batch_size: int,
        score: Callable[[ReplaySample], Tensor],
        generator: torch.Generator,
    ) -> ReplaySample:
        candidates = self._gather(self._draw_uniformly(self.ratio * batch_size, generator))
        with torch.no_grad():
            scores = score(candidates)
        if scores.shape != candidates.draw.items.shape:
            raise ValueError(
                f"score returned shape {tuple(scores.shape)}, expected "
                f"{tuple(candidates.draw.items.shape)}: one score per candidate"
            )
        second = two_stage_draw(
            scores, batch_size, uniform_share=self.uniform_share, generator=generator
        )
        return pick(candidates, second)

    def _draw_uniformly(self, count: int, generator: torch.Generator) -> Draw:
        uniforms = draw_uniforms(count, device=self.device, generator=generator)
        slots = uniforms.mul_(self.size).long().clamp_max_(self.size - 1)
        return Draw(slots, torch.full_like(uniforms, -math.log(self.size)))
