"""`sdm info`: what a run or a model is, how far it has come and what it was made with.

Weights are read of an exported file alone, which holds all in one.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdm_cli.config import Preset
from sdm_cli.console import print_result
from sdm_cli.data.cases import counted
from sdm_cli.errors import CheckpointError, SdmError
from sdm_cli.files import json_text
from sdm_cli.method.checkpoint import describe_model, has_model, load_resume_values
from sdm_cli.runs.predictor import SUFFIXES, load_predictor
from sdm_cli.runs.provenance import split_hash
from sdm_cli.runs.record import read_record, score_of
from sdm_cli.runs.run_folder import RunFolder, folders_of_runs, runs_below
from sdm_cli.runs.torch_model import find_model
from sdm_cli.runs.workload import total_steps


def describe(path: Path) -> dict[str, Any]:
    """All that is known of a run, of the runs of a study or of a model, as JSON types; what is not known is None.

    Of a run of a study that cannot be read, `run` and `error` alone.

    Raises:
        CheckpointError: it is neither, or damaged.
        SdmError: it is an ONNX file, and the extra `[onnx]` is not installed.
    """
    if path.suffix in SUFFIXES.values() and not path.is_dir():
        return _describe_file(path)
    if runs_below(path) == [path]:
        return _describe_run(RunFolder(path))
    runs = folders_of_runs(path)
    if runs and runs != [path] and not has_model(path):
        return {"study": str(path), "runs": [_describe_run_of_study(RunFolder(run)) for run in runs]}
    return _describe_model(path)


def _describe_run_of_study(run: RunFolder) -> dict[str, Any]:
    try:
        return _describe_run(run)
    except (SdmError, OSError) as error:
        return {"run": str(run.path), "error": " ".join(str(error).split())}


def show_info(info: Mapping[str, Any], as_json: bool = False) -> None:
    """Print on stdout what `describe` found, as lines or as JSON."""
    if as_json:
        print_result(json_text(info))
        return
    if "study" in info:
        for run in info["runs"]:
            if "error" in run:
                print_result(f"{run['run']}: cannot be read: {run['error']}")
                continue
            score = "no validation yet" if run["best"] is None else f"best {_percent(run['best']['score'])}"
            print_result(f"{run['run']}: {_state(run)}; {score}")
        return
    for name, text in (_run_lines(info) if "run" in info else _model_lines(info)).items():
        print_result(f"{name:<12} {text}")


def _describe_run(run: RunFolder) -> dict[str, Any]:
    preset, store = run.read_config()
    facts, split = run.read_facts(), run.read_split()
    entries, n_damaged = read_record(run.metrics)
    checkpoints = {path.name: _checkpoint_step(path) for path in (run.last, run.previous) if has_model(path)}
    best = run.best_validation(preset.protocol)
    if has_model(run.best):
        checkpoints = {run.best.name: None if best is None else best["step"], **checkpoints}
    broken = sorted(str(path) for path in run.broken.glob("step-*")) if run.broken.is_dir() else []
    step = max([entry["step"] for entry in entries] + [saved or 0 for saved in checkpoints.values()], default=0)
    slices, steps = facts.get("slices"), planned_steps(run)
    validations = [{"step": entry["step"], **entry["validation"]} for entry in entries if "validation" in entry]
    return {
        "run": str(run.path),
        "finished": steps is not None and checkpoints.get(run.last.name) == steps,
        "step": step,
        "steps": steps,
        "seconds_since_record": time.time() - run.metrics.stat().st_mtime if run.metrics.exists() else None,
        "best": best and {"step": best["step"], "score": score_of(best["validation"], preset.protocol)},
        "last_validation": validations[-1] if validations else None,
        "damaged_lines": n_damaged,
        "alarms": [{"step": e["step"], "classes": list(e["collapse"])} for e in entries if "collapse" in e],
        **_preset_facts(preset),
        "store": str(store),
        "split": {
            "name": preset.data.split or "by label",
            "hash": split_hash(split),
            "listed": {role: len(ids) for role, ids in vars(split).items()},
        },
        "slices": slices,
        "scans": facts.get("scans"),
        "checkpoints": checkpoints,
        "broken": broken,
        "versions": facts.get("versions"),
    }


def _describe_model(path: Path) -> dict[str, Any]:
    config, preset = describe_model(find_model(path))
    known = {key: config.get(key) for key in ("chosen_on", "weights_sha256", "sdm_version")}
    return {"model": str(path), **_preset_facts(preset), **known}


def _describe_file(path: Path) -> dict[str, Any]:
    predictor = load_predictor(path, "cpu")
    known = {"weights_sha256": predictor.weights_sha256 or None, "sdm_version": predictor.sdm_version or None}
    return {"model": str(path), **_preset_facts(predictor.preset), "chosen_on": None, **known}


def _preset_facts(preset: Preset) -> dict[str, Any]:
    return {
        "preset": preset.name,
        "scenario": preset.scenario,
        "protocol": preset.protocol,
        "selected_on": preset.train.select_on,
        "preprocessing": preset.data.label_use,
        "encoder": preset.model.encoder,
        "dataset": preset.data.dataset,
        "classes": list(preset.data.class_names),
    }


def planned_steps(run: RunFolder) -> int | None:
    """Steps of the whole run; None where its folder does not tell. Raises CheckpointError when it is no run."""
    (preset, _), facts = run.read_config(), run.read_facts()
    slices, pairs_per_step = facts.get("slices"), facts.get("pairs_per_step")
    return total_steps(preset.train, slices["unlabeled"], pairs_per_step) if slices and pairs_per_step else None


def _checkpoint_step(folder: Path) -> int | None:
    try:
        step = load_resume_values(folder).get("step")
    except CheckpointError:
        return None
    return step if isinstance(step, int) else None


def _run_lines(info: Mapping[str, Any]) -> dict[str, str]:
    split, best, validation = info["split"], info["best"], info["last_validation"]
    measure = "pooled IoU" if info["protocol"] == "paper" else "Dice"
    lines = {
        "run": info["run"],
        "state": _state(info),
        "best": "no validation yet"
        if best is None
        else f"{measure} {_percent(best['score'])} at step {best['step']}, on the {info['selected_on']} cases",
        "last": "no validation yet" if validation is None else _validation(validation),
        "alarms": "; ".join(f"step {alarm['step']}: {', '.join(alarm['classes'])}" for alarm in info["alarms"])
        or "none",
        **_preset_lines(info),
        "store": info["store"],
        "split": f"{split['name']} (hash {split['hash']}): "
        + ", ".join(f"{n} {role}" for role, n in split["listed"].items()),
        "scans": f"digest {info['scans'] or 'not recorded'}",
        "checkpoints": ", ".join(f"{name} ({_step_text(name, step)})" for name, step in info["checkpoints"].items())
        or "none",
        "versions": ", ".join(f"{name} {version}" for name, version in (info["versions"] or {}).items())
        or "not recorded",
    }
    if info["damaged_lines"]:
        lines["record"] = f"{counted(info['damaged_lines'], 'damaged line')} of metrics.jsonl left out"
    if info["slices"] is not None:
        lines["scans"] += "; slices: " + ", ".join(f"{n} {role}" for role, n in info["slices"].items())
    return lines


def _step_text(name: str, step: int | None) -> str:
    """Of `best` the record tells the step, of the others they themselves."""
    if step is None:
        return "not in the record" if name == "best" else "damaged"
    return f"step {step}"


def _state(info: Mapping[str, Any]) -> str:
    done = f"{info['step']} of {info['steps'] or '?'} steps"
    if info["finished"]:
        return f"finished, {done}"
    if info["broken"]:
        return f"not finished, {done}; a step was not finite: `sdm train --replay {info['broken'][-1]}` shows where"
    seconds = info["seconds_since_record"]
    since = "nothing recorded yet" if seconds is None else f"last record {_ago(seconds)}"
    saved = info["checkpoints"].get("last")
    resume = f"from step {saved}" if saved else "from its start"
    return f"not finished, {done}, {since}; unless it is running, `sdm train -o RUN --resume` continues it {resume}"


def _ago(seconds: float) -> str:
    for unit, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name} ago"
    return f"{max(seconds, 0):.0f} seconds ago"


def _validation(validation: Mapping[str, Any]) -> str:
    classes = ", ".join(f"{name} {_percent(dice)}" for name, dice in validation["per_class"].items())
    return f"Dice {_percent(validation['dice'])} at step {validation['step']}: {classes}"


def _percent(score: float | None) -> str:
    return "undefined" if score is None else f"{100 * score:.2f} %"


def _preset_lines(info: Mapping[str, Any]) -> dict[str, str]:
    return {
        "preset": f"{info['preset']} ({info['scenario']}, {info['encoder']})",
        "protocol": f"{info['protocol']}; best chosen on the {info['selected_on']} cases; {info['preprocessing']}",
        "data": f"{info['dataset']}: {', '.join(info['classes'])}",
    }


def _model_lines(info: Mapping[str, Any]) -> dict[str, str]:
    return {
        "model": info["model"],
        **_preset_lines(info),
        "chosen on": info["chosen_on"] or "not known",
        "weights": f"sha256 {info['weights_sha256'] or 'not known'}",
        "versions": f"sdm {info['sdm_version'] or 'not known'}",
    }
