"""The OpenVLA-OFT class: what goes in, what comes out, and what a checkpoint must be."""

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch.utils._python_dispatch import TorchDispatchMode

from srpo.config import Lora
from srpo.policies import action_tokens
from srpo.policies.checkpoints import load_policy, save_policy
from srpo.policies.lora import LoraLinear
from srpo.policies.openvla_oft import Inputs, OpenVLAOFT, sample
from srpo.policies.weights import CheckpointError
from support.permissions import as_nobody, readable_by_all
from support.policies import ENCODER, INSTRUCTIONS, SUITE, observations, small_policy, small_settings


def test_sequence_is_read_before_each_placeholder_and_through_the_action_rows() -> None:
    """The same logits from the parts, put together by hand with an explicit all-to-all mask."""
    policy = small_policy()
    inputs = policy.prepare_inputs(SUITE, *observations(1))
    with torch.no_grad():
        embed = policy.language_model.get_input_embeddings()
        bos, stop = embed(torch.tensor([[policy.tokenizer.bos_token_id]])), embed(torch.tensor([[2]]))
        assert policy.tokenizer.eos_token_id == 2
        parts = [
            bos,
            policy.projector(policy.vision_backbone(inputs.pixels)),
            policy.proprio_projector(inputs.proprio)[:, None],
            embed(inputs.ids),
            policy.placeholders[None],
            stop,
        ]
        sequence = torch.cat(parts, 1)
        everything = torch.zeros(1, 1, sequence.shape[1], sequence.shape[1])
        hidden = policy.language_model.model(
            inputs_embeds=sequence, attention_mask=everything
        ).last_hidden_state
        logits = policy.language_model.lm_head(hidden)[0]
        expected = [logits[-58 + k, [640 - 1 - bin_ for bin_ in range(256)]] for k in range(56)]
        np.testing.assert_allclose(policy.action_logits(inputs)[0], torch.stack(expected), atol=1e-5)


def test_only_the_actions_go_through_the_output_matrix() -> None:
    """No result is as wide as the vocabulary (640 and 8 of padding), and 56 positions a query get logits."""
    policy = small_policy()
    inputs = policy.prepare_inputs(SUITE, *observations(3))
    seen: set[tuple[int, ...]] = set()

    class Shapes(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = operation(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and "mm" in str(operation):
                seen.add(tuple(result.shape))
            return result

    with torch.no_grad(), Shapes():
        policy.action_logits(inputs)
    assert seen and max(shape[-1] for shape in seen) == 256
    assert {shape for shape in seen if shape[-1] == 256} == {(3, 56, 256)}


def test_attention_looks_both_ways() -> None:
    policy = small_policy()
    inputs = policy.prepare_inputs(SUITE, *observations(1))
    with torch.no_grad():
        before = policy.action_logits(inputs)
        policy.placeholders[-1] += 1.0  # the last position, behind all that is read for the first action
        assert (policy.action_logits(inputs)[0, 0] - before[0, 0]).abs().max() > 1e-4


@pytest.mark.parametrize("changes", [{}, {"proprio": False, "learned_placeholders": False}])
def test_a_sample_does_not_depend_on_its_batch(changes: dict) -> None:
    policy = small_policy(**changes)
    images, words, proprio = observations(5)
    assert len({len(policy.tokenizer(word)["input_ids"]) for word in words}) > 1  # so padding takes part
    with torch.no_grad():
        together = policy.action_logits(policy.prepare_inputs(SUITE, images, words, proprio))
        for k in range(5):
            one = slice(k, k + 1)
            alone = policy.action_logits(policy.prepare_inputs(SUITE, images[one], words[one], proprio[one]))
            np.testing.assert_allclose(together[k], alone[0], atol=1e-5)


def test_acting_and_learning_agree() -> None:
    policy = small_policy()
    inputs = policy.prepare_inputs(SUITE, *observations(4))
    generators = [torch.Generator().manual_seed(k) for k in range(4)]
    tokens, log_probs = policy.act(inputs, 1.6, generators)
    with torch.no_grad():
        again, entropy = policy.log_probs(inputs, torch.from_numpy(tokens), 1.6)
    np.testing.assert_allclose(log_probs, again, atol=1e-5)
    assert (entropy > 0).all() and (entropy <= np.log(256) + 1e-5).all()
    greedy, _ = policy.act(inputs, 0.0)
    with torch.no_grad():
        np.testing.assert_array_equal(greedy, policy.action_logits(inputs).argmax(-1))


@pytest.mark.parametrize("among", [[0, 255], [254, 255], [3, 100, 101], [7], list(range(256))])
def test_of_equally_likely_tokens_the_greedy_one_has_the_lowest_id(among: list[int]) -> None:
    """As OpenVLA-OFT's argmax over the language model's ids, of which token k is number 639 - k.

    In bfloat16 the likeliest tokens of a smooth distribution are often equal.
    """
    policy = small_policy()
    inputs = policy.prepare_inputs(SUITE, *observations(2))
    logits = torch.full((2, 56, 256), -1.0)
    logits[..., among] = 2.0
    policy.forward = lambda *_: logits  # type: ignore[method-assign]
    tokens, _ = policy.act(inputs, 0.0)
    by_id = torch.full((2, 56, 640), -torch.inf)
    by_id[..., [639 - k for k in among]] = 2.0
    np.testing.assert_array_equal(639 - tokens, np.argmax(by_id.numpy(), -1))
    assert set(tokens.flat) == {max(among)}


def test_a_policy_in_bfloat16_has_ties_and_decides_them_by_id() -> None:
    """The real network, its output matrix such that neighbouring tokens hardly differ."""
    policy = small_policy(dtype="bfloat16").to(torch.bfloat16)
    with torch.no_grad():
        rows = policy.language_model.lm_head.weight
        rows.copy_(rows[:1] + 1e-3 * torch.linspace(-1, 1, len(rows))[:, None])
    inputs = policy.prepare_inputs(SUITE, *observations(4))
    tokens, _ = policy.act(inputs, 0.0)
    with torch.no_grad():
        logits = policy.action_logits(inputs)
    best = logits == logits.amax(-1, keepdim=True)
    assert (best.sum(-1) > 1).float().mean() > 0.1, "no ties to decide"
    numbers = torch.arange(256).expand_as(best)
    np.testing.assert_array_equal(tokens, torch.where(best, numbers, -1).amax(-1))


def test_sampling_follows_the_softmax_of_each_episodes_own_generator() -> None:
    policy = small_policy()
    one = policy.prepare_inputs(SUITE, *observations(1))
    inputs = one[torch.zeros(100, dtype=torch.long)]
    generators = [torch.Generator().manual_seed(k) for k in range(100)]
    draws = np.concatenate([policy.act(inputs, 1.0, generators)[0][:, :4] for _ in range(15)])
    with torch.no_grad():
        probabilities = torch.softmax(policy.action_logits(one)[0, :4].double(), -1).numpy()
    for position in range(4):
        counts = np.bincount(draws[:, position], minlength=256)
        # Bins in eight parts of about equal probability, so that the χ² approximation holds.
        part = np.minimum((np.cumsum(probabilities[position]) * 8).astype(int), 7)
        expected = np.bincount(part, probabilities[position], 8) * len(draws)
        assert chisquare(np.bincount(part, counts, 8), expected).pvalue > 1e-4
    # Alone, in a batch and at another place of it: the same draws, and as many numbers are taken.
    other, mine = torch.Generator().manual_seed(6), torch.Generator().manual_seed(5)
    first = policy.act(one, 1.0, [torch.Generator().manual_seed(5)])[0]
    np.testing.assert_array_equal(first[0], policy.act(inputs[:2], 1.0, [other, mine])[0][1])
    assert torch.rand(1, generator=other) != torch.rand(1, generator=mine)


def test_what_has_no_probability_is_never_drawn() -> None:
    """And what has all of it always is, though probabilities are rounded."""
    log_p = torch.full((2, 56, 256), -torch.inf)
    log_p[0, :, 255] = log_p[1, :, 0] = 0.0
    generators = [torch.Generator().manual_seed(k) for k in range(2)]
    assert sample(log_p, generators).unique(dim=1).tolist() == [[255], [0]]
    log_p[:, :, 100:103] = torch.tensor([0.1, 0.2, 0.3]).log()
    log_p[0, :, 255] = log_p[1, :, 0] = -torch.inf
    drawn = sample(log_p.repeat(20, 1, 1), [torch.Generator().manual_seed(k) for k in range(40)])
    share = torch.bincount(drawn.flatten()) / drawn.numel()
    assert set(drawn.unique().tolist()) == {100, 101, 102}
    torch.testing.assert_close(share[100:], torch.tensor([1.0, 2.0, 3.0]) / 6, atol=0.04, rtol=0)


def test_broken_weights_do_not_act() -> None:
    policy = small_policy()
    inputs = policy.prepare_inputs(SUITE, *observations(1))
    with torch.no_grad():
        policy.projector.fc1.bias[0] = torch.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        policy.act(inputs, 0.0)


def test_gradients_reach_every_parameter() -> None:
    policy = small_policy()
    inputs = policy.prepare_inputs(SUITE, *observations(3))
    log_probs, _ = policy.log_probs(inputs, torch.zeros(3, 56, dtype=torch.long), 1.0)
    log_probs.sum().backward()
    silent = [n for n, p in policy.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


def saved_bytes(policy: OpenVLAOFT, inputs: Inputs) -> int:
    """Bytes of the activations that a forward pass keeps for the backward pass."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    for parameter in policy.parameters():
        kept[parameter.untyped_storage().data_ptr()] = 0
    weights = set(kept)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy.log_probs(inputs, torch.zeros(len(inputs), 56, dtype=torch.long), 1.0)
    return sum(size for address, size in kept.items() if address not in weights)


def test_gradient_checkpointing_changes_memory_and_nothing_else() -> None:
    plain, saving = small_policy(), small_policy(gradient_checkpointing=True)
    saving.make_trainable()
    inputs = plain.prepare_inputs(SUITE, *observations(3))
    for policy in (plain, saving):
        log_probs, _ = policy.log_probs(inputs, torch.zeros(3, 56, dtype=torch.long), 1.0)
        log_probs.sum().backward()
    for (name, one), two in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, msg=name)
    assert saved_bytes(saving, inputs) < 0.5 * saved_bytes(plain, inputs)
    other = copy.deepcopy(saving)  # has blocks of its own
    with torch.no_grad():
        other.language_model.model.layers[0].mlp.up_proj.weight.zero_()
        assert torch.equal(plain.action_logits(inputs), saving.action_logits(inputs))
        assert not torch.equal(plain.action_logits(inputs), other.action_logits(inputs))


def test_whole_weights_are_not_trained_in_bfloat16() -> None:
    with pytest.raises(ValueError, match="rounded away"):
        small_policy(dtype="bfloat16").make_trainable()


def learn_something(policy: OpenVLAOFT, inputs: Inputs, rate: float, updates: int = 2) -> None:
    """The second factor of adapters starts at zero, so the first moves from the second update on."""
    optimiser = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=rate)
    for _ in range(updates):
        log_probs, _ = policy.log_probs(inputs, torch.zeros(len(inputs), 56, dtype=torch.long), 1.0)
        optimiser.zero_grad()
        (-log_probs.sum()).backward()
        optimiser.step()


def test_adapters_start_at_nothing_and_are_kept_beside_the_weights(tmp_path: Path) -> None:
    """In float32 base weights; on the way the gradients reach the adapters and nothing else."""
    policy = small_policy(lora=Lora(rank=2, alpha=6.0))
    inputs = policy.prepare_inputs(SUITE, *observations(3))
    with torch.no_grad():
        before = policy.action_logits(inputs)
    weights = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    policy.make_trainable()
    with torch.no_grad():
        assert torch.equal(policy.action_logits(inputs), before)
    learn_something(policy, inputs, 1e-2)
    trained = {name for name, parameter in policy.named_parameters() if parameter.grad is not None}
    assert trained and all("lora_" in name for name in trained)
    silent = [n for n, p in policy.named_parameters() if p.requires_grad and not p.grad.abs().sum() > 0]
    assert silent == []
    assert not any("lm_head" in name for name in trained)
    with torch.no_grad():
        after = policy.action_logits(inputs)
    assert (after - before).abs().max() > 0.01
    save_policy(policy, tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    assert set(loaded.state_dict()) == set(weights) | trained
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in weights.items())
    with torch.no_grad():
        assert torch.equal(loaded.action_logits(inputs), after)
        # Merged, as OpenVLA's layout has them, they compute the same.
        merged = small_policy()
        merged.load_state_dict(loaded.merged_state_dict())
        np.testing.assert_allclose(merged.action_logits(inputs), after, atol=1e-4)
    # They train on, where the settings are theirs, and stay as they are where they are not to be trained.
    loaded.make_trainable(freeze_vision=True)
    learning = {name for name, parameter in loaded.named_parameters() if parameter.requires_grad}
    assert learning == {n for n in trained if not n.startswith(("vision_backbone.", "projector."))}
    with torch.no_grad():
        assert torch.equal(loaded.action_logits(inputs), after)
    with pytest.raises(CheckpointError, match=r"set policy\.lora to .*'rank': 2.*}$"):
        load_policy(tmp_path / "policy", policy=small_settings(lora=Lora(rank=4, alpha=6.0)))


def test_adapters_of_a_policy_in_bfloat16_are_float32_and_lose_nothing_when_saved(tmp_path: Path) -> None:
    """Updates of reinforcement learning are far smaller than the distance between two bfloat16 numbers."""
    policy = small_policy(lora=Lora(rank=2, alpha=4.0), dtype="bfloat16").to(torch.bfloat16)
    policy.make_trainable()
    inputs = policy.prepare_inputs(SUITE, *observations(2))
    learn_something(policy, inputs, 1e-6)
    trained = {name: p.detach() for name, p in policy.named_parameters() if p.requires_grad}
    assert {tensor.dtype for tensor in trained.values()} == {torch.float32}
    log_probs, _ = policy.log_probs(inputs, torch.zeros(2, 56, dtype=torch.long), 1.0)
    assert log_probs.dtype == torch.float32
    save_policy(policy, tmp_path / "policy")
    reloaded = load_policy(tmp_path / "policy")
    loaded = reloaded.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in trained.items())
    assert loaded["projector.fc1.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize("updates", [10, 60])
def test_a_reloaded_policy_with_adapters_acts_as_the_trained_one_in_bfloat16(
    tmp_path: Path, updates: int
) -> None:
    """The adapters' updates change what it does, and all of that change is still there after loading."""
    save_policy(small_policy(lora=Lora(rank=2, alpha=4.0), dtype="bfloat16"), tmp_path / "initial")
    policy = load_policy(tmp_path / "initial")
    inputs = policy.prepare_inputs(SUITE, *observations(2))
    with torch.no_grad():
        before = policy.action_logits(inputs)
    policy.make_trainable()
    learn_something(policy, inputs, 1e-4, updates)
    save_policy(policy, tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    with torch.no_grad():
        trained = policy.action_logits(inputs)
        assert torch.equal(loaded.action_logits(inputs), trained) and not torch.equal(trained, before)
    for temperature in (0.0, 1.6):
        acted = [
            each.act(inputs, temperature, [torch.Generator().manual_seed(k) for k in range(2)])
            for each in (policy, loaded)
        ]
        np.testing.assert_array_equal(acted[0][0], acted[1][0])
        np.testing.assert_array_equal(acted[0][1], acted[1][1])


def test_an_adapter_is_the_low_rank_product() -> None:
    torch.manual_seed(0)
    base = torch.nn.Linear(6, 5)
    layer = LoraLinear(base, rank=3, alpha=4.0)
    with torch.no_grad():
        layer.lora_B.normal_()
    x = torch.randn(2, 7, 6)
    expected = base(x) + 4 / 3 * x @ layer.lora_A.T @ layer.lora_B.T
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(torch.nn.functional.linear(x, layer.merged, base.bias), expected)
    # In bfloat16 what is computed is; the adapter and its gradient are not.
    half = LoraLinear(torch.nn.Linear(6, 5).bfloat16(), rank=3, alpha=4.0)
    y = half(x.bfloat16())
    y.sum().backward()
    assert y.dtype == torch.bfloat16 and half.lora_B.grad is not None
    assert half.lora_A.dtype == half.lora_B.grad.dtype == torch.float32


def test_two_encoders_are_fused() -> None:
    policy = small_policy(encoders=(ENCODER, ENCODER.model_copy(update={"cls_token": True, "registers": 2})))
    names = dict(policy.named_parameters())
    assert names["projector.fc1.weight"].shape == (4 * 32, 32)
    assert "vision_backbone.fused_featurizer.reg_token" in names and "projector.fc3.weight" in names
    assert policy.action_logits(policy.prepare_inputs(SUITE, *observations(2))).shape == (2, 56, 256)


def test_actions_are_unnormalised_and_the_gripper_inverted() -> None:
    policy = small_policy()
    tokens = np.full((1, 56), 255)
    tokens[0, 6] = 0  # gripper of the first step: the model's 0 closes
    actions = policy.actions(SUITE, tokens)
    assert actions.shape == (1, 8, 7)
    top = action_tokens.CENTRES[-1]
    np.testing.assert_allclose(actions[0, 0, :6], 0.5 * (top + 1) * 1.5 - 0.5)
    assert actions[0, 0, 6] == 1 and actions[0, 1, 6] == -1
    with pytest.raises(CheckpointError, match="libero_10"):
        policy.actions("libero_10", tokens)


class TestCheckpoint:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        save_policy(small_policy(), tmp_path / "policy")
        return tmp_path / "policy"

    def test_a_loaded_policy_acts_as_the_saved_one(self, folder: Path) -> None:
        saved, loaded = small_policy(), load_policy(folder)
        inputs = saved.prepare_inputs(SUITE, *observations(3))
        with torch.no_grad():
            assert torch.equal(saved.action_logits(inputs), loaded.action_logits(inputs))
        assert loaded.tokenizer(INSTRUCTIONS[0])["input_ids"] == saved.tokenizer(INSTRUCTIONS[0])["input_ids"]
        assert loaded.config.norm_stats == saved.config.norm_stats
        assert {file.suffix for file in folder.iterdir()} == {".json", ".safetensors"}

    def test_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"no config\.json"):
            load_policy(tmp_path)

    def test_another_architecture(self, folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
        with pytest.raises(CheckpointError, match="'llama' is not 'srpo_openvla_oft'"):
            load_policy(folder)

    def test_a_truncated_file(self, folder: Path) -> None:
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1000])
        with pytest.raises(CheckpointError, match="cannot be loaded"):
            load_policy(folder)

    @pytest.mark.parametrize("damage", ["missing", "unexpected", "shape"])
    def test_tensors_that_do_not_fit(self, folder: Path, damage: str) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / "model.safetensors")
        if damage == "missing":
            del tensors["projector.fc1.bias"]
        elif damage == "unexpected":
            tensors["surplus"] = torch.zeros(1)
        else:
            tensors["projector.fc1.bias"] = torch.zeros(3)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match="surplus" if damage == "unexpected" else r"fc1\.bias"):
            load_policy(folder)

    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_tensors_that_are_not_finite(self, folder: Path, value: float) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / "model.safetensors")
        tensors["projector.fc1.weight"][2, 1] = value
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(
            CheckpointError, match=r"model\.safetensors has values that are not finite in proj"
        ):
            load_policy(folder)

    @pytest.mark.parametrize(
        ("path", "value", "message"),
        [
            (
                "action.q01",
                [0.0] * 6,
                r"norm_stats\.libero_goal\.action: q01 is not a list of 7 .* but 6",
            ),
            ("action.q99", [1.0], "q99 is not a list of 7 numbers, but 1 values"),
            ("action.q99", 1.0, r"q99 is not a list of 7 numbers, but 1\.0"),
            ("action.q01", [math.nan] + [0.0] * 6, "q01 has nan, which is no finite number"),
            ("action.q99", [1.0] * 6 + [math.inf], "q99 has inf, which is no finite number"),
            ("action.q01", ["-1"] + [0.0] * 6, "q01 has '-1', which is no finite number"),
            ("action.q01", [0.0] * 5 + [1.5, 0.0], r"q01 is above q99 in dimensions \[5\]"),
            ("action.mask", ["false"] * 7, "mask is not a list of 7 times true or false"),
            ("action.mask", [True] * 6, "mask is not a list of 7 times true or false"),
            ("action.mask", [1] * 6 + [0], "mask is not a list of 7 times true or false"),
            ("action", None, r"norm_stats\.libero_goal\.action: they are missing"),
            ("proprio", None, r"norm_stats\.libero_goal\.proprio: they are missing"),
            ("proprio.q01", [0.0] * 7, r"proprio: q01 is not a list of 8 numbers, but 7"),
            ("", "none", "action: they are missing"),
        ],
    )
    @pytest.mark.parametrize("key", ["libero_goal", "libero_goal_no_noops"])
    def test_statistics_that_cannot_be_used(
        self, folder: Path, key: str, path: str, value: object, message: str
    ) -> None:
        config = json.loads((folder / "config.json").read_text())
        statistics = config["norm_stats"] = {key: copy.deepcopy(config["norm_stats"][SUITE])}
        *parents, last = [key, *path.split(".")] if path else [key]
        for name in parents:
            statistics = statistics[name]
        statistics[last] = value
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match=message.replace("libero_goal", key)):
            load_policy(folder)

    def test_statistics_of_other_robots_are_no_concern(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        other = {"action": {"q01": [0.0] * 14, "q99": [-1.0] * 14, "mask": None}}
        config["norm_stats"]["aloha"] = other
        (folder / "config.json").write_text(json.dumps(config))
        assert load_policy(folder).config.norm_stats["aloha"] == other

    def test_a_file_that_may_not_be_read_is_not_called_broken(self) -> None:
        with readable_by_all() as folder:
            save_policy(small_policy(), folder / "policy")
            for name in ("model.safetensors", "config.json"):
                (folder / "policy" / name).chmod(0)
                with as_nobody(), pytest.raises(CheckpointError, match=rf"{name}: this user may not read it"):
                    load_policy(folder / "policy")
                (folder / "policy" / name).chmod(0o644)

    def test_a_pickle_is_not_read(self, folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        with pytest.raises(CheckpointError):
            load_policy(folder)


@pytest.mark.parametrize("lora", [None, Lora(rank=2, alpha=4.0)])
def test_vision_can_be_left_as_it_is(lora: Lora | None) -> None:
    policy = small_policy(lora=lora)
    policy.make_trainable(freeze_vision=True)
    trained = {name.split(".")[0] for name, p in policy.named_parameters() if p.requires_grad}
    assert "language_model" in trained and not trained & {"vision_backbone", "projector"}
