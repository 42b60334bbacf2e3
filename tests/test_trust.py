"""Files, models, stores and runs of strangers: bounded, kept in their folders, and without names of patients."""

import gzip
import itertools
import json
import os
import shutil
import struct
import tracemalloc
import zlib

import h5py
import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from models import small_network, small_preset
from official import write_nrrd
from scans import voxels, write_laseg, write_nifti
from stores import make_store, scan, tiny_preset
from typer.testing import CliRunner

from sdm_cli.cli import app
from sdm_cli.data import hdf5, limits
from sdm_cli.data.cases import Case
from sdm_cli.data.classes import find_classes
from sdm_cli.data.itk import read_itk
from sdm_cli.data.readers import read_image_file
from sdm_cli.data.recipe import load_recipe
from sdm_cli.data.store import SliceStore
from sdm_cli.data.volume import read_nifti
from sdm_cli.data_config import DataConfig
from sdm_cli.documents import parse_json, parse_yaml, read_text
from sdm_cli.errors import CheckpointError, ImageReadError, PresetError, SdmError, StoreError
from sdm_cli.method.checkpoint import load_model, save_model
from sdm_cli.method.tensors import load_state, load_tensors
from sdm_cli.preset_files import load_preset, preset_to_dict
from sdm_cli.runs.run_folder import RunFolder

NAME = "DOE^JANE"


def with_header(path, **fields):
    """A NIfTI file whose header says something else, uncompressed or not."""
    write_nifti(path, voxels())
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rb") as file:
        content = bytearray(file.read())
    header = np.frombuffer(content, nib.Nifti1Header.template_dtype, 1).copy()
    for name, value in fields.items():
        header[name] = value
    content[: header.nbytes] = header.tobytes()
    with opened(path, "wb") as file:
        file.write(bytes(content))
    return path


def read_h5(path):
    return read_image_file(Case("a", path), DataConfig()).voxels


# Memory.


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_header_that_claims_more_than_its_file_holds_is_refused_before_memory_is_taken(tmp_path, name):
    path = with_header(tmp_path / name, dim=[3, 2000, 2000, 100, 1, 1, 1, 1])  # 800 MB
    tracemalloc.start()
    with pytest.raises(ImageReadError, match=r"2000 x 2000 x 100 voxels, and the file can hold \d+ bytes"):
        read_nifti(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24


def test_what_a_gzip_file_holds_beyond_its_header_is_not_read(tmp_path):
    path = write_nifti(tmp_path / "a.nii.gz", voxels())
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content + bytes(2**28), 1))
    tracemalloc.start()
    assert np.array_equal(read_nifti(path).voxels, voxels())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24


@pytest.mark.parametrize("size", [-16, 2**31 - 16, 8])
def test_extensions_of_any_length_are_not_read(tmp_path, size):
    path = with_header(tmp_path / "a.nii", vox_offset=352)
    content = bytearray(path.read_bytes())
    content[348:360] = b"\1\0\0\0" + struct.pack("<ii", size, 6)
    path.write_bytes(content)
    assert read_nifti(path).voxels.shape == (6, 5, 4)


def test_a_scan_larger_than_the_free_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "_LITTLE", 0)
    monkeypatch.setattr(limits, "free_memory_bytes", lambda: 200)
    with pytest.raises(ImageReadError, match=r"does not fit into memory \(its header says 6 x 5 x 4 voxels\)"):
        read_nifti(write_nifti(tmp_path / "a.nii", voxels()))
    with pytest.raises(ImageReadError, match="does not fit into memory"):
        read_h5(write_laseg(tmp_path, "x"))
    with pytest.raises(ImageReadError, match="does not fit into memory"):
        read_itk(write_nrrd(tmp_path / "a.nrrd", voxels()))


def test_a_dataset_of_nothing_but_a_claim_is_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("image", (30000,) * 3, "int16", chunks=(64,) * 3, compression="gzip", fillvalue=7)
        file.create_dataset("little", (300,) * 3, "int16", chunks=(64,) * 3)
        file.create_dataset("chunk", (1, 1, 1), "int16", chunks=(8000,) * 3, maxshape=(None,) * 3)
    with pytest.raises(ImageReadError, match="does not fit into memory"):
        read_h5(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file.move("image", "large")
        file.move("little", "image")
    with pytest.raises(ImageReadError, match="300 x 300 x 300 voxels, and the file can hold 0 bytes"):
        read_h5(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file["image"]
        file.move("chunk", "image")
    with pytest.raises(ImageReadError, match="does not fit into memory"):
        read_h5(tmp_path / "a.h5")


@pytest.mark.parametrize(("shape", "n_bytes"), [((10, 10, 10), 2**26), ((150, 100, 1), 2**24)])
def test_a_chunk_that_inflates_to_more_than_its_voxels_is_refused(tmp_path, monkeypatch, shape, n_bytes):
    """HDF5 itself would inflate it whole; the second one is no larger than its voxels may be."""
    monkeypatch.setattr(hdf5, "_UNLOOKED", 2**20)
    bomb = zlib.compress(bytes(n_bytes), 9)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        image = file.create_dataset("image", shape, "int16", chunks=shape, compression="gzip")
        image.id.write_direct_chunk((0, 0, 0), bomb)
    with pytest.raises(ImageReadError, match="a chunk holds more than its voxels"):
        read_h5(tmp_path / "a.h5")


def test_an_nrrd_header_that_claims_too_much_or_names_other_files_is_refused(tmp_path):
    start = "NRRD0004\ntype: short\ndimension: 3\nsizes: {}\nencoding: raw\nendian: little\n{}\n"
    (tmp_path / "big.nrrd").write_text(start.format("900 900 900", "") + "x" * 100)
    with pytest.raises(ImageReadError, match="900 x 900 x 900 voxels, and the file can hold"):
        read_itk(tmp_path / "big.nrrd")
    (tmp_path / "secret.raw").write_bytes(bytes(range(16)))
    (tmp_path / "in").mkdir()
    (tmp_path / "in/link.raw").symlink_to("../secret.raw")
    for field in (
        "data file: ../secret.raw",
        f"DataFile: {tmp_path}/secret.raw",
        "datafile: LIST",
        "data file: link.raw",
    ):
        (tmp_path / "in/a.nhdr").write_text(start.format("2 2 2", field))
        with pytest.raises(ImageReadError, match=r"a\.nhdr keeps its voxels in files that are not beside it"):
            read_itk(tmp_path / "in/a.nhdr")
    header = "ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_SHORT\nElementDataFile = {}\n"
    (tmp_path / "in/a.mhd").write_text(header.format("../secret.raw"))
    with pytest.raises(ImageReadError, match=r"a\.mhd keeps its voxels in files that are not beside it"):
        read_itk(tmp_path / "in/a.mhd")
    (tmp_path / "in/own.raw").write_bytes(bytes(range(16)))
    (tmp_path / "in/a.mhd").write_text(header.format("own.raw"))
    (tmp_path / "in/a.nhdr").write_text(start.format("2 2 2", "data file: own.raw"))
    for name in ("a.mhd", "a.nhdr"):
        assert (
            read_itk(tmp_path / "in" / name).voxels.ravel("F").tolist()
            == np.arange(16).astype("uint8").view("<i2").tolist()
        )


# Texts.


def repeated(form, first):
    """Each line ten times the one before."""
    return f"a: &a {first}\n" + "".join(
        f"{name}: &{name} {form.format(', '.join([f'*{before}'] * 10))}\n"
        for before, name in itertools.pairwise("abcdefgh")
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (repeated("[{}]", "[1]"), "more than 200000 values"),
        (repeated("{{<<: [{}]}}", "{x: 1}"), "more than 200000 values"),
        ("&a [*a]", "more than 200000 values"),
        ("[" * 5000, "nested"),
        ("a: " + "[" * 60 + "]" * 60, "nested"),
        ("a: 1" + ":1" * 5000, "a number of 10001 characters"),
        ("a: 0x" + "f" * 5000, "a number of 5002 characters"),
        ("!!python/object/apply:os.system [echo]", "could not determine a constructor"),
        ("!!bool x", "does not fit its type"),
        ("!!timestamp x", "does not fit its type"),
        ("a: 2001-99-99", "does not fit its type"),
        ('a: "\\ud800"', "surrogates not allowed"),
        ("a: \x00", "unacceptable character"),
        ("a: 1\n" * 2**18, "larger than 1 MiB"),
    ],
    ids=range(14),
)
def test_yaml_that_would_harm_is_a_sentence(tmp_path, text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_yaml(text)
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(PresetError, match=r"a\.yaml: not valid YAML") as caught:
        load_preset(str(tmp_path / "a.yaml"))
    assert len(str(caught.value)) < 1000


def test_yaml_may_still_share_values():
    assert parse_yaml("a: &x {b: 1}\nc: *x\nd: {<<: *x, e: 2}") == {"a": {"b": 1}, "c": {"b": 1}, "d": {"b": 1, "e": 2}}


@pytest.mark.parametrize("text", ["[" * 100_000, "[" * 60 + "]" * 60, '"\\ud800"', "9" * 5000, '{"a": }'])
def test_json_that_would_harm_is_refused(text):
    with pytest.raises(ValueError):
        parse_json(text)


def test_label_values_of_any_length_are_a_sentence():
    with pytest.raises(ImageReadError, match="one whole number a class"):
        find_classes({"labels": {"a": "9" * 5000}}, [])


def test_a_text_that_is_too_large_or_no_file_is_refused(tmp_path):
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match="larger than 64 MiB"):
        read_text(tmp_path / "large")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(path)
        with pytest.raises(OSError, match="a pipe or a device"):
            read_text(tmp_path / "link")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".h5"])
def test_scans_that_are_no_files_do_not_hang(tmp_path, suffix):
    for number, make in enumerate((os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero"))):
        path = tmp_path / f"a{number}{suffix}"
        make(path)
        with pytest.raises(ImageReadError, match=rf"a{number}.*(a pipe or a device|[Ii]s a directory|no DICOM files)"):
            read_image_file(Case("a", path), DataConfig())


# Models.


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trust") / "model"
    save_model(folder, small_network(small_preset()), small_preset())
    return folder


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_model_reads_nothing_outside_its_folder(tmp_path, model, name):
    shutil.copytree(model, tmp_path / "model")
    shutil.move(tmp_path / "model" / name, tmp_path / "elsewhere")
    (tmp_path / "model" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=f"{name} is a link that leads out of the model folder"):
        load_model(tmp_path / "model")


def test_a_model_of_the_hubs_cache_and_a_linked_folder_are_read(tmp_path, model):
    snapshot = tmp_path / "models--a--b/snapshots/abc"
    shutil.copytree(model, snapshot)
    (tmp_path / "models--a--b/blobs").mkdir()
    for path in list(snapshot.iterdir()):
        path.rename(tmp_path / "models--a--b/blobs" / f"hash-{path.name}")
        path.symlink_to(f"../../blobs/hash-{path.name}")
    (tmp_path / "linked").symlink_to(snapshot)
    assert load_model(snapshot)[1] == load_model(tmp_path / "linked")[1]
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(model / "config.json")
    with pytest.raises(CheckpointError, match="leads out"):
        load_model(snapshot)


def test_a_pickle_takes_no_more_memory_than_its_file(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"\x80\x02c__builtin__\nbytearray\nJ\x00\x00\x00\x7f\x85R.")
    with pytest.raises(CheckpointError, match=r"a\.pth: cannot be read .*asks for memory"):
        load_state(tmp_path / "a.pth")
    torch.save({"a": torch.zeros(1000)}, tmp_path / "b.pth")
    packed, unpacked = tmp_path / "packed.pth", tmp_path / "b"
    shutil.unpack_archive(tmp_path / "b.pth", unpacked, "zip")
    shutil.make_archive(str(packed), "zip", unpacked)
    shutil.move(f"{packed}.zip", packed)
    with pytest.raises(CheckpointError, match="it is compressed"):
        load_state(packed)
    assert load_state(tmp_path / "b.pth")["a"].shape == (1000,)


def test_safetensors_that_lie_or_are_a_pipe_are_refused(tmp_path):
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, 2**42]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))
    os.mkfifo(tmp_path / "b.safetensors")
    for name in ("a", "b"):
        with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
            load_tensors(tmp_path / f"{name}.safetensors")


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "link.bin"])
def test_an_onnx_file_names_no_other_file(tmp_path, location):
    onnx = pytest.importorskip("onnx")
    from sdm_cli.runs.onnx_model import open_onnx

    (tmp_path / "secret.bin").write_bytes(bytes(16))
    (tmp_path / "m").mkdir()
    (tmp_path / "m/link.bin").symlink_to("../secret.bin")
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    ends = [onnx.helper.make_tensor_value_info(name, 1, [4]) for name in ("image", "logits")]
    add = onnx.helper.make_node("Add", ["image", "w"], ["logits"])
    graph = onnx.helper.make_graph([add], "g", ends[:1], ends[1:], [tensor])
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    made.metadata_props.add(key="format", value="sdm-model")
    (tmp_path / "m/a.onnx").write_bytes(made.SerializeToString())
    with pytest.raises(CheckpointError, match=r"a\.onnx: cannot be read as ONNX .*[Ee]xternal data path"):
        open_onnx(tmp_path / "m/a.onnx", "cpu")


# Stores and runs.


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("store"), tiny_preset())


@pytest.fixture
def copy(tmp_path, store):
    return shutil.copytree(store, tmp_path / "store")


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "..", "a/b", "a\\b", "", "x\0"])
def test_a_manifest_names_no_file_outside_the_store(copy, name):
    tree = json.loads((copy / "manifest.json").read_text())
    tree["cases"][name] = tree["cases"].pop("l0")
    (copy / "manifest.json").write_text(json.dumps(tree))
    with pytest.raises(StoreError, match=r"manifest\.json is damaged .*is no name of a case"):
        SliceStore(copy)


@pytest.mark.parametrize("name", ["../../x", "/etc", "a/b"])
def test_a_preset_names_no_store_and_no_run_outside_their_folders(tmp_path, name):
    for tree in ({"name": name}, {"data": {"dataset": name}}):
        (tmp_path / "a.yaml").write_text(yaml.safe_dump({"base": "laseg-5-cpu", **tree}))
        with pytest.raises(PresetError, match="must be a plain file name without a slash"):
            load_preset(str(tmp_path / "a.yaml"))


@pytest.mark.parametrize("name", ["manifest.json", "cases", "cases/l0.h5", "preset.yaml"])
def test_a_link_out_of_a_store_is_not_followed(tmp_path, copy, name):
    (copy / "preset.yaml").write_text(yaml.safe_dump(preset_to_dict(tiny_preset())))
    load_recipe(copy)
    shutil.move(copy / name, tmp_path / "elsewhere")
    (copy / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SdmError, match=rf"{name} is a link that leads out of the store"):
        load_recipe(copy)
        SliceStore(copy).read_image("l0", 0)


@pytest.mark.parametrize("kind", ["external link", "soft link", "virtual", "external storage"])
def test_an_hdf5_file_reads_no_other_file(tmp_path, copy, kind):
    secret = copy.parent / "secret.h5"
    shutil.copy(copy / "cases/l1.h5", secret)
    with h5py.File(copy / "cases/l0.h5", "r+") as file:
        shape = file["image"].shape
        del file["image"]
        if kind == "external link":
            file["image"] = h5py.ExternalLink(str(secret), "image")
        elif kind == "soft link":
            file["way"] = h5py.ExternalLink(str(secret), "/")
            file["image"] = h5py.SoftLink("/way/image")
        elif kind == "virtual":
            layout = h5py.VirtualLayout(shape, "uint16")
            layout[:] = h5py.VirtualSource(str(secret), "image", shape)
            file.create_virtual_dataset("image", layout)
        else:
            file.create_dataset("image", shape, "uint16", external=[(str(secret), 0, h5py.h5f.UNLIMITED)])
    with pytest.raises(StoreError, match=r"l0\.h5 is damaged \(.*(is a link|lies in another file)"):
        SliceStore(copy).read_image("l0", 0)
    shutil.copy(copy / "cases/l0.h5", tmp_path / "a.h5")
    with pytest.raises(ImageReadError, match=r"is a link|lies in another file"):
        read_h5(tmp_path / "a.h5")


def test_a_case_file_of_another_size_than_its_manifest_says_is_refused(copy):
    tree = json.loads((copy / "manifest.json").read_text())
    tree["cases"]["l0"]["n_slices"] = 99
    (copy / "manifest.json").write_text(json.dumps(tree))
    with pytest.raises(StoreError, match="its slices are not those of the manifest"):
        SliceStore(copy).read_image("l0", 0)


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints", "evaluation", "checkpoints/last"])
def test_a_run_is_not_followed_out_of_its_folder(tmp_path, name):
    RunFolder(tmp_path / "run").create(tiny_preset(), tmp_path / "store", {"split": {"labeled": ["a"]}})
    run = RunFolder(tmp_path / "run")
    run.read_config()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "run" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=f"{name} is a link that leads out of the run"):
        run.read_config()


# Names of patients.


def write_scan(path, array):
    """A scan with a name wherever a header has room for one."""
    image = nib.Nifti1Image(array, np.diag([1.0, 1, 3, 1]))
    for field in ("descrip", "aux_file", "intent_name", "db_name"):
        image.header[field] = NAME.encode()
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", NAME.encode()))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.to_filename(path)


def test_no_name_of_a_header_reaches_what_is_written_or_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = []
    for i in range(4):
        image, label = scan(i)
        write_scan(tmp_path / f"scans/c{i}.nii.gz", image)
        write_scan(tmp_path / f"references/c{i}.nii.gz", label)
        if i < 2:
            write_scan(tmp_path / f"labels/c{i}.nii.gz", label)
    write_scan(tmp_path / "scans/bad.nii.gz", np.zeros((5, 5, 5, 2), np.int16))
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(preset_to_dict(tiny_preset(train={"steps": 2}))))
    for words, exit_code in (
        ("check scans --labels labels --preset tiny.yaml", 3),
        ("preprocess -i scans --labels labels --preset tiny.yaml -o store", 4),
        ("train --preset tiny.yaml --store store -o run -d cpu", 0),
        ("predict -i scans -o masks --model run -d cpu", 4),
        ("evaluate --predictions masks --labels references", 0),
        ("export run -o exported", 0),
        ("info run", 0),
    ):
        result = CliRunner().invoke(app, words.split())
        assert result.exit_code == exit_code, (words, result.output)
        said.append(result.output + result.stderr)
    given = {tmp_path / name for name in ("scans", "labels", "references")}
    written = [path for path in tmp_path.rglob("*") if path.is_file() and not given & set(path.parents)]
    assert {"c0.h5", "c3.nii.gz", "summary.json", "manifest.json", "README.md", "check.png"} <= {
        path.name for path in written
    }
    contents = [path.read_bytes() for path in written]
    contents += [gzip.decompress(path.read_bytes()) for path in written if path.suffix == ".gz"]
    assert not [path for path, content in zip(written, contents, strict=False) if NAME.encode() in content]
    assert not any(NAME.encode() in content for content in contents) and not any(NAME in text for text in said)
