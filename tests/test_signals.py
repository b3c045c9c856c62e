import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from awsgd_rl.signals import (
    binary_cross_entropy_signal,
    check_labels,
    cross_entropy_signal,
    loss_signal,
    per_example_gradient_norms,
    squared_loss_signal,
)

B, D, K = 7, 5, 3


def squared_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().sum()


def binary(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs, targets, reduction="sum")


def by_backward(model: nn.Module, loss: Any, inputs: Tensor, targets: Tensor) -> Tensor:
    """One example after the other, as anybody would check it."""
    norms = []
    for x, y in zip(inputs, targets, strict=True):
        model.zero_grad()
        loss(model(x.unsqueeze(0)), y.unsqueeze(0)).backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        norms.append(torch.cat(gradients).double().norm())
    return torch.stack(norms)


def targets_of(loss: Any) -> Tensor:
    if loss is F.cross_entropy:
        return torch.randint(K, (B,))
    return torch.rand(B, K).round() if loss is binary else torch.randn(B, K)


LOSSES = [
    (F.cross_entropy, cross_entropy_signal),
    (binary, binary_cross_entropy_signal),
    (squared_loss, squared_loss_signal),
]


class TestExact:
    @pytest.mark.parametrize("chunk_size", [None, 1, 3, 100])
    def test_equals_backward_of_each_example(self, chunk_size: int | None) -> None:
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, K)
        )
        model(torch.randn(20, 1, 6, 6))  # running statistics of its own
        model.eval()
        x, y = torch.randn(B, 1, 6, 6), torch.randint(K, (B,))
        norms = per_example_gradient_norms(model, F.cross_entropy, x, y, chunk_size=chunk_size)
        assert norms.dtype == torch.float64
        assert not norms.requires_grad
        torch.testing.assert_close(
            norms, by_backward(model, F.cross_entropy, x, y), rtol=1e-5, atol=0
        )

    @pytest.mark.parametrize("factor", [1e-30, 1e30])
    def test_squares_beyond_float32(self, factor: float) -> None:
        model, x = nn.Linear(1, 1, bias=False), torch.tensor([[3.0]])
        norms = per_example_gradient_norms(model, lambda z, _: factor * z.sum(), x, x)
        assert norms.item() == pytest.approx(3.0 * factor, rel=1e-6, abs=0.0)

    def test_changes_nothing(self) -> None:
        model = nn.Sequential(nn.Linear(D, 4), nn.BatchNorm1d(4), nn.Linear(4, K)).eval()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        per_example_gradient_norms(
            model, F.cross_entropy, torch.randn(B, D), torch.randint(K, (B,))
        )
        assert all(value.equal(before[name]) for name, value in model.state_dict().items())
        assert all(p.grad is None for p in model.parameters())

    def test_frozen_parameters_do_not_count(self) -> None:
        model = nn.Sequential(nn.Linear(D, 4), nn.Linear(4, K))
        model[0].requires_grad_(False)
        x, y = torch.randn(B, D), torch.randint(K, (B,))
        norms = per_example_gradient_norms(model, F.cross_entropy, x, y)
        signal = cross_entropy_signal(model(x), y, features=model[0](x))
        torch.testing.assert_close(norms, signal, rtol=1e-5, atol=0)

    @pytest.mark.parametrize(
        "layer",
        [
            nn.BatchNorm1d(D),
            nn.BatchNorm1d(D, track_running_stats=False).eval(),
            nn.SyncBatchNorm(D),
            nn.Dropout(0.5),
        ],
        ids=lambda layer: type(layer).__name__,
    )
    def test_layers_over_the_batch_are_refused(self, layer: nn.Module) -> None:
        model = nn.Sequential(layer, nn.Linear(D, K))
        with pytest.raises(ValueError, match=rf"{type(layer).__name__} 0 .*call model.eval\(\)"):
            per_example_gradient_norms(
                model, F.cross_entropy, torch.randn(B, D), torch.randint(K, (B,))
            )

    def test_dropout_without_a_layer_is_refused(self) -> None:
        class Model(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                return F.dropout(super().forward(x))

        with pytest.raises(ValueError, match="random numbers"):
            per_example_gradient_norms(
                Model(D, K), F.cross_entropy, torch.randn(B, D), torch.randint(K, (B,))
            )

    def test_bad_examples_are_named(self) -> None:
        x = torch.randn(B, D)
        x[4, 0] = math.inf
        model = nn.Linear(D, K)
        with pytest.raises(ValueError, match="example 4 is inf"):
            per_example_gradient_norms(model, squared_loss, x, torch.randn(B, K))
        with pytest.raises(ValueError, match="7 inputs and 6 targets"):
            per_example_gradient_norms(model, squared_loss, x, torch.randn(B - 1, K))
        with pytest.raises(ValueError, match="requires a gradient"):
            per_example_gradient_norms(
                model.requires_grad_(False), squared_loss, x, torch.randn(B, K)
            )


class TestAgainstEachOther:
    @pytest.mark.parametrize(("loss", "signal"), LOSSES)
    @pytest.mark.parametrize("bias", [True, False])
    def test_exact_for_a_linear_model(self, loss: Any, signal: Any, bias: bool) -> None:
        model = nn.Linear(D, K, bias=bias)
        x, y = torch.randn(B, D), targets_of(loss)
        exact = per_example_gradient_norms(model, loss, x, y)
        torch.testing.assert_close(
            signal(model(x), y, features=x, bias=bias), exact, rtol=1e-5, atol=1e-9
        )

    @pytest.mark.parametrize(("loss", "signal"), LOSSES)
    def test_is_the_gradient_in_the_output(self, loss: Any, signal: Any) -> None:
        outputs = torch.randn(B, K, dtype=torch.float64, requires_grad=True)
        y = targets_of(loss)
        y = y.double() if y.is_floating_point() else y
        total = sum(loss(outputs[i : i + 1], y[i : i + 1]) for i in range(B))
        (gradient,) = torch.autograd.grad(total, outputs)
        torch.testing.assert_close(signal(outputs, y), gradient.norm(dim=1))

    @pytest.mark.parametrize(("loss", "signal"), LOSSES)
    def test_last_layer_is_a_lower_bound_of_the_whole_gradient(
        self, loss: Any, signal: Any
    ) -> None:
        body, head = nn.Sequential(nn.Linear(D, 6), nn.ReLU()), nn.Linear(6, K)
        x, y = torch.randn(B, D), targets_of(loss)
        exact = per_example_gradient_norms(nn.Sequential(body, head), loss, x, y)
        last = signal(head(body(x)), y, features=body(x))
        assert bool((last <= exact * (1 + 1e-6)).all())
        # And the gradient in the output bounds it from above, up to a factor of the model.
        factor = (1.0 + sum(p.norm() for p in body.parameters()) + head.weight.norm()) ** 2
        scale = factor * (1.0 + x.norm(dim=1) + body(x).norm(dim=1))
        assert bool((exact <= signal(head(body(x)), y) * scale).all())

    @pytest.mark.parametrize("shape", [(B,), (B, 1), (B, 2, 3)])
    def test_any_output_shape(self, shape: tuple[int, ...]) -> None:
        z, y = torch.randn(shape), torch.rand(shape).round()
        expected = 2.0 * (z - y).double().reshape(B, -1).norm(dim=1)
        torch.testing.assert_close(squared_loss_signal(z, y), expected, rtol=1e-5, atol=0)
        expected = (z.double().sigmoid() - y).reshape(B, -1).norm(dim=1)
        torch.testing.assert_close(binary_cross_entropy_signal(z, y), expected, rtol=1e-5, atol=0)

    @given(st.lists(st.floats(-30, 30), min_size=2, max_size=6), st.integers(0, 5))
    def test_cross_entropy_of_two_outputs_is_binary(self, logits: list[float], label: int) -> None:
        z = torch.tensor([logits], dtype=torch.float64)
        y = torch.tensor([label % len(logits)])
        signal = cross_entropy_signal(z, y).item()
        assert 0.0 <= signal <= math.sqrt(2.0) + 1e-12
        margin = z[:, :1] - z[:, 1:2]
        pair = cross_entropy_signal(z[:, :2], y.clamp_max(1)).item()
        one = binary_cross_entropy_signal(margin[:, 0], (y.clamp_max(1) == 0).long()).item()
        assert pair == pytest.approx(math.sqrt(2.0) * one, rel=1e-9)

    def test_small_gradients_are_not_lost_to_rounding(self) -> None:
        """A difference 1 − p would be 0 here, and the example never drawn again."""
        sure = torch.tensor([[60.0, 0.0]])
        expected = math.sqrt(2.0) * math.exp(-60.0)
        assert cross_entropy_signal(sure, torch.tensor([0])).item() == pytest.approx(expected)
        one = binary_cross_entropy_signal(torch.tensor([60.0]), torch.tensor([1.0]))
        assert one.item() == pytest.approx(math.exp(-60.0))

    @pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    @pytest.mark.parametrize("of_labels", [torch.bool, torch.long, torch.float32])
    def test_the_kernel_of_one_output_computes_what_the_tensors_do(
        self, kind: torch.dtype, of_labels: torch.dtype
    ) -> None:
        """A column goes by tensors, a vector by the kernel."""
        z, y = 5.0 * torch.randn(B).to(kind), torch.rand(B).round().to(of_labels)
        by_tensors = binary_cross_entropy_signal(z[:, None], y[:, None])
        torch.testing.assert_close(binary_cross_entropy_signal(z, y), by_tensors)
        strided = torch.stack((z, z), 1)[:, 0]
        torch.testing.assert_close(binary_cross_entropy_signal(strided, y), by_tensors)

    def test_masked_classes(self) -> None:
        z = torch.tensor([[0.0, 0.0, -math.inf]])
        signal = cross_entropy_signal(z, torch.tensor([0]))
        assert signal.item() == pytest.approx(math.sqrt(0.5))

    def test_loss(self) -> None:
        losses = torch.tensor([0.0, 2.5], requires_grad=True)
        assert loss_signal(losses).tolist() == [0.0, 2.5]
        assert not loss_signal(losses).requires_grad


def put(x: Tensor, row: int, value: float) -> Tensor:
    x = x.clone()
    x[row] = value
    return x


class TestBadInput:
    @pytest.mark.parametrize("bad", [-1, K, -100])
    def test_class_labels(self, bad: int) -> None:
        labels = put(torch.zeros(B, dtype=torch.long), 4, bad)
        with pytest.raises(ValueError, match=f"label 4 is {bad}, expected an integer from 0 to 2"):
            cross_entropy_signal(torch.randn(B, K), labels)
        with pytest.raises(ValueError, match=f"label 4 is {bad}"):
            check_labels(labels, K)

    @pytest.mark.parametrize("bad", [math.nan, 0.5, math.inf, -1.0])
    def test_labels_read_as_floats(self, bad: float) -> None:
        labels = put(torch.tensor([0.0, 1.0, 2.0, 1.0, 0.0, 2.0, 2.0]), 3, bad)
        for check in (
            lambda: check_labels(labels, K),
            lambda: cross_entropy_signal(torch.randn(B, K), labels),
        ):
            with pytest.raises(ValueError, match=f"label 3 is {bad}"):
                check()
        assert check_labels(put(labels, 3, 1.0), K).tolist() == [0, 1, 2, 1, 0, 2, 2]
        assert check_labels(torch.tensor([True, False]), 2).tolist() == [1, 0]

    @pytest.mark.parametrize("bad", [math.nan, 0.5, -1.0, 2.0])
    def test_binary_labels(self, bad: float) -> None:
        with pytest.raises(ValueError, match=f"label 5 is {bad}, expected 0 or 1"):
            binary_cross_entropy_signal(torch.randn(B), put(torch.ones(B), 5, bad))

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    @pytest.mark.parametrize(
        ("signal", "labels"),
        [
            (cross_entropy_signal, torch.zeros(B, dtype=torch.long)),
            (binary_cross_entropy_signal, torch.zeros(B, K)),
            (squared_loss_signal, torch.zeros(B, K)),
        ],
    )
    def test_values(self, signal: Callable[..., Tensor], labels: Tensor, bad: float) -> None:
        z, h = torch.randn(B, K), torch.randn(B, D)
        with pytest.raises(ValueError, match=r"row 2 of (logits|outputs) has a NaN or infinite"):
            signal(put(z, 2, bad), labels)
        with pytest.raises(ValueError, match="row 6 of features has a NaN or infinite"):
            signal(z, labels, features=put(h, 6, bad))
        with pytest.raises(ValueError, match=r"expected \[7, D\]"):
            signal(z, labels, features=h[:-1])
        with pytest.raises(ValueError, match="expected"):
            signal(z, labels[:-1])

    def test_targets_and_overflow(self) -> None:
        with pytest.raises(ValueError, match="row 1 of targets"):
            squared_loss_signal(torch.zeros(B), put(torch.zeros(B), 1, math.nan))
        huge = put(torch.zeros(B, dtype=torch.float64), 3, 1e308)
        with pytest.raises(ValueError, match="row 3 is inf"):
            squared_loss_signal(huge, -huge)

    def test_no_broadcast(self) -> None:
        with pytest.raises(ValueError, match=r"\(7, 1\) and targets \(7,\)"):
            squared_loss_signal(torch.zeros(B, 1), torch.zeros(B))
        with pytest.raises(ValueError, match=r"\(7, 1\) and labels \(7,\)"):
            binary_cross_entropy_signal(torch.zeros(B, 1), torch.zeros(B))

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
    def test_losses(self, bad: float) -> None:
        with pytest.raises(ValueError, match="loss 2 is"):
            loss_signal(put(torch.ones(B), 2, bad))
        with pytest.raises(ValueError, match="reduction='none'"):
            loss_signal(torch.tensor(1.0))

    def test_labels_are_a_vector(self) -> None:
        with pytest.raises(ValueError, match="expected a vector"):
            check_labels(torch.zeros(3, 1, dtype=torch.long), 2)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("loss", "signal"), LOSSES)
def test_on_cuda(loss: Any, signal: Any) -> None:
    model = nn.Linear(D, K).cuda()
    x, y = torch.randn(B, D).cuda(), targets_of(loss).cuda()
    exact = per_example_gradient_norms(model, loss, x, y)
    assert exact.is_cuda
    torch.testing.assert_close(signal(model(x), y, features=x), exact, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="row 3"):
        signal(put(model(x), 3, math.nan), y)
    if loss is F.cross_entropy:  # refused, and no device assert that takes the process with it
        with pytest.raises(ValueError, match="label 3"):
            signal(model(x), put(y, 3, K))
    assert bool(model(x).isfinite().all())
