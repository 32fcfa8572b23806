"""The evidence page: its numbers, what it says did not hold, and how it is written."""

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from srpo.analysis.report import claims, evidence
from srpo.config.plan import plan
from srpo.config.resolve import CONFIGS, load_preset
from srpo.results import ResultError
from srpo.results.rows import write_rows
from srpo.results.schemas import REWARDS
from srpo.rl.advantages import group_advantages
from support.synthetic_results import curves_of, libero_run, reward_benchmark, rl_run

PAGE = "".join(f"Before {name}.\n<!-- smoke: {name} -->\noutdated\n<!-- end -->\n" for name in evidence.PARTS)


def sheet(path: Path) -> str:
    """What a preset calls a sheet outside `configs/experiments/`."""
    return os.path.relpath(path, CONFIGS / "experiments")


def preset(folder: Path, **sheets: str) -> Path:
    """The smoke preset on another suite: two seeds, an ablation more, and other sheets for some tables."""
    settings = yaml.safe_load((CONFIGS / "presets" / "smoke.yaml").read_text())
    ablations = (CONFIGS / "experiments/tiny/ablations.tsv").read_text()
    ablations += "srpo-pixel\tpixels\tablation\tsrpo\tworld_model=pixel\n"
    (folder / "ablations.tsv").write_text(ablations)
    chosen = {"ablations": sheet(folder / "ablations")} | sheets
    tables = settings["tables"] | {table: {"sheet": sheet} for table, sheet in chosen.items()}
    path = folder / "preset.yaml"
    runs = {"suites": ["libero_goal"], "tasks": {"libero_goal": [0, 1]}, "seeds": [0, 1]}
    path.write_text(yaml.safe_dump({**settings, "tables": tables, **runs}))
    return path


def with_prefixes(folder: Path) -> str:
    """A sheet of ablations with a variant of ours."""
    rows = [
        ("name", "label", "role", "variant", "set"),
        ("srpo", "SRPO", "baseline", "srpo", ""),
        ("srpo-prefix", "matched prefixes", "ablation", "srpo", "reward.references=matched_prefix"),
        ("srpo-pixel", "pixels", "ablation", "srpo", "world_model=pixel"),
        ("grpo", "GRPO", "ablation", "grpo", ""),
    ]
    (folder / "prefixes.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    return sheet(folder / "prefixes")


def results(root: Path, rates: dict[str, float], ways: tuple[float, float] = (0.2, 0.4)) -> Path:
    """Rows of all runs: greedy success by variant, and a step of training: a group of a success and two
    failures, and a group of two failures, each whose second failure has `ways`[1] to go."""
    for variant, rate in rates.items():
        for seed in (0,) if variant == "sft" else (0, 1):
            libero_run(root / "runs", "libero_goal", variant, rate, seed=seed, states=20, sampled=1)
            if variant == "sft":
                continue
            model = "vjepa2-tiny" if variant in ("srpo", "srpo-prefix") else variant.removeprefix("srpo-")
            changed = {"references": "matched_prefix"} if variant.endswith("-prefix") else {}
            curve = [0.2, 0.2 + rate / 2, rate]
            metrics = rl_run(root / "runs", "libero_goal", variant, curve, seed=seed, model=model, **changed)
            shared: dict[str, Any] = {
                **{"step": 1, "suite": "libero_goal", "task_id": 0, "init_state": 0},
                **{"episode_seed": 0, "success": False, "steps": 9, "kept": True},
            }
            near = {**shared, "reward": 0.8, "distance": 0.2, "distance_to_goal": ways[0]}
            far = {**shared, "reward": 0.1, "distance": 0.9, "distance_to_goal": ways[1]}
            solved = {**shared, "success": True, "reward": 1.0, "distance": None, "distance_to_goal": 0.0}
            rows = [
                {**row, "group": group, "advantage": advantage}
                for row, group, advantage in (
                    *((solved, 0, 1.0), (near, 0, 0.5), (far, 0, -1.5)),
                    *((near, 1, 0.7), (far, 1, -0.7)),
                )
            ]
            write_rows(metrics.with_name("rewards.parquet"), rows, REWARDS)
    gaps = {"pixel": 0.4, "efficientnet-lite": 0.6, "vjepa2-tiny": 0.8}
    curves_of(reward_benchmark(root, "libero_goal", gaps))
    return root


GOOD = {"sft": 0.3, "grpo": 0.5, "srpo": 1.0, "srpo-pixel": 0.6}


def read(root: Path) -> claims.Evidence:
    return claims.read(root, plan(*load_preset(str(preset(root)))))


def test_claims_that_hold_and_that_do_not(tmp_path: Path) -> None:
    found = read(results(tmp_path, GOOD))
    assert list(found.variants.values()) == ["SFT", "GRPO", "SRPO", "SRPO, pixels"]
    judged = {claim.text: claim.holds for claim in claims.claims(found)}
    assert judged["SRPO ends higher than GRPO"] is True
    assert judged["SRPO ends higher than SRPO, pixels"] is True
    assert judged["the relative gain is at least 60.0%"] is True
    text = evidence.verdict(found)
    assert text.startswith("**Did not hold:**\n\n- nothing")


def test_one_run_each_decides_nothing(tmp_path: Path) -> None:
    root = results(tmp_path, GOOD)
    found = read(root)
    alone = dataclasses.replace(
        found,
        seeds=[0],
        episodes=found.episodes[found.episodes["seed"] == 0],
        metrics=found.metrics[found.metrics["seed"] == 0],
    )
    for claim in claims.claims(alone):
        assert claim.holds is None or claim.text.startswith("rewards by"), claim
    ends = alone.compare("grpo", "srpo")
    assert ends.estimate.low > 0 and ends.runs == (1, 1)  # over states alone it would look decided
    assert "nothing about other seeds" in claims.difference_text(ends)


def test_ends_and_areas_are_judged_by_their_own_p(tmp_path: Path) -> None:
    found = read(results(tmp_path, {**GOOD, "srpo-pixel": 0.9}))
    for low, high in (("grpo", "srpo"), ("srpo-pixel", "srpo"), ("grpo", "srpo-pixel")):
        for difference in (found.compare(low, high), found.compare_areas(low, high)):
            assert difference.runs == (2, 2)
            assert (claims.verdict(difference) is not None) == (difference.p_value < 0.05)


def test_what_did_not_hold_is_said_first(tmp_path: Path) -> None:
    rates = {**GOOD, "sft": 1.0, "grpo": 1.0, "srpo": 0.6}
    found = read(results(tmp_path, rates, ways=(0.4, 0.2)))
    heading, text = evidence.verdict(found).split("\n\n")[:2]
    assert heading == "**Did not hold:**"
    for words in ("relative gain", "SRPO ends higher than GRPO", "rewards by pixel"):
        assert words in text
    judged = {claim.text: claim.holds for claim in claims.claims(found)}
    assert judged["SRPO makes the SFT policy better on held-out states"] is None
    assert "; 2 runs a suite" in evidence.verdict(found)


def test_what_failures_add_by_hand(tmp_path: Path) -> None:
    row = next(
        r for r in evidence.failure_rewards(read(results(tmp_path, GOOD))).splitlines() if "| SRPO |" in r
    )
    # Of the squares 1, 0.25, 2.25, 0.49 and 0.49 the last two; GRPO's advantages: (2, −1, −1)/√3 and 0, 0.
    assert row == "| Goal | SRPO | 80.0 | 50.0 | 21.9 | 0.58 |"


def test_advantages_by_outcome_are_those_of_training() -> None:
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"success": rng.random(60) < 0.4, "group": np.arange(60) % 9, "step": 1, "seed": 0})
    rows = rows.assign(suite="libero_goal", variant="srpo")
    success, groups = (torch.from_numpy(rows[name].to_numpy(copy=True)) for name in ("success", "group"))
    expected = group_advantages(success.double(), groups).numpy()
    assert evidence.advantages_by_outcome(rows) == pytest.approx(expected, abs=1e-12)


def test_the_mean_over_tasks_weighs_tasks_alike(tmp_path: Path) -> None:
    found = read(results(tmp_path, GOOD))
    own = found.of("srpo")
    assert claims.rate(own).value == pytest.approx(1)
    before = found.of("sft")
    solved = (before["status"] == "success").groupby(before["task_id"]).mean()
    assert claims.rate(before).value == pytest.approx(solved.mean())
    assert claims.areas(found, "grpo") == claims.areas(found, "grpo", "libero_goal")


def test_the_page_is_written_between_its_lines(tmp_path: Path) -> None:
    root = results(tmp_path, GOOD)
    page = tmp_path / "evidence.md"
    page.write_text(PAGE)
    arguments = [str(root), "--preset", str(preset(root)), "--page", str(page)]
    evidence.main(arguments)
    text = page.read_text()
    assert "outdated" not in text and text.count("Before ") == len(evidence.PARTS)
    assert "| SRPO − GRPO |" in text and "40 pairs" in text
    count = sum(line.startswith("| Goal | GRPO |") for line in text.splitlines())
    assert count == 4  # efficiency, signal, and two seeds
    evidence.main(arguments)
    assert page.read_text() == text

    with pytest.raises(ResultError, match=r"nowhere\.md: No such file"):
        evidence.main([*arguments, "--page", str(tmp_path / "nowhere.md")])
    page.write_text(PAGE.replace("<!-- smoke: truth -->", "<!-- smoke: lies -->"))
    with pytest.raises(ResultError, match="no part 'lies'"):
        evidence.main(arguments)
    page.write_text(PAGE.replace("smoke: ", "mini: "))
    with pytest.raises(ResultError, match="has no lines `<!-- smoke: PART -->`"):
        evidence.main(arguments)


def test_what_is_ours_is_claimed_to_be_above_srpo(tmp_path: Path) -> None:
    other = {"srpo": 0.6, "srpo-prefix": 1.0, "srpo-efficientnet": 0.6}
    root = results(tmp_path, {**GOOD, **other})
    plans = plan(*load_preset(str(preset(root, f2="mini/f2", ablations=with_prefixes(root)))))
    found = claims.read(root, plans)
    assert (found.grpo, found.srpo) == ("grpo", "srpo")
    assert found.above_srpo == ["srpo-prefix"]
    judged = {claim.text: claim.holds for claim in claims.claims(found)}
    assert judged["SRPO, matched prefixes ends higher than SRPO"] is True
    assert judged["SRPO ends higher than SRPO, pixels"] is None
    assert not any("SRPO ends higher than SRPO, matched" in text for text in judged)
    # Its rewards are not told as those of the representation that compares whole episodes.
    assert "| vjepa2-tiny, prefix | – | – | – |" in evidence.truth(found)


def test_missing_rows_are_refused(tmp_path: Path) -> None:
    root = results(tmp_path, GOOD)
    (root / "runs/libero_goal/grpo/seed1/metrics.csv").unlink()
    with pytest.raises(ResultError, match=r"grpo/seed1/metrics\.csv is not there"):
        read(root)


def test_what_is_there_of_an_incomplete_preset_is_told(tmp_path: Path) -> None:
    root = results(tmp_path, GOOD)
    for seed in (0, 1):
        shutil.rmtree(root / f"runs/libero_goal/srpo-pixel/seed{seed}/evaluation")
    found = claims.read(root, plan(*load_preset(str(preset(root)))), allow_incomplete=True)
    assert found.complete == ["grpo", "srpo"]
    assert "Not judged, for not all of their runs are there: SRPO, pixels." in evidence.verdict(found)
    assert "pixels" not in evidence.held_out(found) + evidence.differences(found)
    areas = [line for line in evidence.efficiency(found).splitlines() if "SRPO, pixels" in line]
    assert len(areas) == 1 and "points" in areas[0]
    runs = [line for line in evidence.seeds(found).splitlines() if "SRPO, pixels" in line]
    assert len(runs) == 2 and all(line.endswith("| – | – |") for line in runs)


def test_a_missing_seed_is_a_missing_run(tmp_path: Path) -> None:
    root = results(tmp_path, GOOD)
    shutil.rmtree(root / "runs/libero_goal/grpo/seed1/evaluation")
    shutil.rmtree(root / "runs/libero_goal/srpo-pixel/seed0")
    found = claims.read(root, plan(*load_preset(str(preset(root)))), allow_incomplete=True)
    assert found.complete == ["srpo"]
    judged = [claim.text for claim in claims.claims(found) if not claim.text.startswith("rewards by")]
    assert len(judged) == 2 and all("SFT" in text or "gain" in text for text in judged)
    assert evidence.verdict(found).endswith("not all of their runs are there: GRPO; SRPO, pixels.")
    assert found.compare("grpo", "srpo").pairs == 0  # greedy episodes of one seed of two
    assert found.compare_areas("grpo", "srpo").runs == (2, 2)  # but both trained it
    assert np.isnan(found.compare_areas("srpo", "srpo-pixel").estimate.value)
    suite = next(line for line in evidence.held_out(found).splitlines() if "**Goal**" in line)
    cells = suite.split(" | ")
    assert cells[2] == "–" and "%" in cells[1] and "%" in cells[3]


def test_the_shipped_page_is_what_the_shipped_rows_say(tmp_path: Path) -> None:
    shipped = CONFIGS.parent / "docs/evidence.md"
    page = tmp_path / "evidence.md"
    page.write_text(shipped.read_text(encoding="utf-8"), encoding="utf-8")
    for name in ("mini", "smoke"):
        rows = CONFIGS.parent / "results/reference" / name
        evidence.main([str(rows), "--page", str(page), "--allow-incomplete"])
    assert page.read_text(encoding="utf-8") == shipped.read_text(encoding="utf-8")
