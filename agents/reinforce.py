"""REINFORCE: the on-policy policy gradient (Williams 1992), AW-SGD's baseline.

    collect trajectories from P_w
    w += ρ · mean_b g_b,    g_b = Σ_t γ^t (G_t − V(s_t)) ∇ log p_w(a_t | s_t)
    again, `updates` − 1 times:  w += ρ · mean_b min(p_now / p_drawn, clip) g_b
    fit V

With `updates=1` every step is unbiased, and this is the baseline of seed 001 §7; further updates
use the batch again as PPO does, with truncated ratios. `reward_to_go=False, baseline=False` is the
seed's weak form: the whole episode's return on each of its actions.

With networks the factor γ^t is left out, as is usual, advantages are V-trace estimates with
`trace_decay`, standardised over the batch, and single steps have the ratios: see `neural.py`.
"""

from dataclasses import dataclass
from typing import Any

import torch

from awsgd_rl.agents.agent import Agent
from awsgd_rl.agents.config import NETWORK_DEFAULTS, AgentConfig
from awsgd_rl.weights import truncated_weights


@dataclass(frozen=True)
class ReinforceConfig(AgentConfig):
    """Options of REINFORCE."""


class Reinforce(Agent):
    """The on-policy agent. Arguments as `Agent`; options as `ReinforceConfig`."""

    name = "reinforce"
    config_class = ReinforceConfig

    @classmethod
    def defaults(cls, policy: str, config: Any) -> dict[str, Any]:
        """Return what `None` options stand for."""
        if policy == "TablePolicy":
            updates = 1 if config.updates is None else config.updates
            # Found by the bench `tuning`; with several updates, larger steps lock into loops.
            rates = (4.0, 0.01) if updates == 1 else (2.0, 0.03)
            return {
                "batch_size": 20,
                "updates": updates,
                "learning_rate": rates[0],
                "value_rate": rates[1],
                "discount": 0.999,
            }
        return dict(NETWORK_DEFAULTS)

    def update(self, n: int) -> dict[str, float]:
        """Learn from `n` fresh episodes of the target policy."""
        learner, clip = self.learner, self.config.ratio_clip
        fresh = learner.collect(n, 0)
        fresh.log_drawn = learner.log_target(fresh)
        ones = torch.ones(n, dtype=torch.float64, device=learner.device)
        signal = learner.signal(fresh)
        measured = self.measure(fresh, ones, signal, learner.ascend(fresh, ones))
        for _ in range(self.config.updates - 1):
            if learner.ratio == "step":
                learner.ascend(fresh, ones, step_clip=clip)
            else:
                ratio = truncated_weights(learner.log_target(fresh), fresh.log_drawn, clip)
                learner.ascend(fresh, ratio)
        learner.fit_values(fresh, ones)
        return measured
