"""Uploads a folder to the Hugging Face hub, when asked to."""

import re
from pathlib import Path

from mmrl import extras
from mmrl.types import InputError

_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def check(name: str) -> None:
    """Refuses what is no name of a repository, or an upload without the package for it.

    Raises:
      InputError: says which.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"--push={name}; expected OWNER/NAME")
    try:
        import huggingface_hub  # noqa: F401
    except ImportError:
        raise InputError(f"--push={name} needs huggingface_hub: {extras.command('hub')}") from None


def push(folder: Path, name: str) -> str:
    """Uploads a folder to a repository, which is made, private, unless it is there.

    The token is the one that huggingface_hub finds, of `hf auth login` or HF_TOKEN.

    Returns:
      The address of the commit.

    Raises:
      InputError: the hub refuses, or cannot be reached; the folder stays where it is.
    """
    import huggingface_hub
    from huggingface_hub import errors

    hub = huggingface_hub.HfApi()
    try:
        hub.create_repo(name, private=True, exist_ok=True)
        made = hub.upload_folder(
            repo_id=name, folder_path=folder, commit_message="Upload encoders of mmrl"
        )
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"--push={name} failed: {reason}; {folder} is complete") from None
    return str(made)
