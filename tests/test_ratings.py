"""A ratings file: what is read, and which row is at fault."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from awsgd_rl.ratings import Ratings, read_ratings


def write(folder: Path, text: str) -> Path:
    path = folder / "ratings.csv"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "text",
    [
        "ann,x,3\nbob,y,4.5\nann,y,1\n",
        "user,item,rating\nann,x,3\nbob,y,4.5\n\nann,y,1\n",
        "ann\tx\t3\t999\nbob\ty\t4.5\t998\nann\ty\t1\t997",
        "ann::x::3::99\nbob::y::4.5::98\nann::y::1::97\n",
        '"ann";"x";3\n"bob";"y";4.5\nann;y;1\n',
        "\ufeffuserId,movieId,rating,timestamp\r\nann,x,3,1\r\nbob,y,4.5,1\r\nann,y,1,1\r\n",
    ],
)
def test_the_usual_forms_are_read(tmp_path: Path, text: str) -> None:
    ratings = read_ratings(write(tmp_path, text))
    assert ratings.users == ("ann", "bob")
    assert ratings.items == ("x", "y")
    assert ratings.shape == (2, 2)
    assert len(ratings) == 3
    np.testing.assert_array_equal(ratings.row, [0, 1, 0])
    np.testing.assert_array_equal(ratings.column, [0, 1, 1])
    np.testing.assert_array_equal(ratings.value, np.float32([3, 4.5, 1]))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,x,3\nb,y\n", r"row 2: got \['b', 'y'\], expected user, item and rating"),
        ("a,x,3\n\nb,y,good\n", "row 3: the rating is 'good', expected a finite number"),
        ("a,x,3\nb,y,nan\n", "row 2: the rating is 'nan'"),
        ("a,x,inf\n", "row 1: the rating is 'inf'"),
        ("a,x,3\n,y,1\n", "row 2: got"),
        ("u,i,r\na,x,3\na,x,4\n", "row 3: user 'a' rates item 'x' again, after row 2"),
        ("", "has no ratings"),
        ("user,item,rating\n", "has no ratings"),
    ],
)
def test_the_row_at_fault_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_ratings(write(tmp_path, text))


def test_a_header_can_be_told(tmp_path: Path) -> None:
    path = write(tmp_path, "1,2,3\n4,5,6\n")
    assert len(read_ratings(path)) == 2
    assert len(read_ratings(path, header=True)) == 1
    with pytest.raises(ValueError, match="row 1"):
        read_ratings(write(tmp_path, "u,i,r\n1,2,3\n"), header=False)
    with pytest.raises(ValueError, match="cannot be read"):
        read_ratings(tmp_path / "no.csv")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([], [], []), "at least 1"),
        (([0], [0, 1], [1.0]), "column has shape"),
        (([0, 1], [0], [1.0]), "row and value have shapes"),
        (([0, -1], [0, 0], [1.0, 2.0]), r"row\[1\] is -1, expected 0"),
        (([0.5], [0], [1.0]), "expected integers"),
        (([0, 0], [0, 5], [1.0, 1.0], (2, 5)), r"column\[1\] is 5, expected 0 to 4"),
        (([0, 1], [0, 0], [1.0, np.inf]), r"value\[1\] is inf"),
        (([0, 1, 0], [2, 0, 2], [1.0, 1.0, 2.0]), "entries 0 and 2 are both row 0, column 2"),
    ],
)
def test_bad_triples_are_refused(arguments: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Ratings.of(*arguments)


def test_a_matrix_with_gaps() -> None:
    ratings = Ratings.from_matrix([[1.0, np.nan], [np.nan, 2.0], [3.0, np.nan]])
    assert ratings.shape == (3, 2)
    np.testing.assert_array_equal(ratings.row, [0, 1, 2])
    np.testing.assert_array_equal(ratings.value, [1, 2, 3])
    with pytest.raises(ValueError, match="shape"):
        Ratings.from_matrix([1.0, 2.0])
