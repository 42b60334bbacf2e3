"""SegFormer decoder, fused exactly: one linear map a stage, upsampling as matrix products.

Source: method.md section 2, "Exact fusion". Bilinear interpolation is linear per channel with
weights that sum to one, so it commutes with the 1 x 1 convolutions around it; along each axis it
is a matrix. In evaluation the batch normalisation is linear too and joins them. The parameters (and
so checkpoints and gradients) are the published ones.

What costs time is passes over the (B, E, H/4, W/4) map, so each is counted: it is made by one
product and completed in place by another.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdm_cli.method.encoder import map_to_tokens, tokens_to_map
from sdm_cli.method.readout import readout


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
        norm = self.linear_fuse.bn
        weights, bias = self._fused()
        if not norm.training:
            weights, bias = _normalised(norm, weights, bias)
        biases = (None, None, bias)  # at the smallest map, where adding it costs least
        coarse = [
            _upsampled_columns(F.linear(image.permute(0, 2, 3, 1), weight, share), height)
            for image, weight, share in zip(maps[1:], weights[1:], biases, strict=True)
        ]  # (B * H_1, W_i, E) each
        matrix = torch.cat([_interpolation(image.shape[1], width, image) for image in coarse], 1)
        finest = F.linear(map_to_tokens(maps[0]).reshape(batch * height, width, -1), weights[0])
        # The coarse maps, upsampled along the width and added to the finest one in a single product.
        fused = finest.baddbmm_(matrix.expand(batch * height, -1, -1), torch.cat(coarse, 1))
        return tokens_to_map(self._read(fused.view(batch, height * width, -1), height, width), height, width)

    def _fused(self) -> tuple[list[Tensor], Tensor]:
        """One (E, C_i) matrix a stage, and the sum of their biases (E), from the parameters as they are."""
        fuse = self.linear_fuse.conv.weight.flatten(1).chunk(4, dim=1)  # order: stages 4, 3, 2, 1
        weights, bias = [], fuse[0].new_zeros(fuse[0].shape[0])
        for stage, part in enumerate(reversed(fuse), start=1):
            weights.append(part @ self.get_parameter(f"linear_c{stage}.proj.weight"))
            bias = bias + part @ self.get_parameter(f"linear_c{stage}.proj.bias")
        return weights, bias

    def _read(self, fused: Tensor, height: int, width: int) -> Tensor:
        """What is left of the normalisation, ReLU, channel dropout and the last 1 x 1 convolution.

        (B, N, E) to (B, N, K). Dropping a channel of an image is dropping a column of that image's weights: no
        pass over the map.
        """
        norm = self.linear_fuse.bn
        weight, bias = self.linear_pred.weight.flatten(1), self.get_parameter("linear_pred.bias")  # (K, E), (K)
        if not norm.training:
            return F.linear(F.relu(fused, inplace=True), weight, bias)
        keep = 1 - self.dropout
        mask = weight.new_empty(fused.shape[0], 1, fused.shape[2]).bernoulli_(keep).div_(keep)
        if fused.device.type == "cpu" and type(norm) is nn.BatchNorm2d:
            return readout(fused, norm, weight * mask) + bias
        hidden = map_to_tokens(F.relu(norm(tokens_to_map(fused, height, width)), inplace=True))
        return hidden @ (weight * mask).transpose(1, 2).to(hidden.dtype) + bias


def _normalised(norm: nn.BatchNorm2d, weights: list[Tensor], bias: Tensor) -> tuple[list[Tensor], Tensor]:
    """The fused maps with the normalisation of evaluation, a scale and a shift per channel, multiplied in."""
    mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    scale = norm.get_parameter("weight") * (variance + norm.eps).rsqrt()
    return [weight * scale[:, None] for weight in weights], (bias - mean) * scale + norm.get_parameter("bias")


def _upsampled_columns(image: Tensor, height: int) -> Tensor:
    """(B, h, w, E) interpolated along the height only, as (B * H, w, E)."""
    matrix = _interpolation(image.shape[1], height, image).expand(image.shape[0], -1, -1)
    return torch.bmm(matrix, image.flatten(2)).view(-1, *image.shape[2:])


def _interpolation(small: int, large: int, like: Tensor) -> Tensor:
    """(large, small) matrix of linear interpolation with align_corners false, in the dtype of `like`."""
    exact = torch.promote_types(like.dtype, torch.float32)
    position = (torch.arange(large, dtype=exact, device=like.device) + 0.5) * (small / large) - 0.5
    position = position.clamp(0, small - 1)
    nodes = torch.arange(small, dtype=exact, device=like.device)
    return (1 - (position[:, None] - nodes).abs()).clamp_min(0).to(like.dtype)
