"""Saving and restoring a replay buffer: whole, bit for bit, or not at all."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors.torch import load_file, save_file

from awsgd_rl import replay_file
from awsgd_rl.replay import ReplayBuffer, ReplaySample

SPACE = spaces.Dict({"image": spaces.Box(0, 255, (3, 2), np.uint8), "kind": spaces.Discrete(5)})
ACTIONS = spaces.Box(-1.0, 1.0, (2,))


def make(seed: int = 0, **options: Any) -> ReplayBuffer:
    settings: dict[str, Any] = {"n_envs": 3, "n_step": 2, "capacity": 10, **options}
    spaces_ = settings.pop("spaces", (SPACE, ACTIONS))
    return ReplayBuffer(settings.pop("capacity"), *spaces_, seed=seed, **settings)


def go_on(buffer: ReplayBuffer, steps: int, seed: int) -> list[ReplaySample]:
    """A run: the same for the same seed and the same buffer."""
    rng = np.random.default_rng(seed)
    samples = []

    def observe() -> dict[str, Any]:
        return {
            "image": rng.integers(0, 256, (3, 3, 2)).astype(np.uint8),
            "kind": rng.integers(0, 5, 3),
        }

    now = observe()
    for _ in range(steps):
        following = observe()
        ends, cut, valid = rng.random(3) < 0.2, rng.random(3) < 0.2, rng.random(3) < 0.9
        actions = rng.uniform(-1, 1, (3, 2))
        buffer.add(now, actions, rng.normal(size=3), following, ends, cut, valid=valid)
        now = following
        if buffer.size:
            scored = buffer.kind == "two-stage"
            sample = buffer.sample(4, score=(lambda c: c.rewards.abs()) if scored else None)
            buffer.update(sample, torch.from_numpy(rng.normal(size=4)))
            samples.append(sample)
    return samples


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else bool(a == b)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    buffer = make()
    go_on(buffer, 9, seed=1)
    path = tmp_path / "replay.safetensors"
    buffer.save(path)
    return path


class TestRestored:
    @pytest.mark.parametrize("compiled", [True, False])
    @pytest.mark.parametrize("steps", [0, 1, 2, 30])
    @pytest.mark.parametrize("proposal", ["priority", "uniform", "two-stage"])
    def test_goes_on_bit_for_bit(
        self, proposal: Any, steps: int, compiled: bool, tmp_path: Path
    ) -> None:
        """Elsewhere neither the generator nor the priorities were in the checkpoint."""
        path = tmp_path / "replay.safetensors"
        buffer = make(proposal=proposal, compiled=compiled)
        go_on(buffer, steps, seed=1)
        buffer.save(path)
        restored = make(seed=7, proposal=proposal, compiled=compiled)
        go_on(restored, 8, seed=2)
        restored.restore(path)
        assert restored.added == buffer.added
        assert equal(go_on(buffer, 30, seed=3), go_on(restored, 30, seed=3))
        restored.save(tmp_path / "again.safetensors")
        buffer.save(path)
        assert path.read_bytes() == (tmp_path / "again.safetensors").read_bytes()

    def test_compiled_and_not_read_each_other(self, saved: Path) -> None:
        one, other = make(compiled=True), make(compiled=False)
        one.restore(saved)
        other.restore(saved)
        assert equal(go_on(one, 30, seed=3), go_on(other, 30, seed=3))

    def test_running_episodes_go_on(self, tmp_path: Path) -> None:
        box = spaces.Box(0, 9, ())
        options: dict[str, Any] = {"spaces": (box, box), "n_envs": 1, "discount": 1.0}
        buffer, restored = make(**options), make(**options)
        for t in range(2):
            if t == 1:
                buffer.save(tmp_path / "replay")
                restored.restore(tmp_path / "replay")
            restored.add([t], [0.0], [1.0], [t + 1], [False], [False])
            buffer.add([t], [0.0], [1.0], [t + 1], [False], [False])
        sample = restored.sample(64)
        assert set(sample.rewards.tolist()) == {1.0, 2.0}

    def test_any_safetensors_reader_reads_it(self, saved: Path) -> None:
        tensors = load_file(saved)
        assert set(tensors) == {
            *("priorities", "newest", "free", "generator", "aside", "transitions")
        }
        assert len(tensors["transitions"]) == 10

    def test_the_transitions_are_written_in_pieces(
        self, saved: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = saved.read_bytes()
        monkeypatch.setattr(replay_file, "_PIECE", 50)
        buffer = make()
        buffer.restore(saved)
        buffer.save(saved)
        assert saved.read_bytes() == whole

    def test_it_replaces_an_older_file_whole(
        self, saved: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = saved.read_bytes()

        def fail(*_: Any) -> None:
            raise OSError("the disk is full")

        monkeypatch.setattr(replay_file.json, "dumps", fail)
        with pytest.raises(OSError, match="full"):
            make().save(saved)
        assert saved.read_bytes() == before
        assert [path.name for path in saved.parent.iterdir()] == [saved.name]


OTHERS = [
    ({"capacity": 11}, "capacity is 10, expected 11"),
    ({"n_envs": 2}, "n_envs is 3, expected 2"),
    ({"spaces": (SPACE, spaces.Discrete(2))}, "spaces is"),
    ({"spaces": (SPACE["image"], ACTIONS)}, "spaces is"),
    ({"spaces": (SPACE, spaces.Box(-1, 1, (2,), np.float64))}, "spaces is"),
    ({"proposal": "uniform"}, "proposal is priority, expected uniform"),
    ({"alpha": 0.7}, "alpha is 0.6, expected 0.7"),
]


class TestRefused:
    def refuses(self, path: Path, message: str, buffer: ReplayBuffer | None = None) -> None:
        buffer = make() if buffer is None else buffer
        go_on(buffer, 5, seed=4)
        twin_path = path.with_name("before")
        buffer.save(twin_path)
        with pytest.raises(ValueError, match=message) as caught:
            buffer.restore(path)
        assert "\n" not in str(caught.value)
        buffer.save(path.with_name("after"))
        assert path.with_name("after").read_bytes() == twin_path.read_bytes()

    @pytest.mark.parametrize(("options", "message"), OTHERS)
    def test_another_buffer(self, saved: Path, options: dict[str, Any], message: str) -> None:
        buffer = make(**options)
        with pytest.raises(ValueError, match=message):
            buffer.restore(saved)
        assert buffer.size == 0

    @pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
    def test_cut_short(self, saved: Path, share: float) -> None:
        content = saved.read_bytes()
        saved.write_bytes(content[: int(share * len(content))])
        self.refuses(saved, "no whole safetensors file")

    def test_missing_or_a_folder(self, tmp_path: Path) -> None:
        self.refuses(tmp_path / "none", "is no file")
        self.refuses(tmp_path, "no (file|whole)")

    def test_another_kind_of_file(self, saved: Path) -> None:
        save_file({"weight": torch.zeros(3)}, saved)
        self.refuses(saved, "holds no replay buffer")
        saved.write_text("transitions")
        self.refuses(saved, "no whole safetensors file")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"schema": 2}, "newer awsgd-rl .schema 2"),
            ({"schema": "1"}, "schema"),
            ({"settings": None}, "no settings"),
            ({"added": -1}, "-1 transitions were added"),
            ({"added": "many"}, "'many' transitions"),
            ({"added": 3}, "expected U8 of shape"),
        ],
    )
    def test_a_damaged_header(self, saved: Path, change: dict[str, Any], message: str) -> None:
        self.rewrite(saved, change, {})
        self.refuses(saved, message)

    def rewrite(
        self, path: Path, change: dict[str, Any], tensors: dict[str, torch.Tensor | None]
    ) -> None:
        content = path.read_bytes()
        size = int.from_bytes(content[:8], "little")
        about = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["awsgd_rl_replay"])
        stored = {**load_file(path), **tensors}
        save_file(
            {name: tensor for name, tensor in stored.items() if tensor is not None},
            path,
            {"awsgd_rl_replay": json.dumps({**about, **change})},
        )

    @pytest.mark.parametrize(
        ("name", "tensor", "message"),
        [
            ("priorities", None, "priorities is missing"),
            ("priorities", torch.ones(9, dtype=torch.float64), "priorities is F64"),
            ("priorities", torch.ones(10), "priorities is F32"),
            ("priorities", torch.zeros(10, dtype=torch.float64), "not a positive, finite"),
            ("priorities", torch.full((10,), torch.inf, dtype=torch.float64), "not a positive"),
            ("newest", torch.tensor([0, 1, 2]), "do not fit together"),
            ("newest", torch.tensor([-2, 10, 2]), "do not fit together"),
            ("free", torch.zeros(3, dtype=torch.int32), "do not fit together"),
            ("generator", torch.zeros(3, dtype=torch.uint8), "generator is none"),
            ("aside", torch.zeros(99, 5, dtype=torch.uint8), "aside is U8"),
            ("transitions", torch.zeros(10, 24, dtype=torch.uint8), "do not fit|transitions is"),
            ("transitions", torch.full((10, 24), 255, dtype=torch.uint8), "do not fit|transitions"),
        ],
    )
    def test_damaged_tensors(
        self, saved: Path, name: str, tensor: torch.Tensor | None, message: str
    ) -> None:
        self.rewrite(saved, {}, {name: tensor})
        self.refuses(saved, message)

    @pytest.mark.parametrize("places", [0, 2, 3, 11])
    def test_fewer_places_aside_than_writes_count_on(self, tmp_path: Path, places: int) -> None:
        path, buffer = tmp_path / "replay.safetensors", make()
        buffer.save(path)
        free = torch.arange(min(3, places), places, dtype=torch.int32)
        aside = load_file(path)["aside"][:places]
        self.rewrite(path, {}, {"free": free, "aside": aside})
        self.refuses(path, f"aside is of {places} rows, expected at least 12")

    def test_links_that_leave_the_ring(self, saved: Path) -> None:
        buffer = make()
        begin = buffer._ring.offset("link")
        for link in (10, -50, 2**31 - 1, -(2**31)):
            transitions = load_file(saved)["transitions"]
            transitions[3, begin : begin + 4] = torch.tensor([link], dtype=torch.int32).view(
                torch.uint8
            )
            damaged = saved.with_name("damaged")
            damaged.write_bytes(saved.read_bytes())
            self.rewrite(damaged, {}, {"transitions": transitions})
            self.refuses(damaged, "do not fit together")
