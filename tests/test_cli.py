"""The command line: quick help, exact options, and one sentence for whatever goes wrong."""

import errno
import itertools
import os
import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml
from scans import label, voxels, write_nifti
from typer.testing import CliRunner

import sdm_cli
from sdm_cli.cli import app
from sdm_cli.console import warn, warn_from_any
from sdm_cli.data.manifest import read_manifest
from sdm_cli.errors import SomeCasesFailed
from sdm_cli.preset_files import load_preset, preset_to_dict
from sdm_cli.resources import preset_names
from sdm_cli.runs import presets as runs_presets
from sdm_cli.runs.preprocess import preprocess

ROOT = Path(__file__).parent.parent
VERBS = ("check", "preprocess", "split", "train", "info", "evaluate", "predict", "export", "presets", "demo")
COMMANDS = typer.main.get_command(app)


def sdm(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def sdm_process(*arguments: str, flags: tuple[str, ...] = (), **options):
    command = [sys.executable, *flags, "-m", "sdm_cli", *arguments]
    return subprocess.run(command, capture_output="stdout" not in options, text=True, timeout=60, **options)


def options_of(verb: str) -> set[str]:
    return {option for parameter in COMMANDS.commands[verb].params for option in parameter.opts} | {"-h", "--help"}


# --- help --------------------------------------------------------------------------------------


def test_help_names_all_verbs():
    result = sdm("--help")
    assert result.exit_code == 0
    for verb in VERBS:
        assert re.search(rf"^  {verb} ", result.stdout, flags=re.MULTILINE)


_WATCHED = """
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("threads as torch is loaded:", os.environ.get("GOMP_SPINCOUNT"), file=sys.stderr)
sys.meta_path.insert(0, Watch())
from sdm_cli.__main__ import main
main()
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ("predict", "--model", "none", "-i", "none", "-o", "masks"),
        ("evaluate", "none", "--store", "none"),
        ("export", "none", "-o", "model.onnx"),
        ("train", "--preset", "laseg-5-cpu", "--store", "none"),
    ],
)
def test_threads_are_told_to_sleep_before_torch_is_loaded(tmp_path, arguments):
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    command = [sys.executable, "-c", _WATCHED, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, cwd=tmp_path)
    assert result.returncode == 1 and "threads as torch is loaded: 10000" in result.stderr


def test_help_imports_nothing_slow():
    result = sdm_process("--help", flags=("-X", "importtime"))
    assert result.returncode == 0
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in result.stderr.splitlines()}
    assert "typer" in loaded
    assert loaded & {"torch", "pydantic", "rich", "numpy", "yaml", "h5py", "nibabel", "accelerate"} == set()


def test_help_answers_in_half_a_second():
    """Of the processor's time: what else the machine does meanwhile is not this program's."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    sdm_process("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


def test_an_empty_argument_is_no_path():
    """As from an unset variable: `-o ""` would be the working folder."""
    result = sdm("predict", "-i", "scans", "-o", "", "--model", "model")
    assert result.exit_code == 2
    assert "an argument is empty" in result.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_each_option_has_a_help_text(verb):
    result = sdm(verb, "--help")
    assert result.exit_code == 0
    for parameter in COMMANDS.commands[verb].params:
        assert parameter.help, parameter.name


def test_version():
    assert sdm("--version").stdout == sdm("-V").stdout == f"sdm {sdm_cli.__version__}\n"


def test_module_is_the_same_program():
    assert sdm_process("--version").stdout == sdm("--version").stdout
    usage = sdm_process("train")
    assert usage.returncode == 2
    assert usage.stderr.startswith("Usage: sdm train")


# --- presets -----------------------------------------------------------------------------------


def test_presets_are_listed_by_scenario_with_their_scores():
    result = sdm("presets")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 100  # and is not broken on a terminal of this width
    rows = {line.split()[0]: line for line in lines if line.strip()}
    assert set(preset_names()) <= set(rows)
    for name in preset_names():
        for score in load_preset(name).published.values():
            assert f" {score:.2f} " in rows[name]
    order = [line.split(":")[0].split()[0] for line in lines if line.strip()]
    names = ("SSMIS", "acdc-3", "laseg-5", "laseg-10", "UMDA", "mmwhs-ct2mr", "Semi-MDG", "mnms-to-a-2", "mnms-to-d-5")
    assert [name for name in order if name in names] == list(names)


@pytest.mark.parametrize("name", preset_names())
def test_preset_shown_is_the_resolved_one_and_reads_back(name, tmp_path):
    result = sdm("presets", name)
    assert result.exit_code == 0
    assert yaml.safe_load(result.stdout) == preset_to_dict(load_preset(name))
    saved = tmp_path / "saved.yaml"
    saved.write_text(result.stdout, encoding="utf-8")
    assert load_preset(str(saved)) == load_preset(name)


def above(text: str, line: str) -> list[str]:
    """The comment above a line."""
    lines = [own.strip() for own in text.splitlines()]
    comment = []
    for own in reversed(lines[: lines.index(line)]):
        if not own.startswith("#"):
            break
        comment.insert(0, own)
    return comment


def test_preset_shown_keeps_the_comments_of_its_files():
    text = sdm("presets", "laseg-5-cpu").stdout
    assert text.startswith("# The left atrium of laseg-5 at the size of a laptop")
    assert "\n# Of its base, laseg-5:\n#\n# Left atrium, 4 labeled scans of 80 (5 %)" in text
    assert above(text, "patch: 16") == ["# 64 * 128 / 512."]
    assert "160 / 512" not in text  # the base's remark on its own value
    assert above(text, "spacing_mm: [0.625, 0.625, 0.625]")[0].startswith(
        "# The community's HDF5 files store no spacing"
    )
    # A value that the child sets without a remark is not explained by the base's.
    assert above(text, "pretrained: none")[0].startswith("# ImageNet weights of the encoder")
    assert above(sdm("presets", "mmwhs-mr2ct").stdout, "'421': 420") == []
    assert above(sdm("presets", "mmwhs-mr2ct").stdout, "value_aliases:") == [
        "# One MR file holds 421 where 420 is meant."
    ]


def test_preset_shown_explains_every_field():
    lines = sdm("presets", "amos-5").stdout.splitlines()
    values = ("classes", "normalize_by_domain")  # their keys are the user's own words
    inside = None
    for before, line in itertools.pairwise(lines):
        depth = len(line) - len(line.lstrip())
        if not line.strip() or line.lstrip().startswith("#") or (inside is not None and depth > inside):
            continue
        inside = depth if line.strip().rstrip(":") in values else None
        assert before.lstrip().startswith("# "), line
    assert not any("method.md" in line for line in lines)


def test_preset_of_ones_own_is_shown_without_comments_of_its_own(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("base: laseg-5-cpu\ntrain:\n  # Short.\n  steps: 3\n", encoding="utf-8")
    text = sdm("presets", str(mine)).stdout
    assert above(text, "steps: 3") == ["# Short."]
    assert yaml.safe_load(text) == preset_to_dict(load_preset(str(mine)))
    mine.write_text("train: {steps: 3}\n", encoding="utf-8")
    assert sdm("presets", str(mine)).stdout.startswith("# Of the preset file;")


def test_preset_names_are_completed():
    completion = next(p for p in COMMANDS.commands["train"].params if p.name == "preset").shell_complete
    context = COMMANDS.make_context("sdm", ["presets"])
    assert [item.value for item in completion(context, "laseg-5")] == ["laseg-5", "laseg-5-cpu"]


# --- errors ------------------------------------------------------------------------------------


def test_unknown_preset_names_the_nearest():
    for arguments in (
        ("presets", "laseg5"),
        ("train", "--preset", "laseg5"),
        ("preprocess", "-i", ".", "--preset", "laseg5"),
    ):
        result = sdm(*arguments)
        assert result.exit_code == 1
        assert result.stdout == ""
        assert "did you mean 'laseg-5'?" in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_mistyped_keys_are_all_named(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("base: laseg-5-cpu\ntrain: {stepps: 3}\nmodel: {encodr: mit-b1}\n", encoding="utf-8")
    result = sdm("train", "--preset", str(mine), "--set", "method.pach=8")
    assert result.exit_code == 1
    for part in ("mine.yaml", "train.stepps", "'steps'", "model.encodr", "'encoder'", "method.pach", "'patch'"):
        assert part in result.stderr


def test_seed_is_short_for_a_field():
    result = sdm("train", "--preset", "laseg-5-cpu", "--seed", "-1")
    assert result.exit_code == 1
    assert "train.seed" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("tran",),
        ("train",),
        ("train", "--preset"),
        ("train", "--preset", "laseg-5", "--nonsense"),
        ("preprocess",),
        ("preprocess", "-i", ".", "--workers", "0"),
        ("split",),
        ("split", "-o", "mine.yaml"),
        ("split", "-o", "mine.yaml", "--store", "s", "--seed", "-1"),
        ("predict", "-i", ".", "-o", "out"),
        ("predict", "-i", ".", "-o", "out", "--model", "m", "--skip-existing", "--overwrite"),
        ("evaluate", "--split", "train"),
        ("evaluate", "--predictions", "masks"),
        ("evaluate", "--labels", "labels"),
        ("evaluate", "run", "--predictions", "masks", "--labels", "labels"),
        ("evaluate", "run", "--preset", "laseg-5"),
        ("export", "run"),
        ("export", "run", "-o", "out", "--format", "pickle"),
        ("export", "-o", "out", "--from-authors", "file.pth"),
        ("export", "run", "-o", "out", "--from-authors", "file.pth", "--preset", "laseg-5"),
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2(arguments):
    result = sdm(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 1, "Error: No space left on device."),
        (PermissionError(errno.EACCES, "Permission denied", "runs/a"), 1, "Error: runs/a: Permission denied."),
        (OSError("Unable to open file\n(truncated)"), 1, "Error: Unable to open file (truncated)"),
        (SomeCasesFailed("2 of 9 failed."), 4, "Error: 2 of 9 failed."),
        (KeyboardInterrupt(), 130, "Interrupted."),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_expected_errors_become_one_sentence(monkeypatch, error, code, said):
    def fail():
        raise error

    monkeypatch.setattr(runs_presets, "list_presets", fail)
    result = sdm("presets")
    assert result.exit_code == code
    assert result.stderr == f"{said}\n"
    assert result.stdout == ""


def test_verbose_shows_where_an_error_arose():
    result = sdm("-v", "presets", "laseg5")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert "_preset_text" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("Error: There is no preset 'laseg5'")


def test_mistakes_of_the_program_keep_their_traceback(monkeypatch):
    def fail():
        raise ZeroDivisionError

    monkeypatch.setattr(runs_presets, "list_presets", fail)
    assert isinstance(sdm("presets").exception, ZeroDivisionError)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_full_disk_under_the_output():
    with Path("/dev/full").open("w") as full:
        result = sdm_process("presets", stdout=full, stderr=subprocess.PIPE)
    assert result.returncode == 1
    assert result.stderr == "Error: No space left on device.\n"


def test_reader_that_is_gone():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        result = sdm_process("presets", "laseg-5", stdout=gone, stderr=subprocess.PIPE)
    assert result.returncode == 1
    assert result.stderr == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "absent"),
        ("preprocess", "-i", "absent", "-o", "store"),
        ("split", "-o", "mine.yaml", "--store", "absent"),
        ("split", "-o", "mine.yaml", "--from", "labeled=absent"),
        ("train", "--preset", "laseg-5-cpu", "--store", "absent"),
        ("info",),
        ("info", "absent"),
        ("evaluate",),
        ("evaluate", "absent"),
        ("evaluate", "--predictions", "absent", "--labels", "absent"),
        ("predict", "-i", "absent", "-o", "masks", "--model", "absent"),
        ("export", "absent", "-o", "model"),
        ("export", "-o", "model", "--from-authors", "absent.pth", "--preset", "laseg-5-cpu"),
    ],
    ids=" ".join,
)
def test_each_verb_says_what_is_missing_and_writes_nothing(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = sdm(*arguments)
    assert result.exit_code == 1, result.exception
    assert re.fullmatch(r"Error: .*(absent|no run).*\n", result.stderr)
    assert list(tmp_path.iterdir()) == []


# --- documents ---------------------------------------------------------------------------------


def commands_in(document: str) -> list[list[str]]:
    """Every `sdm VERB ...` in code blocks and code spans, as words."""
    text = (ROOT / document).read_text(encoding="utf-8")
    spans = re.findall(r"`(?:\.venv/bin/)?(sdm [^`\n]+)`", text)
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        if found := re.search(r"(?:(?:^|/)sdm|-m sdm_cli) ([^#]+)", line.strip()):
            spans.append(f"sdm {found[1]}")
    return [shlex.split(span)[1:] for span in spans]


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "ARCHITECTURE.md"])
def test_documented_commands_and_options_exist(document):
    for words in commands_in(document):
        if words[0].startswith("-"):
            assert words[0] in {"--help", "--version", "-V", "-v", "--install-completion"}
            continue
        assert words[0] in VERBS, words
        options = {word.split("=")[0] for word in words[1:] if re.match(r"--?[a-z]", word)}
        assert options <= options_of(words[0]), words


def test_readme_uses_every_verb():
    assert {words[0] for words in commands_in("README.md")} >= set(VERBS)


def test_options_named_in_the_readme_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(--[a-z-]+)", text))
    assert named
    assert named <= set().union(*map(options_of, VERBS))


def test_the_preset_of_the_readme_reads_scans_of_ones_own(tmp_path):
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert blocks
    for i, block in enumerate(blocks):
        (tmp_path / "liver.yaml").write_text(block, encoding="utf-8")
        preset = load_preset(str(tmp_path / "liver.yaml"))
        assert preset.data.dataset == "liver" and preset.train.optimizer == "muon"
        write_nifti(tmp_path / "scans" / "a.nii.gz", voxels())
        write_nifti(tmp_path / "scans" / "b.nii.gz", voxels())
        write_nifti(tmp_path / "labels" / "a.nii.gz", label())
        store = preprocess(tmp_path / "scans", tmp_path / "labels", preset, tmp_path / f"store-{i}")
        assert len(read_manifest(store).cases) == 2


def test_fields_set_in_the_readme_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    overrides = re.findall(r"--set ([\w.]+=[^\s`]+)", text)
    assert overrides
    for override in overrides:
        # A field may contradict another one when it stands alone, but it must be known.
        try:
            load_preset("laseg-5-cpu", [override])
        except sdm_cli.errors.PresetError as error:
            assert "unknown key" not in str(error)


def test_warnings_have_one_form_also_where_they_quote_an_error(capsys):
    warn("a: it cannot be read: copy it again.")
    warn_from_any("b is constant: export it again")
    assert capsys.readouterr().err.splitlines() == [
        "warning: a: it cannot be read: copy it again",
        "warning: b is constant: export it again",
    ]
