"""Upload a folder with a model to the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from casd.utils.errors import CasdError, ConfigError, ModelError, first_line
from casd.utils.progress import say


def destination(repository: str, *, public: bool) -> tuple[str, bool]:
    """Check that a model may be uploaded to a repository; nothing is created.

    Args:
        repository: NAME (of the user's own) or ORGANISATION/NAME.
        public: whether everyone may see it.

    Returns:
        The repository's whole name, and whether it exists.

    Raises:
        ConfigError: an invalid name, or a repository that exists and is public although `public` is False, or the reverse.
        ModelError: nobody is logged in, or the hub cannot be reached.
    """
    from huggingface_hub import HfApi, constants, errors

    with _explained(repository):
        user = HfApi().whoami()["name"]
        name = repository if "/" in repository else f"{user}/{repository}"
        try:
            private = bool(HfApi().repo_info(name, repo_type="model", timeout=30).private)
        except errors.RepositoryNotFoundError:
            return name, False
    if not private and not public:
        raise ConfigError(
            f"{constants.ENDPOINT}/{name} exists and is public, so that everyone would see the model at once: name another"
            " repository, make it private in its settings, or give --public."
        )
    if private and public:
        raise ConfigError(
            f"{constants.ENDPOINT}/{name} exists and is private: leave --public out, or make it public in its settings first."
        )
    return name, True


def upload(folder: Path, repository: str, *, public: bool, message: str) -> str:
    """Upload the files of a folder; files of the same names are replaced.

    Args:
        folder: the model's folder.
        repository: a name that `destination` returned; it is created if it does not exist.
        public: whether everyone may see it.
        message: of the commit.

    Returns:
        The repository's address.

    Raises:
        ModelError: the upload failed.
    """
    from huggingface_hub import HfApi

    with _explained(repository):
        url = HfApi().create_repo(repository, repo_type="model", private=not public, exist_ok=True)
        say(f"Uploading {folder.name} to {url}.")
        HfApi().upload_folder(repo_id=repository, repo_type="model", folder_path=folder, commit_message=message)
    return str(url)


@contextmanager
def _explained(repository: str) -> Iterator[None]:
    """Convert errors of huggingface_hub to a one-line error.

    Raises:
        ConfigError: no valid name.
        ModelError: in place of any other error that is not a CasdError.
    """
    from huggingface_hub import constants, errors

    login = "log in with `hf auth login`, or set HF_TOKEN, with a token that may write"
    try:
        yield
    except CasdError:
        raise
    except errors.LocalTokenNotFoundError as error:
        raise ModelError(f"Nobody is logged in to the hub ({constants.ENDPOINT}): {login}.") from error
    except errors.HFValidationError as error:
        raise ConfigError(f"{repository!r} is not the name of a repository: {first_line(error)}") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        reason = error.response.headers.get("X-Error-Message") or first_line(error)
        advice = login if status in (401, 403) else "try again later"
        raise ModelError(f"The hub answered {status} for {repository} ({reason}): {advice}.") from error
    except Exception as error:  # offline mode, the HTTP library, TLS or a proxy
        raise ModelError(
            f"The hub ({constants.ENDPOINT}) cannot be reached to upload {repository} ({first_line(error)}): check the network"
            " and try again."
        ) from error
