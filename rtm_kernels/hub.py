"""Saved models on the Hugging Face hub, through the package huggingface_hub, which is imported when first needed."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from rtm_kernels.errors import BackendUnavailable, InputError

CARD = "README.md"
TEMPLATE = Path(__file__).parent / "assets" / "card.md"
"""The text of a model card that nobody has written yet, with `$name` for what is filled in."""


def download(hub_id: str, files: Sequence[str], **options: Any) -> Path:
    """The folder with these files of the model `owner/name`, from the cache where it has them.

    `options` are those of `huggingface_hub.snapshot_download`.
    Errors: `BackendUnavailable` without huggingface_hub, `InputError` for what cannot be fetched.
    """
    hub = _hub(f"{hub_id!r} is no folder here, and fetching it from the hub")
    try:
        return Path(hub.snapshot_download(hub_id, allow_patterns=list(files), **options))
    except Exception as error:
        raise InputError(f"hub model {hub_id!r} cannot be fetched: {error}".splitlines()[0]) from error


def upload(
    folder: Path, hub_id: str, fields: Mapping[str, object], *, token: str | bool | None, private: bool | None,
    branch: str | None, create_pr: bool | None, commit_message: str,
) -> str:  # fmt: skip
    """Put the files of `folder` into the model `owner/name` in one commit, and return the address of the commit.

    The repository is made where there is none, and the branch too. A repository without a card gets one from
    `TEMPLATE` and `fields`; a card that it has, or that lies in `folder`, stays.

    Errors: `BackendUnavailable` without huggingface_hub, `InputError` for what the hub refuses.
    """
    hub = _hub(f"pushing to {hub_id!r}")
    try:
        api = hub.HfApi(token=token)
        hub_id = api.create_repo(hub_id, private=private, exist_ok=True).repo_id
        if branch is not None and not create_pr:
            api.create_branch(hub_id, branch=branch, exist_ok=True)
        if not (folder / CARD).exists() and not api.file_exists(hub_id, CARD, revision=branch):
            text = Template(TEMPLATE.read_text("utf-8")).substitute(fields, hub_id=hub_id)
            (folder / CARD).write_text(text, "utf-8")
        return str(
            api.upload_folder(
                repo_id=hub_id, folder_path=folder, commit_message=commit_message, revision=branch, create_pr=create_pr
            )
        )
    except Exception as error:
        raise InputError(f"cannot push to hub model {hub_id!r}: {error}".splitlines()[0]) from error


def _hub(purpose: str) -> Any:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise BackendUnavailable(f"{purpose} needs the package huggingface_hub: pip install 'rtm-kernels[hub]'")
    return importlib.import_module("huggingface_hub")
