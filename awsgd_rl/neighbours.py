"""Draws of examples with large gradients from the query's nearest neighbours.

Beside hashing (`hashing.py`), for the same keys and queries. A k-NN search has no probability that
an item is found: it is found or not. So draws are uniform over what was found, and a share uniform
over all. No bucket is ever empty, and the number of items found is k, whatever the query.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from awsgd_rl.base import Draw, Proposal
from awsgd_rl.hashing import check_keys, check_query
from awsgd_rl.sampling import draw_uniforms
from awsgd_rl.validation import require_integer, require_name, require_probability

__all__ = ["NeighbourProposal", "augmented_keys"]

INDEXES = ("kd_tree", "ball_tree", "brute")


class NeighbourProposal(Proposal):
    """The k items whose keys have the largest inner product with the query, and a uniform share.

    q(i) = (1 − u) 1[i ∈ S] / |S| + u / N, with S what was found: exact whatever the search
    returned, so that weighted means are unbiased. Symmetric: k of the query and k of its negative,
    |S| = 2k where they do not overlap. Before the first query S is empty and q uniform.

    The largest inner product is the nearest neighbour of keys of equal length (`augmented_keys`),
    found by scikit-learn's trees (Li & Malik 2017 propose their DCI; it has no kept library). The
    index works on the CPU; draws are on the module's device.

    Args:
      keys: [N, D] one vector an item. Copied into the index.
      neighbours: k, at most N.
      symmetric: find large |⟨query, key⟩|, as for squared loss.
      uniform_share: u; weights stay below 1 / u. With u = 0 means are biased.
      index: "kd_tree", "ball_tree" or "brute". Trees visit few keys where few stand out; where
        none does (light tails), they cost as much as brute force.

    Raises:
      ValueError: if keys are not a matrix of finite numbers, or a setting is out of range.
    """

    found: Tensor
    found_count: Tensor

    def __init__(
        self,
        keys: Tensor,
        *,
        neighbours: int = 100,
        symmetric: bool = True,
        uniform_share: float = 0.2,
        index: str = "kd_tree",
    ) -> None:
        super().__init__()
        from sklearn.neighbors import NearestNeighbors

        keys = check_keys(keys)
        self.n, self.dimension = keys.shape
        self.neighbours = require_integer("neighbours", neighbours)
        if neighbours > self.n:
            raise ValueError(f"neighbours is {neighbours}, expected at most the {self.n} keys")
        self.symmetric = symmetric
        self.uniform_share = require_probability("uniform_share", uniform_share)
        require_name("index", index, INDEXES)
        self._index: Any = NearestNeighbors(n_neighbors=neighbours, algorithm=index)
        self._index.fit(augmented_keys(keys).cpu().numpy())
        self._radius = float(keys.norm(dim=1).max())
        # Sorted, and filled up with N, which is no item.
        places = neighbours * (2 if symmetric else 1)
        self.register_buffer("found", torch.full((places,), self.n, device=keys.device))
        self.register_buffer("found_count", torch.tensor(0, device=keys.device))

    def _check_state(self, state: Mapping[str, Any], prefix: str) -> None:
        super()._check_state(state, prefix)
        found, count = state.get(prefix + "found"), state.get(prefix + "found_count")
        if not isinstance(found, Tensor) or not isinstance(count, Tensor) or count.numel() != 1:
            return
        items, rest = found[: int(count)], found[int(count) :]
        ascending = bool((items.diff() > 0).all() and (items >= 0).all() and (items < self.n).all())
        if not 0 <= int(count) <= len(found) or not ascending or not bool((rest == self.n).all()):
            raise ValueError(
                f"the state is damaged, or of other keys: {prefix}found is no ascending list of "
                f"some of the {self.n} items, filled up with {self.n}"
            )

    def set_query(self, query: Tensor) -> None:
        """Search the query's neighbours; later draws go by them. Its length does not matter.

        Args:
          query: [D] of any type.

        Raises:
          ValueError: if the shape differs, or an entry is NaN or infinite.
        """
        vector = check_query(query.cpu(), self.dimension).to(torch.float64).numpy()
        signs = (1.0, -1.0) if self.symmetric else (1.0,)
        # The radius of the keys, so that tree bounds are tight: directions are all that matters.
        vector = vector / max(float(np.linalg.norm(vector)), np.finfo(np.float64).tiny)
        rows = np.stack([np.append(sign * self._radius * vector, 0.0) for sign in signs])
        found: NDArray[np.int64] = np.unique(self._index.kneighbors(rows, return_distance=False))
        padded = np.full(len(self.found), self.n)
        padded[: len(found)] = found
        self.found.copy_(torch.from_numpy(padded))
        self.found_count.fill_(len(found))

    def probabilities(self) -> Tensor:
        """[N] float64, the probability of every item, in O(N log k); sums to 1."""
        return self._density(torch.arange(self.n, device=self.found.device))

    def log_prob(self, items: Tensor, *, given: Tensor | None = None) -> Tensor:
        """[B] log probability under the present query; there is no τ, so no gradient."""
        self._check_given(len(items), given)
        return self._density(items).log()

    def _draw(self, count: int, generator: torch.Generator | None, given: Tensor | None) -> Draw:
        uniforms = draw_uniforms(2 * count, device=self.found.device, generator=generator)
        which, within = uniforms[:count], uniforms[count:]
        place = (within * self.found_count).long().minimum(self.found_count - 1).clamp_min(0)
        anywhere = (within * self.n).long().clamp_max(self.n - 1)
        items = torch.where(which < self._uniform(), anywhere, self.found.index_select(0, place))
        return Draw(items, self._density(items).log())

    def _uniform(self) -> Tensor:
        return 1.0 - (1.0 - self.uniform_share) * (self.found_count > 0).to(torch.float64)

    def _density(self, items: Tensor) -> Tensor:
        place = torch.searchsorted(self.found, items).clamp_max(len(self.found) - 1)
        hit = (self.found.index_select(0, place) == items).to(torch.float64)
        uniform = self._uniform()
        return hit * (1.0 - uniform) / self.found_count.clamp_min(1) + uniform / self.n


def augmented_keys(keys: Tensor) -> Tensor:
    """Keys of equal length, [z, √(max ‖z‖² − ‖z‖²)] (Neyshabur & Srebro 2015).

    Of these and [q, 0] the nearest neighbour has the largest inner product ⟨q, z⟩.

    Args:
      keys: [N, D].

    Returns:
      [N, D + 1] float64.
    """
    keys = keys.to(torch.float64)
    squared = keys.square().sum(1)
    rest = (squared.max() - squared).clamp_min(0.0).sqrt()
    return torch.cat((keys, rest.unsqueeze(1)), 1)
