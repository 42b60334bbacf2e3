"""Files that are nearly right: valid ones of every format that is read, and what may befall their bytes and values."""

import gzip
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import nibabel as nib
import numpy as np
import torch
import yaml
from models import small_network, small_preset
from official import MNMS_HEADER, mnms_row, write_nrrd, write_xls
from onnx_files import write_onnx
from scans import voxels, write_laseg, write_nifti
from stores import make_store, tiny_preset

from sdm_cli.data.cases import Case
from sdm_cli.data.classes import find_classes, read_dataset_json
from sdm_cli.data.domains import assign_domains, name_cases
from sdm_cli.data.itk import read_itk
from sdm_cli.data.layouts.laseg import case_of_file
from sdm_cli.data.layouts.mnms_table import read_table
from sdm_cli.data.manifest import is_store, read_manifest
from sdm_cli.data.readers import read_image, read_label
from sdm_cli.data.recipe import new_since_recipe
from sdm_cli.data.split_files import import_ids, read_list, read_nnunet_splits
from sdm_cli.data.splits import load_split
from sdm_cli.data.store import SliceStore, finished_cases
from sdm_cli.data.volume import mended_fields, read_nifti, read_nifti_geometry
from sdm_cli.data_config import DataConfig
from sdm_cli.method.checkpoint import has_model, load_model, load_resume, save_model
from sdm_cli.method.tensors import load_state, load_tensors
from sdm_cli.preset_files import load_preset, preset_to_dict
from sdm_cli.runs.collapse import RECORDS, CollapseWatch
from sdm_cli.runs.inference import predict_slices
from sdm_cli.runs.onnx_model import open_onnx
from sdm_cli.runs.run_folder import RunFolder
from sdm_cli.runs.run_report import write_run_report

JUNK: list[Any] = [
    *(None, True, False, 0, -1, 2**31, 2**63, 10**60, 1.5, -0.0, 1e308, float("nan"), float("inf")),
    *("", "..", "../../x", "/etc/passwd", "x\x00y", "\ud800", "9" * 5000, "[1, 2", "-", "\u202e", "auto", "test"),
    *([], {}, [[]], [{}], [1, 2, 3], {"a": {"b": {}}}, ["a", "a"], [None], {"": 1}, [0.1] * 4, [[1, 2]] * 3),
]
TOKENS = [
    *(
        b"[" * 3000,
        b"{a: " * 400,
        b"&a [*a, *a]",
        b"*a",
        b"<<: *a",
        b"!!python/object/apply:os.system [echo]",
        b"!!bool x",
    ),
    *(
        b"!!timestamp x",
        b"!!binary x",
        b"!!int x",
        b"!!set {a}",
        b"2001-99-99",
        b"0001-01-01 00:00:00 +23:59",
        b"1:2:3",
    ),
    *(b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"\t", b"\n", b"\n  ", b"- ", b": ", b"# ", b'"', b"'", b"\\ud800", b"0x"),
    *(
        b"9" * 5000,
        b"0x" + b"f" * 5000,
        b"1" + b":1" * 3000,
        b"1e999",
        b"NaN",
        b"null",
        b"~",
        b"? ",
        b"%YAML 9",
        b"---\n",
    ),
    *(b"\r", b",", b";", b"}", b"]"),
]


@dataclass(frozen=True)
class Reader:
    """A valid file in a folder of its own, and how the program reads it.

    Attributes:
        file: the one that is changed.
        read: the folder of the file.
        kind: what its bytes are: `text`, `json`, `yaml`, `nifti`, `gzip` or `binary`.
    """

    file: Path
    read: Callable[[Path], object]
    kind: str = "binary"


def changed(content: bytes, kind: str, random: Random) -> bytes:
    """The content with one to four changes of the kind that accidents and enemies make."""
    if kind == "gzip":
        if random.random() < 0.2:
            return changed(content, "binary", random)
        return gzip.compress(changed(gzip.decompress(content), "nifti", random), 1)
    if kind in ("json", "yaml") and random.random() < 0.6:
        tree = (json.loads if kind == "json" else yaml.safe_load)(content)
        for _ in range(random.randint(1, 2)):
            _spoil(tree, random)
        return json.dumps(tree).encode()
    raw = bytearray(content)
    for _ in range(random.randint(1, 4)):
        _edit(raw, kind, random)
    return bytes(raw)


def _spoil(tree: Any, random: Random) -> None:
    """Put junk in the place of a value, a value in the place of another, or leave one out."""
    slots = list(_slots(tree))
    if not slots:
        return
    node, key = random.choice(slots)
    other, other_key = random.choice(slots)
    choice = random.random()
    if choice < 0.15:
        del node[key]
    elif choice < 0.25 and isinstance(node, dict):
        node[random.choice(["", "../../x", "/etc/x", "\ud800", "x\x00y", "a" * 300])] = node[key]
    else:
        node[key] = json.loads(json.dumps(other[other_key] if choice < 0.35 else random.choice(JUNK)))


def _slots(tree: Any) -> Any:
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        yield tree, key
        yield from _slots(tree[key])


def _edit(raw: bytearray, kind: str, random: Random) -> None:
    at = random.randrange(len(raw) + 1)
    if kind == "nifti" and random.random() < 0.8:
        fields = nib.Nifti2Header.template_dtype if raw[4:7] == b"n+2" else nib.Nifti1Header.template_dtype
        name = random.choice(fields.names)
        width, start = fields.fields[name][0].itemsize, fields.fields[name][1]
        part = random.randrange(width)
        raw[start + part : start + min(width, part + 8)] = random.choice(EXTREMES)[: min(width - part, 8)]
        return
    choice = random.random()
    if choice < 0.35:
        raw[at : at + random.choice((1, 1, 2, 4, 8))] = random.choice(EXTREMES)[: random.choice((1, 2, 4, 8))]
    elif choice < 0.5 and raw:
        raw[at % len(raw)] ^= 1 << random.randrange(8)
    elif choice < 0.6:
        del raw[at:]
    elif choice < 0.7:
        del raw[at : at + random.randrange(1, 64)]
    elif choice < 0.8:
        raw[at:at] = raw[random.randrange(len(raw) + 1) :][: random.randrange(200)]
    else:
        raw[at:at] = (
            random.choice(TOKENS) if kind in ("text", "json", "yaml") else random.randbytes(random.randrange(20))
        )


EXTREMES = [
    *(b"\xff" * 8, b"\x00" * 8, b"\x7f" + b"\xff" * 7, b"\xff" * 3 + b"\x7f" + b"\xff" * 3 + b"\x7f", b"\x80" * 8),
    *(np.array(value, "<f4").tobytes() * 2 for value in (np.nan, np.inf, -np.inf, 1e30, 0.0, -1.0, 352.5)),
    *(np.array(value, "<i8").tobytes() for value in (1, -1, 30000, 2**40, 512, 1024, 64, 4096)),
    *(np.array([30000] * 4, "<i2").tobytes(), np.array([3, 9, 9, 9], "<i2").tobytes(), b"n+2\0\r\n\x1a\n"),
]


def readers(folder: Path) -> dict[str, Reader]:
    """All formats, each with a valid file below `folder`."""
    made = {**_of_scans(folder), **_of_stores(folder), **_of_texts(folder), **_of_models(folder)}
    for reader in made.values():
        reader.read(reader.file.parent)  # valid to begin with
    return made


def _of_scans(folder: Path) -> dict[str, Reader]:
    def nifti(place: Path) -> None:
        path = next(place.glob("a.nii*"))
        mended_fields(path, read_nifti_geometry(path, 0))
        read_nifti(path, 0)

    def laseg(place: Path) -> None:
        case = case_of_file(place / "mri_norm2.h5")
        image = read_image(case, DataConfig())
        read_label(case, DataConfig(classes={"atrium": 1}), image.geometry)

    write_nifti(folder / "nii/a.nii", voxels())
    write_nifti(folder / "gz/a.nii.gz", voxels())
    write_nifti(folder / "film/a.nii.gz", voxels((5, 4, 3, 2)))
    (folder / "nii2").mkdir()
    extended = nib.Nifti2Image(voxels(), np.eye(4))
    extended.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"some words that fill a few bytes"))
    nib.save(extended, folder / "nii2/a.nii.gz")
    (folder / "nrrd").mkdir()
    write_nrrd(folder / "nrrd/a.nrrd", voxels())
    return {
        "nifti": Reader(folder / "nii/a.nii", nifti, "nifti"),
        "nifti gzip": Reader(folder / "gz/a.nii.gz", nifti, "gzip"),
        "nifti 4D": Reader(folder / "film/a.nii.gz", nifti, "gzip"),
        "nifti-2": Reader(folder / "nii2/a.nii.gz", nifti, "gzip"),
        "nrrd": Reader(folder / "nrrd/a.nrrd", lambda place: read_itk(place / "a.nrrd")),
        "hdf5": Reader(write_laseg(folder / "laseg", "x"), laseg),
    }


def _of_stores(folder: Path) -> dict[str, Reader]:
    def store(place: Path) -> None:
        place = place.parent if place.name == "cases" else place
        is_store(place)
        data = read_manifest(place).data
        finished_cases(place, data)
        opened = SliceStore(place)
        for case_id, case in opened.cases.items():
            opened.grid(case_id)
            opened.geometry(case_id)
            opened.scan_spacing_mm(case_id)
            opened.read_image(case_id, case.n_slices - 1)
            opened.image_volume(case_id)
            if case.labeled:
                opened.label_volume(case_id)
                opened.reference_volume(case_id)

    def recipe(place: Path) -> None:
        new_since_recipe(place, [Case("a", Path("a"))])

    preset = tiny_preset(data={"grid": {"size": [2, 32, 32]}})
    path = make_store(folder / "store", preset, n_labeled=1, n_unlabeled=1)
    (folder / "recipe").mkdir()
    (folder / "recipe/fingerprint.json").write_text('{"scans": [{"case_id": "a"}], "unusable": {"b": "torn"}}')
    return {
        "store": Reader(path / "cases/l0.h5", store),
        "manifest": Reader(path / "manifest.json", store, "json"),
        "fingerprint": Reader(folder / "recipe/fingerprint.json", recipe, "json"),
    }


def _of_texts(folder: Path) -> dict[str, Reader]:
    def written(name: str, text: str) -> Path:
        path = folder / name.replace(".", "-") / name
        path.parent.mkdir()
        path.write_text(text)
        return path

    def run(place: Path) -> None:
        opened = RunFolder(place)
        opened.read_config()
        opened.read_split()
        opened.read_facts()
        opened.entries()
        opened.best_validation("clean")
        watch = CollapseWatch()
        for entry in opened.entries():
            watch.take(entry)
        write_run_report(opened)

    tree = preset_to_dict(tiny_preset())
    roles = {"labeled": ["a"], "unlabeled": ["b"], "validation": [], "test": []}
    config = {"preset": tree, "store": "/stores/x", "split": roles, "versions": {"sdm": "1"}}
    validation = {"step": 2, "validation": {"dice": 0.5, "pooled_iou": 0.4, "per_class": {"ball": 0.5}}}
    written("config.yaml", yaml.safe_dump(config)).with_name("metrics.jsonl").write_text(json.dumps(validation) + "\n")
    shares = {"labeled_share": {"ball": 0.1}, "pseudo_share": {"ball": 0.1}}
    steps = [{"step": number, "loss": 0.5, **shares} for number in range(1, RECORDS + 1)]
    record = written("metrics.jsonl", "".join(json.dumps(entry) + "\n" for entry in (*steps, validation)))
    record.with_name("config.yaml").write_text(yaml.safe_dump(config))
    preset_file = written("preset.yaml", "base: laseg-5-cpu\ndata: {dataset: x}\ntrain:\n  steps: 30\n")
    cases = [Case(name, Path(name)) for name in ("a", "b")]
    (folder / "xls").mkdir()
    rows = [MNMS_HEADER.split(","), mnms_row("A0S9V9", "A", 0, 3).split(",")]
    csv_rows = f"{MNMS_HEADER}\n{mnms_row('A0S9V9', 'A', 0, 3)}\n"
    return {
        "preset": Reader(preset_file, lambda place: load_preset(str(place / "preset.yaml")), "text"),
        "whole preset": Reader(
            written("whole.yaml", json.dumps(tree)), lambda place: load_preset(str(place / "whole.yaml")), "yaml"
        ),
        "split": Reader(
            written("split.yaml", yaml.safe_dump({**roles, "validation": ["c"], "test": ["d"]})),
            lambda place: load_split(str(place / "split.yaml")),
            "yaml",
        ),
        "nnU-Net splits": Reader(
            written("splits_final.json", json.dumps([{"train": ["a"], "val": ["b"]}])),
            lambda place: import_ids(read_nnunet_splits(place / "splits_final.json", 0)["labeled"], None),
            "json",
        ),
        "list": Reader(
            written("all.list", "a_slice_1\nb/c.nii.gz d\n"),
            lambda place: import_ids(read_list(place / "all.list"), {}),
            "text",
        ),
        "dataset.json": Reader(
            written(
                "dataset.json",
                json.dumps(
                    {
                        "labels": {"background": 0, "a": 1},
                        "channel_names": {"0": "CT"},
                        "sdm": {"domains": {"a": "x"}, "slice_axis": "axial"},
                    }
                ),
            ),
            lambda place: (find_classes(read_dataset_json(place), [1, 2]), name_cases(cases, place)),
            "json",
        ),
        "domains": Reader(
            written("domains.csv", "case,domain,patient\na,x,p\nb,y,q\n"),
            lambda place: assign_domains(cases, place / "domains.csv"),
            "text",
        ),
        "M&Ms csv": Reader(written("mnms.csv", csv_rows), lambda place: read_table(place), "text"),
        "M&Ms xls": Reader(write_xls(folder / "xls/mnms.xls", rows), lambda place: read_table(place)),
        "run": Reader(folder / "config-yaml/config.yaml", run, "yaml"),
        "record": Reader(record, run, "text"),
    }


def _of_models(folder: Path) -> dict[str, Reader]:
    def model(place: Path) -> None:
        has_model(place)
        load_model(place)
        load_resume(place)

    preset = small_preset()
    network = small_network(preset)
    save_model(folder / "model", network, preset, ({"shares": torch.zeros(2, 3)}, {"step": 1, "best": 0.5}))
    tensors = folder / "tensors"
    tensors.mkdir()
    small = {"model": {"module.a": torch.zeros(3, 4), "b": torch.ones(2, dtype=torch.int64)}, "epoch": 3}
    torch.save(small, tensors / "new.pth")
    torch.save(small, tensors / "old.pth", _use_new_zipfile_serialization=False)
    (tensors / "pickle.pth").write_bytes(pickle.dumps({"model": [1, 2.0, "x"] * 9}, protocol=2))
    made = {
        "model config": Reader(folder / "model/config.json", model, "json"),
        "resume values": Reader(folder / "model/resume.json", model, "json"),
        "resume tensors": Reader(folder / "model/resume.safetensors", model),
        "safetensors": Reader(
            folder / "model/resume.safetensors", lambda place: load_tensors(place / "resume.safetensors")
        ),
    }
    slices = np.full((2, 9, 40), 30000, np.uint16)
    made["onnx"] = Reader(
        write_onnx(folder / "onnx/a.onnx"), lambda place: predict_slices(open_onnx(place / "a.onnx", "cpu"), slices)
    )
    for name in ("new", "old"):
        made[f"{name} pth"] = Reader(
            tensors / f"{name}.pth", lambda place, name=name: load_state(place / f"{name}.pth")
        )
    return made
