"""Encoder weights by their three names, in small files of the real format."""

import pytest
import torch
from safetensors.torch import save_file

from sdm_cli.errors import CheckpointError
from sdm_cli.method.encoder import Encoder, EncoderSizes
from sdm_cli.method.pretrained import load_encoder_weights

SIZES = EncoderSizes((8, 16, 40, 64), (1, 2, 1, 1))


def encoder(sizes=SIZES, seed=0):
    torch.manual_seed(seed)
    made = Encoder(sizes, 0.0)
    for parameter in made.parameters():
        parameter.data.normal_()
    return made


def hub_names(state, version):
    """The names of `nvidia/mit-b*` as transformers 4 and 5 write them; keys and values are apart."""
    v4 = version == 4
    renamed = {}
    for name, tensor in state.items():
        place, _, rest = name.partition(".")
        stage = int(place[-1]) - 1
        if place.startswith("patch_embed"):
            rest = rest.replace("norm", "layer_norm")
            renamed[f"encoder.patch_embeddings.{stage}.{rest}" if v4 else f"stages.{stage}.patch_embeddings.{rest}"] = (
                tensor
            )
        elif place.startswith("norm"):
            renamed[f"encoder.layer_norm.{stage}.{rest}" if v4 else f"stages.{stage}.layer_norm.{rest}"] = tensor
        else:
            block, _, part = rest.partition(".")
            module, _, kind = part.rpartition(".")
            head = f"encoder.block.{stage}.{block}" if v4 else f"stages.{stage}.blocks.{block}"
            if module == "attn.kv":
                key, value = tensor.chunk(2)
                renamed[f"{head}.{'attention.self.key' if v4 else 'attention.k_proj'}.{kind}"] = key.contiguous()
                renamed[f"{head}.{'attention.self.value' if v4 else 'attention.v_proj'}.{kind}"] = value.contiguous()
            else:
                renamed[f"{head}.{HUB_PARTS[module][0 if v4 else 1]}.{kind}"] = tensor
    prefixed = {f"segformer.{name}": tensor for name, tensor in renamed.items()}
    return prefixed | {"classifier.weight": torch.zeros(10, 64), "classifier.bias": torch.zeros(10)}


HUB_PARTS = {
    "norm1": ("layer_norm_1", "layernorm_before"),
    "norm2": ("layer_norm_2", "layernorm_after"),
    "attn.q": ("attention.self.query", "attention.q_proj"),
    "attn.sr": ("attention.self.sr", "attention.sequence_reduction.sequence_reduction"),
    "attn.norm": ("attention.self.layer_norm", "attention.sequence_reduction.layer_norm"),
    "attn.proj": ("attention.output.dense", "attention.o_proj"),
    "mlp.fc1": ("mlp.dense1", "mlp.fc1"),
    "mlp.dwconv.dwconv": ("mlp.dwconv.dwconv", "mlp.dwconv.dwconv"),
    "mlp.fc2": ("mlp.dense2", "mlp.fc2"),
}


def authors_names(state):
    return state | {"head.weight": torch.zeros(10, 64), "head.bias": torch.zeros(10)}


def assert_filled(path, unused):
    source, target = encoder(), encoder(seed=1)
    report = load_encoder_weights(target, str(path))
    assert all(torch.equal(target.state_dict()[name], tensor) for name, tensor in source.state_dict().items())
    assert set(report.used) == source.state_dict().keys()
    assert set(report.unused) == unused
    image = torch.rand(1, 1, 64, 32)
    with torch.inference_mode():
        assert all(torch.equal(a, b) for a, b in zip(source(image), target(image), strict=True))
    return report


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_file_of_the_authors(tmp_path, suffix):
    path = tmp_path / f"mit_b0{suffix}"
    state = authors_names(encoder().state_dict())
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    report = assert_filled(path, {"head.weight", "head.bias"})
    assert "head.weight" in str(report)
    assert "head.bias" in str(report)
    assert "non-commercial" in str(report)


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("filename", ["model.safetensors", "pytorch_model.bin"])
def test_file_of_the_hub(tmp_path, version, filename):
    state = hub_names(encoder().state_dict(), version)
    save_file(state, tmp_path / filename) if filename.endswith("s") else torch.save(state, tmp_path / filename)
    assert_filled(tmp_path / filename, {"classifier.weight", "classifier.bias"})


@pytest.mark.parametrize("version", [4, 5])
def test_hub_names_of_the_bare_encoder(tmp_path, version):
    state = {
        name.removeprefix("segformer."): tensor
        for name, tensor in hub_names(encoder().state_dict(), version).items()
        if not name.startswith("classifier")
    }
    save_file(state, tmp_path / "model.safetensors")
    assert_filled(tmp_path / "model.safetensors", set())


def test_hub_names_as_published():
    """A few names in full, so that a slip of the helper above cannot agree with one of the program."""
    four, five = (hub_names(encoder().state_dict(), version).keys() for version in (4, 5))
    assert "segformer.encoder.patch_embeddings.0.proj.weight" in four
    assert "segformer.encoder.block.0.0.attention.self.query.weight" in four
    assert "segformer.encoder.block.0.0.attention.self.layer_norm.bias" in four
    assert "segformer.encoder.block.1.1.mlp.dwconv.dwconv.weight" in four
    assert "segformer.encoder.layer_norm.3.weight" in four
    assert "segformer.stages.0.patch_embeddings.layer_norm.weight" in five
    assert "segformer.stages.1.blocks.1.attention.sequence_reduction.sequence_reduction.weight" in five
    assert "segformer.stages.1.blocks.1.layernorm_after.bias" in five
    assert "segformer.stages.3.layer_norm.weight" in five


def test_trained_network_gives_its_encoder(tmp_path):
    state = {f"module.backbone.{name}": tensor for name, tensor in encoder().state_dict().items()}
    torch.save({"model": state | {"module.framework.decoder.linear_pred.bias": torch.zeros(3)}}, tmp_path / "best.pth")
    assert_filled(tmp_path / "best.pth", {"framework.decoder.linear_pred.bias"})


def test_none_leaves_the_encoder_alone():
    target = encoder()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    report = load_encoder_weights(target, "none")
    assert report.used == ()
    assert "random" in str(report)
    assert all(torch.equal(before[name], tensor) for name, tensor in target.state_dict().items())


@pytest.mark.parametrize("version", [0, 4, 5])
def test_missing_parameters_are_named(tmp_path, version):
    state = hub_names(encoder().state_dict(), version) if version else authors_names(encoder().state_dict())
    lost = [name for name in state if "value" in name or "v_proj" in name or "attn.kv" in name][:2]
    torch.save({name: tensor for name, tensor in state.items() if name not in lost}, tmp_path / "mit_b0.pth")
    target = encoder(seed=1)
    before = target.patch_embed1.proj.weight.clone()
    with pytest.raises(CheckpointError, match=r"2 parameters are missing: block1\.0\.attn\.kv\.weight"):
        load_encoder_weights(target, str(tmp_path / "mit_b0.pth"))
    assert torch.equal(target.patch_embed1.proj.weight, before)


@pytest.mark.parametrize(
    "sizes", [EncoderSizes((8, 16, 40, 64), (1, 2, 2, 1)), EncoderSizes((8, 16, 40, 128), (1, 2, 1, 1))]
)
@pytest.mark.parametrize("version", [0, 4, 5])
def test_encoder_of_another_size_is_refused(tmp_path, sizes, version):
    state = encoder(sizes).state_dict()
    save_file(hub_names(state, version) if version else state, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match=r"set model\.encoder"):
        load_encoder_weights(encoder(), str(tmp_path / "m.safetensors"))


@pytest.mark.parametrize("source", ["mit_b5.pth", "folder/mit_b5.pth", "some words", "a/b/c"])
def test_missing_file_is_named(source):
    with pytest.raises(CheckpointError, match=f"{source}: there is no such file"):
        load_encoder_weights(encoder(), source)


def test_hub_without_connection_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"nvidia/mit-b0: cannot be downloaded .* path of that file"):
        load_encoder_weights(encoder(), "nvidia/mit-b0")


def test_hub_id_is_read_from_its_cache(tmp_path, monkeypatch):
    """What an earlier download left; laid out as the hub's library lays it."""
    repository, commit = tmp_path / "models--nvidia--mit-b0", "0" * 40
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    torch.save(hub_names(encoder().state_dict(), 4), repository / "snapshots" / commit / "pytorch_model.bin")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert_filled("nvidia/mit-b0", {"classifier.weight", "classifier.bias"})
