"""Model folders to and from the Hugging Face hub, with what goes wrong there in one sentence."""

from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError


def download_model(repo_id: str, patterns: list[str]) -> Path:
    """The files of a repository that match, in huggingface_hub's cache: downloaded if need be and possible.

    Raises:
        ValueError: neither the hub nor the cache has them.
    """
    try:
        return Path(snapshot_download(repo_id, allow_patterns=patterns))
    except (OSError, HfHubHTTPError, HFValidationError, ValueError) as error:
        raise ValueError(
            f"{repo_id} is neither a folder nor a model that the Hugging Face hub or its local cache gives "
            f"({_first_line(error)}): check the name and the network."
        ) from error


def upload_model(folder: str | Path, repo_id: str, private: bool | None = None) -> str:
    """Upload a model folder as a repository of the hub, made if it is not there; what is in it under other names stays.

    repo_id: "user/name". private: of a new repository; None: what the user's account says.

    Returns:
        The address of the model.

    Raises:
        ValueError: nobody is logged in, the name is no valid one, or the hub refuses: one sentence says what to do.
    """
    api = HfApi()
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload model with unimm")
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise ValueError(
            f"{repo_id} could not be uploaded ({_first_line(error)}): log in with `hf auth login`, and check name and network."
        ) from error
    return f"https://huggingface.co/{repo_id}"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
