"""Model folders onto the Hugging Face hub. The way down is in `weights`."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError


def upload_model(folder: str | Path, repo_id: str, private: bool | None = None) -> str:
    """Upload a model folder as a repository of the hub, made if it is not there; what is in it under other names stays.

    repo_id: "user/name". private: of a new repository; None: what the user's account says.

    Returns:
        The address of the model.

    Raises:
        ValueError: nobody is logged in, the name is none, or the hub refuses: one sentence says what to do.
    """
    api = HfApi()
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload model with unimm")
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{repo_id} could not be uploaded ({reason}): log in with `hf auth login`, and check the name and the network."
        ) from error
    return f"https://huggingface.co/{repo_id}"
