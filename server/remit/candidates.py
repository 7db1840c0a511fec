"""A policy that is not in force, by whatever it is named: to be compared, replayed or shadowed."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from remit.config_file import Loaded, load
from remit.errors import RemitError, UnknownRecord
from remit.policies import PolicyText, load_text, text_in_force, text_of
from remit_rbac import Policy

#: Stands for the policy in force.
CURRENT = "current"


def candidate(named: str, loaded: Loaded) -> Policy:
    """The policy that `named` means. Raises PolicyError with every problem, RemitError when there is none."""
    return candidate_text(named, loaded).build()


def candidate_text(named: str, loaded: Loaded) -> PolicyText:
    """The text of the policy that `named` means.

    `current`; a CSV file; a folder, whose CSV files are merged by name; a configuration (`.yaml`), whose
    policy it is; or a version id. Raises RemitError when there is none.
    """
    path = Path(named)
    if named == CURRENT:
        return text_in_force(loaded.config)
    if path.is_dir():
        files = sorted(path.glob("*.csv"))
        if not files:
            raise RemitError(f"{named}: there is no .csv file in this folder")
        return text_of(files, loaded.config.policy.model)
    if path.is_file():
        if path.suffix in (".yaml", ".yml"):
            return text_in_force(load(path).config)
        return text_of([path], loaded.config.policy.model)
    if re.fullmatch(r"[0-9a-f]{6,64}", named):
        current = text_in_force(loaded.config)
        if current.build().version.startswith(named):
            return current
        with suppress(UnknownRecord):
            if loaded.config.store.path.is_file():
                return load_text(loaded.config, named)
        raise RemitError(f"no policy version {named} is kept; name a file, a folder or a configuration")
    raise RemitError(f"{named}: there is no such file or folder; name one, a configuration or a version")
