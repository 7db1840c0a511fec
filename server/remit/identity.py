"""Who is calling: API keys and JSON Web Tokens in, one frozen `Principal` out.

It proves identity and decides nothing else: what a principal may do is policy. It stores nothing either
(`KeyStore` is somebody's table) and keeps no session: each request proves itself anew. Everything the
caller can choose freely (client names, headers other than `Authorization`) is ignored here.

Libraries for signatures are imported when a token needs them, since a stdio server never does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Auth: TypeAlias = Literal["stdio", "api_key", "jwt", "local"]

_ID: Final = re.compile(r"[A-Za-z0-9_.@-]{1,128}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """An agent acting for a user in a tenant, and how that was proved.

    Raises `ValueError` when a name is not of the form that policies are written in. Names are ASCII, so
    two that look alike are alike.
    """

    tenant: str
    #: `agent:<id>`
    agent: str
    #: `user:<id>`
    user: str
    auth: Auth
    #: The API key's id, or the id of the key that signed the token; empty for stdio.
    key_id: str = ""
    #: Claimed by a token's issuer: the piece of work that this call belongs to.
    run: str | None = None
    #: Unix seconds.
    expires_at: int | None = None
    scopes: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for kind, name in (("", self.tenant), ("agent:", self.agent), ("user:", self.user)):
            if not name.startswith(kind) or not _ID.fullmatch(name, len(kind)):
                raise ValueError(
                    f"a {kind or 'tenant'} name is {kind}1 to 128 of the characters A-Z a-z 0-9 _ . @ -"
                )
