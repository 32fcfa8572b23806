"""The command `srpo`: a sub-command for everything that can be started.

srpo COMMAND [ARGUMENTS]; srpo COMMAND --help; srpo --version
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from srpo import __version__
from srpo.config import did_you_mean
from srpo.errors import run_command

COMMANDS: dict[str, tuple[str, str]] = {
    # Before anything is started
    "doctor": ("srpo.cluster.doctor", "check this machine: rendering, GPUs, simulator, Slurm"),
    "plan": ("srpo.cluster.plan", "what a preset takes: jobs, episodes, hours, disk"),
    "resolve": ("srpo.config.resolve", "print the resolved configuration of one stage"),
    "download": ("srpo.runtime.hub", "a checkpoint from the Hugging Face hub, checked"),
    "policy": ("srpo.policies", "inspect or convert a policy checkpoint"),
    "libero-plus": ("srpo.libero_plus", "LIBERO-Plus's tasks, data, assets and pictures"),
    # The stages of the workflow
    "demos": ("srpo.demos", "record or import demonstrations"),
    "pretrain": ("srpo.world_models.pretraining.pretrain", "pretrain a small V-JEPA 2 on play data"),
    "sft": ("srpo.sft", "supervised fine-tuning on demonstrations"),
    "train": ("srpo.rl.trainer", "reinforcement learning: SRPO or GRPO, online or offline"),
    "evaluate": ("srpo.evaluate", "evaluate a policy on LIBERO or LIBERO-Plus"),
    "reward-benchmark": ("srpo.reward_benchmark", "compare progress rewards on labelled trajectories"),
    "values": ("srpo.values", "the policy's chance of success along these trajectories, by branches"),
    # While and after they run
    "launch": ("srpo.cluster.launch", "one training run outside the workflow, by Slurm or here"),
    "status": ("srpo.cluster.status", "how far a preset's runs are: once, on and on, or as a page"),
    "ledger": ("srpo.cluster.ledger", "GPU- and core-hours spent, failed tries included"),
    "draw": ("srpo.analysis.draw", "draw one table or figure, or all of a finished preset"),
    "validate": ("srpo.analysis.report.validate", "check result files against their schemas"),
    "compare": ("srpo.analysis.report.compare", "compare two folders of results, episode by episode"),
    "export": ("srpo.analysis.report.export", "copy the rows of a preset that its tables need"),
    # For developers
    "evidence": ("srpo.analysis.report.evidence", "write docs/evidence.md from a preset's rows"),
    "paper-map": ("srpo.analysis.report.paper_map", "write docs/paper_map.md"),
    "document": ("srpo.config.docs", "write the generated documentation and JSON schemas"),
}
"""Command → module with a function `main`, and what it does."""


def usage() -> str:
    """The list of commands."""
    width = max(map(len, COMMANDS))
    lines = (f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items())
    return "usage: srpo COMMAND [ARGUMENTS]\n\n" + "\n".join(lines) + "\n\nMore: srpo COMMAND --help"


def main(argv: Sequence[str] | None = None) -> None:
    """Run a sub-command; files that cannot be used end it with one line.

    Only its own module is imported: the others' libraries take seconds.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return
    if arguments[0] == "--version":
        print(f"srpo {__version__}")
        return
    name, *rest = arguments
    if name not in COMMANDS:
        raise SystemExit(f"srpo: there is no command {name!r}{did_you_mean(name, COMMANDS)}\n\n{usage()}")
    module = import_module(COMMANDS[name][0])
    sys.argv = [f"srpo {name}", *rest]
    command = module if hasattr(module, "main") else import_module(f"{COMMANDS[name][0]}.__main__")
    run_command(command.main)


if __name__ == "__main__":
    main()
