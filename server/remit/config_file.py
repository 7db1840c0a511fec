"""Reading `remit.yaml`: the file in, one checked `Config` out, or every problem at once.

A problem names file, line, column and field, shows what stands there (never a secret) and says what to
write instead. The shape itself is `config.py`, reading YAML is `strict_yaml.py`. Secrets stay references
in the `Config`; `resolve` reads one at the moment of its use, so nothing holds or prints its value.

Read once at start, before anything runs; standard-input servers start once per client, so what only
errors and editors need is imported late.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ValidationError

from remit import strict_yaml
from remit.config import Config, StdioIdentity
from remit.config_problems import ConfigError, Problem, flaws, literal_secrets, sentence, shape
from remit.strict_yaml import Document, Mark

MAX_FILE_BYTES = 2**20
MAX_SECRET_BYTES = 2**16


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A configuration and where it came from. All paths in `config` are absolute."""

    config: Config
    path: Path
    folder: Path
    positions: Mapping[strict_yaml.Path, Mark]
    #: The file as the operator named it.
    shown: str
    #: SHA-256 of its text, as hex: which configuration this is.
    digest: str = ""

    def master_key(self) -> str | None:
        """The master key of payloads, where the configuration says which. Raises ConfigError."""
        reference = self.config.store.master_key
        return resolve(reference, self.folder) if reference else None

    def problem(self, field: strict_yaml.Path, message: str) -> Problem:
        """A problem that was found later, such as a tool that no source has, at its line."""
        return Problem.at(self.shown, self.positions, field, message)


def load(path: Path) -> Loaded:
    """Read and check one configuration file. Raises ConfigError with everything that is wrong."""
    shown = str(path)
    text = _text(path)
    document = strict_yaml.read(text)
    problems = [*literal_secrets(shown, text, document), *flaws(shown, document)]
    config = None
    if document.is_mapping:
        try:
            # Strict, so that '16' is no number and 'yes' no truth; JSON, so that a list may be a tuple.
            config = Config.model_validate_json(json.dumps(document.value), strict=True)
        except ValidationError as error:
            problems += shape(shown, document, error)
    elif not document.flaws:
        message = "the file must hold settings, each written as name: value"
        problems.append(Problem(file=shown, line=1, column=1, message=message))
    folder = path.absolute().parent
    if config is not None:
        config = _anchored(config, folder)
        problems += _absent_files(shown, document, config)
    if config is None or problems:
        raise ConfigError(sorted(problems, key=lambda each: (each.line or 0, each.column or 0)))
    return Loaded(
        config=config,
        path=path.absolute(),
        folder=folder,
        positions=document.marks,
        shown=shown,
        digest=hashlib.sha256(text.encode()).hexdigest(),
    )


def resolve(reference: str, folder: Path) -> str:
    """The secret behind `env:NAME` or `file:/path`, read now; a relative path starts at `folder`.

    Call it where the secret is used and keep the value nowhere. A file must be a regular file of this
    user's that nobody else may read. One final line break is dropped. Raises ConfigError, which names
    the reference and never the value.
    """
    scheme, _, name = reference.partition(":")
    if scheme == "env":
        value = os.environ.get(name, "")
        if not value:
            raise _unusable(reference, "is not set; set this environment variable before Remit starts")
        return value
    if scheme != "file":
        raise _unusable("a secret", "is no reference; write env:NAME or file:/path")
    try:
        value = _private_bytes(reference, folder / os.path.expanduser(name)).decode()
    except (OSError, ValueError) as error:
        raise _unusable(reference, _unreadable(error)) from None
    value = value.removesuffix("\n").removesuffix("\r")
    if not value:
        raise _unusable(reference, "is empty; write the secret into the file")
    return value


def stdio_identity(config: Config, environ: Mapping[str, str]) -> StdioIdentity:
    """Who speaks over stdio: `identity.stdio`, each part replaced by its `REMIT_*` variable when set.

    Raises ConfigError when a part is missing or does not have the form of a name.
    """
    written = config.identity.stdio
    values: dict[str, str] = written.model_dump() if written else {}
    for name in StdioIdentity.model_fields:
        values[name] = environ.get(f"REMIT_{name.upper()}") or values.get(name, "")
    absent = [name for name, value in values.items() if not value]
    if absent:
        raise ConfigError(
            Problem(
                file=f"REMIT_{name.upper()}",
                message=f"is not set; set it, or write identity.stdio.{name} in the configuration",
            )
            for name in absent
        )
    try:
        return StdioIdentity.model_validate(values)
    except ValidationError as error:
        raise ConfigError(
            Problem(file=f"REMIT_{str(each['loc'][0]).upper()}", message=sentence((), [each]))
            for each in error.errors(include_url=False)
        ) from None


def _text(path: Path) -> str:
    shown = str(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError((Problem(file=shown, message="is not a file; name the file itself"),))
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        message = "there is no such file; write it, or name another with --config (or REMIT_CONFIG)"
        raise ConfigError((Problem(file=shown, message=message),)) from None
    except (OSError, ValueError) as error:
        raise ConfigError((Problem(file=shown, message=_unreadable(error)),)) from None
    if len(raw) > MAX_FILE_BYTES:
        message = f"is larger than {MAX_FILE_BYTES} bytes; move what is not configuration out of it"
        raise ConfigError((Problem(file=shown, message=message),))
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        column = error.start - raw.rfind(b"\n", 0, error.start)
        message = "this is not UTF-8 text; save the file as UTF-8"
        raise ConfigError((Problem(file=shown, line=line, column=column, message=message),)) from None


def _unreadable(error: OSError | ValueError) -> str:
    match error:
        case FileNotFoundError():
            return "there is no such file; write it, or name another"
        case PermissionError():
            return "this user may not read it; let them with chmod or chown"
        case IsADirectoryError():
            return "is not a file; name the file itself"
        case OSError(errno=errno.ELOOP):
            return "is a symbolic link; name the file itself"
        case OSError(strerror=str(reason)):
            return f"cannot be read: {reason.lower()}"
        case UnicodeDecodeError():
            return "is not UTF-8 text; save it as UTF-8"
        case _:
            return "is no path; name a file"


def _private_bytes(reference: str, path: Path) -> bytes:
    # Non-blocking, so that a pipe cannot hold Remit up; what was opened is what is then looked at.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _unusable(reference, "is not a file; name the file itself")
        if status.st_uid != os.geteuid():
            raise _unusable(reference, "belongs to another user; make it Remit's own with chown")
        if status.st_mode & 0o077:
            raise _unusable(reference, "can be read by other users; run chmod 600 on it")
        if status.st_size > MAX_SECRET_BYTES:
            raise _unusable(reference, f"is larger than {MAX_SECRET_BYTES} bytes; a secret is not")
        return file.read(MAX_SECRET_BYTES)


def _unusable(reference: str, message: str) -> ConfigError:
    return ConfigError((Problem(file=reference, message=message),))


def _anchored(value: Any, folder: Path) -> Any:
    """`value` with every path in it absolute: relative ones start at `folder`, `~` is the user's home."""
    match value:
        case Path():
            return folder / os.path.expanduser(value)
        case BaseModel():
            fields = {name: _anchored(getattr(value, name), folder) for name in type(value).model_fields}
            # What the file says stays apart from defaults: `tools` entries are merged by it.
            return type(value).model_construct(value.model_fields_set, **fields)
        case tuple():
            return tuple(_anchored(each, folder) for each in cast(tuple[Any, ...], value))
        case Mapping():
            entries = cast(Mapping[str, Any], value)
            return {name: _anchored(each, folder) for name, each in entries.items()}
        case _:
            return value


def policy_files(paths: Iterable[Path]) -> list[Path]:
    """The files that these settings name, in their order; those of a pattern (`policy.*.csv`) by name.

    Looks anew each time, so a file that is added to a pattern counts. What matches nothing gives nothing.
    """
    found = (sorted(path.parent.glob(path.name)) if _is_pattern(path) else [path] for path in paths)
    return list(dict.fromkeys(each for files in found for each in files))


def _is_pattern(path: Path) -> bool:
    return any(mark in path.name for mark in "*?[") and not path.is_file()


def _absent_files(shown: str, document: Document, config: Config) -> Iterator[Problem]:
    files: dict[strict_yaml.Path, Path | None] = {}
    policy = config.policy
    files |= {("policy", "tests", number): path for number, path in enumerate(policy.tests)}
    if policy.source == "files":  # elsewhere only who pushes a version needs them
        files[("policy", "model")] = policy.model
        files |= {("policy", "files", number): path for number, path in enumerate(policy.files)}
        files |= {
            ("policy", "tenants", tenant, number): path
            for tenant, paths in policy.tenants.items()
            for number, path in enumerate(paths)
        }
    if tls := config.http.tls:
        files |= {("http", "tls", "certificate"): tls.certificate, ("http", "tls", "key"): tls.key}
    for field, path in files.items():
        if path is not None and field[0] == "policy" and _is_pattern(path):
            if not policy_files([path]):
                message = f"no file matches {str(path)!r}; write one, or take the pattern out"
                yield Problem.at(shown, document.marks, field, message)
        elif path is not None and not path.is_file():
            message = f"there is no file {str(path)!r}; write it, or name another"
            yield Problem.at(shown, document.marks, field, message)
    for name, source in config.sources.items():
        if source.cwd is not None and not source.cwd.is_dir():
            message = f"there is no folder {str(source.cwd)!r}; make it, or name another"
            yield Problem.at(shown, document.marks, ("sources", name, "cwd"), message)
