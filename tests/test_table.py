"""The table's own rules; the conformance test of all proposals is in test_proposals.py."""

import copy
import math
import pickle

import pytest
import torch

from awsgd_rl.proposals import TableProposal
from awsgd_rl.sampling import draw_uniforms


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def table() -> TableProposal:
    return TableProposal(
        torch.tensor([0.0, 2.0, 5.0, 0.1, 3.0]), exponent=0.6, floor=0.05, uniform_share=0.1
    )


class TestTable:
    def test_formula(self) -> None:
        raised = torch.tensor([0.05, 2.0, 5.0, 0.1, 3.0], dtype=torch.float64).pow(0.6)
        expected = 0.9 * raised / raised.sum() + 0.1 / 5
        torch.testing.assert_close(table().probabilities(), expected, rtol=1e-6, atol=0.0)

    def test_only_filled_slots_have_mass(self) -> None:
        proposal = TableProposal(4, uniform_share=0.5)
        proposal.set_scores(torch.tensor([0, 1]), torch.tensor([3.0, 1.0]))
        proposal.fill(2)
        assert proposal.filled == 2
        assert proposal.probabilities().tolist() == [0.625, 0.375, 0.0, 0.0]
        assert proposal.sample(500, generator=generator()).max() == 1
        assert proposal.log_prob(torch.tensor([3])).item() == -math.inf

    def test_nothing_filled_is_refused(self) -> None:
        proposal = TableProposal(4)
        proposal.fill(0)
        with pytest.raises(ValueError, match=r"call fill\(n\)"):
            proposal.draw(1)

    @pytest.mark.parametrize("filled", [-1, 5])
    def test_bad_fill_is_refused(self, filled: int) -> None:
        proposal = TableProposal(4)
        with pytest.raises(ValueError, match="filled is"):
            proposal.fill(filled)
        assert proposal.filled == 4

    @pytest.mark.parametrize("uniform_share", [0.0, 0.3])
    @pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0])
    def test_all_scores_zero_is_uniform(self, exponent: float, uniform_share: float) -> None:
        proposal = TableProposal(torch.zeros(4), exponent=exponent, uniform_share=uniform_share)
        torch.testing.assert_close(
            proposal.probabilities(), torch.full((4,), 0.25, dtype=torch.float64)
        )

    def test_last_of_several_writes_stays(self) -> None:
        proposal = TableProposal(5)
        items = torch.tensor([3, 1, 3, 1, 3])
        proposal.set_scores(items, torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
        assert proposal.scores.tolist() == [1.0, 4.0, 1.0, 5.0, 1.0]

    def test_writes_are_seen_by_the_next_draw(self) -> None:
        proposal = TableProposal(torch.tensor([1.0, 0.0, 0.0]))
        assert set(proposal.sample(50, generator=generator()).tolist()) == {0}
        proposal.set_scores(torch.tensor([0, 2]), torch.tensor([0.0, 1.0]))
        assert set(proposal.sample(50, generator=generator()).tolist()) == {2}

    @pytest.mark.parametrize(
        ("items", "scores"),
        [
            ([0, 1], [1.0, math.nan]),
            ([0, 1], [1.0, math.inf]),
            ([0, 1], [1.0, -1e-9]),
            ([0, 1], [1.0, 1e302]),
            ([0, 4], [1.0, 1.0]),
            ([0, -1], [1.0, 1.0]),
            ([0], [1.0, 1.0]),
            ([], []),
        ],
    )
    def test_bad_writes_change_nothing(self, items: list[int], scores: list[float]) -> None:
        proposal = TableProposal(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        before = proposal.probabilities()
        with pytest.raises(ValueError, match="expected"):
            proposal.set_scores(torch.tensor(items, dtype=torch.long), torch.tensor(scores))
        assert proposal.scores.tolist() == [1.0, 2.0, 3.0, 4.0]
        assert torch.equal(proposal.probabilities(), before)

    def test_float_items_are_refused(self) -> None:
        with pytest.raises(ValueError, match="expected long"):
            TableProposal(3).set_scores(torch.tensor([0.0]), torch.tensor([1.0]))

    @pytest.mark.parametrize("scores", [[], [1.0, -1.0], [math.nan], [math.inf], [[1.0]], 0, -3])
    def test_bad_scores_are_refused(self, scores: list[float] | int) -> None:
        with pytest.raises(ValueError, match="expected"):
            TableProposal(scores if isinstance(scores, int) else torch.tensor(scores))

    @pytest.mark.parametrize(
        "settings",
        [
            {"exponent": -1.0},
            {"exponent": math.nan},
            {"floor": -0.1},
            {"floor": math.inf},
            {"uniform_share": 1.1},
            {"uniform_share": math.nan},
        ],
    )
    def test_bad_settings_are_refused(self, settings: dict[str, float]) -> None:
        with pytest.raises(ValueError, match="expected"):
            TableProposal(3, **settings)

    @pytest.mark.parametrize("exponent", [0.5, 1.0, 3.0])
    def test_extreme_scores_stay_finite(self, exponent: float) -> None:
        largest = TableProposal(3, exponent=exponent)._largest
        proposal = TableProposal(
            torch.tensor([largest, largest, 1e-320], dtype=torch.float64), exponent=exponent
        )
        torch.testing.assert_close(
            proposal.probabilities()[:2], torch.full((2,), 0.5, dtype=torch.float64)
        )

    def test_one_outlier_repaired_leaves_no_trace(self) -> None:
        proposal = TableProposal(torch.ones(1000), uniform_share=0.1)
        before = proposal.probabilities()
        proposal.set_scores(torch.tensor([7]), torch.tensor([1e30]))
        proposal.draw(5)
        proposal.set_scores(torch.tensor([7]), torch.tensor([1.0]))
        assert torch.equal(proposal.probabilities(), before)

    def test_what_is_given_is_copied(self) -> None:
        scores = torch.ones(3, dtype=torch.float64)
        proposal = TableProposal(scores)
        scores[0] = math.nan
        proposal.probabilities()[1] = math.nan
        assert proposal.probabilities().isfinite().all()

    def test_a_damaged_state_is_refused(self) -> None:
        saved = TableProposal(torch.tensor([2.0, 3.0, 4.0])).state_dict()
        bad_scores = torch.tensor([1.0, math.nan, 1.0], dtype=torch.float64)
        for changed, message in (
            ({"scores": bad_scores}, "the loaded scores"),
            ({"filled_slots": torch.tensor(4)}, "filled is 4"),
        ):
            proposal = copy.deepcopy(TableProposal(3))
            with pytest.raises(ValueError, match=message):
                proposal.load_state_dict({**saved, **changed})
            assert proposal.scores.tolist() == [1.0, 1.0, 1.0]
            assert (proposal.filled, proposal.filled_slots.item()) == (3, 3)

    def test_a_state_with_less_is_torchs_to_refuse(self) -> None:
        with pytest.raises(RuntimeError, match="Missing key"):
            TableProposal(3).load_state_dict({})
        TableProposal(3).load_state_dict({}, strict=False)


class TestTree:
    """What the table keeps in its tree stays what the formula says."""

    @pytest.mark.parametrize("filled", [1, 30, 77, 100])
    @pytest.mark.parametrize("exponent", [0.0, 0.6, 1.0, 2.0])
    def test_after_any_history(self, exponent: float, filled: int) -> None:
        """The exponent is applied once: on writes, on filling, on loading."""
        rng = generator()
        proposal = TableProposal(100, exponent=exponent, floor=0.05, uniform_share=0.1)
        proposal.draw(3, generator=rng)  # builds the tree
        for _ in range(20):
            proposal.fill(int(torch.randint(1, 101, (), generator=rng)))
            items = torch.randint(100, (17,), generator=rng)
            proposal.set_scores(items, torch.rand(17, generator=rng, dtype=torch.float64))
        proposal.fill(filled)
        raised = proposal.scores[:filled].clamp_min(0.05).pow(exponent)
        expected = torch.zeros(100, dtype=torch.float64)
        expected[:filled] = 0.9 * raised / raised.sum() + 0.1 / filled
        torch.testing.assert_close(proposal.probabilities(), expected)
        log_q = proposal.log_prob(torch.arange(100))
        torch.testing.assert_close(log_q.exp(), expected)
        drawn = proposal.draw(200, generator=rng)
        torch.testing.assert_close(drawn.log_q, log_q[drawn.items], rtol=1e-12, atol=1e-12)
        loaded = TableProposal(100, exponent=exponent, floor=0.05, uniform_share=0.1)
        loaded.draw(3, generator=rng)
        loaded.load_state_dict(proposal.state_dict())
        assert torch.equal(loaded.probabilities(), proposal.probabilities())
        assert loaded.filled == filled

    def test_scores_are_kept_as_given(self) -> None:
        """What a caller reads back, and writes again, has no exponent and no floor in it."""
        proposal = table()
        before = proposal.probabilities()
        proposal.set_scores(torch.arange(5), proposal.scores)
        assert torch.equal(proposal.probabilities(), before)
        assert proposal.scores[0].item() == 0.0

    def test_items_beyond_the_table_are_refused(self) -> None:
        for item in (5, 16, -1):
            with pytest.raises(IndexError):
                table().log_prob(torch.tensor([item]))

    def test_copies_and_pickles(self) -> None:
        proposal = TableProposal(50)
        proposal.draw(3, generator=generator())
        for twin in (copy.deepcopy(proposal), pickle.loads(pickle.dumps(proposal))):
            twin.set_scores(torch.tensor([3]), torch.tensor([9.0]))
            assert twin.log_prob(torch.tensor([3])).exp().item() == pytest.approx(9 / 58)
        assert torch.equal(proposal.probabilities(), TableProposal(50).probabilities())

    def test_a_module_turned_into_float32_draws_in_float64(self) -> None:
        proposal = TableProposal(2**12 + 1).float()
        log_q = proposal.draw(5, generator=generator()).log_q
        torch.testing.assert_close(log_q, torch.full((5,), -math.log(2**12 + 1)).double())

    def test_stratified(self) -> None:
        """One draw in each part of q; the mean over all batches is unbiased."""
        scores = torch.tensor([4.0, 1.0, 2.0, 1.0])
        proposal = TableProposal(scores, uniform_share=0.5, stratified=True)
        items, log_q = proposal.draw(1000, generator=generator())
        expected = 1000 * proposal.probabilities()
        assert ((torch.bincount(items, minlength=4) - expected).abs() <= 2.0).all()
        torch.testing.assert_close(log_q, proposal.log_prob(items))

    def test_draws_are_those_of_the_generator(self) -> None:
        first = table().draw(30, generator=generator(4))
        again = table().draw(30, generator=generator(4))
        assert torch.equal(first.items, again.items)
        uniforms = draw_uniforms(30, generator=generator(4))
        tensors, _ = table()._current().draw_mixture(uniforms, 0.1, 5)
        assert torch.equal(first.items, tensors)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_moved_to_cuda_and_back() -> None:
    proposal = TableProposal(1000, exponent=0.5)
    proposal.draw(3)
    proposal.cuda()
    items = torch.tensor([3, 5, 3], device="cuda")
    proposal.set_scores(items, torch.tensor([9.0, 4.0, 16.0], device="cuda"))
    proposal.draw(3)
    on_device = proposal.probabilities().cpu()
    torch.testing.assert_close(proposal.cpu().probabilities(), on_device)
    assert on_device[3].item() == pytest.approx(4.0 / (998 + 2 + 4))
