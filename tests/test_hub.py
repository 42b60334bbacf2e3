"""Models on the hub: fetched from a folder of the form of its cache, and sent to a server of the least it asks for."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from models import small_network, small_preset
from scans import write_nifti
from typer.testing import CliRunner

from sdm_cli.cli import app
from sdm_cli.errors import CheckpointError
from sdm_cli.method.checkpoint import load_model, save_model
from sdm_cli.runs.predictor import load_predictor

PRESET = small_preset()
COMMIT = "0123456789012345678901234567890123456789"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "model"
    save_model(folder, small_network(PRESET), PRESET, resume=({}, {"step": 1}))
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of the hub with the model `clinic/liver`, and no connection."""
    monkeypatch.chdir(tmp_path)
    repository = tmp_path / "cache" / "models--clinic--liver"
    for name in ("main", "v1"):
        (repository / "refs" / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / "refs" / name).write_text(COMMIT)
    save_model(repository / "snapshots" / COMMIT, small_network(PRESET, seed=3), PRESET)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", ["clinic/liver", "clinic/liver@v1", f"clinic/liver@{COMMIT}"])
def test_a_model_of_the_hub_predicts_from_the_cache(cache, tmp_path, name):
    write_nifti(tmp_path / "scan.nii.gz", np.random.default_rng(0).normal(size=(33, 32, 2)))
    words = ["predict", "-i", "scan.nii.gz", "-o", "masks", "--model", name, "-d", "cpu"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert f"{name} is no folder here: looking for it on the Hugging Face hub" in result.stderr
    assert (tmp_path / "masks" / "scan.nii.gz").is_file()


@pytest.mark.parametrize("name", ["clinic/kidney", "clinic/liver@v2"])
def test_what_is_neither_here_nor_in_the_cache_is_named(cache, name):
    with pytest.raises(CheckpointError, match=f"{name}: there is no such run or model here, no connection"):
        load_predictor(Path(name))


def test_a_folder_of_that_name_wins(cache, tmp_path, model, capsys):
    save_model(tmp_path / "clinic" / "liver", small_network(PRESET), PRESET)
    images = np.random.default_rng(0).random((1, 1, 32, 32), np.float32)
    found = load_predictor(Path("clinic/liver"), "cpu").forward(images)
    np.testing.assert_array_equal(found, load_predictor(model, "cpu").forward(images))
    assert "hub" not in capsys.readouterr().err


@pytest.mark.parametrize("is_here", [True, False])
def test_a_mistyped_path_of_a_run_never_asks_the_hub(cache, tmp_path, capsys, is_here):
    if is_here:
        (tmp_path / "runs").mkdir()
    with pytest.raises(CheckpointError, match="runs/livre: there is no such run or model"):
        load_predictor(Path("runs/livre"))
    assert "hub" not in capsys.readouterr().err


class Hub(BaseHTTPRequestHandler):
    """Takes a commit as the hub does, all files within it."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.server.requests.append((self.path, self.headers.get("Authorization"), body))
        if self.server.refuses:
            self.answer(403, {"error": "no right to write there"})
        elif self.path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            kept = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
            self.answer(200, {"files": kept})
        elif self.path.endswith("/commit/main"):
            url = f"http://{self.headers['Host']}/clinic/liver/commit/{COMMIT}"
            self.answer(200, {"commitUrl": url, "commitOid": COMMIT, "pullRequestUrl": None, "success": True})
        else:
            self.answer(200, {"url": f"http://{self.headers['Host']}/clinic/liver", "errors": [], "warnings": []})

    def do_GET(self):
        self.answer(200, {"id": "clinic/liver", "sha": COMMIT, "siblings": [], "tags": [], "private": True})

    def answer(self, status, tree):
        content = json.dumps(tree).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.requests, server.refuses = [], False
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def push(model, tmp_path, server, monkeypatch):
    """`sdm export --push` to the server, with a token or without."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)

    def pushed(token="secret", name="clinic/liver"):
        monkeypatch.setenv("HF_TOKEN", token)
        return CliRunner().invoke(app, ["export", str(model), "--push", name])

    return pushed


def words_of(text):
    return " ".join(text.split())


def test_a_model_is_sent_as_it_was_said(push, server, tmp_path):
    result = push()
    assert result.exit_code == 0, result.output
    where = f"http://127.0.0.1:{server.server_port}/clinic/liver"
    assert result.stdout.strip() == f"{where}/commit/{COMMIT}"
    said = words_of(result.stderr)
    assert "Sending config.json, model.safetensors, preprocessor_config.json, README.md (" in said
    assert f"to {where}; a new model is made private" in said
    assert {authorization for _, authorization, _ in server.requests} <= {"Bearer secret", None}
    (created,) = (json.loads(body) for path, _, body in server.requests if path.endswith("/repos/create"))
    assert created.get("visibility") == "private" or created.get("private") is True  # by the version of the library
    (commit,) = (body for path, _, body in server.requests if path.endswith("/commit/main"))
    lines = [json.loads(line) for line in commit.splitlines()]
    sent = {line["value"]["path"]: line["value"]["content"] for line in lines if line["key"] == "file"}
    assert sent.keys() == {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"}
    (tmp_path / "sent").mkdir()
    for name, content in sent.items():
        (tmp_path / "sent" / name).write_bytes(base64.b64decode(content))
    assert load_model(tmp_path / "sent")[1] == PRESET


def test_without_login_nothing_is_sent(push, server):
    result = push(token="")
    assert result.exit_code == 1
    assert "not logged in to the hub: log in with `hf auth login`, or set HF_TOKEN." in words_of(result.stderr)
    assert server.requests == []


@pytest.mark.parametrize("name", ["clinic", "clinic/liver@main", "a/b/c"])
def test_what_is_no_name_of_the_hub_is_not_asked_for_a_login(push, server, name):
    result = push(token="", name=name)
    assert result.exit_code == 1
    assert f"{name!r} is no name of a model on the hub: give ORG/NAME." in words_of(result.stderr)
    assert server.requests == []


def test_a_refusal_of_the_hub_is_a_sentence(push, server):
    server.refuses = True
    result = push()
    assert result.exit_code == 1
    assert "clinic/liver: the hub did not take the model (" in words_of(result.stderr)


def test_without_connection_a_sentence_says_so(push, server):
    server.shutdown()
    server.server_close()
    result = push()
    assert result.exit_code == 1
    assert "clinic/liver: the hub did not take the model (" in words_of(result.stderr)


@pytest.mark.parametrize("words", [[], ["-o", "x", "--push", "a/b"], ["--push", "a/b", "--format", "onnx"]])
def test_output_and_push_are_two_ways(model, words):
    assert CliRunner().invoke(app, ["export", str(model), *words]).exit_code == 2
