"""The replay buffer: spaces, rows, returns, two-stage draws, bad input."""

import copy
import math
import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from scipy import stats

from awsgd_rl.base import Draw
from awsgd_rl.replay import ReplayBuffer, ReplaySample
from awsgd_rl.weights import annealed_weights

BOX = spaces.Box(-np.inf, np.inf, (2,))
COMPILED = pytest.mark.parametrize("compiled", [True, False])


def make(capacity: int = 8, n_envs: int = 1, **options: Any) -> ReplayBuffer:
    return ReplayBuffer(capacity, BOX, spaces.Discrete(3), n_envs=n_envs, **options)


def step(
    buffer: ReplayBuffer,
    now: float,
    following: float,
    reward: float = 0.0,
    *,
    terminated: bool = False,
    truncated: bool = False,
    valid: bool = True,
) -> None:
    """Adds the same step for each environment, told apart by the observation's second number."""
    n = buffer.n_envs
    envs = np.arange(n, dtype=np.float32)
    buffer.add(
        np.stack([np.full(n, now, np.float32), envs], 1),
        np.zeros(n, np.int64),
        np.full(n, reward) + 100.0 * envs,
        np.stack([np.full(n, following, np.float32), envs], 1),
        np.full(n, terminated),
        np.full(n, truncated),
        valid=np.full(n, valid),
    )


def everything(buffer: ReplayBuffer) -> ReplaySample:
    slots = torch.arange(buffer.size, device=buffer.device)
    return buffer.transitions(Draw(slots, torch.zeros(buffer.size)))


def state_of(buffer: ReplayBuffer) -> list[Any]:
    ring, proposal = buffer._ring, buffer.proposal
    tensors = [ring.memory, ring.aside, torch.from_numpy(ring.links), torch.from_numpy(ring.newest)]
    tensors.append(buffer.generator.get_state())
    if proposal is not None:
        tensors.append(proposal.tree.nodes)
    return [*(tensor.clone() for tensor in tensors), ring.added, ring.free_count]


def same(before: list[Any], after: list[Any]) -> bool:
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(before, after, strict=True)
    )


IMAGES = spaces.Box(0, 255, (4, 3, 1), np.uint8)
SPACES = {
    "box": BOX,
    "scalar": spaces.Box(-1.0, 1.0, ()),
    "float64": spaces.Box(-1.0, 1.0, (3,), np.float64),
    "images": IMAGES,
    "discrete": spaces.Discrete(5),
    "discrete from -3": spaces.Discrete(300, start=-3),
    "multi-discrete": spaces.MultiDiscrete([3, 1000, 2]),
    "multi-discrete 2d": spaces.MultiDiscrete(np.array([[3, 4], [5, 70_000]])),
    "multi-binary": spaces.MultiBinary(5),
    "dict": spaces.Dict(
        {"image": IMAGES, "goal": spaces.Box(-1, 1, (3,)), "kind": spaces.Discrete(4)}
    ),
}
STORED = {"discrete": 1, "discrete from -3": 2, "multi-discrete": 6, "multi-binary": 5}


def stacked(space: spaces.Space[Any], count: int) -> Any:
    """[count, ...] samples of a space, as a vector environment gives them."""
    items = [space.sample() for _ in range(count)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([item[key] for item in items]) for key in space.spaces}
    return np.stack(items)


def equal(got: Any, expected: Any) -> bool:
    if isinstance(expected, dict):
        return all(equal(got[key], expected[key]) for key in expected)
    return np.array_equal(got.numpy(), expected)


class TestSpaces:
    @COMPILED
    @pytest.mark.parametrize("of_actions", [False, True])
    @pytest.mark.parametrize("name", SPACES)
    def test_what_goes_in_comes_out(self, name: str, of_actions: bool, compiled: bool) -> None:
        space = SPACES[name]
        space.seed(0)
        observed, acted = (BOX, space) if of_actions else (space, spaces.Discrete(2))
        buffer = ReplayBuffer(7, observed, acted, n_envs=3, compiled=compiled)
        rows = [(stacked(observed, 3), stacked(acted, 3), stacked(observed, 3)) for _ in range(2)]
        no = np.zeros(3, bool)
        for now, action, following in rows:
            buffer.add(now, action, np.zeros(3), following, no, no)
        sample = everything(buffer)
        for i, (now, action, following) in enumerate(rows):
            slots = slice(3 * i, 3 * i + 3)
            for got, expected in (
                (sample.observations, now),
                (sample.actions, action),
                (sample.next_observations, following),
            ):
                part = (
                    {key: value[slots] for key, value in got.items()}
                    if isinstance(got, dict)
                    else got[slots]
                )
                assert equal(part, expected)

    def test_dtypes(self) -> None:
        for name, dtype in [
            ("box", torch.float32),
            ("float64", torch.float64),
            ("images", torch.uint8),
            ("discrete", torch.long),
            ("multi-discrete", torch.long),
            ("multi-binary", torch.int8),
        ]:
            buffer = ReplayBuffer(4, SPACES[name], SPACES["discrete"])
            row, no = stacked(SPACES[name], 1), np.zeros(1, bool)
            buffer.add(row, np.zeros(1, int), np.zeros(1), row, no, no)
            assert buffer.sample(2).observations.dtype == dtype

    @pytest.mark.parametrize("name", STORED)
    def test_integers_are_stored_in_the_narrowest_type(self, name: str) -> None:
        (field,) = ReplayBuffer(4, SPACES[name], BOX)._ring.observation_fields
        assert field.dtype.itemsize * math.prod(field.shape) == STORED[name]

    def test_samples_are_contiguous_and_yours(self) -> None:
        buffer = make()
        step(buffer, 0, 1)
        sample = buffer.sample(4)
        assert sample.observations.is_contiguous()
        sample.observations.zero_()
        sample.next_observations.fill_(9.0)
        assert everything(buffer).next_observations[0, 0] == 1.0

    @pytest.mark.parametrize(
        "space",
        [
            spaces.Tuple([BOX]),
            spaces.Text(3),
            spaces.Dict({}),
            spaces.Dict({"a": spaces.Dict({"b": BOX})}),
        ],
    )
    def test_other_spaces_are_refused(self, space: spaces.Space[Any]) -> None:
        with pytest.raises(ValueError, match="expected Box, Discrete"):
            ReplayBuffer(4, space, BOX)


class TestNextObservations:
    def test_they_are_stored_once(self) -> None:
        buffer = make(1000)
        for t in range(1500):
            step(buffer, t, t + 1)
        assert len(buffer._ring.aside) == 4
        # Observation, action, reward, link, terminated: 18 bytes, filled up to words.
        assert buffer._ring.row.itemsize == 20
        assert buffer.nbytes < 1000 * (20 + 8 * 1.2 * 1.2)

    @COMPILED
    def test_final_observations_are_kept_aside_and_freed(self, compiled: bool) -> None:
        buffer = make(7, 3, compiled=compiled)
        for t in range(200):
            step(buffer, 2 * t, 2 * t + 1, truncated=True)
        sample = everything(buffer)
        assert torch.equal(sample.next_observations[:, 0], sample.observations[:, 0] + 1)
        assert torch.equal(sample.next_observations[:, 1], sample.observations[:, 1])
        assert len(buffer._ring.aside) <= 7 + 3 * 3

    @COMPILED
    @pytest.mark.parametrize("capacity", [3, 4, 5])
    def test_rows_as_long_as_the_ring_lose_no_place(self, capacity: int, compiled: bool) -> None:
        buffer = make(capacity, 3, n_step=2, compiled=compiled)
        for t in range(100):
            step(buffer, 2 * t, 2 * t + 1, reward=1.0, valid=t % 5 > 0)
            ring = buffer._ring
            kept = int((ring.links < -3).sum())
            assert ring.free_count + kept == len(ring.aside) - 3
        sample = everything(buffer)
        assert torch.equal(sample.next_observations[:, 0], sample.observations[:, 0] + 1)

    def test_what_does_not_follow_is_kept_aside(self) -> None:
        buffer = make(n_step=3)
        step(buffer, 0, 1, reward=1.0)
        step(buffer, 7, 8, reward=1.0)
        sample = everything(buffer)
        assert sample.next_observations[:, 0].tolist() == [1.0, 8.0]
        assert sample.rewards.tolist() == [1.0, 1.0]

    def test_nan_in_observations_follows_itself(self) -> None:
        buffer = make(n_step=2)
        step(buffer, 0, math.nan, reward=1.0)
        step(buffer, math.nan, 2, reward=1.0)
        assert everything(buffer).rewards[0] == pytest.approx(1.99)

    @COMPILED
    def test_interrupt(self, compiled: bool) -> None:
        buffer = make(n_envs=2, n_step=2, compiled=compiled)
        step(buffer, 0, 0, reward=1.0)
        buffer.interrupt(1)
        step(buffer, 0, 0, reward=1.0)
        torch.testing.assert_close(
            everything(buffer).rewards, torch.tensor([1.99, 101.0, 1.0, 101.0])
        )
        buffer.interrupt()
        step(buffer, 0, 0)
        assert everything(buffer).rewards[2] == 1.0
        with pytest.raises(ValueError, match="from 0 to 1"):
            buffer.interrupt([2])


class TestAdd:
    def test_lists_and_tensors(self) -> None:
        buffer = make()
        buffer.add([[0.0, 1.0]], [2], [1], torch.ones(1, 2), [False], torch.tensor([False]))
        sample = everything(buffer)
        assert sample.observations.tolist() == [[0.0, 1.0]]
        assert sample.actions.tolist() == [2]

    def test_capacity_is_met_exactly(self) -> None:
        buffer = make(7, 3)
        for t in range(5):
            step(buffer, t, t + 1)
        assert (len(buffer), buffer.size, buffer.capacity) == (7, 7, 7)
        assert (buffer.added, buffer.position) == (15, 1)

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("observations", np.zeros((2, 3), np.float32), r"shape \(2, 3\), expected \(2, 2\)"),
            ("observations", np.zeros((1, 2), np.float32), r"shape \(1, 2\), expected \(2, 2\)"),
            ("observations", np.zeros((2, 2), complex), "complex128, expected float32"),
            ("next_observations", np.zeros(2, np.float32), r"shape \(2,\), expected \(2, 2\)"),
            ("actions", np.array([0, 3]), "environment 1 is 3, expected from 0 to 2"),
            ("actions", np.array([-1, 0]), "environment 0 is -1"),
            ("actions", np.array([0.0, 1.0]), "expected integers"),
            ("actions", np.array([[0], [0]]), r"shape \(2, 1\), expected \(2,\)"),
            ("rewards", np.array([0.0, math.nan]), "environment 1 is nan"),
            ("rewards", np.array([math.inf, 0.0]), "environment 0 is inf"),
            ("rewards", np.array([1e39, 0.0]), "environment 0 is 1e\\+39"),
            ("rewards", np.zeros((2, 1)), r"shape \(2, 1\), expected \(2,\)"),
            ("rewards", np.array(["a", "b"]), "expected numbers"),
            ("terminated", np.zeros(2), "float64, expected bool"),
            ("truncated", np.zeros(3, bool), r"expected bool of shape \(2,\)"),
            ("valid", np.array([1, 0]), "expected bool"),
        ],
    )
    def test_bad_rows_change_nothing(self, name: str, value: Any, message: str) -> None:
        buffer = make(n_envs=2)
        step(buffer, 0, 1)
        row = {
            "observations": np.ones((2, 2), np.float32),
            "actions": np.zeros(2, int),
            "rewards": np.zeros(2),
            "next_observations": np.ones((2, 2), np.float32),
            "terminated": np.zeros(2, bool),
            "truncated": np.zeros(2, bool),
            "valid": np.ones(2, bool),
        }
        before = state_of(buffer)
        with pytest.raises(ValueError, match=message):
            buffer.add(**{**row, name: value})
        assert same(before, state_of(buffer))
        buffer.add(**row)

    def test_images_of_another_dtype_are_refused(self) -> None:
        buffer = ReplayBuffer(4, IMAGES, BOX)
        rows = [np.zeros((1, 4, 3, 1), dtype) for dtype in (np.float32, np.int64, np.uint8)]
        action, no = np.zeros((1, 2), np.float32), np.zeros(1, bool)
        for wrong in rows[:2]:
            with pytest.raises(ValueError, match="expected uint8"):
                buffer.add(wrong, action, [0.0], rows[2], no, no)

    @pytest.mark.parametrize(
        ("dtype", "value"),
        [(np.uint8, np.uint16(300)), (np.int8, -129), (np.int64, np.uint64(2**63))],
    )
    def test_integers_that_would_wrap_around_are_refused(self, dtype: Any, value: Any) -> None:
        bounds = np.iinfo(dtype)
        space = spaces.Box(bounds.min, bounds.max, (2,), dtype)
        buffer = ReplayBuffer(4, space, BOX)
        row, action, no = np.array([[1, value]]), np.zeros((1, 2), np.float32), np.zeros(1, bool)
        row = row.astype(np.asarray(value).dtype)
        before = state_of(buffer)
        with pytest.raises(ValueError, match=f"environment 0 has the entry {value}, expected"):
            buffer.add(row, action, [0.0], row, no, no)
        assert same(before, state_of(buffer))
        row[0, 1] = 7
        buffer.add(row, action, [0.0], row, no, no)
        assert everything(buffer).observations.tolist() == [[1, 7]]

    @pytest.mark.parametrize(
        "given", [np.zeros((1, 2)), {"image": 0}, {"image": 0, "goal": 0, "x": 0}]
    )
    def test_dicts_with_other_keys_are_refused(self, given: Any) -> None:
        buffer = ReplayBuffer(4, SPACES["dict"], BOX)
        with pytest.raises(ValueError, match="expected a dict with the keys"):
            buffer.add(given, None, None, given, None, None)

    @COMPILED
    def test_a_row_without_a_valid_one(self, compiled: bool) -> None:
        buffer = make(compiled=compiled)
        step(buffer, 0, 1, valid=False)
        assert buffer.size == 0
        step(buffer, 0, 1)
        step(buffer, 0, 1, valid=False)
        assert buffer.size == 1


class TestReturns:
    @COMPILED
    def test_formula(self, compiled: bool) -> None:
        buffer = make(n_step=3, discount=0.5, compiled=compiled)
        for t in range(5):
            step(buffer, t, t + 1, reward=2.0**t)
        sample = everything(buffer)
        # 1 + 2/2 + 4/4 = 3, twice that, ...; then what is left of the window.
        assert sample.rewards.tolist() == [3.0, 6.0, 12.0, 16.0, 16.0]
        assert sample.discounts.tolist() == [0.125, 0.125, 0.125, 0.25, 0.5]
        assert sample.next_observations[:, 0].tolist() == [3.0, 4.0, 5.0, 5.0, 5.0]

    def test_discount_of_zero_and_one(self) -> None:
        for discount, rewards in ((0.0, [1.0, 1.0]), (1.0, [2.0, 1.0])):
            buffer = make(n_step=2, discount=discount)
            step(buffer, 0, 1, reward=1.0)
            step(buffer, 1, 2, reward=1.0)
            assert everything(buffer).rewards.tolist() == rewards

    @COMPILED
    @pytest.mark.parametrize("capacity", [5, 6, 16])
    def test_both_ways_and_any_capacity(self, capacity: int, compiled: bool) -> None:
        buffer = make(capacity, 2, n_step=4, discount=1.0, compiled=compiled)
        for t in range(20):
            step(buffer, t, t + 1, reward=1.0)
        sample = everything(buffer)
        age = 20.0 - sample.observations[:, 0]
        steps = age.clamp_max(4.0)
        expected = steps * (1.0 + 100.0 * sample.observations[:, 1])
        assert torch.equal(sample.rewards, expected)
        assert torch.equal(sample.next_observations[:, 0], sample.observations[:, 0] + steps)


class TestTwoStage:
    def test_is_unbiased_and_follows_scores(self) -> None:
        buffer = make(50, proposal="two-stage", ratio=8, seed=1)
        for t in range(50):
            step(buffer, t, t + 1, reward=float(t))
        means = []
        for _ in range(2000):
            sample = buffer.sample(4, score=lambda c: c.rewards + 1.0)
            weights = annealed_weights(sample.draw.log_q, buffer.size, 1.0, None)
            means.append(float((weights * sample.rewards).mean()))
        error = np.std(means) / math.sqrt(len(means))
        assert abs(np.mean(means) - 24.5) < 5 * error
        assert np.array_equal(sample.rewards.numpy(), sample.draw.items.numpy())

    def test_candidates(self) -> None:
        buffer = ReplayBuffer(9, SPACES["dict"], BOX, proposal="two-stage", ratio=3)
        row, no = stacked(SPACES["dict"], 1), np.zeros(1, bool)
        buffer.add(row, np.zeros((1, 2)), [1.0], row, no, no)
        seen: list[ReplaySample] = []

        def score(candidates: ReplaySample) -> torch.Tensor:
            assert not torch.is_grad_enabled()
            seen.append(candidates)
            return candidates.rewards

        sample = buffer.sample(5, score=score)
        assert len(seen[0].rewards) == 15
        assert sample.observations["image"].shape == (5, 4, 3, 1)
        assert len(sample.draw.log_q) == 5

    def test_bad_scores(self) -> None:
        buffer = make(proposal="two-stage")
        step(buffer, 0, 1)
        with pytest.raises(ValueError, match="one score per candidate"):
            buffer.sample(2, score=lambda c: c.rewards[:3])
        with pytest.raises(ValueError, match="mend the signal"):
            buffer.sample(2, score=lambda c: c.rewards * math.nan)
        with pytest.raises(ValueError, match="expected one to score candidates"):
            buffer.sample(2)
        other = make()
        step(other, 0, 1)
        with pytest.raises(ValueError, match="expected none"):
            other.sample(2, score=lambda c: c.rewards)


class TestUniform:
    def test_frequencies_and_probabilities(self) -> None:
        buffer = make(10, proposal="uniform")
        for t in range(7):
            step(buffer, t, t + 1)
        sample = buffer.sample(20_000)
        counts = np.bincount(sample.draw.items.numpy(), minlength=10)
        assert counts[7:].sum() == 0
        assert stats.chisquare(counts[:7]).pvalue > 1e-3
        assert torch.equal(sample.draw.log_q, torch.full_like(sample.draw.log_q, -math.log(7)))

    def test_update_checks_and_does_nothing(self) -> None:
        buffer = make(proposal="uniform")
        step(buffer, 0, 1)
        sample = buffer.sample(2)
        buffer.update(sample, torch.ones(2))
        with pytest.raises(ValueError, match="NaN"):
            buffer.update(sample, torch.tensor([1.0, math.nan]))
        with pytest.raises(ValueError, match="no priorities"):
            buffer.set_priorities(torch.tensor([0]), torch.ones(1))


class TestBadInput:
    @pytest.mark.parametrize(
        "settings",
        [
            {"capacity": 0},
            {"capacity": 1, "n_envs": 2},
            {"capacity": 2.0},
            {"capacity": 2**31},
            {"n_envs": 0},
            {"proposal": "prioritised"},
            {"alpha": -0.1},
            {"alpha": math.nan},
            {"epsilon": 0.0},
            {"epsilon": math.inf},
            {"uniform_share": 1.1},
            {"uniform_share": 1.0, "proposal": "two-stage"},
            {"ratio": 0},
            {"n_step": 0},
            {"discount": 1.01},
            {"discount": math.nan},
            {"min_size": 9},
            {"seed": -1},
        ],
    )
    def test_settings(self, settings: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="expected"):
            make(**settings)

    def test_sampling_before_enough_is_stored(self) -> None:
        buffer = make(min_size=2)
        step(buffer, 0, 1)
        with pytest.raises(ValueError, match="1 transitions are stored, expected at least 2"):
            buffer.sample(1)
        step(buffer, 1, 2)
        buffer.sample(1)
        with pytest.raises(ValueError, match="0 transitions are stored"):
            make().sample(1)

    @pytest.mark.parametrize("count", [0, -1, 1.5])
    def test_batch_size(self, count: int) -> None:
        buffer = make()
        step(buffer, 0, 1)
        with pytest.raises(ValueError, match="batch_size"):
            buffer.sample(count)

    @pytest.mark.parametrize("beta", [-0.1, 1.1, math.nan])
    def test_beta_outside_0_1(self, beta: float) -> None:
        buffer = make()
        step(buffer, 0, 1)
        with pytest.raises(ValueError, match="beta"):
            annealed_weights(buffer.sample(2).draw.log_q, buffer.size, beta)

    @COMPILED
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300])
    def test_errors(self, value: float, compiled: bool) -> None:
        buffer = make(compiled=compiled)
        for t in range(3):
            step(buffer, t, t + 1)
        sample = buffer.sample(3)
        before = state_of(buffer)
        with pytest.raises(ValueError, match=r"expected .*finite number"):
            buffer.update(sample, torch.tensor([1.0, value, 2.0], dtype=torch.float64))
        assert same(before, state_of(buffer))
        with pytest.raises(ValueError, match="one number per draw"):
            buffer.update(sample, torch.ones(2))
        buffer.update(sample, torch.tensor([1.0, -1.0, 0.0], requires_grad=True))

    @COMPILED
    @pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
    def test_priorities(self, value: float, compiled: bool) -> None:
        buffer = make(compiled=compiled)
        for t in range(3):
            step(buffer, t, t + 1)
        before = state_of(buffer)
        with pytest.raises(ValueError, match=r"the priority of slot 2 is .* expected a positive"):
            buffer.set_priorities(torch.tensor([0, 2]), torch.tensor([1.0, value]))
        assert same(before, state_of(buffer))

    @pytest.mark.parametrize("slots", [[3], [-1], [0, 8], [0.0], [[0]]])
    def test_slots(self, slots: list[Any]) -> None:
        buffer = make()
        for t in range(3):
            step(buffer, t, t + 1)
        before = state_of(buffer)
        given = torch.tensor(slots)
        with pytest.raises(ValueError, match="slot"):
            buffer.set_priorities(given, torch.ones(given.shape))
        assert same(before, state_of(buffer))

    @COMPILED
    @pytest.mark.parametrize("slots", [[3], [-1], [0, 8]])
    def test_slots_of_a_draw(self, slots: list[int], compiled: bool) -> None:
        buffer = make(compiled=compiled)
        for t in range(3):
            step(buffer, t, t + 1)
        before = state_of(buffer)
        draw = Draw(torch.tensor(slots), torch.zeros(len(slots)))
        with pytest.raises(ValueError, match="expected filled ones, 0 to 2"):
            buffer.transitions(draw)
        with pytest.raises(ValueError, match="expected a vector"):
            buffer.transitions(Draw(draw.items.float(), draw.log_q))
        with pytest.raises(ValueError, match="filled"):
            buffer.update(buffer.sample(1)._replace(draw=draw), torch.ones(len(slots)))
        assert same(before[:4] + before[5:], state_of(buffer)[:4] + state_of(buffer)[5:])

    def test_a_sample_of_another_buffer(self) -> None:
        buffer, newer = make(), make()
        step(buffer, 0, 1)
        step(newer, 0, 1)
        step(newer, 0, 1)
        with pytest.raises(ValueError, match="another buffer"):
            buffer.update(newer.sample(2), torch.ones(2))

    def test_kernels_are_for_the_cpu(self) -> None:
        with pytest.raises(ValueError, match="expected cpu"):
            make(device="meta", compiled=True)


class TestCopies:
    @COMPILED
    def test_copies_and_pickles_go_on_alike_and_apart(self, compiled: bool) -> None:
        buffer = make(n_step=2, compiled=compiled)
        for t in range(5):
            step(buffer, t, t + 1)
        for other in (copy.deepcopy(buffer), pickle.loads(pickle.dumps(buffer))):
            before = state_of(buffer)
            for t in range(5, 9):
                step(other, t, t + 1)
                other.update(other.sample(2), torch.rand(2))
            assert same(before, state_of(buffer))
            twin = copy.deepcopy(buffer)
            assert torch.equal(
                twin.sample(3).draw.items, copy.deepcopy(buffer).sample(3).draw.items
            )


def test_cartpole_vector_environment() -> None:
    """Gymnasium's own loop: transitions are those that an environment by itself would give."""
    envs = gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync")
    buffer = ReplayBuffer(
        500, envs.single_observation_space, envs.single_action_space, n_envs=2, discount=1.0
    )
    observations, _ = envs.reset(seed=0)
    envs.action_space.seed(0)
    done = np.zeros(2, bool)
    episodes = 0
    for _ in range(200):
        actions = envs.action_space.sample()
        following, rewards, terminated, truncated, _ = envs.step(actions)
        buffer.add(observations, actions, rewards, following, terminated, truncated, valid=~done)
        observations, done = following, terminated | truncated
        episodes += int(done.sum())
    envs.close()
    assert episodes > 5
    sample = everything(buffer)
    assert int((sample.discounts == 0.0).sum()) == episodes
    assert torch.equal(sample.rewards, torch.ones(buffer.size))
    # x' = x + 0.02 v: no pair is of two episodes.
    moved = sample.observations[:, 0] + 0.02 * sample.observations[:, 1]
    torch.testing.assert_close(sample.next_observations[:, 0], moved)
