"""Writing a file so that others find all of it, or what was there before."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def put_whole(file: Path, content: bytes) -> None:
    """Put the file there in one step, on the disk, and for its owner's eyes only. Raises OSError."""
    draft = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as opened:
            opened.write(content)
            opened.flush()
            os.fsync(opened.fileno())
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)
