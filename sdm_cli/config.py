"""The preset: everything that a person may choose, each default in exactly one place.

A preset is data; `preset_files` reads it. This module knows no tensor and reads no file. Its `data` section is in
`data_config`.
"""

import re
from dataclasses import field
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic.dataclasses import dataclass

from sdm_cli.data_config import DataConfig
from sdm_cli.fields import (
    NUMBER,
    STRICT,
    CropSide,
    DropRate,
    Fraction,
    NonNegative,
    NotNegative,
    Positive,
    PositiveFloat,
    Range,
    is_plain_name,
)

# YAML 1.1 reads a bare `no` as false.
Precision = Annotated[Literal["no", "bf16", "fp16"], BeforeValidator(lambda value: "no" if value is False else value)]

STRIDE = 32
"""Coarsest stride of the encoder: slices are padded to multiples of it for prediction."""

Direction = Literal["left-right", "back-front", "feet-head"]

IN_PLANE: dict[str, tuple[Direction, ...]] = {
    "axial": ("left-right", "back-front"),
    "coronal": ("left-right", "feet-head"),
    "sagittal": ("back-front", "feet-head"),
    "stored": (),
}
"""Directions of the body along the rows (H) and columns (W) of each plane's slices."""


@dataclass(frozen=True, config=STRICT)
class ModelConfig:
    """The network (method.md section 2).

    Attributes:
        encoder: Mix Transformer size.
        pretrained: ImageNet weights of the encoder: a `mit_b*.pth` file, a hub id
            (`nvidia/mit-b5`), or `none` for random weights.
        head_width: embedding width E of the decoder.
        messenger_stages: encoder stages (1-4) that carry a U2L block; empty switches U2L off.
        messenger_heads: h of the U2L block.
        messenger_dropout: on the attention maps and the outputs of the U2L block.
        head_dropout: channel dropout before the last convolution.
        drop_path: of the deepest encoder block; rises linearly from 0.
        exchange: in the pseudo-label pass, images exchange across the `batch` (published) or
            stay alone (`image`). Prediction is always per image.
        exchange_over: in training, a labeled slice receives from the unlabeled ones of its own
            `process` (published; so `train.pairs` is part of the method) or of `all` processes,
            as one process with the whole batch would.
    """

    encoder: Literal["mit-b0", "mit-b1", "mit-b2", "mit-b3", "mit-b4", "mit-b5"] = "mit-b5"
    pretrained: str = "none"
    head_width: Positive = 768
    messenger_stages: tuple[Annotated[int, Field(ge=1, le=4)], ...] = (4,)
    messenger_heads: Positive = 2
    messenger_dropout: DropRate = 0.1
    head_dropout: DropRate = 0.1
    drop_path: DropRate = 0.1
    exchange: Literal["batch", "image"] = "batch"
    exchange_over: Literal["process", "all"] = "process"


@dataclass(frozen=True, config=STRICT)
class MethodConfig:
    """The semi-supervised training step (method.md sections 3 and 4).

    Attributes:
        use_unlabeled: off makes the labeled-only twin: the network never sees an unlabeled slice.
        l2u: paste labeled patches into unlabeled slices.
        patch: K, side of the pasted patch in pixels.
        class_weights: weight the labeled cross entropy by learning difficulty.
        difficulty_steps: A, length of the moving averages of the class weights, in micro-batches.
        labeled_only_fraction: share of all steps, from the start, with the labeled loss alone
            (published: 6 of 300 epochs).
        labeled_weight: weight of L_x.
        unlabeled_weight: weight of L_u.
        consistency_weight: weight of L_c. The loss is the weighted mean of the three.
    """

    use_unlabeled: bool = True
    l2u: bool = True
    patch: Positive = 64
    class_weights: bool = True
    difficulty_steps: Positive = 50
    labeled_only_fraction: Fraction = 0.02
    labeled_weight: NonNegative = 1.0
    unlabeled_weight: NonNegative = 1.0
    consistency_weight: NonNegative = 1.0

    @model_validator(mode="after")
    def _check(self) -> "MethodConfig":
        if not self.labeled_weight + self.unlabeled_weight + self.consistency_weight > 0:
            raise ValueError(
                "method.labeled_weight, method.unlabeled_weight and method.consistency_weight are all 0: raise one"
            )
        return self


@dataclass(frozen=True, config=STRICT)
class AugmentConfig:
    """Strong augmentation (method.md section 5); the published ranges.

    Attributes:
        transforms: how many distinct transforms are drawn for a slice, of six.
        probability: that a drawn transform is applied.
        rotation_degrees: rotation is uniform in plus or minus this.
        zoom: sampling-grid scale: half the draws uniform in [low, 1], else uniform in [1, high].
        blur_sigma: in pixels.
        brightness: factor.
        contrast: factor about the mean, half below and half above 1.
        gamma: exponent, half below and half above 1.
        curve: not published: that a slice's intensities first pass a random curve, which need not rise, so that
            dark and bright may change places, as with another sequence or a failed contrast agent.
    """

    transforms: Annotated[int, Field(ge=0, le=6)] = 3
    probability: Fraction = 0.7
    rotation_degrees: NonNegative = 15.0
    zoom: Range = (0.5, 1.0)
    blur_sigma: Range = (0.7, 1.3)
    brightness: Range = (0.5, 2.0)
    contrast: Range = (0.5, 1.5)
    gamma: Range = (0.5, 2.0)
    curve: Fraction = 0.0

    @model_validator(mode="after")
    def _check(self) -> "AugmentConfig":
        problems = []
        for name in ("zoom", "blur_sigma", "brightness", "contrast", "gamma"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                problems.append(f"augment.{name} must be positive and rise, not {[low, high]}")
            elif name in ("zoom", "contrast", "gamma") and not low <= 1 <= high:
                problems.append(f"augment.{name} must enclose 1 (half of the draws lie below it), not {[low, high]}")
        if problems:
            raise ValueError("; ".join(problems))
        return self


@dataclass(frozen=True, config=STRICT)
class TrainConfig:
    """Schedule, optimiser and hardware.

    Attributes:
        crop: training crop (height, width) in pixels.
        pairs: labeled + unlabeled pairs per process and micro-batch.
        accumulate: micro-batches whose gradients make one step of the optimiser. The messenger
            exchanges within each one alone, batch normalisation takes its statistics from each
            one alone, and the class weights are renewed with each one.
        epochs: passes over the unlabeled slices; set this or `steps`.
        steps: optimiser steps; set this or `epochs`.
        optimizer: `sgd` (published), `adamw`, or `muon`: matrices by it, partly in bfloat16 where the hardware has
            it, all other weights by AdamW.
        lr: learning rate of the encoder; not scaled with the number of pairs a step.
        head_lr_factor: the rest of the network learns this many times faster.
        lr_warmup_steps: linear rise before the polynomial.
        lr_power: exponent of the polynomial decay.
        momentum: of SGD.
        weight_decay: added to the gradient by `sgd`, taken from the weights by the others.
        average: decay of the exponential moving average of the weights, which then makes the
            pseudo-labels, is validated and is kept; 0 uses the trained weights themselves.
        validate_every_steps: none: after each epoch.
        select_on: cases whose Dice chooses `best`; `labeled` never touches other labels.
        mixed_precision: `no`, `bf16` or `fp16`.
        deterministic: only operations that give the same bits each time; one that cannot ends the run.
        workers: loader processes per training process.
        seed: of weights, order, augmentation and dropout.
    """

    crop: tuple[CropSide, CropSide] = (512, 512)
    pairs: Positive = 8
    accumulate: Positive = 1
    epochs: Positive | None = None
    steps: Positive | None = None
    optimizer: Literal["sgd", "adamw", "muon"] = "sgd"
    lr: PositiveFloat = 1e-3
    head_lr_factor: PositiveFloat = 5.0
    lr_warmup_steps: NotNegative = 0
    lr_power: NonNegative = 0.9
    momentum: Fraction = 0.9
    weight_decay: NonNegative = 1e-4
    average: DropRate = 0.0
    validate_every_steps: Positive | None = None
    select_on: Literal["labeled", "validation", "test"] = "labeled"
    mixed_precision: Precision = "no"
    deterministic: bool = False
    workers: NotNegative = 2
    seed: Annotated[int, Field(ge=0, lt=2**63), NUMBER] = 0


@dataclass(frozen=True, config=STRICT)
class PredictConfig:
    """How a network becomes a mask, in training's validation as in every prediction.

    Attributes:
        smooth_mm: probabilities are averaged over neighbouring slices, with a Gaussian of this standard deviation; 0:
            each slice by itself. Of use where slices are much thinner than what is to be found.
        largest_part: classes of which a body has one piece: only the largest part is kept.
        bridge_mm: parts that hang together by a bridge of at most this thickness count as two.
        flips: directions of the body in which `sdm predict --tta` may mirror slices: only where mirrored anatomy looks
            alike, so never left-right with structures that have a side.
    """

    smooth_mm: NonNegative = 0.0
    largest_part: tuple[str, ...] = ()
    bridge_mm: NonNegative = 0.0
    flips: tuple[Direction, ...] = ()


@dataclass(frozen=True, config=STRICT)
class Preset:
    """One training recipe, resolved.

    Attributes:
        name: of the preset file; a plain file name, since runs are named by it.
        description: one line for `sdm presets`.
        scenario: few labels, another modality, or an unseen domain.
        protocol: `paper` repeats the published choices; `clean` never selects on test cases nor
            on labels of unlabeled or target cases.
        source: where the recipe and the published score come from.
        published: metric name -> published value.
    """

    name: str = "own"
    description: str = ""
    scenario: Literal["SSMIS", "UMDA", "Semi-MDG"] = "SSMIS"
    protocol: Literal["paper", "clean"] = "clean"
    source: str = ""
    published: dict[str, float] = field(default_factory=dict)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    predict: PredictConfig = field(default_factory=PredictConfig)

    @model_validator(mode="after")
    def _check(self) -> "Preset":
        problems = []
        if not is_plain_name(self.name):
            problems.append(f"name must be a plain file name without a slash, not {self.name!r}")
        if (self.train.epochs is None) == (self.train.steps is None):
            problems.append("set exactly one of train.epochs and train.steps, the other to null")
        if not self.method.use_unlabeled and self.model.messenger_stages:
            problems.append(
                "method.use_unlabeled: false leaves U2L nothing to carry: set model.messenger_stages: [] too"
            )
        if self.protocol == "clean" and self.train.select_on == "test":
            problems.append("train.select_on: test belongs to protocol: paper")
        if self.protocol == "clean" and self.data.grid.crop == "label":
            problems.append("data.grid.crop: label uses labels of test cases and belongs to protocol: paper; try body")
        if unknown := [name for name in self.predict.largest_part if name not in self.data.classes]:
            problems.append(f"predict.largest_part: {unknown[0]} is no class of data.classes")
        problems += self._flip_problems()
        if self.method.patch > min(self.train.crop):
            problems.append(f"method.patch {self.method.patch} is larger than train.crop {list(self.train.crop)}")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """(H, W) of what the network is given of a slice of that size: the crop at least, in full strides."""
        height, width = max(height, self.train.crop[0]), max(width, self.train.crop[1])
        return height + -height % STRIDE, width + -width % STRIDE

    def _flip_problems(self) -> list[str]:
        in_plane = IN_PLANE[self.data.slice_axis]
        unknown = [direction for direction in self.predict.flips if direction not in in_plane]
        if unknown:
            choice = (
                f"one of {', '.join(in_plane)}" if in_plane else "nothing, since nothing is known of their directions"
            )
            return [f"predict.flips: {unknown[0]} is not in the plane of {self.data.slice_axis} slices: give {choice}"]
        sided = [name for name in self.data.classes if {"left", "right"} & set(re.split("[^a-z]+", name.lower()))]
        if "left-right" in self.predict.flips and sided:
            return [f"predict.flips: mirrored left-right, {sided[0]} would be found on the other side: leave it out"]
        return []
