"""NeuralLearner: torch policies on any Gymnasium environment, by whole trajectories.

The learner knows nothing of an algorithm: it collects episodes, tells log-probabilities, and takes
the one step that it is told to take. Which trajectories, with which weights, is the agents' page.
"""

import copy
import math
from collections.abc import Collection, Sequence
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from awsgd_rl.adaptation import RunningScale, score_function_coefficients
from awsgd_rl.agents.memory_state import check_memory, memory_layout, memory_state, restore_memory
from awsgd_rl.agents.module_state import flatten_state, moments_after_a_step, restore_state
from awsgd_rl.agents.networks import Body, Kind, ObservationNormaliser, ValueFunction
from awsgd_rl.agents.policy_networks import Policy, make_policy
from awsgd_rl.agents.random_states import check_torch_state
from awsgd_rl.agents.rollout import Environment, EpisodeCollector, make_vector_env
from awsgd_rl.agents.spaces import Units
from awsgd_rl.agents.training_file import Layout, layout_of
from awsgd_rl.agents.trajectories import Trajectories, TrajectoryMemory, pad_episodes
from awsgd_rl.estimators import vtrace

T = TypeVar("T")


class NeuralLearner:
    """A policy P_w, an exploration policy Q_tau, state values, and a memory of trajectories.

    Args:
        env: Environment id, environment or vector environment (see `make_vector_env`).
        kind: "mlp", or "table": one row of outputs per Discrete observation, zero at the start.
        n_envs: Sub-environments to run at once; best a divisor of the episodes per batch.
        hidden_sizes: Widths of the hidden layers of each mlp (tanh).
        learning_rate: Step size of w. None: 3e-3 for an mlp, 1 for a table.
        optimizer: Name of a class in `torch.optim` for w. None: "Adam" for an mlp, "SGD" for a
            table. The optimal proposal of seed 003 is the one for SGD.
        values_learning_rate: Step size of the state values (Adam). None: 1e-2, table 0.1.
        values_updates: Optimizer steps that one `fit_values` takes.
        exploration_learning_rate: Step size of tau.
        exploration_optimizer: Name of a class in `torch.optim` for tau. None: as `optimizer`.
        exploration_bound: Largest L2 norm of tau - w. None: no bound.
        exploration_follows: Whether tau makes each step of w too.
        discount: Discount per step, in (0, 1].
        trace_decay: lambda of the V-trace targets, in [0, 1]. 1: the advantage is the reward-to-go
            less the state value, which is unbiased.
        memory: Trajectories that the ring memory holds; 0: none.
        normalise_advantages: Standardise the advantages of each batch (biased, and what makes a
            step size carry over between tasks). None: True for an mlp, False for a table.
        normalise_observations: Standardise Box observations by running moments. None: True for
            Box, False for Discrete.
        normalise_lengths: Divide a step by the mean length of its trajectories, which makes it a
            mean over steps (the step size then carries over between episode lengths; with Adam
            alone it has no effect but on clipping and entropy). False: the mean over trajectories
            of the sums over steps, unbiased. None: True for an mlp, False for a table.
        entropy_coefficient: Weight of the mean entropy per step in the objective.
        max_gradient_norm: Gradients of w longer than this are shortened to it. None: not.
        reward_scale: Rewards are multiplied by this for learning; returns are reported without.
        initial_log_std: Log standard deviation at the start, for Box actions, in units in which
            the finite bounds of an action are -1 and 1.
        trust_region: With a `step_clip`, an action whose probability has moved by more than this
            share since the last `collect` is not pushed further (see `ascend`). None: no limit.
        horizon: Longest episode; needed where the environment has no time limit of its own.
        device: Device of the networks and trajectories; "auto" takes a GPU if there is one.
        seed: Seeds weights, actions and the environment's first reset.

    Attributes:
        ratio: "step": data that is used again is corrected step by step.
        policy: P_w.
        exploration: Q_tau, a copy of P_w's architecture, equal to it at the start.
        values: State values.
        metrics: Numbers of the last updates under SB3's names ("policy_gradient_loss", ...).

    Raises:
        ValueError: for unsupported spaces, an environment without an end, or settings out of range.
    """

    ratio = "step"

    def __init__(
        self,
        env: Environment,
        *,
        kind: Kind = "mlp",
        n_envs: int = 20,
        hidden_sizes: Sequence[int] = (64, 64),
        learning_rate: float | None = None,
        optimizer: str | None = None,
        values_learning_rate: float | None = None,
        values_updates: int = 20,
        exploration_learning_rate: float = 1e-3,
        exploration_optimizer: str | None = None,
        exploration_bound: float | None = 1.0,
        exploration_follows: bool = True,
        discount: float = 0.99,
        trace_decay: float = 0.95,
        memory: int = 0,
        normalise_advantages: bool | None = None,
        normalise_observations: bool | None = None,
        normalise_lengths: bool | None = None,
        entropy_coefficient: float = 0.0,
        max_gradient_norm: float | None = None,
        reward_scale: float = 1.0,
        initial_log_std: float = 0.0,
        trust_region: float | None = 0.2,
        horizon: int | None = None,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        table = kind == "table"
        if kind not in ("mlp", "table"):
            raise ValueError(f'kind must be "mlp" or "table", got {kind!r}')
        if not hidden_sizes or any(size < 1 for size in hidden_sizes):
            raise ValueError(f"hidden_sizes must be widths of 1 or more, got {hidden_sizes!r}")
        if not 0.0 < discount <= 1.0:
            raise ValueError(f"discount must be in (0, 1], got {discount}")
        if not 0.0 <= trace_decay <= 1.0:
            raise ValueError(f"trace_decay must be in [0, 1], got {trace_decay}")
        if memory < 0:
            raise ValueError(f"memory must be 0 or more trajectories, got {memory}")
        if not (math.isfinite(reward_scale) and reward_scale > 0.0):
            raise ValueError(f"reward_scale must be positive, got {reward_scale}")
        learning_rate = _default(learning_rate, 1.0 if table else 3e-3)
        values_learning_rate = _default(values_learning_rate, 0.1 if table else 1e-2)
        for name, rate in (
            ("learning_rate", learning_rate),
            ("values_learning_rate", values_learning_rate),
            ("exploration_learning_rate", exploration_learning_rate),
            ("exploration_bound", exploration_bound),
            ("entropy_coefficient", entropy_coefficient),
            ("max_gradient_norm", max_gradient_norm),
            ("trust_region", trust_region),
        ):
            if rate is not None and not rate >= 0.0:
                raise ValueError(f"{name} must be 0 or more, got {rate}")

        self.envs, self.horizon = make_vector_env(env, n_envs, horizon)
        self.observation_space = self.envs.single_observation_space
        self.action_space = self.envs.single_action_space
        self.units = Units(self.observation_space, self.action_space)
        self.kind: Kind = kind
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        self.discount = discount
        self.trace_decay = trace_decay
        self.reward_scale = reward_scale
        self.entropy_coefficient = entropy_coefficient
        self.max_gradient_norm = max_gradient_norm
        self.exploration_bound = exploration_bound
        self.exploration_follows = exploration_follows
        self.trust_region = trust_region
        self.values_updates = values_updates
        self.normalise_advantages = _default(normalise_advantages, not table)
        self.normalise_lengths = _default(normalise_lengths, not table)
        self.metrics: dict[str, float] = {}

        # One seed for each use, so that evaluating in between does not change the training.
        seeds = np.random.SeedSequence(seed).generate_state(4)
        self._norm_scale = RunningScale().to(self.device)
        weights_generator = torch.Generator().manual_seed(int(seeds[0]))
        self._generator = torch.Generator(self.device).manual_seed(int(seeds[1]))
        self._predict_generator = torch.Generator(self.device).manual_seed(int(seeds[2]))
        self._collector = EpisodeCollector(self.envs, self.horizon, int(seeds[3]))

        self._box = isinstance(self.observation_space, gym.spaces.Box)
        self.normaliser: ObservationNormaliser | None = None
        if self._box and normalise_observations is not False:
            assert self.observation_space.shape is not None
            self.normaliser = ObservationNormaliser(self.observation_space.shape).to(self.device)
        self.policy: Policy = make_policy(
            self.observation_space,
            self.action_space,
            kind,
            hidden_sizes,
            initial_log_std,
            weights_generator,
        ).to(self.device)
        self.exploration: Policy = copy.deepcopy(self.policy)
        # P_w as it was at the last collect: the centre of the trust region.
        self._anchor: Policy = copy.deepcopy(self.policy)
        body = Body(self.observation_space, 1, kind, hidden_sizes, 1.0, weights_generator)
        self.values = ValueFunction(body).to(self.device)

        optimizer = optimizer or ("SGD" if table else "Adam")
        self.optimizers = {
            "policy": _optimizer(optimizer, self.policy, learning_rate),
            "values": _optimizer("Adam", self.values, values_learning_rate),
            "exploration": _optimizer(
                exploration_optimizer or optimizer, self.exploration, exploration_learning_rate
            ),
        }
        self.memory = TrajectoryMemory(memory)
        self.rollouts: Any = None  # workers that draw in its place (`distributed.py`)

    # -- episodes ---------------------------------------------------------------------------

    def collect(self, n_target: int, n_exploration: int = 0) -> Trajectories:
        """Fresh whole episodes, the first `n_target` under P_w, the others under Q_tau.

        The observations' moments move on here and nowhere else, so log-probabilities of the batch
        stay what they were when it was drawn until the policy itself moves.

        Args:
            n_target: Episodes under P_w.
            n_exploration: Episodes under Q_tau.

        Returns:
            n_target + n_exploration trajectories; `log_drawn` is that of the policy that ran each.
        """
        if n_target < 0 or n_exploration < 0 or n_target + n_exploration < 1:
            raise ValueError(
                "at least one episode must be collected, and no negative number: "
                f"got n_target={n_target}, n_exploration={n_exploration}"
            )
        if self.normaliser is not None:
            self.normaliser.refresh()
        self._anchor.load_state_dict(self.policy.state_dict())
        draw = self._draw if self.rollouts is None else self.rollouts.collect
        trajectories: Trajectories = draw(n_target, n_exploration)
        if self.normaliser is not None:
            self.normaliser.observe(trajectories.observations[:-1][trajectories.mask])
        return trajectories

    def _draw(self, n_target: int, n_exploration: int) -> Trajectories:
        explore = np.arange(n_target + n_exploration) >= n_target
        episodes = [
            episode._replace(observations=self.units.observations(episode.observations))
            for episode in self._collector.collect(explore, self._act)
        ]
        trajectories = pad_episodes(episodes, explore, self.discount, self.device)
        with torch.no_grad():
            trajectories.step_log_drawn = torch.where(
                trajectories.from_target,
                self._step_log_probs(self.policy, trajectories),
                self._step_log_probs(self.exploration, trajectories)
                if n_exploration
                else trajectories.step_log_drawn,
            )
        trajectories.log_drawn = trajectories.step_log_drawn.sum(0, dtype=torch.float64)
        return trajectories

    @torch.no_grad()
    def _act(
        self, observations: npt.NDArray[Any], explore: npt.NDArray[np.bool_]
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        inputs = self._features(self._observed(observations))
        if not explore.any():
            outputs = self.policy(inputs)
        elif explore.all():
            outputs = self.exploration(inputs)
        else:
            chosen = torch.from_numpy(explore).to(self.device).unsqueeze(-1)
            outputs = torch.where(chosen, self.exploration(inputs), self.policy(inputs))
        actions = self.policy.draw(outputs, self._generator).cpu().numpy()
        return self.units.env_actions(actions), actions

    def _observed(self, observations: npt.ArrayLike) -> Tensor:
        return torch.from_numpy(self.units.observations(observations)).to(self.device)

    def _features(self, observations: Tensor) -> Tensor:
        return observations if self.normaliser is None else self.normaliser(observations)

    def remember(self, trajectories: Trajectories) -> Tensor:
        """Store trajectories in the memory; return their slots (see `TrajectoryMemory`)."""
        return self.memory.remember(trajectories)

    def recall(self, slots: Tensor) -> Trajectories:
        """Give back the trajectories of the slots [B] (see `TrajectoryMemory`)."""
        return self.memory.recall(slots)

    # -- probabilities ----------------------------------------------------------------------

    @torch.no_grad()
    def log_target(self, trajectories: Trajectories) -> Tensor:
        """[B] float64: sum over steps of log P_w(a_t | s_t), now."""
        return self._step_log_probs(self.policy, trajectories).sum(0, dtype=torch.float64)

    @torch.no_grad()
    def log_exploration(self, trajectories: Trajectories) -> Tensor:
        """[B] float64: sum over steps of log Q_tau(a_t | s_t), now."""
        return self._step_log_probs(self.exploration, trajectories).sum(0, dtype=torch.float64)

    def _step_outputs(self, policy: Policy, trajectories: Trajectories) -> tuple[Tensor, Tensor]:
        """[N, K] outputs and [N] log-probabilities of the N steps that happened."""
        mask = trajectories.mask
        outputs = policy(self._features(trajectories.observations[:-1][mask]))
        return outputs, policy.log_prob(outputs, trajectories.actions[mask])

    def _step_log_probs(self, policy: Policy, trajectories: Trajectories) -> Tensor:
        """[T, B] log-probabilities, zero beyond the end."""
        return _unpack(self._step_outputs(policy, trajectories)[1], trajectories.mask)

    # -- gradients --------------------------------------------------------------------------

    @torch.no_grad()
    def _evaluate(
        self, trajectories: Trajectories, log_now: Tensor, step_clip: float | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """[T, B] each: truncated ratios, V-trace targets and advantages, zero beyond the end.

        A truncated episode goes on after its last step in the value of its final observation;
        a terminated one does not.
        """
        mask = trajectories.mask
        if step_clip is None:
            ratios = mask.to(log_now.dtype)
        else:
            drawn = trajectories.step_log_drawn[mask]
            ratios = _unpack((log_now - drawn).exp().clamp(max=step_clip), mask)
        visited = trajectories.visited
        values = _unpack(self.values(self._features(trajectories.observations[visited])), visited)
        last = torch.arange(len(mask), device=mask.device).unsqueeze(1) == trajectories.lengths - 1
        targets, advantages = vtrace(
            trajectories.rewards * self.reward_scale,
            values[:-1],
            values[1:],
            terminated=last & trajectories.terminated,
            boundary=last | ~mask,
            # Espeholt's truncation at 1: above it a product of many ratios explodes.
            ratios=ratios.clamp(max=1.0),
            discount=self.discount,
            trace_decay=self.trace_decay,
        )
        return ratios, targets, advantages * mask

    def ascend(
        self, trajectories: Trajectories, weights: Tensor, step_clip: float | None = None
    ) -> float:
        """One optimizer step on w along `mean_b weights_b sum_t c_t A_t grad log P_w(a_t|s_t)`.

        A_t is the V-trace advantage with the values as they are (Espeholt et al. 2018); as usual no
        gamma^t multiplies it, so the step is unbiased for the sum of rewards at discount 1. c_t is
        1 if `step_clip` is None, else min(p_now(a_t|s_t) / p_drawn(a_t|s_t), step_clip), and 0
        where the trust region says so. Where the settings ask for it the advantages are
        standardised over the batch's steps and the sum is divided by the mean length. tau takes
        w's step too, so that tau - w stays as it is.

        Args:
            trajectories: B trajectories.
            weights: [B] Weight of each, without gradient.
            step_clip: Largest ratio of a step, or None for no ratios.

        Returns:
            The norm of `mean_b weights_b g_b` by the last layer, as `signal` measures g_b.
        """
        weights = self._checked(weights, trajectories)
        mask = trajectories.mask
        outputs, log_now = self._step_outputs(self.policy, trajectories)
        ratios, _, advantages = self._evaluate(trajectories, log_now.detach(), step_clip)
        advantages = self._standardised(advantages, mask)
        pushes = (ratios * advantages * weights)[mask]
        if step_clip is not None and self.trust_region is not None:
            pushes = self._trusted(trajectories, pushes, outputs.detach(), log_now.detach())
        gain = (pushes * log_now).sum() / self._scale(trajectories)
        entropy = self.policy.entropy(outputs).mean()
        loss = -gain - self.entropy_coefficient * entropy
        self.optimizers["policy"].zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        parameters = list(self.policy.parameters())
        head = [
            p.grad.square().sum() for p in self.policy.body.head.parameters() if p.grad is not None
        ]
        head_norm = torch.stack(head).sum().sqrt()
        limit = math.inf if self.max_gradient_norm is None else self.max_gradient_norm
        norm = nn.utils.clip_grad_norm_(parameters, limit)
        before = [parameter.detach().clone() for parameter in parameters]
        self.optimizers["policy"].step()
        if self.exploration_follows:
            followers = self.exploration.parameters()
            with torch.no_grad():
                for old, new, tau in zip(before, parameters, followers, strict=True):
                    tau.add_(new - old)
        self.metrics.update(
            policy_gradient_loss=-float(gain.detach()),
            entropy_loss=-float(entropy.detach()),
            loss=float(loss.detach()),
            gradient_norm=float(norm),
        )
        return float(head_norm) * self._scale(trajectories) / len(trajectories)

    @torch.no_grad()
    def _trusted(
        self, trajectories: Trajectories, pushes: Tensor, outputs: Tensor, log_now: Tensor
    ) -> Tensor:
        """[N] The pushes on log-probabilities, 0 where an action has moved far enough already.

        Truncated ratios alone let many updates on the same trajectories run away: the policy goes
        wherever their noise points. An action whose probability has left 1 +- trust_region times
        that at the last `collect` is not pushed further. On fresh data that is the clipped
        objective's gradient (Schulman et al. 2017), on old data its generalisation, whose centre
        is the last policy and not the one that drew (Queeney et al. 2021).
        """
        assert self.trust_region is not None
        anchor, log_anchor = self._step_outputs(self._anchor, trajectories)
        moved = (log_now - log_anchor).exp() - 1.0
        beyond = moved * pushes.sign() > self.trust_region
        self.metrics["clip_fraction"] = float(beyond.double().mean())
        self.metrics["approx_kl"] = float(self.policy.kl(anchor, outputs).mean())
        return pushes.masked_fill(beyond, 0.0)

    def _standardised(self, advantages: Tensor, mask: Tensor) -> Tensor:
        """[T, B] advantages of mean 0 and deviation 1 over the steps, if that is asked for."""
        if not self.normalise_advantages:
            return advantages
        steps = advantages[mask]
        return (advantages - steps.mean()) * mask / steps.std(correction=0).clamp(min=1e-8)

    def ascend_exploration(self, trajectories: Trajectories, coefficients: Tensor) -> None:
        """One optimizer step on tau along `mean_b coefficients_b grad log Q_tau(trajectory b)`.

        Divided by the mean length where the settings ask for it. Afterwards tau - w is shortened
        to `exploration_bound`.

        Args:
            trajectories: B trajectories.
            coefficients: [B] Coefficient of each, without gradient.
        """
        weights = self._checked(coefficients, trajectories).expand(trajectories.mask.shape)
        _, log_now = self._step_outputs(self.exploration, trajectories)
        loss = -(weights[trajectories.mask] * log_now).sum() / self._scale(trajectories)
        self.optimizers["exploration"].zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizers["exploration"].step()
        self._bound_exploration()

    @torch.no_grad()
    def _bound_exploration(self) -> None:
        if self.exploration_bound is None:
            return
        pairs = list(zip(self.exploration.parameters(), self.policy.parameters(), strict=True))
        norm = torch.stack([(tau - w).square().sum() for tau, w in pairs]).sum().sqrt()
        if norm > self.exploration_bound:
            for tau, w in pairs:
                tau.copy_(torch.lerp(w, tau, float(self.exploration_bound / norm)))

    @torch.no_grad()
    def signal(
        self, trajectories: Trajectories, step_clip: float | None = None, *, exact: bool = False
    ) -> Tensor:
        """[B] float64: norm of each trajectory's gradient `g = sum_t c_t A_t grad log P_w`.

        The g of `ascend` with the same arguments: before weights, trust region and division by
        the length, with the advantages standardised if that is asked for. By default only the
        gradient by the last layer counts, which needs no backward pass: it is the sum over steps
        of the gradient by the outputs (the bound of seeds 003 and 004) times the layer's inputs.
        For a table that is all of it; for an mlp a stand-in.

        Args:
            trajectories: B trajectories.
            step_clip: As in `ascend`.
            exact: The norm over all layers by per-trajectory gradients; slow, for studies.
        """
        mask = trajectories.mask
        outputs, log_now = self._step_outputs(self.policy, trajectories)
        ratios, _, advantages = self._evaluate(trajectories, log_now, step_clip)
        coefficients = ratios * self._standardised(advantages, mask)
        if exact:
            return self._gradient_norms(trajectories, coefficients)
        scores = _unpack(self.policy.output_score(outputs, trajectories.actions[mask]), mask)
        gradients = self.policy.body.head_gradients(
            self._features(trajectories.observations[:-1]), coefficients.unsqueeze(-1) * scores
        )
        return gradients.double().flatten(1).square().sum(1).sqrt()

    def explore(self, trajectories: Trajectories, norms: Tensor, ratios: Tensor) -> None:
        """Step τ down the second moment of the weighted gradient (seed 001, eq. 11).

        Args:
            trajectories: B fresh ones.
            norms: [B] weighted gradient norms.
            ratios: [B] share of the mixture's density that is Q_τ's.
        """
        squared = norms.square()
        coefficients = score_function_coefficients(squared, scale=self._norm_scale.update(squared))
        self.ascend_exploration(trajectories, coefficients * ratios)

    def replay(self, slots: Tensor, weights: Tensor, clip: float) -> Tensor:
        """Take U steps on n past trajectories each, slots [U, n]; return their scores [U, n].

        Args:
            slots: [U, n] of the memory.
            weights: [U, n] of the draw.
            clip: largest ratio of single steps.
        """
        scores = []
        for items, shares in zip(slots, weights, strict=True):
            past = self.recall(items)
            scores.append(self.signal(past, clip))
            self.ascend(past, shares, clip)
        return torch.stack(scores)

    def _gradient_norms(self, trajectories: Trajectories, coefficients: Tensor) -> Tensor:
        parameters = {name: p.detach() for name, p in self.policy.named_parameters()}

        def gain(
            parameters: dict[str, Tensor], states: Tensor, actions: Tensor, weights: Tensor
        ) -> Tensor:
            outputs = torch.func.functional_call(self.policy, parameters, (states,))
            return (weights * self.policy.log_prob(outputs, actions)).sum()

        states = self._features(trajectories.observations[:-1])
        per_trajectory = torch.func.vmap(torch.func.grad(gain), in_dims=(None, 1, 1, 1))
        gradients = per_trajectory(parameters, states, trajectories.actions, coefficients)
        squares = [g.double().square().flatten(1).sum(1) for g in gradients.values()]
        return torch.stack(squares).sum(0).sqrt()

    def fit_values(self, trajectories: Trajectories, weights: Tensor | None = None) -> None:
        """Fit the state values to the V-trace targets of these trajectories.

        Call it after the first `ascend` on a fresh batch: values that have seen a trajectory are
        no unbiased baseline for it. What drew it is corrected by ratios truncated at 1.

        Args:
            trajectories: B trajectories.
            weights: [B] Weight of each in the squared error. None: all alike.
        """
        if weights is None:
            weights = torch.ones(len(trajectories))
        weights = self._checked(weights, trajectories)
        mask = trajectories.mask
        inputs = self._features(trajectories.observations[:-1][mask])
        with torch.no_grad():
            _, log_now = self._step_outputs(self.policy, trajectories)
            steps = self._evaluate(trajectories, log_now, 1.0)[1][mask].to(torch.float32)
            shares = weights.to(torch.float32).expand(mask.shape)[mask]
            shares = shares / shares.sum().clamp(min=1e-12)
        self.values.rescale(steps)
        for update in range(self.values_updates):
            # In standardised units, so that the step size does not depend on the rewards' size.
            error = (self.values(inputs) - steps) / self.values.scale
            loss = (shares * error.square()).sum()
            self.optimizers["values"].zero_grad()
            loss.backward()
            self.optimizers["values"].step()
            if update == 0:
                self.metrics["value_loss"] = float(loss.detach())
                self.metrics["explained_variance"] = 1.0 - float(
                    error.detach().var(correction=0)
                    / (steps.var(correction=0) / self.values.scale.square()).clamp(min=1e-12)
                )

    def _scale(self, trajectories: Trajectories) -> int:
        """Steps of the batch if steps are normalised by length, else its trajectories."""
        return int(trajectories.lengths.sum()) if self.normalise_lengths else len(trajectories)

    def _checked(self, weights: Tensor, trajectories: Trajectories) -> Tensor:
        if weights.shape != (len(trajectories),):
            raise ValueError(
                f"expected one weight for each of {len(trajectories)} trajectories, "
                f"got shape {tuple(weights.shape)}"
            )
        if weights.requires_grad:
            raise ValueError("weights must not require a gradient: pass weights.detach()")
        return weights.to(self.device, torch.float64)

    # -- use --------------------------------------------------------------------------------

    @torch.no_grad()
    def predict(
        self, observation: npt.ArrayLike, deterministic: bool = False, *, explore: bool = False
    ) -> npt.NDArray[Any]:
        """Actions for one observation, or for a batch of them.

        Args:
            observation: One observation, or [N, ...].
            deterministic: The most probable action (the mean, for Box) rather than a draw.
            explore: Act by Q_tau rather than P_w.

        Returns:
            An action as the environment takes it, or [N, ...] actions.

        Raises:
            ValueError: if the shape is neither that of one observation nor of a batch.
        """
        array = np.asarray(observation)
        shape = self.observation_space.shape
        assert shape is not None
        if array.shape != shape and array.shape[1:] != shape:
            raise ValueError(
                f"expected an observation of shape {shape} or a batch (n, *{shape}), "
                f"got shape {array.shape}"
            )
        single = array.shape == shape
        policy = self.exploration if explore else self.policy
        outputs = policy(self._features(self._observed(array[None] if single else array)))
        actions = (
            policy.mode(outputs) if deterministic else policy.draw(outputs, self._predict_generator)
        )
        chosen = self.units.env_actions(actions.cpu().numpy())
        return np.asarray(chosen[0]) if single else chosen

    def close(self) -> None:
        """Close the environments."""
        self.envs.close()

    # -- state ------------------------------------------------------------------------------

    def _modules(self) -> dict[str, nn.Module]:
        modules: dict[str, nn.Module] = {
            "policy": self.policy,
            "exploration": self.exploration,
            "values": self.values,
        }
        if self.normaliser is not None:
            modules["observations"] = self.normaliser
        return modules

    def state_dict(self) -> dict[str, Tensor]:
        """Flat tensors of networks, moments and optimizers; not the memory, not the episodes."""
        return flatten_state(self._modules(), self.optimizers)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the tensors of `state_dict`.

        Raises:
            ValueError: if tensors are missing, left over or of another shape; nothing is changed.
        """
        restore_state(state, self._modules(), self.optimizers)
        self._anchor.load_state_dict(self.policy.state_dict())

    def training_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that the next batch depends on, between two of them: tensors, and JSON values.

        What the environments themselves carry on is said in `EpisodeCollector.training_state`.
        """
        tensors, values = memory_state(self.memory)
        return {
            **self.state_dict(),
            **{
                f"norm_scale.{name}": x.clone() for name, x in self._norm_scale.state_dict().items()
            },
            "generator": self._generator.get_state(),
            "predict_generator": self._predict_generator.get_state(),
            **tensors,
        }, {"memory": values, "collector": self._collector.training_state()}

    def training_layout(self, names: Collection[str]) -> Layout:
        """What `training_state` may return: types and shapes, given the names that it returned.

        An optimizer that has made no step yet has no moments, and an empty memory no tensors.
        """
        now = self.training_state()[0]
        varying = ("memory.", *(f"{kind}_optimizer." for kind in self.optimizers))
        layout = layout_of({name: x for name, x in now.items() if not name.startswith(varying)})
        for kind, moments in moments_after_a_step(self.optimizers).items():
            if any(name.startswith(f"{kind}_optimizer.") for name in names):
                layout |= layout_of(moments)
        if not any(name.startswith("memory.") for name in names):
            return layout
        space, actions = self.observation_space, self.action_space
        assert space.shape is not None
        one = self.units.observations(np.zeros((1, *space.shape), space.dtype))
        discrete = isinstance(actions, gym.spaces.Discrete)
        width = () if discrete else (math.prod(actions.shape or ()),)
        return layout | memory_layout(
            (torch.from_numpy(one).dtype, one.shape[1:]),
            (torch.int64 if discrete else torch.float64, width),
        )

    def restore_training(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Go on from what `training_state` returned; the tensors fit `training_layout`.

        Raises:
            ValueError: numbers do not fit together; nothing has changed then.
        """
        for name in ("generator", "predict_generator"):
            check_torch_state(tensors[name], self.device)
        check_memory(self.memory, tensors, values.get("memory"), self.units)
        self._collector.check_training_state(values.get("collector"))
        own = ("memory.", "norm_scale.", "generator", "predict_generator")
        self.load_state_dict({k: x for k, x in tensors.items() if not k.startswith(own)})
        self._norm_scale.load_state_dict(
            {name: tensors[f"norm_scale.{name}"] for name in self._norm_scale.state_dict()}
        )
        self._generator.set_state(tensors["generator"])
        self._predict_generator.set_state(tensors["predict_generator"])
        restore_memory(self.memory, tensors, values["memory"], self.device)
        self._collector.restore_training(values["collector"])

    def policy_table(self) -> npt.NDArray[np.float64]:
        """[S, A] probabilities of P_w, for Discrete observations and actions."""
        return self._table(self.policy)

    def exploration_table(self) -> npt.NDArray[np.float64]:
        """[S, A] probabilities of Q_tau, for Discrete observations and actions."""
        return self._table(self.exploration)

    @torch.no_grad()
    def _table(self, policy: Policy) -> npt.NDArray[np.float64]:
        discrete = gym.spaces.Discrete
        if not (
            isinstance(self.observation_space, discrete) and isinstance(self.action_space, discrete)
        ):
            raise ValueError("only policies on Discrete observations and actions are a table")
        states = torch.arange(int(self.observation_space.n), device=self.device)
        probabilities: npt.NDArray[np.float64] = policy(states).exp().cpu().numpy()
        return probabilities


def _default(value: T | None, otherwise: T) -> T:
    return otherwise if value is None else value


def _optimizer(name: str, module: nn.Module, rate: float) -> torch.optim.Optimizer:
    cls = getattr(torch.optim, name, None)
    if not (isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)):
        raise ValueError(f"unknown optimizer {name!r}: expected a class of torch.optim, as 'Adam'")
    made: torch.optim.Optimizer = cls(module.parameters(), lr=rate)  # type: ignore[call-arg]
    return made


def _unpack(flat: Tensor, mask: Tensor) -> Tensor:
    """[T, B, ...] with the entries of flat [N, ...] where mask [T, B] is True, zero elsewhere."""
    full = flat.new_zeros((*mask.shape, *flat.shape[1:]))
    full[mask] = flat
    return full
