"""The rule by which a table's exploration policy Q is learned: the cross-entropy method.

The proposal with which a weighted gradient varies least is q*(ξ) ∝ p(ξ) ‖g(ξ)‖ (Bouchard 2015). Of
the policies that draw one action after the other, the one nearest to q* in cross-entropy takes
action a in state s as often as q* does (Rubinstein and Kroese 2004; de Boer et al. 2005):

    q(a|s) ∝ E_q*[n(s, a)] ∝ Σ_ξ c_ξ n_ξ(s, a),   c = W ‖g‖,   W = p / ((1 − α) p + α q_then)

with n_ξ(s, a) the visits in trajectory ξ, and W the weight with which ξ was drawn, from a mixture
with the Q of that time: so all trajectories ever drawn count, and Q improves what it learns from.

Few trajectories carry most of Σ c n, so that maximum likelihood overfits: a state that one
trajectory of large ‖g‖ came through would be given the actions of that trajectory, and a mixture
that hardly ever draws what P_w does there is worse than P_w. So each state has a prior that counts
as many visits as `prior_visits`, against the effective number of its own (Kish 1965):

    q(a|s) = (n_eff(s) ĉ(a|s) + ν u(a|s)) / (n_eff(s) + ν),   n_eff(s) = (Σ c n)² / Σ (c n)²

where ĉ is the maximum likelihood and u = (1 − ε) p + ε / A. The uniform share ε is what finds
rare failures: P_w would take thousands of trajectories to come upon one. It fades where enough has
been seen. (Any ν from 15 to 50 with ε from 0.03 to 0.2 does about as well; a prior that is not
measured in effective visits made the variance larger than P_w's own.)

The policy's support is that of P_w, and more. The weights that it is used with are those of the
mixture that drew: whatever Q is, the gradient stays unbiased, and W ≤ 1 / (1 − α).
"""

import numba
import numpy as np
import torch
from torch import Tensor

from awsgd_rl import validation, weighted_means
from awsgd_rl.agents import engine, tables
from awsgd_rl.agents.config import count_explored
from awsgd_rl.agents.tables import COUNT, Floats, Ints, Rows, Table

_LARGEST_GAIN = 1e100  # of new evidence over the first, before all is scaled back
_LARGEST_LOG_RATIO = 30.0  # of two probabilities of an action; a guard against overflow

_jit = numba.njit(cache=True, nogil=True, error_model="numpy")


@_jit
def add_visits(
    rows: Rows, which: Ints, scores: Floats, visits: Floats, squared_visits: Floats
) -> None:
    """Add each trajectory's visits, weighted by its score.

    Args:
        rows: where the trajectories lie.
        which: [B] their numbers in `rows`.
        scores: [B] c_b.
        visits: [S, A] gets sum_b c_b n_b(s, a) added.
        squared_visits: [S] gets sum_b (c_b n_b(s))^2 added.
    """
    first, size, state, sums = rows
    for b in range(which.shape[0]):
        i = which[b]
        for row in range(first[i], first[i] + size[i]):
            total = 0.0
            for a in range(visits.shape[1]):
                visits[state[row], a] += scores[b] * sums[row, a, COUNT]
                total += sums[row, a, COUNT]
            squared_visits[state[row]] += (scores[b] * total) ** 2


@_jit
def follow_target(
    visits: Floats, squared_visits: Floats, log_probability: Floats, target: Table
) -> None:
    """Turn visits counted for an earlier P_w into those that P_w would have had as it is now.

    An action's visits go as the probability that P_w gives it: each is multiplied by the ratio of
    the two. (What changed in other states is left to the evidence to come.)

    Args:
        visits: [S, A] changed in place.
        squared_visits: [S] changed in place, in proportion to its state's visits squared.
        log_probability: [S, A] of the earlier policy; set to that of `target`.
        target: P_w.
    """
    n_actions = visits.shape[1]
    for s in range(visits.shape[0]):
        before, after = 0.0, 0.0
        for a in range(n_actions):
            now = target.log_probability[s, a]
            before += visits[s, a]
            if now != log_probability[s, a]:  # -inf twice is no change either
                visits[s, a] *= np.exp(min(now - log_probability[s, a], _LARGEST_LOG_RATIO))
                log_probability[s, a] = now
            after += visits[s, a]
        if before > 0.0:
            squared_visits[s] *= (after / before) ** 2


@_jit
def fit_table(
    visits: Floats,
    squared_visits: Floats,
    target: Table,
    prior_visits: float,
    uniform_share: float,
    exploration: Table,
) -> None:
    """Set `exploration` to the policy of the module's page; arguments as there."""
    n_actions = visits.shape[1]
    for s in range(visits.shape[0]):
        total = 0.0
        for a in range(n_actions):
            total += visits[s, a]
        # n_eff / total, so that it multiplies the visits.
        scale = total / squared_visits[s] if squared_visits[s] > 0.0 else 0.0
        for a in range(n_actions):
            prior = (1.0 - uniform_share) * target.probability[s, a] + uniform_share / n_actions
            exploration.logits[s, a] = np.log(scale * visits[s, a] + prior_visits * prior)
    tables.refresh(exploration)


class CrossEntropyExploration:
    """Visits weighted by what they contribute, and the exploration policy that they give.

    Used with a moving P_w too: what was learned follows it (`follow_target`), and with `decay`
    below 1 what a batch showed counts the less, the more batches have come since. Call `update`
    with each batch before P_w moves, `write` after.

    Args:
        n_states: S.
        n_actions: A.
        prior_visits: ν, how many effective visits of a state the prior counts as.
        uniform_share: ε, share of the prior that is uniform, in [0, 1].
        decay: what earlier batches' evidence is multiplied by at each new batch, in (0, 1].

    Attributes:
        visits: [S, A] Σ c n(s, a), in units that only ratios are free of.
        squared_visits: [S] Σ (c n(s))², in the square of that unit.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        n_states: int,
        n_actions: int,
        *,
        prior_visits: float = 30.0,
        uniform_share: float = 0.1,
        decay: float = 1.0,
    ) -> None:
        self.prior_visits = validation.require_positive("prior_visits", prior_visits)
        self.uniform_share = validation.require_probability("uniform_share", uniform_share)
        self.decay = validation.require_positive("decay", decay)
        if decay > 1.0:
            raise ValueError(f"decay is {decay}, expected at most 1, which forgets nothing")
        self.visits = np.zeros((n_states, n_actions))
        self.squared_visits = np.zeros(n_states)
        self._gain = 1.0
        self._log_probability: Floats | None = None  # of the P_w that `visits` are for

    def update(self, rows: Rows, which: Ints, scores: Floats) -> None:
        """Take in a batch. O(rows).

        Args:
            rows: where its trajectories lie.
            which: [B] their numbers in `rows`.
            scores: [B] W ‖g‖, each trajectory's weighted gradient norm, in any unit. While P_w
                learns, divide them by their running mean: norms shrink by orders of magnitude.

        Raises:
            ValueError: a score is negative, infinite or NaN; nothing has changed then.
        """
        if scores.shape != which.shape or not (np.isfinite(scores).all() and (scores >= 0).all()):
            raise ValueError(
                f"got {scores.size} scores for {len(which)} trajectories, from "
                f"{scores.min(initial=np.inf)} to {scores.max(initial=-np.inf)}, expected one "
                "each, finite and 0 or more: pass weights times gradient norms"
            )
        # New evidence is made larger in place of the old smaller: nothing costs O(S).
        self._gain /= self.decay
        if self._gain > _LARGEST_GAIN:
            self.visits /= self._gain
            self.squared_visits /= self._gain**2
            self._gain = 1.0
        add_visits(rows, which, self._gain * scores, self.visits, self.squared_visits)

    def write(self, target: Table, exploration: Table) -> None:
        """Set `exploration` to what has been learned, for the target policy as it is now. O(S)."""
        if self._log_probability is None:
            self._log_probability = target.log_probability.copy()
        follow_target(self.visits, self.squared_visits, self._log_probability, target)
        fit_table(
            self.visits,
            self.squared_visits,
            target,
            self.prior_visits,
            self.uniform_share,
            exploration,
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Return what has been learned, to be saved after a `write`.

        `visits` [S, A], `squared_visits` [S], and `gain` [1], what the next evidence counts for.
        """
        return {
            "visits": torch.from_numpy(self.visits.copy()),
            "squared_visits": torch.from_numpy(self.squared_visits.copy()),
            "gain": torch.tensor([self._gain], dtype=torch.float64),
        }

    def training_state(self) -> dict[str, Tensor]:
        """Return what goes on, wherever it stands: without a `write`, which would change it.

        That is `state_dict`'s, and `log_probability` [S, A] of the P_w that the visits are for;
        [0, A] before the first `write`.
        """
        known = self._log_probability
        known = np.empty((0, self.visits.shape[1])) if known is None else known.copy()
        return {**self.state_dict(), "log_probability": torch.from_numpy(known)}

    def restore_training(self, state: dict[str, Tensor]) -> None:
        """Go on from what `training_state` returned.

        Raises:
            ValueError: a part is missing, of another shape, or no such number; nothing has changed
                then.
        """
        known = state["log_probability"]
        if known.shape not in (self.visits.shape, (0, self.visits.shape[1])):
            raise ValueError(
                f"got shape {tuple(known.shape)} for 'log_probability', expected "
                f"{self.visits.shape}: the file is of another environment or damaged"
            )
        self.load_state_dict(state)
        self._log_probability = known.numpy().copy() if len(known) else None

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_dict` returned.

        Raises:
            ValueError: a part is missing, of another shape, negative or not finite; nothing has
                changed then.
        """
        checked = {}
        shapes = {
            "visits": self.visits,
            "squared_visits": self.squared_visits,
            "gain": np.empty(1),
        }
        for name, here in shapes.items():
            there = state.get(name)
            if there is None or tuple(there.shape) != here.shape:
                got = "nothing" if there is None else f"shape {tuple(there.shape)}"
                raise ValueError(
                    f"got {got} for {name!r}, expected shape {here.shape}: the file is of another "
                    "environment or damaged"
                )
            smallest = there.min() > 0 if name == "gain" else there.min() >= 0
            if not bool(torch.isfinite(there).all() & smallest):
                raise ValueError(
                    f"got negative, NaN or infinite numbers in {name!r}, expected weighted counts: "
                    "the file is damaged"
                )
            checked[name] = there.to(torch.float64).numpy().copy()
        self.visits, self.squared_visits = checked["visits"], checked["squared_visits"]
        self._gain = float(checked["gain"][0])
        self._log_probability = None


def mixture_weights(
    rows: Rows, which: Ints, target: Table, exploration: Table, share: float
) -> Floats:
    """Return [B] p / ((1 − α) p + α q) of the trajectories `which` [B]; α is `share`."""
    log_p, log_q = (tables.log_probability(rows, which, table) for table in (target, exploration))
    return weighted_means.mixture_weights(log_p, log_q, share)


def learn_exploration(
    grid: engine.Grid,
    target: Table,
    values: Floats,
    *,
    episodes: int,
    discount: float,
    seed: int,
    share: float = 0.8,
    batch_size: int = 200,
    rule: CrossEntropyExploration | None = None,
) -> Table:
    """Learn an exploration policy for a target policy that stays as it is.

    Batch by batch, a share of each drawn by the exploration policy of that time.

    Args:
        grid: the gridworld.
        target: P_w.
        values: [S] state values, the gradient's baseline.
        episodes: how many to learn from, at least 1.
        discount: in (0, 1].
        seed: names the random streams.
        share: α in [0, 1), share of each batch that the exploration policy draws.
        batch_size: episodes between two fits.
        rule: what to learn with (and go on from). Default: `CrossEntropyExploration(S, A)`.

    Returns:
        The exploration policy.

    Raises:
        ValueError: `episodes`, `batch_size` or `share` is out of range.
    """
    validation.require_integer("episodes", episodes)
    validation.require_integer("batch_size", batch_size)
    validation.require_fraction("share", share)
    rule = CrossEntropyExploration(*target.logits.shape) if rule is None else rule
    exploration = tables.make_table(target.logits)
    rule.write(target, exploration)
    rng = np.random.default_rng(seed)
    room = engine.make_room(grid, min(batch_size, episodes))
    for begin in range(0, episodes, batch_size):
        n = min(batch_size, episodes - begin)
        explored = count_explored(share, n)
        rows, _ = engine.rollout(
            grid,
            target,
            exploration,
            n - explored,
            explored,
            discount=discount,
            seed=int(rng.integers(2**63)),
            room=room,
        )
        which = np.arange(n)
        weights = mixture_weights(rows, which, target, exploration, explored / n)
        norms = tables.gradient_norms(rows, which, target, values)
        rule.update(rows, which, weights * norms)
        rule.write(target, exploration)
    return exploration
