"""Access times: what they do to τ, where the rule converges to, clocks and slow storage."""

from typing import Any

import numpy as np
import pytest

from awsgd_rl import factorisation_kernels as kernels
from awsgd_rl.access_time import CompressedRows, SimulatedClock, SimulatedStorage
from awsgd_rl.factorisation import MatrixFactorisation
from awsgd_rl.ratings import Ratings
from awsgd_rl.urns import fill, make_urn

N = 20
SLOW = np.arange(N) >= N // 2
SECONDS = np.where(SLOW, 5e-6, 1e-7)


def matrix_of(seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(N, 2)) @ rng.normal(size=(2, 15))).astype(np.float32)


def make(**changes: Any) -> MatrixFactorisation:
    settings: dict[str, Any] = {
        "adaptation_rate": 0.02,
        "adapt_every": 1,
        "refresh": 1,
        "tickets": 32,
        "learning_rate": 0.01,
        "time_aware": True,
    }
    return MatrixFactorisation(2, **{**settings, **changes})


def test_the_rule_converges_to_norm_over_root_time() -> None:
    """q ∝ p ‖∇f‖ / √time, and no other q has a lower (second moment) × (mean time)."""
    rng = np.random.default_rng(0)
    norms, seconds = rng.random(6) + 0.5, 10.0 ** rng.uniform(-1, 1, size=6)
    urn = make_urn(np.full(6, 1 / 6), per_item=2_000)
    for step in range(12_000):
        items = urn.tickets[rng.integers(int(urn.size[0]), size=20)].astype(np.uint32)
        squares = (urn.weight[items] * norms[items]) ** 2 / seconds[items]
        rate = 0.02 if step < 4_000 else 0.002
        kernels.step_tau(urn.tau, items, squares.astype(np.float32), rate, 1)
        fill(urn)
    q = np.exp(urn.tau) / np.exp(urn.tau).sum()
    expected = norms / np.sqrt(seconds)
    np.testing.assert_allclose(q, expected / expected.sum(), rtol=0.15)

    def cost(proposal: Any) -> Any:
        return (norms**2 / 36 / proposal).sum(-1) * (proposal * seconds).sum(-1)

    best = cost(expected / expected.sum())
    assert best == pytest.approx((norms * np.sqrt(seconds)).sum() ** 2 / 36)
    assert (cost(rng.dirichlet(np.ones(6), size=10_000)) >= best).all()


def test_slow_rows_are_drawn_less_only_if_time_counts() -> None:
    aware = make().fit(matrix_of(), 60, row_seconds=SECONDS)
    unaware = make(time_aware=False).fit(matrix_of(), 60, row_seconds=SECONDS)
    assert aware.row_probabilities[SLOW].sum() < 0.3
    assert unaware.row_probabilities[SLOW].sum() > 0.35
    assert aware.access_seconds < 0.7 * unaware.access_seconds


def test_storage_with_a_simulated_clock_is_the_compiled_simulation() -> None:
    matrix = matrix_of()
    clock = SimulatedClock()
    storage = SimulatedStorage(matrix, SECONDS, clock)
    slow = make().fit_storage(storage, 30 * matrix.size, clock=clock)
    fast = make().fit(matrix, 30, row_seconds=SECONDS)
    assert slow.draws == fast.draws
    assert slow.access_seconds == pytest.approx(fast.access_seconds)
    assert clock() == pytest.approx(fast.access_seconds)
    # The clock's differences are rounded, the constants are not.
    np.testing.assert_allclose(slow.reconstruct(), fast.reconstruct(), rtol=0.02, atol=0.02)
    uniform = make(adaptation_rate=0.0, time_aware=False)
    uniform.fit_storage(storage, 30 * matrix.size, clock=clock)
    plain = make(adaptation_rate=0.0, time_aware=False).fit(matrix, 30)
    np.testing.assert_array_equal(uniform.reconstruct(), plain.reconstruct())


@pytest.mark.parametrize("per_block", [1, 3, 64])
def test_compressed_rows_hold_the_matrix(per_block: int) -> None:
    matrix = matrix_of()
    storage = CompressedRows(matrix, SLOW, per_block=per_block)
    assert storage.shape == matrix.shape
    read = [[storage.read(i, j) for j in range(15)] for i in range(N)]
    np.testing.assert_array_equal(np.float32(read), matrix)
    model = make().fit_storage(storage, 1_000)
    assert model.access_seconds > 0.0


def test_bad_times_and_storage_are_refused() -> None:
    matrix = matrix_of()
    for seconds, words in (
        (SECONDS[:3], r"shape \[3\], expected \[20\]"),
        (np.where(np.arange(N) == 4, 0.0, 1.0), r"row_seconds\[4\] is 0.0"),
        (np.where(np.arange(N) == 2, np.nan, 1.0), r"row_seconds\[2\] is nan"),
        (None, "pass row_seconds"),
    ):
        with pytest.raises(ValueError, match=words):
            make().fit(matrix, row_seconds=seconds)
    with pytest.raises(ValueError, match="dense matrix or a storage"):
        make().fit(Ratings.from_matrix(matrix))
    with pytest.raises(ValueError, match="per_block is 0"):
        CompressedRows(matrix, SLOW, per_block=0)
    with pytest.raises(ValueError, match="expected a positive time"):
        make().fit_storage(CompressedRows(matrix, SLOW), 100, clock=lambda: 0.0)
    broken = matrix.copy()
    broken[:] = np.nan
    with pytest.raises(ValueError, match="the storage gave nan for row"):
        make().fit_storage(CompressedRows(broken, SLOW), 100)
