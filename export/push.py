"""clip-export --push ORG/NAME: a bundle as a repository of the Hugging Face hub, by its own library and login."""

from pathlib import Path

from clip_core.errors import BackendError, UsageError
from clip_core.text import printable


def check_push(name: str) -> None:
    """Before anything is computed: the name is valid, the hub is reached, and somebody is logged in.

    Raises:
        UsageError: if it is no ORG/NAME.
        BackendError: if the hub cannot be reached, or does not know who asks.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(name)
        valid = name.count("/") == 1
    except HFValidationError:
        valid = False
    if not valid:
        raise UsageError(f"--push is {printable(name, 80)!r}; it must be ORG/NAME, as on the Hugging Face hub.")
    try:
        HfApi().whoami()
    except Exception as error:  # of the library, of its HTTP client, of the system: they have no common base
        raise _failed(name, error) from None


def push(folder: Path, name: str) -> str:
    """Upload a bundle, its README.md as the model card.

    Returns:
        The address of the repository.
    Raises:
        BackendError: if the upload failed; what had been there stays.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        address = str(api.create_repo(name, exist_ok=True))
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Export with clip-export")
    except Exception as error:  # as above
        raise _failed(name, error) from None
    return address


def _failed(name: str, error: Exception) -> BackendError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403) or type(error).__name__ == "LocalTokenNotFoundError":
        why = "the hub does not accept the login; run: hf auth login"
    elif status is not None:
        why = f"the hub answered {status} ({printable(str(error).strip().partition(chr(10))[0], 120)})"
    else:
        why = "the hub cannot be reached from here; export without --push, and upload the folder where it can"
    return BackendError(f"--push {name}: {why}.")
