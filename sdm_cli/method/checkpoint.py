"""The model folder: weights, resolved preset and everything that prediction must know.

Owns how a model lies on disk, in the manner of the Hugging Face hub: `config.json`,
`model.safetensors`, `preprocessor_config.json`, `README.md`. A folder is written under a temporary
name and renamed, so that a kill at any moment leaves the old model or the new one. Nothing read
here can run code: safetensors and JSON.
"""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from sdm_cli import __version__
from sdm_cli.config import Preset
from sdm_cli.documents import lies_in, parse_json, read_text
from sdm_cli.errors import CheckpointError, OutputError, PresetError, reason_of
from sdm_cli.files import flush, json_text
from sdm_cli.method.card import FORMAT, VERSION, check_version, model_card, preprocessing
from sdm_cli.method.network import MessengerNetwork, build_network
from sdm_cli.method.tensors import first_line, load_tensors, save_tensors, sha256
from sdm_cli.preset_files import preset_from_dict, preset_to_dict

_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_PREPROCESSING = "preprocessor_config.json"
_CARD = "README.md"
_RESUME_TENSORS = "resume.safetensors"
_RESUME_STATE = "resume.json"
_RESUME_DIGEST = "sha256"
MODEL_FILES = (_CONFIG, _WEIGHTS, _PREPROCESSING, _CARD)
"""All that a model folder holds, besides the state of a training."""

Resume = tuple[Mapping[str, Tensor], Mapping[str, Any]]
"""What a training run needs besides the model to go on: tensors by name, and plain JSON values."""


def save_model(
    folder: Path,
    network: MessengerNetwork | Mapping[str, Tensor],
    preset: Preset,
    resume: Resume | None = None,
    *,
    chosen_on: str | None = None,
    keep: Path | None = None,
) -> None:
    """Write a model folder in one step, replacing an earlier model of that name.

    Args:
        folder: of the model; parents are made.
        network: the network or its state dict (of an average of the weights, for instance).
        preset: resolved; `model` and `data.classes` must describe the network.
        resume: state of the training run, kept in the same folder.
        chosen_on: what chose these weights: the role of some cases, or `last step`; none: not known.
        keep: the model that is replaced goes here, instead of being deleted.

    Raises:
        OutputError: the folder holds something else than a model, or cannot be written.
    """
    state = network.state_dict() if isinstance(network, MessengerNetwork) else network
    if folder.exists() and not is_model_folder(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise OutputError(f"{folder} exists and is not a model; give another output path.")
    temporary = folder.absolute().with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        _write_files(temporary, state, preset, chosen_on)
        if resume is not None:
            tensors, values = resume
            save_tensors(tensors, temporary / _RESUME_TENSORS)
            digest = _resume_digest(temporary / _RESUME_TENSORS, values)
            _write_json(temporary / _RESUME_STATE, {**values, _RESUME_DIGEST: digest})
        _put_in_place(temporary, folder, keep)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise OutputError(
            f"{folder}: the model cannot be written ({reason_of(error)}); free space or give another path."
        ) from None


def load_model(folder: Path) -> tuple[MessengerNetwork, Preset]:
    """Read a model folder: the network on the CPU in evaluation mode, and its preset.

    Neither downloads `model.pretrained` nor draws random numbers.

    Raises:
        CheckpointError: missing, damaged, of a newer version, or weights that do not fit the preset.
    """
    folder = _existing(folder)
    config = _read_config(folder)
    preset = _preset(config.get("preset"), folder)
    if config.get("classes") != list(preset.data.class_names):
        raise CheckpointError(f"{folder}/{_CONFIG}: its classes differ from those of its preset; take an intact copy.")
    weights = _own_file(folder, _WEIGHTS)
    state = load_tensors(weights)
    if sha256(weights) != config.get("weights_sha256"):
        raise CheckpointError(
            f"{weights}: not the weights that {_CONFIG} describes; copy the whole model folder again."
        )
    return network_from_state(state, preset, str(folder)), preset


def load_resume(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_model` kept as `resume`, tensors on the CPU.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    values = load_resume_values(folder)
    path = _own_file(_existing(folder), _RESUME_TENSORS)
    tensors = load_tensors(path)
    digest = values.pop(_RESUME_DIGEST, None)  # earlier checkpoints have none
    if digest is not None and digest != _resume_digest(path, values):
        raise CheckpointError(f"{path} or {_RESUME_STATE} beside it is damaged; take an intact copy of both.")
    return tensors, values


def _resume_digest(tensors: Path, values: Mapping[str, Any]) -> str:
    """Of the file of the tensors and of the values together: a run that goes on from others would not be the same."""
    both = f"{sha256(tensors)} {json_text(values, indent=None)}"
    return hashlib.sha256(both.encode()).hexdigest()


def load_resume_values(folder: Path) -> dict[str, Any]:
    """Of what `load_resume` reads the plain values alone; raises CheckpointError."""
    folder = _existing(folder)
    path = _own_file(folder, _RESUME_STATE)
    if not path.is_file():
        raise CheckpointError(f"{folder} is a model without resume state; start a new run instead of resuming.")
    return _read_json(path)


def describe_model(folder: Path) -> tuple[dict[str, Any], Preset]:
    """Configuration and preset of a model, without its weights; raises CheckpointError."""
    folder = _existing(folder)
    config = _read_config(folder)
    return config, _preset(config.get("preset"), folder)


def is_model_folder(folder: Path) -> bool:
    """True if this folder itself is a model (which may be damaged)."""
    try:
        return _read_json(_own_file(folder, _CONFIG)).get("format") == FORMAT
    except CheckpointError:
        return False


def has_model(folder: Path) -> bool:
    """True if `load_model` finds a model here, be it the one that a killed replacement left beside it."""
    return is_model_folder(folder) or (not folder.exists() and is_model_folder(_backup(folder)))


def weights_sha256(folder: Path) -> str:
    """Hash of a model's weights, as its configuration states it; raises CheckpointError."""
    return str(_read_config(_existing(folder)).get("weights_sha256"))


def chosen_on(folder: Path) -> str | None:
    """What chose the weights of a model, as `save_model` was told; raises CheckpointError."""
    value = _read_config(_existing(folder)).get("chosen_on")
    return value if isinstance(value, str) else None


def network_from_state(state: Mapping[str, Tensor], preset: Preset, origin: str) -> MessengerNetwork:
    """The network of a preset holding exactly these tensors, in evaluation mode.

    Args:
        state: by the published names (method.md section 2, "Parameter names").
        preset: says the architecture and the classes.
        origin: where the tensors came from, for messages.

    Raises:
        CheckpointError: names or shapes differ.
    """
    with torch.device("meta"):  # no memory and no random numbers for weights that are replaced anyway
        network = build_network(preset.model, preset.data.n_classes)
    expected = network.state_dict()
    _check_fit(state, expected, preset, origin)
    # Copies: a tensor mapped from a file may lie at an address that slows, and even rounds, otherwise.
    state = {name: state[name].to(tensor.dtype, copy=True) for name, tensor in expected.items()}
    network.load_state_dict(state, assign=True)
    return network.eval()


def _write_files(folder: Path, state: Mapping[str, Tensor], preset: Preset, chosen_on: str | None) -> None:
    save_tensors(state, folder / _WEIGHTS)
    config = {
        "format": FORMAT,
        "version": VERSION,
        "sdm_version": __version__,
        "n_classes": preset.data.n_classes,
        "classes": list(preset.data.class_names),
        "weights_sha256": sha256(folder / _WEIGHTS),
        "chosen_on": chosen_on,
        "preset": preset_to_dict(preset),
    }
    _write_json(folder / _CONFIG, config)
    _write_json(folder / _PREPROCESSING, preprocessing(preset))
    (folder / _CARD).write_text(model_card(preset, chosen_on), encoding="utf-8")


def _put_in_place(temporary: Path, folder: Path, keep: Path | None) -> None:
    """Rename; the old model stays reachable, as `.old` or under its new name, until the new one has its own."""
    for path in (*temporary.iterdir(), temporary):
        flush(path)  # a name that points to unwritten blocks would outlive a loss of power
    old = keep or _backup(folder)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    temporary.rename(folder)
    flush(folder.parent)
    if keep is None:
        shutil.rmtree(old, ignore_errors=True)


def _backup(folder: Path) -> Path:
    return folder.absolute().with_name(f".{folder.name}.old")


def _existing(folder: Path) -> Path:
    """The folder, or its `.old` sibling when a kill fell between the two renames."""
    if not folder.exists() and _backup(folder).exists():
        return _backup(folder)
    if folder.is_file():
        remedy = "`sdm export --from-authors` makes one of it" if folder.suffix == ".pth" else "give a run or a model"
        raise CheckpointError(f"{folder} is a file, not a model folder: {remedy}.")
    if not (folder / _CONFIG).is_file():
        raise CheckpointError(f"{folder}: no model here ({_CONFIG} is missing); give a run or a model folder.")
    return folder


def _own_file(folder: Path, name: str) -> Path:
    """A file of a model, which may come from a stranger: CheckpointError where it is a link that leads elsewhere.

    The hub's cache is no elsewhere: the files of `snapshots/<revision>` are links to `blobs`, beside `snapshots`.
    """
    path, home = folder / name, folder.resolve()
    is_blob = home.parent.name == "snapshots" and path.resolve().parent == home.parent.parent / "blobs"
    if not lies_in(path, folder) and not is_blob:
        raise CheckpointError(f"{path} is a link that leads out of the model folder: put a copy of the file there.")
    return path


def _read_config(folder: Path) -> dict[str, Any]:
    config = _read_json(_own_file(folder, _CONFIG))
    if config.get("format") != FORMAT:
        raise CheckpointError(f"{folder}/{_CONFIG}: not the configuration of an sdm model; give another folder.")
    check_version(config.get("version"), str(folder))
    return config


def _preset(tree: Any, folder: Path) -> Preset:
    if not isinstance(tree, dict):
        raise CheckpointError(f"{folder}/{_CONFIG}: the preset is missing; take an intact copy of the model.")
    try:
        return preset_from_dict(tree, f"{folder}/{_CONFIG}")
    except PresetError as error:
        raise CheckpointError(str(error)) from None


def _check_fit(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], preset: Preset, origin: str) -> None:
    head = state.get("framework.decoder.linear_pred.weight")
    if head is not None and head.shape[0] != preset.data.n_classes:
        raise CheckpointError(
            f"{origin}: a model of {head.shape[0]} classes with the background, while the preset {preset.name} has "
            f"{preset.data.n_classes}; give the preset that it was trained with."
        )
    missing, extra = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    reshaped = [name for name in expected if name in state and state[name].shape != expected[name].shape]
    problems = [
        f"{text} {len(names)} tensors (first {names[0]})"
        for text, names in (("lacks", missing), ("has unexpected", extra), ("has other shapes in", reshaped))
        if names
    ]
    if problems:
        raise CheckpointError(f"{origin}: does not fit the preset {preset.name}: {', '.join(problems)}.")


def _write_json(path: Path, tree: Mapping[str, Any]) -> None:
    path.write_text(json_text(tree) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        tree = parse_json(read_text(path))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({first_line(error)}); take an intact copy.") from None
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path}: not a JSON object; take an intact copy of the model.")
    return tree
