"""Action tokens against OpenVLA's arithmetic."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from srpo.policies import action_tokens

STATISTICS = {
    "q01": [-0.5, -1, 0, -0.1, -0.2, -0.3, 0],
    "q99": [1, 1, 0.5, 0.1, 0.2, 0.3, 1],
    "mask": [True] * 6 + [False],
}


def test_golden_tokens() -> None:
    # Edges are -1 + 2k/255. Token k covers [edge k, edge k + 1); only +1 itself is token 255.
    values = np.array([-1.0, -1 + 2 / 255 - 1e-9, -1 + 2 / 255 + 1e-9, 0.0, 1 - 1e-9, 1.0, -7.0, 7.0])
    np.testing.assert_array_equal(action_tokens.encode(values), [0, 0, 1, 127, 254, 255, 0, 255])
    # The centre of bin 0 is -1 + 1/255; of bin 254, 1 - 1/255, which token 255 shares.
    centres = action_tokens.decode(np.array([0, 127, 254, 255]))
    np.testing.assert_allclose(centres, [-254 / 255, 0, 254 / 255, 254 / 255], atol=1e-12)


def test_the_published_id_arithmetic() -> None:
    """OpenVLA: id = 32000 - digitize, and back centres[clip(32000 - id - 1, 0, 254)]."""
    values = np.linspace(-1, 1, 1001)
    ids = 32000 - np.digitize(values, np.linspace(-1, 1, 256))
    np.testing.assert_array_equal(31999 - action_tokens.encode(values), ids)
    edges = np.linspace(-1, 1, 256)
    centres = (edges[:-1] + edges[1:]) / 2
    np.testing.assert_array_equal(
        action_tokens.decode(action_tokens.encode(values)), centres[np.clip(32000 - ids - 1, 0, 254)]
    )


@given(hnp.arrays(float, (5, 7), elements=st.floats(-1, 1)))
def test_round_trip_is_within_half_a_bin(values: np.ndarray) -> None:
    decoded = action_tokens.decode(action_tokens.encode(values))
    assert np.abs(decoded - values).max() <= 1 / 255 + 1e-12


@given(hnp.arrays(float, (4, 7), elements=st.floats(0, 1)))
def test_unnormalise_inverts_normalise(share: np.ndarray) -> None:
    low, high = np.array(STATISTICS["q01"]), np.array(STATISTICS["q99"])
    values = low + share * (high - low)
    back = action_tokens.unnormalise(action_tokens.normalise(values, STATISTICS), STATISTICS)
    np.testing.assert_allclose(back, values, atol=1e-6)


def test_normalise_leaves_the_gripper_and_clips_the_rest() -> None:
    scaled = action_tokens.normalise(np.array([2.0, -3, 0.25, 0, 0, 0, 0.7]), STATISTICS)
    np.testing.assert_allclose(scaled, [1, -1, 0, 0, 0, 0, 0.7], atol=1e-6)


def test_gripper_conventions_round_trip() -> None:
    libero = np.array([[0.1, 0, 0, 0, 0, 0, -1.0], [0.1, 0, 0, 0, 0, 0, 1.0]])
    model = action_tokens.from_libero(libero)
    np.testing.assert_array_equal(model[:, 6], [1, 0])  # the model: 1 opens, 0 closes
    np.testing.assert_array_equal(action_tokens.to_libero(model), libero)


def test_statistics_are_quantiles() -> None:
    actions = np.linspace(0, 1, 101)[:, None] * np.ones(7)
    statistics = action_tokens.action_statistics(actions)
    np.testing.assert_allclose(statistics["q01"], 0.01)
    np.testing.assert_allclose(statistics["q99"], 0.99)
    assert statistics["mask"] == [True] * 6 + [False]
