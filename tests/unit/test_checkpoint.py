"""Resumable state: whole, verified, and of the right run."""

import errno
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from srpo.episode import Episode, EpisodeSpec
from srpo.errors import InputError
from srpo.policies.weights import write_tensors
from srpo.rollouts import episode_store
from srpo.rollouts.episode_store import EpisodeStore
from srpo.runtime import checkpoint, distributed
from srpo.runtime.checkpoint import Checkpoints
from srpo.runtime.files import DiskFullError
from srpo.runtime.manifest import fingerprint, sha256
from srpo.runtime.preemption import PREEMPTED, preemptible
from support.small_disk import enlarge, small_disk


def trained(steps: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimiser.zero_grad()
        model(torch.ones(1, 3)).square().sum().backward()
        optimiser.step()
    return model, optimiser


def saved(scratch: Path, *steps: int) -> Checkpoints:
    checkpoints = Checkpoints(scratch, "run")
    for step in steps:
        checkpoints.save(step, *trained(step), {"rows": list(range(step))})
    checkpoints.wait()
    return checkpoints


def test_resuming_gives_back_everything(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3)
    model, optimiser = trained(0)
    assert Checkpoints(tmp_path, "run").restore(model, optimiser) == (3, {"rows": [0, 1, 2]})
    expected, expected_optimiser = trained(3)
    assert torch.equal(model.weight, expected.weight)
    for mine, theirs in zip(
        optimiser.state_dict()["state"].values(),
        expected_optimiser.state_dict()["state"].values(),
        strict=True,
    ):
        assert all(torch.equal(mine[name], theirs[name]) for name in ("exp_avg", "exp_avg_sq", "step"))
    assert len(list(tmp_path.glob("checkpoint-*"))) == 2  # the last two are kept


def test_each_tensor_is_one_process_s_in_whatever_order_moments_are_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Processes have other seeds of string hashes, so a resumed one once held them in an order of its own.
    written: list[str] = []
    for process in range(2):
        model, optimiser = trained(1)
        if process:
            for parameter, moments in optimiser.state.items():
                first, *rest = moments.items()
                optimiser.state[parameter] = dict([*rest, first])
        state = checkpoint._training_state(model, optimiser)
        monkeypatch.setattr(checkpoint, "place", lambda process=process: (process, 2))
        written += checkpoint._own_part(state)
    assert sorted(written) == sorted(state)


def test_a_checkpoint_that_lacks_moments_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    (part,) = tmp_path.glob("checkpoint-*/part-*.safetensors")
    whole = load_file(part)
    with safe_open(part, "pt") as file:
        metadata = file.metadata()
    name = next(key for key in whole if key.startswith("step/"))
    save_file({key: tensor for key, tensor in whole.items() if key != name}, part, metadata)
    with pytest.raises(ValueError, match=r"some moments are missing"):
        checkpoint._read(part.parent, *trained(0))


@pytest.mark.parametrize("damage", ["truncate", "remove", "progress", "no marker"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path, 1, 2)
    newest = tmp_path / "checkpoint-00000002"
    weights = newest / "part-00000-of-00001.safetensors"
    match damage:
        case "truncate":
            weights.write_bytes(weights.read_bytes()[:-4])
        case "remove":
            weights.unlink()
        case "progress":
            (newest / "progress.json").write_text('{"rows": []}')
        case _:
            weights.with_suffix(".json").unlink()
    model, optimiser = trained(0)
    assert Checkpoints(tmp_path, "run").restore(model, optimiser) == (1, {"rows": [0]})
    assert torch.equal(model.weight, trained(1)[0].weight)
    # Without its marker it was never whole, which needs no message.
    assert ("damaged; trying the one before" in capsys.readouterr().out) == (damage != "no marker")


def test_a_half_written_checkpoint_is_not_one(tmp_path: Path) -> None:
    """What went wrong in writing it is raised where it is waited for."""
    checkpoints = saved(tmp_path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # as if the disk were full
    try:
        checkpoints.save(2, *trained(2), {})
        with pytest.raises(SafetensorError, match="File too large"):
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in (tmp_path / "checkpoint-00000002").iterdir()] == ["progress.json"]
    assert Checkpoints(tmp_path, "run").newest == 1


def test_a_full_disk_is_told_and_the_checkpoint_before_serves(tmp_path: Path) -> None:
    """The folder, what is needed, what is free, and what happens next; the half-written one makes room."""
    scratch = tmp_path / "disk" / "scratch"
    rows = "x" * 30_000  # the training state of this model is too small to fill a disk
    with small_disk(tmp_path / "disk", 110_000):
        checkpoints = Checkpoints(scratch, "run")
        for step in (1, 2):
            checkpoints.save(step, *trained(step), {"rows": rows})
        message = (
            rf"^{scratch}/checkpoint-00000003: no room left on its disk, .*: 0\.0 MB are to be written, "
            r"0\.\d MB are free\. Make room and start again: a training goes on from its last checkpoint$"
        )
        with pytest.raises(DiskFullError, match=message):
            checkpoints.save(3, *trained(3), {"rows": rows})
            checkpoints.wait()
        assert (scratch / "checkpoint-00000003").exists()
        model, optimiser = trained(0)
        checkpoints = Checkpoints(scratch, "run")
        assert checkpoints.restore(model, optimiser) == (2, {"rows": rows})
        assert not (scratch / "checkpoint-00000003").exists()
        assert torch.equal(model.weight, trained(2)[0].weight)
        enlarge(tmp_path / "disk", 200_000)
        checkpoints.save(3, *trained(3), {"rows": rows})
        checkpoints.wait()
        assert checkpoints.newest == 3


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_in_the_background_is_told_when_it_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """As safetensors tells it, without a number of its own."""

    def full(*_: object, **__: object) -> None:
        raise SafetensorError(
            f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})"
        )

    checkpoints = saved(tmp_path, 1)
    monkeypatch.setattr(checkpoint, "save_file", full)
    checkpoints.save(2, *trained(2), {})
    with pytest.raises(DiskFullError, match="checkpoint-00000002: no room left"):
        checkpoints.save(3, *trained(3), {})
    assert checkpoints.newest == 1


def in_processes(processes: int, store: Path, work: Callable[[], None]) -> list[int | None]:
    """Exit codes of so many processes of one group, in each of which `work` ran."""

    def run(process: int) -> None:
        dist.init_process_group(
            "gloo", init_method=f"file://{store}-{processes}", rank=process, world_size=processes
        )
        work()
        dist.destroy_process_group()

    context = multiprocessing.get_context("fork")  # they need not import anything
    started = [context.Process(target=run, args=(process,)) for process in range(processes)]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
        process.kill()
    return [process.exitcode for process in started]


def spread(steps: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model after so many steps, under FSDP if there is a group; of some tensors processes have nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 1))
    if dist.is_initialized():
        fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimiser.zero_grad()
        model(torch.ones(1, 7)).square().sum().backward()
        optimiser.step()
    return model, optimiser


def whole(model: nn.Module, optimiser: torch.optim.Optimizer) -> list[torch.Tensor]:
    """All weights and moments."""
    moments = [
        state[name] for state in optimiser.state.values() for name in ("exp_avg", "exp_avg_sq", "step")
    ]
    return [distributed.full_tensor(tensor.detach()) for tensor in [*model.parameters(), *moments]]


def test_any_number_of_processes_reads_what_another_wrote(tmp_path: Path) -> None:
    def save() -> None:
        Checkpoints(tmp_path / "run", "run", writer=dist.get_rank() == 0).save(2, *spread(2), {"rows": []})

    def restore() -> None:
        model, optimiser = spread(0)
        writer = not dist.is_initialized()
        assert Checkpoints(tmp_path / "run", "run", writer=writer).restore(model, optimiser) == (
            2,
            {"rows": []},
        )
        for mine, theirs in zip(whole(model, optimiser), expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)

    expected = whole(*spread(2))
    assert in_processes(2, tmp_path / "store", save) == [0, 0]
    assert len(list((tmp_path / "run/checkpoint-00000002").glob("*.safetensors"))) == 2
    assert in_processes(3, tmp_path / "store", restore) == [0, 0, 0]
    restore()


def test_weights_are_written_shard_by_shard_as_safetensors_writes_whole_ones(tmp_path: Path) -> None:
    """The same bytes, from any number of processes, some of which have no rows of a tensor."""

    def write() -> None:
        folder = tmp_path / str(distributed.place()[1])
        folder.mkdir(exist_ok=True)
        weights = spread(0)[0].state_dict()
        half = {"scalar": torch.tensor(3.0), "half": torch.arange(3).bfloat16(), "empty": torch.zeros(0, 2)}
        write_tensors({**half, **weights}, folder)

    write()
    for number in (2, 3):
        assert in_processes(number, tmp_path / "store", write) == [0] * number
    expected = load_file(tmp_path / "1/model.safetensors")
    save_file(expected, tmp_path / "expected", metadata={"format": "pt"})
    for number in (1, 2, 3):
        assert (tmp_path / f"{number}/model.safetensors").read_bytes() == (tmp_path / "expected").read_bytes()


def test_with_one_process_killed_in_a_save_the_checkpoint_before_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path) -> str:
        if dist.get_rank() == 1 and path.parent.name == "checkpoint-00000002":
            os.kill(os.getpid(), signal.SIGKILL)  # its part is written, its marker is not
        return sha256(path)

    def save() -> None:
        checkpoints = Checkpoints(tmp_path / "run", "run", writer=dist.get_rank() == 0)
        for step in (1, 2):
            checkpoints.save(step, *spread(step), {})
        checkpoints.wait()
        os._exit(0)  # the group cannot be ended in order

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "sha256", killed)
        assert in_processes(2, tmp_path / "store", save) == [0, -signal.SIGKILL]
    assert len(list((tmp_path / "run/checkpoint-00000002").glob("*.safetensors"))) == 2
    model, optimiser = spread(0)
    assert Checkpoints(tmp_path / "run", "run").restore(model, optimiser) == (1, {})
    for mine, theirs in zip(whole(model, optimiser), whole(*spread(1)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)


def test_another_runs_state_is_discarded_and_said_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path, 1)
    assert Checkpoints(tmp_path, "other").restore(*trained(0)) is None
    assert "another run's state" in capsys.readouterr().out


def test_a_folder_that_is_somebody_elses_is_not_emptied(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match=r"has files that are not this program's \(it has no run\.json\)"):
        Checkpoints(tmp_path, "run")
    assert (tmp_path / "thesis.tex").exists()
    (tmp_path / "empty").mkdir()
    assert Checkpoints(tmp_path / "empty", "run").restore(*trained(0)) is None


def test_of_a_finished_run_its_last_checkpoint_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For the same run by the same code, which is done at once; no other gets it."""
    checkpoints = saved(tmp_path, 1, 2)
    EpisodeStore(tmp_path).add(3, some_episode())
    (tmp_path / "metrics.csv").touch()
    for _ in range(2):  # it may be finished again
        checkpoints.mark_finished()
        assert {p.name for p in tmp_path.iterdir()} == {"run.json", "checkpoint-00000002"}
        checkpoints = Checkpoints(tmp_path, "run")
        assert "this run is finished" in capsys.readouterr().out
        assert checkpoints.restore(*trained(0)) == (2, {"rows": [0, 1]})
    assert Checkpoints(tmp_path, "other").restore(*trained(0)) is None


def test_a_finished_run_is_run_again_by_other_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is on its way goes on: hours are not lost to a mended typing error."""
    saved(tmp_path / "finished", 1).mark_finished()
    saved(tmp_path / "begun", 1)
    monkeypatch.setattr(checkpoint, "source_fingerprint", lambda: "changed")
    assert Checkpoints(tmp_path / "finished", "run").restore(*trained(0)) is None
    assert Checkpoints(tmp_path / "begun", "run").restore(*trained(0)) is not None


def test_only_the_writer_touches_the_folder(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert Checkpoints(tmp_path, "run", writer=False).restore(*trained(0)) == (2, {"rows": [0, 1]})
    Checkpoints(tmp_path, "other", writer=False)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_fingerprints_tell_parts_apart() -> None:
    assert fingerprint("ab", "c") != fingerprint("a", "bc")


def test_the_code_is_that_of_the_whole_package() -> None:
    assert {path.name for path in checkpoint.PACKAGE.iterdir()} >= {"rl", "envs", "sft.py", "runtime"}


def test_as_many_checkpoints_are_kept_as_wanted(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "run", keep=3)
    for step in range(1, 6):
        checkpoints.save(step, *trained(step), {})
    checkpoints.wait()
    names = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert names == [f"checkpoint-{step:08d}" for step in (3, 4, 5)]


def some_episode(seed: int = 0) -> Episode:
    rng = np.random.default_rng(seed)
    return Episode(
        spec=EpisodeSpec("libero_goal", 7, 3, seed, 1.6, frames=4),
        success=bool(seed % 2),
        steps=11,
        images=rng.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8),
        proprio=rng.normal(size=(2, 8)).astype(np.float32),
        tokens=rng.integers(0, 256, (2, 56)),
        log_probs=rng.normal(size=(2, 56)).astype(np.float32),
        valid=np.repeat(np.arange(16) < 11, 7).reshape(2, 56),
        frames=rng.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8),
        path=rng.normal(size=(12, 3)).astype(np.float32),
        distance_to_goal=rng.random(12).astype(np.float32),
        wall_seconds=1.25,
    )


def test_an_episode_comes_back_as_it_was(tmp_path: Path) -> None:
    store = EpisodeStore(tmp_path)
    for seed in (0, 1):
        store.add(3, some_episode(seed))
    for seed in (0, 1):
        expected = some_episode(seed)
        found = EpisodeStore(tmp_path).get(3, expected.spec)
        assert found is not None
        for field in fields(Episode):
            mine, theirs = getattr(found, field.name), getattr(expected, field.name)
            assert type(mine) is type(theirs) and np.array_equal(mine, theirs)
            assert not isinstance(mine, np.ndarray) or mine.dtype == theirs.dtype
    assert store.get(4, some_episode().spec) is None and store.get(3, some_episode(2).spec) is None


def test_an_episode_of_another_process_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, theirs = EpisodeStore(tmp_path), EpisodeStore(tmp_path)
    specs = [some_episode(seed).spec for seed in (0, 1)]
    theirs.add(3, some_episode(1))
    assert mine.stored(3, specs) == {specs[1]} and mine.stored(4, specs) == set()
    later = threading.Timer(0.5, theirs.add, (3, some_episode(0)))
    later.start()
    assert [episode.spec for episode in mine.wait_for(3, specs)] == specs
    later.join()
    monkeypatch.setattr(episode_store, "VISIBLE_SECONDS", 0.0)
    with pytest.raises(SystemExit, match="another process has written this episode, and this one cannot"):
        mine.wait_for(4, specs)


def test_episodes_are_forgotten_once_a_checkpoint_holds_what_they_taught(tmp_path: Path) -> None:
    store = EpisodeStore(tmp_path)
    for step in (1, 2, 3):
        store.add(step, some_episode())
    store.clear(2)
    found = [store.get(step, some_episode().spec) is not None for step in (1, 2, 3)]
    assert found == [False, False, True]


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "pickle"])
def test_a_damaged_episode_is_none(tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    store = EpisodeStore(tmp_path)
    store.add(1, some_episode())
    (path,) = tmp_path.rglob("*.npz")
    whole = path.read_bytes()
    if damage == "pickle":
        with np.load(path) as stored:
            values = dict(stored)
        with path.open("wb") as handle:
            np.savez(handle, **{**values, "path": np.array([{}], dtype=object)})  # type: ignore[arg-type]
    else:
        middle = whole.index(some_episode().images.tobytes()) + 50
        flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        path.write_bytes({"truncate": whole[:-100], "flip": flipped, "empty": b""}[damage])
    assert store.get(1, some_episode().spec) is None
    assert "running that episode again" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_preemption_cleans_up_and_exits_with_its_code(tmp_path: Path, number: int) -> None:
    program = """
import os, sys, time
from pathlib import Path
from srpo.runtime.preemption import preemptible
from srpo.runtime.files import atomic_file
with preemptible(), atomic_file(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""
    command = [sys.executable, "-c", program, str(tmp_path / "file")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(number)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == PREEMPTED == 75 and "the same command resumes" in output
    assert not list(tmp_path.iterdir())


def test_signals_are_as_before_afterwards() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    with preemptible():
        assert signal.getsignal(signal.SIGTERM) is not before[0]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == before
