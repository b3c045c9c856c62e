"""A table policy on the gridworld, through the compiled engine."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from awsgd_rl.adaptation import RunningScale
from awsgd_rl.agents import critic as critic_module
from awsgd_rl.agents import engine, tables
from awsgd_rl.agents.exploration import CrossEntropyExploration
from awsgd_rl.agents.random_states import check_numpy_state, numpy_state
from awsgd_rl.agents.row_memory import RowMemory
from awsgd_rl.agents.training_file import Layout, layout_of, tensors_of
from awsgd_rl.envs.gridworld import TrapGridworld

_DECAY = 0.99  # of what a batch taught Q_τ, at each later batch


@dataclass
class TabularTrajectories:
    """B whole episodes in the engine's compressed form.

    Attributes:
        rows: where their rows lie.
        which: [B] their numbers in `rows`.
        log_drawn: [B] log density that each was drawn with.
        returns: [B] discounted return, in scaled reward.
        raw_returns: [B] undiscounted return, in the environment's reward.
        lengths: [B] steps.
        success: [B] 1 where the goal was reached.
        from_target: [B] True where the target policy drew it.
    """

    rows: tables.Rows
    which: NDArray[np.int64]
    log_drawn: Tensor
    returns: Tensor
    raw_returns: Tensor
    lengths: Tensor
    success: Tensor
    from_target: Tensor

    def __len__(self) -> int:
        return len(self.which)


class TabularLearner:
    """Tables on the gridworld: log-odds [S, A] of P_w and Q_τ, and a value per state.

    P_w's step is plain SGD. Q_τ is fitted by the cross-entropy method (`exploration.py`), anew each
    time that it draws; or, as in seed 001, moved by steps of its own.

    The objective is the expected discounted return of an episode *of at most the horizon's length*,
    for which every estimate here is unbiased; a truncated episode has no value left at its end.

    Args:
        env: the gridworld.
        seed: of all draws.
        learning_rate: step size ρ of w.
        fit_exploration: whether Q_τ is fitted. Else only `ascend_exploration` moves it.
        exploration_learning_rate: step size η of τ in `ascend_exploration`.
        value_rate: share of the way that one visit moves a state's value to a batch's mean return.
        discount: in (0, 1].
        reward_scale: rewards are multiplied by it; None for 1 / the largest absolute reward.
        reward_to_go: weight each action by the return from it on; False for the whole episode's
            (seed 001).
        baseline: subtract state values.
        critic: gradients are those of a critic (`critic.py`) in place of the returns'.
        memory: trajectories that `remember` keeps.
    """

    ratio = "trajectory"
    device = torch.device("cpu")

    def __init__(
        self,
        env: TrapGridworld,
        *,
        seed: int | None,
        learning_rate: float,
        fit_exploration: bool = False,
        exploration_learning_rate: float = 0.03,
        value_rate: float = 0.1,
        discount: float = 0.999,
        reward_scale: float | None = None,
        reward_to_go: bool = True,
        baseline: bool = True,
        critic: bool = False,
        memory: int = 0,
    ) -> None:
        self.env = env
        self.learning_rate = learning_rate
        self.exploration_learning_rate = exploration_learning_rate
        self.value_rate = value_rate
        self.discount = discount
        self.reward_to_go = reward_to_go
        self.baseline = baseline
        largest = float(np.abs(env.move_reward).max())
        self.reward_scale = (
            reward_scale if reward_scale is not None else 1.0 / largest if largest else 1.0
        )
        self.grid = grid_of(env, self.reward_scale)
        n_states, n_actions = self.grid.next_state.shape
        zeros = np.zeros((n_states, n_actions))
        self.target = tables.make_table(zeros)
        self.exploration = tables.make_table(zeros)
        self.rule = None
        if fit_exploration:
            self.rule = CrossEntropyExploration(n_states, n_actions, decay=_DECAY)
        self.values = np.zeros(n_states)  # they stay zero without a baseline
        n_sums = engine.sums_of(self.grid)
        self.memory = RowMemory(memory, n_actions, n_sums) if memory else None
        self.critic = critic_module.make_critic(n_states, n_actions) if critic else None
        # Streams of their own, so that evaluating in between does not change the training.
        self._rng, self._predict_rng = np.random.default_rng(seed).spawn(2)
        self._scratch = np.zeros((n_states, n_actions + 1))
        self._scale = RunningScale()
        self._room: tables.Rows | None = None
        self.rollouts: Any = None  # workers that draw in its place (`distributed.py`)

    def collect(self, n_target: int, n_exploration: int) -> TabularTrajectories:
        """Run fresh episodes; what the last call returned is overwritten (`remember` copies)."""
        n = n_target + n_exploration
        if n_exploration and self.rule is not None:
            self.rule.write(self.target, self.exploration)
        if self.rollouts is not None:
            drawn: TabularTrajectories = self.rollouts.collect(n_target, n_exploration)
            return drawn
        if self._room is None or len(self._room.first) < n:
            self._room = engine.make_room(self.grid, n)
        rows, outcomes = engine.rollout(
            self.grid,
            self.target,
            self.exploration,
            n_target,
            n_exploration,
            discount=self.discount,
            seed=int(self._rng.integers(2**63)),
            reward_to_go=self.reward_to_go,
            room=self._room,
            threads=torch.get_num_threads(),
        )
        return TabularTrajectories(
            rows=rows,
            which=np.arange(n),
            log_drawn=torch.full((n,), torch.nan, dtype=torch.float64),
            returns=torch.from_numpy(outcomes.total),
            raw_returns=torch.from_numpy(outcomes.undiscounted / self.reward_scale),
            lengths=torch.from_numpy(outcomes.length),
            success=torch.from_numpy((outcomes.end == engine.GOAL).astype(np.float64)),
            from_target=torch.arange(n) < n_target,
        )

    def remember(self, trajectories: TabularTrajectories) -> Tensor:
        """Copy trajectories into the memory; return their slots [B]."""
        return torch.from_numpy(self._memory().append(trajectories))

    def recall(self, slots: Tensor) -> TabularTrajectories:
        """Return the trajectories in the memory's slots [B] (without copying their rows)."""
        memory = self._memory()
        nothing = torch.empty(0)
        return TabularTrajectories(
            rows=memory.rows,
            which=slots.numpy(),
            log_drawn=memory.log_drawn[slots],
            returns=nothing,
            raw_returns=nothing,
            lengths=nothing,
            success=nothing,
            from_target=nothing,
        )

    def log_target(self, trajectories: TabularTrajectories) -> Tensor:
        """Return [B] sum_t log p_w(a_t | s_t)."""
        return torch.from_numpy(
            tables.log_probability(trajectories.rows, trajectories.which, self.target)
        )

    def log_exploration(self, trajectories: TabularTrajectories) -> Tensor:
        """Return [B] sum_t log q_τ(a_t | s_t)."""
        return torch.from_numpy(
            tables.log_probability(trajectories.rows, trajectories.which, self.exploration)
        )

    def signal(self, trajectories: TabularTrajectories, step_clip: float | None = None) -> Tensor:
        """Return [B] norms of the trajectories' gradients (unweighted)."""
        _refuse(step_clip)
        rows, which = trajectories.rows, trajectories.which
        if self.critic is not None:
            norms = critic_module.gradient_norms(rows, which, self.target, self.critic.q)
        else:
            norms = tables.gradient_norms(rows, which, self.target, self.values)
        return torch.from_numpy(norms)

    def gradient(self, trajectories: TabularTrajectories, weights: Tensor) -> NDArray[np.float64]:
        """Return mean_b weights_b g_b as a dense array [S, A] (for tests and diagnostics)."""
        touched = self._accumulate(trajectories, weights)
        dense = np.array(self._scratch[:, :-1])
        tables.clear(touched, self._scratch)
        return dense

    def ascend(
        self, trajectories: TabularTrajectories, weights: Tensor, step_clip: float | None = None
    ) -> float:
        """Step w along mean_b weights_b g_b; return that mean's norm."""
        _refuse(step_clip)
        touched = self._accumulate(trajectories, weights)
        norm = float(np.linalg.norm(self._scratch[touched, :-1]))
        tables.apply(self.target, touched, self._scratch, self.learning_rate)
        tables.clear(touched, self._scratch)
        return norm

    def ascend_exploration(self, trajectories: TabularTrajectories, coefficients: Tensor) -> None:
        """Step τ along mean_b coefficients_b sum_t ∇ log q_τ."""
        touched = tables.add_log_gradients(
            trajectories.rows,
            trajectories.which,
            coefficients.numpy() / len(trajectories),
            self.exploration,
            self._scratch,
        )
        tables.apply(self.exploration, touched, self._scratch, self.exploration_learning_rate)
        tables.clear(touched, self._scratch)

    def explore(self, trajectories: TabularTrajectories, norms: Tensor, ratios: Tensor) -> None:
        """Take in the weighted gradient norms [B] of fresh trajectories, to fit Q_τ to."""
        if self.rule is not None:
            scores = norms / self._scale.update(norms)
            self.rule.update(trajectories.rows, trajectories.which, scores.numpy())

    def fit_values(self, trajectories: TabularTrajectories, weights: Tensor) -> Tensor | None:
        """Move the values of visited states towards their (weighted) mean return.

        With a critic: take in the moves made, and back up; return [B] by how much that moved it.
        """
        if self.critic is not None:
            rows, which = trajectories.rows, trajectories.which
            critic_module.observe(rows, which, self.critic)
            errors = critic_module.back_up(
                rows, which, self.target, self.grid, self.discount, self.critic
            )
            return torch.from_numpy(errors)
        if self.baseline:
            tables.fit_values(
                trajectories.rows,
                trajectories.which,
                weights.numpy(),
                self.values,
                self.value_rate,
            )
        return None

    def replay(self, slots: Tensor, weights: Tensor, clip: float) -> Tensor:
        """Take U steps on n past trajectories each; return their scores [U, n].

        The score is ‖W g‖; with a critic, by how much the trajectory moved it.

        Args:
            slots: [U, n] of the memory.
            weights: [U, n] of the draw.
            clip: largest ratio of the target's density to the one that they were drawn with.
        """
        memory = self._memory()
        what = (memory.rows, slots.numpy(), weights.numpy(), memory.log_drawn.numpy(), clip)
        step, scratch = self.learning_rate, self._scratch
        if self.critic is None:
            scores = tables.replay(*what, step, self.target, self.values, scratch)
        else:
            world = (self.discount, self.target, self.grid, self.critic)
            scores = critic_module.replay(*what, step, *world, scratch)
        return torch.from_numpy(scores)

    def predict(self, observation: Any, deterministic: bool) -> NDArray[np.int64]:
        """Return actions [B] of P_w for states [B]."""
        states = np.asarray(observation, dtype=np.int64)
        if deterministic:
            return np.asarray(self.target.probability[states].argmax(-1))
        u = self._predict_rng.random((*states.shape, 1))
        return np.asarray((u >= self.target.cumulative[states]).sum(-1))

    def policy_table(self) -> NDArray[np.float64]:
        """Return P_w as probabilities [S, A]."""
        return self.target.probability.copy()

    def exploration_table(self) -> NDArray[np.float64]:
        """Return Q_τ as probabilities [S, A]."""
        if self.rule is not None:
            self.rule.write(self.target, self.exploration)
        return self.exploration.probability.copy()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tables, to be saved."""
        arrays = {
            "target.logits": self.target.logits,
            "exploration.logits": self.exploration.logits,
            "values": self.values,
        }
        if self.critic is not None:
            arrays |= {"critic.q": self.critic.q, "critic.moves": self.critic.moves}
        if self.rule is not None:
            self.rule.write(self.target, self.exploration)
            learned = self.rule.state_dict()
            arrays |= {f"exploration.{name}": part.numpy() for name, part in learned.items()}
        return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over saved tables.

        Raises:
            ValueError: if a table is missing, of another shape or not finite; nothing has changed
                then.
        """
        checked = {}
        for name, here in self.state_dict().items():
            there = state.get(name)
            if there is None or there.shape != here.shape or there.dtype != here.dtype:
                got = "nothing" if there is None else f"{there.dtype} {tuple(there.shape)}"
                raise ValueError(
                    f"got {got} for {name!r}, expected {here.dtype} {tuple(here.shape)}: "
                    "the file is of another environment or damaged"
                )
            if not bool(torch.isfinite(there).all()):
                raise ValueError(f"got NaN or infinite numbers in {name!r}: the file is damaged")
            checked[name] = there.numpy()
        if self.rule is not None:
            names = ("visits", "squared_visits", "gain")
            self.rule.load_state_dict({name: state[f"exploration.{name}"] for name in names})
        self.target = tables.make_table(checked["target.logits"])
        self.exploration = tables.make_table(checked["exploration.logits"])
        self.values = checked["values"].copy()
        if self.critic is not None:
            self.critic = critic_module.Critic(
                checked["critic.q"].copy(), checked["critic.moves"].copy()
            )

    def training_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return all that the next batch depends on, between two of them: tensors, JSON values."""
        arrays = {
            "target.logits": self.target.logits,
            "exploration.logits": self.exploration.logits,
            "values": self.values,
        }
        if self.critic is not None:
            arrays |= {"critic.q": self.critic.q, "critic.moves": self.critic.moves}
        tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
        tensors |= {f"scale.{name}": x.clone() for name, x in self._scale.state_dict().items()}
        values: dict[str, Any] = {
            "generator": numpy_state(self._rng),
            "predict_generator": numpy_state(self._predict_rng),
        }
        if self.rule is not None:
            learned = self.rule.training_state()
            tensors |= {f"exploration.{name}": x for name, x in learned.items()}
        if self.memory is not None:
            kept, values["memory"] = self.memory.training_state()
            tensors |= {f"memory.{name}": x for name, x in kept.items()}
        return tensors, values

    def training_layout(self, names: Collection[str]) -> Layout:
        """Return what `training_state` may return: types and shapes."""
        layout = layout_of(self.training_state()[0])
        for name in ("exploration.log_probability", "memory.state", "memory.sums"):
            if name in layout:
                dtype, shape = layout[name]
                layout[name] = (dtype, (None, *shape[1:]))
        return layout

    def restore_training(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Go on from what `training_state` returned; the tensors fit `training_layout`.

        Raises:
            ValueError: numbers do not fit together; nothing has changed then.
        """
        streams = [check_numpy_state(values.get(f"{use}generator")) for use in ("", "predict_")]
        kept = tensors_of(tensors, "memory.")
        if self.memory is not None:
            self.memory.check_training_state(kept, values.get("memory"), len(self.values))
        if self.rule is not None:
            self.rule.restore_training(tensors_of(tensors, "exploration."))
        self._scale.load_state_dict(tensors_of(tensors, "scale."))
        if self.memory is not None:
            self.memory.restore_training(kept, values["memory"])
        self.target = tables.make_table(tensors["target.logits"].numpy())
        self.exploration = tables.make_table(tensors["exploration.logits"].numpy())
        self.values = tensors["values"].numpy().copy()
        if self.critic is not None:
            self.critic = critic_module.Critic(
                tensors["critic.q"].numpy().copy(), tensors["critic.moves"].numpy().copy()
            )
        self._rng.bit_generator.state, self._predict_rng.bit_generator.state = streams

    def _memory(self) -> RowMemory:
        if self.memory is None:
            raise ValueError("this learner was made with memory=0: pass the number to be kept")
        return self.memory

    def _accumulate(self, trajectories: TabularTrajectories, weights: Tensor) -> NDArray[np.int64]:
        rows, which = trajectories.rows, trajectories.which
        shares = weights.numpy() / len(trajectories)
        touched: NDArray[np.int64]
        if self.critic is not None:
            touched = critic_module.add_gradients(
                rows, which, shares, self.target, self.critic.q, self._scratch
            )
        else:
            touched = tables.add_gradients(
                rows, which, shares, self.target, self.values, self._scratch
            )
        return touched


def grid_of(env: TrapGridworld, reward_scale: float = 1.0) -> engine.Grid:
    """Return the gridworld as the engine reads it, rewards multiplied by `reward_scale`."""
    end = np.full(env.n_states, -1, np.int64)
    end[env.trap_cells] = engine.TRAP
    end[env.goal_cells] = engine.GOAL
    return engine.Grid(
        np.ascontiguousarray(env.next_state, dtype=np.int64),
        end,
        np.ascontiguousarray(env.move_reward * reward_scale),
        int(env.start),
        float(env.slip),
        int(env.horizon),
    )


def _refuse(step_clip: float | None) -> None:
    if step_clip is not None:
        raise ValueError(
            f"got step_clip={step_clip}: the rows of a table's trajectories hold no single steps; "
            "weight whole trajectories instead"
        )
