import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from awsgd_rl.envs import max_traps, parse_layout, random_layout
from awsgd_rl.envs.layouts import Layout

PINNED = ("SFFFHF", "FHFFFF", "FFFFFF", "FFFHHF", "HHFFFF", "FFFHHG")


def has_way(layout: Layout) -> bool:
    """Flood the free cells, the plain way."""
    free = np.array([[letter != "H" for letter in line] for line in layout.desc])
    reached = np.zeros_like(free)
    reached.flat[layout.start] = True
    for _ in range(free.size):
        more = reached.copy()
        more[1:] |= reached[:-1]
        more[:-1] |= reached[1:]
        more[:, 1:] |= reached[:, :-1]
        more[:, :-1] |= reached[:, 1:]
        more &= free
        if (more == reached).all():
            break
        reached = more
    return bool(reached.flat[layout.goal_cells].any())


def test_one_layout_is_pinned() -> None:
    assert random_layout(6, 6, 8, seed=7).desc == PINNED


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(2, 9),
    columns=st.integers(2, 9),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_every_number_of_traps_up_to_the_maximum_leaves_a_way(
    rows: int, columns: int, share: float, seed: int
) -> None:
    traps = round(share * max_traps(rows, columns))
    layout = random_layout(rows, columns, traps, seed)
    text = "".join(layout.desc)
    assert (layout.rows, layout.columns) == (rows, columns)
    assert text[0] == "S"
    assert text[-1] == "G"
    assert text.count("H") == traps == layout.trap_cells.size
    assert has_way(layout)
    assert random_layout(rows, columns, traps, seed).desc == layout.desc


def test_no_map_has_more_traps_than_the_maximum() -> None:
    # By trying them all: every 3x3 map with one trap more is cut through.
    most = max_traps(3, 3)
    for traps in range(1 << 7):
        letters = ["H" if traps >> cell & 1 else "F" for cell in range(7)]
        text = "S" + "".join(letters) + "G"
        if text.count("H") == most + 1:
            with pytest.raises(ValueError, match="no way"):
                parse_layout([text[0:3], text[3:6], text[6:9]])


@pytest.mark.parametrize("seed", range(3))
def test_the_largest_grid_is_quick_at_the_maximum(seed: int) -> None:
    layout = random_layout(80, 80, max_traps(80, 80), seed)
    assert layout.trap_cells.size == 79**2
    assert has_way(layout)


def test_traps_are_uniform_when_few() -> None:
    # 3x3 with one trap: each of the 7 inner cells alike, all maps have a way.
    counts = np.zeros(9)
    n = 1400
    for seed in range(n):
        counts[random_layout(3, 3, 1, seed).trap_cells] += 1
    assert counts[0] == counts[8] == 0
    error = np.sqrt(n * (1 / 7) * (6 / 7))
    assert np.all(np.abs(counts[1:8] - n / 7) < 5 * error)


def test_monotone_ways_are_uniform() -> None:
    # 3x3 with 4 traps, the maximum: the 6 monotone ways, whichever stage finds them.
    counts: dict[tuple[str, ...], int] = {}
    n = 1200
    for seed in range(n):
        desc = random_layout(3, 3, 4, seed).desc
        counts[desc] = counts.get(desc, 0) + 1
    error = np.sqrt(n * (1 / 6) * (5 / 6))
    assert len(counts) == 6
    assert all(abs(count - n / 6) < 5 * error for count in counts.values())


def test_letters() -> None:
    layout = parse_layout(["S.T", "H.G"])
    assert layout.desc == ("SFH", "HFG")
    assert layout.start == 0
    np.testing.assert_array_equal(layout.trap_cells, [2, 3])
    np.testing.assert_array_equal(layout.goal_cells, [5])


def test_several_goals_and_rectangles() -> None:
    layout = parse_layout(["GHS", "FFF", "FGH", "HHG"])
    assert (layout.rows, layout.columns, layout.start) == (4, 3, 2)
    np.testing.assert_array_equal(layout.goal_cells, [0, 7, 11])


@pytest.mark.parametrize(
    ("desc", "message"),
    [
        (["SFF", "FG"], "rows of .2, 3. letters"),
        (["SX", "FG"], "unknown letters .'X'."),
        (["FF", "FG"], "0 starts"),
        (["SS", "FG"], "2 starts"),
        (["SF", "FF"], "no goal"),
        (["SH", "HG"], "no way"),
        ([], "empty"),
        ([""], "empty"),
        ("SFG", "one string a row"),
        ([b"SG"], "one string a row"),
    ],
)
def test_bad_maps(desc: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_layout(desc)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 5, 0, 0), "rows is 1, expected"),
        ((5, 1, 0, 0), "columns is 1, expected"),
        ((5, 5, 17, 0), "at most 16"),
        ((5, 5, -1, 0), "traps is -1"),
        ((5, 5, 1.5, 0), "traps is 1.5"),
        ((5, 5, 1, -1), "layout_seed is -1"),
        ((5, 5, True, 0), "traps is True"),
    ],
)
def test_bad_numbers(arguments: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        random_layout(*arguments)
    assert "\n" not in str(caught.value)
