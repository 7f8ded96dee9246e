"""Small ViT, wav2vec2 and BERT encoders without transformers, which takes seconds to import.

A network is its config.json and its weights, in the names that transformers writes; what it
computes is the same to the last bits. Only evaluation: training takes `loading`.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from emilib.features.encoders import AudioEncoder, TextEncoder, VisionEncoder

PLAIN = {  # what a config has to say; of other members of these families `loading` takes care
    "vit": {"hidden_act": "gelu", "qkv_bias": True},
    "wav2vec2": {"hidden_act": "gelu", "feat_extract_activation": "gelu", "add_adapter": False}
    | {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
    "bert": {"hidden_act": "gelu", "is_decoder": False, "add_cross_attention": False},
}
# Of a layer: norm, query, key, value, output of the attention, norm, both linear maps.
LAYERS = {
    "vit": "layernorm_before attention.attention.query attention.attention.key "
    "attention.attention.value attention.output.dense layernorm_after intermediate.dense "
    "output.dense",
    "wav2vec2": "layer_norm attention.q_proj attention.k_proj attention.v_proj attention.out_proj "
    "final_layer_norm feed_forward.intermediate_dense feed_forward.output_dense",
    "bert": "attention.output.LayerNorm attention.self.query attention.self.key "
    "attention.self.value attention.output.dense output.LayerNorm intermediate.dense output.dense",
}
UNREAD = ("masked_spec_embed", "mask_token", "pooler.dense.weight", "pooler.dense.bias")


def load(folder: Path):
    """The encoder that `loading.save_encoder` wrote; None where it is not one of these networks.

    Raises ValueError where its weights are not exactly those of its config.
    """
    config = json.loads((folder / "config.json").read_text("utf-8"))
    kind, path = config.get("model_type"), folder / "model.safetensors"
    plain = PLAIN.get(kind, {"model_type": ""}).items() <= config.items() and path.is_file()
    if not plain:
        return None
    network = Network(SimpleNamespace(**config), load_file(path)).eval()
    network.folder = folder
    settings = json.loads((folder / "encoder.json").read_text("utf-8"))
    if kind == "bert":
        encoder = TextEncoder(network, Tokens(folder / "tokenizer.json"), **settings)
        trial = encoder.tokens(["a b"])
        if encoder.tokenizer.size > config["vocab_size"]:
            raise ValueError(f"{folder}: expected {config['vocab_size']} tokens, got more")
    elif kind == "vit":
        encoder, side = VisionEncoder(network, **settings), config["image_size"]
        trial = {"images": torch.zeros(1, 3, side, side, dtype=torch.uint8)}
    else:
        encoder = AudioEncoder(network, **settings)
        samples = torch.zeros(1, encoder.shortest)
        trial = {"waveform": samples, "valid": samples == 0}
    try:
        with torch.inference_mode():
            encoder(**trial)
    except (KeyError, RuntimeError) as error:
        reason = str(error).strip("'").partition("\n")[0]
        raise ValueError(f"{path}: expected the weights of its config, got {reason}") from error
    if spare := sorted(set(network.weights) - network.read - set(UNREAD)):
        raise ValueError(f"{path}: expected the weights of its config, got also {spare[0]}")
    return encoder


class Tokens:
    """A kept tokenizer, called as those of transformers are."""

    def __init__(self, path: Path):
        self.tokenizer = Tokenizer.from_str(path.read_text("utf-8"))
        self.size = self.tokenizer.get_vocab_size()

    def __call__(self, texts, max_length: int, **options) -> dict[str, Tensor]:
        self.tokenizer.enable_truncation(max_length)
        self.tokenizer.enable_padding()
        rows = self.tokenizer.encode_batch(texts)
        lists = {name: [getattr(r, name) for r in rows] for name in ("ids", "attention_mask")}
        return {"input_ids": torch.tensor(lists.pop("ids"))} | {
            name: torch.tensor(values) for name, values in lists.items()
        }


class Network(nn.Module):
    """Frames, samples or tokens to hidden states (B, T, D), by tensors looked up by name."""

    def __init__(self, config: SimpleNamespace, weights: dict[str, Tensor]):
        super().__init__()
        self.config, self.read = config, set()
        self.values = nn.ParameterList(weights.values()).requires_grad_(False)
        self.weights = {name: number for number, name in enumerate(weights)}

    @property
    def device(self) -> torch.device:
        return self.values[0].device

    def __getitem__(self, name: str) -> Tensor:
        self.read.add(name)
        return self.values[self.weights[name]]

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self[f"{name}.weight"], self[f"{name}.bias"])

    def norm(self, name: str, x: Tensor, eps: float | None = None) -> Tensor:
        eps = self.config.layer_norm_eps if eps is None else eps
        return F.layer_norm(x, x.shape[-1:], self[f"{name}.weight"], self[f"{name}.bias"], eps)

    def layers(self, prefix: str, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Transformer layers; mask (B, 1, 1, T) bool, True = real. BERT's norm comes last."""
        kind, heads = self.config.model_type, self.config.num_attention_heads
        last = kind == "bert"
        for number in range(self.config.num_hidden_layers):
            names = (f"{prefix}.{number}.{name}" for name in LAYERS[kind].split())
            norm, *qkv, out, second, up, down = names
            y = x if last else self.norm(norm, x)
            q, k, v = (self.linear(n, y).unflatten(-1, (heads, -1)).transpose(1, 2) for n in qkv)
            y = F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)
            x = self.linear(out, y) + x
            y = x = self.norm(norm, x) if last else x
            y = y if last else self.norm(second, x)
            x = self.linear(down, F.gelu(self.linear(up, y))) + x
            x = self.norm(second, x) if last else x
        return x

    def forward(self, input_values=None, attention_mask=None, pixel_values=None, input_ids=None):
        mask = None
        if attention_mask is not None and not attention_mask.all():
            mask = attention_mask.bool()
        run = {"vit": self.vit, "wav2vec2": self.wav2vec2, "bert": self.bert}
        arguments = [x for x in (input_values, pixel_values, input_ids) if x is not None]
        return SimpleNamespace(last_hidden_state=run[self.config.model_type](*arguments, mask))

    def vit(self, pixels: Tensor, mask: None) -> Tensor:
        name = "embeddings.patch_embeddings.projection"
        weight = self[f"{name}.weight"]
        x = F.conv2d(pixels, weight, self[f"{name}.bias"], stride=weight.shape[-1])
        x = x.flatten(2).transpose(1, 2)
        first = self["embeddings.cls_token"].expand(len(x), -1, -1)
        x = torch.cat([first, x], dim=1) + self["embeddings.position_embeddings"]
        return self.norm("layernorm", self.layers("encoder.layer", x))

    def bert(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        word, kind, place = (
            self[f"embeddings.{name}_embeddings.weight"]
            for name in ("word", "token_type", "position")
        )
        x = self.norm("embeddings.LayerNorm", word[ids] + kind[0] + place[: ids.shape[1]])
        return self.layers("encoder.layer", x, None if mask is None else mask[:, None, None])

    def wav2vec2(self, waveform: Tensor, mask: Tensor | None) -> Tensor:
        x = waveform[:, None]
        for number, stride in enumerate(self.config.conv_stride):
            name = f"feature_extractor.conv_layers.{number}"
            x = F.conv1d(x, self[f"{name}.conv.weight"], self[f"{name}.conv.bias"], stride)
            x = F.gelu(self.norm(f"{name}.layer_norm", x.transpose(1, 2), 1e-5).transpose(1, 2))
        x = self.norm("feature_projection.layer_norm", x.transpose(1, 2))
        x = self.linear("feature_projection.projection", x)
        if mask is not None:  # of samples; now of steps
            steps = self._get_feat_extract_output_lengths(mask.sum(dim=1))
            mask = torch.arange(x.shape[1], device=x.device) < steps[:, None]
            x, mask = x * mask[..., None], mask[:, None, None]
        name, taps = "encoder.pos_conv_embed.conv", self.config.num_conv_pos_embeddings
        size, way = (self[f"{name}.parametrizations.weight.original{n}"] for n in (0, 1))
        weight = way * (size / way.square().sum(dim=(0, 1), keepdim=True).sqrt())
        options = {"padding": taps // 2, "groups": self.config.num_conv_pos_embedding_groups}
        places = F.conv1d(x.transpose(1, 2), weight, self[f"{name}.bias"], **options)
        x = x + F.gelu(places[..., : x.shape[1]]).transpose(1, 2)
        return self.norm("encoder.layer_norm", self.layers("encoder.layers", x, mask))

    def _get_feat_extract_output_lengths(self, samples: Tensor) -> Tensor:
        for kernel, stride in zip(self.config.conv_kernel, self.config.conv_stride, strict=True):
            samples = (samples - kernel) // stride + 1
        return samples
