"""U2L delivery: features of unlabeled slices reach the labeled ones (Messenger Transformer block).

Source: method.md section 2 (paper section 3.3). Attention runs over channels: each map is as
large as the width of the stage, whatever the size of the image.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from sdm_cli.method.encoder import map_to_tokens, tokens_to_map

Exchange = Literal["batch", "image"]


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
        self.map_dropout = nn.Dropout(dropout)
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
        query = self.get_submodule("query_l_u")(labeled).transpose(1, 2)  # (B_l, hC, N)
        key, value = (self.get_submodule(f"{role}_l_u")(unlabeled).transpose(1, 2) for role in ("key", "value"))
        if exchange == "batch":
            # (B_u, hC, N) to (B_u * hC, N), shared by every labeled image.
            key, value = key.flatten(0, 1), value.flatten(0, 1)
        mixed = self._attend(query, key, value).transpose(1, 2)
        out: Tensor = self.out_dropout(self.out_l(mixed))
        return out

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Channel attention of (..., C_q, N) to (..., C_k, N), giving (..., C_q, N)."""
        scores = query @ key.transpose(-1, -2)  # (..., C_q, C_k), summed over tokens
        # Instance norm of one map without affine is a layer norm over both of its axes.
        scores = F.layer_norm(scores, scores.shape[-2:], eps=1e-5)
        return self.map_dropout(scores.softmax(-1)) @ value


class U2LBlock(nn.Module):
    """The messenger block of one encoder stage."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
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
        mixed_l = self.attn.labeled(tokens_l, tokens_u, exchange="batch")
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
