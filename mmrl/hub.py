"""Encoders on the Hugging Face hub, named hf://OWNER/NAME or hf://OWNER/NAME@REVISION."""

import re
from pathlib import Path

from mmrl import extras
from mmrl.types import InputError, first_line

PREFIX = "hf://"
_ADDRESS = re.compile(rf"{PREFIX}([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
# Pickles, and forms of the weights that are not read.
_LEFT = ["*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.onnx", "*.stablehlo"]


def fetch(address: str) -> Path:
    """The folder of an encoder on the hub; it is downloaded unless the local cache holds it.

    Raises:
      InputError: no such address, package or encoder, or no connection.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise InputError(f"{address!r}; expected hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
    try:
        import huggingface_hub as hub
        from huggingface_hub import errors
    except ImportError:
        raise InputError(f"{address} needs huggingface_hub: {extras.command('hub')}") from None
    name, revision = match.groups()
    try:
        try:
            found = hub.snapshot_download(
                name, revision=revision, ignore_patterns=_LEFT, local_files_only=True
            )
        except errors.LocalEntryNotFoundError:
            found = hub.snapshot_download(name, revision=revision, ignore_patterns=_LEFT)
    except (errors.HFValidationError, errors.HfHubHTTPError, OSError, ValueError) as error:
        reason = first_line(error)
        raise InputError(f"{address} is neither in the cache nor to be had: {reason}") from None
    return Path(found)
