"""A policy that is not in force, by whatever it is named: to be compared, replayed or shadowed."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from remit.config_file import Loaded, load
from remit.database import exists
from remit.errors import RemitError, UnknownRecord
from remit.policies import BuiltPolicy, load_version, text_in_force, text_of

#: Stands for the policy in force.
CURRENT = "current"


def candidate(named: str, loaded: Loaded) -> BuiltPolicy:
    """The policy that `named` means.

    `current`; a CSV file; a folder, whose CSV files are merged by name; a configuration (`.yaml`), whose
    policy it is; or a version id. Raises PolicyError with every problem, RemitError when there is none.
    """
    path = Path(named)
    if named == CURRENT:
        return text_in_force(loaded.config).build()
    if path.is_dir():
        files = sorted(path.glob("*.csv"))
        if not files:
            raise RemitError(f"{named}: there is no .csv file in this folder")
        return text_of(files, loaded.config.policy.model).build()
    if path.is_file():
        if path.suffix in (".yaml", ".yml"):
            return text_in_force(load(path).config).build()
        return text_of([path], loaded.config.policy.model).build()
    if re.fullmatch(r"[0-9a-f]{6,64}", named):
        with suppress(UnknownRecord):
            if exists(loaded.config.store.location):
                return load_version(loaded.config, named)
        current = text_in_force(loaded.config).build()
        if current.policy.version.startswith(named):
            return current
        raise RemitError(f"no policy version {named} is kept; name a file, a folder or a configuration")
    raise RemitError(f"{named}: there is no such file or folder; name one, a configuration or a version")
