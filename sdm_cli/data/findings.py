"""What may be wrong with a data set, in words, each with what to do about it.

Owns the sentences. Reads no file: `health` looks into the voxels of one case, `compare` at all cases together.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from sdm_cli.errors import ImageReadError

_HEART = {"ventricle", "atrium", "atrial", "ventricular", "heart", "myocardium"}

Severity = Literal["blocks", "warns"]
Fix = Literal[
    "value 255 to the class", "whole numbers", "header of the image", "grid of the image", "fill NaN", "leave out"
]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        severity: `blocks`: training cannot run, or would learn something wrong; `warns`: look at it.
        code: short and stable, for programs.
        case_id: of the case; none where the data set as a whole is meant.
        message: what is wrong, one sentence.
        repair: what to do about it, one sentence.
        fix: what `--repair` does to the copy of this case, where that is safe.
    """

    severity: Severity
    code: str
    case_id: str | None
    message: str
    repair: str
    fix: Fix | None = None


def from_error(code: str, case_id: str | None, error: ImageReadError) -> Finding:
    """What blocks because it cannot be read: the sentence of the error, parted from its remedy."""
    sentence, _, remedy = str(error).rpartition(": ")
    return Finding("blocks", code, case_id, f"{sentence}.", f"{remedy[:1].upper()}{remedy[1:]}")


def sides(classes: Mapping[str, int]) -> list[tuple[int, int, str]]:
    """Label values of paired organs: (right, left, name without the side), told by the names of the classes.

    The chambers of the heart are no pair: they lie as much behind one another as side by side, in oblique planes.
    """
    found = []
    words_of = {name: name.lower().replace("_", " ").replace("-", " ").split() for name in classes}
    for name, words in words_of.items():
        for i, word in enumerate(words):
            other = [*words[:i], "left", *words[i + 1 :]]
            partners = [classes[left] for left, its_words in words_of.items() if its_words == other]
            if word == "right" and partners and not _HEART & set(words):
                found.append((classes[name], partners[0], " ".join([*words[:i], *words[i + 1 :]])))
    return found
