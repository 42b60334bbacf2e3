"""`sdm predict --pseudo`: predictions as a data set of their own, to be corrected and read back as labels.

In nnU-Net's raw form: scans in `imagesTr`, pseudo-labels in `labelsTr`, `dataset.json`; beside them the probability of
each voxel's class in `confidence`. `sdm preprocess -i` takes the folder as it is.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdm_cli.data.cases import Case
from sdm_cli.data.readers import read_image
from sdm_cli.data.volume import write_volume
from sdm_cli.data_config import DataConfig
from sdm_cli.documents import parse_json, read_text
from sdm_cli.errors import OutputError, SdmError, reason_of
from sdm_cli.files import write_json
from sdm_cli.runs.model import Prediction

_ABOUT = "dataset.json"


class PseudoLabels:
    """The folder that is filled."""

    def __init__(self, folder: Path, data: DataConfig, facts: Mapping[str, Any]) -> None:
        """Args: folder; data section of the model's preset; facts of the model, kept in `dataset.json`."""
        self.folder = folder
        self._data = data
        self._facts = facts

    def files(self, case_id: str) -> list[Path]:
        """What `add` makes of a case: scan, pseudo-label, confidence."""
        names = (f"imagesTr/{case_id}_0000.nii.gz", f"labelsTr/{case_id}.nii.gz", f"confidence/{case_id}.nii.gz")
        return [self.folder / name for name in names]

    def add(self, found: Prediction, case: Case) -> None:
        """Write scan, pseudo-label and confidence of a case.

        Raises:
            ImageReadError: the scan cannot be read again.
            OutputError: a file exists, or cannot be written.
        """
        image, label, confidence = self.files(case.case_id)
        try:
            write_volume(image, read_image(case, self._data).voxels, found.geometry)
            if found.confidence_map is not None:
                write_volume(confidence, found.confidence_map, found.geometry)
            found.save(label)
        except SdmError:  # a scan without its label would be one that nobody predicted
            for path in (image, confidence):
                path.unlink(missing_ok=True)
            raise

    def require_own(self) -> None:
        """Raise OutputError if the folder is a data set that is none of pseudo-labels, or one of another model."""
        path = self.folder / _ABOUT
        try:
            about = parse_json(read_text(path))
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise OutputError(f"{path} cannot be read ({reason_of(error)}): give another folder to --pseudo.") from None
        own = about.get("sdm") if isinstance(about, dict) else None
        if own != self._own:
            whose = "pseudo-labels of another model" if isinstance(own, dict) else "a data set of its own"
            raise OutputError(f"{self.folder} is {whose} ({_ABOUT} says so): give another folder to --pseudo.")

    @property
    def _own(self) -> dict[str, Any]:
        return {"pseudo_labels": "predictions, to be corrected by a person", **self._facts}

    def finish(self) -> None:
        """Write `dataset.json` about all that lies there; raises OutputError."""
        tree = {
            "channel_names": {"0": "scan"},
            "labels": {"background": 0, **self._data.classes},
            "numTraining": len(list((self.folder / "labelsTr").glob("*.nii.gz"))),
            "file_ending": ".nii.gz",
            "sdm": self._own,
        }
        write_json(self.folder / _ABOUT, tree)
