"""AW-SGD for control: the exploration policy Q_τ, and the draw of past trajectories, are learned.

    collect trajectories from (1 − α) P_w + α Q_τ                          seed 001 §7
    w += ρ · mean_b W_b g_b,       W = p / ((1 − α) p + α q) ≤ 1 / (1 − α)   seed 004
    learn Q_τ from W ‖g‖, so that W g varies less                           `exploration.py`
    store them with a score each; then `updates` − 1 times:                 seeds 003, 004
        draw b ~ table of scores (mixed with uniform)
        learn the critic from them; the score becomes by how much they moved it   `critic.py`
        W_b = min(p_now / p_drawn, clip) / (N · table_b)
        w += ρ · mean_b W_b g_b

Variants: "replay" is all of this; "mixture" leaves out the memory and the critic, and every step is
unbiased; "paper" is Algorithm 2 of seed 001 to the letter (all trajectories from a free Q_τ,
unbounded weights, τ += η ‖d‖² ∇ log q), unbiased, and it diverges: it is there to be seen.

The replay has three biases: the truncation at `ratio_clip` (none at infinity); the error of the
critic, whose gradient g takes the place of the returns' (none with `critic=False`; the score is
then W ‖g‖); and that of data used again: after their first step w, and the values, depend on the
trajectories that are weighted again, for which no ratio makes up ("mixture" and updates=1 have
none). All this holds for tables on the gridworld; what networks have (no critic of actions,
τ += η · mean_b (‖W_b g_b‖² − mean) r_b ∇ log q_τ in seed 001's way, standardised advantages, no
factor γ^t, ratios of single steps, a trust region) is said in `neural.py`.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from awsgd_rl import validation
from awsgd_rl.adaptation import TableAdaptation
from awsgd_rl.agents.agent import Agent
from awsgd_rl.agents.config import NETWORK_DEFAULTS, AgentConfig, count_explored
from awsgd_rl.agents.learner import compiled_grid
from awsgd_rl.proposals import TableProposal
from awsgd_rl.weights import importance_weights


@dataclass(frozen=True)
class AWSGDConfig(AgentConfig):
    """Options of AW-SGD."""

    variant: Literal["replay", "mixture", "paper"] = "replay"
    """What is learned and used: see the module's page."""
    exploration_share: float | None = None
    """α in [0, 1): share of each batch that Q_τ draws. Default: depends on variant and policy."""
    exploration_learning_rate: float | None = None
    """Step size η of τ, on squared norms divided by their running mean, where τ makes steps of its
    own (everywhere but on the gridworld, and there in the variant "paper"). Default: 0.03 with
    tables, 0.001 with networks."""
    exploration_bound: float | None = None
    """Largest norm of τ − w where τ makes steps of its own. Default: 3 with tables, 1 with
    networks, none for the variant "paper"."""
    critic: bool | None = None
    """Gradients are those of a critic learned from what is replayed, whose error is a bias. False:
    of the returns. Default: True for tables on the gridworld with the variant "replay", returns to
    go and a baseline, and else not possible."""
    memory: int | None = None
    """Trajectories kept for replay. Default: 100 with tables, 64 with networks."""
    uniform_share: float = 0.5
    """Share of the replay's draws that are uniform, in [0, 1]: no weight exceeds 1 / share."""


class AWSGD(Agent):
    """The adaptive agent. Arguments as `Agent`; options as `AWSGDConfig`."""

    name = "awsgd"
    config_class = AWSGDConfig
    lag = 0
    """Updates between the policies that draw a batch and those that learn from it; more than 0 only
    with rollout workers (`distributed.py`)."""

    @classmethod
    def defaults(cls, policy: str, config: Any) -> dict[str, Any]:
        """Return what `None` options stand for."""
        free = config.variant == "paper"
        if policy == "TablePolicy":
            # A critic's gradient varies so little that smaller batches and larger steps pay.
            batch_size, learning_rate = (20, 4.0) if config.critic is False else (10, 16.0)
            return {
                "batch_size": batch_size,
                "updates": 16,
                "learning_rate": learning_rate,
                "value_rate": 0.01,
                "discount": 0.999,
                "memory": 100,
                "exploration_learning_rate": 0.03,
                "exploration_bound": math.inf if free else 3.0,
                "exploration_share": 0.5 if config.variant == "mixture" else 0.2,
            }
        return {
            **NETWORK_DEFAULTS,
            "memory": 64,
            "exploration_learning_rate": 1e-3,
            "exploration_bound": math.inf if free else 1.0,
            "exploration_share": 0.5 if config.variant == "mixture" else 0.0,
        }

    def __init__(self, policy: str, env: Any, **arguments: Any) -> None:
        super().__init__(policy, env, **arguments)
        device = self.learner.device
        self.table = TableProposal(self.config.memory, uniform_share=self.config.uniform_share).to(
            device
        )
        self.table.fill(0)  # slots that hold nothing yet are never drawn
        self.adaptation = TableAdaptation(self.table)

    def modules(self) -> dict[str, nn.Module]:
        """Return the table of scores."""
        return {"table": self.table}

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

    @property
    def uses_critic(self) -> bool:
        """Whether gradients are those of a critic."""
        return bool(self.config.critic)

    def _resolve(self, config: AgentConfig) -> AgentConfig:
        """Fill in the defaults, those that depend on the environment too."""
        assert isinstance(config, AWSGDConfig)
        returns = not (config.baseline and config.reward_to_go)
        grid = compiled_grid(self.policy, self.env, config)
        possible = config.variant == "replay" and not returns and grid is not None
        if config.critic and not possible:
            raise ValueError(
                "got critic=True, expected it only for TablePolicy on the gridworld with "
                "variant='replay', baseline=True and reward_to_go=True: leave it out"
            )
        return super()._resolve(replace(config, critic=possible and config.critic is not False))

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
        explored = count_explored(self.exploration_share, n)
        fresh = learner.collect(n - explored, explored)
        weights, exploration_ratio = self.weigh(fresh, explored / n)
        weights, step_clip = self.truncate(weights)
        signal = learner.signal(fresh, step_clip)
        if explored:  # before w moves, and τ with it: the coefficients are for τ as it drew
            self.explore(fresh, weights * signal, exploration_ratio)
        norm = learner.ascend(fresh, weights, step_clip)
        measured = self.measure(fresh, weights, signal, norm)
        errors = learner.fit_values(fresh, weights)
        if self.config.variant == "replay":
            slots = learner.remember(fresh)
            self.table.fill(max(self.table.filled, int(slots.max()) + 1))
            self.table.set_scores(slots, weights * signal if errors is None else errors)
            self.replay(n, self.config.updates - 1)
        return measured

    def weigh(self, fresh: Any, share: float) -> tuple[Tensor, Tensor]:
        """Set the density m that `fresh` was drawn with; return [B] p/m and [B] share·q/m.

        With a lag, `fresh` has brought its m along: that of older policies than p and q.
        """
        log_p = self.learner.log_target(fresh)
        if share == 0.0:
            if self.lag == 0:
                fresh.log_drawn = log_p
            return importance_weights(log_p, fresh.log_drawn), torch.zeros_like(log_p)
        log_q = self.learner.log_exploration(fresh)
        if self.lag == 0:
            shares = log_p.new_tensor([1.0 - share, share]).log()
            fresh.log_drawn = torch.logsumexp(torch.stack([log_p, log_q], 1) + shares, 1)
        ratio = share * importance_weights(log_q, fresh.log_drawn)
        return importance_weights(log_p, fresh.log_drawn), ratio

    def truncate(self, weights: Tensor) -> tuple[Tensor, float | None]:
        """Return the weights [B] that a batch is learned from with, and the clip of its steps.

        Unbounded ones, which a lag brings, are treated as `replay` treats past trajectories.
        """
        clip = self.config.ratio_clip
        if self.lag == 0 or self.config.variant != "replay":
            return weights, None
        if self.learner.ratio == "step":
            return torch.ones_like(weights), clip
        return weights.clamp(max=clip), None

    def explore(self, fresh: Any, norms: Tensor, exploration_ratio: Tensor) -> None:
        """Move Q_τ to where the weighted gradient varies less."""
        if self.config.variant == "paper":
            self.learner.ascend_exploration(fresh, norms.square() * exploration_ratio)
        else:
            self.learner.explore(fresh, norms, exploration_ratio)

    def replay(self, n: int, updates: int) -> None:
        """Take steps on `n` past trajectories each, drawn by the table of their gradient norms.

        All are drawn at once, since a draw's weight is of the table as it was: the table is then
        computed once a batch, and takes in the new scores at its end.
        """
        if updates == 0:
            return
        draw = self.table.draw(n * updates, generator=self.generator)
        log_uniform = torch.full_like(draw.log_q, -math.log(self.table.filled))
        weights = importance_weights(log_uniform, draw.log_q).reshape(updates, n)
        slots = draw.items.reshape(updates, n)
        scores = self.learner.replay(slots, weights, self.config.ratio_clip)
        self.adaptation.update(draw, scores.flatten(), log_uniform)
