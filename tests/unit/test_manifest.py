"""What a manifest says of the machine."""

from __future__ import annotations

import platform
from pathlib import Path

from srpo.runtime.manifest import processor

X86 = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: {}
model name\t: AMD EPYC
power management:

processor\t: 1
model\t\t: 9
"""
ARM = """processor\t: 0
BogoMIPS\t: 243.75
CPU part\t: 0xd0c
"""


def test_processors_of_two_generations_differ_though_their_names_do_not(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    named = []
    for model in (1, 17):
        file.write_text(X86.format(model))
        named.append(processor(file))
    assert named == ["AMD EPYC (family 25, model 1)", "AMD EPYC (family 25, model 17)"]
    file.write_text(ARM)
    assert processor(file) == processor(tmp_path / "none") == platform.processor()
