"""The command `srpo`, as a user meets it."""

from __future__ import annotations

import re
import sys

import pytest

from srpo import ROOT, __version__
from srpo.__main__ import COMMANDS, main, usage


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
