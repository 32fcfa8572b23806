"""Many mutated inputs, in search of one that ends in a traceback or a hang, or is wrongly accepted.

    python tests/fuzz.py [--mutations 3000] [--first 0] [--only configuration]

Presets, variants, sheets and the other files of configs/, demonstration files and policy checkpoints are
changed in one way each and read as the program reads them (tests/support/mutations.py). Half of the
mutations are of configurations. A mutation is drawn from its number, from --first on, so that a fault can be
made again. Faults are printed, and it ends with 1 if there are any. 3000 mutations take some ten minutes.

The short form is tests/unit/test_mutations.py, a part of `make test`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from support.mutations import TARGETS, fault


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mutations", type=int, default=3000, help="of all inputs together")
    parser.add_argument("--first", type=int, default=0, help="number of the first mutation of each input")
    parser.add_argument("--only", choices=[target.name for target in TARGETS], help="one input alone")
    arguments = parser.parse_args()
    chosen = [target for target in TARGETS if arguments.only in (None, target.name)]
    faults = []
    for target in chosen:
        share = 1 if len(chosen) == 1 else 0.5 if target is TARGETS[0] else 0.5 / (len(chosen) - 1)
        count = round(arguments.mutations * share)
        outcomes: Counter[str] = Counter()
        with tempfile.TemporaryDirectory() as folder:
            made = target(Path(folder))
            for seed in tqdm(range(arguments.first, arguments.first + count), desc=target.name, disable=None):
                found, refused = fault(made, seed)
                outcomes["at fault" if found else "refused" if refused else "accepted"] += 1
                if found:
                    faults.append(found)
                    print(found, flush=True)
        print(f"{target.name}: {count} mutations, {dict(outcomes)}", flush=True)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
