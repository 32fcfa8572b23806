"""The protocol's certificate: what differs from the official stacks is told in words."""

import re
from dataclasses import replace

import numpy as np
import pytest

from srpo.envs.certificate import BLOCK, KNOWN, TASKS, Measured, digest, known, verdicts

GOOD = known()


def changed(**changes: object) -> dict[tuple[str, int], Measured]:
    """The known values, with others of one task."""
    return {**GOOD, TASKS[2]: replace(GOOD[TASKS[2]], **changes)}


def test_known_values_are_of_all_suites() -> None:
    assert {suite for suite, _ in GOOD} == {"libero_spatial", "libero_object", "libero_goal", "libero_10"}
    assert len(GOOD) == 8 and ("libero_spatial", 5) in GOOD
    assert '"mujoco": "3.3.2"' in KNOWN.read_text()


def test_the_same_is_the_same() -> None:
    found = verdicts(GOOD, GOOD)
    assert all(verdict.same for verdict in found)
    assert "bit for bit" in found[0].what


def test_values_come_back_from_json() -> None:
    one = GOOD[TASKS[0]]
    again = Measured.from_json(one.as_json())
    np.testing.assert_array_equal(again.settled, one.settled)
    np.testing.assert_array_equal(again.blocks, one.blocks)
    assert digest({TASKS[0]: again}) == digest({TASKS[0]: one})


def test_blocks_are_means_of_the_picture() -> None:
    picture = np.zeros((256, 256, 3), np.uint8)
    picture[:BLOCK, BLOCK : 2 * BLOCK, 2] = 10
    picture[0, BLOCK, 2] += 64
    blocks = Measured.of(np.zeros(1), np.zeros(8), picture).blocks
    assert blocks[0, 1, 2] == 10 + 64 / BLOCK**2
    assert blocks.sum() == blocks[0, 1, 2]


OBJECT = GOOD[TASKS[2]]
SHIFTED = OBJECT.settled + 0.02 * (np.arange(len(OBJECT.settled)) == 9)


@pytest.mark.parametrize(
    ("changes", "number", "words"),
    [
        (
            {"picture": "", "blocks": OBJECT.blocks - 36},
            0,
            "not those the released checkpoints saw: parts of task 8 of libero_object differ by 36 levels",
        ),
        ({"settled": SHIFTED}, 1, r"do not settle .*: task 8 of libero_object differs by 0\.020 m"),
        ({"moved": OBJECT.moved + 1e-3 * np.eye(8)[0]}, 2, "controller: .* not as in the official"),
        ({"moved": OBJECT.moved * [1, 1, 1, -1, -1, -1, 1, 1]}, 3, "quaternion convention: .* not as"),
        ({"moved": OBJECT.moved * [*[1] * 6, -1, -1]}, 4, "gripper convention: .* not as"),
    ],
)
def test_a_difference_is_told_and_is_the_only_one(changes: dict, number: int, words: str) -> None:
    found = verdicts(changed(**changes), GOOD)
    assert [verdict.same for verdict in found] == [place != number for place in range(5)]
    assert re.search(words, found[number].what)
    assert digest(changed(**changes)) != digest(GOOD)


def test_an_opengl_drivers_rounding_is_no_difference() -> None:
    found = verdicts(changed(picture="", blocks=OBJECT.blocks + 0.4), GOOD)
    assert found[0].same and "but for the OpenGL driver (0.4 levels" in found[0].what
