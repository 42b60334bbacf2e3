"""U2L delivery: features of unlabeled slices reach the labeled ones (Messenger Transformer block).

Source: method.md section 2 (paper section 3.3). Attention runs over channels: each map is as
large as the width of the stage, whatever the size of the image.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdm_cli.method.encoder import map_to_tokens, tokens_to_map
from sdm_cli.method.gather import gather_images

Exchange = Literal["batch", "image"]
ExchangeOver = Literal["process", "all"]
_NORM_EPS = 1e-5


class ChannelAttention(nn.Module):
    """Channel-wise attention of the unlabeled half to itself and of the labeled half to it."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        for branch in ("u_u", "l_u"):
            for role in ("query", "key", "value"):
                self.add_module(f"{role}_{branch}", nn.Linear(width, heads * width, bias=False))
        self.out_u = nn.Linear(heads * width, width, bias=False)
        self.out_l = nn.Linear(heads * width, width, bias=False)
        self.map_dropout = dropout
        self.out_dropout = nn.Dropout(dropout)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)

    def unlabeled(self, unlabeled: Tensor) -> Tensor:
        """Self-attention of each image, (B_u, N, C) to (B_u, N, C), one C x C map a head."""
        query, key, value = (
            self.get_submodule(f"{role}_u_u")(unlabeled).unflatten(2, (self.heads, -1)).permute(0, 2, 3, 1)
            for role in ("query", "key", "value")
        )  # (B_u, h, C, N)
        mixed = self._attend(query, key, value)
        mixed = mixed.permute(0, 3, 2, 1).flatten(2)  # (B_u, N, C * h): the head index is the fastest
        out: Tensor = self.out_dropout(self.out_u(mixed))
        return out

    def labeled(self, labeled: Tensor, unlabeled: Tensor, exchange: Exchange) -> Tensor:
        """Cross-attention of labeled images to unlabeled ones.

        Args:
            labeled: (B_l, N, C), source of the queries.
            unlabeled: (B_u, N, C), source of keys and values.
            exchange: `batch` lets every labeled image attend to all unlabeled ones; `image`
                lets image b attend to unlabeled image b alone (B_l equal to B_u).

        Returns:
            (B_l, N, C).
        """
        query = self.get_submodule("query_l_u")(labeled).transpose(1, 2).unsqueeze(1)  # (B_l, 1, hC, N)
        key, value = (self.get_submodule(f"{role}_l_u")(unlabeled).transpose(1, 2) for role in ("key", "value"))
        if exchange == "batch":
            # (B_u, hC, N) to (1, B_u * hC, N), shared by every labeled image.
            key, value = (part.flatten(0, 1).unsqueeze(0) for part in (key, value))
        mixed = self._attend(query, key.unsqueeze(1), value.unsqueeze(1)).squeeze(1).transpose(1, 2)
        out: Tensor = self.out_dropout(self.out_l(mixed))
        return out

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Channel attention of (B, heads, C_q, N) to (B or 1, heads, C_k, N), giving (B, heads, C_q, N).

        Softmax forgets what is added to a row, so of the instance norm (no affine, eps 1e-5) only the division
        by the map's deviation is left, and that is known before the map is: the attention becomes the ordinary
        one, with channels in the place of tokens, and its fused kernels never hold a map.
        """
        query = query / _map_deviation(query, key)
        if self.training and self.map_dropout > 0:
            kept = (query @ key.transpose(-1, -2)).softmax(-1)  # (B, heads, C_q, C_k)
            kept = kept.masked_fill(_drawn(kept, self.map_dropout), 0.0)
            return kept @ (value / (1 - self.map_dropout))
        # The fused kernels want contiguous rows, and as many keys as queries.
        key, value = (part.contiguous().expand(query.shape[0], -1, -1, -1) for part in (key, value))
        return F.scaled_dot_product_attention(query.contiguous(), key, value, scale=1.0)


def _map_deviation(query: Tensor, key: Tensor) -> Tensor:
    """Square root of variance + 1e-5 of each map query @ key^T, (..., 1, 1), without making a large map.

    The variance is that of the row means and, around them, the mean square of query @ (key - mean key)^T. The
    latter is the sum of a product of two N x N Gram matrices; with few channels the map itself is smaller.
    """
    with torch.autocast(query.device.type, enabled=False):  # squares of channel sums leave the range of float16
        query, key = (part.to(torch.promote_types(part.dtype, torch.float32)) for part in (query, key))
        n_query, n_key, n_tokens = query.shape[-2], key.shape[-2], key.shape[-1]
        mean_key = key.mean(-2, keepdim=True)
        centred = key - mean_key
        if n_tokens < n_query:
            grams = (query.transpose(-1, -2) @ query) * (centred.transpose(-1, -2) @ centred)
            around = grams.sum((-2, -1), keepdim=True) / (n_query * n_key)
        else:
            around = (query @ centred.transpose(-1, -2)).square().mean((-2, -1), keepdim=True)
        row_means = query @ mean_key.transpose(-1, -2)  # (..., C_q, 1)
        return (around + row_means.var(-2, correction=0, keepdim=True) + _NORM_EPS).sqrt()


def _drawn(like: Tensor, probability: float) -> Tensor:
    """Mask of the shape of `like`, true with a probability (to 1/65536).

    Sixteen random bits an element, four elements a draw: on a CPU several times faster than a uniform number each,
    and the maps of a batch of 8 + 8 have tens of millions of elements.
    """
    draws = torch.empty((like.numel() + 3) // 4, dtype=torch.int64, device=like.device)
    lanes = draws.random_(torch.iinfo(torch.int64).min, None).view(torch.int16)
    return (lanes < round(probability * 65536) - 32768)[: like.numel()].view_as(like)


class U2LBlock(nn.Module):
    """The messenger block of one encoder stage.

    Args:
        width: C, channels of the stage.
        heads: of the unlabeled half's attention.
        dropout: on attention maps and outputs.
        exchange_over: whose unlabeled images the labeled ones of a training batch attend to: those of their own
            process (published), or of all processes.
    """

    def __init__(self, width: int, heads: int, dropout: float, exchange_over: ExchangeOver) -> None:
        super().__init__()
        self.exchange_over = exchange_over
        self.map_in = nn.Sequential(nn.Conv2d(width, width, 1), nn.GELU())
        self.attn_norm = nn.LayerNorm(width, eps=1e-6)
        self.attn = ChannelAttention(width, heads, dropout)
        self.encoder_norm = nn.LayerNorm(width, eps=1e-6)
        self.map_out = nn.Sequential(nn.Conv2d(width, width, 1), nn.GELU())

    def forward(self, labeled: Tensor, unlabeled: Tensor) -> tuple[Tensor, Tensor]:
        """Both halves of a training batch.

        Args:
            labeled: (B_l, C, H, W) features of the labeled slices.
            unlabeled: (B_u, C, H, W) features of the unlabeled slices.

        Returns:
            Both halves, of unchanged shape.
        """
        residual_l, residual_u = self._enter(labeled), self._enter(unlabeled)
        tokens_l, tokens_u = self.attn_norm(residual_l), self.attn_norm(residual_u)
        # Tokens are gathered, not keys and values, which are h times as wide and follow from them.
        delivered = gather_images(tokens_u) if self.exchange_over == "all" else tokens_u
        mixed_l = self.attn.labeled(tokens_l, delivered, exchange="batch")
        mixed_u = self.attn.unlabeled(tokens_u)
        return self._leave(mixed_l + residual_l, labeled), self._leave(mixed_u + residual_u, unlabeled)

    def deliver(self, images: Tensor, exchange: Exchange) -> Tensor:
        """The labeled branch alone, with `images` (B, C, H, W) as both halves: inference.

        The unlabeled branch does not enter this result, so it is not computed (method.md 7.4).
        """
        residual = self._enter(images)
        tokens = self.attn_norm(residual)
        return self._leave(self.attn.labeled(tokens, tokens, exchange) + residual, images)

    def _enter(self, image: Tensor) -> Tensor:
        return map_to_tokens(self.map_in(image))

    def _leave(self, tokens: Tensor, like: Tensor) -> Tensor:
        out: Tensor = self.map_out(tokens_to_map(self.encoder_norm(tokens), like.shape[2], like.shape[3]))
        return out
