"""Faults that prioritized replay buffers have had elsewhere: one test by the name of each.

Float32 trees beyond 2^24 items: `test_sum_tree.py`. Generator and priorities that are not in the
checkpoint: `test_replay_file.py`.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from scipy import stats

from awsgd_rl.base import Draw
from awsgd_rl.replay import ReplayBuffer, ReplaySample
from awsgd_rl.replay_priorities import PriorityProposal
from awsgd_rl.weights import annealed_weights

COMPILED = pytest.mark.parametrize("compiled", [True, False])
COUNTER = spaces.Box(-np.inf, np.inf, ())


def counting(capacity: int = 8, n_envs: int = 1, **options: Any) -> ReplayBuffer:
    return ReplayBuffer(capacity, COUNTER, spaces.Discrete(2), n_envs=n_envs, **options)


def step(
    buffer: ReplayBuffer, t: int, *, terminated: bool = False, truncated: bool = False
) -> None:
    """Step t of the only environment: from t to t + 1, reward 1."""
    buffer.add(
        np.array([t], np.float32),
        [0],
        [1.0],
        np.array([t + 1], np.float32),
        [terminated],
        [truncated],
    )


def everything(buffer: ReplayBuffer) -> ReplaySample:
    return buffer.transitions(Draw(torch.arange(buffer.size), torch.zeros(buffer.size)))


def probabilities(buffer: ReplayBuffer) -> torch.Tensor:
    assert buffer.proposal is not None
    return buffer.proposal.log_prob(torch.arange(buffer.size)).exp()


def loaded(priorities: torch.Tensor, alpha: float, **options: Any) -> PriorityProposal:
    """A proposal whose first slots have these priorities, written as updates are."""
    n = len(priorities)
    proposal = PriorityProposal(n, alpha=alpha, **options)
    proposal.enter(np.arange(n), n)
    proposal.update(torch.arange(n), priorities, 0.0, n, n)
    return proposal


class TestFrequencies:
    @pytest.mark.parametrize("stratified", [False, True])
    @pytest.mark.parametrize("uniform_share", [0.0, 0.3])
    @pytest.mark.parametrize("n", [10, 10_000])
    def test_are_those_of_the_formula(self, n: int, uniform_share: float, stratified: bool) -> None:
        priorities = torch.rand(n, dtype=torch.float64) + 0.05
        proposal = loaded(priorities, 0.6, uniform_share=uniform_share, stratified=stratified)
        generator = torch.Generator().manual_seed(3)
        if stratified:
            # One draw of each batch, at random: independent, as a chi-square test wants them.
            items = torch.cat(
                [
                    proposal.draw(7, generator=generator).items[k % 7 : k % 7 + 1]
                    for k in range(14_000)
                ]
            )
        else:
            items = proposal.draw(500_000, generator=generator).items
        masses = priorities.pow(0.6).numpy()
        q = (1 - uniform_share) * masses / masses.sum() + uniform_share / n
        groups = np.arange(n) % 1000 if stratified else np.arange(n)
        observed = np.bincount(groups[items], minlength=groups.max() + 1)
        expected = np.bincount(groups, weights=q) * len(items)
        assert stats.chisquare(observed, expected).pvalue > 1e-3

    @pytest.mark.parametrize("by", ["blocks", "places in a node"])
    def test_float32_trees_at_2_to_22(self, by: str) -> None:
        n = 2**22
        priorities = torch.rand(n, dtype=torch.float64).square() + 1e-4
        items = loaded(priorities, 0.6).draw(1_000_000, generator=torch.Generator().manual_seed(1))
        slots = np.arange(n)
        groups = slots // 4096 if by == "blocks" else slots % 256
        masses = priorities.pow(0.6).numpy()
        wanted = np.bincount(groups, weights=masses) / masses.sum() * 1_000_000
        assert stats.chisquare(np.bincount(groups[items.items]), wanted).pvalue > 1e-3

    def test_no_leaf_is_unreachable_at_2_to_22(self) -> None:
        n = 2**22
        priorities = torch.randn(n, dtype=torch.float64).exp()
        tree = loaded(priorities, 0.6).tree
        masses = tree.scores
        middles = (masses.cumsum(0) - masses / 2) / tree.total
        assert torch.equal(tree.draw(middles), torch.arange(n))

    def test_odd_and_even_slots_beyond_2_to_24(self) -> None:
        n = 2**24 + 2**20
        proposal = PriorityProposal(n)
        proposal.enter(np.arange(n), n)
        items = proposal.draw(200_000, generator=torch.Generator().manual_seed(0)).items
        assert stats.chisquare(np.bincount(items % 2)).pvalue > 1e-3
        assert stats.chisquare(np.bincount(items >> 20)).pvalue > 1e-3

    def test_root_is_the_sum_after_10_to_7_updates(self) -> None:
        n, rounds = 5000, 2000
        proposal = PriorityProposal(n, alpha=1.0)
        proposal.enter(np.arange(n), n)
        generator = torch.Generator().manual_seed(0)
        for k in range(rounds):
            slots = torch.randint(n, (n,), generator=generator)
            # Whole numbers, so that their sum is exact; from tiny to huge.
            signal = torch.randint(1, 2 ** (1 + k % 40), (n,), generator=generator).double()
            proposal.update(slots, signal, 0.0, n, n)
        assert rounds * n == 10_000_000
        assert float(proposal.tree.total) == sum(int(x) for x in proposal.tree.scores.tolist())
        assert proposal._maxima[0] == float(proposal.tree.scores.max())

    @COMPILED
    @pytest.mark.parametrize("capacity", [1, 3, 5, 16, 17, 255, 257, 1000])
    def test_capacity_not_a_power_of_two(self, capacity: int, compiled: bool) -> None:
        buffer = counting(capacity, compiled=compiled)
        for t in range(capacity):
            step(buffer, t)
        priorities = torch.arange(1.0, capacity + 1)
        buffer.set_priorities(torch.arange(capacity), priorities)
        torch.testing.assert_close(
            probabilities(buffer),
            (priorities.double().pow(0.6) / priorities.double().pow(0.6).sum()),
        )
        seen = buffer.sample(50 * capacity).draw.items
        assert int(seen.min()) >= 0
        assert int(seen.max()) < capacity


class TestPriorities:
    @COMPILED
    def test_alpha_is_applied_once(self, compiled: bool) -> None:
        buffer = counting(2, alpha=0.5, epsilon=1e-12, compiled=compiled)
        step(buffer, 0)
        step(buffer, 1)
        sample = buffer.transitions(Draw(torch.tensor([0, 1]), torch.zeros(2)))
        for _ in range(3):
            buffer.update(sample, torch.tensor([-16.0, 1.0]))
            torch.testing.assert_close(
                probabilities(buffer), torch.tensor([0.8, 0.2], dtype=torch.float64)
            )
        # The maximum, 16, comes back as 16.
        buffer_of_three = counting(3, alpha=0.5, epsilon=1e-12, compiled=compiled)
        step(buffer_of_three, 0)
        buffer_of_three.set_priorities(torch.tensor([0]), torch.tensor([16.0]))
        step(buffer_of_three, 1)
        assert probabilities(buffer_of_three).tolist() == [0.5, 0.5]

    def test_a_state_that_does_not_fit_changes_nothing(self) -> None:
        saved = loaded(torch.tensor([16.0, 1.0, 4.0]), 0.5).get_extra_state()
        for proposal, change, message in (
            (PriorityProposal(3, alpha=0.6), {}, "alpha 0.5, expected 0.6"),
            (PriorityProposal(2, alpha=0.5), {}, "at most 2"),
            (PriorityProposal(3, alpha=0.5), {"scores": torch.tensor([1.0, 0.0])}, "positive"),
            (PriorityProposal(3, alpha=0.5), {"scores": torch.tensor([math.nan])}, "positive"),
        ):
            with pytest.raises(ValueError, match=message):
                proposal.load_state_dict({"_extra_state": {**saved, **change}})
            assert (proposal.filled, proposal.tree.scores.sum().item()) == (0, 0.0)
        older = PriorityProposal(3, alpha=0.6)
        older.load_state_dict({"_extra_state": {"scores": saved["scores"]}})
        assert older.tree.scores.tolist() == [4.0, 1.0, 2.0]

    @COMPILED
    @pytest.mark.parametrize("capacity", [4, 20, 300])
    def test_maximum_priority_moves(self, capacity: int, compiled: bool) -> None:
        """Elsewhere it began at 1 and stayed there, above all errors of a small scale."""
        buffer = counting(capacity, 2, alpha=1.0, compiled=compiled)
        n = capacity - 2
        no = np.zeros(2, bool)
        for _ in range(n // 2):
            buffer.add(np.zeros(2), no, no, np.zeros(2), no, no)
        slots = torch.arange(n)
        for largest in (0.003, 7.0, 0.0001):
            buffer.set_priorities(slots, torch.full((n,), 0.00005))
            buffer.set_priorities(slots[n // 3 : n // 3 + 1], torch.tensor([largest]))
            buffer.add(np.zeros(2), no, no, np.zeros(2), no, no)
            assert buffer.proposal is not None
            newest = buffer.proposal.tree.scores[torch.tensor([-2, -1]) + buffer.added % capacity]
            assert newest.tolist() == [torch.tensor(largest).item()] * 2
            for _ in range(n // 2):
                buffer.add(np.zeros(2), no, no, np.zeros(2), no, no)
            buffer.set_priorities(torch.arange(capacity), torch.full((capacity,), 0.00005))

    @COMPILED
    @pytest.mark.parametrize("how", ["repaired", "overwritten"])
    def test_an_outlier_leaves_no_trace(self, how: str, compiled: bool) -> None:
        """Elsewhere one error of 1e30 owned the maximum for good."""
        buffer = counting(4, alpha=1.0, compiled=compiled)
        for t in range(4):
            step(buffer, t)
        buffer.set_priorities(torch.arange(4), torch.tensor([1e30, 0.1, 0.2, 0.3]))
        assert probabilities(buffer)[0] == 1.0
        if how == "repaired":
            buffer.set_priorities(torch.tensor([0]), torch.tensor([0.1]))
        step(buffer, 4)
        torch.testing.assert_close(
            probabilities(buffer), torch.tensor([3.0, 1.0, 2.0, 3.0], dtype=torch.float64) / 9
        )

    @COMPILED
    def test_zero_nan_and_infinite_priorities(self, compiled: bool) -> None:
        """Elsewhere accepted; the table stayed broken even after they were repaired."""
        buffer = counting(4, compiled=compiled)
        for t in range(4):
            step(buffer, t)
        sample = buffer.transitions(Draw(torch.arange(4), torch.zeros(4)))
        buffer.update(sample, torch.tensor([1.0, 2.0, 3.0, 0.0]))
        before = probabilities(buffer)
        assert before.min() > 0.0
        for bad in (math.nan, math.inf, -math.inf):
            with pytest.raises(ValueError, match="finite number"):
                buffer.update(sample, torch.tensor([1.0, bad, 1.0, 1.0]))
            with pytest.raises(ValueError, match="positive number"):
                buffer.set_priorities(torch.tensor([1]), torch.tensor([bad]))
        with pytest.raises(ValueError, match="positive number"):
            buffer.set_priorities(torch.tensor([1]), torch.tensor([0.0]))
        assert torch.equal(probabilities(buffer), before)

    @COMPILED
    def test_an_overwritten_slot_keeps_its_new_priority(self, compiled: bool) -> None:
        buffer = counting(4, alpha=1.0, compiled=compiled)
        for t in range(4):
            step(buffer, t)
        sample = buffer.transitions(Draw(torch.tensor([0, 1, 2, 0]), torch.zeros(4)))
        step(buffer, 4)
        step(buffer, 5)
        buffer.update(sample, torch.tensor([7.0, 8.0, 9.0, 7.0]))
        expected = torch.tensor([1.0, 1.0, 9.0, 1.0], dtype=torch.float64)
        torch.testing.assert_close(probabilities(buffer), expected / 12, rtol=1e-5, atol=0.0)
        for t in range(6, 20):
            step(buffer, t)
        before = probabilities(buffer)
        buffer.update(sample, torch.full((4,), 1e6))
        assert torch.equal(probabilities(buffer), before)

    def test_weights_are_normalised_by_the_batch(self) -> None:
        """Elsewhere by the whole buffer: one tiny priority made all weights 0.1 to 0.001."""
        buffer = counting(100, alpha=1.0)
        for t in range(100):
            step(buffer, t)
        buffer.set_priorities(torch.arange(100), torch.full((100,), 1.0))
        buffer.set_priorities(torch.tensor([0]), torch.tensor([1e-9]))
        sample = buffer.sample(32)
        assert not bool((sample.draw.items == 0).any())
        for normaliser in ("max", "mean"):
            weights = annealed_weights(sample.draw.log_q, buffer.size, 1.0, normaliser)
            torch.testing.assert_close(weights, torch.ones(32, dtype=torch.float64))

    def test_weights_of_the_formula(self) -> None:
        buffer = counting(5, alpha=0.7, uniform_share=0.1)
        for t in range(5):
            step(buffer, t)
        p = torch.arange(1.0, 6.0).double()
        buffer.set_priorities(torch.arange(5), p)
        sample = buffer.sample(64)
        q = (0.9 * p.pow(0.7) / p.pow(0.7).sum() + 0.1 / 5)[sample.draw.items]
        weights = annealed_weights(sample.draw.log_q, buffer.size, 0.4, None)
        torch.testing.assert_close(weights, (5 * q).pow(-0.4))


class TestReturns:
    @COMPILED
    def test_n_step_returns_end_with_the_episode(self, compiled: bool) -> None:
        for ending in ("terminated", "truncated"):
            buffer = counting(n_step=3, discount=1.0, compiled=compiled)
            for t in range(4):
                # The next episode begins where this one ended: equal observations prove nothing.
                step(buffer, t, **{ending: t == 1})
            sample = everything(buffer)
            assert sample.rewards.tolist() == [2.0, 1.0, 2.0, 1.0]
            assert sample.next_observations.tolist() == [2.0, 2.0, 4.0, 4.0]

    @COMPILED
    @pytest.mark.parametrize("capacity", [4, 5, 7])
    def test_n_step_returns_end_at_the_write_pointer(self, capacity: int, compiled: bool) -> None:
        """The newest transitions give shorter returns, with the discount that belongs to them."""
        buffer = counting(capacity, n_step=3, discount=0.5, compiled=compiled)
        for t in range(3 * capacity + 2):
            step(buffer, t)
            sample = everything(buffer)
            steps = (t + 1 - sample.observations).clamp_max(3.0)
            assert torch.equal(sample.next_observations, sample.observations + steps)
            assert torch.equal(sample.rewards, 2.0 - 0.5 ** (steps - 1))
            assert torch.equal(sample.discounts, 0.5**steps)

    @COMPILED
    def test_truncation_is_not_termination(self, compiled: bool) -> None:
        buffer = counting(discount=0.9, compiled=compiled)
        step(buffer, 0, truncated=True)
        step(buffer, 10, terminated=True)
        step(buffer, 20, terminated=True, truncated=True)
        sample = everything(buffer)
        torch.testing.assert_close(sample.discounts, torch.tensor([0.9, 0.0, 0.0]))
        assert sample.next_observations.tolist() == [1.0, 11.0, 21.0]

    @COMPILED
    def test_autoreset_ghost_steps_are_left_out(self, compiled: bool) -> None:
        """Under NEXT_STEP autoreset the step after an episode's end only resets."""
        buffer = counting(8, 2, n_step=2, discount=1.0, compiled=compiled)
        # Environment 0 ends at step 1, its step 2 is the ghost; environment 1 goes on.
        now = np.array([[0, 50], [1, 51], [2, 52], [0, 53]], np.float32)
        following = np.array([[1, 51], [2, 52], [0, 53], [1, 54]], np.float32)
        previous = np.zeros(2, bool)
        for t in range(4):
            ends = np.array([t == 1, False])
            buffer.add(now[t], [0, 0], [1, 1], following[t], ends, [False] * 2, valid=~previous)
            previous = ends
        sample = everything(buffer)
        assert sample.observations.tolist() == [0, 50, 1, 51, 52, 0, 53]
        assert sample.next_observations.tolist() == [2, 52, 2, 53, 54, 1, 54]
        assert sample.rewards.tolist() == [2, 2, 1, 2, 2, 1, 1]

    @COMPILED
    def test_all_parts_are_of_one_environment(self, compiled: bool) -> None:
        """Elsewhere the environment's index was drawn again for each part."""
        space = spaces.Box(-np.inf, np.inf, (2,))
        buffer = ReplayBuffer(
            50, space, spaces.Discrete(4), n_envs=4, n_step=3, discount=1.0, compiled=compiled
        )
        envs = np.arange(4)
        for t in range(40):
            rows = [np.stack([np.full(4, k), envs], 1).astype(np.float32) for k in (t, t + 1)]
            no = np.zeros(4, bool)
            buffer.add(rows[0], envs, 10.0**envs, rows[1], no, no)
        sample = buffer.sample(500)
        env = sample.actions
        assert torch.equal(sample.observations[:, 1].long(), env)
        assert torch.equal(sample.next_observations[:, 1].long(), env)
        steps = sample.next_observations[:, 0] - sample.observations[:, 0]
        assert torch.equal(sample.rewards, steps * 10.0**env)


class TestSeeds:
    @pytest.mark.parametrize("proposal", ["priority", "uniform", "two-stage"])
    def test_draws_are_reproducible(self, proposal: Any) -> None:
        def run(seed: int, compiled: bool | None = None) -> list[int]:
            buffer = counting(proposal=proposal, seed=seed, compiled=compiled)
            score = (lambda c: c.observations + 1.0) if proposal == "two-stage" else None
            torch.rand(1)  # nothing comes from the global generator
            items: list[int] = []
            for t in range(20):
                step(buffer, t)
                sample = buffer.sample(4, score=score)
                buffer.update(sample, sample.observations)
                items += sample.draw.items.tolist()
            return items

        assert run(0) == run(0) == run(0, compiled=False)
        assert run(0) != run(1)

    def test_a_given_generator_is_used(self) -> None:
        buffer = counting()
        for t in range(8):
            step(buffer, t)
        before = buffer.generator.get_state()
        first, second = (
            buffer.sample(16, generator=torch.Generator().manual_seed(5)).draw for _ in range(2)
        )
        assert torch.equal(first.items, second.items)
        assert torch.equal(buffer.generator.get_state(), before)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestCuda:
    def test_equals_the_cpu(self) -> None:
        """Equal draws for equal uniforms, equal transitions, equal priorities."""
        mine, theirs = (
            counting(100, 3, n_step=3, uniform_share=0.1, device=device)
            for device in ("cpu", "cuda")
        )
        rng = np.random.default_rng(0)
        now = np.zeros(3, np.float32)
        for t in range(80):
            following = rng.normal(size=3).astype(np.float32)
            ends, cut, valid = rng.random(3) < 0.1, rng.random(3) < 0.1, rng.random(3) < 0.9
            row = (now, rng.integers(0, 2, 3), rng.normal(size=3), following, ends, cut)
            for buffer in (mine, theirs):
                buffer.add(*row, valid=valid)
            now = np.where(ends | cut, 0, following).astype(np.float32)
            uniforms = torch.rand(20, dtype=torch.float64)
            assert mine.proposal is not None
            assert theirs.proposal is not None
            samples = []
            for buffer in (mine, theirs):
                assert buffer.proposal is not None
                draw = buffer.proposal.tree.draw_mixture(
                    uniforms.to(buffer.device), 0.1, buffer.size
                )
                samples.append(buffer.transitions(Draw(*draw)))
            for a, b in zip(samples[0][:5], samples[1][:5], strict=True):
                assert torch.equal(a, b.cpu()), t
            assert torch.equal(samples[0].draw.items, samples[1].draw.items.cpu())
            for buffer, sample in zip((mine, theirs), samples, strict=True):
                buffer.update(sample, sample.rewards)
            torch.testing.assert_close(
                mine.proposal.tree.scores, theirs.proposal.tree.scores.cpu(), rtol=1e-14, atol=0
            )
            # Powers may differ in the last bit there: the next round starts alike.
            theirs.proposal.load(mine.proposal.tree.scores[: mine.size].cuda())

    def test_sample_and_update_do_not_wait(self) -> None:
        buffer = counting(100, device="cuda", n_step=2, uniform_share=0.1)
        for t in range(50):
            step(buffer, t)
        buffer.update(buffer.sample(8), torch.ones(8, device="cuda"))
        torch.cuda.set_sync_debug_mode("error")
        try:
            buffer.update(buffer.sample(8), torch.ones(8, device="cuda"))
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def test_a_bad_signal_is_reported_later(self) -> None:
        buffer = counting(100, device="cuda")
        for t in range(50):
            step(buffer, t)
        sample = buffer.sample(8)
        assert buffer.proposal is not None
        before = buffer.proposal.tree.scores.clone()
        buffer.update(sample, torch.full((8,), math.nan, device="cuda"))
        assert torch.equal(buffer.proposal.tree.scores, before)
        torch.cuda.synchronize()
        with pytest.raises(ValueError, match="NaN"):
            buffer.update(sample, torch.ones(8, device="cuda"))
        buffer.update(sample, torch.ones(8, device="cuda"))
