"""Who is calling: API keys and JSON Web Tokens in, one frozen `Principal` out.

It proves identity and decides nothing else: what a principal may do is policy. It stores nothing but the
pepper file (`KeyStore` is somebody's table) and keeps no session: each request proves itself anew. What a
caller can choose freely, such as client names and all headers but `Authorization`, is not looked at.

Libraries for signatures and HTTP are imported when a token first needs them: a stdio server, which starts
once per client session, never does. `Identify` and what it holds live as long as the HTTP front.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import logging
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeAlias, cast
from urllib.parse import urlsplit

import anyio

from remit.errors import RemitError
from remit.front.strict import Limits, Malformed, decode
from remit.ids import Clock, now_us

if TYPE_CHECKING:
    from joserfc.jwk import Key

logger = logging.getLogger(__name__)

Auth: TypeAlias = Literal["stdio", "api_key", "jwt", "local", "playbook"]
Algorithm: TypeAlias = Literal["RS256", "PS256", "ES256", "EdDSA"]

_ID: Final = re.compile(r"[A-Za-z0-9_.@-]{1,128}")
_BEARER: Final = re.compile(r"bearer +([A-Za-z0-9._~+/-]+=*)", re.IGNORECASE)
_API_KEY: Final = re.compile(r"rk_([a-z2-7]{12})_[a-z2-7]{52}")
_JWT: Final = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")

KEY_LIFETIME_S: Final = 90 * 24 * 3600
"""How long an API key is good for, unless its maker says otherwise."""

TOKEN_BYTES_MAX: Final = 16 * 1024
_TOKEN_LIMITS: Final = Limits(bytes_max=TOKEN_BYTES_MAX, depth_max=8, keys_max=500, items_max=1_000)
_JWKS_LIMITS: Final = Limits(bytes_max=256 * 1024, depth_max=8)
_PLAINLY: Final = {"accept": "application/json", "accept-encoding": "identity"}

# The types of an access token (RFC 9068 §2.1, RFC 7519 §5.1). Other types are other promises: an identity
# or logout token of the same issuer says nothing about access. Some issuers send none.
_TYPES: Final = frozenset({"jwt", "at+jwt", "application/at+jwt"})
_KEY_TYPES: Final = frozenset({"RSA", "EC", "OKP"})
_RSA_BITS_MIN: Final = 2048


class Unauthenticated(Exception):
    """The caller did not prove who it is. `str()` is for the caller and tells nothing it does not know.

    `guessed`: a credential was offered that is not genuine, so the caller may be trying several.
    """

    def __init__(self, message: str, *, guessed: bool = False) -> None:
        super().__init__(message)
        self.guessed = guessed


class IdentityUnavailable(RemitError):
    """The issuer's keys cannot be had, so nobody's token can be checked now. Try again soon."""


class SecretUnsafe(RemitError):
    """The pepper file may be known to others, or is damaged. Put it right before any key is trusted."""


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
    #: The piece of work that this call belongs to, when the token's issuer says so.
    run: str | None = None
    #: Unix seconds.
    expires_at: int | None = None
    scopes: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.tenant):
            raise ValueError("a tenant is named by 1 to 128 of the characters A-Z a-z 0-9 _ . @ -")
        if not self.agent.startswith("agent:") or not _ID.fullmatch(self.agent, 6):
            raise ValueError("an agent is named by agent: and 1 to 128 of the characters A-Z a-z 0-9 _ . @ -")
        if not self.user.startswith("user:") or not _ID.fullmatch(self.user, 5):
            raise ValueError("a user is named by user: and 1 to 128 of the characters A-Z a-z 0-9 _ . @ -")
        if self.run is not None and not _ID.fullmatch(self.run):
            raise ValueError("a run is named by 1 to 128 of the characters A-Z a-z 0-9 _ . @ -")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    """All that is stored of an API key: enough to recognise it, not enough to use it."""

    id: str
    tenant: str
    agent: str
    user: str
    #: HMAC-SHA-256 of the whole key under the pepper, in hex.
    digest: str
    created_us: int
    expires_us: int
    revoked_us: int | None = None
    #: For people: where the key is used.
    label: str = ""


class KeyStore(Protocol):
    async def key(self, key_id: str, /) -> KeyRecord | None:
        """The record of this key, also when it is revoked or expired."""
        ...


def mint_key(
    *,
    tenant: str,
    agent: str,
    user: str,
    label: str,
    pepper: bytes,
    at_us: int,
    lifetime_s: int = KEY_LIFETIME_S,
) -> tuple[KeyRecord, str]:
    """Make an API key: the record to store, and the key itself to show once.

    The secret is 256 random bits, so a fast hash is enough to keep it (it cannot be searched for) and a
    slow one would only be a way to load the server. Raises `ValueError` for a bad name or lifetime.
    """
    if lifetime_s <= 0:
        raise ValueError("the lifetime of a key is a positive number of seconds")
    Principal(tenant=tenant, agent=agent, user=user, auth="api_key")
    public = _base32(secrets.token_bytes(8))[:12]
    plaintext = f"rk_{public}_{_base32(secrets.token_bytes(32))}"
    record = KeyRecord(
        id=public,
        tenant=tenant,
        agent=agent,
        user=user,
        digest=_digest(plaintext, pepper),
        created_us=at_us,
        expires_us=at_us + lifetime_s * 1_000_000,
        label=label,
    )
    return record, plaintext


def key_id(token: str) -> str | None:
    """The public part of an API key; `None` when this is not one."""
    match = _API_KEY.fullmatch(token)
    return match[1] if match else None


def verify_key(plaintext: str, record: KeyRecord | None, *, at_us: int, pepper: bytes) -> Principal:
    """Return whom the key stands for; takes as long for an unknown key as for a wrong secret.

    Raises `Unauthenticated`. Why a genuine key is refused is said only to who holds it.
    """
    digest = _digest(plaintext, pepper)
    if not hmac.compare_digest(digest, record.digest if record else "-" * 64) or record is None:
        raise Unauthenticated("The API key is not valid.", guessed=True)
    if record.revoked_us is not None:
        raise Unauthenticated("The API key has been revoked; ask for a new one.")
    if at_us >= record.expires_us:
        raise Unauthenticated("The API key has expired; ask for a new one.")
    return Principal(
        tenant=record.tenant,
        agent=record.agent,
        user=record.user,
        auth="api_key",
        key_id=record.id,
        expires_at=record.expires_us // 1_000_000,
    )


def _digest(plaintext: str, pepper: bytes) -> str:
    # The id is under the hash too: a digest copied into another record is worth nothing there.
    return hmac.digest(pepper, plaintext.encode(), "sha256").hex()


def _base32(data: bytes) -> str:
    return base64.b32encode(data).decode("ascii").rstrip("=").lower()


def load_pepper(path: Path) -> bytes:
    """Read the secret that API keys are hashed under; made at first use.

    It stays out of the database, so a copy of the database verifies nothing. Raises as `load_secret`.
    """
    return load_secret(path, lost="restore it, or delete it and make all API keys anew")


def pepper_check(pepper: bytes) -> str:
    """By what this pepper is known again; it cannot be found out by it."""
    return hmac.digest(pepper, b"which pepper this is", "sha256").hex()


def load_secret(path: Path, *, lost: str) -> bytes:
    """Read 32 secret bytes, made at first use, for this user's eyes only.

    Raises `SecretUnsafe` when others may read them, when the file is a link, or when its length is wrong:
    what to do then is said by `lost`.
    """
    try:
        if not os.path.lexists(path):
            _create(path, secrets.token_bytes(32))
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)), "rb") as file:
            status = os.fstat(file.fileno())
            secret = file.read(33)
    except OSError as error:
        raise SecretUnsafe(f"{path} cannot be made or read as a plain file: {error.strerror}.") from error
    # Elsewhere these bits mean nothing: access lists of the folder decide.
    if os.name == "posix" and (status.st_mode & 0o077 or status.st_uid != os.geteuid()):
        raise SecretUnsafe(
            f"{path} must belong to you alone: chown it to the server's user and chmod 600 it."
        )
    if len(secret) != 32:
        raise SecretUnsafe(f"{path} must hold 32 bytes; {lost}.")
    return secret


def _create(path: Path, secret: bytes) -> None:
    """Put the file there whole or not at all: of two servers that start together, one wins."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secret)
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)
    except FileExistsError:
        logger.debug("another process made the secret first")
    finally:
        draft.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtSettings:
    """Which tokens are believed: those of one issuer, for this server (RFC 9068, RFC 8725)."""

    issuer: str
    #: `https://...` or `file:/...`; `http://` only on loopback.
    jwks: str
    #: The URL of this server; the token must name it (RFC 8707).
    audience: str
    algorithms: tuple[Algorithm, ...] = ("RS256", "ES256", "EdDSA")
    tenant_claim: str = "tenant"
    #: For tokens without a tenant claim; `None`: they are refused.
    tenant: str | None = None
    user_claim: str = "sub"
    run_claim: str | None = None
    lifetime_s_max: int = 3600
    #: How far the issuer's clock may be ahead of ours.
    skew_s: int = 60

    def __post_init__(self) -> None:
        url = urlsplit(self.jwks)
        loopback = url.hostname in ("127.0.0.1", "localhost", "::1")
        if not (
            (url.scheme == "https" and url.hostname)
            or (url.scheme == "http" and loopback)
            or (url.scheme == "file" and not url.netloc and url.path)
        ):
            raise ValueError("jwks must be an https:// URL or file:/path; http:// only on loopback")


class SigningKeys:
    """The issuer's public keys: fetched when first needed, kept ten minutes, asked for sparingly.

    A key that is not known is looked for at most once a minute, whatever callers send. While the issuer
    cannot be reached, the last keys stay good for an hour.
    """

    _FRESH_US: Final = 600 * 1_000_000
    _AGAIN_US: Final = 60 * 1_000_000
    _RETRY_US: Final = 5 * 1_000_000
    _KEEP_US: Final = 3600 * 1_000_000

    def __init__(self, location: str, clock: Clock = now_us) -> None:
        self._location = location
        self._clock = clock
        self._keys: dict[tuple[str, str], Key] = {}
        self._loaded_us = self._stale_us = self._next_us = 0
        self._lock = anyio.Lock(fast_acquire=True)

    async def find(self, kid: str | None, key_type: str) -> Key | None:
        """Raises `IdentityUnavailable` when no keys could be had at all."""
        now = self._clock()
        key = self._pick(kid, key_type)
        if (key is None or now >= self._stale_us) and now >= self._next_us:
            if key is not None and self._lock.locked():
                return key
            async with self._lock:
                if now >= self._next_us:
                    await self._refresh(now)
            key = self._pick(kid, key_type)
        if not self._keys:
            raise IdentityUnavailable("The issuer's keys cannot be fetched; check identity.jwt.jwks.")
        return key

    def _pick(self, kid: str | None, key_type: str) -> Key | None:
        if kid is not None:
            return self._keys.get((kid, key_type))
        # A token may leave the id out only where there is nothing to choose (RFC 7515 §4.1.4).
        only = list(self._keys.items())
        return only[0][1] if len(only) == 1 and only[0][0][1] == key_type else None

    async def _refresh(self, now: int) -> None:
        try:
            self._keys = _import_keys(decode(await self._fetch(), _JWKS_LIMITS))
        except (OSError, ValueError, Malformed) as error:
            logger.warning("the issuer's keys cannot be fetched: %s", error)
            self._next_us = now + self._RETRY_US
            if now >= self._loaded_us + self._KEEP_US:
                self._keys = {}
        else:
            self._loaded_us = now
            self._stale_us = now + self._FRESH_US
            self._next_us = now + self._AGAIN_US

    async def _fetch(self) -> bytes:
        url = urlsplit(self._location)
        if url.scheme == "file":
            return await anyio.Path(url.path).read_bytes()
        import httpx2

        body = bytearray()
        try:
            # The environment names no proxy here, nothing is unpacked, and the pinned host answers itself.
            async with (
                asyncio.timeout(5),
                httpx2.AsyncClient(trust_env=False, follow_redirects=False, headers=_PLAINLY) as client,
                client.stream("GET", self._location) as response,
            ):
                if response.status_code != 200:
                    raise ValueError(f"the issuer answered {response.status_code}")
                async for chunk in response.aiter_raw(64 * 1024):
                    body += chunk
                    if len(body) > _JWKS_LIMITS.bytes_max:
                        break
        except httpx2.HTTPError as error:
            raise OSError(str(error)) from error
        return bytes(body)


def _import_keys(jwks: Any) -> dict[tuple[str, str], Key]:
    """Take the public keys out of a JWK Set (RFC 7517 §5); those of kinds we do not use are skipped."""
    from joserfc.errors import JoseError
    from joserfc.jwk import import_key

    if type(jwks) is not dict or type(cast("dict[str, Any]", jwks).get("keys")) is not list:
        raise ValueError("a JWK Set is an object with an array of keys")
    keys: dict[tuple[str, str], Key] = {}
    for jwk in cast("dict[str, list[Any]]", jwks)["keys"]:
        if type(jwk) is not dict:
            continue
        members = cast("dict[str, Any]", jwk)
        kid, key_type = members.get("kid", ""), members.get("kty")
        modulus = members.get("n", "")
        weak = key_type == "RSA" and (type(modulus) is not str or len(modulus) * 6 < _RSA_BITS_MIN)
        if type(kid) is not str or type(key_type) is not str or key_type not in _KEY_TYPES or weak:
            continue
        try:
            keys[kid, key_type] = import_key(members)
        except (JoseError, ValueError, TypeError) as error:
            logger.warning("a key of the issuer is left out: %s", error)
    if not keys:
        raise ValueError("the JWK Set holds no key that can be used")
    return keys


class Tokens:
    """Checks OAuth 2.1 access tokens that are JSON Web Tokens."""

    def __init__(self, settings: JwtSettings, clock: Clock = now_us) -> None:
        self._settings = settings
        self._clock = clock
        self._keys = SigningKeys(settings.jwks, clock)

    async def principal(self, token: str) -> Principal:
        """Verify the signature (RFC 7515 §5.2), then the claims (RFC 7519 §4.1, RFC 9068 §4).

        Raises `Unauthenticated`, and `IdentityUnavailable` when the issuer's keys cannot be had.
        """
        parts = _JWT.fullmatch(token) if len(token) <= TOKEN_BYTES_MAX else None
        if parts is None:
            raise _not_valid()
        header = _object(parts[1])
        algorithm, type_, kid = header.get("alg"), header.get("typ"), header.get("kid")
        # An allowlist, so neither `none` nor a public key used as a shared secret gets further; and an
        # extension marked critical is one that we do not know.
        if algorithm not in self._settings.algorithms or "crit" in header:
            raise _not_valid()
        if type_ is not None and (type(type_) is not str or type_.lower() not in _TYPES):
            raise _not_valid()
        if kid is not None and type(kid) is not str:
            raise _not_valid()
        await self._verify(parts, algorithm, kid)
        return self._principal(_object(parts[2]), kid or "")

    async def _verify(self, parts: re.Match[str], algorithm: str, kid: str | None) -> None:
        from joserfc.errors import JoseError
        from joserfc.jws import JWSRegistry

        model = JWSRegistry.algorithms[algorithm]
        key = await self._keys.find(kid, model.key_type)
        if key is None:
            # Not counted as a guess: a key of the issuer may be newer than our copy.
            raise Unauthenticated("The access token is signed with a key that is not known.")
        try:
            # The key's own use, operations, algorithm and curve must fit too.
            model.check_key(key)
            genuine = model.verify(f"{parts[1]}.{parts[2]}".encode("ascii"), _base64url(parts[3]), key)
        except (JoseError, ValueError) as error:
            logger.info("a token was refused: %s", error)
            raise _not_valid() from None
        if not genuine:
            raise _not_valid()

    def _principal(self, claims: Mapping[str, Any], kid: str) -> Principal:
        settings = self._settings
        if claims.get("iss") != settings.issuer:
            raise Unauthenticated("The access token is from another issuer.")
        audience = claims.get("aud")
        audiences = cast("list[Any]", audience) if type(audience) is list else [audience]
        if settings.audience not in audiences:
            raise Unauthenticated(f"The access token is not for {settings.audience}.")
        expires_at = self._check_times(claims)
        run = claims.get(settings.run_claim) if settings.run_claim else None
        try:
            return Principal(
                tenant=_name(claims.get(settings.tenant_claim, settings.tenant)),
                agent=f"agent:{_agent(claims)}",
                user=f"user:{_name(claims.get(settings.user_claim))}",
                auth="jwt",
                key_id=kid,
                run=None if run is None else _name(run),
                expires_at=expires_at,
                scopes=_scopes(claims),
            )
        except ValueError as error:
            raise Unauthenticated(f"The access token names nobody that can be known here: {error}.") from None

    def _check_times(self, claims: Mapping[str, Any]) -> int:
        """Return the expiry; all in Unix seconds."""
        now = self._clock() // 1_000_000
        latest = now + self._settings.skew_s
        expires_at = _seconds(claims, "exp")
        issued_at = _seconds(claims, "iat") if "iat" in claims else now
        if now >= expires_at:
            raise Unauthenticated("The access token has expired.")
        if issued_at > latest or ("nbf" in claims and _seconds(claims, "nbf") > latest):
            raise Unauthenticated("The access token is not valid yet; compare the clocks.")
        if expires_at - issued_at > self._settings.lifetime_s_max:
            longest = self._settings.lifetime_s_max
            raise Unauthenticated(f"The access token lives longer than {longest} seconds; ask for a shorter.")
        return expires_at


def _agent(claims: Mapping[str, Any]) -> str:
    """Who acts: the actor of a delegation (RFC 8693 §4.1), else the client (§4.3), else OpenID's `azp`."""
    if "act" in claims:
        actor = claims["act"]
        return _name(cast("dict[str, Any]", actor).get("sub") if type(actor) is dict else None)
    return _name(claims["client_id"] if "client_id" in claims else claims.get("azp"))


def _name(claim: Any) -> str:
    if type(claim) is not str:
        raise ValueError("a claim for tenant, agent, user or run is missing or not a string")
    return claim


def _scopes(claims: Mapping[str, Any]) -> frozenset[str]:
    """`scope` is one string (RFC 8693 §4.2); some issuers send a list called `scp`."""
    scope = claims.get("scope", claims.get("scp", ""))
    words = cast("list[Any]", scope) if type(scope) is list else str(scope).split(" ")
    return frozenset(word for word in words if type(word) is str and word)


def _seconds(claims: Mapping[str, Any], name: str) -> int:
    value = claims.get(name)
    if type(value) not in (int, float):
        raise Unauthenticated(f"The access token has no {name} claim that is a number.")
    return int(cast("float", value))


def _object(part: str) -> dict[str, Any]:
    """Read a part of a token strictly: a claim given twice is refused, not chosen from."""
    try:
        value = decode(_base64url(part), _TOKEN_LIMITS)
    except (Malformed, binascii.Error):
        raise _not_valid() from None
    if type(value) is not dict:
        raise _not_valid()
    return cast("dict[str, Any]", value)


def _base64url(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def _not_valid() -> Unauthenticated:
    return Unauthenticated("The access token is not valid.", guessed=True)


class Identify:
    """Proves callers by the `Authorization` header: an API key, or else an access token.

    A record that was just looked up serves for a second, as a stopped agent may run on for one; a revoked
    key is refused after that.
    """

    _RECENT_US: Final = 1_000_000
    _RECENT_MAX: Final = 1_000

    def __init__(
        self,
        *,
        keys: KeyStore,
        pepper: bytes,
        tokens: Tokens | None = None,
        clock: Clock = now_us,
    ) -> None:
        self._keys = keys
        self._pepper = pepper
        self._tokens = tokens
        self._clock = clock
        self._recent: dict[str, tuple[int, KeyRecord]] = {}

    async def authenticate(self, headers: Mapping[str, str]) -> Principal:
        """Raises `Unauthenticated`, and `IdentityUnavailable`. Header names are in lower case."""
        token = bearer(headers)
        if token is None:
            raise Unauthenticated("Send an API key or access token in the header Authorization: Bearer.")
        public = key_id(token)
        if public is not None:
            now = self._clock()
            return verify_key(token, await self._record(public, now), at_us=now, pepper=self._pepper)
        if self._tokens is None or token.startswith("rk_"):
            raise Unauthenticated("The credential is not valid.", guessed=True)
        return await self._tokens.principal(token)

    async def _record(self, public: str, now: int) -> KeyRecord | None:
        read_us, record = self._recent.get(public, (0, None))
        if record is not None and 0 <= now - read_us < self._RECENT_US:
            return record
        record = await self._keys.key(public)
        if record is not None:
            if len(self._recent) >= self._RECENT_MAX:
                self._recent.clear()
            self._recent[public] = now, record
        return record


def bearer(headers: Mapping[str, str]) -> str | None:
    """The token of the `Authorization` header (RFC 6750 §2.1); `None` when there is none of that form."""
    match = _BEARER.fullmatch(headers.get("authorization", ""))
    return match[1] if match else None


def fingerprint(headers: Mapping[str, str]) -> str:
    """A name for the credential that is safe to keep: the API key's id, or a digest."""
    token = bearer(headers) or headers.get("authorization", "")
    return key_id(token) or hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
