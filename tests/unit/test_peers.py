"""Processes that share work: each item is done once, all know all, and none waits for one that has failed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import HashStore

from srpo.episode import EpisodeSpec
from srpo.errors import FINAL, FinalExit
from srpo.rollouts.journal import Journal
from srpo.rollouts.pool import _EpisodeQueue
from srpo.runtime.distributed import make_accelerator
from srpo.runtime.peers import ALONE, Peers, joined_peers, own_device
from srpo.runtime.preemption import Preempted
from support.sharing import start, together


def test_each_item_is_one_process_s() -> None:
    items = list(range(40))
    shares = together(lambda peers: [item for item in items if peers.claim(item)], 3)
    assert sorted(item for share in shares for item in share) == items
    # Who has an item may ask again, as for an episode that has to be tried again.
    asked = together(lambda peers: [peers.claim("x"), peers.claim("x")], 3)
    assert sorted(asked) == [[False, False], [False, False], [True, True]]
    assert ALONE.claim("x") and ALONE.claim("x")


def test_each_episode_is_one_process_s() -> None:
    """They begin in different tasks; who has run out of its own takes what the others have not begun."""
    specs = [EpisodeSpec("libero_goal", task, state, state, 0.0) for task in range(4) for state in range(3)]

    def take(queue: _EpisodeQueue, count: int) -> list[EpisodeSpec]:
        return [spec for _ in range(count) if (spec := queue.take({0}, set())) is not None]

    store = HashStore()
    slow, fast = (_EpisodeQueue(specs, {}, Peers(rank, 2, store)) for rank in range(2))
    assert take(slow, 1) == specs[:1] and take(fast, 1) == specs[1:2]  # of the task that is loaded
    assert take(slow, 3) == [specs[2], *specs[3:5]] and take(fast, 3) == specs[6:9]
    assert take(fast, 9) == [*specs[9:], specs[5]] and take(slow, 1) == []


def test_all_know_what_each_has_said() -> None:
    def talk(peers: Peers) -> tuple[list[Any], list[Any]]:
        first = peers.gather([{"rank": peers.rank, "value": 0.1 + 0.2, "none": None}] * peers.rank)
        return first, peers.gather(["x" * 5_000_000] if peers.is_first else [])

    expected = [{"rank": rank, "value": 0.1 + 0.2, "none": None} for rank in (1, 2, 2)]
    assert together(talk, 3) == [(expected, ["x" * 5_000_000])] * 3
    assert ALONE.gather([1, 2]) == [1, 2]


def test_who_waits_for_a_process_that_fails_ends() -> None:
    def work(peers: Peers) -> str:
        if peers.rank == 1:
            peers.fail()
            return "failed"
        with pytest.raises(SystemExit) as error:
            peers.gather([])
        with pytest.raises(SystemExit, match=r"process 1 of 3, counted from 0, ended with an error"):
            peers.claim("x")
        return str(error.value)

    first, second, third = together(work, 3)
    assert second == "failed" and first == third and "process 1 of 3" in first


def test_a_journal_of_several_processes_goes_on_in_any_number(tmp_path: Path) -> None:
    def work(peers: Peers) -> list[dict[str, Any]]:
        journal = Journal(tmp_path, "run", peers)
        journal.add({"number": 10 * len(journal.rows) + peers.rank, "status": "success"})
        if peers.rank == 1:
            journal.add({"number": 99, "status": "infra_error"})
        journal.share()
        return journal.rows

    def numbers(rows: list[dict[str, Any]]) -> list[int]:
        return sorted(row["number"] for row in rows)

    def files() -> set[str]:
        return {file.name for file in tmp_path.glob("*.jsonl")}

    three = together(work, 3)
    assert numbers(three[0]) == [0, 1, 2, 99] and three[0] == three[1] == three[2]
    assert files() == {"rows.jsonl", "rows-1.jsonl", "rows-2.jsonl"}
    # Killed in the midst of a line.
    torn = tmp_path / "rows-2.jsonl"
    torn.write_text(torn.read_text() + '{"number": 3, "sta')
    two = together(work, 2)
    assert numbers(two[0]) == [0, 1, 2, 30, 31, 99] and two[0] == two[1]
    assert numbers(Journal(tmp_path, "run").rows) == [0, 1, 2, 30, 31]
    assert files() == {"rows.jsonl"}
    assert numbers(Journal(tmp_path, "run", usable=lambda row: row["number"] > 1).rows) == [2, 30, 31]
    together(work, 3)
    assert Journal(tmp_path, "other").rows == [] and files() == set()


def test_without_an_address_the_processes_cannot_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(FinalExit, match=r"WORLD_SIZE is 2, but: .*MASTER_ADDR expected.*docs/hpc\.md"):
        joined_peers().__enter__()
    monkeypatch.setenv("WORLD_SIZE", "1")
    with joined_peers() as peers:
        assert peers is ALONE


def test_a_gpu_that_pytorch_cannot_use_is_not_replaced_by_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("SLURM_GPUS_ON_NODE", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    assert own_device() == torch.device("cpu")
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "2")
    for begin in (own_device, make_accelerator):
        with pytest.raises(FinalExit, match=r"gave this job 2 GPU .*srpo doctor"):
            begin()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert own_device() == torch.device("cpu")


@pytest.mark.parametrize(
    ("how", "codes", "told"),
    [
        ("well", [0, 0], "all is written"),
        ("error", [1, FINAL], "error: process 1 of 2, counted from 0, ended with an error"),
        ("killed", [-signal.SIGKILL, 1], "error: the first process has ended"),
    ],
)
def test_processes_without_a_launcher_end_together(
    how: str, codes: list[int], told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    def work(peers: Peers) -> None:
        assert peers.gather([peers.rank]) == [0, 1]
        if how == "killed" and peers.is_first:
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "error" and not peers.is_first:
            raise FinalExit("error: no policy there")
        peers.gather([])
        if peers.is_first:
            time.sleep(0.5)
            print("all is written", flush=True)

    processes = start(work, 2)
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == codes
    output = "".join(capfd.readouterr())
    assert told in output and "Traceback" not in output
    assert ("error: no policy there" in output) == (how == "error")


def test_a_round_s_items_are_told_from_those_of_the_one_before() -> None:
    store = HashStore()
    first, second = (Peers(rank, 2, store) for rank in range(2))
    assert first.claim("x") and not second.claim("x")
    for peers in (first, second):
        peers.start_round()
    assert second.claim("x") and not first.claim("x")


def test_a_process_runs_the_others_episodes_when_its_own_are_begun() -> None:
    specs = [EpisodeSpec("libero_goal", task, state, state, 0.0) for task in range(2) for state in range(4)]
    store = HashStore()
    queues = [
        _EpisodeQueue(specs[rank::2], {}, Peers(rank, 2, store), others=specs[1 - rank :: 2])
        for rank in range(2)
    ]
    taken = [queues[0].take({0}, set()) for _ in range(5)]
    assert set(taken[:4]) == set(specs[::2]) and taken[4] in specs[1::2]
    left = [spec for _ in specs if (spec := queues[1].take(set(), set())) is not None]
    assert {*taken, *left} == set(specs) and len(left) == 3


def test_the_others_of_a_preempted_process_are_preempted_too() -> None:
    def work(peers: Peers) -> int:
        if peers.is_first:
            peers.fail(preempted=True)
            return 0
        with pytest.raises(Preempted) as end:
            peers.gather([])
        return int(str(end.value.code))

    assert together(work, 2) == [0, 75]
