"""Checkpoints in OpenVLA's layout: the numbers of the network written out, and no surprise in loading."""

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from srpo.config import Lora
from srpo.policies.checkpoints import load_policy, save_openvla, save_policy
from srpo.policies.images import ImageTransform
from srpo.policies.weights import INDEX, CheckpointError, read_index
from support import openvla_layout as layout

SUITE = "libero_goal"
SHARD = "model-00002-of-00003.safetensors"


def observations(count: int) -> tuple[np.ndarray, list[str], np.ndarray]:
    images = np.random.default_rng(0).integers(0, 256, (count, 40, 40, 3), dtype=np.uint8)
    words = [layout.INSTRUCTIONS[k % 3] for k in range(count)]
    return images, words, np.zeros((count, 8), np.float32)


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return layout.random_tensors()


@pytest.fixture
def folder(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    layout.write(tmp_path / "official", tensors)
    return tmp_path / "official"


def test_logits_are_those_of_the_network_written_out(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Of each of a padded batch, in two orders; and no file of the checkpoint was executed."""
    policy = load_policy(folder, policy=layout.settings())
    images, words, proprio = observations(5)
    seen = np.stack([ImageTransform(28, 0.9, True)(image) for image in images])
    pixels = torch.from_numpy(seen).permute(0, 3, 1, 2) / 255
    tokenizer = policy.tokenizer
    texts = [f"In: What action should the robot take to {text}?\nOut:" for text in words]
    space = tokenizer.get_vocab()["▁"]
    prompts = [[*tokenizer(text, add_special_tokens=False).input_ids, space] for text in texts]
    assert len({len(prompt) for prompt in prompts}) > 1  # so that padding takes part
    expected = [layout.reference_logits(tensors, p, ids) for p, ids in zip(pixels, prompts, strict=True)]
    assert (torch.stack(expected).std(0) > 0.1).float().mean() > 0.9  # pictures and prompts matter
    for order in ([0, 1, 2, 3, 4], [3, 0], [4]):
        inputs = policy.prepare_inputs(SUITE, images[order], [words[k] for k in order], proprio[order])
        with torch.no_grad():
            logits = policy.action_logits(inputs)
        for k, row in zip(order, logits, strict=True):
            np.testing.assert_allclose(row, expected[k], atol=2e-4)
    assert not (folder / "executed").exists()


def test_actions_come_from_the_suites_statistics(folder: Path) -> None:
    policy = load_policy(folder, policy=layout.settings())
    tokens = np.full((1, 56), 127)  # centre 0: the middle of the range
    actions = policy.actions(SUITE, tokens)  # found as libero_goal_no_noops
    np.testing.assert_allclose(actions[0, 0, :6], [0.25, 0, 0.25, 0, 0, 0], atol=1e-6)
    with pytest.raises(CheckpointError, match=r"\['libero_goal_no_noops'\], not for 'libero_10'"):
        policy.statistics("libero_10")
    own = {SUITE: {"action": {"q01": [0.0] * 7, "q99": [1.0] * 7}}}
    (folder / "dataset_statistics.json").write_text(json.dumps(own))
    policy = load_policy(folder, policy=layout.settings())
    assert policy.statistics(SUITE) == own[SUITE]


def test_round_trips_are_exact(folder: Path, tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    first = load_policy(folder, policy=layout.settings())
    save_policy(first, tmp_path / "ours")
    ours = load_policy(tmp_path / "ours")
    save_openvla(ours, tmp_path / "theirs")
    theirs = load_policy(tmp_path / "theirs", policy=layout.settings())
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, tensors[name]), name
        assert torch.equal(tensor, ours.state_dict()[name]), name
        assert torch.equal(tensor, theirs.state_dict()[name]), name
    assert read_index(tmp_path / "theirs").keys() == tensors.keys()
    assert {n: e.shape for n, e in read_index(tmp_path / "theirs").items()} == {
        n: tuple(t.shape) for n, t in tensors.items()
    }
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert config["text_config"]["vocab_size"] == 704 and "auto_map" not in config
    assert theirs.config.norm_stats == first.config.norm_stats == layout.STATISTICS
    inputs = first.prepare_inputs(SUITE, *observations(2))
    with torch.no_grad():
        assert torch.equal(first.action_logits(inputs), theirs.action_logits(inputs))


def test_a_merged_policy_is_the_trained_one(folder: Path, tmp_path: Path) -> None:
    """Adapters too small for bfloat16 weights are all there in OpenVLA's layout."""
    settings = layout.settings(dtype="bfloat16", lora=Lora(rank=2, alpha=2.0))
    policy = load_policy(folder, policy=settings)
    policy.make_trainable()
    base = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if name.endswith("lora_B"):
                parameter.normal_(std=1e-4)
    save_openvla(policy, tmp_path / "theirs")
    merged = load_policy(tmp_path / "theirs", policy=layout.settings()).state_dict()
    adapted = [name.removesuffix(".lora_A") for name in base if name.endswith(".lora_A")]
    trained = policy.state_dict()
    for name in adapted:
        product = trained[f"{name}.lora_B"] @ trained[f"{name}.lora_A"]
        change = merged[f"{name}.weight"] - base[f"{name}.weight"].float()
        assert product.any()
        torch.testing.assert_close(change, product, rtol=1e-2, atol=1e-7)
    assert len(adapted) > 20


def test_what_nobody_reads_need_not_be_there(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    read = {n: t for n, t in tensors.items() if not re.search(r"attn_pool|r\.norm\.|blocks\.2\.", n)}
    assert len(tensors) - len(read) == 2 + 14 + 2 + 12 + 13
    layout.write(folder, read)
    load_policy(folder, policy=layout.settings())


def test_weights_are_held_as_configured(folder: Path) -> None:
    policy = load_policy(folder, policy=layout.settings(dtype="bfloat16"))
    assert {p.dtype for p in policy.parameters()} == {torch.bfloat16}
    whole = load_policy(folder, policy=layout.settings())
    inputs = policy.prepare_inputs(SUITE, *observations(3))
    with torch.no_grad():
        coarse, exact = policy.action_logits(inputs), whole.action_logits(inputs)
    assert coarse.dtype == torch.float32
    assert 0 < (coarse - exact).abs().max() < 0.1 * exact.abs().max()


class TestBrokenCheckpoints:
    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("projector.fc2.bias", None, r"missing: projector\.fc2\.bias"),
            ("vision_backbone.featurizer.blocks.0.ls1.gamma", torch.ones(16), r"unexpected: .*ls1\.gamma"),
            ("projector.fc2.bias", torch.ones(31), r"projector\.fc2\.bias \[31\] instead of \[32\]"),
            ("vision_backbone.featurizer.norm.bias", torch.ones(3), r"norm\.bias \[3\] instead of \[16\]"),
            ("projector.fc2.bias", torch.ones(32, dtype=torch.int64), r"another dtype: projector.* I64"),
        ],
    )
    def test_a_tensor_that_does_not_fit(
        self,
        folder: Path,
        tensors: dict[str, torch.Tensor],
        name: str,
        value: torch.Tensor | None,
        message: str,
    ) -> None:
        changed = {n: t for n, t in (tensors | {name: value}).items() if t is not None}
        layout.write(folder, changed)
        with pytest.raises(CheckpointError, match=message):
            load_policy(folder, policy=layout.settings())

    def test_all_that_does_not_fit_is_listed(self, folder: Path, tensors: dict[str, torch.Tensor]) -> None:
        layout.write(
            folder, {n: t for n, t in tensors.items() if not n.endswith("fc1.bias")} | {"x": torch.ones(1)}
        )
        with pytest.raises(CheckpointError, match=r"missing: .*fc1.*, .*fc1.*; unexpected: x"):
            load_policy(folder, policy=layout.settings())

    @pytest.mark.parametrize("damage", ["truncated", "header"])
    def test_a_corrupted_shard(self, folder: Path, damage: str) -> None:
        content = bytearray((folder / SHARD).read_bytes())
        if damage == "truncated":
            content = content[:-100]
        else:
            content[8:40] = b"\xff" * 32
        (folder / SHARD).write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{SHARD} cannot be loaded"):
            load_policy(folder, policy=layout.settings())

    def test_a_shard_that_is_not_there(self, folder: Path) -> None:
        (folder / SHARD).unlink()
        with pytest.raises(CheckpointError, match=rf"shards are missing: \['{SHARD}'\]"):
            load_policy(folder, policy=layout.settings())

    def test_a_shard_of_another_checkpoint(self, folder: Path) -> None:
        save_file({"something": torch.ones(1)}, folder / SHARD)
        with pytest.raises(CheckpointError, match=f"{INDEX} and the shards differ in .*something"):
            load_policy(folder, policy=layout.settings())

    def test_a_pickle_is_not_read(self, folder: Path, tmp_path: Path) -> None:
        class Payload:
            def __reduce__(self) -> tuple:
                return Path.touch, (tmp_path / "executed",)

        for file in folder.glob("*.safetensors*"):
            file.unlink()
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload()))
        with pytest.raises(CheckpointError, match=r"pytorch_model\.bin.*not read"):
            load_policy(folder, policy=layout.settings())
        assert not (tmp_path / "executed").exists()

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("rms_norm_eps", 1e-5, r"text_config\.rms_norm_eps 1e-05 instead of 1e-06"),
            ("num_attention_heads", 8, r"num_attention_heads 8 instead of 4"),
            ("vocab_size", 32064, r"vocab_size 32064 instead of 704"),
        ],
    )
    def test_a_stated_architecture_that_differs(
        self, folder: Path, key: str, value: float, message: str
    ) -> None:
        config = json.loads((folder / "config.json").read_text())
        config["text_config"][key] = value
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match=message):
            load_policy(folder, policy=layout.settings())

    def test_an_architecture_that_nobody_says(self, folder: Path) -> None:
        with pytest.raises(CheckpointError, match="convert it first"):
            load_policy(folder)

    @pytest.mark.parametrize("content", ["{", "[]"])
    def test_a_broken_description(self, folder: Path, content: str) -> None:
        (folder / "config.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"config\.json"):
            load_policy(folder, policy=layout.settings())

    def test_a_tokenizer_that_is_not_there(self, folder: Path) -> None:
        (folder / "tokenizer.json").unlink()
        with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
            load_policy(folder, policy=layout.settings())
