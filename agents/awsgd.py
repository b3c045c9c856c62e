"""AW-SGD for control: the exploration policy Q_τ, and the draw of past trajectories, are learned.

    collect trajectories from (1 − α) P_w + α Q_τ                          seed 001 §7
    w += ρ · mean_b W_b g_b,       W = p / ((1 − α) p + α q) ≤ 1 / (1 − α)   seed 004
    τ += η · mean_b (‖W_b g_b‖² − mean) r_b ∇ log q_τ,   r = α q / ((1 − α) p + α q)
    store them, scored by ‖W g‖; then `updates` − 1 times:                  seeds 003, 004
        draw b ~ table of scores (mixed with uniform)
        W_b = min(p_now / p_drawn, clip) / (N · table_b)
        w += ρ · mean_b W_b g_b;   score_b = min(p_now / p_drawn, clip) · ‖g_b‖

Variants: "replay" is all of this; "mixture" leaves out the memory, and every step is unbiased;
"paper" is Algorithm 2 of seed 001 to the letter (all trajectories from a free Q_τ, unbounded
weights, τ += η ‖d‖² ∇ log q), unbiased, and it diverges: it is there to be seen. In the others τ
makes each step of w too, and what its own steps learn is the difference, which stays bounded.
The replayed steps have one bias, the truncation at `ratio_clip` (none at infinity). All this holds
for tables on the gridworld; what networks add (standardised advantages, no factor γ^t, ratios of
single steps, a trust region) is said in `neural.py`.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from awsgd_rl import validation
from awsgd_rl.adaptation import RunningScale, TableAdaptation, score_function_coefficients
from awsgd_rl.agents.agent import Agent
from awsgd_rl.agents.config import AgentConfig
from awsgd_rl.proposals import TableProposal
from awsgd_rl.weights import importance_weights, truncated_weights


@dataclass(frozen=True)
class AWSGDConfig(AgentConfig):
    """Options of AW-SGD."""

    variant: Literal["replay", "mixture", "paper"] = "replay"
    """What is learned and used: see the module's page."""
    exploration_share: float | None = None
    """α in [0, 1): share of each batch that Q_τ draws. Default: depends on variant and policy."""
    exploration_learning_rate: float | None = None
    """Step size η of τ, on squared norms divided by their running mean. Default: 0.03 with tables,
    0.001 with networks."""
    exploration_bound: float | None = None
    """Largest difference of τ from w. Default: 3 log-odds with tables, 1 in norm with networks;
    none for the variant "paper"."""
    memory: int | None = None
    """Trajectories kept for replay. Default: 100 with tables, 64 with networks."""
    uniform_share: float = 0.5
    """Share of the replay's draws that are uniform, in [0, 1]: no weight exceeds 1 / share."""


class AWSGD(Agent):
    """The adaptive agent. Arguments as `Agent`; options as `AWSGDConfig`."""

    name = "awsgd"
    config_class = AWSGDConfig

    @classmethod
    def defaults(cls, policy: str, config: Any) -> dict[str, Any]:
        """Return what `None` options stand for."""
        free = config.variant == "paper"
        if policy == "TablePolicy":
            return {
                "batch_size": 20,
                "updates": 16,
                "learning_rate": 4.0,
                "value_rate": 0.01,
                "discount": 0.999,
                "memory": 100,
                "exploration_learning_rate": 0.03,
                "exploration_bound": math.inf if free else 3.0,
                "exploration_share": 0.5 if config.variant == "mixture" else 0.2,
            }
        return {
            "batch_size": 8,
            "updates": 8,
            "learning_rate": 3e-3,
            "value_rate": 0.03,
            "discount": 0.99,
            "memory": 64,
            "exploration_learning_rate": 1e-3,
            "exploration_bound": math.inf if free else 1.0,
            "exploration_share": 0.5 if config.variant == "mixture" else 0.0,
        }

    def __init__(self, policy: str, env: Any, **arguments: Any) -> None:
        super().__init__(policy, env, **arguments)
        device = self.learner.device
        self.scale = RunningScale().to(device)
        self.table = TableProposal(self.config.memory, uniform_share=self.config.uniform_share).to(
            device
        )
        self.table.fill(0)  # slots that hold nothing yet are never drawn
        self.adaptation = TableAdaptation(self.table)

    @property
    def exploration_share(self) -> float:
        """Share of each batch that Q_τ draws."""
        share: float = self.config.exploration_share
        return 1.0 if self.config.variant == "paper" else share

    @property
    def exploration_follows(self) -> bool:
        """Whether Q_τ makes each step of P_w too."""
        return bool(self.config.variant != "paper")

    @property
    def memory_size(self) -> int:
        """Trajectories that the learner keeps."""
        size: int = self.config.memory
        return size if self.config.variant == "replay" else 0

    @classmethod
    def check(cls, config: Any) -> None:
        """Refuse options that are out of range."""
        super().check(config)
        validation.require_name("variant", config.variant, ("replay", "mixture", "paper"))
        validation.require_fraction("exploration_share", config.exploration_share)
        validation.require_positive("exploration_learning_rate", config.exploration_learning_rate)
        if config.exploration_bound != math.inf:
            validation.require_positive("exploration_bound", config.exploration_bound)
        validation.require_probability("uniform_share", config.uniform_share)
        validation.require_integer("memory", config.memory, config.batch_size)

    def update(self, n: int) -> dict[str, float]:
        """Learn from `n` fresh episodes, then from past ones."""
        learner = self.learner
        explored = round(self.exploration_share * n)
        fresh = learner.collect(n - explored, explored)
        weights, exploration_ratio = self.weigh(fresh, explored / n)
        signal = learner.signal(fresh)
        if explored:  # before w moves, and τ with it: the coefficients are for τ as it drew
            self.explore(fresh, weights * signal, exploration_ratio)
        measured = self.measure(fresh, weights, signal, learner.ascend(fresh, weights))
        learner.fit_values(fresh, weights)
        if self.config.variant == "replay":
            slots = learner.remember(fresh)
            self.table.fill(max(self.table.filled, int(slots.max()) + 1))
            self.table.set_scores(slots, weights * signal)
            self.replay(n, self.config.updates - 1)
        return measured

    def weigh(self, fresh: Any, share: float) -> tuple[Tensor, Tensor]:
        """Set the density that `fresh` was drawn with; return [B] p/m and [B] share·q/m."""
        log_p = self.learner.log_target(fresh)
        if share == 0.0:
            fresh.log_drawn = log_p
            return torch.ones_like(log_p), torch.zeros_like(log_p)
        log_q = self.learner.log_exploration(fresh)
        shares = log_p.new_tensor([1.0 - share, share]).log()
        fresh.log_drawn = torch.logsumexp(torch.stack([log_p, log_q], 1) + shares, 1)
        ratio = share * importance_weights(log_q, fresh.log_drawn)
        return importance_weights(log_p, fresh.log_drawn), ratio

    def explore(self, fresh: Any, norms: Tensor, exploration_ratio: Tensor) -> None:
        """Step τ down the second moment of the weighted gradient (seed 001 eq. 11)."""
        squared = norms.square()
        if self.config.variant == "paper":
            coefficients = squared
        else:
            coefficients = score_function_coefficients(squared, scale=self.scale.update(squared))
        self.learner.ascend_exploration(fresh, coefficients * exploration_ratio)

    def replay(self, n: int, updates: int) -> None:
        """Take steps on `n` past trajectories each, drawn by the table of their gradient norms.

        All are drawn at once, since a draw's weight is of the table as it was: the table is then
        computed once a batch, and takes in the new scores at its end.
        """
        if updates == 0:
            return
        learner, clip = self.learner, self.config.ratio_clip
        draw = self.table.draw(n * updates, generator=self.generator)
        log_uniform = torch.full_like(draw.log_q, -math.log(self.table.filled))
        memory_weights = importance_weights(log_uniform, draw.log_q).reshape(updates, n)
        scores = []
        for items, weights in zip(draw.items.reshape(updates, n), memory_weights, strict=True):
            past = learner.recall(items)
            if learner.ratio == "step":
                scores.append(learner.signal(past, clip))
                learner.ascend(past, weights, clip)
            else:
                ratio = truncated_weights(learner.log_target(past), past.log_drawn, clip)
                scores.append(ratio * learner.signal(past))
                learner.ascend(past, ratio * weights)
        self.adaptation.update(draw, torch.cat(scores), log_uniform)
