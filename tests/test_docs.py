"""Every command of the documentation runs, on small folders of the names that it uses.

Trainings get the smallest network and two steps, and those of benchmarks `--allow-missing`; else as it is written.
"""

import re
import shlex
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml
from official import write_acdc
from scans import write_nifti
from stores import scan
from typer.testing import CliRunner

from sdm_cli.cli import app

ROOT = Path(__file__).parent.parent
DOCUMENTS = ("README.md", "docs/research.md")
# What trains: the smallest network for two steps.
SHORT = [
    f"--set={field}"
    for field in (
        "model.encoder=mit-b0",
        "model.pretrained=none",
        "model.head_width=16",
        "method.patch=8",
        "train.crop=[32,32]",
        "train.pairs=1",
        "train.epochs=null",
        "train.steps=2",
        "train.validate_every_steps=2",
        "train.lr_warmup_steps=1",
    )
]
ELSEWHERE = {
    "sdm demo": "test_demo.py::test_the_whole_way_with_a_few_steps",
    "sdm export --from-authors FILE.pth": "test_export.py::test_command_exports_a_folder_and_imports_a_checkpoint",
    "sdm train --preset laseg-5-cpu --tr": "test_trackers.py::test_a_tracker_is_finished_when_the_run_is_interrupted",
    "sdm train --preset laseg-5-cpu --dry-run": "test_dry_run.py::test_dry_run_tells_and_writes_nothing",
    "sdm train --preset laseg-5-cpu --pairs-per": "test_dry_run.py::test_auto_is_recorded_and_trained_with",
    "sdm train --preset laseg-5-cpu --with-baseline": "test_study.py::test_the_gain_is_that_of_the_scores_of_both",
    "sdm train --preset laseg-5-cpu --seeds 0,1,2": "test_study.py::test_seeds_with_their_twins",
    "sdm train --preset laseg-5-cpu --ablate": "test_study.py::test_an_ablation_is_one_table",
    "sdm train --preset laseg-5-cpu --allow-missing --ablate": "test_study.py::test_an_ablation_is_one_table",
    "sdm export runs/liver -o liver.onnx": "test_export.py::test_a_file_is_alone_with_its_comparison",
    "sdm export runs/liver -o small.onnx": "test_export.py::test_side_file_tells_the_cost_on_real_cases",
    "sdm export runs/liver -o liver.pt2": "test_export.py::test_a_file_is_alone_with_its_comparison",
    "sdm export runs/laseg-5-cpu -o atrium-bundle": "test_bundle.py::test_its_masks_are_those_of_predict",
    "sdm export runs/liver --push": "test_hub.py::test_a_model_is_sent_as_it_was_said",
    "sdm predict -i scans -o masks-of-hub": "test_hub.py::test_a_model_of_the_hub_predicts_from_the_cache",
    "accelerate launch --config_file docs/accelerate/cpu.yaml": "test_processes.py::test_one_process_writes",
}
"""Commands that need more than a folder, and the tests that run them."""


def commands(document: str) -> list[str]:
    """Lines of the code blocks that call the program, comments left out."""
    text = (ROOT / document).read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = "\n".join(block for language, block in blocks if not language).replace("\\\n", " ").splitlines()
    found = [" ".join(line.split("#")[0].split()).removeprefix(".venv/bin/") for line in lines]
    return [line for line in found if line.startswith(("sdm ", "accelerate "))]


ALL = [(document, command) for document in DOCUMENTS for command in commands(document)]


def run(*words):
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, f"sdm {shlex.join(map(str, words))}\n{result.output}"
    return result


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folders of the names that the documentation uses, with a run of each."""
    place = tmp_path_factory.mktemp("documented")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        write_scans()
        write_left_atria()
        write_hearts()
        run("preprocess", "-i", "scans", "--labels", "labels", "-o", "stores/liver")
        run("preprocess", "-i", "LASEG", "--preset", "laseg-5-cpu")
        run("train", "--store", "stores/liver", "-d", "cpu", *SHORT)
        run("train", "--preset", "laseg-5-cpu", "--allow-missing", "-d", "cpu", *SHORT)
        yield place


def write_scans():
    for index in range(12):
        image, label = scan(index)
        matrix = np.diag([1.0, 1, 3, 1])
        name = f"{'abcdefghijkl'[index]}.nii.gz"
        write_nifti(Path("scans") / name, image, matrix)
        write_nifti(Path("labels-made-since") / name, label, matrix)
        if index < 8:
            write_nifti(Path("labels") / name, label, matrix)


def write_left_atria():
    split = yaml.safe_load((ROOT / "splits/laseg-5.yaml").read_text(encoding="utf-8"))
    for seed, case_id in enumerate(
        [case_id for role in ("labeled", "unlabeled", "test") for case_id in split[role][:6]]
    ):
        image, label = scan(seed)
        path = Path("LASEG") / case_id / "mri_norm2.h5"
        path.parent.mkdir(parents=True)
        with h5py.File(path, "w") as file:
            file["image"] = (image - image.mean()) / image.std()
            file["label"] = (label == 1).astype(np.uint8)


def output_of(words: list[str]) -> Path:
    """What a command writes: each line is an example of its own, and an earlier one is in nobody's way."""
    if "-o" in words:
        return Path(words[words.index("-o") + 1])
    name = words[words.index("--preset") + 1] if "--preset" in words else "liver"
    return Path("runs" if words[0] == "train" else "nothing") / name


def remove(path: Path):
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def write_hearts():
    split = yaml.safe_load((ROOT / "splits/acdc-7.yaml").read_text(encoding="utf-8"))
    for patient in (split[role][0] for role in ("labeled", "unlabeled", "validation", "test")):
        write_acdc(Path("ACDC/database/training"), int(patient.removeprefix("patient")))


def test_the_documents_have_commands():
    assert {document for document, _ in ALL} == set(DOCUMENTS)
    unused = [known for known in ELSEWHERE if not any(command.startswith(known) for _, command in ALL)]
    assert unused == []
    for place in ELSEWHERE.values():
        file, name = place.split("::")
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), place


@pytest.mark.parametrize(("document", "command"), ALL, ids=[command for _, command in ALL])
def test_a_documented_command_runs(place, monkeypatch, document, command):
    if any(command.startswith(known) for known in ELSEWHERE):
        return
    monkeypatch.chdir(place)
    words = shlex.split(command)[1:]
    if words[0] == "train" and ("--preset" in words or "--resume" not in words):
        words += [*SHORT, "-d", "cpu"]
    if (
        words[0] in ("train", "evaluate")
        and ("laseg" in command or "acdc" in command)
        and "--allow-missing" not in words
    ):
        words.append("--allow-missing")  # six cases of a role are enough here
    if "--resume" not in words:
        remove(output_of(words))
    run(*words)


def test_the_python_of_the_readme_runs(place, monkeypatch):
    monkeypatch.chdir(place)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    exec(code, {})
    assert Path("a-mask.nii.gz").is_file()
