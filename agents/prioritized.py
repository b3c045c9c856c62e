"""DQN, SAC and TD3 of Stable-Baselines3 with prioritized replay.

    model = PrioritizedDQN("MlpPolicy", "CartPole-v1", alpha=0.6, beta=0.4, seed=0)
    model.learn(50_000)

Each is Stable-Baselines3's own but for `train`, which weights every mean over the batch, and gives
the errors back to the buffer. With proposal="uniform" all weights are 1, and a step is the plain
algorithm's. The options, and what is saved how, are described at `Prioritized`.

All losses are means over the target, which is uniform over the transitions stored; so all of them
have the weights, the actor's and the entropy coefficient's too. Without, an actor would learn at
states where the critic is wrong, which harms it (Saglam 2023).
"""

from typing import Any

import torch
from stable_baselines3 import DQN, SAC, TD3
from stable_baselines3.common.utils import polyak_update
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss

from awsgd_rl.agents.prioritized_base import Prioritized
from awsgd_rl.agents.prioritized_buffer import PrioritizedReplayBuffer, PrioritizedSamples

__all__ = ["PrioritizedDQN", "PrioritizedReplayBuffer", "PrioritizedSAC", "PrioritizedTD3"]


class PrioritizedDQN(Prioritized, DQN):
    """DQN (Mnih 2015) with prioritized replay (Schaul 2016).

    Args:
      *args: of Stable-Baselines3's DQN.
      double_q: the online network chooses the next action, the target network values it (van
        Hasselt 2016).
      **kwargs: of Stable-Baselines3's DQN, and of `Prioritized`.

    Raises:
      ValueError: if an option is out of range.
    """

    def __init__(self, *args: Any, double_q: bool = False, **kwargs: Any) -> None:
        self.double_q = double_q
        super().__init__(*args, **kwargs)

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Makes so many steps, of a batch each."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        used, losses = [], []
        for _ in range(gradient_steps):
            batch, weights = self._draw(batch_size)
            used.append(weights)
            errors, signal = self._evaluate(batch)
            self.buffer.update(batch, signal)
            huber = smooth_l1_loss(errors, torch.zeros_like(errors), reduction="none")
            loss = (weights * huber.squeeze(1)).mean()
            losses.append(loss.detach())
            self.policy.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
            self.policy.optimizer.step()
        self._n_updates += gradient_steps
        self._record(used, loss=losses)

    def _targets(self, batch: PrioritizedSamples) -> Tensor:
        values: Tensor = self.q_net_target(batch.next_observations)
        if self.double_q:
            chosen = self.q_net(batch.next_observations).argmax(1, keepdim=True)
            values = values.gather(1, chosen)
        else:
            values = values.amax(1, keepdim=True)
        return batch.rewards + batch.discounts * values

    def _values(self, batch: PrioritizedSamples) -> Tensor:
        values: Tensor = self.q_net(batch.observations).gather(1, batch.actions.long())
        return values

    def _heads(self) -> list[nn.Module]:
        return [self.q_net]

    def _slopes(self, errors: Tensor) -> Tensor:
        return errors.clamp(-1.0, 1.0)


class PrioritizedSAC(Prioritized, SAC):
    """SAC (Haarnoja 2018) with prioritized replay; the signal is of all critics.

    Args:
      *args: of Stable-Baselines3's SAC.
      **kwargs: of Stable-Baselines3's SAC, and of `Prioritized`.

    Raises:
      ValueError: if an option is out of range.
    """

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """Makes so many steps, of a batch each."""
        self.policy.set_training_mode(True)
        optimizers = [self.actor.optimizer, self.critic.optimizer]
        if self.ent_coef_optimizer is not None:
            optimizers.append(self.ent_coef_optimizer)
        self._update_learning_rate(optimizers)
        used, critic_losses, actor_losses, ent_coefs, ent_coef_losses = [], [], [], [], []
        for gradient_step in range(gradient_steps):
            batch, weights = self._draw(batch_size)
            used.append(weights)
            if self.use_sde:
                self.actor.reset_noise()
            actions, log_prob = self.actor.action_log_prob(batch.observations)
            errors, signal = self._evaluate(batch)
            self.buffer.update(batch, signal)
            ent_coef = self._ent_coef()
            ent_coefs.append(ent_coef)
            if self.ent_coef_optimizer is not None and self.log_ent_coef is not None:
                missing = (log_prob + float(self.target_entropy)).detach()
                ent_coef_loss = -(self.log_ent_coef * weights * missing).mean()
                ent_coef_losses.append(ent_coef_loss.detach())
                _step(self.ent_coef_optimizer, ent_coef_loss)

            critic_loss = 0.5 * (weights * errors.square().sum(1)).mean()
            critic_losses.append(critic_loss.detach())
            _step(self.critic.optimizer, critic_loss)

            values = torch.cat(self.critic(batch.observations, actions), dim=1).amin(1)
            actor_loss = (weights * (ent_coef * log_prob - values)).mean()
            actor_losses.append(actor_loss.detach())
            _step(self.actor.optimizer, actor_loss)

            if gradient_step % self.target_update_interval == 0:
                polyak_update(self.critic.parameters(), self.critic_target.parameters(), self.tau)
                polyak_update(self.batch_norm_stats, self.batch_norm_stats_target, 1.0)
        self._n_updates += gradient_steps
        self._record(
            used,
            ent_coef=ent_coefs,
            actor_loss=actor_losses,
            critic_loss=critic_losses,
            ent_coef_loss=ent_coef_losses,
        )

    def _ent_coef(self) -> Tensor:
        if self.log_ent_coef is None:
            return self.ent_coef_tensor
        coefficient: Tensor = self.log_ent_coef.detach().exp()
        return coefficient

    def _targets(self, batch: PrioritizedSamples) -> Tensor:
        actions, log_prob = self.actor.action_log_prob(batch.next_observations)
        values = torch.cat(self.critic_target(batch.next_observations, actions), dim=1)
        values = values.amin(1, keepdim=True) - self._ent_coef() * log_prob.unsqueeze(1)
        return batch.rewards + batch.discounts * values

    def _values(self, batch: PrioritizedSamples) -> Tensor:
        return torch.cat(self.critic(batch.observations, batch.actions), dim=1)

    def _heads(self) -> list[nn.Module]:
        return self.critic.q_networks


class PrioritizedTD3(Prioritized, TD3):
    """TD3 (Fujimoto 2018) with prioritized replay; the signal is of all critics.

    Args:
      *args: of Stable-Baselines3's TD3.
      **kwargs: of Stable-Baselines3's TD3, and of `Prioritized`.

    Raises:
      ValueError: if an option is out of range.
    """

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Makes so many steps, of a batch each."""
        self.policy.set_training_mode(True)
        self._update_learning_rate([self.actor.optimizer, self.critic.optimizer])
        used, critic_losses, actor_losses = [], [], []
        for _ in range(gradient_steps):
            self._n_updates += 1
            batch, weights = self._draw(batch_size)
            used.append(weights)
            errors, signal = self._evaluate(batch)
            self.buffer.update(batch, signal)
            critic_loss = (weights * errors.square().sum(1)).mean()
            critic_losses.append(critic_loss.detach())
            _step(self.critic.optimizer, critic_loss)
            if self._n_updates % self.policy_delay == 0:
                actions = self.actor(batch.observations)
                values = self.critic.q1_forward(batch.observations, actions).squeeze(1)
                actor_loss = -(weights * values).mean()
                actor_losses.append(actor_loss.detach())
                _step(self.actor.optimizer, actor_loss)
                self._move_targets()
        self._record(used, actor_loss=actor_losses, critic_loss=critic_losses)

    def _move_targets(self) -> None:
        polyak_update(self.critic.parameters(), self.critic_target.parameters(), self.tau)
        polyak_update(self.actor.parameters(), self.actor_target.parameters(), self.tau)
        polyak_update(self.critic_batch_norm_stats, self.critic_batch_norm_stats_target, 1.0)
        polyak_update(self.actor_batch_norm_stats, self.actor_batch_norm_stats_target, 1.0)

    def _targets(self, batch: PrioritizedSamples) -> Tensor:
        noise = torch.empty_like(batch.actions).normal_(0, self.target_policy_noise)
        noise = noise.clamp(-self.target_noise_clip, self.target_noise_clip)
        actions = (self.actor_target(batch.next_observations) + noise).clamp(-1, 1)
        values = torch.cat(self.critic_target(batch.next_observations, actions), dim=1)
        return batch.rewards + batch.discounts * values.amin(1, keepdim=True)

    def _values(self, batch: PrioritizedSamples) -> Tensor:
        return torch.cat(self.critic(batch.observations, batch.actions), dim=1)

    def _heads(self) -> list[nn.Module]:
        return self.critic.q_networks


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
