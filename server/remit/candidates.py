"""A policy that is not in force, by whatever it is named: to be compared, replayed or shadowed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from remit.config import Config
from remit.config_file import Loaded, load
from remit.errors import RemitError, UnknownRecord
from remit.policies import load_policy, load_version, text_of
from remit_rbac import Layer, Policy, load_layers

#: Stands for the policy in force.
CURRENT = "current"


def files_of(named: str) -> tuple[tuple[str, str], ...]:
    """Name and text of the files that make a candidate. Raises RemitError."""
    path = Path(named)
    files = sorted(path.glob("*.csv")) if path.is_dir() else [path]
    if path.suffix in (".yaml", ".yml"):
        files = list(load(path).config.policy.files)
    try:
        return tuple((str(file), file.read_text("utf-8")) for file in files)
    except (OSError, UnicodeDecodeError) as error:
        raise RemitError(f"{named}: cannot be read: {error}") from None


def built(files: Iterable[tuple[str, str]], config: Config) -> Policy:
    """The policy that stored files make, under the model of this configuration. Raises PolicyError."""
    text = "\n".join(text for _, text in files)
    model = config.policy.model
    return load_layers(
        [Layer(file="candidate", content=text.encode())],
        model=Layer(file=str(model), content=model.read_bytes()) if model else None,
    )


def candidate(named: str, loaded: Loaded) -> Policy:
    """The policy that `named` means.

    `current`; a CSV file; a folder, whose CSV files are merged by name; a configuration (`.yaml`), whose
    policy it is; or a version id. Raises PolicyError with every problem, RemitError when there is none.
    """
    path = Path(named)
    if named == CURRENT:
        return load_policy(loaded.config)
    if path.is_dir():
        files = sorted(path.glob("*.csv"))
        if not files:
            raise RemitError(f"{named}: there is no .csv file in this folder")
        return text_of(files, loaded.config.policy.model).build()
    if path.is_file():
        if path.suffix in (".yaml", ".yml"):
            return load_policy(load(path).config)
        return text_of([path], loaded.config.policy.model).build()
    if re.fullmatch(r"[0-9a-f]{6,64}", named):
        current = load_policy(loaded.config)
        if current.version.startswith(named):
            return current
        with suppress(UnknownRecord):
            if loaded.config.store.path.is_file():
                return load_version(loaded.config, named)
        raise RemitError(f"no policy version {named} is kept; name a file, a folder or a configuration")
    raise RemitError(f"{named}: there is no such file or folder; name one, a configuration or a version")
