"""Model folders on the Hugging Face hub: fetched by their name, and sent there when asked to.

Nothing is sent but the files of a model folder, and nothing else is fetched. Where, with which account and how the
cache is used is the library's own matter (HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE).
"""

import re
from pathlib import Path

from sdm_cli import console
from sdm_cli.errors import CheckpointError, SdmError, reason_of
from sdm_cli.method.checkpoint import MODEL_FILES
from sdm_cli.runs.run_folder import RUNS

_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?", re.ASCII)


def is_hub_name(path: Path) -> bool:
    """Whether ORG/NAME or ORG/NAME@REVISION can only mean the hub: neither it nor a folder ORG is here.

    A path in `runs` never does: a command in the wrong folder must not take a stranger's model.
    """
    return _NAME.fullmatch(str(path)) is not None and path.parent != RUNS and not path.parent.exists()


def fetch_model(name: str) -> Path:
    """The folder in the library's cache of a model on the hub, downloaded if it is not there.

    Args:
        name: ORG/NAME, or ORG/NAME@REVISION for a branch, tag or commit.

    Raises:
        CheckpointError: there is no such model, or no connection and no copy in the cache.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError  # type: ignore[attr-defined] # of its client

    match = _NAME.fullmatch(name)
    assert match is not None  # `is_hub_name`
    console.say(f"{name} is no folder here: looking for it on the Hugging Face hub.")
    try:
        return Path(snapshot_download(match["repo"], revision=match["revision"], allow_patterns=list(MODEL_FILES)))
    except LocalEntryNotFoundError:
        raise CheckpointError(
            f"{name}: there is no such run or model here, no connection to the hub, and no copy in its cache; check "
            "the name, or fetch the model on a machine with access and give its folder."
        ) from None
    except (HTTPError, ValueError, OSError) as error:
        raise CheckpointError(
            f"{name}: there is no such run or model here, and the hub gives none ({reason_of(error)}); check the name, "
            "or log in with `hf auth login` if the model is private."
        ) from None


def require_own_name(repo: str) -> None:
    """Raise SdmError unless a model can be sent to the hub under this name: ORG/NAME, without a revision."""
    if (match := _NAME.fullmatch(repo)) is None or match["revision"]:
        raise SdmError(f"{repo!r} is no name of a model on the hub: give ORG/NAME.")


def push_model(folder: Path, repo: str) -> str:
    """Send the files of a model folder to the hub; a model that is not there yet is made private.

    Args:
        folder: as `save_model` writes it.
        repo: ORG/NAME, as `require_own_name` takes it.

    Returns:
        The address of the commit.

    Raises:
        SdmError: not logged in, no connection, or the hub does not take it.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined] # of the library that it connects with

    api = HfApi()
    if get_token() is None:
        raise SdmError(f"{repo}: not logged in to the hub: log in with `hf auth login`, or set HF_TOKEN.")
    size_mb = sum((folder / name).stat().st_size for name in MODEL_FILES) / 1e6
    console.say(
        f"Sending {', '.join(MODEL_FILES)} ({size_mb:.1f} MB) to {api.endpoint}/{repo}; a new model is made private."
    )
    try:
        api.create_repo(repo, private=True, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo, folder_path=folder, allow_patterns=list(MODEL_FILES), commit_message="Model of sdm export"
        )
    except (HTTPError, ValueError, OSError) as error:
        raise SdmError(f"{repo}: the hub did not take the model ({reason_of(error)}); check name and rights.") from None
    return str(commit.commit_url)
