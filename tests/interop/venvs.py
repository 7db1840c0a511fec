"""Virtual environments for other people's Python packages, in `out/venvs`.

They are kept out of the project's own environment because what they need may clash with what Remit needs.
Versions are pinned here; `pip` installs them from whatever index it is configured for.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import venv
from pathlib import Path

HOME = Path(__file__).parents[2] / "out" / "venvs"

PACKAGES = {
    "interop-fastmcp": ["fastmcp-slim[client]==4.1.6"],
    "interop-servers": [
        "mcp-server-git==2026.10.19",
        "mcp-server-time==2026.10.19",
        "mcp-server-fetch==2026.10.24",
    ],
}


class PackagesMissing(Exception):
    """The packages could not be installed; the message says which, and what pip said."""


def python(group: str) -> str:
    """The Python of one group of `PACKAGES`, installed if it is not there as pinned."""
    folder = HOME / group
    wanted = json.dumps(PACKAGES[group])
    done = folder / "installed.json"
    if not done.exists() or done.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        command = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", *PACKAGES[group]]
        installed = subprocess.run(command, capture_output=True, text=True, check=False)
        if installed.returncode != 0:
            raise PackagesMissing(
                f"pip could not install {', '.join(PACKAGES[group])}:\n{installed.stderr[-2000:]}"
            )
        done.write_text(wanted)
    return str(folder / "bin" / "python")
