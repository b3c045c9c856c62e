import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from awsgd_rl.base import Draw
from awsgd_rl.collector import Collector, SamplingWarning
from awsgd_rl.diagnostics import distances_to_optimum, headroom, second_moment, variance_ratio
from awsgd_rl.weights import effective_sample_size, importance_weights

N = 8
NORMS = torch.tensor([0.5, 4.0, 1.0, 0.5, 2.0, 0.25, 1.0, 3.0], dtype=torch.float64)
# Multiples of 1/16, so that a batch of 16 can have every item exactly as often as expected.
COUNTS = torch.tensor([1, 4, 1, 1, 3, 1, 2, 3])
UNIFORM = torch.full((N,), 1.0 / N, dtype=torch.float64)
NAMES = {
    "effective_sample_size",
    "largest_weight",
    "variance_ratio",
    "headroom",
    "distance",
    "uniform_distance",
}


def enumerated() -> tuple[Draw, Tensor, Tensor]:
    """A batch that is its own expectation: means over it are expectations under q."""
    items = torch.repeat_interleave(torch.arange(N), COUNTS)
    log_q = (COUNTS / 16.0).double().log()[items]
    return Draw(items, log_q), importance_weights(UNIFORM.log()[items], log_q), NORMS[items]


def step_of(weights: list[float], signal: list[float]) -> tuple[Draw, Tensor, Tensor]:
    count = len(weights)
    draw = Draw(torch.arange(count), torch.zeros(count, dtype=torch.float64))
    return draw, torch.tensor(weights), torch.tensor(signal)


def random_step(seed: int) -> tuple[Draw, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return step_of(
        (0.2 + torch.rand(10, generator=generator)).tolist(),
        torch.rand(10, generator=generator).square().tolist(),
    )


def optimizer(kind: Any = torch.optim.SGD) -> torch.optim.Optimizer:
    made: torch.optim.Optimizer = kind(nn.Linear(2, 1).parameters(), lr=0.1)
    return made


class TestMeasures:
    def test_exact_by_enumeration(self) -> None:
        collector = Collector()
        collector.update(*enumerated())
        found = collector.summary()
        q = COUNTS / 16.0
        best = NORMS / NORMS.sum()
        expected = distances_to_optimum(q.log(), NORMS, "tv")
        assert found["distance"] == pytest.approx(expected.proposal.item())
        assert found["uniform_distance"] == pytest.approx(expected.uniform.item())
        moments = [second_moment(NORMS, UNIFORM, p) for p in (UNIFORM, q, best)]
        assert found["variance_ratio"] == pytest.approx((moments[0] / moments[1]).item())
        assert found["headroom"] == pytest.approx((moments[0] / moments[2]).item())
        assert set(found) == NAMES

    def test_agrees_with_the_pure_functions(self) -> None:
        collector = Collector()
        draw, weights, signal = random_step(0)
        collector.update(draw, weights, signal)
        found = collector.summary()
        assert found["effective_sample_size"] == pytest.approx(
            effective_sample_size(weights).item() / 10
        )
        assert found["largest_weight"] == weights.max().item()
        assert found["variance_ratio"] == pytest.approx(variance_ratio(signal, weights).item())
        assert found["headroom"] == pytest.approx(headroom(signal, weights).item())

    def test_the_best_proposal(self) -> None:
        """Draws proportional to the norms: no distance, and all of the headroom."""
        items = torch.arange(N)
        best = NORMS / NORMS.sum()
        generator = torch.Generator().manual_seed(0)
        items = torch.multinomial(best, 5_000, replacement=True, generator=generator)
        draw = Draw(items, best.log()[items])
        collector = Collector()
        weights = importance_weights(UNIFORM.log()[items], draw.log_q)
        collector.update(draw, weights, NORMS[items])
        found = collector.summary()
        assert found["distance"] == pytest.approx(0.0, abs=1e-12)
        assert found["uniform_distance"] > 0.1
        assert found["variance_ratio"] == pytest.approx(found["headroom"], rel=0.1)

    def test_running_means_are_of_numerators_and_denominators(self) -> None:
        collector = Collector(every=1, decay=0.5)
        steps = [random_step(seed) for seed in range(3)]
        on_policy = achieved = 0.0
        for draw, weights, signal in steps:
            collector.update(draw, weights, signal)
            on_policy = 0.5 * on_policy + (weights * signal.square()).mean().item()
            achieved = 0.5 * achieved + (weights * signal).square().mean().item()
        assert collector.summary()["variance_ratio"] == pytest.approx(on_policy / achieved)

    def test_without_a_step(self) -> None:
        collector, written = Collector(), dict[str, Any]()
        collector.log_to(written)
        assert collector.summary() == written == {}
        assert all(len(values) == 0 for values in collector.history().values())

    def test_no_gradient_is_kept(self) -> None:
        collector = Collector(every=1)
        draw, weights, signal = random_step(0)
        collector.update(draw, weights, (signal * torch.ones(10, requires_grad=True)))
        assert not any(values.requires_grad for values in collector.history().values())


class TestHistory:
    @pytest.mark.parametrize("every", [1, 3])
    def test_each_measured_step(self, every: int) -> None:
        collector = Collector(every=every)
        for seed in range(250):
            collector.update(*random_step(seed))
        history = collector.history()
        steps = list(range(0, 250, every))
        assert history["step"].tolist() == steps
        assert set(history) == {"step", *NAMES}
        largest = [random_step(seed)[1].max().item() for seed in steps]
        assert history["largest_weight"].tolist() == largest
        assert collector.steps == 250

    @pytest.mark.parametrize("stop", [0, 1, 99, 100, 130])
    def test_state(self, stop: int) -> None:
        whole, first, second = (Collector(every=1) for _ in range(3))
        for seed in range(210):
            whole.update(*random_step(seed))
            if seed < stop:
                first.update(*random_step(seed))
        state = copy.deepcopy(first.state_dict())
        second.load_state_dict(state)
        for seed in range(stop, 210):
            second.update(*random_step(seed))
        assert second.summary() == whole.summary()
        for name, values in second.history().items():
            assert values.equal(whole.history()[name])
        # The state is a copy.
        if stop:
            third = Collector(every=1)
            third.load_state_dict(state)
            assert third.summary() == first.summary()

    def test_a_state_of_other_settings_is_refused(self) -> None:
        with pytest.raises(ValueError, match="every=3, expected 2"):
            Collector(every=2).load_state_dict(Collector(every=3).state_dict())


class TestWriters:
    def test_dictionary(self) -> None:
        collector, written = Collector(), dict[str, Any]()
        collector.update(*enumerated())
        collector.log_to(written, prefix="draw_")
        assert {name.removeprefix("draw_") for name in written} == NAMES
        assert written["draw_headroom"] == collector.summary()["headroom"]

    def test_tensorboard(self, tmp_path: Any) -> None:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        collector = Collector()
        collector.update(*enumerated())
        with SummaryWriter(str(tmp_path)) as writer:
            collector.log_to(writer)
            collector.log_to(writer, 7)
        events = EventAccumulator(str(tmp_path))
        events.Reload()
        assert set(events.Tags()["scalars"]) == {f"sampling/{name}" for name in NAMES}
        scalars = events.Scalars("sampling/headroom")
        assert [scalar.step for scalar in scalars] == [1, 7]
        assert scalars[0].value == pytest.approx(collector.summary()["headroom"])


HEAVY = [0.0] * 9 + [10.0]
LIGHT = [1.0, 1.2, 0.9, 1.0, 1.1, 1.0, 0.8, 1.0, 1.0, 1.0]
GOOD = [1.1] * 9 + [0.1]


class TestWarnings:
    def caught(self, collector: Collector, step: Any, steps: int = 300) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(steps):
                collector.update(*step)
            collector.log_to({})
        assert all(warning.category is SamplingWarning for warning in caught)
        assert all(warning.filename == __file__ for warning in caught)
        return [str(warning.message) for warning in caught]

    @pytest.mark.parametrize("kind", ["Adam", "AdamW", "RMSprop", "NAdam"])
    def test_adam_once(self, kind: str) -> None:
        collector = Collector(optimizer=optimizer(getattr(torch.optim, kind)), every=1)
        messages = self.caught(collector, step_of(GOOD, HEAVY))
        assert len(messages) == 1
        assert f"optimizer is {kind}" in messages[0]
        assert self.caught(collector, step_of(GOOD, HEAVY)) == []

    @pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adagrad, None])
    def test_no_warning_where_it_helps(self, kind: Any) -> None:
        collector = Collector(optimizer=kind and optimizer(kind), every=1)
        assert self.caught(collector, step_of(GOOD, HEAVY)) == []

    def test_uniform_draws_with_adam_are_fine(self) -> None:
        collector = Collector(optimizer=optimizer(torch.optim.Adam), every=1)
        assert self.caught(collector, step_of([1.0] * 10, HEAVY)) == []

    def test_light_tails(self) -> None:
        messages = self.caught(Collector(every=1), step_of([1.0] * 10, LIGHT))
        assert len(messages) == 1
        assert "light-tailed" in messages[0]
        assert "hashing" in messages[0]

    def test_collapse(self) -> None:
        step = step_of([1e-3] * 19 + [20.0], HEAVY + HEAVY)
        messages = self.caught(Collector(every=1), step)
        assert any("effective sample size is 5.0%" in message for message in messages)
        assert any("vary more than uniform" in message for message in messages)
        assert len(messages) == 2

    def test_first_look_comes_early_and_looks_are_rare(self) -> None:
        collector = Collector(every=1)
        step = step_of([1.0] * 10, LIGHT)
        assert self.caught_by_updates(collector, step, 9) == 0
        assert self.caught_by_updates(collector, step, 1) == 1
        # A restored collector has given its warnings.
        restored = Collector(every=1)
        restored.load_state_dict(collector.state_dict())
        assert self.caught_by_updates(restored, step, 200) == 0

    def caught_by_updates(self, collector: Collector, step: Any, steps: int) -> int:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(steps):
                collector.update(*step)
        return len(caught)


class TestBadInput:
    def test_shapes(self) -> None:
        collector = Collector()
        draw, weights, signal = random_step(0)
        for arguments in ((draw, weights[:-1], signal), (draw, weights, signal.unsqueeze(1))):
            with pytest.raises(ValueError, match=r"expected \(10,\)"):
                collector.update(*arguments)
        assert collector.steps == 0

    @pytest.mark.parametrize("settings", [{"every": 0}, {"decay": 1.0}, {"decay": -0.1}])
    def test_settings(self, settings: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=r"every|decay"):
            Collector(**settings)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_update_does_not_wait_for_the_device() -> None:
    collector = Collector(every=1)
    draw, weights, signal = random_step(0)
    step = (Draw(*(x.cuda() for x in draw)), weights.cuda(), signal.cuda())
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(9):
            collector.update(*step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    plain, restored = Collector(every=1), Collector(every=1)
    plain.update(draw, weights, signal)
    restored.load_state_dict(collector.state_dict())
    restored.update(*step)
    assert len(restored.history()["step"]) == 10
    assert restored.summary() == pytest.approx(plain.summary())
    assert collector.summary() == pytest.approx(plain.summary())
