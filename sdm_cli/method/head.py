"""SegFormer decoder, fused exactly: each stage's two linear maps become one, and upsampling
becomes two small matrix products added onto the finest map.

Source: method.md section 2, "Exact fusion". Bilinear interpolation is linear per channel with
weights that sum to one, so it commutes with the 1 x 1 convolutions around it; along each axis it
is a matrix. The parameters (and so checkpoints and gradients) are the published ones.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdm_cli.method.encoder import map_to_tokens


class StageLinear(nn.Module):
    """Holds one stage's linear under its published name."""

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(in_width, out_width)


class FuseConv(nn.Module):
    """Holds the fusing convolution and its normalisation under their published names."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4 * width, width, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)


class SegFormerHead(nn.Module):
    """Four feature maps to class logits at stride 4."""

    def __init__(self, widths: tuple[int, int, int, int], head_width: int, n_classes: int, dropout: float) -> None:
        super().__init__()
        for stage, width in enumerate(widths, start=1):
            self.add_module(f"linear_c{stage}", StageLinear(width, head_width))
        self.linear_fuse = FuseConv(head_width)
        self.linear_pred = nn.Conv2d(head_width, n_classes, 1)
        self.dropout = dropout

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Class logits of a batch.

        Args:
            maps: (B, C_i, H_i, W_i) of the four stages, channels-last.

        Returns:
            (B, K, H_1, W_1) logits at the resolution of the first map.
        """
        batch, _, height, width = maps[0].shape
        weights, bias = self._fused()
        rows = [
            _upsampled_rows(F.linear(map_to_tokens(image), weight).unflatten(1, image.shape[2:]), width)
            for image, weight in zip(maps[1:], weights[1:], strict=True)
        ]  # (B, H_i, W_1 * E) each
        finest = F.linear(map_to_tokens(maps[0]), weights[0], bias).view(batch, height, -1)  # (B, H_1, W_1 * E)
        columns = [_interpolation(image.shape[2], height, finest) for image in maps[1:]]
        fused = torch.baddbmm(
            finest, torch.cat(columns, 1).expand(batch, -1, -1), torch.cat(rows, 1)
        )  # the three coarse maps, upsampled along the height and added in one product
        hidden = fused.view(batch, height, width, -1).permute(0, 3, 1, 2)  # (B, E, H_1, W_1), channels-last
        hidden = F.relu(self.linear_fuse.bn(hidden), inplace=True)
        return self._predict(hidden)

    def _fused(self) -> tuple[list[Tensor], Tensor]:
        """One (E, C_i) matrix a stage, and the sum of their biases (E), from the parameters as they are."""
        fuse = self.linear_fuse.conv.weight.flatten(1).chunk(4, dim=1)  # order: stages 4, 3, 2, 1
        linears = [self.get_submodule(f"linear_c{stage}.proj") for stage in range(1, 5)]
        weights, bias = [], fuse[0].new_zeros(fuse[0].shape[0])
        for part, linear in zip(reversed(fuse), linears, strict=True):
            assert isinstance(linear, nn.Linear)
            weights.append(part @ linear.weight)
            bias = bias + part @ linear.bias
        return weights, bias

    def _predict(self, hidden: Tensor) -> Tensor:
        """Channel dropout and the last 1 x 1 convolution, (B, E, H, W) to (B, K, H, W).

        Dropping a channel of an image is dropping a column of that image's weights: no pass over the map.
        """
        weight = self.linear_pred.weight.flatten(1)  # (K, E)
        tokens = map_to_tokens(hidden)
        if self.training and self.dropout > 0:
            keep = 1 - self.dropout
            mask = hidden.new_empty(hidden.shape[0], 1, hidden.shape[1]).bernoulli_(keep).div_(keep)
            logits = tokens @ (weight * mask).transpose(1, 2).to(tokens.dtype) + self.linear_pred.bias
        else:
            logits = F.linear(tokens, weight, self.linear_pred.bias)
        return logits.transpose(1, 2).unflatten(2, hidden.shape[2:])


def _upsampled_rows(image: Tensor, width: int) -> Tensor:
    """(B, h, w, E) interpolated along the width only, as (B, h, W * E)."""
    matrix = _interpolation(image.shape[2], width, image)
    return torch.matmul(matrix, image).flatten(2)


def _interpolation(small: int, large: int, like: Tensor) -> Tensor:
    """(large, small) matrix of linear interpolation with align_corners false, in the dtype of `like`."""
    exact = torch.promote_types(like.dtype, torch.float32)
    position = (torch.arange(large, dtype=exact, device=like.device) + 0.5) * (small / large) - 0.5
    position = position.clamp(0, small - 1)
    nodes = torch.arange(small, dtype=exact, device=like.device)
    return (1 - (position[:, None] - nodes).abs()).clamp_min(0).to(like.dtype)
