"""Mix Transformer encoder (MiT b0-b5) of the SegFormer paper, on a channels-last token layout.

Source: method.md section 2; SegFormer (arXiv 2105.15203) section 3.1. Parameter names are those of
the authors' checkpoints. Tokens stay (B, N, C) throughout; seen as (B, C, H, W) they are a
channels-last image, so the convolutions of the Mix-FFN and of the spatial reduction need no copy.
"""

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class EncoderSizes:
    """The numbers that tell one Mix Transformer from another; one entry a stage."""

    widths: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    heads: tuple[int, int, int, int] = (1, 2, 5, 8)
    reductions: tuple[int, int, int, int] = (8, 4, 2, 1)


_WIDE = (64, 128, 320, 512)
ENCODER_SIZES = {
    "mit-b0": EncoderSizes((32, 64, 160, 256), (2, 2, 2, 2)),
    "mit-b1": EncoderSizes(_WIDE, (2, 2, 2, 2)),
    "mit-b2": EncoderSizes(_WIDE, (3, 4, 6, 3)),
    "mit-b3": EncoderSizes(_WIDE, (3, 4, 18, 3)),
    "mit-b4": EncoderSizes(_WIDE, (3, 8, 27, 3)),
    "mit-b5": EncoderSizes(_WIDE, (3, 6, 40, 3)),
}
_MLP_RATIO = 4


def tokens_to_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """(B, N, C) tokens as a (B, C, H, W) channels-last image, without a copy."""
    return tokens.reshape(tokens.shape[0], height, width, -1).permute(0, 3, 1, 2)


def map_to_tokens(image: Tensor) -> Tensor:
    """(B, C, H, W) as (B, N, C) tokens; no copy when the image is channels-last."""
    return image.permute(0, 2, 3, 1).flatten(1, 2)


class DropPath(nn.Module):
    """Stochastic depth: drops a residual branch for whole images, in training only."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, branch: Tensor) -> Tensor:
        """(B, N, C) to (B, N, C); kept branches are scaled to the same expectation."""
        if not self.training or self.probability == 0:
            return branch
        keep = 1 - self.probability
        mask = branch.new_empty(branch.shape[0], 1, 1).bernoulli_(keep).div_(keep)
        return branch * mask


class PatchEmbedding(nn.Module):
    """Overlapping convolution that starts a stage."""

    def __init__(self, in_channels: int, width: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, kernel, stride, kernel // 2)
        self.norm = nn.LayerNorm(width, eps=1e-5)

    def forward(self, image: Tensor) -> tuple[Tensor, int, int]:
        """(B, C_in, H, W) to (B, N, C) tokens and their grid's height and width."""
        weight = self.proj.weight
        if image.shape[1] == 1 and weight.shape[1] > 1:
            # A grey slice repeated over the channels meets the sum of the weights.
            weight = weight.sum(1, keepdim=True)
        image = F.conv2d(image, weight, self.proj.bias, self.proj.stride, self.proj.padding)
        return self.norm(map_to_tokens(image)), image.shape[2], image.shape[3]


class EfficientAttention(nn.Module):
    """Self-attention whose keys and values live on a spatially reduced grid."""

    def __init__(self, width: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.reduction = reduction
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        if reduction > 1:
            self.sr = nn.Conv2d(width, width, reduction, reduction)
            self.norm = nn.LayerNorm(width, eps=1e-5)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        query = self.q(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, C / heads)
        context = tokens
        if self.reduction > 1:
            context = self.norm(map_to_tokens(self.sr(tokens_to_map(tokens, height, width))))
        key, value = self.kv(context).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


class DepthwiseConv(nn.Module):
    """3 x 3 depthwise convolution on tokens; the nesting keeps the published parameter names."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        return map_to_tokens(self.dwconv(tokens_to_map(tokens, height, width)))


class MixFFN(nn.Module):
    """Feed-forward block with a convolution that carries position."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, _MLP_RATIO * width)
        self.dwconv = DepthwiseConv(_MLP_RATIO * width)
        self.fc2 = nn.Linear(_MLP_RATIO * width, width)

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        hidden: Tensor = self.fc2(F.gelu(self.dwconv(self.fc1(tokens), height, width)))
        return hidden


class EncoderBlock(nn.Module):
    """Attention and Mix-FFN, each normalised before and added after."""

    def __init__(self, width: int, heads: int, reduction: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = EfficientAttention(width, heads, reduction)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MixFFN(width)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens), height, width))
        out: Tensor = tokens + self.drop_path(self.mlp(self.norm2(tokens), height, width))
        return out


class Encoder(nn.Module):
    """Four stages of strides 4, 8, 16 and 32."""

    def __init__(self, sizes: EncoderSizes, drop_path: float) -> None:
        super().__init__()
        self.sizes = sizes
        total = sum(sizes.depths)
        rates = [drop_path * index / max(total - 1, 1) for index in range(total)]
        in_channels = 3
        for stage, width in enumerate(sizes.widths):
            kernel, stride = (7, 4) if stage == 0 else (3, 2)
            first = sum(sizes.depths[:stage])
            blocks = [
                EncoderBlock(width, sizes.heads[stage], sizes.reductions[stage], rate)
                for rate in rates[first : first + sizes.depths[stage]]
            ]
            self.add_module(f"patch_embed{stage + 1}", PatchEmbedding(in_channels, width, kernel, stride))
            self.add_module(f"block{stage + 1}", nn.ModuleList(blocks))
            self.add_module(f"norm{stage + 1}", nn.LayerNorm(width, eps=1e-6))
            in_channels = width
        self.apply(_initialise)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Feature maps of an image.

        Args:
            image: (B, 3, H, W), or (B, 1, H, W) for a grey image, in [0, 1].

        Returns:
            Four channels-last maps (B, C_i, H_i, W_i) at strides 4, 8, 16, 32 (rounded up).
        """
        maps = []
        for stage in range(1, 5):
            tokens, height, width = self.get_submodule(f"patch_embed{stage}")(image)
            blocks = self.get_submodule(f"block{stage}")
            assert isinstance(blocks, nn.ModuleList)
            for block in blocks:
                tokens = block(tokens, height, width)
            image = tokens_to_map(self.get_submodule(f"norm{stage}")(tokens), height, width)
            maps.append(image)
        return maps


def _initialise(module: nn.Module) -> None:
    """Truncated normal for linears, fan-out normal for convolutions (method.md, conventions)."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
