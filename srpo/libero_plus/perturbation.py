"""LIBERO-Plus's perturbation of one LIBERO task, applied to an environment.

What upstream does (github.com/sylvestf/LIBERO-plus), with two differences: nothing is drawn from NumPy's
global generator, and noise is defined for any picture size.

Camera, robot start, language and noise run in the base task's environment, and so do backgrounds and lights
that leave the physics alone: the pictures' textures are exchanged, or the lights' values. A layout is another
scene; displaced objects share the base task's compiled models.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from srpo.envs.libero import LiberoEnv, asset_folder, init_states
from srpo.libero_plus import corruptions, scene_edits, styles
from srpo.libero_plus.data import (
    PlusData,
    PlusSources,
    find_asset,
    plus_data,
    prompt_from_task_name,
    unavailable_reason,
)
from srpo.libero_plus.tasks import INIT_STATE, PlusTask, parse


class UnavailableTask(ValueError):  # noqa: N818
    """A LIBERO-Plus task that cannot be run here (it is not a failed episode)."""


@dataclass(frozen=True)
class Perturbation:
    """What a LIBERO-Plus task changes, in the order of an episode.

    `environment` gives the scene; within `apply` camera, textures and lights are changed; `reset` starts the
    episode; `instruction` is the policy's prompt; `corrupt` is for every picture. Dimension and parameters
    are those of `srpo.libero_plus.tasks.PlusTask`.
    """

    task: PlusTask
    sources: PlusSources

    @classmethod
    def from_task(cls, name: str, sources: PlusSources | None = None) -> Perturbation:
        """The perturbation of an official task name.

        Raises:
            ValueError: the name is not a LIBERO-Plus task's.
            UnavailableTask: the task cannot run with these sources (default: without data or assets).
        """
        task, sources = parse(name), sources or PlusSources()
        if reason := unavailable_reason(task, sources, asset_folder()):
            raise UnavailableTask(f"{name}: {reason}")
        return cls(task, sources)

    @property
    def data(self) -> PlusData:
        """LIBERO-Plus's data; tasks that need it are unavailable without."""
        assert self.sources.data is not None
        return plus_data(self.sources.data)

    def environment(self, base: LiberoEnv) -> LiberoEnv:
        """The task's environment: the base task's, or a new one if the task has another scene."""
        if self.task.dimension == "layout":
            for category in self.data.new_categories[self.task.name]:
                scene_edits.register_object(category, self._asset(self.data.object_files[category]))
            return self._environment_from_bddl(base, self.data.bddl(self.task.name))
        if self.task.dimension == "style_distractors":
            bddl = styles.add_distractors(base.task.bddl_file.read_text(), self._rng())
            return self._environment_from_bddl(base, bddl)
        arena = self._arena()
        if arena is not None and scene_edits.changed_lights(Path(base.env._arena_xml), arena) is None:
            return LiberoEnv(self.task.suite, self.task.task_id, base.protocol, scene_xml=str(arena))
        return base

    def _environment_from_bddl(self, base: LiberoEnv, bddl: str) -> LiberoEnv:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, f"{self.task.name}.bddl")
            file.write_text(bddl)
            return LiberoEnv(self.task.suite, self.task.task_id, base.protocol, file)

    def _asset(self, name: str) -> Path:
        """An asset file, which is there: else the task would be unavailable."""
        path = find_asset(name, self.sources, asset_folder())
        assert path is not None
        return path

    def _arena(self) -> Path | None:
        """The arena's file of a background or light task; None if it is the base task's."""
        if self.task.dimension not in ("background", "light"):
            return None
        xml = self.data.scene(self.task.name).xml
        return find_asset(xml, self.sources, asset_folder()) if xml else None

    def _rng(self) -> np.random.Generator:
        """Source of a style's values. It depends on the style's number alone: equal names, equal pictures."""
        return np.random.default_rng(int(self.task.parameters["style"]))

    @contextmanager
    def apply(self, env: LiberoEnv) -> Iterator[None]:
        """Change camera, textures and lights; on leaving, they are as they were, bit for bit.

        Resets inside or outside the block do not touch them.
        """
        dimension = self.task.dimension
        view = {}
        if dimension == "camera":
            view = {key: int(value) for key, value in self.task.parameters.items()}
        with ExitStack() as stack:
            stack.enter_context(scene_edits.moved_camera(env.model, "agentview", view))
            if dimension in ("background", "light"):
                scene, arena = self.data.scene(self.task.name), self._arena()
                floor, wall = (self._asset(f"textures/{name}") for name in (scene.floor, scene.wall))
                textures = {"texplane": floor, "tex-wall": wall}
                stack.enter_context(env.retextured(scene_edits.with_textures(env.scene_xml, textures)))
                lights = scene_edits.changed_lights(Path(env.env._arena_xml), arena) if arena else None
                stack.enter_context(scene_edits.edited_lights(env.model, lights or {}))
            elif dimension == "style_background":
                textures = styles.random_textures(self._rng())
                stack.enter_context(env.retextured(scene_edits.with_textures(env.scene_xml, textures)))
            elif dimension == "style_light":
                lights = styles.random_lights(env.model, self._rng())
                stack.enter_context(scene_edits.edited_lights(env.model, lights))
            yield

    def reset(self, env: LiberoEnv) -> None:
        """Put the environment at the episode's start, settled."""
        state = init_states(self.task.suite, self.task.task_id)[INIT_STATE]
        if self.task.dimension == "layout":
            env.reset_to(self.data.init_state(self.task.name))
        elif self.task.dimension == "robot":
            posture = scene_edits.start_posture(int(self.task.parameters["posture"]))
            env.reset_to(state, posture, keep_posture=self.sources.robot_start == "true_start")
        elif self.task.dimension == "style_distractors":
            env.reset_to(styles.place_distractors(env, state, self._rng()))
        else:
            env.reset(INIT_STATE)

    def instruction(self, env: LiberoEnv) -> str:
        """The instruction for the policy."""
        if self.task.dimension == "language":
            return self.data.language(self.task.name)
        return prompt_from_task_name(self.task.name) if self.sources.leaked_prompt else env.task.language

    def corrupt(self, image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        """Add the task's noise to one agent-view picture; other tasks' pictures are returned unchanged.

        Args:
            image: uint8 (n, n, 3) in the official orientation, as `LiberoEnv.render` returns it.
            rng: used anew for each picture, as upstream does at each step.
        """
        if self.task.dimension != "noise":
            return image
        kind, severity = str(self.task.parameters["kind"]), int(self.task.parameters["severity"])
        return corruptions.corrupt(image, kind, severity, rng)
