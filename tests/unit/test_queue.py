"""Which jobs Slurm will never start. The real Slurm: tests/integration/slurm/test_limits.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from srpo.cluster.queue import stuck_jobs

SQUEUE = """#!/bin/sh
cat <<'END'
1|PartitionTimeLimit|rule_train_wildcards_libero_goal_grpo_0|{here}
2|Priority|rule_train|{here}
3|Resources|rule_train|{here}
4|QOSMaxGRESPerUser|rule_train|{here}
5|AssocGrpCpuLimit|rule_train|{here}
6|QOSMaxGRESPerJob|rule_evaluate|{here}
7|AccountNotAllowed|rule_sft|{here}
8|JobHeldUser|rule_sft|{here}
9|PartitionTimeLimit|rule_train|/elsewhere
10|QOSGrpNodeLimit|rule_train|{here}
11|PartitionDown|rule_train|{here}
12|PartitionNodeLimit|rule_train|{here}
END
"""


def test_reasons_that_do_not_go_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And jobs that were submitted elsewhere are somebody else's business."""
    (tmp_path / "squeue").write_text(SQUEUE.format(here=tmp_path))
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = stuck_jobs(tmp_path)
    assert [job.job for job in found] == ["1", "6", "7", "8", "12"]
    assert str(found[0]).startswith(
        "Slurm job 1 (rule_train_wildcards_libero_goal_grpo_0) will never start: PartitionTimeLimit: it asks "
        "for more minutes than are allowed (resources: runtime=...)"
    )
    assert "set-resources" in str(found[1]) and "slurm_account" in str(found[2])
    assert "scontrol release" in str(found[3])


def test_without_slurm_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert stuck_jobs(tmp_path) == []
