"""Small ViT, wav2vec2 and BERT encoders without transformers, which takes seconds to import.

A network is its config.json and its weights, in the names that transformers writes; its numbers
are those of transformers to the last bits. For evaluation: training takes `loading`.
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
LAYERS = {  # of a layer: norm, query, key, value, output of the attention, norm, both linear maps
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
    """The encoder that `loading.save_encoder` wrote; None where it is not one of these networks."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    kind = config.get("model_type")
    if kind not in PLAIN or not PLAIN[kind].items() <= config.items():
        return None
    network = Network(SimpleNamespace(**config), load_file(folder / "model.safetensors"), folder)
    settings = json.loads((folder / "encoder.json").read_text("utf-8"))
    if kind == "bert":
        return TextEncoder(network, Tokens(folder / "tokenizer.json"), **settings)
    return (VisionEncoder if kind == "vit" else AudioEncoder)(network, **settings)


class Tokens:
    """A kept tokenizer, called as those of transformers are."""

    def __init__(self, path: Path):
        self.tokenizer = Tokenizer.from_str(path.read_text("utf-8"))

    def __call__(self, texts, max_length: int, **options) -> dict[str, Tensor]:
        self.tokenizer.enable_truncation(max_length)
        self.tokenizer.enable_padding()
        rows = self.tokenizer.encode_batch(texts)
        mask = torch.tensor([row.attention_mask for row in rows])
        return {"input_ids": torch.tensor([row.ids for row in rows]), "attention_mask": mask}


class Network(nn.Module):
    """Frames, samples or tokens to hidden states (B, T, D), by tensors looked up by name."""

    def __init__(self, config: SimpleNamespace, weights: dict[str, Tensor], folder: Path):
        super().__init__()
        self.config, self.folder = config, folder
        self.values = nn.ParameterList(weights.values()).requires_grad_(False)
        self.places = {name: place for place, name in enumerate(weights)}
        self.unread = set(weights)

    @property
    def device(self) -> torch.device:
        return self.values[0].device

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.places:
            raise ValueError(f"{self.folder}: expected weights with {name}, got none")
        self.unread.discard(name)
        return self.values[self.places[name]]

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self[f"{name}.weight"], self[f"{name}.bias"])

    def norm(self, name: str, x: Tensor) -> Tensor:
        eps = 1e-5 if "conv_layers" in name else self.config.layer_norm_eps
        return F.layer_norm(x, x.shape[-1:], self[f"{name}.weight"], self[f"{name}.bias"], eps)

    def layers(self, prefix: str, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Transformer layers; mask (B, T) bool, True = real. BERT's norms come last."""
        kind, heads = self.config.model_type, self.config.num_attention_heads
        last, mask = kind == "bert", None if mask is None else mask[:, None, None]
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

    def forward(self, waveform=None, attention_mask=None, pixel_values=None, input_ids=None):
        mask = None if attention_mask is None or attention_mask.all() else attention_mask.bool()
        if waveform is not None:
            states = self.wav2vec2(waveform, mask)
        else:
            states = self.bert(input_ids, mask) if pixel_values is None else self.vit(pixel_values)
        return SimpleNamespace(last_hidden_state=states)

    def vit(self, pixels: Tensor) -> Tensor:
        name = "embeddings.patch_embeddings.projection"
        weight = self[f"{name}.weight"]
        x = F.conv2d(pixels, weight, self[f"{name}.bias"], stride=weight.shape[-1])
        first = self["embeddings.cls_token"].expand(len(x), -1, -1)
        x = torch.cat([first, x.flatten(2).transpose(1, 2)], dim=1)
        x = self.layers("encoder.layer", x + self["embeddings.position_embeddings"])
        return self.norm("layernorm", x)

    def bert(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        kinds = ("word", "token_type", "position")
        word, kind, place = (self[f"embeddings.{name}_embeddings.weight"] for name in kinds)
        x = self.norm("embeddings.LayerNorm", word[ids] + kind[0] + place[: ids.shape[1]])
        return self.layers("encoder.layer", x, mask)

    def wav2vec2(self, waveform: Tensor, mask: Tensor | None) -> Tensor:
        x, config = waveform[:, None], self.config
        for number, stride in enumerate(config.conv_stride):
            name = f"feature_extractor.conv_layers.{number}"
            x = F.conv1d(x, self[f"{name}.conv.weight"], self[f"{name}.conv.bias"], stride)
            x = F.gelu(self.norm(f"{name}.layer_norm", x.transpose(1, 2)).transpose(1, 2))
        x = self.norm("feature_projection.layer_norm", x.transpose(1, 2))
        x = self.linear("feature_projection.projection", x)
        if mask is not None:  # of samples; now of steps
            steps = self._get_feat_extract_output_lengths(mask.sum(dim=1))
            mask = torch.arange(x.shape[1], device=x.device) < steps[:, None]
            x = x * mask[..., None]
        name, taps = "encoder.pos_conv_embed.conv", config.num_conv_pos_embeddings
        size, way = (self[f"{name}.parametrizations.weight.original{n}"] for n in (0, 1))
        weight = way * (size / way.square().sum(dim=(0, 1), keepdim=True).sqrt())
        options = {"padding": taps // 2, "groups": config.num_conv_pos_embedding_groups}
        places = F.conv1d(x.transpose(1, 2), weight, self[f"{name}.bias"], **options)
        x = x + F.gelu(places[..., : x.shape[1]]).transpose(1, 2)
        return self.norm("encoder.layer_norm", self.layers("encoder.layers", x, mask))

    def _get_feat_extract_output_lengths(self, samples: Tensor) -> Tensor:
        for kernel, stride in zip(self.config.conv_kernel, self.config.conv_stride, strict=True):
            samples = (samples - kernel) // stride + 1
        return samples
