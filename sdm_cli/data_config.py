"""What the scans are and how they become slices: the `data` section of a preset."""

from collections.abc import Iterable
from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from sdm_cli.fields import STRICT, LabelValue, NotNegative, Positive, PositiveFloat, Range, is_plain_name

IGNORE = 255
"""Class index of voxels that no loss, box or metric counts."""

LABELS_TOUCHED = "labels of test cases touched preprocessing"
"""What is said wherever slices were cropped by labels (method.md 7.12)."""

Layout = Literal["auto", "folders", "amos", "laseg", "mmwhs", "mnms", "acdc"]


def domain_among(domain: str | None, names: Iterable[str]) -> str | None:
    """The one of these names that means a domain, without regard to case; none where it is of none of them."""
    return next((name for name in names if domain is not None and name.lower() == domain.lower()), None)


@dataclass(frozen=True, config=STRICT)
class NormalizeConfig:
    """Intensities to [0, 1]: first an optional clip, then a linear scale (method.md section 6).

    Attributes:
        window_hu: clip to this window in Hounsfield units (CT).
        percentiles: clip to these percentiles, 0-100, of the region that `scale` names.
        scale: min-max of each `slice`, of the whole `volume`, or the fixed `window`.
    """

    window_hu: Range | None = None
    percentiles: Range | None = None
    scale: Literal["slice", "volume", "window"] = "slice"

    @model_validator(mode="after")
    def _check(self) -> "NormalizeConfig":
        if self.scale == "window" and self.window_hu is None:
            raise ValueError("scale: window needs window_hu, for example [-75, 275]")
        if self.window_hu is not None and self.percentiles is not None:
            raise ValueError("set window_hu or percentiles, not both")
        for name in ("window_hu", "percentiles"):
            bounds = getattr(self, name)
            if bounds is not None and not bounds[0] < bounds[1]:
                raise ValueError(f"{name} must rise, not {list(bounds)}")
        if self.percentiles is not None and not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise ValueError("percentiles lie between 0 and 100")
        return self


@dataclass(frozen=True, config=STRICT)
class GridConfig:
    """The grid of the slices that the network sees, made from the scan's own: first a crop, then a size.

    Prediction undoes both: probabilities go back to the scan's grid, and what was cropped away is background.

    Attributes:
        crop: `none`; `centre`, the middle of each side in plane; `body`, the box of what is brighter than the
            surrounding air; `label`, the box of the label's foreground (published for MMWHS; it needs a label, so
            a scan without one gets the box of the body).
        centre_fraction: share of each side in plane that the centre crop keeps.
        margin: voxels kept around the box of `body` or `label`.
        spacing_mm: in-plane pixel size (H, W) to resample to.
        short_side: in-plane size in pixels of the shorter side, to resample to.
        size: (Z, H, W) to resample to.
    """

    crop: Literal["none", "centre", "body", "label"] = "none"
    centre_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    margin: NotNegative = 0
    spacing_mm: tuple[PositiveFloat, PositiveFloat] | None = None
    short_side: Positive | None = None
    size: tuple[Positive, Positive, Positive] | None = None

    @model_validator(mode="after")
    def _check(self) -> "GridConfig":
        chosen = [name for name in ("spacing_mm", "short_side", "size") if getattr(self, name) is not None]
        if len(chosen) > 1:
            raise ValueError(f"data.grid: set one of {' and '.join(chosen)}, not both")
        return self


@dataclass(frozen=True, config=STRICT)
class DataConfig:
    """What the scans are and how they become slices. A store is made from exactly this.

    Attributes:
        dataset: short name; with a preset the store is `stores/<dataset>` unless another is given.
        classes: foreground class name -> value in the label files, in class order (1, 2, ...).
        background_values: label values besides 0 that count as background.
        value_aliases: stray label value -> the value it stands for, which is a class, background or ignored.
        ignore_value: label value that no loss and no metric counts (255 in the store).
        slice_axis: anatomical plane of the slices, after canonical orientation (RAS+); or `stored`: the slices as
            the file stores them, along its last axis (short-axis scans of the heart lie across all planes).
        spacing_mm: voxel size of files that store none (x, y, z); others keep their own.
        layout: of the folder of scans; `auto` finds out.
        frame: which frame of 4D images to take; without it a 4D image is an error.
        grid: of the slices, when it is not the scan's own.
        normalize: intensities to [0, 1].
        normalize_by_domain: domain -> another rule for the scans of that domain.
        split: name of a shipped split or path of a YAML file; none: cases with a label are the
            labeled ones, all others the unlabeled ones.
        labeled_domains: domains that training may take labels from; empty: all.
        unlabeled_domains: domains that training may take unlabeled scans from; empty: all.
        unseen_domains: domains that training may not touch at all. In all of these rules case does not matter.
    """

    dataset: str = "own"
    classes: dict[str, Annotated[int, Field(gt=0, le=65535)]] = field(default_factory=dict)
    background_values: tuple[LabelValue, ...] = ()
    value_aliases: dict[LabelValue, LabelValue] = field(default_factory=dict)
    ignore_value: Annotated[LabelValue, Field(gt=0)] | None = None
    slice_axis: Literal["axial", "coronal", "sagittal", "stored"] = "axial"
    spacing_mm: tuple[float, float, float] | None = None
    layout: Layout = "auto"
    frame: int | None = None
    grid: GridConfig = field(default_factory=GridConfig)
    normalize: NormalizeConfig = field(default_factory=NormalizeConfig)
    normalize_by_domain: dict[str, NormalizeConfig] = field(default_factory=dict)
    split: str | None = None
    labeled_domains: tuple[str, ...] = ()
    unlabeled_domains: tuple[str, ...] = ()
    unseen_domains: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> "DataConfig":
        values = list(self.classes.values())
        if len(set(values)) != len(values):
            raise ValueError("classes: two classes share one label value")
        shared = sorted(set(values) & set(self.background_values))
        if shared:
            raise ValueError(f"background_values: {shared[0]} is also a class; remove it from one of the two")
        if not is_plain_name(self.dataset):
            raise ValueError(f"dataset must be a plain file name without a slash, not {self.dataset!r}")
        if self.ignore_value is not None and self.ignore_value in values:
            raise ValueError(f"ignore_value {self.ignore_value} is also a class")
        known = {0, *values, *self.background_values, self.ignore_value}
        for value, meaning in self.value_aliases.items():
            if value in known:
                raise ValueError(f"value_aliases: {value} has a meaning of its own; remove it from one of the two")
            if meaning not in known:
                raise ValueError(f"value_aliases: {value} stands for {meaning}, which is no class and no background")
        if len(values) > 254:
            raise ValueError("classes: at most 254 foreground classes")
        for name in ("labeled_domains", "unlabeled_domains"):
            if both := [domain for domain in self.unseen_domains if domain_among(domain, getattr(self, name))]:
                raise ValueError(f"unseen_domains: {both[0]} is also one of {name}; remove it from one of the two")
        names = list(self.normalize_by_domain)
        if twice := [name for i, name in enumerate(names) if domain_among(name, names[:i])]:
            raise ValueError(f"normalize_by_domain: {twice[0]} is there twice, since case does not matter; remove one")
        return self

    @property
    def class_names(self) -> tuple[str, ...]:
        """Foreground class names in class order; class index 0 is the background."""
        return tuple(self.classes)

    @property
    def n_classes(self) -> int:
        """Number of classes with the background."""
        return len(self.classes) + 1

    @property
    def label_use(self) -> str:
        """Whether preprocessing looks at labels, in words."""
        return LABELS_TOUCHED if self.grid.crop == "label" else "preprocessing uses no label"
