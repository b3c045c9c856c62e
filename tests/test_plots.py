"""Figures: what is drawn is what was given, nothing is kept, and files are whole or not there."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from awsgd_rl import plots
from awsgd_rl.plots_maps import PolicyPanel, policy_maps
from awsgd_rl.statistics import Band, mean_band

EPISODES = np.linspace(100, 1000, 10)


def band(height, width=0.05):
    estimate = np.full(10, height)
    return Band(estimate, estimate - width, estimate + width)


def panel(states=12, title="P"):
    rng = np.random.default_rng(0)
    policy = rng.dirichlet(np.ones(4), size=states)
    return PolicyPanel(title, policy, rng.random(states))


def lines(figure):
    """Return the curves themselves, without the edges of their bands."""
    return [line for line in figure.axes[0].lines if line.get_alpha() is None]


def test_learning_curves_draw_what_is_given():
    curves = {"ours": band(0.9), "theirs": band(0.4)}
    figure = plots.learning_curves(EPISODES, curves, title="Title", subtitle="About")
    axes = figure.axes[0]
    assert [line.get_ydata()[0] for line in lines(figure)] == [0.9, 0.4]
    assert [line.get_color() for line in lines(figure)] == list(plots.PALETTE[:2])
    assert axes.get_ylim() == (0.0, 1.0)
    assert axes.get_xlim() == (100.0, 1000.0)
    assert [text.get_text() for text in axes.texts] == ["theirs", "ours"]
    assert {text.get_text() for text in figure.texts} == {"Title", "About"}


def test_bands_that_are_unknown_are_left_out():
    one_run = {"ours": mean_band(np.full((1, 10), 0.5))}
    figure = plots.learning_curves(EPISODES, one_run)
    (drawn,) = figure.axes[0].collections
    assert not any(len(path.vertices) for path in drawn.get_paths())
    assert np.isfinite(lines(figure)[0].get_ydata()).all()
    figure.canvas.draw()


@pytest.mark.parametrize("count", [1, 2, 7, 9])
def test_labels_never_overlap(count):
    curves = {f"algorithm number {k}": band(0.97 + 0.001 * k) for k in range(count)}
    figure = plots.learning_curves(EPISODES, curves)
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    for i, box in enumerate(boxes):
        assert figure.bbox.y0 <= box.y0
        assert box.y1 <= figure.bbox.y1
        assert box.x1 <= figure.bbox.x1
        assert not any(box.overlaps(other) for other in boxes[:i])


def test_failures_are_drawn_down_to_the_floor():
    figure = plots.failure_curves(EPISODES, {"ours": band(0.01), "never": band(0.0)}, floor=0.001)
    axes = figure.axes[0]
    assert axes.get_yscale() == "log"
    assert axes.get_ylim() == (0.001, 1.0)
    assert [line.get_ydata()[0] for line in lines(figure)] == [0.01, 0.001]
    figure.canvas.draw()


def test_regret_is_drawn_down_to_the_floor():
    nothing = Band(np.full(10, 20.0), np.zeros(10), np.full(10, 40.0))
    figure = plots.regret_curves(EPISODES, {"ours": band(50.0), "other": nothing}, total=1050)
    axes = figure.axes[0]
    assert axes.get_xlim() == (0.0, 1050.0)
    assert axes.get_ylim()[0] == 10.0
    assert [line.get_ydata()[0] for line in lines(figure)] == [50.0, 20.0]
    figure.canvas.draw()
    never = Band(*np.zeros((3, 10)))
    plots.regret_curves(EPISODES, {"ours": never}).canvas.draw()


def test_policy_maps_draw_moves_and_marks():
    policy = np.zeros((6, 4))
    policy[:, 2] = 1.0  # always right
    visits = np.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    figure = policy_maps(
        [PolicyPanel("P", policy, visits), PolicyPanel("Q", policy, visits)],
        columns=3,
        start=0,
        goals=[2],
        traps=[4, 5],
        title="Title",
    )
    left, right, _ = figure.axes
    assert (left.get_title(loc="left"), right.get_title(loc="left")) == ("P", "Q")
    (arrows,) = [drawn for drawn in left.collections if hasattr(drawn, "U")]
    # Only where the policy goes: the lower row is never seen.
    assert arrows.XY.tolist() == [[0, 0], [1, 0], [2, 0]]
    assert (arrows.U > 0).all()
    assert not arrows.V.any()
    marks = {tuple(line.get_xydata()[0]) for line in left.lines if line.get_marker() == "*"}
    assert marks == {(2.0, 0.0)}
    assert left.images[0].get_array().shape == (2, 3)
    figure.canvas.draw()


def test_figures_are_the_same_file_every_time(tmp_path):
    for name in ("first", "second"):
        figure = policy_maps([panel()], columns=4, start=0, goals=[11], traps=[5])
        paths = plots.save_figure(figure, tmp_path, name)
        assert [path.name for path in paths] == [f"{name}.png", f"{name}.svg"]
    for kind in ("png", "svg"):
        first, second = (tmp_path / f"{name}.{kind}" for name in ("first", "second"))
        assert first.read_bytes() == second.read_bytes()
    with Image.open(tmp_path / "first.png") as image:
        assert image.width > 800
        assert np.asarray(image.convert("L")).std() > 5
    assert (tmp_path / "first.svg").read_text(encoding="utf-8").startswith("<?xml")


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    figure = plots.learning_curves(EPISODES, {"ours": band(0.9)})
    (tmp_path / "curve.png").write_bytes(b"before")

    def fail(path, **kwargs):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        plots.save_figure(figure, tmp_path, "curve")
    assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]
    assert (tmp_path / "curve.png").read_bytes() == b"before"


def test_no_global_state():
    code = (
        "import sys, matplotlib\n"
        "before = matplotlib.rcParams.copy()\n"
        "import numpy as np\n"
        "from awsgd_rl import plots\n"
        "from awsgd_rl.statistics import mean_band\n"
        "plots.learning_curves(np.arange(1, 4), {'a': mean_band(np.ones((2, 3)))})\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert 'torch' not in sys.modules\n"
        "assert all(matplotlib.rcParams._get(k) == before._get(k) for k in before)\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="got no curve"):
        plots.learning_curves(EPISODES, {})
    with pytest.raises(ValueError, match="'ours' has 10 points, expected one for each of the 3"):
        plots.regret_curves([1, 2, 3], {"ours": band(0.5)})
    with pytest.raises(ValueError, match="floor must lie inside"):
        plots.failure_curves(EPISODES, {"ours": band(0.5)}, floor=0.0)
    with pytest.raises(ValueError, match="got no panel"):
        policy_maps([], columns=3, start=0, goals=[], traps=[])
    with pytest.raises(ValueError, match="S a multiple of 5"):
        policy_maps([panel()], columns=5, start=0, goals=[], traps=[])
    with pytest.raises(ValueError, match="make it first"):
        plots.save_figure(
            plots.regret_curves(EPISODES, {"ours": band(1.0)}), tmp_path / "absent", "x"
        )
