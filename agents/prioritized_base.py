"""What the prioritized algorithms of Stable-Baselines3 share: options, draws, weights and files."""

import io
import pathlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Literal, get_args

import numpy as np
import torch
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from torch import Tensor, nn

from awsgd_rl.agents.prioritized_buffer import PrioritizedReplayBuffer, PrioritizedSamples
from awsgd_rl.replay import PROPOSALS
from awsgd_rl.validation import (
    require_name,
    require_non_negative,
    require_probability,
)
from awsgd_rl.weights import annealed_weights, effective_sample_size

__all__ = ["Prioritized"]

Normaliser = Literal["default", "max", "mean", "none"]
SIGNALS: Final = ("td-error", "gradient-norm")
_DEFAULTS: Final[dict[str, tuple[float, Literal["max"] | None]]] = {
    "priority": (0.4, "max"),
    "two-stage": (1.0, None),
    "uniform": (1.0, None),
}
"""β at the start, and normaliser: those of PER and of LaBER."""


class Prioritized(OffPolicyAlgorithm):
    """An off-policy algorithm that draws from `PrioritizedReplayBuffer` and weights its losses.

    Saved files: `model.save` writes Stable-Baselines3's zip file, whose loading unpickles: load it
    from people you trust. `save_replay_buffer` writes this package's safetensors file instead of
    a pickle, transitions, priorities, position and generator of draws, and `load_replay_buffer`
    reads nothing else. With both, the same states of PyTorch's and NumPy's global generators, and
    the environment as it was (`force_reset=False`), a run goes on bit for bit on the CPU.

    Logged beside Stable-Baselines3's own: `train/beta`; `train/effective_sample_size`, of a batch;
    and `train/max_weight`, the largest weight of a batch over the mean one.

    Args:
      *args: of the algorithm: policy, env, ...
      proposal: "priority" (PER: by the signal when a transition was last drawn), "two-stage"
        (LaBER: several times as many uniform candidates, drawn from by their signals now) or
        "uniform".
      signal: "td-error", |TD|, the mean of all critics; or "gradient-norm", the norm of the
        gradient of a transition's loss in the last layer: |slope of the loss| times the norm of
        that layer's input (its first factor alone is Katharopoulos & Fleuret's bound, 2018).
      alpha: exponent of priorities ("priority"); 0 is uniform.
      beta: exponent of the weights: a number in [0, 1], from which it rises to 1, linearly over
        the training; or a function of the progress that remains (from 1 to 0), as learning rates
        have. None takes 0.4 with priorities (Schaul 2016), 1, unbiased, with the others.
      uniform_share: share of uniform draws, which bounds the weights.
      normaliser: divide the weights by the batch's "max" or "mean", or by nothing, "none";
        "default" is "max" with priorities, as in PER, "none" with the others.
      **kwargs: of the algorithm. `n_steps` works with Dict observations too.
        `replay_buffer_kwargs` takes epsilon, stratified, ratio, storage_device and
        handle_timeout_termination.

    Raises:
      ValueError: if an option is out of range, or another buffer is asked for.
    """

    def __init__(
        self,
        *args: Any,
        proposal: Literal["priority", "two-stage", "uniform"] = "priority",
        signal: Literal["td-error", "gradient-norm"] = "td-error",
        alpha: float = 0.6,
        beta: float | Callable[[float], float] | None = None,
        uniform_share: float = 0.0,
        normaliser: Normaliser = "default",
        _init_setup_model: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, _init_setup_model=False, **kwargs)  # type: ignore[call-arg]
        self.proposal, self.signal, self.normaliser = proposal, signal, normaliser
        self.alpha, self.beta, self.uniform_share = alpha, beta, uniform_share
        self.diagnostics: dict[str, float] = {}
        """Of the last training: effective sample size and largest weight."""
        if _init_setup_model:
            self._setup_model()

    @property
    def buffer(self) -> PrioritizedReplayBuffer:
        """The replay buffer."""
        if not isinstance(self.replay_buffer, PrioritizedReplayBuffer):
            name = type(self.replay_buffer).__name__
            raise ValueError(f"replay_buffer is a {name}, expected a PrioritizedReplayBuffer")
        return self.replay_buffer

    def _setup_model(self) -> None:
        # Also called by `load`, whose arguments may have changed the options.
        self._check_options()
        self.replay_buffer_class = PrioritizedReplayBuffer
        if self.replay_buffer is None:
            seed = np.random.randint(2**31 - 1) if self.seed is None else self.seed  # noqa: NPY002
            settings = {
                "proposal": self.proposal,
                "uniform_share": self.uniform_share,
                "n_steps": self.n_steps,
                "gamma": self.gamma,
                "seed": seed,
                **({"alpha": self.alpha} if self.proposal == "priority" else {}),
            }
            self.replay_buffer = PrioritizedReplayBuffer(
                self.buffer_size,
                self.observation_space,
                self.action_space,
                self.device,
                self.n_envs,
                self.optimize_memory_usage,
                **{**settings, **self.replay_buffer_kwargs},
            )
        # It would warn that a buffer given by the user knows no n_steps.
        n_steps, self.n_steps = self.n_steps, 1
        super()._setup_model()
        self.n_steps = n_steps

    def _check_options(self) -> None:
        require_name("proposal", self.proposal, PROPOSALS)
        require_name("signal", self.signal, SIGNALS)
        require_name("normaliser", self.normaliser, get_args(Normaliser))
        require_non_negative("alpha", self.alpha)
        require_probability("uniform_share", self.uniform_share)
        if self.beta is not None and not callable(self.beta):
            require_probability("beta", self.beta)
        if self.replay_buffer_class not in (None, PrioritizedReplayBuffer):
            raise ValueError(
                f"replay_buffer_class is {self.replay_buffer_class.__name__}, expected none: with "
                "another buffer use the plain algorithm"
            )

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seeds everything that Stable-Baselines3 seeds, and the buffer's draws."""
        super().set_random_seed(seed)
        if seed is not None and self.replay_buffer is not None:
            self.buffer.core.generator.manual_seed(seed)

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: Any = None,
        reset_num_timesteps: bool = True,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if reset_num_timesteps or self._last_obs is None:
            # Environments are reset here, which no transition says.
            self.buffer.core.interrupt()
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, *args, **kwargs)

    def save_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase) -> None:
        """Writes the replay buffer into a safetensors file, whatever the path's suffix.

        Args:
          path: a file; ".safetensors" is added to a path without a suffix.

        Raises:
          ValueError: if path is an open file.
        """
        self.buffer.save(_buffer_path(path))

    def load_replay_buffer(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        truncate_last_traj: bool = True,
    ) -> None:
        """Reads what `save_replay_buffer` wrote; never unpickles.

        Args:
          path: the file; ".safetensors" is added to a path without a suffix.
          truncate_last_traj: has no effect, as with Stable-Baselines3's buffers but for HER's:
            a reset of the environment is noticed when it happens.

        Raises:
          ValueError: if the file is missing, damaged, or of a buffer that differs in capacity,
            spaces, number of environments, proposal or alpha. The buffer is then as it was.
        """
        self.buffer.restore(_buffer_path(path))

    @abstractmethod
    def _targets(self, batch: PrioritizedSamples) -> Tensor:
        """[B, 1] what values are to be; called without gradient."""

    @abstractmethod
    def _values(self, batch: PrioritizedSamples) -> Tensor:
        """[B, K] values of K critics of what was done, with gradient."""

    @abstractmethod
    def _heads(self) -> Sequence[nn.Module]:
        """The K critics' networks."""

    def _slopes(self, errors: Tensor) -> Tensor:
        """[B, K] derivatives of the loss in the values, up to a constant factor."""
        return errors

    def _beta(self) -> float:
        remaining = min(max(self._current_progress_remaining, 0.0), 1.0)
        if callable(self.beta):
            return require_probability("beta(progress_remaining)", float(self.beta(remaining)))
        start = _DEFAULTS[self.proposal][0] if self.beta is None else self.beta
        return start + (1.0 - start) * (1.0 - remaining)

    def _draw(self, batch_size: int) -> tuple[PrioritizedSamples, Tensor]:
        """A batch, and its [B] weights."""
        batch = self.buffer.sample(
            batch_size,
            env=self._vec_normalize_env,
            score=self._score if self.proposal == "two-stage" else None,
        )
        normaliser: Any = None if self.normaliser == "none" else self.normaliser
        if normaliser == "default":
            normaliser = _DEFAULTS[self.proposal][1]
        log_q = batch.source.draw.log_q
        weights = annealed_weights(log_q, self.buffer.size(), self._beta(), normaliser)
        return batch, weights.to(self.device, torch.float32)

    def _evaluate(self, batch: PrioritizedSamples) -> tuple[Tensor, Tensor]:
        """[B, K] TD errors, with the values' gradient, and the [B] signal."""
        with torch.no_grad():
            targets = self._targets(batch)
        if self.signal == "td-error":
            errors = self._values(batch) - targets
            return errors, errors.detach().abs().mean(1)
        with _last_inputs(self._heads()) as inputs:
            errors = self._values(batch) - targets
        # The layer's bias is a weight whose input is 1.
        squared_norms = torch.stack([1.0 + x.square().sum(1) for x in inputs], 1)
        return errors, (self._slopes(errors.detach()).square() * squared_norms).sum(1).sqrt()

    def _score(self, candidates: PrioritizedSamples) -> Tensor:
        # Candidates are no training data: batch normalisation is not to count them.
        self.policy.set_training_mode(False)
        signal = self._evaluate(candidates)[1]
        self.policy.set_training_mode(True)
        return signal

    def _record(self, weights: list[Tensor], **losses: list[Tensor]) -> None:
        """Logs a training's weights, one [B] of each step, and the means of its losses."""
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for name, values in losses.items():
            if values:
                self.logger.record(f"train/{name}", torch.stack(values).mean().item())
        if not weights:
            return
        sizes = torch.stack([effective_sample_size(w) for w in weights])
        largest = torch.stack([w.amax() / w.mean() for w in weights])
        self.diagnostics = {"ess": sizes.mean().item(), "max_weight": largest.amax().item()}
        self.logger.record("train/beta", self._beta())
        self.logger.record("train/effective_sample_size", self.diagnostics["ess"])
        self.logger.record("train/max_weight", self.diagnostics["max_weight"])


def _buffer_path(path: str | pathlib.Path | io.BufferedIOBase) -> pathlib.Path:
    if not isinstance(path, str | pathlib.Path):
        raise ValueError(f"path is a {type(path).__name__}, expected the path of a file")
    file = pathlib.Path(path)
    return file if file.suffix else file.with_suffix(".safetensors")


@contextmanager
def _last_inputs(networks: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collects what the last linear layer of each network is given, [B, D] without gradient."""
    inputs: list[Tensor] = []

    def keep(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        inputs.append(given[0].detach())

    layers = [
        [layer for layer in network.modules() if isinstance(layer, nn.Linear)][-1]
        for network in networks
    ]
    hooks = [layer.register_forward_pre_hook(keep) for layer in layers]
    try:
        yield inputs
    finally:
        for hook in hooks:
            hook.remove()
