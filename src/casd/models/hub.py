"""Models on the Hugging Face hub: resolve a revision to a commit and download its files into the hub's cache.

Only configuration, tokenizer and safetensors are downloaded, never a pickle.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from casd.models.files import check_config, without_safetensors
from casd.utils.disk import explaining_disk_errors, readable_size
from casd.utils.errors import CasdError, ModelError, first_line
from casd.utils.progress import say

if TYPE_CHECKING:
    from huggingface_hub import ResolvedRevision

DOWNLOADED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
"""Patterns of the files to download from a repository's top folder."""
LEFT_OUT = ["*/*", "consolidated*"]
"""Exceptions: sub-folders and `consolidated*` hold the same weights again, in other formats."""


@functools.cache
def resolve(repository: str, revision: str) -> ResolvedRevision:
    """Resolve a revision to a commit.

    The answer is cached per process, so a sweep uses one commit throughout. Without a network, the commit that the hub's
    cache records for the revision is used. A commit is returned as it is.

    Args:
        repository: id of the model on the hub, such as `Qwen/Qwen3-0.6B-Base`.
        revision: branch, tag or commit (40 hexadecimal digits).

    Returns:
        The revision, with the commit in its attribute `resolved`.

    Raises:
        ModelError: if the model or revision does not exist, or there is no network and it is not in the cache.
    """
    from huggingface_hub import HfApi

    with _explained(repository, revision):
        return HfApi().resolve_revision(repository, revision=revision)


def download(repository: str, revision: str, *, is_causal: bool = True, only_config: bool = False) -> Path:
    """Download a model's files into the hub's cache, unless they are already there.

    Args:
        repository: id of the model on the hub.
        revision: branch, tag or commit.
        is_causal: check that the model is a causal LM; False for an adapter of peft or a classifier.
        only_config: download the files of the configuration alone, and do not check them.

    Returns:
        The folder of the commit in the cache.

    Raises:
        ModelError: as `resolve`; also if the model is gated or cannot be used, or the download fails.
        StoreError: if the disk is full or not writable.
    """
    from huggingface_hub import constants, errors, get_cached_repo_tree, snapshot_download
    from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]  # documented, but not in its __all__

    resolved = resolve(repository, revision)
    cache = Path(constants.HF_HUB_CACHE).expanduser()
    fetch = functools.partial(snapshot_download, repository, revision=resolved, ignore_patterns=LEFT_OUT)
    with _explained(repository, revision), explaining_disk_errors(f"the download of {repository}", cache):
        folder = Path(fetch(allow_patterns="*config.json"))
        if only_config:
            return folder
        if is_causal:
            check_config(folder)  # before downloading gigabytes of an unusable model
        try:
            files = get_cached_repo_tree(repository, revision=resolved)
        except errors.CachedRepoTreeNotFoundError:  # no network, and another program filled the cache: it may be complete
            return Path(fetch(allow_patterns=DOWNLOADED))
        if not any(file.path.endswith(".safetensors") for file in files):
            raise without_safetensors(repository, [file.path for file in files])
        wanted = filter_repo_objects(files, allow_patterns=DOWNLOADED, ignore_patterns=LEFT_OUT, key=lambda file: file.path)
        if needed := sum(file.size for file in wanted if not (folder / file.path).is_file()):
            say(f"Downloading {repository} from the hub, {readable_size(needed)}; kept in {cache}.")
        fetch(allow_patterns=DOWNLOADED)
    return folder


@contextmanager
def _explained(repository: str, revision: str) -> Iterator[None]:
    """Convert errors of huggingface_hub to a ModelError with a one-line message.

    Raises:
        ModelError: in place of any error that is not a CasdError.
    """
    from huggingface_hub import constants, errors

    which = f"{repository} at {revision!r}" if revision != "main" else repository
    unknown = ModelError(
        f"There is no model {repository} on the hub ({constants.ENDPOINT}) that you can access, nor a folder of that name:"
        " check model.path; a private model needs `hf auth login`."
    )
    try:
        yield
    except CasdError:
        raise
    except errors.GatedRepoError as error:
        raise ModelError(
            f"The hub's model {repository} is gated: accept its conditions on {constants.ENDPOINT}/{repository} and log in"
            " with `hf auth login`; or set model.path to a folder with the model."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise unknown from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(
            f"The hub's model {repository} has no revision {revision!r}: set model.revision to a branch (main), tag or commit."
        ) from error
    except (errors.RevisionResolutionError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise ModelError(
            f"The hub ({constants.ENDPOINT}) cannot be reached for {which}{_reason(error)}, and the cache"
            f" {constants.HF_HUB_CACHE} does not have all of it: run once with a network to fill the cache, or set"
            " model.path to a folder."
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        message = error.response.headers.get("X-Error-Message") or first_line(error)
        if status == 401 and "Invalid credentials" not in message:  # without a login, an unknown id gives 401
            raise unknown from error
        advice = "log in again with `hf auth login`" if status == 401 else "try again later; complete files are kept"
        raise ModelError(f"The hub answered {status} for {which} ({message}): {advice}.") from error
    except errors.HFValidationError as error:
        raise ModelError(f"{repository!r} is neither a local folder nor a valid hub id: {first_line(error)}") from error
    except Exception as error:  # from the HTTP library, TLS or a proxy
        raise ModelError(
            f"The download of {which} failed ({first_line(error)}): run again; complete files are kept."
        ) from error


def _reason(error: BaseException) -> str:
    """Format why the hub could not be reached, in parentheses; empty if unknown."""
    cause = error.__cause__
    return f" ({type(cause).__name__}: {first_line(cause)})" if isinstance(cause, Exception) else ""
