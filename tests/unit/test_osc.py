"""The controller's compiled parts against robosuite's and numba's."""

from __future__ import annotations

import numba
import numpy as np
import pytest

from srpo.envs.osc import _Kinematics, _operational_space, _pinv

from robosuite.utils.control_utils import opspace_matrices  # isort: skip  (after it is told not to log)


@numba.njit
def pinv(matrix: np.ndarray) -> np.ndarray:
    return np.linalg.pinv(matrix)


@pytest.mark.parametrize("size", [3, 6])
def test_the_pseudo_inverse_is_numbas(size: int) -> None:
    rng = np.random.default_rng(size)
    for case in range(500):
        rows = rng.normal(size=(size, 7)) * 10 ** rng.uniform(-3, 3)
        if case % 10 == 0:
            rows[-1] = rows[0]  # a singular matrix
        matrix = np.ascontiguousarray(rows @ rows.T)
        np.testing.assert_array_equal(_pinv(matrix), pinv(matrix))


def test_operational_space_is_robosuites() -> None:
    rng = np.random.default_rng(0)
    nothing, frame = np.zeros(7), np.eye(3)
    for _ in range(100):
        jacobian, root = np.asfortranarray(rng.normal(size=(6, 7))), rng.normal(size=(7, 7))
        mass = np.asfortranarray(root @ root.T + np.eye(7))
        pos, ori = np.asfortranarray(jacobian[:3]), np.asfortranarray(jacobian[3:])
        arm = _Kinematics(
            nothing[:3], frame, nothing[:3], nothing[:3], mass, jacobian, pos, ori, nothing, nothing
        )
        for ours, theirs in zip(
            _operational_space(arm), opspace_matrices(mass, jacobian, pos, ori)[1:], strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)
