"""For the tests with real simulators."""

from pathlib import Path

import pytest

from srpo.policies.checkpoints import save_policy
from support.sweeping import sweeping_policy


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a policy that turns on the stove in some episodes."""
    folder = tmp_path_factory.mktemp("policy") / "policy"
    save_policy(sweeping_policy(), folder)
    return folder
