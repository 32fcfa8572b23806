"""A small random checkpoint in OpenVLA's layout, and its network in plain PyTorch.

Written from the description of the layout and of the network, with none of the package's own code for either.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from srpo.config import Encoder, LanguageModel, Policy

INSTRUCTIONS = ["turn on the stove", "put the bowl on the plate", "open the middle drawer of the cabinet"]
IMAGE, PATCH = 28, 14
DINO = {"width": 16, "depth": 3, "heads": 2, "hidden": 64, "prefix": 5}
SIGLIP = {"width": 24, "depth": 3, "heads": 3, "hidden": 60, "prefix": 0}
LLAMA = {"width": 32, "hidden": 48, "layers": 2, "heads": 4, "vocabulary": 640, "padding": 64}
MEANS = {"featurizer": (0.485, 0.456, 0.406), "fused_featurizer": (0.5, 0.5, 0.5)}
STDS = {"featurizer": (0.229, 0.224, 0.225), "fused_featurizer": (0.5, 0.5, 0.5)}
STATISTICS = {
    "libero_goal_no_noops": {
        "action": {
            "q01": [-0.5, -1, 0, -0.1, -0.2, -0.3, 0],
            "q99": [1, 1, 0.5, 0.1, 0.2, 0.3, 1],
            "mask": [True] * 6 + [False],
        },
    }
}


def settings(**changes: object) -> Policy:
    """The same sizes as our configuration says them."""
    common = {"patch_size": PATCH, "read_block": -2, "depth": 3}
    dino = Encoder(
        hidden_size=16, heads=2, mlp_ratio=4.0, registers=4, cls_token=True, layer_scale=True,
        mean=MEANS["featurizer"], std=STDS["featurizer"], **common,
    )  # fmt: skip
    siglip = Encoder(
        hidden_size=24, heads=3, mlp_ratio=2.5, registers=0, cls_token=False, layer_scale=False,
        mean=MEANS["fused_featurizer"], std=STDS["fused_featurizer"], **common,
    )  # fmt: skip
    llm = LanguageModel(
        hidden_size=32, intermediate_size=48, layers=2, heads=4, vocab_size=640, padding=64,
        rope_theta=10000.0, rms_norm_eps=1e-6,
    )  # fmt: skip
    values = dict(
        name="small", checkpoint=None, revision=None, image_size=IMAGE, crop_area=0.9, jpeg=True,
        proprio=False, learned_placeholders=False, encoders=(dino, siglip), llm=llm,
    )  # fmt: skip
    return Policy(**(values | changes))  # type: ignore[arg-type]


def random_tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    """Every tensor of the layout, those that nobody reads included."""
    draw = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}

    def normal(name: str, *shape: int, scale: float = 0.1, around: float = 0.0) -> None:
        tensors[name] = around + scale * torch.randn(*shape, generator=draw)

    def linear(name: str, inputs: int, outputs: int) -> None:
        normal(f"{name}.weight", outputs, inputs, scale=1.5 / math.sqrt(inputs))
        normal(f"{name}.bias", outputs)

    def norm(name: str, width: int) -> None:
        normal(f"{name}.weight", width, around=1.0)
        normal(f"{name}.bias", width)

    for featurizer, vit in (("featurizer", DINO), ("fused_featurizer", SIGLIP)):
        at, width = f"vision_backbone.{featurizer}", vit["width"]
        normal(f"{at}.patch_embed.proj.weight", width, 3, PATCH, PATCH)
        normal(f"{at}.patch_embed.proj.bias", width)
        normal(f"{at}.pos_embed", 1, (IMAGE // PATCH) ** 2, width, scale=0.5)
        if vit is DINO:
            normal(f"{at}.cls_token", 1, 1, width, scale=1.0)
            normal(f"{at}.reg_token", 1, 4, width, scale=1.0)
        for k in range(vit["depth"]):
            block = f"{at}.blocks.{k}"
            norm(f"{block}.norm1", width)
            linear(f"{block}.attn.qkv", width, 3 * width)
            linear(f"{block}.attn.proj", width, width)
            norm(f"{block}.norm2", width)
            linear(f"{block}.mlp.fc1", width, vit["hidden"])
            linear(f"{block}.mlp.fc2", vit["hidden"], width)
            if vit is DINO:
                normal(f"{block}.ls1.scale_factor", width, around=0.5)
                normal(f"{block}.ls2.scale_factor", width, around=0.5)
        norm(f"{at}.norm", width)
        if vit is SIGLIP:
            normal(f"{at}.attn_pool.latent", 1, 1, width)
            linear(f"{at}.attn_pool.q", width, width)
            linear(f"{at}.attn_pool.kv", width, 2 * width)
            linear(f"{at}.attn_pool.proj", width, width)
            norm(f"{at}.attn_pool.norm", width)
            linear(f"{at}.attn_pool.mlp.fc1", width, vit["hidden"])
            linear(f"{at}.attn_pool.mlp.fc2", vit["hidden"], width)
    linear("projector.fc1", 40, 160)
    linear("projector.fc2", 160, 32)
    linear("projector.fc3", 32, 32)
    width, rows = LLAMA["width"], LLAMA["vocabulary"] + LLAMA["padding"]
    normal("language_model.model.embed_tokens.weight", rows, width, scale=1.0)
    for k in range(LLAMA["layers"]):
        layer = f"language_model.model.layers.{k}"
        for name in "qkvo":
            normal(f"{layer}.self_attn.{name}_proj.weight", width, width, scale=0.3)
        normal(f"{layer}.mlp.gate_proj.weight", LLAMA["hidden"], width, scale=0.3)
        normal(f"{layer}.mlp.up_proj.weight", LLAMA["hidden"], width, scale=0.3)
        normal(f"{layer}.mlp.down_proj.weight", width, LLAMA["hidden"], scale=0.3)
        normal(f"{layer}.input_layernorm.weight", width, around=1.0)
        normal(f"{layer}.post_attention_layernorm.weight", width, around=1.0)
    normal("language_model.model.norm.weight", width, around=1.0)
    normal("language_model.lm_head.weight", rows, width, scale=0.5)
    return tensors


def write(folder: Path, tensors: dict[str, torch.Tensor], shards: int = 3) -> None:
    """A checkpoint folder as the hub has them, Python files included (they leave a mark if they are run)."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(tensors)
    weight_map = {}
    for k in range(shards):
        file = f"model-{k + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[k::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "architectures": ["OpenVLAForActionPrediction"],
        "auto_map": {
            "AutoConfig": "configuration_prismatic.OpenVLAConfig",
            "AutoModelForVision2Seq": "modeling_prismatic.OpenVLAForActionPrediction",
        },
        "model_type": "openvla",
        "image_sizes": [IMAGE, IMAGE],
        "timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
        "timm_override_act_layers": [None, None],
        "use_fused_vision_backbone": True,
        "n_action_bins": 256,
        "pad_to_multiple_of": 64,
        "text_config": {
            "model_type": "llama", "pad_token_id": 4, "vocab_size": 704, "hidden_size": 32,
            "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        },
        "norm_stats": STATISTICS,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    mark = "from pathlib import Path\nPath(__file__).with_name('executed').touch()\n"
    for name in ("configuration_prismatic.py", "modeling_prismatic.py", "processing_prismatic.py"):
        (folder / name).write_text(mark)
    # As Llama's: spaces are ▁, in front of every word.
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="first")
    trainer = trainers.BpeTrainer(
        vocab_size=60, special_tokens=["<unk>", "<s>", "</s>", "<PAD>"], show_progress=False
    )
    texts = [f"In: What action should the robot take to {words}?\nOut:" for words in INSTRUCTIONS]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    described = {
        "tokenizer_class": "LlamaTokenizer", "processor_class": "PrismaticProcessor", "bos_token": "<s>",
        "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<PAD>", "padding_side": "right",
        "auto_map": {"AutoProcessor": "processing_prismatic.PrismaticProcessor"},
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(described))


def reference_logits(
    tensors: dict[str, torch.Tensor], pixels: torch.Tensor, prompt: list[int], bos: int = 1, stop: int = 2
) -> torch.Tensor:
    """Logits (56, 256) of one picture (3, 28, 28) in [0, 1] and one prompt, in float64.

    Column k is action token k, which is id 639 − k of the vocabulary.
    """
    w = {name: tensor.double() for name, tensor in tensors.items()}

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        bias = w.get(f"{name}.bias")
        return x @ w[f"{name}.weight"].T + (0 if bias is None else bias)

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        x = x - x.mean(-1, keepdim=True)
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    def rms(name: str, x: torch.Tensor) -> torch.Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * w[f"{name}.weight"]

    def gelu(x: torch.Tensor) -> torch.Tensor:
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Everything looks at everything; (heads, tokens, d) → (tokens, heads · d)."""
        weights = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(q.shape[2]), -1)
        return (weights @ v).transpose(0, 1).flatten(1)

    def split(x: torch.Tensor, heads: int) -> torch.Tensor:
        return x.unflatten(1, (heads, -1)).transpose(0, 1)

    features = []
    for featurizer, vit in (("featurizer", DINO), ("fused_featurizer", SIGLIP)):
        at = f"vision_backbone.{featurizer}"
        mean, std = (torch.tensor(v[featurizer]).double()[:, None, None] for v in (MEANS, STDS))
        squares = ((pixels.double() - mean) / std).unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH)
        squares = squares.permute(1, 2, 0, 3, 4).reshape((IMAGE // PATCH) ** 2, -1)
        kernel = w[f"{at}.patch_embed.proj.weight"].flatten(1)
        x = squares @ kernel.T + w[f"{at}.patch_embed.proj.bias"] + w[f"{at}.pos_embed"][0]
        if vit is DINO:
            x = torch.cat([w[f"{at}.cls_token"][0], w[f"{at}.reg_token"][0], x])
        for b in range(vit["depth"] - 1):  # up to the second to last
            block = f"{at}.blocks.{b}"
            qkv = linear(f"{block}.attn.qkv", norm(f"{block}.norm1", x)).chunk(3, 1)
            mixed = linear(f"{block}.attn.proj", attention(*(split(part, vit["heads"]) for part in qkv)))
            x = x + mixed * w.get(f"{block}.ls1.scale_factor", 1)
            hidden = gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", x)))
            x = x + linear(f"{block}.mlp.fc2", hidden) * w.get(f"{block}.ls2.scale_factor", 1)
        features.append(x[vit["prefix"] :])
    patches = gelu(linear("projector.fc1", torch.cat(features, 1)))
    patches = linear("projector.fc3", gelu(linear("projector.fc2", patches)))

    embedding = w["language_model.model.embed_tokens.weight"]
    x = torch.cat(
        [embedding[[bos]], patches, embedding[prompt], torch.zeros(56, 32).double(), embedding[[stop]]]
    )
    first = 1 + len(patches) + len(prompt) - 1  # the token before the first placeholder
    d = LLAMA["width"] // LLAMA["heads"]
    angles = torch.arange(len(x)).double()[:, None] / 10000 ** (torch.arange(0, d, 2).double() / d)
    cos, sin = (torch.cat([f(angles)] * 2, 1) for f in (torch.cos, torch.sin))

    def rotate(x: torch.Tensor) -> torch.Tensor:
        left, right = x.chunk(2, 2)
        return x * cos + torch.cat([-right, left], 2) * sin

    for k in range(LLAMA["layers"]):
        layer = f"language_model.model.layers.{k}"
        h = rms(f"{layer}.input_layernorm", x)
        q, key, v = (split(linear(f"{layer}.self_attn.{n}_proj", h), LLAMA["heads"]) for n in "qkv")
        x = x + linear(f"{layer}.self_attn.o_proj", attention(rotate(q), rotate(key), v))
        h = rms(f"{layer}.post_attention_layernorm", x)
        gate = linear(f"{layer}.mlp.gate_proj", h)
        up = linear(f"{layer}.mlp.up_proj", h)
        x = x + linear(f"{layer}.mlp.down_proj", gate * torch.sigmoid(gate) * up)
    hidden = rms("language_model.model.norm", x)[first : first + 56]
    logits = linear("language_model.lm_head", hidden)
    return logits[:, [639 - k for k in range(256)]]
