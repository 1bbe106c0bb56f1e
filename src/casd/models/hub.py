"""Models of the Hugging Face hub: which commit a revision means, and that commit's files, in the hub's own cache.

Only what a model is read from is downloaded: configuration, tokenizer and safetensors, never a pickle.
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
"""Which files of a repository's top folder are downloaded."""
LEFT_OUT = ["*/*", "consolidated*"]
"""Of those, which are not: sub-folders and `consolidated*` hold the same weights once more, in other formats."""


@functools.cache
def resolve(repository: str, revision: str) -> ResolvedRevision:
    """Find the commit that a revision means. It is asked once a process, so that a process and a sweep see one commit.

    Without a network it is the commit that the cache has for that revision; a commit is taken as it is, and asked nowhere.

    Args:
        repository: id of the model, such as `Qwen/Qwen3-0.6B-Base`.
        revision: branch, tag or commit (40 hexadecimal digits).

    Returns:
        The revision, with the commit in its attribute `resolved`.

    Raises:
        ModelError: there is no such model or revision, or no network and nothing in the cache.
    """
    from huggingface_hub import HfApi

    with _explained(repository, revision):
        return HfApi().resolve_revision(repository, revision=revision)


def download(repository: str, revision: str) -> Path:
    """Bring a model's files into the hub's cache, unless they are there already.

    Args:
        repository: id of the model.
        revision: branch, tag or commit.

    Returns:
        The folder of the commit in the cache.

    Raises:
        ModelError: as `resolve`; or the model is gated, is none that could be used, or the download broke off.
        StoreError: the disk is full or cannot be written to.
    """
    from huggingface_hub import constants, errors, get_cached_repo_tree, snapshot_download
    from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]  # documented, but not in its __all__

    resolved = resolve(repository, revision)
    cache = Path(constants.HF_HUB_CACHE).expanduser()
    fetch = functools.partial(snapshot_download, repository, revision=resolved, ignore_patterns=LEFT_OUT)
    with _explained(repository, revision), explaining_disk_errors(f"the download of {repository}", cache):
        folder = Path(fetch(allow_patterns="*config.json"))
        check_config(folder)  # before gigabytes of something else are downloaded
        try:
            files = get_cached_repo_tree(repository, revision=resolved)
        except errors.CachedRepoTreeNotFoundError:  # no network, and another program filled the cache, which may be enough
            return Path(fetch(allow_patterns=DOWNLOADED))
        if not any(file.path.endswith(".safetensors") for file in files):
            raise without_safetensors(repository, [file.path for file in files])
        wanted = filter_repo_objects(files, allow_patterns=DOWNLOADED, ignore_patterns=LEFT_OUT, key=lambda file: file.path)
        if needed := sum(file.size for file in wanted if not (folder / file.path).is_file()):
            say(f"Downloading {repository} from the hub, {readable_size(needed)}; it stays in {cache}.")
        fetch(allow_patterns=DOWNLOADED)
    return folder


@contextmanager
def _explained(repository: str, revision: str) -> Iterator[None]:
    """Turn whatever huggingface_hub raises into a line for the user.

    Raises:
        ModelError: instead of it; errors of casd's own pass.
    """
    from huggingface_hub import constants, errors

    which = f"{repository} at {revision!r}" if revision != "main" else repository
    unknown = ModelError(
        f"There is no model {repository} on the hub ({constants.ENDPOINT}) that you may see, nor a folder of that name here:"
        " check model.path; a private model needs `hf auth login`."
    )
    try:
        yield
    except CasdError:
        raise
    except errors.GatedRepoError as error:
        raise ModelError(
            f"The hub's model {repository} is gated: accept its conditions on {constants.ENDPOINT}/{repository} and log in"
            " with `hf auth login`; or set model.path to a folder that has the model."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise unknown from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(
            f"The hub's model {repository} has no revision {revision!r}: set model.revision to a branch (main), a tag or a"
            " commit."
        ) from error
    except (errors.RevisionResolutionError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise ModelError(
            f"The hub ({constants.ENDPOINT}) cannot be reached for {which}{_reason(error)}, and the cache"
            f" {constants.HF_HUB_CACHE} does not have all of it: run once with a network, after which the cache is enough; or"
            " set model.path to a folder."
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        said = error.response.headers.get("X-Error-Message") or first_line(error)
        if status == 401 and "Invalid credentials" not in said:  # what those who are not logged in are told of a wrong name
            raise unknown from error
        advice = "log in anew with `hf auth login`" if status == 401 else "try again later; files that are complete are kept"
        raise ModelError(f"The hub answered {status} for {which} ({said}): {advice}.") from error
    except errors.HFValidationError as error:
        raise ModelError(f"{repository!r} is neither a folder here nor an id of the hub: {first_line(error)}") from error
    except Exception as error:  # those of the HTTP library, of TLS, of proxies
        raise ModelError(
            f"The download of {which} broke off ({first_line(error)}): run again; files that are complete are kept."
        ) from error


def _reason(error: BaseException) -> str:
    """Why the hub was not reached, in parentheses, where that is known."""
    cause = error.__cause__
    return f" ({type(cause).__name__}: {first_line(cause)})" if isinstance(cause, Exception) else ""
