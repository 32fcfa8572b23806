"""How episodes are run."""

from __future__ import annotations

from typing import Literal

from srpo.config.fields import NonNegativeInt, PositiveInt, Section, Seed

Profile = Literal["official", "held_out", "held_out_20"]
PROFILES: dict[Profile, tuple[range, range]] = {
    "official": (range(50), range(50)),
    "held_out": (range(40), range(40, 50)),
    "held_out_20": (range(30), range(30, 50)),
}
"""Which of a task's 50 initial states training may use, and which evaluation uses."""
CONTROL_HZ = 20
"""Control steps of a simulated second."""


class Protocol(Section):
    """How episodes are run. Recorded with every result; a table never mixes two protocols."""

    profile: Profile
    """`official`: train and test on all 50 initial states (as the published stacks do).
    `held_out`: train on states 0–39, test on states 40–49.
    `held_out_20`: train on states 0–29, test on states 30–49: narrower intervals where tasks are few."""
    max_steps: PositiveInt
    """Control steps after which an episode has failed; settling steps are not counted."""
    settle_steps: NonNegativeInt
    """Steps of `[0, 0, 0, 0, 0, 0, -1]` after the initial state is set."""
    env_seed: Seed
    """Seed of the simulator's own reset, which places what initial states leave open: the fixtures.
    It is seeded once an environment; `resets` says which of the resets that follow counts."""
    resets: Literal["first", "running"] = "first"
    """`first`: every episode has the fixtures where the first reset after seeding puts them, as in siiRL.
    `running`: initial state k has them where reset k + 1 puts them (up to 1.7 cm away), as in
    OpenVLA-OFT's evaluation, which resets one environment before each episode. An environment then makes as
    many resets as its highest initial state needs. LIBERO-Plus has one episode a task, after one reset."""
    image_size: PositiveInt
    """Side in pixels of the rendered agent-view picture."""
    render: Literal["exact", "near", "fast"]
    """`exact`: the stock picture, pixel for pixel. `near`: meshes decimated to what a pixel shows, a slightly
    different picture. `fast`: coarser meshes, no multisampling, no reflections."""
    textures: Literal["linear", "auto"] = "auto"
    """Colour space of texture files, as MuJoCo calls it. `linear`: their levels as they are, as MuJoCo up to
    3.3.2 draws them: what released checkpoints saw. `auto`: as the files state, which is what newer versions
    do: the floors of libero_object are darker by 36 levels. Results that do not say it have `auto`."""
    batch: PositiveInt | None = None
    """Largest batch of observations in a policy query. The last bits of the logits depend on its size; 1
    fixes them. null: 1 on a CPU, where batches gain little, 64 on a GPU."""

    def train_states(self) -> range:
        """Initial states that training may use."""
        return PROFILES[self.profile][0]

    def test_states(self) -> range:
        """Initial states that evaluation uses."""
        return PROFILES[self.profile][1]
