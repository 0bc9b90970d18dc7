"""The encoders of `mmrl.models` in PyTorch, built from a tree of JAX parameters.

A tree is a nested dict of numpy arrays with the names of a checkpoint. All sizes follow from the
arrays, so a module needs only its subtree. Attention is `scaled_dot_product_attention`, which
chooses the fastest kernel of the device. Only the options that `benchmarks.step` uses are
implemented: pre-norm blocks without dropout, "mean" and "cls" pooling, batch norm, linear heads.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Tree = Mapping[str, Any]


def parameter(array: np.ndarray) -> nn.Parameter:
    """A float32 parameter with a copy of the array."""
    return nn.Parameter(torch.tensor(np.array(array), dtype=torch.float32))


def linear(tree: Tree) -> nn.Linear:
    """A linear layer; the kernel [in..., out...] may have several input and output axes."""
    kernel = np.asarray(tree["kernel"])
    bias = tree.get("bias")
    outputs = kernel.shape[-1] if bias is None else bias.size
    kernel = kernel.reshape(-1, outputs)
    layer = nn.Linear(*kernel.shape, bias=bias is not None)
    layer.weight = parameter(kernel.T)
    if bias is not None:
        layer.bias = parameter(bias.reshape(-1))
    return layer


def layer_norm(tree: Tree) -> nn.LayerNorm:
    """Layer normalisation over the last axis, as `mmrl.models.layers.LayerNorm`."""
    layer = nn.LayerNorm(tree["scale"].shape, eps=1e-6)
    layer.weight, layer.bias = parameter(tree["scale"]), parameter(tree["bias"])
    return layer


class Attention(nn.Module):
    """Self-attention with one kernel for query, key and value."""

    def __init__(self, tree: Tree) -> None:
        super().__init__()
        self.heads = tree["qkv"]["kernel"].shape[2]
        self.qkv, self.out = linear(tree["qkv"]), linear(tree["out"])

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x [B, L, width], mask bool[B, 1, 1, L] of the keys -> [B, L, width]."""
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # 3 B heads L head_dim
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out(out.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, tree: Tree) -> None:
        super().__init__()
        self.attention_norm = layer_norm(tree["attention_norm"])
        self.attention = Attention(tree["attention"])
        self.mlp_norm = layer_norm(tree["mlp_norm"])
        self.wide, self.out = linear(tree["mlp"]["wide"]), linear(tree["mlp"]["out"])

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [B, L, width] -> [B, L, width]."""
        x = x + self.attention(self.attention_norm(x), mask)
        return x + self.out(F.gelu(self.wide(self.mlp_norm(x))))


def blocks(tree: Tree) -> nn.ModuleList:
    """The blocks of a stack, scanned or unrolled."""
    if "blocks" in tree:
        depth = len(tree["blocks"]["mlp_norm"]["scale"])
        return nn.ModuleList(Block(_layer(tree["blocks"], index)) for index in range(depth))
    return nn.ModuleList(Block(tree[name]) for name in sorted(tree))


def _layer(tree: Any, index: int) -> Any:
    if isinstance(tree, Mapping):
        return {name: _layer(value, index) for name, value in tree.items()}
    return tree[index]


class Vit(nn.Module):
    """`mmrl.models.image.vit.Vit` with learned positions and mean pooling."""

    def __init__(self, tree: Tree, patch_size: int) -> None:
        super().__init__()
        kernel = tree["patch"]["kernel"]
        channels = kernel.shape[0] // patch_size**2
        self.patch = nn.Conv2d(channels, kernel.shape[1], patch_size, patch_size)
        square = kernel.reshape(patch_size, patch_size, channels, -1)
        self.patch.weight = parameter(square.transpose(3, 2, 0, 1))
        self.patch.bias = parameter(tree["patch"]["bias"])
        self.position = parameter(tree["position"])
        self.blocks, self.norm = blocks(tree["stack"]), layer_norm(tree["norm"])

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """image [B, C, H, W] -> pooled [B, width], regions [B, R, width]."""
        x = self.patch(image).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return x.mean(dim=1), x


class Text(nn.Module):
    """`mmrl.models.text.transformer.Transformer` with pool "cls"."""

    def __init__(self, tree: Tree) -> None:
        super().__init__()
        self.token = parameter(tree["token"]["embedding"])
        self.position = parameter(tree["position"])
        self.blocks, self.norm = blocks(tree["stack"]), layer_norm(tree["norm"])

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """tokens i64[N, L], mask bool[N, L] -> pooled [N, width], words [N, L, width]."""
        x = F.embedding(tokens.where(mask, 0), self.token) + self.position[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x, mask[:, None, None])
        x = self.norm(x)
        return x[:, 0], x


def conv(tree: Tree, stride: int = 1) -> nn.Conv2d:
    """A square convolution, padded by half its kernel size."""
    kernel = tree["kernel"]  # H W in out
    size, _, inputs, outputs = kernel.shape
    layer = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
    layer.weight = parameter(kernel.transpose(3, 2, 0, 1))
    return layer


def batch_norm(tree: Tree) -> nn.BatchNorm2d:
    """Batch normalisation with the statistics of the batch."""
    layer = nn.BatchNorm2d(tree["scale"].size)
    layer.weight, layer.bias = parameter(tree["scale"]), parameter(tree["bias"])
    return layer


class ResidualBlock(nn.Module):
    """Two or three convolutions with a shortcut; the first 3x3 convolution has the stride."""

    def __init__(self, tree: Tree, stride: int) -> None:
        super().__init__()
        count = sum(name.startswith("conv_") for name in tree)
        strides = [1, stride, 1] if count == 3 else [stride, 1]
        self.convs = nn.ModuleList(conv(tree[f"conv_{i}"], s) for i, s in enumerate(strides))
        self.norms = nn.ModuleList(batch_norm(tree[f"norm_{i}"]) for i in range(count))
        self.shortcut: nn.Module = nn.Identity()
        if "shortcut" in tree:
            projection = conv(tree["shortcut"], stride), batch_norm(tree["shortcut_norm"])
            self.shortcut = nn.Sequential(*projection)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] -> [B, C', H / stride, W / stride]."""
        shortcut = self.shortcut(x)
        for index, (layer, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = norm(layer(x))
            if index < len(self.convs) - 1:
                x = F.relu(x)
        return F.relu(x + shortcut)


class Resnet(nn.Module):
    """`mmrl.models.image.resnet.Resnet` with batch norm and without `small_stem`."""

    def __init__(self, tree: Tree, region_stage: int) -> None:
        super().__init__()
        self.region_stage = region_stage
        self.stem, self.stem_norm = conv(tree["stem"], 2), batch_norm(tree["stem_norm"])
        self.stages = nn.ModuleList()
        for stage in range(1, 5):
            names = sorted(name for name in tree if name.startswith(f"stage_{stage}_"))
            strides = [2 if stage > 1 else 1] + [1] * (len(names) - 1)
            members = (ResidualBlock(tree[n], s) for n, s in zip(names, strides, strict=True))
            self.stages.append(nn.Sequential(*members))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """image [B, C, H, W] -> pooled [B, width], regions [B, R, local_width]."""
        x = F.max_pool2d(F.relu(self.stem_norm(self.stem(image))), 3, 2, 1)
        regions = x
        for number, stage in enumerate(self.stages, start=1):
            x = stage(x)
            if number == self.region_stage:
                regions = x
        return x.mean(dim=(2, 3)), regions.flatten(2).transpose(1, 2)
