"""Uploads an exported folder to the hub."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from llava.errors import UserError
from llava.model.files import first_line


def push(folder: Path, repository: str) -> str:
    """Upload a folder to a repository and return its address; a repository that it creates is private.

    Raises:
        UserError: if the hub refuses the upload, for example without a login, or cannot be reached.
    """
    hub = HfApi()
    try:
        address = hub.create_repo(repository, private=True, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=folder, commit_message="Export")
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(
            f"--push {repository}: the upload failed ({first_line(error)}), but {folder} is complete. Log "
            "in with `hf auth login`, and upload it with `hf upload`."
        ) from error
    return str(address)
