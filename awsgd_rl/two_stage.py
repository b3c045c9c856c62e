"""Two-stage draws: many candidates, scored without gradient; few of them, drawn by score, to learn.

Draw m B candidates, score each by a forward pass, draw B of them with replacement in proportion to
the scores, and weight each by mean(s) / s_i (Katharopoulos & Fleuret 2018, Algorithm 1; LaBER:
Lahire 2022, Algorithm 1). Scores are as fresh as the parameters, where a table's are as old as the
item's last visit; in exchange m B items are fetched and run through the model for B gradients.
"""

import copy
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from awsgd_rl.adaptation import RunningScale
from awsgd_rl.base import Draw, Proposal
from awsgd_rl.sampling import check_scores, cumulative_scores, draw_uniforms, sample_from_cumulative
from awsgd_rl.validation import require_fraction, require_integer, require_positive
from awsgd_rl.weights import importance_weights

__all__ = ["TwoStageSampler", "chain", "two_stage_draw", "variance_reduction"]


def two_stage_draw(
    scores: Tensor,
    count: int,
    *,
    uniform_share: float = 0.0,
    generator: torch.Generator | None = None,
) -> Draw:
    """Draws candidates with replacement in proportion to their scores: the second stage.

    r(k) = (1 − u) s_k / Σ s + u / n, uniform where all scores are 0. The mean over draws of
    f_k / (n r_k), which is f_k mean(s) / s_k at u = 0, has the candidates' mean of f as its
    expectation. At u = 0 a candidate of zero score is never drawn: let f be 0 where the score is.

    Args:
      scores: [n] one score per candidate, finite and non-negative: a bound of its gradient norm;
        |TD| in replay. Best is p / q ‖∇f‖ with p / q the weight of the first stage.
      count: number of draws B.
      uniform_share: u in [0, 1); the second stage's weights then stay below 1 / u.
      generator: a generator of the scores' device; None takes PyTorch's own.

    Returns:
      The draw: positions [B] among the candidates, and log r.

    Raises:
      ValueError: if count is below 1, the share is out of range, or the scores are not a vector of
        finite, non-negative numbers.
    """
    require_integer("count", count)
    probabilities = _second_stage(scores, uniform_share)
    uniforms = draw_uniforms(count, device=probabilities.device, generator=generator)
    positions = sample_from_cumulative(cumulative_scores(probabilities), uniforms)
    return Draw(positions, probabilities.index_select(0, positions).log())


def chain(candidates: Draw, second: Draw) -> Draw:
    """The items of the second stage, with the log density that makes p / q their weight.

    q = q₁(x) n r(k): the weight p / q₁ of the first stage times 1 / (n r) of the second. It is no
    density of x, since it depends on the other candidates; but weighted means are unbiased.

    Args:
      candidates: the first stage, n draws of a proposal.
      second: B positions among them, from `two_stage_draw`.

    Returns:
      The draw of B items.
    """
    log_q = candidates.log_q.index_select(0, second.items)
    return Draw(
        candidates.items.index_select(0, second.items),
        log_q + second.log_q + math.log(len(candidates.log_q)),
    )


def variance_reduction(scores: Tensor, count: int, *, uniform_share: float = 0.0) -> Tensor:
    """How much less a two-stage gradient of B draws varies than B draws of the first stage alone.

        1 / R = 1 / m − 1 / n + mean(s² / (n r)) / mean(s²),    m = n / B

    where s is the norm of a candidate's weighted gradient, and r what the second stage draws by:
    at u = 0 the last term is mean(s)² / mean(s²), the 1 / τ² of Katharopoulos & Fleuret (2018, eq.
    26). The first, which they leave out, is the noise of the candidates themselves: no second
    stage lowers it, and R stays below m. In expectation over candidates numerator and denominator
    are exact where the mean gradient is 0; elsewhere R is larger. For a score that only bounds
    the norm it is an estimate, mostly too high.

    Args:
      scores: [n] scores of the candidates.
      count: B, below n.
      uniform_share: u of the second stage.

    Returns:
      [] float64; a little below 1 where all scores are alike.

    Raises:
      ValueError: as `two_stage_draw`.
    """
    require_integer("count", count)
    probabilities = _second_stage(scores, uniform_share)
    n = len(probabilities)
    squares = (scores.detach().to(torch.float64) / scores.amax()).square()
    second = torch.where(squares > 0.0, squares / (n * probabilities), 0.0).mean()
    ratio = (second / squares.mean()).nan_to_num(nan=1.0)
    return 1.0 / (count / n - 1.0 / n + ratio)


def _second_stage(scores: Tensor, uniform_share: float) -> Tensor:
    """[n] the probability of each candidate, checked."""
    require_fraction("uniform_share", uniform_share)
    scores = check_scores(scores)
    # By the largest first, so that the sum stays finite; 0/0 only where all scores are 0.
    scores = scores / scores.amax()
    probabilities = (scores / scores.sum()).nan_to_num(nan=1.0 / len(scores))
    return (1.0 - uniform_share) * probabilities + uniform_share / len(scores)


class TwoStageSampler:
    """Two-stage draws while they pay for the forward pass, draws of the proposal otherwise.

        draw = sampler.draw(64, score=lambda items: gradient_bound(model(x[items]), y[items]))
        weighted_mean(losses, importance_weights(log_p, draw.log_q)).backward()
        optimizer.step()
        sampler.step_done()

    One of `measure_every` steps is two-stage in any case, and is timed: the scoring inside `draw`,
    the rest from there to `step_done`. A step of B draws in two stages takes T_score + T; it is
    worth a step of R B draws, R the `variance_reduction`, which would take R T. So it pays if

        speed-up = R T / (T + T_score) > 1.

    Katharopoulos & Fleuret (2018, §3.3) have m B + 3 B < 3 τ B for this, where a backward pass
    costs two forward passes (`cost` = m / 3), and τ, not τ², stands for R. By either, m = 4 pays
    from τ² ≈ 5.5 on: scores must be far from alike. A step must be limited by noise for R to be
    worth anything: early in training, where a larger batch does not help, this does not either.
    Nor does a proposal of norms serve Adam and RMSprop as it serves SGD (Lahire 2023, §3.2).

    Args:
      proposal: the first stage; uniform for most. To adapt it, score its own draws.
      ratio: m, candidates for each draw, 2 or more.
      uniform_share: of the second stage; bounds its weights.
      measure_every: steps from one measurement to the next; 1 draws in two stages always.
      threshold: speed-up above which it is on.
      decay: of the running means, per measurement.
      cost: T_score / T, if known: then no clock is read, and the same seed draws the same items.
      clock: returns seconds; on a CUDA device the measured steps wait for it.

    Raises:
      ValueError: if a setting is out of range, or the proposal is conditional.
    """

    def __init__(
        self,
        proposal: Proposal,
        *,
        ratio: int = 4,
        uniform_share: float = 0.1,
        measure_every: int = 20,
        threshold: float = 1.0,
        decay: float = 0.8,
        cost: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if proposal.conditional:
            raise ValueError(f"{type(proposal).__name__} is conditional, expected one that is not")
        self.proposal = proposal
        self.ratio = require_integer("ratio", ratio, minimum=2)
        self.uniform_share = require_fraction("uniform_share", uniform_share)
        self.measure_every = require_integer("measure_every", measure_every)
        self.threshold = require_positive("threshold", threshold)
        self.cost = None if cost is None else require_positive("cost", cost)
        self.clock = clock
        self.steps = 0
        """Number of draws so far."""
        self.two_stage_steps = 0
        """Number of them in two stages."""
        self.active = False
        """Whether the next draws are in two stages; measured ones are in any case."""
        self._inverse = RunningScale(decay)  # of 1 / R
        self._score_seconds = RunningScale(decay)
        self._step_seconds = RunningScale(decay)
        self._started: float | None = None

    @torch.no_grad()
    def draw(
        self,
        count: int,
        score: Callable[[Tensor], Tensor],
        *,
        log_target: Callable[[Tensor], Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> Draw:
        """Draws the batch of a step.

        Args:
          count: number of draws B.
          score: [n] items to [n] bounds of their gradients' norms; called without gradient. Put a
            model with dropout or batch normalisation into evaluation mode in there.
          log_target: [n] items to [n] log p; None for a uniform target.
          generator: a generator of the proposal's device; None takes PyTorch's own.

        Returns:
          The draw: p / q is the weight of each item, in one stage or two.

        Raises:
          ValueError: if count is below 1, the scores are not [n] finite, non-negative numbers, or
            `step_done` was not called after a step that was timed.
        """
        require_integer("count", count)
        if self._started is not None:
            raise ValueError("a step is still timed: call step_done() at the end of each step")
        measured = self.steps % self.measure_every == 0
        if not (measured or self.active):
            draw = self.proposal.draw(count, generator=generator)
            self.steps += 1
            return draw
        timed = measured and self.cost is None
        started = self._now() if timed else 0.0
        candidates = self.proposal.draw(self.ratio * count, generator=generator)
        scores = check_scores(score(candidates.items))
        if scores.shape != candidates.log_q.shape:
            raise ValueError(
                f"score returned shape {tuple(scores.shape)}, expected "
                f"{tuple(candidates.log_q.shape)}: one score per candidate"
            )
        # Of a uniform target the constant does not matter: only ratios of scores do.
        log_p = torch.zeros_like(scores) if log_target is None else log_target(candidates.items)
        scores = importance_weights(log_p, candidates.log_q) * scores
        second = two_stage_draw(
            scores, count, uniform_share=self.uniform_share, generator=generator
        )
        self.steps += 1
        self.two_stage_steps += 1
        if measured:
            reduction = variance_reduction(scores, count, uniform_share=self.uniform_share)
            self._inverse.update(1.0 / reduction.cpu())
            self._decide()
        if timed:
            self._started = self._now()
            self._score_seconds.update(torch.tensor(self._started - started))
        return chain(candidates, second)

    def step_done(self) -> None:
        """Ends a step: what lies between `draw` and here is the time that it takes by itself."""
        if self._started is not None:
            self._step_seconds.update(torch.tensor(self._now() - self._started))
            self._started = None
            self._decide()

    @property
    def reduction(self) -> float:
        """R as it was measured last, over the running mean; NaN before the first measurement."""
        return 1.0 / self._inverse.mean().item() if self._inverse.weight > 0.0 else math.nan

    @property
    def relative_cost(self) -> float:
        """T_score / T, given or measured; NaN before the first timed step is done."""
        if self.cost is not None:
            return self.cost
        if not self._step_seconds.weight > 0.0:
            return math.nan
        return (self._score_seconds.mean() / self._step_seconds.mean()).item()

    @property
    def speed_up(self) -> float:
        """R T / (T + T_score); NaN before the first measurement is complete."""
        return self.reduction / (1.0 + self.relative_cost)

    def state_dict(self) -> dict[str, Any]:
        """A copy of the state, but for the proposal's, which has its own."""
        return copy.deepcopy(
            {
                "steps": self.steps,
                "two_stage_steps": self.two_stage_steps,
                "active": self.active,
                **{name: running.state_dict() for name, running in self._means().items()},
            }
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned.

        Args:
          state: of a sampler with the same settings, saved between two steps.
        """
        for name, running in self._means().items():
            running.load_state_dict(state[name])
        self.steps, self.two_stage_steps = state["steps"], state["two_stage_steps"]
        self.active = state["active"]
        self._started = None

    def _means(self) -> dict[str, RunningScale]:
        return {
            "inverse": self._inverse,
            "score_seconds": self._score_seconds,
            "step_seconds": self._step_seconds,
        }

    def _decide(self) -> None:
        self.active = self.speed_up > self.threshold  # NaN is not

    def _now(self) -> float:
        for tensor in (*self.proposal.parameters(), *self.proposal.buffers()):
            if tensor.device.type == "cuda":
                torch.cuda.synchronize(tensor.device)
            break
        return self.clock()
