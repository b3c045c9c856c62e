"""Matrix factorisation by SGD, with draws of rows and columns that AW-SGD learns.

Bouchard 2015, §6: Y ≈ U Vᵀ of rank K, `f = (u_i·v_j − y_ij)²`, a batch of entries drawn by row and
column, weighted by p / q; τ follows `η ‖d‖² ∇_τ log q`, d = w ∇f, in the same pass.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from awsgd_rl import factorisation_kernels as kernels
from awsgd_rl.access_time import Clock, Storage, check_seconds
from awsgd_rl.factorisation_data import check_matrix, padded, sorted_entries
from awsgd_rl.ratings import Ratings
from awsgd_rl.urns import Urn, make_urn, probabilities
from awsgd_rl.validation import require_integer, require_non_negative, require_positive

__all__ = ["MatrixFactorisation"]

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]

_BATCHES_PER_CALL = 5_000


class _State(NamedTuple):
    """All that changes while it learns; every entry is made of arrays."""

    factors: kernels.Factors
    rows: Urn
    columns: Urn
    running: kernels.Running


class MatrixFactorisation:
    """Y ≈ U Vᵀ + offset of a dense matrix, or of the observed entries of one.

    The proposal has a τ per row and one per column:

    - dense: q(i, j) = softmax(τ′)_i softmax(τ″)_j (eq. 18), p / q = 1 / (a_i b_j), a and b being
      the densities relative to the uniform one;
    - observed entries: half of a batch takes a row, q ∝ n_i exp(τ′_i), and one of its n_i entries;
      half takes a column alike, and one of its entries. p / q = 1 / (½ a_i + ½ b_j), exact, for any
      pattern of missing entries, at the cost of two look-ups.

    The urns that hold softmax(τ) keep a and b above 1 / tickets or so, which bounds the weights.

    AdaGrad divides by what the proposal multiplies with, and undoes much of the gain (§6).

    Args:
        rank: K.
        learning_rate: step per draw at first; it falls as 1 / (N/2 + t), N entries, t draws. With
            `adagrad` it is AdaGrad's, constant.
        adaptation_rate: η, a step of τ per draw, relative to the mean of ‖d‖²; 0 draws uniformly.
        adapt_every: every how many batches τ learns.
        batch_size: draws that share a proposal, at least 4.
        block: of a dense matrix draw this many rows and columns, and take all pairs of them: most
            of a batch then works in the nearest cache. block² must divide batch_size.
        refresh: an urn of n items is filled anew after refresh n draws: at 16 for 1 ns a draw.
        tickets: tickets per item of an urn: 1 / tickets bounds a and b from below, and so the
            weights. Many where access times differ by much.
        ridge: penalty of ‖u_i‖² + ‖v_j‖² in each entry's loss.
        adagrad: step by AdaGrad.
        time_aware: divide ‖d‖² by the access time of the draw (Algorithm 3). Its fixed point is
            q ∝ p ‖∇f‖ / √time where the family is free: τ then descends Σ p² ‖∇f‖² / (q time), and
            that q also has the lowest variance for the time it takes, (Σ p² ‖∇f‖² / q) (Σ q time).
        init_scale: standard deviation of the first factors.
        seed: of the first factors and all draws.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        rank: int,
        *,
        learning_rate: float = 0.05,
        adaptation_rate: float = 0.003,
        adapt_every: int = 4,
        batch_size: int = 100,
        block: int = 1,
        refresh: int = 16,
        tickets: int = 8,
        ridge: float = 0.0,
        adagrad: bool = False,
        time_aware: bool = False,
        init_scale: float = 0.1,
        seed: int = 0,
    ) -> None:
        self.rank = require_integer("rank", rank)
        self.learning_rate = require_positive("learning_rate", learning_rate)
        self.adaptation_rate = require_non_negative("adaptation_rate", adaptation_rate)
        self.adapt_every = require_integer("adapt_every", adapt_every)
        self.batch_size = require_integer("batch_size", batch_size, 4)
        self.block = require_integer("block", block)
        if self.batch_size % self.block**2:
            raise ValueError(
                f"block is {block}, expected one whose square divides batch_size {batch_size}"
            )
        self.refresh = require_integer("refresh", refresh)
        self.tickets = require_integer("tickets", tickets, 2)
        self.ridge = require_non_negative("ridge", ridge)
        self.adagrad, self.time_aware = bool(adagrad), bool(time_aware)
        self.init_scale = require_positive("init_scale", init_scale)
        self.seed = require_integer("seed", seed, 0)
        self.offset = 0.0
        self._state: _State | None = None

    def fit(
        self,
        data: ArrayLike | Ratings,
        epochs: float = 1.0,
        *,
        row_seconds: ArrayLike | None = None,
        progress: Callable[[float], None] = lambda share: None,
    ) -> "MatrixFactorisation":
        """Learn for some epochs; again to go on from where it stands, with this data or other.

        Args:
            data: [n, m] matrix, or `Ratings`, of as many rows and columns as before.
            epochs: how many times as many draws as there are entries.
            row_seconds: [n] simulated time to access an entry of each row of a dense matrix; it is
                counted in `access_seconds`, and learned from if `time_aware`.
            progress: called with the share that is done.

        Returns:
            Itself.

        Raises:
            ValueError: the data is empty, of another shape or has a bad entry, times are missing or
                bad (then nothing has changed), or the factors have diverged.
        """
        require_positive("epochs", epochs)
        if isinstance(data, Ratings):
            if row_seconds is not None or self.time_aware:
                raise ValueError("access times go with a dense matrix or a storage, got Ratings")
            state = self._prepare(data.shape, data)
            entries = sorted_entries(data)
            batch, settings = self._batch(), self._settings(len(data), dense=False)

            def call(batches: int) -> None:
                kernels.fit_entries(entries, *state[:3], batch, state.running, settings, batches)

            self._loop(call, len(data) * epochs, progress)
            return self
        matrix = check_matrix(data)
        if self.time_aware and row_seconds is None:
            raise ValueError("time_aware needs access times: pass row_seconds, or fit_storage")
        costs = np.empty(0) if row_seconds is None else check_seconds(row_seconds, len(matrix))
        state = self._prepare((matrix.shape[0], matrix.shape[1]), None)
        batch, settings = self._batch(), self._settings(matrix.size)

        def call_dense(batches: int) -> None:
            kernels.fit_dense(matrix, costs, *state[:3], batch, state.running, settings, batches)

        self._loop(call_dense, matrix.size * epochs, progress)
        return self

    def fit_storage(
        self,
        storage: Storage,
        draws: int,
        *,
        clock: Clock = time.perf_counter,
        progress: Callable[[float], None] = lambda share: None,
    ) -> "MatrixFactorisation":
        """Learn from a matrix that is read entry by entry, each access timed.

        Args:
            storage: the matrix.
            draws: how many entries are read, rounded to batches.
            clock: returns seconds; each access is timed with it.
            progress: called with the share that is done.

        Returns:
            Itself.

        Raises:
            ValueError: the shape is not that of before, a value read is not finite, the clock runs
                backwards or stands still while `time_aware`, or the factors have diverged.
        """
        n, m = storage.shape
        state = self._prepare((n, m), None)
        batch, settings = self._batch(), self._settings(n * m)
        factors, rows, columns, running = state

        def call(batches: int) -> None:
            for _ in range(batches):
                if self.adaptation_rate > 0.0:
                    kernels.refresh(rows, columns, running, settings)
                    kernels.draw_pairs(rows, columns, running.random, self.block, batch)
                else:
                    kernels.draw_uniform_pairs(n, m, running.random, self.block, batch)
                pairs = zip(batch.row.tolist(), batch.column.tolist(), strict=True)
                for b, (i, j) in enumerate(pairs):
                    start = clock()
                    value = storage.read(i, j)
                    batch.seconds[b] = clock() - start
                    batch.value[b] = value
                self._check_batch(batch)
                for seconds in batch.seconds:
                    running.seconds[0] += seconds
                kernels.learn(batch, factors, rows, columns, running, settings, 0)

        self._loop(call, require_integer("draws", draws), progress, per_call=100)
        return self

    def reconstruct(self) -> Singles:
        """Return U Vᵀ + offset, [n, m]."""
        factors = self._fitted().factors
        return np.asarray(factors.U @ factors.V.T + np.float32(self.offset))

    def predict(self, row: ArrayLike, column: ArrayLike) -> Singles:
        """Return single entries of the reconstruction.

        Args:
            row: [B] integers.
            column: [B] integers.

        Raises:
            ValueError: shapes differ, or an index is out of range.
        """
        factors = self._fitted().factors
        rows, columns = np.asarray(row), np.asarray(column)
        if rows.shape != columns.shape or rows.ndim != 1:
            raise ValueError(
                f"row and column have shapes {list(rows.shape)} and {list(columns.shape)}, "
                "expected [B] and [B]"
            )
        for name, index, n in (
            ("row", rows, len(factors.U)),
            ("column", columns, len(factors.V)),
        ):
            bad = np.flatnonzero((index < 0) | (index >= n))
            if len(bad):
                raise ValueError(f"{name}[{bad[0]}] is {index[bad[0]]}, expected 0 to {n - 1}")
        products = np.einsum("bk,bk->b", factors.U[rows], factors.V[columns])
        return np.asarray(products + np.float32(self.offset), np.float32)

    def loss(self, data: ArrayLike | Ratings) -> float:
        """Return the mean squared error over the (observed) entries, without the ridge."""
        if isinstance(data, Ratings):
            errors = self.predict(data.row, data.column) - data.value
        else:
            errors = self.reconstruct() - check_matrix(data)
        return float(np.mean(np.square(errors, dtype=np.float64)))

    @property
    def draws(self) -> int:
        """Draws so far."""
        return 0 if self._state is None else int(self._state.running.draws[0])

    @property
    def access_seconds(self) -> float:
        """Access time so far, simulated or measured, in seconds."""
        return 0.0 if self._state is None else float(self._state.running.seconds[0])

    @property
    def row_probabilities(self) -> Floats:
        """[n] probability of each row, of the urn in use."""
        return probabilities(self._fitted().rows)

    @property
    def column_probabilities(self) -> Floats:
        """[m] probability of each column, of the urn in use."""
        return probabilities(self._fitted().columns)

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of all that it has learned, and of where its draws stand."""
        state = self._fitted()
        parts = {
            f"{name}.{field}": array.copy()
            for name, part in state._asdict().items()
            for field, array in part._asdict().items()
        }
        return {**parts, "offset": self.offset, "rank": self.rank}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; `fit` goes on as the saved one would have.

        Raises:
            ValueError: an entry is missing, or the rank or the optimizer is another.
        """
        parts = []
        for name, type_ in _State.__annotations__.items():
            missing = [f for f in type_._fields if f"{name}.{f}" not in state]
            if missing or not {"offset", "rank"} <= state.keys():
                raise ValueError("the state lacks entries, expected one that state_dict returned")
            parts.append(type_(*(np.array(state[f"{name}.{f}"]) for f in type_._fields)))
        loaded = _State(*parts)
        if int(state["rank"]) != self.rank:
            raise ValueError(f"the state has rank {state['rank']}, expected {self.rank}")
        if (loaded.factors.U_squares.size > 0) != self.adagrad:
            raise ValueError("the state was saved with another setting of `adagrad`")
        self._state, self.offset = loaded, float(state["offset"])

    def _prepare(self, shape: tuple[int, int], ratings: Ratings | None) -> _State:
        """Return the state for data of this shape: a new one, or the one that there is."""
        n, m = shape
        if ratings is None:
            shares = np.full(n, 1.0 / n), np.full(m, 1.0 / m)
        else:
            counts = np.bincount(ratings.row, minlength=n), np.bincount(ratings.column, minlength=m)
            shares = counts[0] / len(ratings), counts[1] / len(ratings)
        if self._state is None:
            self.offset = 0.0 if ratings is None else float(np.mean(ratings.value))
            self._state = self._first_state(shares)
            return self._state
        factors, rows, columns, _ = self._state
        if (len(factors.U), len(factors.V)) != shape:
            raise ValueError(
                f"data has shape {list(shape)}, expected {[len(factors.U), len(factors.V)]} as "
                "before: make a new MatrixFactorisation for another matrix"
            )
        if not (np.array_equal(rows.share, shares[0]) and np.array_equal(columns.share, shares[1])):
            self._state = self._state._replace(
                rows=make_urn(shares[0], rows.tau, per_item=self.tickets),
                columns=make_urn(shares[1], columns.tau, per_item=self.tickets),
            )
        return self._state

    def _first_state(self, shares: tuple[Floats, Floats]) -> _State:
        rng = np.random.default_rng(self.seed)
        # Columns of zeros after the first K stay zeros.
        U, V = (np.zeros((len(share), padded(self.rank)), np.float32) for share in shares)
        for factor in (U, V):
            factor[:, : self.rank] = self.init_scale * rng.normal(size=(len(factor), self.rank))
        # AdaGrad's sums start above 0: a first gradient of 0 must not divide 0 by 0.
        squares = [np.full_like(w, 1e-8) if self.adagrad else w[:0, :0].copy() for w in (U, V)]
        running = kernels.Running(
            rng.integers(2**64, size=1, dtype=np.uint64),
            np.zeros(3, np.int64),
            np.zeros(2),
            np.zeros(1),
        )
        rows, columns = (make_urn(share, per_item=self.tickets) for share in shares)
        return _State(kernels.Factors(U, V, *squares), rows, columns, running)

    def _settings(self, entries: int, dense: bool = True) -> kernels.Settings:
        return kernels.Settings(
            self.learning_rate,
            entries / 2.0,
            self.adaptation_rate,
            self.adapt_every,
            self.ridge,
            self.offset,
            self.adagrad,
            self.time_aware,
            self.refresh,
            self.block if dense else 1,
        )

    def _batch(self) -> kernels.Batch:
        size = self.batch_size
        return kernels.Batch(
            row=np.zeros(size, np.uint32),
            column=np.zeros(size, np.uint32),
            value=np.zeros(size, np.float32),
            weight=np.zeros(size, np.float32),
            norm=np.zeros(size, np.float32),
            seconds=np.ones(size),
        )

    def _loop(
        self,
        call: Callable[[int], None],
        draws: float,
        progress: Callable[[float], None],
        per_call: int = _BATCHES_PER_CALL,
    ) -> None:
        total = max(1, round(draws / self.batch_size))
        for done in range(0, total, per_call):
            call(min(per_call, total - done))
            factors = self._fitted().factors
            if not (np.isfinite(factors.U).all() and np.isfinite(factors.V).all()):
                raise ValueError(
                    f"the factors diverged at a learning_rate of {self.learning_rate}: "
                    "make a new one with a smaller learning_rate"
                )
            progress(min(1.0, (done + per_call) / total))

    def _check_batch(self, batch: kernels.Batch) -> None:
        if not np.isfinite(batch.value).all():
            b = int(np.argmin(np.isfinite(batch.value)))
            raise ValueError(
                f"the storage gave {batch.value[b]} for row {batch.row[b]}, column "
                f"{batch.column[b]}, expected a finite number"
            )
        if batch.seconds.min() < 0.0 or (self.time_aware and batch.seconds.min() == 0.0):
            raise ValueError(
                f"an access took {batch.seconds.min()} s by the clock, expected a positive time: "
                "give a clock that runs, and is fine enough"
            )

    def _fitted(self) -> _State:
        if self._state is None:
            raise ValueError("nothing has been learned yet: call fit first")
        return self._state
