"""Find the folder of a model or tokenizer: a local folder, or a download from the Hugging Face Hub.

The Hub is asked once for the files of a repository, without the client's retries. If it does not answer, files
downloaded by an earlier run are used. Any other failure becomes one error message that names the key of the recipe.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from pathlib import Path

from ..errors import Problem, UserError

log = logging.getLogger("trireme.models")
ASSETS = (".json", ".txt", ".model", ".jinja", ".tiktoken")
"""Suffixes of configurations and tokenizers."""
SECONDS = 5.0
"""Time limit for the hub to list the files of a repository."""
_found: dict[tuple[str, str | None, bool], Path] = {}


def is_local(name: str | None) -> bool:
    """Whether ``name`` is an existing folder or file."""
    try:
        return bool(name) and os.path.exists(os.path.expanduser(str(name)))
    except (OSError, RuntimeError):  # an invalid file name, an unreadable folder, or a home of no known user
        return False


def on_this_machine(name: str, revision: str | None = None) -> bool:
    """Whether the weights called ``name`` can be read without a network: a local folder or file, or one that was
    fetched from the hub before."""
    return is_local(name) or _cached(name, revision, weights=True) is not None


def local_path(name: str, revision: str | None = None, field: str = "model.weights", weights: bool = False) -> Path:
    """The folder or file called ``name``. If it is a hub id, its files are fetched into a local folder.

    Args:
        revision: branch, tag or commit of a hub id.
        field: the key that the user wrote.
        weights: fetch the weights too, not only configuration and tokenizer.

    Raises:
        UserError: there is neither such a folder nor such a hub id, or the hub cannot be reached and nothing is cached.
    """
    if is_local(name):
        return Path(os.path.expanduser(name))
    if not _may_be_hub_id(name, field):
        raise UserError(Problem(field, "there is no folder or file of this name", _nearby(name) or _KINDS, name))
    key = (name, revision, weights)
    if key not in _found:
        _found[key] = _fetched(name, revision, field, weights)
    return _found[key]


_KINDS = "give a folder with config.json and weights, or a hub id (owner/name)"


def _may_be_hub_id(name: str, field: str) -> bool:
    part = r"[A-Za-z0-9][\w.-]*"
    bare = field != "model.weights"  # some tokenizers are known by a single name, such as gpt2
    return bool(re.fullmatch(rf"{part}/{part}" + (f"|{part}" if bare else ""), name)) and ".." not in name


def _nearby(name: str) -> str:
    """A fix that suggests the entry most similar to ``name`` in its parent folder; empty if there is none."""
    path = Path(name)
    try:
        path = Path(os.path.expanduser(path))
        siblings = [entry.name for entry in path.parent.iterdir()]
    except (OSError, RuntimeError, ValueError):
        return f"there is no folder {path.parent} either; check the path" if path.is_absolute() else ""
    near = difflib.get_close_matches(path.name, siblings, n=1)
    return f"did you mean {path.parent / near[0]}?" if near else ""


def _fetched(name: str, revision: str | None, field: str, weights: bool) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    absent = "there is no folder of this name here, and "
    try:
        info = HfApi().model_info(name, revision=revision, timeout=SECONDS)
        held = [entry.rfilename for entry in info.siblings or []]
        wanted = [file for file in held if "/" not in file and file.endswith(ASSETS)]
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
        if weights:
            files = _weights(held, folder, name)
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=files)) if files else folder
        return folder
    except UserError:
        raise
    except GatedRepoError:
        fix = f"accept its terms at https://huggingface.co/{name}, and log in with `hf auth login`"
        raise UserError(Problem(field, "is gated on the hub", fix, name)) from None
    except RevisionNotFoundError:
        fix = "name a branch, tag or commit of it"
        raise UserError(Problem("model.revision", f"is not known to the hub for {name}", fix, revision)) from None
    except (RepositoryNotFoundError, HFValidationError):
        fix = _nearby(name) or "check the name; for a private model log in with `hf auth login`"
        raise UserError(Problem(field, f"{absent}no public model of this name on the hub", fix, name)) from None
    except Exception as error:  # from the disk, or from the HTTP library, whose classes change
        cached = _cached(name, revision, weights)
        if cached is None:
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            why = f"{absent}as a hub id it cannot be fetched ({type(error).__name__}: {reason})"
            fix = _nearby(name) or "check the name and the network, or give a local folder"
            raise UserError(Problem(field, why, fix, name)) from None
        log.info("the hub does not answer (%s); %s is used as it was fetched before", type(error).__name__, name)
        return cached


def _weights(held: list[str], folder: Path, name: str) -> list[str]:
    """Names of the repository's weight files: the shards of an index, or one file."""
    from .weight_sets import INDEX, chosen_set, has_weights

    top = [file for file in held if "/" not in file]
    for suffix, standard in ((".safetensors", "model"), (".bin", "pytorch_model")):
        if f"{standard}{suffix}" in top:
            return [f"{standard}{suffix}"]
        if f"{standard}{suffix}{INDEX}" in top:
            stem = re.escape(standard)
            return [file for file in top if re.fullmatch(rf"{stem}.*-of-\d+{re.escape(suffix)}", file)]
    files = [file for file in top if file.endswith(".safetensors") and not file.startswith("adapter_")]
    if files or any((folder / file).exists() for file in top if has_weights(file)) or chosen_set(folder).files:
        return files
    listed = ", ".join(file for file in top if has_weights(file)) or "no weights"
    raise UserError(
        Problem(
            "model.weights",
            f"holds {listed} on the hub, but no safetensors files and no pytorch_model.bin",
            "name the model that it was made from, or merge an adapter into its model first",
            name,
        )
    )


def _cached(name: str, revision: str | None, weights: bool) -> Path | None:
    """The folder into which an earlier run fetched the model, if its files are complete."""
    from huggingface_hub import try_to_load_from_cache

    from .weight_sets import chosen_set

    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        path = try_to_load_from_cache(name, file, revision=revision)
        if isinstance(path, str):
            try:
                return Path(path).parent if not weights or chosen_set(Path(path).parent).files else None
            except ValueError:  # some shards are missing
                return None
    return None
