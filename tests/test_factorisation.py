"""Matrix factorisation: exact densities, unbiased steps, sparse τ steps, resuming, bad input."""

from typing import Any

import numpy as np
import pytest

from awsgd_rl import factorisation_kernels as kernels
from awsgd_rl.factorisation import MatrixFactorisation
from awsgd_rl.factorisation_data import sorted_entries
from awsgd_rl.ratings import Ratings
from awsgd_rl.urns import fill, make_urn, probabilities

N, M, RANK = 7, 5, 3


def matrix_of(n: int = N, m: int = M, rank: int = RANK, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, rank)) @ rng.normal(size=(rank, m))).astype(np.float32)


def ratings_of(seed: int = 0) -> Ratings:
    rng = np.random.default_rng(seed)
    matrix = matrix_of()
    return Ratings.from_matrix(np.where(rng.random(matrix.shape) < 0.6, matrix, np.nan))


def batch_of(size: int) -> kernels.Batch:
    return kernels.Batch(
        *(np.zeros(size, np.uint32) for _ in range(2)),
        *(np.zeros(size, np.float32) for _ in range(3)),
        np.ones(size),
    )


def settings_of(**changes: Any) -> kernels.Settings:
    values: dict[str, Any] = {
        "learning_rate": 0.1,
        "half": 1e9,
        "adaptation_rate": 0.1,
        "adapt_every": 1,
        "ridge": 0.0,
        "offset": 0.0,
        "adagrad": False,
        "time_aware": False,
        "refresh": 1,
        "side": 1,
    }
    return kernels.Settings(**{**values, **changes})


@pytest.mark.parametrize("tau", [None, np.linspace(-1, 1, 6), np.array([9.0, 0, 0, 0, 0, -50])])
@pytest.mark.parametrize("share", [np.full(6, 1 / 6), np.array([0.4, 0.0, 0.3, 0.2, 0.05, 0.05])])
def test_an_urn_has_exact_weights_and_no_item_too_rare(share: Any, tau: Any) -> None:
    urn = make_urn(share, tau, per_item=64)
    q = probabilities(urn)
    drawn = share > 0
    np.testing.assert_array_equal(q[~drawn], 0.0)
    np.testing.assert_allclose(urn.weight[drawn], share[drawn] / q[drawn], rtol=1e-6)
    np.testing.assert_array_equal(urn.weight[~drawn], 0.0)
    assert urn.weight.max() < 64 * 1.6
    if tau is not None and abs(tau).max() < 2:
        softmax = share * np.exp(tau)
        np.testing.assert_allclose(q, softmax / softmax.sum(), atol=0.02)


def test_an_urn_forgets_what_it_cannot_express() -> None:
    urn = make_urn(np.full(4, 0.25), np.array([0.0, 0.0, 0.0, -1e6]))
    assert urn.tau[3] > -3.0
    fill(urn)
    assert probabilities(urn)[3] >= 0.25 / 8 * 0.8
    assert len(probabilities(make_urn(np.full(100, 0.01), np.arange(100.0)))) == 100


@pytest.mark.parametrize("side", [1, 5])
def test_dense_draws_follow_their_weights_and_weighted_means_are_unbiased(side: int) -> None:
    rng = np.random.default_rng(1)
    rows, columns = (make_urn(np.full(n, 1 / n), rng.normal(size=n)) for n in (N, M))
    q = np.outer(probabilities(rows), probabilities(columns))
    batch = batch_of(100_000)
    kernels.draw_pairs(rows, columns, np.array([3], np.uint64), side, batch)
    np.testing.assert_allclose(batch.weight, 1 / (N * M) / q[batch.row, batch.column], rtol=1e-5)
    counts = np.zeros((N, M))
    np.add.at(counts, (batch.row, batch.column), 1 / len(batch.row))
    # A block's pairs share rows: as if there were only one draw a block.
    error = 5 * np.sqrt(q / len(batch.row)) * side
    assert (abs(counts - q) < error).all()
    values = rng.normal(size=(N, M))
    means = (batch.weight * values[batch.row, batch.column]).reshape(-1, side * side).mean(axis=1)
    standard_error = means.std(ddof=1) / np.sqrt(len(means))
    assert abs(means.mean() - values.mean()) < 5 * standard_error


def test_draws_of_entries_follow_the_mixture_and_are_unbiased() -> None:
    ratings = ratings_of()
    entries = sorted_entries(ratings)
    rng = np.random.default_rng(2)
    per_row, per_column = np.bincount(ratings.row), np.bincount(ratings.column)
    size = len(ratings)
    rows = make_urn(per_row / size, rng.normal(size=N))
    columns = make_urn(per_column / size, rng.normal(size=M))
    q = 0.5 * (probabilities(rows) / per_row)[ratings.row]
    q += 0.5 * (probabilities(columns) / per_column)[ratings.column]
    assert q.sum() == pytest.approx(1.0)
    batch = batch_of(100_000)
    kernels.draw_entries(entries, rows, columns, np.array([5], np.uint64), batch)
    exact = np.zeros((N, M))
    exact[ratings.row, ratings.column] = q
    np.testing.assert_allclose(batch.weight, 1 / size / exact[batch.row, batch.column], rtol=1e-5)
    counts = np.zeros((N, M))
    np.add.at(counts, (batch.row, batch.column), 1 / len(batch.row))
    assert (abs(counts - exact) <= 5 * np.sqrt(exact / len(batch.row))).all()
    observed = np.full((N, M), np.nan)
    observed[ratings.row, ratings.column] = ratings.value
    np.testing.assert_array_equal(batch.value, observed[batch.row, batch.column].astype("f4"))
    weighted = batch.weight * batch.value
    standard_error = weighted.std(ddof=1) / np.sqrt(len(weighted))
    assert abs(weighted.mean() - ratings.value.mean()) < 5 * standard_error


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_a_step_and_its_norm_are_those_of_autograd(ridge: float) -> None:
    import torch

    rng = np.random.default_rng(0)
    U, V = (rng.normal(size=(n, 8)).astype(np.float32) for n in (N, M))
    factors = kernels.Factors(U.copy(), V.copy(), U[:0, :0].copy(), V[:0, :0].copy())
    batch = batch_of(4)
    batch.row[:], batch.column[:] = [0, 1, 2, 3], [3, 2, 1, 0]
    batch.value[:], batch.weight[:] = rng.normal(size=4), rng.random(4) + 0.5
    settings = settings_of(ridge=ridge, offset=0.2)
    kernels.step_factors_with_norms(batch, factors, np.float32(0.1), settings)
    plain = kernels.Factors(U.copy(), V.copy(), U[:0, :0].copy(), V[:0, :0].copy())
    kernels.step_factors(batch, plain, np.float32(0.1), settings)
    np.testing.assert_allclose(plain.U, factors.U, rtol=1e-5, atol=1e-6)
    for b in range(4):
        u, v = (torch.tensor(w[i], dtype=torch.float64, requires_grad=True)
                for w, i in ((U, batch.row[b]), (V, batch.column[b])))  # fmt: skip
        loss = (u @ v + 0.2 - float(batch.value[b])) ** 2 + ridge * (u @ u + v @ v)
        loss.backward()
        assert u.grad is not None
        assert v.grad is not None
        weight = float(batch.weight[b])
        norm = weight**2 * float(u.grad @ u.grad + v.grad @ v.grad)
        assert batch.norm[b] == pytest.approx(norm, rel=1e-4)
        moved = (u - 0.1 * weight * u.grad).detach().numpy()
        np.testing.assert_allclose(factors.U[batch.row[b]], moved, rtol=1e-4, atol=1e-5)
    kernels.squared_norms(batch, kernels.Factors(U, V, U[:0], V[:0]), settings)


@pytest.mark.parametrize("side", [1, 2])
def test_the_sparse_step_of_tau_is_that_of_the_score_function(side: int) -> None:
    """Centred: equal to the dense formula; on average: to the gradient of the second moment."""
    rng = np.random.default_rng(4)
    tau, B = rng.normal(size=N), 8
    q = np.exp(tau) / np.exp(tau).sum()
    if side == 1:
        items = rng.integers(N, size=B).astype(np.uint32)
        norms = rng.random(B).astype(np.float32)
        moved = tau.copy()
        kernels.step_tau(moved, items, norms, 0.5, 1)
        c = norms - (norms.sum() - norms) / (B - 1)
        dense = tau + 0.5 * (c[:, None] * (np.eye(N)[items] - q)).sum(axis=0)
        np.testing.assert_allclose(moved, dense, atol=1e-6)
        assert np.count_nonzero(moved != tau) <= B
    # Blocks of two rows: 20,000 of them, rows from q, a norm for each row and column.
    values = rng.random((N, 2))
    total, squares, blocks = np.zeros(N), np.zeros(N), 20_000
    for _ in range(blocks):
        pair = rng.choice(N, size=2, p=q)
        step = np.zeros(N)
        if side == 2:
            items, norms = np.repeat(pair, 2).astype(np.uint32), values[pair].ravel()
        else:
            items, norms = pair.astype(np.uint32), values[pair, 0]
        kernels.step_tau(step, items, norms.astype(np.float32), 1.0, side)
        total += step
        squares += step**2
    each = values.sum(axis=1) if side == 2 else values[:, 0]
    expected = 2 * q * (each - q @ each)
    mean = total / blocks
    error = np.sqrt((squares / blocks - mean**2) / blocks)
    assert (abs(mean - expected) < 5 * error).all()


@pytest.mark.parametrize("adagrad", [False, True])
@pytest.mark.parametrize("adaptation_rate", [0.0, 0.01])
@pytest.mark.parametrize("block", [1, 5])
def test_a_dense_matrix_of_the_rank_is_found(
    adaptation_rate: float, adagrad: bool, block: int
) -> None:
    matrix = matrix_of(60, 40)
    model = MatrixFactorisation(
        RANK,
        learning_rate=0.1 if adagrad else 0.03,
        adaptation_rate=adaptation_rate,
        adagrad=adagrad,
        block=block,
        init_scale=0.3,
    ).fit(matrix, 60)
    assert model.loss(matrix) < 0.03 * matrix.var()
    np.testing.assert_allclose(model.reconstruct()[3, 4], model.predict([3], [4])[0], rtol=1e-5)
    assert model.reconstruct().shape == matrix.shape
    assert model.row_probabilities.sum() == pytest.approx(1.0)
    if adaptation_rate == 0.0:
        np.testing.assert_allclose(model.column_probabilities, 1 / 40)


@pytest.mark.parametrize("adaptation_rate", [0.0, 0.01])
def test_missing_entries_are_predicted(adaptation_rate: float) -> None:
    rng = np.random.default_rng(3)
    matrix = matrix_of(80, 60, 2) + 3.0
    seen = rng.random(matrix.shape) < 0.4
    model = MatrixFactorisation(
        2, learning_rate=0.03, adaptation_rate=adaptation_rate, ridge=0.01, init_scale=0.3
    ).fit(Ratings.from_matrix(np.where(seen, matrix, np.nan)), 100)
    hidden = Ratings.from_matrix(np.where(seen, np.nan, matrix))
    assert model.loss(hidden) < 0.1 * matrix.var()
    assert model.offset == pytest.approx(matrix[seen].mean(), rel=1e-5)


def test_heavy_rows_and_columns_are_drawn_more_often() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(50, 50))
    matrix[:5, 10:20] *= 20.0
    model = MatrixFactorisation(
        2, learning_rate=1e-4, adaptation_rate=0.01, adapt_every=1, refresh=1
    ).fit(matrix, 20)
    assert model.row_probabilities[:5].mean() > 3 * model.row_probabilities[5:].mean()
    assert model.column_probabilities[10:20].mean() > 2 * model.column_probabilities[20:].mean()
    ratings = Ratings.from_matrix(np.where(rng.random(matrix.shape) < 0.5, matrix, np.nan))
    model = MatrixFactorisation(
        2, learning_rate=1e-4, adaptation_rate=0.01, adapt_every=1, refresh=1
    ).fit(ratings, 40)
    assert model.row_probabilities[:5].mean() > 3 * model.row_probabilities[5:].mean()


@pytest.mark.parametrize("kind", ["dense", "ratings", "adagrad"])
def test_a_run_goes_on_from_its_state_bit_for_bit(kind: str) -> None:
    data: Any = ratings_of() if kind == "ratings" else matrix_of()

    def make() -> MatrixFactorisation:
        return MatrixFactorisation(
            RANK, adaptation_rate=0.01, adagrad=kind == "adagrad", refresh=3, seed=4
        )

    whole = make().fit(data, 200).fit(data, 100)
    first = make().fit(data, 200)
    state = first.state_dict()
    first.fit(data, 50)
    second = make()
    second.load_state_dict(state)
    second.fit(data, 100)
    assert second.draws == whole.draws
    np.testing.assert_array_equal(second.reconstruct(), whole.reconstruct())
    np.testing.assert_array_equal(second.row_probabilities, whole.row_probabilities)
    np.testing.assert_array_equal(make().fit(data, 200).fit(data, 100).reconstruct(),
                                  whole.reconstruct())  # fmt: skip


def test_progress_ends_at_one() -> None:
    shares: list[float] = []
    MatrixFactorisation(2).fit(matrix_of(), 50_000, progress=shares.append)
    assert len(shares) > 1
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_bad_input_changes_nothing() -> None:
    matrix = matrix_of()
    bad = matrix.copy()
    bad[2, 3] = np.nan
    model = MatrixFactorisation(2).fit(matrix)
    before = model.reconstruct()
    for data, words in (
        (bad, r"matrix\[2, 3\] is nan.*from_matrix"),
        (np.zeros((0, 3)), "not empty"),
        (np.zeros(3), r"expected \[n, m\]"),
        (matrix[:4], r"shape \[4, 5\], expected \[7, 5\]"),
    ):
        with pytest.raises(ValueError, match=words):
            model.fit(data)
        np.testing.assert_array_equal(model.reconstruct(), before)
    with pytest.raises(ValueError, match=r"row\[1\] is 7, expected 0 to 6"):
        model.predict([0, 7], [0, 0])
    with pytest.raises(ValueError, match="call fit first"):
        MatrixFactorisation(2).reconstruct()
    with pytest.raises(ValueError, match="epochs"):
        model.fit(matrix, 0)
    with pytest.raises(ValueError, match="rank 2, expected 3"):
        MatrixFactorisation(3).load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match="adagrad"):
        MatrixFactorisation(2, adagrad=True).load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match="lacks"):
        MatrixFactorisation(2).load_state_dict({})
    with pytest.raises(ValueError, match="diverged"):
        MatrixFactorisation(2, learning_rate=100.0).fit(matrix, 100)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rank": 0}, "rank"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"adaptation_rate": -1.0}, "adaptation_rate"),
        ({"batch_size": 3}, "batch_size"),
        ({"block": 7}, "block is 7"),
        ({"tickets": 1}, "tickets"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MatrixFactorisation(**{"rank": 2, **changes})
