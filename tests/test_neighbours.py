"""Near-neighbour draws: what is found, and the probability that goes with it."""

import math

import pytest
import torch
from torch import Tensor

from awsgd_rl.hashing import squared_loss_keys, squared_loss_query
from awsgd_rl.neighbours import NeighbourProposal, augmented_keys


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_keys(n: int = 500, d: int = 6) -> Tensor:
    keys = torch.randn(n, d, generator=generator())
    return keys * torch.rand(n, 1, generator=generator(1))


def test_augmented_keys_turn_inner_products_into_distances() -> None:
    keys, query = random_keys(), torch.randn(6, generator=generator(2), dtype=torch.float64)
    longer = augmented_keys(keys)
    radius = longer.norm(dim=1)
    torch.testing.assert_close(radius, radius.max().expand(500))
    distances = (longer - torch.cat((query, torch.zeros(1)))).square().sum(1)
    expected = radius.square() + query.square().sum() - 2 * keys.double() @ query
    torch.testing.assert_close(distances, expected)


@pytest.mark.parametrize("index", ["kd_tree", "ball_tree", "brute"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_finds_the_largest_inner_products(index: str, symmetric: bool) -> None:
    keys, query = random_keys(), torch.randn(6, generator=generator(2))
    made = NeighbourProposal(
        keys, neighbours=15, symmetric=symmetric, uniform_share=0.3, index=index
    )
    assert (made.probabilities() == 1 / 500).all()
    made.set_query(1e-3 * query)
    product = keys @ query
    found = set(product.topk(15).indices.tolist())
    if symmetric:
        found |= set((-product).topk(15).indices.tolist())
    expected = torch.full((500,), 0.3 / 500, dtype=torch.float64)
    expected[sorted(found)] += 0.7 / len(found)
    torch.testing.assert_close(made.probabilities(), expected)
    assert abs(made.probabilities().sum().item() - 1) < 1e-12


def test_both_ends_may_overlap() -> None:
    made = NeighbourProposal(random_keys(20), neighbours=15)
    made.set_query(torch.ones(6))
    assert made.found_count == 20
    torch.testing.assert_close(made.probabilities(), torch.full((20,), 0.05, dtype=torch.float64))


def test_beats_uniform_on_heavy_tails_and_stays_unbiased() -> None:
    n = 3000
    x = torch.randn(n, 5, generator=generator())
    y = torch.randn(n, generator=generator(1)) / torch.rand(n, generator=generator(2)).sqrt()
    keys, query = squared_loss_keys(x, y, 1.0), squared_loss_query(torch.zeros(5), 1.0)
    norms = (x.norm(dim=1) * y.abs()).double()
    made = NeighbourProposal(keys, neighbours=300, uniform_share=0.5)
    made.set_query(query)
    second = (norms.square() / (n * n * made.probabilities())).sum()
    assert norms.square().mean() > 1.5 * second
    drawn = made.draw(20_000, generator=generator(3))
    terms = norms[drawn.items] / (n * drawn.log_q.exp())
    assert (terms.mean() - norms.mean()).abs() < 5 * terms.std() / math.sqrt(len(terms))


def test_state_is_restored_with_what_was_found() -> None:
    keys = random_keys()
    made, other = (NeighbourProposal(keys, neighbours=9) for _ in range(2))
    made.set_query(torch.ones(6))
    other.load_state_dict(made.state_dict())
    assert torch.equal(other.probabilities(), made.probabilities())


@pytest.mark.parametrize(
    "damage",
    [
        {"found_count": torch.tensor(-1)},
        {"found_count": torch.tensor(3)},
        {"found_count": torch.tensor(100)},
        {"found": torch.arange(18).flip(0)},
        {"found": torch.arange(18) - 1},
    ],
)
def test_a_damaged_state_is_refused(damage: dict[str, torch.Tensor]) -> None:
    keys = random_keys()
    made, other = (NeighbourProposal(keys, neighbours=9) for _ in range(2))
    made.set_query(torch.ones(6))
    with pytest.raises(ValueError, match="the state is damaged, or of other keys"):
        other.load_state_dict({**made.state_dict(), **damage})
    assert other.found_count.item() == 0


@pytest.mark.parametrize(
    "settings",
    [{"neighbours": 0}, {"neighbours": 21}, {"uniform_share": -0.1}, {"index": "kd_tee"}],
)
def test_bad_settings_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        NeighbourProposal(random_keys(20), **{"neighbours": 5, **settings})  # type: ignore[arg-type]


def test_a_bad_query_changes_nothing() -> None:
    made = NeighbourProposal(random_keys(20), neighbours=5)
    for bad in (torch.ones(5), torch.full((6,), math.nan)):
        with pytest.raises(ValueError, match="query"):
            made.set_query(bad)
    assert (made.probabilities() == 1 / 20).all()
