"""Which settings a training does not read, given its other settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from srpo.config.reward import Reward, needs_world_model


def unread(settings: Mapping[str, Any]) -> dict[str, str]:
    """Dotted key of a setting, or name of a section, that a training leaves unread → why.

    Args:
        settings: of all sections, complete or not, and valid or not.
    """
    reward, train = settings.get("reward", {}), settings.get("train", {})
    shaping, references = reward.get("shaping"), reward.get("references")
    found: dict[str, str] = {}
    if references != "dbscan":
        why = f"reward.references is `{references}`, not `dbscan`"
        found |= dict.fromkeys(("reward.eps", "reward.eps_relative", "reward.min_samples"), why)
    if reward.get("scope") != "rank":
        found["reward.rank_prompts"] = f"reward.scope is `{reward.get('scope')}`, not `rank`"
    if references == "fixed_expert":
        found["reward.earlier_successes"] = "reward.references is `fixed_expert`, whose references are fixed"
    if reward.get("filter") == "none":
        found |= dict.fromkeys(("train.keep_success", "train.resample"), "reward.filter is `none`")
    if shaping == "siirl":
        found["reward.alpha"] = "reward.shaping `siirl` has an upper bound of its own"
    if shaping == "none":
        why = "reward.shaping is `none`"
        found |= {f"reward.{name}": why for name in Reward.model_fields if name not in ("shaping", "filter")}
    if not needs_world_model(shaping, references):
        found["world_model"] = (
            "reward.shaping `none` and reward.references `simulator` go without a world model"
        )
    offline = train.get("offline")
    if offline is not None:
        why = "train.offline has another loss, which clips no ratio"
        found |= {"train.clip_low": why, "train.clip_high": why}
        found["reward.earlier_successes"] = "train.offline has one set of rollouts, and no earlier step"
        if isinstance(offline, Mapping) and offline.get("advantage") == "step":
            why = "train.offline.advantage is `step`, which weighs gains in progress, not episodes' rewards"
            found |= dict.fromkeys(
                ("reward.shaping", "reward.alpha", "reward.scope", "reward.rank_prompts", "train.deviation"),
                why,
            )
    if train.get("branching") is not None:
        found["train.deviation"] = "train.branching weighs by differences of values, as they are"
    if not train.get("evaluate_every"):
        found["train.evaluate_states"] = "train.evaluate_every is 0"
    return found
