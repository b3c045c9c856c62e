"""Hashing (LGD): exact probabilities, the published ones' bias, what the formulas promise."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from torch import Tensor

from awsgd_rl.hash_tables import hash_vectors, random_directions, sort_into_buckets
from awsgd_rl.hash_theory import (
    class_bound,
    closed_factor,
    collision_probability,
    conditional_bucket_share,
    published_probability,
    second_moment_factor,
)
from awsgd_rl.hashing import (
    HashProposal,
    logistic_keys,
    squared_loss_keys,
    squared_loss_query,
)

Problem = tuple[Tensor, Tensor, Tensor]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def regression(n: int = 2000, df: float = 2.1, scale: float = 3.0, seed: int = 0) -> Problem:
    """Keys, query, gradient norms of least squares at the true weights, residuals Student t."""
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.standard_normal((n, 20))).float()
    noise = rng.standard_normal(n) if math.isinf(df) else rng.standard_t(df, n)
    weights = torch.full((20,), 0.1)
    y = x @ weights + torch.from_numpy(noise).float()
    a = scale / math.sqrt(20)
    norms = 2 * x.norm(dim=1).double() * (y - x @ weights).abs().double()
    return squared_loss_keys(x, y, a), squared_loss_query(weights, a), norms


def variance_ratio(norms: Tensor, probabilities: Tensor) -> float:
    """Second moment under uniform draws over that under q (the mean gradient is near 0)."""
    n = len(norms)
    return (norms.square().mean() / (norms.square() / (n * n * probabilities)).sum()).item()


def proposal(keys: Tensor, query: Tensor, seed: int = 0, **settings: float) -> HashProposal:
    made = HashProposal(keys, generator=generator(seed), **settings)  # type: ignore[arg-type]
    made.set_query(query)
    return made


class TestTables:
    def test_codes_are_the_sides_of_the_directions(self) -> None:
        directions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, -1.0]])
        vectors = torch.tensor([[2.0, -1.0], [-1.0, 3.0]])
        # Sides: (1, 0), (1, 1) and (0, 1), (1, 0); the first bit is the lowest.
        assert hash_vectors(vectors, directions, 2, False).tolist() == [[1, 3], [2, 1]]
        # Symmetric: each bit against the first, which then is 0.
        assert hash_vectors(vectors, directions, 2, True).tolist() == [[2, 0], [2, 2]]

    def test_symmetric_codes_are_those_of_the_negative(self) -> None:
        z = torch.randn(500, 7, generator=generator())
        directions = random_directions(7, 24, 3, generator=generator())
        assert torch.equal(
            hash_vectors(z, directions, 4, True), hash_vectors(-z, directions, 4, True)
        )
        assert not (
            hash_vectors(z, directions, 4, False) == hash_vectors(-z, directions, 4, False)
        ).any()

    def test_directions_have_so_many_fair_signs(self) -> None:
        directions = random_directions(9, 3000, 4, generator=generator())
        assert (directions.abs().sum(1) == 4).all()
        assert set(directions.unique().tolist()) == {-1.0, 0.0, 1.0}
        error = 5 * math.sqrt(4 / 9 / 3000)
        assert (directions.mean(0).abs() < error).all()
        assert ((directions.abs().mean(0) - 4 / 9).abs() < error).all()

    def test_buckets_hold_the_items_of_their_code(self) -> None:
        codes = torch.randint(8, (50, 3), generator=generator(), dtype=torch.int32)
        order, first = sort_into_buckets(codes, 3)
        assert order[:50].tolist() == list(range(50))
        for table in range(3):
            for code in range(8):
                place = table * 8 + code
                held = order[first[place] : first[place + 1]].tolist()
                assert held == (codes[:, table] == code).nonzero().squeeze(1).tolist()

    @pytest.mark.parametrize("symmetric", [False, True])
    def test_collisions_as_often_as_the_formula_says(self, symmetric: bool) -> None:
        z = torch.randn(300, 40, generator=generator())
        q = torch.randn(40, generator=generator(1)) + z[0]
        directions = random_directions(40, 4 * 1000, 40, generator=generator(2))
        codes = hash_vectors(z, directions, 1000, symmetric)
        code = hash_vectors(q.unsqueeze(0), directions, 1000, symmetric)
        share = (codes == code).double().mean(1).numpy()
        cosines = torch.nn.functional.cosine_similarity(z, q.unsqueeze(0)).numpy()
        exact = collision_probability(cosines, 4, symmetric)
        # Signs ±1 in place of Gaussian directions shift it by a little.
        assert np.abs(share - exact).max() < 5 * np.sqrt(exact.max() / 1000) + 0.01


class TestProposal:
    @pytest.mark.parametrize("settings", [{}, {"symmetric": False}, {"bits": 12, "tables": 3}])
    def test_probability_is_that_of_the_tables_in_use(self, settings: dict[str, int]) -> None:
        keys, query, _ = regression(400)
        made = proposal(keys, query, uniform_share=0.25, **settings)
        hits = (made.codes == made.query_codes).double()
        sizes = hits.sum(0)
        assert torch.equal(made.bucket_sizes, sizes.long())
        full = sizes > 0
        expected = 0.75 * (hits[:, full] / sizes[full]).mean(1) + 0.25 / 400
        torch.testing.assert_close(made.probabilities(), expected, rtol=1e-12, atol=0.0)
        torch.testing.assert_close(made.log_prob(torch.arange(400)).exp(), expected)

    def test_empty_buckets_leave_uniform_draws(self) -> None:
        keys, query, _ = regression(50)
        fresh = HashProposal(keys, generator=generator())
        assert (fresh.probabilities() == 1 / 50).all()
        empty = proposal(keys, query, bits=20, tables=2, symmetric=False)
        assert empty.bucket_sizes.tolist() == [0, 0]
        assert (empty.probabilities() == 1 / 50).all()
        assert len(empty.sample(2000, generator=generator()).unique()) == 50

    def test_unbiased_by_enumeration_and_by_draws(self) -> None:
        keys, query, norms = regression(500)
        made = proposal(keys, query, bits=5, tables=3, uniform_share=0.1)
        drawn = made.draw(20_000, generator=generator(3))
        terms = norms[drawn.items] / (500 * drawn.log_q.exp())
        error = terms.std() / math.sqrt(len(terms))
        assert (terms.mean() - norms.mean()).abs() < 5 * error

    def test_an_old_query_stays_unbiased_and_exact(self) -> None:
        keys, query, _ = regression(300)
        made = proposal(keys, query)
        before = made.probabilities()
        made.set_query(-3.0 * query)  # neither length nor, where symmetric, sign matters
        assert torch.equal(made.probabilities(), before)
        made.set_query(torch.randn(21, generator=generator()))
        assert not torch.equal(made.probabilities(), before)

    def test_the_sign_matters(self) -> None:
        """Found: with heavy residuals of both signs a hash of one sign loses many times over."""
        ratios = {True: [], False: []}  # type: dict[bool, list[float]]
        for seed in range(5):
            keys, query, norms = regression(seed=seed)
            for symmetric, found in ratios.items():
                made = proposal(keys, query, seed, symmetric=symmetric, uniform_share=0.02)
                found.append(variance_ratio(norms, made.probabilities()))
        assert min(ratios[True]) > 1.15
        assert max(ratios[False]) < 1 / 7

    def test_it_wins_on_heavy_tails_alone(self) -> None:
        settings = {"uniform_share": 0.3}
        heavy, light = (
            [
                variance_ratio(norms, proposal(keys, query, seed, **settings).probabilities())
                for seed in range(5)
                for keys, query, norms in [regression(df=df, seed=seed)]
            ]
            for df in (2.1, math.inf)
        )
        assert min(heavy) > 1.5
        assert max(light) < 1.25

    def test_sparse_directions_do_not_see_the_residual(self) -> None:
        keys, query, norms = regression()
        dense, sparse = (
            variance_ratio(norms, proposal(keys, query, nonzeros=s).probabilities())
            for s in (21, 3)
        )
        assert dense > 1.5 > sparse

    def test_logistic_loss(self) -> None:
        x = torch.randn(3000, 5, generator=generator())
        theta = torch.tensor([2.0, -1.0, 0.5, 0.0, 1.0])
        labels = torch.where(x @ theta + torch.randn(3000, generator=generator(1)) > 0, 1, -1)
        keys = logistic_keys(x, labels)
        norms = (x.norm(dim=1) * torch.sigmoid(-(keys @ theta))).double()
        # Gradients at a right angle are half as long as the longest: fewer bits, a flatter q.
        made = proposal(keys, -theta, symmetric=False, bits=2, uniform_share=0.1)
        headroom = (norms.square().mean() / norms.mean().square()).item()
        ratio = variance_ratio(norms, made.probabilities())
        assert 1.15 < ratio < headroom

    @pytest.mark.parametrize("symmetric", [False, True])
    @pytest.mark.parametrize("bits", [3, 9, 18])
    def test_compiled_and_tensor_forms_are_the_same(self, bits: int, symmetric: bool) -> None:
        keys, query, _ = regression(300)
        made = proposal(keys, query, bits=bits, tables=7, symmetric=symmetric)
        codes = hash_vectors(query.unsqueeze(0), made.directions, 7, symmetric)
        assert torch.equal(made.query_codes, codes[0])
        names = ("_starts", "_sizes", "_shares", "_densities")
        compiled = [getattr(made, name).clone() for name in names]
        uniforms = torch.rand(8000, generator=generator(4), dtype=torch.float64)
        drawn = made.draw(4000, generator=generator(4))
        made._look_up_tensors()
        for name, expected in zip(names, compiled, strict=True):
            filled = made._sizes > 0 if name == "_starts" else torch.ones(8, dtype=torch.bool)
            torch.testing.assert_close(getattr(made, name)[filled], expected[filled])
        tensors = made._draw_tensors(4000, uniforms)
        assert torch.equal(tensors.items, drawn.items)
        torch.testing.assert_close(tensors.log_q, drawn.log_q, rtol=1e-13, atol=1e-13)

    def test_state_is_restored_with_the_query(self) -> None:
        keys, query, _ = regression(200)
        made, other = proposal(keys, query, 0), HashProposal(keys, generator=generator(9))
        other.load_state_dict(made.state_dict())
        assert torch.equal(other.probabilities(), made.probabilities())
        assert set(made.state_dict()) == {"directions", "codes", "query_codes"}
        other.set_query(query + 1.0)
        made.set_query(query + 1.0)
        assert torch.equal(other.probabilities(), made.probabilities())


class TestKeys:
    def test_inner_product_is_the_residual(self) -> None:
        x, y = torch.randn(30, 4, generator=generator()), torch.arange(30.0)
        weights = torch.tensor([1.0, 2.0, -1.0, 0.5])
        product = squared_loss_keys(x, y, 0.3) @ squared_loss_query(weights, 0.3)
        torch.testing.assert_close(product, x @ weights - y)

    def test_gradient_norms_are_as_documented(self) -> None:
        x, y = torch.randn(1, 4, generator=generator()), torch.tensor([-1.0])
        weights = torch.tensor([1.0, 2.0, -1.0, 0.5], requires_grad=True)
        (squared,) = torch.autograd.grad((y - x @ weights).square().sum(), weights)
        inner = squared_loss_keys(x, y, 0.3) @ squared_loss_query(weights, 0.3)
        torch.testing.assert_close(squared.norm(), 2 * x.norm() * inner.abs().squeeze())
        (logistic,) = torch.autograd.grad(torch.log1p(torch.exp(-y * (x @ weights))).sum(), weights)
        inner = logistic_keys(x, y) @ -weights.detach()
        torch.testing.assert_close(logistic.norm(), x.norm() * inner.sigmoid().squeeze())

    def test_bad_input_is_refused_with_the_row(self) -> None:
        x = torch.ones(3, 2)
        with pytest.raises(ValueError, match="label 1 is 0"):
            logistic_keys(x, torch.tensor([1, 0, -1]))
        with pytest.raises(ValueError, match=r"expected \[N, d\] and \[N\]"):
            squared_loss_keys(x, torch.zeros(2))
        with pytest.raises(ValueError, match="feature_scale"):
            squared_loss_keys(x, torch.zeros(3), 0.0)
        x[2, 1] = math.nan
        with pytest.raises(ValueError, match="row 2 of keys"):
            HashProposal(x)

    @pytest.mark.parametrize(
        "settings",
        [
            {"bits": 0},
            {"bits": 21},
            {"tables": 0},
            {"uniform_share": 1.5},
            {"nonzeros": 3},
            {"nonzeros": 0},
        ],
    )
    def test_bad_settings_are_refused(self, settings: dict[str, int]) -> None:
        with pytest.raises(ValueError, match="expected"):
            HashProposal(torch.ones(3, 2), **settings)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        "keys", [torch.ones(3), torch.ones(0, 2), torch.ones(3, 2, dtype=torch.long)]
    )
    def test_keys_that_are_no_matrix_are_refused(self, keys: Tensor) -> None:
        with pytest.raises(ValueError, match="of floats"):
            HashProposal(keys)

    def test_a_bad_query_changes_nothing(self) -> None:
        keys, query, _ = regression(100)
        made = proposal(keys, query)
        before = made.probabilities()
        for bad in (query[:-1], query.unsqueeze(0), query.clone().fill_(math.inf)):
            with pytest.raises(ValueError, match="query"):
                made.set_query(bad)
        assert torch.equal(made.probabilities(), before)


def published_mean(made: HashProposal, one_bit: Tensor, f: Tensor, geometric: bool) -> float:
    """E of f / (N p) with LGD's p, over its draws from the given tables, by enumeration."""
    hits = (made.codes == made.query_codes).double()
    sizes = hits.sum(0)
    full = sizes > 0
    share = full.double().mean().item()
    total = 0.0
    for probed in range(1, 2000):
        chance = share * (1.0 - share) ** (probed - 1)
        # 1 / p is proportional to |S|, which the uniform draw from S cancels.
        p = published_probability(one_bit, made.bits, probed, 1, geometric=geometric)
        total += chance * (hits[:, full] * (f / p).unsqueeze(1)).sum(0).mean().item() / len(f)
        if chance < 1e-15:
            break
    return total


class TestPublishedProbability:
    def setup_method(self) -> None:
        self.x = torch.randn(2000, 20, generator=generator())
        self.query = torch.randn(20, generator=generator(1))
        cosines = torch.nn.functional.cosine_similarity(self.x, self.query.unsqueeze(0))
        self.one_bit = torch.from_numpy(collision_probability(cosines.numpy(), 1, False))

    @pytest.mark.parametrize(("tables", "unreached"), [(3, 0.88), (20, 0.52), (100, 0.11)])
    def test_items_that_can_never_be_drawn(self, tables: int, unreached: float) -> None:
        """Found: at N = 2,000, d = 20, K = 5."""
        made = HashProposal(
            self.x, bits=5, tables=tables, symmetric=False, generator=generator(tables)
        )
        made.set_query(self.query)
        never = (made.codes != made.query_codes).all(1).double().mean().item()
        assert abs(never - unreached) < 0.12
        exact = HashProposal(
            self.x, bits=5, tables=tables, symmetric=False, uniform_share=0.1
        ).probabilities()
        assert exact.min() > 0

    @pytest.mark.parametrize("geometric", [False, True])
    def test_is_biased_where_ours_is_not(self, geometric: bool) -> None:
        """Found: 29, 15 and 5 % of the mean at L = 3, 20 and 100 (root mean square)."""
        f = torch.ones(2000, dtype=torch.float64)
        misses = []
        for tables in (3, 100):
            off = []
            for seed in range(8):
                made = HashProposal(
                    self.x, bits=5, tables=tables, symmetric=False, generator=generator(seed)
                )
                made.set_query(self.query)
                if made.bucket_sizes.sum() == 0:
                    continue
                off.append(published_mean(made, self.one_bit, f, geometric) - 1.0)
                ours = (made.probabilities() * (1 / (2000 * made.probabilities()))).sum().item()
                assert abs(ours - 1.0) < 1e-12
            misses.append(float(np.sqrt(np.mean(np.square(off)))))
        assert misses[0] > 0.1
        assert misses[0] > misses[1] > 0.005

    def test_its_draws_are_off_by_many_standard_errors(self) -> None:
        made = HashProposal(self.x, bits=5, tables=3, symmetric=False, generator=generator())
        made.set_query(self.query)
        rng = np.random.default_rng(0)
        lists = [
            (made.codes[:, t] == made.query_codes[t]).nonzero().squeeze(1).numpy() for t in range(3)
        ]
        values = []
        for _ in range(4000):
            probed = 1
            while len(bucket := lists[rng.integers(3)]) == 0:
                probed += 1
            item = rng.choice(bucket)
            p = published_probability(self.one_bit[item], 5, probed, len(bucket))
            values.append(1.0 / (2000 * p.item()))
        published_in_se = abs(np.mean(values) - 1.0) / (np.std(values) / math.sqrt(4000))
        drawn = made.draw(4000, generator=generator(7))
        weights = (-drawn.log_q).exp() / 2000
        bias_in_se = ((weights.mean() - 1.0).abs() / (weights.std() / math.sqrt(4000))).item()
        assert published_in_se > 5
        assert bias_in_se < 5

    def test_formulas(self) -> None:
        c = torch.tensor([0.5, 0.8], dtype=torch.float64)
        torch.testing.assert_close(
            published_probability(c, 3, 2, 7), (1 - (1 - c**3) ** 2) / 7, rtol=1e-12, atol=0.0
        )
        torch.testing.assert_close(
            published_probability(c, 3, 2, 7, geometric=True), c**3 * (1 - c**3) / 7
        )


class TestBounds:
    @given(st.floats(0.0, 1.0), st.floats(1.0, 1e4), st.integers(1, 200), st.floats(0.01, 1.0))
    def test_factor_is_its_sum_and_below_the_closed_form(
        self, hit: float, boost: float, tables: int, share: float
    ) -> None:
        factor = float(second_moment_factor(hit, boost, tables, share))
        direct = sum(
            binom.pmf(n, tables, hit) / (share + (1 - share) * boost * n / tables)
            for n in range(tables + 1)
        )
        assert factor == pytest.approx(direct, rel=1e-9)
        assert factor <= closed_factor(hit, boost, tables, share) * (1 + 1e-9)

    @pytest.mark.parametrize("symmetric", [False, True])
    def test_expected_bucket_sizes(self, symmetric: bool) -> None:
        z = torch.randn(200, 40, generator=generator())
        z[:20] += 0.7 * (q := torch.randn(40, generator=generator(1)))
        tables = 4000
        directions = random_directions(40, 3 * tables, 40, generator=generator(2))
        hits = hash_vectors(z, directions, tables, symmetric) == hash_vectors(
            q.unsqueeze(0), directions, tables, symmetric
        )
        hits = hits.double()
        sizes = hits.sum(0)
        items = torch.arange(0, 200, 10)
        measured = (hits[items] @ sizes) / hits[items].sum(1) / 200
        formula = conditional_bucket_share(z, q, items, 3, symmetric, torch.arange(200))
        # 1 / N too much: all items are the others here.
        assert np.abs(measured.numpy() - formula).max() < 0.04

    @pytest.mark.parametrize("df", [2.1, math.inf])
    @pytest.mark.parametrize(("bits", "tables", "share"), [(4, 8, 0.3), (6, 32, 0.1), (8, 16, 0.5)])
    def test_bounds_hold(self, df: float, bits: int, tables: int, share: float) -> None:
        """The mean second moment over draws of tables is below (3), (5) and (6)."""
        n = 300
        keys, query, norms = regression(n, df)
        many = HashProposal(keys, bits=bits, tables=3000, generator=generator(77))
        many.set_query(query)
        hits = (many.codes == many.query_codes).double()
        hit = hits.mean(1)
        bucket = (hits @ hits.sum(0)) / hits.sum(1).clamp_min(1.0)
        squared = norms.square()
        per_item = second_moment_factor(hit, n / bucket.clamp_min(1.0), tables, share)
        bound = (squared * torch.from_numpy(per_item)).mean().item()
        moments = []
        for seed in range(20):
            q = proposal(
                keys, query, seed, bits=bits, tables=tables, uniform_share=share
            ).probabilities()
            moments.append((squared / (n * n * q)).sum().item())
        measured = np.mean(moments)
        error = np.std(moments) / math.sqrt(20)
        assert measured < bound + 5 * error
        assert bound < 4 * measured  # not an empty promise
        # Classes by the probability of a hit, which is what a family's p1 and p2 are about.
        order = hit.argsort(descending=True)
        first, middle, last = order[:30], order[30:150], order[150:]
        p1, p2 = hit[first].min().item() ** (1 / bits), hit[last].max().item() ** (1 / bits)
        classes = [first, middle, last]
        exact, closed = (
            class_bound(
                (0.1, 0.4, 0.5),
                tuple(squared[c].sum().item() / n for c in classes),
                p1,
                p2,
                bits=bits,
                tables=tables,
                uniform_share=share,
                n=n,
                closed=form,
            )
            for form in (False, True)
        )
        assert bound <= exact * 1.1 <= closed * 1.1 * (1 + 1e-9)

    def test_bound_promises_a_gain_where_few_gradients_are_all(self) -> None:
        heavy = class_bound(
            (0.01, 0.04, 0.95), (0.9, 0.05, 0.05), 0.95, 0.5,
            bits=10, tables=64, uniform_share=0.5, n=10**6,
        )  # fmt: skip
        light = class_bound(
            (0.3, 0.4, 0.3), (0.6, 0.35, 0.05), 0.95, 0.5,
            bits=10, tables=64, uniform_share=0.5, n=10**6,
        )  # fmt: skip
        assert heavy < 0.35
        assert light > 1.0

    def test_a_family_the_wrong_way_round_is_refused(self) -> None:
        with pytest.raises(ValueError, match="expected 0 <= p2 <= p1"):
            class_bound(
                (0.1, 0.1, 0.8), (1, 1, 1), 0.4, 0.5, bits=3, tables=4, uniform_share=0.5, n=10
            )
