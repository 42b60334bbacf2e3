"""ImageNet weights of the encoder, from the files that people have.

Owns the other names of the Mix Transformer's parameters: the authors' `mit_b*.pth` (ours, plus a
classifier) and the hub's `nvidia/mit-b*` in both spellings of the transformers library (before and
since version 5). Every parameter must be found; what the encoder has no use for is reported.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sdm_cli.errors import CheckpointError
from sdm_cli.method.encoder import Encoder
from sdm_cli.method.tensors import first_line, load_state

_PREFIX = re.compile(r"^(?:(?:module|backbone|segformer|encoder)\.)+")
_ENCODER = re.compile(r"^(?:patch_embed|block|norm)\d\.")
# Stages count from 0 on the hub and from 1 here; `{}` is the number of the stage.
_PLACES = (
    (re.compile(r"^(?:patch_embeddings\.(\d+)|stages\.(\d+)\.patch_embeddings)\.proj\."), "patch_embed{}.proj."),
    (re.compile(r"^(?:patch_embeddings\.(\d+)|stages\.(\d+)\.patch_embeddings)\.layer_norm\."), "patch_embed{}.norm."),
    (re.compile(r"^(?:layer_norm\.(\d+)|stages\.(\d+)\.layer_norm)\."), "norm{}."),
    (re.compile(r"^(?:block\.(\d+)|stages\.(\d+)\.blocks)\."), "block{}."),
)
# Within a block: transformers 4, transformers 5, here.
_PARTS = (
    ("attention.self.query.", "attention.q_proj.", "attn.q."),
    ("attention.self.key.", "attention.k_proj.", "attn.k."),
    ("attention.self.value.", "attention.v_proj.", "attn.v."),
    ("attention.self.sr.", "attention.sequence_reduction.sequence_reduction.", "attn.sr."),
    ("attention.self.layer_norm.", "attention.sequence_reduction.layer_norm.", "attn.norm."),
    ("attention.output.dense.", "attention.o_proj.", "attn.proj."),
    ("layer_norm_1.", "layernorm_before.", "norm1."),
    ("layer_norm_2.", "layernorm_after.", "norm2."),
    ("mlp.dense1.", "mlp.fc1.", "mlp.fc1."),
    ("mlp.dense2.", "mlp.fc2.", "mlp.fc2."),
)
_FILE_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")


@dataclass(frozen=True)
class PretrainedReport:
    """What became of the tensors of a file.

    Attributes:
        source: file, hub id or `none`.
        used: parameters of the encoder that were read, by our names: all of them, or none.
        unused: tensors of the file that the encoder has no use for, by their own names.
    """

    source: str
    used: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line for the log."""
        if not self.used:
            return "The encoder starts from random weights."
        rest = f"not used: {_some(self.unused)}" if self.unused else "every tensor of the file is used"
        return (
            f"The encoder starts from {self.source}: all its {len(self.used)} parameters were read; {rest}. "
            "NVIDIA's MiT weights are for non-commercial use."
        )


def load_encoder_weights(encoder: Encoder, source: str) -> PretrainedReport:
    """Fill the encoder in place.

    Args:
        encoder: of the size that the file was made for.
        source: `none` (the encoder stays as it is), a `.pth` or `.safetensors` file, or a hub id.

    Returns:
        What was used and what was not.

    Raises:
        CheckpointError: the file cannot be had or read, or does not fill the encoder.
    """
    if source == "none":
        return PretrainedReport(source)
    found, unused = _renamed(load_state(_locate(source)))
    expected = encoder.state_dict()
    missing = [name for name in expected if name not in found]
    if missing:
        raise CheckpointError(
            f"{source}: not the weights of this encoder ({len(missing)} parameters are missing: {_some(missing)}); "
            "give a mit_b* file of the size that model.encoder names."
        )
    misfits = [name for name, tensor in found.items() if name not in expected or tensor.shape != expected[name].shape]
    if misfits:
        raise CheckpointError(
            f"{source}: an encoder of another size ({len(misfits)} parameters do not fit: {_some(misfits)}); "
            "set model.encoder to the size of the file."
        )
    encoder.load_state_dict(found)
    return PretrainedReport(source, tuple(found), tuple(unused))


def _renamed(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors of an encoder by our names, and the names of all others."""
    found = {ours: tensor for name, tensor in state.items() if _ENCODER.match(ours := _our_name(name))}
    unused = [name for name in state if not _ENCODER.match(_our_name(name))]
    for key in [name for name in found if ".attn.k." in name]:
        value = key.replace(".attn.k.", ".attn.v.")
        if value in found:  # our linear map gives the keys first, then the values
            found[key.replace(".attn.k.", ".attn.kv.")] = torch.cat([found.pop(key), found.pop(value)])
    return found, unused


def _our_name(name: str) -> str:
    name = _PREFIX.sub("", name)
    for pattern, place in _PLACES:
        match = pattern.match(name)
        if match:
            stage = int(match[1] or match[2]) + 1
            return place.format(stage) + _our_part(name[match.end() :])
    return name


def _our_part(name: str) -> str:
    """`0.attention.self.query.weight` to `0.attn.q.weight`; other names stay."""
    index, dot, rest = name.partition(".")
    for *others, ours in _PARTS:
        for other in others:
            if rest.startswith(other):
                return index + dot + ours + rest.removeprefix(other)
    return name


def _locate(source: str) -> Path:
    """Path of the file, downloaded from the hub if `source` is an id."""
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.suffix in _FILE_SUFFIXES or not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise CheckpointError(
            f"model.pretrained {source}: there is no such file; give a mit_b*.pth file, a hub id (nvidia/mit-b5) "
            "or none."
        )
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    filenames = ("model.safetensors", "pytorch_model.bin")
    for filename in filenames:  # what was downloaded once needs no connection
        cached = try_to_load_from_cache(source, filename)
        if isinstance(cached, str):
            return Path(cached)
    for filename in filenames:
        try:
            return Path(hf_hub_download(source, filename))
        except LocalEntryNotFoundError:
            raise _unreachable(source, "no connection to the hub, and not in its cache") from None
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, OSError, ValueError) as error:
            raise _unreachable(source, first_line(error)) from None
    raise CheckpointError(f"model.pretrained {source}: the hub has no weights of that name; give the path of a file.")


def _unreachable(source: str, reason: str) -> CheckpointError:
    return CheckpointError(
        f"model.pretrained {source}: cannot be downloaded ({reason}); fetch its model.safetensors or "
        "pytorch_model.bin on a machine with access and set model.pretrained to the path of that file."
    )


def _some(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
