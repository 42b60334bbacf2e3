"""The network as published, written plainly: the baseline that `sdm_cli.method` is measured and tested against.

The same parameter names as `MessengerNetwork`, so that one state dict loads into both, and the same
method.md section 2, formulated as the published implementations of SegFormer and S&D Messenger do:
depthwise convolutions on channels-first copies of the tokens, attention as softmax(Q K^T) V,
a decoder that upsamples four E-wide maps to stride 4 and fuses them there, grey slices repeated to
three channels, and at inference both messenger branches on a doubled batch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdm_cli.config import ModelConfig
from sdm_cli.method.encoder import EncoderSizes


class PatchEmbedding(nn.Module):
    def __init__(self, in_channels: int, width: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, kernel, stride, kernel // 2)
        self.norm = nn.LayerNorm(width, eps=1e-5)

    def forward(self, image: Tensor) -> tuple[Tensor, int, int]:
        image = self.proj(image)
        return self.norm(image.flatten(2).transpose(1, 2)), image.shape[2], image.shape[3]


class EfficientAttention(nn.Module):
    def __init__(self, width: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads, self.reduction, self.scale = heads, reduction, (width // heads) ** -0.5
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        if reduction > 1:
            self.sr = nn.Conv2d(width, width, reduction, reduction)
            self.norm = nn.LayerNorm(width, eps=1e-5)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        B, N, C = x.shape
        q = self.q(x).reshape(B, N, self.heads, C // self.heads).permute(0, 2, 1, 3)
        if self.reduction > 1:
            reduced = self.sr(x.permute(0, 2, 1).reshape(B, C, height, width)).reshape(B, C, -1).permute(0, 2, 1)
            kv = self.kv(self.norm(reduced))
        else:
            kv = self.kv(x)
        k, v = kv.reshape(B, -1, 2, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        attention = ((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1)
        return self.proj((attention @ v).transpose(1, 2).reshape(B, N, C))


class DepthwiseConv(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        B, _, C = x.shape
        # Without contiguous() the transposed view would already be the channels-last image that sdm_cli works on.
        image = x.transpose(1, 2).contiguous().view(B, C, height, width)
        return self.dwconv(image).flatten(2).transpose(1, 2)


class MixFFN(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.dwconv = DepthwiseConv(4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        return self.fc2(F.gelu(self.dwconv(self.fc1(x), height, width)))


class EncoderBlock(nn.Module):
    def __init__(self, width: int, heads: int, reduction: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = EfficientAttention(width, heads, reduction)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MixFFN(width)
        self.drop_path = drop_path

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        x = x + self._drop(self.attn(self.norm1(x), height, width))
        return x + self._drop(self.mlp(self.norm2(x), height, width))

    def _drop(self, x: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0:
            return x
        keep = 1 - self.drop_path
        return x.div(keep) * (keep + torch.rand(x.shape[0], 1, 1, dtype=x.dtype, device=x.device)).floor_()


class Encoder(nn.Module):
    def __init__(self, sizes: EncoderSizes, drop_path: float) -> None:
        super().__init__()
        rates = torch.linspace(0, drop_path, sum(sizes.depths)).tolist()
        in_channels = 3
        for stage, width in enumerate(sizes.widths):
            kernel, stride = (7, 4) if stage == 0 else (3, 2)
            self.add_module(f"patch_embed{stage + 1}", PatchEmbedding(in_channels, width, kernel, stride))
            blocks = [
                EncoderBlock(width, sizes.heads[stage], sizes.reductions[stage], rates.pop(0))
                for _ in range(sizes.depths[stage])
            ]
            self.add_module(f"block{stage + 1}", nn.ModuleList(blocks))
            self.add_module(f"norm{stage + 1}", nn.LayerNorm(width, eps=1e-6))
            in_channels = width

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for stage in range(1, 5):
            x, height, width = getattr(self, f"patch_embed{stage}")(x)
            for block in getattr(self, f"block{stage}"):
                x = block(x, height, width)
            x = getattr(self, f"norm{stage}")(x)
            x = x.reshape(x.shape[0], height, width, -1).permute(0, 3, 1, 2).contiguous()
            maps.append(x)
        return maps


class ChannelAttention(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        for branch in ("u_u", "l_u"):
            for role in ("query", "key", "value"):
                self.add_module(f"{role}_{branch}", nn.Linear(width, heads * width, bias=False))
        self.out_u = nn.Linear(heads * width, width, bias=False)
        self.out_l = nn.Linear(heads * width, width, bias=False)
        self.norm_u = nn.InstanceNorm2d(heads)
        self.norm_l = nn.InstanceNorm2d(1)
        self.map_dropout = nn.Dropout(dropout)
        self.out_dropout = nn.Dropout(dropout)

    def forward(self, labeled: Tensor, unlabeled: Tensor) -> tuple[Tensor, Tensor]:
        B, N, C = unlabeled.shape
        q, k, v = (
            getattr(self, f"{role}_u_u")(unlabeled).reshape(B, N, self.heads, C).permute(0, 2, 3, 1)
            for role in ("query", "key", "value")
        )
        attention = self.map_dropout(self.norm_u(q @ k.transpose(-1, -2)).softmax(-1))
        mixed_u = (attention @ v).permute(0, 3, 2, 1).reshape(B, N, -1)
        q = self.query_l_u(labeled).transpose(1, 2)
        k, v = (
            layer(unlabeled).permute(1, 0, 2).reshape(1, N, -1).repeat(labeled.shape[0], 1, 1)
            for layer in (self.key_l_u, self.value_l_u)
        )
        attention = self.map_dropout(self.norm_l((q @ k)[:, None])[:, 0].softmax(-1))
        mixed_l = (attention @ v.transpose(1, 2)).transpose(1, 2)
        return self.out_dropout(self.out_l(mixed_l)), self.out_dropout(self.out_u(mixed_u))


class U2LBlock(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.map_in = nn.Sequential(nn.Conv2d(width, width, 1), nn.GELU())
        self.attn_norm = nn.LayerNorm(width, eps=1e-6)
        self.attn = ChannelAttention(width, heads, dropout)
        self.encoder_norm = nn.LayerNorm(width, eps=1e-6)
        self.map_out = nn.Sequential(nn.Conv2d(width, width, 1), nn.GELU())

    def forward(self, image: Tensor) -> Tensor:
        B, C, H, W = image.shape
        residual = self.map_in(image).permute(0, 2, 3, 1).reshape(B, H * W, C)
        mixed = torch.cat(self.attn(*self.attn_norm(residual).chunk(2)))
        tokens = self.encoder_norm(mixed + residual)
        return self.map_out(tokens.permute(0, 2, 1).reshape(B, C, H, W))


class StageLinear(nn.Module):
    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(in_width, out_width)

    def forward(self, x: Tensor) -> Tensor:
        B, _, H, W = x.shape
        return self.proj(x.flatten(2).transpose(1, 2)).permute(0, 2, 1).reshape(B, -1, H, W)


class FuseConv(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4 * width, width, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class SegFormerHead(nn.Module):
    def __init__(self, widths: tuple[int, int, int, int], head_width: int, n_classes: int, dropout: float) -> None:
        super().__init__()
        for stage, width in enumerate(widths, start=1):
            self.add_module(f"linear_c{stage}", StageLinear(width, head_width))
        self.linear_fuse = FuseConv(head_width)
        self.linear_pred = nn.Conv2d(head_width, n_classes, 1)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, maps: list[Tensor]) -> Tensor:
        size = maps[0].shape[2:]
        wide = [getattr(self, f"linear_c{stage}")(image) for stage, image in enumerate(maps, start=1)]
        wide = [F.interpolate(image, size=size, mode="bilinear", align_corners=False) for image in wide]
        return self.linear_pred(self.dropout(self.linear_fuse(torch.cat(wide[::-1], dim=1))))


class Framework(nn.Module):
    def __init__(self, widths: tuple[int, int, int, int], config: ModelConfig, n_classes: int) -> None:
        super().__init__()
        for stage in sorted(config.messenger_stages):
            block = U2LBlock(widths[stage - 1], config.messenger_heads, config.messenger_dropout)
            self.add_module(f"u2l_module_{stage - 1}", block)
        self.decoder = SegFormerHead(widths, config.head_width, n_classes, config.head_dropout)


class PlainNetwork(nn.Module):
    """Takes the arguments of `MessengerNetwork` and answers the same two calls."""

    def __init__(self, sizes: EncoderSizes, config: ModelConfig, n_classes: int) -> None:
        super().__init__()
        self.backbone = Encoder(sizes, config.drop_path)
        self.framework = Framework(sizes.widths, config, n_classes)

    def forward(self, labeled: Tensor, unlabeled: Tensor) -> tuple[Tensor, Tensor]:
        """Training: (B, 1 or 3, H, W) twice to logits (B, K, H, W) twice."""
        images = _repeated(torch.cat([labeled, unlabeled]))
        maps = [self._messenger(stage)(image) for stage, image in enumerate(self.backbone(images))]
        logits_l, logits_u = self._decode(maps, images).chunk(2)
        return logits_l, logits_u

    def predict(self, images: Tensor) -> Tensor:
        """Inference: (B, 1 or 3, H, W) to logits (B, K, H, W), with the published exchange across the batch."""
        images = _repeated(images)
        maps = [
            self._messenger(stage)(torch.cat([image, image]))[: len(image)]
            for stage, image in enumerate(self.backbone(images))
        ]
        return self._decode(maps, images)

    def _messenger(self, stage: int) -> nn.Module:
        return getattr(self.framework, f"u2l_module_{stage}", nn.Identity())

    def _decode(self, maps: list[Tensor], images: Tensor) -> Tensor:
        logits = self.framework.decoder(maps)
        return F.interpolate(logits, size=images.shape[2:], mode="bilinear", align_corners=False)


def _repeated(images: Tensor) -> Tensor:
    return images.repeat(1, 3 // images.shape[1], 1, 1)
