"""The command `srpo`, as a user meets it."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from srpo import ROOT, __version__
from srpo.__main__ import COMMANDS, main, usage
from srpo.config.resolve import Resolver, load_preset, to_yaml
from srpo.errors import run_command
from srpo.policies.checkpoints import save_policy
from support.policies import small_policy
from support.synthetic_results import libero_run


@pytest.fixture(autouse=True)
def restored_argv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["srpo"])  # sub-commands read it, and it is put back afterwards


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"], ["help"]])
def test_it_lists_its_commands(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(arguments)
    shown = capsys.readouterr().out
    assert shown == usage() + "\n" and shown.startswith("usage: srpo COMMAND")
    for name, (_, text) in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(text)}$", shown, re.MULTILINE)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out == f"srpo {__version__}\n"


def test_a_misspelt_command_is_corrected() -> None:
    with pytest.raises(SystemExit, match=r"there is no command 'tarin' \(did you mean `train`\?\)"):
        main(["tarin", "--config", "config.yaml"])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: srpo {name} ")


def test_documents_name_commands_that_exist() -> None:
    """In code: between backquotes, or at the beginning of a line."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "slurm").glob("*.md")]
    mention = re.compile(r"(?:`|^ *\$? ?|--module )srpo ([a-z][a-z-]+)\b", re.MULTILINE)
    mentions = {
        (file.name, name)
        for file in [*pages, *(ROOT / "srpo").rglob("*.py"), *(ROOT / "configs").rglob("*.yaml")]
        for name in mention.findall(file.read_text())
    }
    assert len(mentions) > 30
    assert [(file, name) for file, name in sorted(mentions) if name not in COMMANDS] == []


# What is wrong with the input of a command ends it with one line.


def config(kind: str, folder: Path, *overrides: str) -> Path:
    """The example preset's resolved file of a stage."""
    stage = Resolver(*load_preset(str(ROOT / "tests/example.yaml")), overrides=overrides)
    variant = "srpo" if kind in ("train", "evaluate", "plus") else "sft"
    path = folder / f"{kind}.yaml"
    path.write_text(to_yaml(stage.stage(kind, "libero_goal", variant, 0)))
    return path


def ended(arguments: Sequence[str | Path]) -> str:
    """The line that a command ends with."""
    with pytest.raises(SystemExit) as end:
        main([*map(str, arguments)])
    line = str(end.value)
    assert line.startswith("error: ")
    return line


def paths(folder: Path, *options: str) -> list[str]:
    """Options of a command with places in a folder of which nothing is there."""
    return [word for option in options for word in (f"--{option}", str(folder / option))]


REST = {
    "sft": ("demos", "out", "scratch"),
    "train": ("policy", "out", "scratch"),
    "evaluate": ("policy", "out", "scratch"),
}


@pytest.mark.parametrize("command", REST)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"suite: [1", "not YAML"),
        (b"suite: \xe1", "not text in UTF-8"),
        (b"suite: a\nsuite: b\n", "line 2: `suite` is there twice, first in line 1"),
        (b"preset: x\n", "protocol: is missing"),
    ],
)
def test_a_wrong_configuration(tmp_path: Path, command: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config").write_bytes(content)
    line = ended([command, *paths(tmp_path, "config", *REST[command])])
    assert str(tmp_path / "config") in line and message in line


def test_a_configuration_that_is_a_folder(tmp_path: Path) -> None:
    assert ended(["sft", "--config", tmp_path, *paths(tmp_path, *REST["sft"])]).endswith(": Is a directory")


def test_wrong_demonstrations(tmp_path: Path) -> None:
    arguments = ["sft", "--config", config("sft", tmp_path), *paths(tmp_path, *REST["sft"])]
    file = tmp_path / "demos/turn_on_the_stove_demo.hdf5"
    assert f"{file}: no such file" in ended(arguments)
    file.parent.mkdir()
    file.write_bytes(b"nothing")
    assert str(file) in ended(arguments)


@pytest.mark.parametrize(
    "command",
    [
        "demos --config x --scratch x --out",
        "pretrain --config x --scratch x --out",
        "reward-benchmark collect --config x --policy x --scratch x --out",
        "export x --out",
        "policy convert x",
    ],
)
def test_a_folder_that_has_files_is_never_replaced(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Told before anything else is looked at."""
    (tmp_path / "mine.txt").touch()
    with pytest.raises(SystemExit) as end:
        main([*command.split(), str(tmp_path)])
    assert end.value.code == 2
    assert f"{tmp_path}: is there already: name a folder to make, or delete it" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").exists()


def broken(folder: Path, what: str) -> None:
    """A policy checkpoint that cannot be loaded."""
    save_policy(small_policy(), folder)
    if what == "config.json":
        (folder / what).write_text("{")
    elif what == "tokenizer.json":
        (folder / what).unlink()
    else:
        (folder / what).write_bytes((folder / what).read_bytes()[:1000])


@pytest.mark.parametrize("command", ["train", "evaluate"])
@pytest.mark.parametrize("what", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_wrong_policy(tmp_path: Path, command: str, what: str) -> None:
    arguments = [command, "--config", config(command, tmp_path), *paths(tmp_path, *REST[command])]
    assert "policy is not a policy checkpoint: it has no config.json" in ended(arguments)
    broken(tmp_path / "policy", what)
    assert what in ended(arguments)


def test_a_wrong_checkpoint_of_sft(tmp_path: Path) -> None:
    """Fine-tuned as it is: one that is not there, and one that nobody fetched."""
    file = config("sft", tmp_path, "policy.checkpoint=/no/policy", "sft.updates=0")
    arguments = ["sft", "--config", file, *paths(tmp_path, *REST["sft"])]
    assert "policy.checkpoint /no/policy is not a folder here" in ended(arguments)
    save_policy(small_policy(), tmp_path / "checkpoint")
    assert "was not fetched by `srpo download`" in ended([*arguments, *paths(tmp_path, "checkpoint")])


def test_a_wrong_world_model(tmp_path: Path) -> None:
    save_policy(small_policy(), tmp_path / "policy")
    arguments = ["train", "--config", config("train", tmp_path), *paths(tmp_path, *REST["train"])]
    assert "world model vjepa2-tiny is pretrained by the workflow" in ended(arguments)
    (tmp_path / "world-model").mkdir()
    assert "has no config.json" in ended([*arguments, *paths(tmp_path, "world-model")])


def test_a_wrong_task_list(tmp_path: Path) -> None:
    (tmp_path / "plus").write_text("name\n")
    arguments = [
        "evaluate",
        "--config",
        config("plus", tmp_path),
        *paths(tmp_path, *REST["evaluate"], "plus"),
    ]
    assert f"{tmp_path}/plus: the first line is not " in ended(arguments)
    (tmp_path / "plus").unlink()
    assert f"{tmp_path}/plus: No such file" in ended(arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resolve", "train", "--set", "train.steps=[1"], "command line: train.steps: not YAML"),
        (["resolve", "train", "--preset", "a" * 300], "there is no 'aaa"),
        (["resolve", "train", "--preset", "a" * 300 + ".yaml"], "File name too long"),
        (["resolve", "train", "--variant", "a" * 300], "no sheet of configs/presets/smoke.yaml has a row"),
        (["resolve", "world_model", "--world-model", "a" * 300], "there is no configs/world_models/aaa"),
        (["resolve", "train"], "sft has no stage train: name a variant"),
        (["plan", "--preset", "smok"], "did you mean `smoke`?"),
        (["draw", "all", "/no/results", "--out", "x"], "/no/results: no such folder"),
        (["draw", "all", "/", "--out", "x"], "say whose results it has with --preset"),
        (["status", "smok"], "did you mean `smoke`?"),
        (["policy", "inspect", "/no/policy"], "it has no config.json"),
    ],
)
def test_a_wrong_argument(arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert message in ended(arguments)


def test_a_sheet_in_latin_1(tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.tsv"
    sheet.write_bytes("name\tlabel\trole\tvariant\tset\nsft\tSFT à part\tbaseline\tsft\n".encode("latin-1"))
    episodes = libero_run(tmp_path, "libero_goal", "sft", 0.5)
    arguments = ["draw", "t1", "--sheet", sheet, "--episodes", episodes, "--out", tmp_path / "out"]
    arguments += ["--published", ROOT / "configs/reference/published.csv"]
    assert f"{sheet}: not text in UTF-8" in ended(arguments)


def test_a_defect_keeps_its_traceback() -> None:
    def defective() -> None:
        raise ValueError("of this program")

    with pytest.raises(ValueError, match="of this program"):
        run_command(defective)
