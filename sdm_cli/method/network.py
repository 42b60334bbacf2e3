"""The whole network: encoder, messenger blocks on chosen stages, decoder.

Two uses, two methods: `forward` trains on a labeled and an unlabeled half; `predict` sees one
batch and runs the labeled branch alone. Source: method.md section 2.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdm_cli.config import ModelConfig
from sdm_cli.method.encoder import ENCODER_SIZES, Encoder, EncoderSizes
from sdm_cli.method.head import SegFormerHead
from sdm_cli.method.u2l import Exchange, U2LBlock


class Framework(nn.Module):
    """Messenger blocks and decoder; the grouping keeps the published parameter names."""

    def __init__(self, widths: tuple[int, int, int, int], config: ModelConfig, n_classes: int) -> None:
        super().__init__()
        for stage in sorted(config.messenger_stages):
            block = U2LBlock(widths[stage - 1], config.messenger_heads, config.messenger_dropout, config.exchange_over)
            self.add_module(f"u2l_module_{stage - 1}", block)
        self.decoder = SegFormerHead(widths, config.head_width, n_classes, config.head_dropout)

    def messenger(self, stage: int) -> U2LBlock | None:
        """The U2L block of encoder stage 1-4, if it has one."""
        block = dict(self.named_children()).get(f"u2l_module_{stage - 1}")
        return block if isinstance(block, U2LBlock) else None


class MessengerNetwork(nn.Module):
    """S&D Messenger.

    Args:
        sizes: of the encoder.
        config: messenger stages, head width and dropout rates (its `encoder` is not read).
        n_classes: K, with the background.
    """

    def __init__(self, sizes: EncoderSizes, config: ModelConfig, n_classes: int) -> None:
        super().__init__()
        self.backbone = Encoder(sizes, config.drop_path)
        self.framework = Framework(sizes.widths, config, n_classes)

    def forward(self, labeled: Tensor, unlabeled: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Training: logits of both halves, with the features of the unlabeled half delivered to the labeled one.

        Args:
            labeled: (B, 1 or 3, H, W) in [0, 1].
            unlabeled: (B, 1 or 3, H, W), or None where it is left out (without a messenger alone).

        Returns:
            Logits (B, K, H, W) of the labeled and, if given, of the unlabeled half.
        """
        if unlabeled is None:
            return self._decode(self.backbone(labeled), labeled), None
        images = torch.cat([labeled, unlabeled])
        maps = self.exchange(self.backbone(images), labeled.shape[0])
        logits_l, logits_u = self._decode(maps, images).split([labeled.shape[0], unlabeled.shape[0]])
        return logits_l, logits_u

    def exchange(self, maps: list[Tensor], n_labeled: int) -> list[Tensor]:
        """Encoder maps of [labeled half; unlabeled half] after the messenger blocks."""
        exchanged = []
        for stage, image in enumerate(maps, start=1):
            block = self.framework.messenger(stage)
            exchanged.append(image if block is None else torch.cat(block(image[:n_labeled], image[n_labeled:])))
        return exchanged

    def predict(self, images: Tensor, exchange: Exchange = "image") -> Tensor:
        """Inference: logits (B, K, H, W) of images (B, 1 or 3, H, W) of any size.

        With `image` (the default) the result of an image does not depend on its batch; `batch` is the
        published exchange between the images of a pseudo-label pass.
        """
        maps = []
        for stage, image in enumerate(self.backbone(images), start=1):
            block = self.framework.messenger(stage)
            maps.append(image if block is None else block.deliver(image, exchange))
        return self._decode(maps, images)

    def _decode(self, maps: list[Tensor], images: Tensor) -> Tensor:
        logits = self.framework.decoder(maps)
        return F.interpolate(logits, size=images.shape[2:], mode="bilinear", align_corners=False)


def build_network(config: ModelConfig, n_classes: int) -> MessengerNetwork:
    """The network of a preset, randomly initialised from torch's global generator."""
    return MessengerNetwork(ENCODER_SIZES[config.encoder], config, n_classes)
