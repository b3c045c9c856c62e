"""Multiple importance sampling: several proposals at once, and how to combine their draws.

With n_j draws of proposal p_j, B in all, `S = Σ_j n_j p_j` and a target p:

- the balance heuristic (Veach & Guibas 1995) weights a draw by `B p / S`, whichever proposal it
  came from: `weights.importance_weights(log_p, draw.log_q)`, with a draw of `draw_from_each`;
- the optimal weights (Kondapaneni 2019; for gradients Salaün 2025) fit `f ≈ Σ_j α_j p_j` to the
  values of the draws by least squares, and return the integral of the fit.

In units of *responsibilities* `V_j = n_j p_j / S`, which sum to 1 over j, the second is
`mean_b w_b (c · V_b) f_b` with the balance weights w, `A = Σ_b V_b V_bᵀ` and `A c = n`. The exact
A, its expectation, has `A 1 = n`: then c = 1, and the balance heuristic is back draw by draw. So
only the difference between a batch's own A and the exact one does anything. With draws of
`draw_from_each` it vanishes where each proposal alone draws its items.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from awsgd_rl.adaptation import TableAdaptation
from awsgd_rl.base import Draw, Proposal
from awsgd_rl.proposals import MixtureProposal, TableProposal
from awsgd_rl.sampling import check_scores
from awsgd_rl.validation import require_fraction, require_non_negative
from awsgd_rl.weights import importance_weights

__all__ = [
    "OptimalCombination",
    "OutputNodeAdaptation",
    "combination_coefficients",
    "draw_from_each",
    "gradient_rows",
    "optimal_weights",
    "raise_scores",
    "responsibilities",
]


def draw_from_each(
    mixture: MixtureProposal, counts: Sequence[int], *, generator: torch.Generator | None = None
) -> tuple[Draw, Tensor]:
    """Draws n_j items of each proposal j, in place of a random number of each.

    A mean with balance weights is unbiased for both, and varies less here; but the draws of a
    batch have different laws, so do not judge its standard error by their spread. The shares of
    the mixture play no part.

    Args:
      mixture: its components are the proposals; none of them conditional.
      counts: [J] draws n_j of each, at least 0, one or more in all.
      generator: a generator of the proposals' device; None takes PyTorch's own.

    Returns:
      The draw of B = Σ n_j items in the order of the proposals, with `log_q = log(S / B)`; and
      [B, J] the log density of each item under each proposal.

    Raises:
      ValueError: if there is not one count a component, or one is negative, or all are 0.
    """
    components = [item for item in mixture.components if isinstance(item, Proposal)]
    shares = torch.tensor(list(counts), dtype=torch.float64)
    if len(counts) != len(components) or not bool((shares >= 0).all()) or not bool(shares.any()):
        raise ValueError(
            f"counts is {list(counts)}, expected {len(components)} numbers of draws, of 0 or more "
            "each and 1 or more in all: one for each component"
        )
    items = torch.cat(
        [
            component.draw(count, generator=generator).items
            for component, count in zip(components, counts, strict=True)
            if count > 0
        ]
    )
    with torch.no_grad():
        log_components = mixture.log_components(items)
        log_shares = (shares / shares.sum()).log().to(log_components)
        return Draw(items, (log_components + log_shares).logsumexp(1)), log_components


def responsibilities(log_components: Tensor, counts: Tensor) -> Tensor:
    """V_bj = n_j p_j(x_b) / S(x_b): the probability that draw b came from proposal j.

    Args:
      log_components: [B, J] log density of each draw under each proposal.
      counts: [J] draws of each, or any numbers in proportion.

    Returns:
      [B, J] float64, rows sum to 1.

    Raises:
      ValueError: if the shapes do not fit.
    """
    if log_components.dim() != 2 or counts.shape != log_components.shape[1:]:
        raise ValueError(
            f"log_components has shape {tuple(log_components.shape)} and counts "
            f"{tuple(counts.shape)}, expected [B, J] and [J]"
        )
    logs = log_components.detach().to(torch.float64)
    return (logs + counts.to(logs).log()).softmax(1)


def combination_coefficients(matrix: Tensor, counts: Tensor, ridge: float = 1e-3) -> Tensor:
    """The c of `A c = n`, pulled towards 1: `c = 1 + (A + λ)⁻¹ (n − A 1)`.

    A plain ridge would shrink the estimate itself towards 0; this one leads to the balance
    heuristic. It is needed where there are fewer draws than proposals, or two of these are alike.

    Args:
      matrix: [J, J] A = Σ_b V_b V_bᵀ.
      counts: [J] draws n of each proposal in the batches that A sums over.
      ridge: λ over the mean of A's diagonal, positive.

    Returns:
      [J] float64.

    Raises:
      ValueError: if the shapes do not fit, or the ridge is not positive.
    """
    if matrix.shape != (len(counts), len(counts)) or not ridge > 0:
        raise ValueError(
            f"matrix has shape {tuple(matrix.shape)}, counts {tuple(counts.shape)} and ridge is "
            f"{ridge}, expected [J, J], [J] and a positive number"
        )
    matrix = matrix.detach().to(torch.float64)
    missing = counts.to(matrix) - matrix.sum(1)
    identity = torch.eye(len(counts), dtype=matrix.dtype, device=matrix.device)
    regular = matrix + ridge * matrix.diagonal().mean() * identity
    correction: Tensor = torch.linalg.solve_ex(regular, missing).result
    return 1.0 + correction


def optimal_weights(
    log_p: Tensor, log_components: Tensor, counts: Tensor, *, ridge: float = 1e-3
) -> Tensor:
    """Weights whose mean is the optimal combination with the batch's own A (Kondapaneni 2019).

    `w_b = B p / S (c · V_b)`: one backward pass, as for any other weights. Exact for every target
    value in the span of the proposals' densities (`p f = Σ_j α_j p_j`). Biased otherwise, by
    O(1/B), because A is of the same draws; some weights may be negative. The estimate of Salaün
    2025 as printed is smaller by the factor 1/n where all n_j = n.

    Args:
      log_p: [B] log density of each draw under the target.
      log_components: [B, J] log density of each draw under each proposal.
      counts: [J] draws of each; for a draw of the mixture B times its shares.
      ridge: as in `combination_coefficients`; large is the balance heuristic.

    Returns:
      [B] float64, for `estimators.weighted_mean`.

    Raises:
      ValueError: if the shapes do not fit, or the ridge is not positive.
    """
    shares = responsibilities(log_components, counts)
    counts = counts.to(shares)
    counts = counts * (len(shares) / counts.sum())
    log_q = (log_components + (counts / len(shares)).log()).logsumexp(1)
    coefficients = combination_coefficients(shares.T @ shares, counts, ridge)
    return importance_weights(log_p, log_q) * (shares @ coefficients)


def gradient_rows(
    values: Tensor, weights: Tensor, shares: Tensor, parameters: Sequence[Tensor]
) -> list[Tensor]:
    """The J gradients of `mean_b V_bj w_b ℓ_b`, in one batched backward pass.

    Their sum over j is the gradient of the balance heuristic, because Σ_j V_bj = 1.

    Args:
      values: [B] loss of each draw, with its graph.
      weights: [B] balance weights.
      shares: [B, J] responsibilities.
      parameters: what to differentiate by.

    Returns:
      For each parameter a tensor [J, ...].

    Raises:
      ValueError: if the shapes do not fit.
    """
    if shares.dim() != 2 or values.shape != weights.shape or values.shape != shares.shape[:1]:
        raise ValueError(
            f"got shapes {tuple(values.shape)} of values, {tuple(weights.shape)} of weights and "
            f"{tuple(shares.shape)} of shares, expected [B], [B] and [B, J]"
        )
    seeds = (shares * (weights / len(weights)).unsqueeze(1)).T.to(values)
    return list(torch.autograd.grad(values, parameters, seeds, is_grads_batched=True))


class OptimalCombination:
    """The optimal combination with a running A and b (Salaün 2025, algorithm 2, put right).

    `A ← β A + Σ_b V_b V_bᵀ` and `b ← β b + rows`, with the J gradients of `gradient_rows` as rows.
    Running sums cost little noise where batches are small; as momentum does, they mix in gradients
    of older parameters. The estimate is `c · b` over the running number of batches, biased like
    `optimal_weights`.

    With `unbiased` the fit of the *past* batches is a control variate of this one instead:
    `Σ_j rows_j + Σ_j (n_j − Σ_b V_bj) (A⁻¹ b)_j`. Given the past, its expectation is the exact
    gradient; nothing of the past mixes in.

    Args:
      counts: [J] draws n_j of each proposal in a batch; for draws of a mixture B times its shares.
      beta: how much of the past is kept per batch, in [0, 1).
      ridge: as in `combination_coefficients`.
      unbiased: the control variate of the past.

    Raises:
      ValueError: if a setting is out of range.
    """

    def __init__(
        self, counts: Tensor, *, beta: float = 0.7, ridge: float = 1e-3, unbiased: bool = False
    ) -> None:
        self.counts = check_scores(counts, "counts")
        self.beta, self.ridge = require_fraction("beta", beta), ridge
        self.unbiased = unbiased
        self.matrix = torch.zeros(
            len(counts), len(counts), dtype=torch.float64, device=counts.device
        )
        combination_coefficients(self.matrix + 1.0, self.counts, ridge)
        self.batches = 0.0
        self.rows: list[Tensor] | None = None

    def update(self, shares: Tensor, rows: Sequence[Tensor]) -> list[Tensor]:
        """Takes in a batch, and returns the gradient to step along.

        Args:
          shares: [B, J] responsibilities of the batch.
          rows: for each parameter [J, ...], of `gradient_rows`.

        Returns:
          For each parameter its gradient.

        Raises:
          ValueError: if a shape does not fit, or differs from that of the batches before. Nothing
            changes then.
        """
        expected = [(len(self.counts), *row.shape[1:]) for row in rows]
        if self.rows is not None:
            expected = [tuple(row.shape) for row in self.rows]
        if shares.shape[1:] != self.counts.shape or [tuple(row.shape) for row in rows] != expected:
            raise ValueError(
                f"got shares {tuple(shares.shape)} and rows {[tuple(row.shape) for row in rows]}, "
                f"expected [B, {len(self.counts)}] and {expected}"
            )
        rows = [row.detach() for row in rows]
        past = self._control(shares) if self.unbiased and self.rows is not None else None
        self.matrix = self.beta * self.matrix + shares.T @ shares
        self.batches = self.beta * self.batches + 1.0
        if self.rows is None:
            self.rows = [row.clone() for row in rows]
        else:
            self.rows = [self.beta * old + row for old, row in zip(self.rows, rows, strict=True)]
        if self.unbiased:
            balance = [row.sum(0) for row in rows]
            if past is None:
                return balance
            return [one + other for one, other in zip(balance, past, strict=True)]
        counts = self.batches * self.counts
        coefficients = combination_coefficients(self.matrix, counts, self.ridge) / self.batches
        return _combine(coefficients, self.rows)

    def _control(self, shares: Tensor) -> list[Tensor]:
        """(n − Σ_b V_b) · A⁻¹ b for each parameter, with the A and b of the past."""
        assert self.rows is not None
        missing = self.counts - shares.sum(0)
        identity = torch.eye(len(missing), dtype=missing.dtype, device=missing.device)
        regular = self.matrix + self.ridge * self.matrix.diagonal().mean() * identity
        return _combine(torch.linalg.solve_ex(regular, missing).result, self.rows)

    def state_dict(self) -> dict[str, Any]:
        """A copy of the running sums."""
        rows = None if self.rows is None else [row.clone() for row in self.rows]
        return {"matrix": self.matrix.clone(), "batches": self.batches, "rows": rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned.

        Args:
          state: of a combination of as many proposals.

        Raises:
          ValueError: if the number of proposals differs.
        """
        if state["matrix"].shape != self.matrix.shape:
            raise ValueError(
                f"the state is of {len(state['matrix'])} proposals, expected {len(self.counts)}"
            )
        self.matrix, self.batches = state["matrix"].clone(), state["batches"]
        self.rows = None if state["rows"] is None else [row.clone() for row in state["rows"]]


class OutputNodeAdaptation:
    """A table for each output node, of the magnitude of that node's loss gradient (Salaün 2025).

    For an image's colours three tables, each with the errors of one of R, G and B.

    Args:
      mixture: its components are the tables.
      decay: how much of an old score stays, in [0, 1) (Salaün 2025: 0 to 0.3).

    Raises:
      ValueError: if a component is not a `TableProposal`, or decay is out of range.
    """

    def __init__(self, mixture: MixtureProposal, *, decay: float = 0.0) -> None:
        self._tables = []
        for k, component in enumerate(mixture.components):
            if not isinstance(component, TableProposal):
                raise ValueError(
                    f"component {k} is a {type(component).__name__}, expected a TableProposal"
                )
            self._tables.append(TableAdaptation(component, decay=decay))

    def update(self, draw: Draw, output_gradients: Tensor) -> None:
        """Writes |∂ℓ/∂output_j| of the drawn items into table j.

        Args:
          draw: the draw, from any of the tables.
          output_gradients: [B, J] signed gradients of each item's loss, without weight.

        Raises:
          ValueError: if the shape is wrong, or an entry infinite or NaN. Nothing is written then.
        """
        if output_gradients.shape != (len(draw.items), len(self._tables)):
            raise ValueError(
                f"output_gradients has shape {tuple(output_gradients.shape)}, expected "
                f"{(len(draw.items), len(self._tables))}: one per draw and table"
            )
        magnitudes = output_gradients.detach().abs()
        check_scores(magnitudes.flatten(), "the magnitude of output_gradients")
        for k, table in enumerate(self._tables):
            table.update(draw, magnitudes[:, k])


def raise_scores(table: TableProposal, epsilon: float) -> None:
    """s_i ← s_i + ε for all items, once an epoch: what is never drawn comes back (Salaün 2025).

    Args:
      table: the table.
      epsilon: what is added, not negative.

    Raises:
      ValueError: if epsilon is negative or not finite, or a score would leave the table's range.
    """
    epsilon = require_non_negative("epsilon", epsilon)
    items = torch.arange(len(table.scores), device=table.scores.device)
    table.set_scores(items, table.scores + epsilon)


def _combine(coefficients: Tensor, rows: Sequence[Tensor]) -> list[Tensor]:
    """Σ_j c_j rows_j for each parameter."""
    return [torch.tensordot(coefficients.to(row), row, 1) for row in rows]
