"""Where an MCP server is: what the operator's configuration says, and nothing that a request can change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class StdioTarget:
    """A server to run as a child process, without a shell."""

    command: tuple[str, ...]
    #: The child's environment, beside PATH, LANG, LC_ALL, LC_CTYPE and TZ; nothing else is inherited.
    #: HOME and TMPDIR are a private directory unless named here.
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    cwd: str | None = None


def _no_headers() -> Mapping[str, str]:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpTarget:
    """A server behind one URL. Redirects and proxies from the environment are never followed."""

    url: str
    #: Read for each request, so that a rotated credential counts at once; sent to `url` only. When one cannot
    #: be had it must raise AdapterError(no_effect=True).
    headers: Callable[[], Mapping[str, str]] = _no_headers
