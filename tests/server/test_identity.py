"""A caller is who a genuine credential says, and nobody otherwise."""

import base64
import hashlib
import hmac
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey

from remit.identity import (
    Identify,
    IdentityUnavailable,
    JwtSettings,
    KeyRecord,
    Principal,
    SecretUnsafe,
    Tokens,
    Unauthenticated,
    fingerprint,
    load_pepper,
    mint_key,
    verify_key,
)

NOW_S = 1_800_000_000
NOW_US = NOW_S * 1_000_000
PEPPER = b"p" * 32
ISSUER = "https://id.example.com"
AUDIENCE = "https://remit.example.com/mcp"

RSA = RSAKey.generate_key(2048, {"kid": "rsa"})
EC = ECKey.generate_key("P-256", {"kid": "ec"})
ED = OKPKey.generate_key("Ed25519", {"kid": "ed"})
STRANGER = RSAKey.generate_key(2048, {"kid": "rsa"})


class Clock:
    def __init__(self, at_s: int = NOW_S) -> None:
        self.at_s = at_s

    def __call__(self) -> int:
        return self.at_s * 1_000_000


def jwks(*keys: Key) -> dict[str, Any]:
    return {"keys": [key.as_dict(private=False) for key in keys]}


def claims(**changes: Any) -> dict[str, Any]:
    """Sound claims, changed; a change to `...` removes one."""
    sound = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "exp": NOW_S + 600,
        "iat": NOW_S,
        "sub": "alice",
        "client_id": "support-bot",
        "tenant": "acme",
        "scope": "remit:call remit:read",
    }
    return {name: value for name, value in {**sound, **changes}.items() if value is not ...}


def part(data: bytes | Mapping[str, Any]) -> str:
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def token(payload: bytes | Mapping[str, Any], key: Key = RSA, **header: Any) -> str:
    """A token signed with `key`, whatever its header and payload claim."""
    fields = {"alg": "RS256", "kid": key.kid, "typ": "at+jwt"} | header
    signed = f"{part({k: v for k, v in fields.items() if v is not ...})}.{part(payload)}"
    model = jws.JWSRegistry.algorithms[{"RSA": "RS256", "EC": "ES256", "OKP": "EdDSA"}[key.key_type]]
    if fields["alg"] == "PS256":
        model = jws.JWSRegistry.algorithms["PS256"]
    return f"{signed}.{part(model.sign(signed.encode(), key))}"


@pytest.fixture
def settings(tmp_path: Path) -> JwtSettings:
    (tmp_path / "jwks.json").write_text(json.dumps(jwks(RSA, EC, ED)))
    return JwtSettings(
        issuer=ISSUER,
        jwks=f"file:{tmp_path}/jwks.json",
        audience=AUDIENCE,
        algorithms=("RS256", "PS256", "ES256", "EdDSA"),
    )


class Keys:
    def __init__(self, *records: KeyRecord) -> None:
        self.records = {record.id: record for record in records}
        self.asked = 0

    async def key(self, key_id: str, /) -> KeyRecord | None:
        self.asked += 1
        return self.records.get(key_id)


def a_key(**changes: Any) -> tuple[KeyRecord, str]:
    fields = {"tenant": "acme", "agent": "agent:bot", "user": "user:alice", "label": "laptop"}
    return mint_key(**(fields | {"pepper": PEPPER, "at_us": NOW_US} | changes))


def bearing(credential: str) -> dict[str, str]:
    return {"authorization": f"Bearer {credential}"}


@pytest.mark.parametrize(
    "change",
    [
        {"agent": "bot"},
        {"agent": "agent:"},
        {"agent": "user:bot"},
        {"agent": "agent:bot\n"},
        {"agent": "agent:b ot"},
        {"agent": "agent:b\u043et"},
        {"agent": "agent:" + "a" * 129},
        {"user": "alice"},
        {"user": "user:*"},
        {"user": "user:a,b"},
        {"tenant": ""},
        {"tenant": "a/b"},
        {"tenant": "acme\u200b"},
        {"run": ""},
        {"run": "a b"},
    ],
)
def test_a_name_that_policies_cannot_be_written_in_is_no_principal(change: dict[str, str]):
    with pytest.raises(ValueError, match="is named by"):
        Principal(**({"tenant": "acme", "agent": "agent:bot", "user": "user:a", "auth": "stdio"} | change))


def test_a_key_is_shown_once_and_stored_as_a_keyed_hash():
    record, plaintext = a_key()
    prefix, public, secret = plaintext.split("_")
    assert (prefix, public, len(public), len(secret)) == ("rk", record.id, 12, 52)
    assert record.digest == hmac.new(PEPPER, plaintext.encode(), hashlib.sha256).hexdigest()
    assert secret not in repr(record)
    assert record.expires_us - record.created_us == 90 * 24 * 3600 * 1_000_000


def test_no_two_keys_are_alike():
    assert len({a_key()[1] for _ in range(100)}) == 100


def test_a_key_is_made_only_for_names_and_lifetimes_that_make_sense():
    with pytest.raises(ValueError, match="agent is named"):
        a_key(agent="bot")
    with pytest.raises(ValueError, match="lifetime"):
        a_key(lifetime_s=0)


async def test_a_genuine_key_is_its_agent_acting_for_its_user():
    record, plaintext = a_key()
    identify = Identify(keys=Keys(record), pepper=PEPPER, clock=Clock())
    assert await identify.authenticate(bearing(plaintext)) == Principal(
        tenant="acme",
        agent="agent:bot",
        user="user:alice",
        auth="api_key",
        key_id=record.id,
        expires_at=NOW_S + 90 * 24 * 3600,
    )


def test_why_a_genuine_key_is_refused_is_said_to_who_holds_it():
    record, plaintext = a_key()
    with pytest.raises(Unauthenticated, match="expired") as caught:
        verify_key(plaintext, record, at_us=record.expires_us, pepper=PEPPER)
    assert not caught.value.guessed
    verify_key(plaintext, record, at_us=record.expires_us - 1, pepper=PEPPER)
    with pytest.raises(Unauthenticated, match="revoked") as caught:
        verify_key(plaintext, replace(record, revoked_us=NOW_US), at_us=NOW_US, pepper=PEPPER)
    assert not caught.value.guessed


async def test_an_unknown_key_a_wrong_secret_and_a_revoked_key_with_a_wrong_secret_look_the_same():
    record, plaintext = a_key()
    revoked, _ = a_key()
    other, unknown = a_key()
    # A record that took over another key's digest is worth nothing under its own id.
    stolen = replace(other, id="a" * 12, digest=record.digest)
    identify = Identify(
        keys=Keys(record, replace(revoked, revoked_us=NOW_US), stolen), pepper=PEPPER, clock=Clock()
    )
    secret = plaintext.rpartition("_")[2]
    tries = (
        unknown,
        f"rk_{record.id}_{'a' * 52}",
        f"rk_{revoked.id}_{'a' * 52}",
        f"rk_{stolen.id}_{secret}",
        plaintext[:-1] + ("a" if plaintext[-1] != "a" else "b"),
    )
    for credential in tries:
        with pytest.raises(Unauthenticated, match=r"^The API key is not valid\.$") as caught:
            await identify.authenticate(bearing(credential))
        assert caught.value.guessed


async def test_a_key_is_looked_up_once_a_second_and_refused_within_one_when_revoked():
    record, plaintext = a_key()
    keys, clock = Keys(record), Clock()
    identify = Identify(keys=keys, pepper=PEPPER, clock=clock)
    for _ in range(100):
        await identify.authenticate(bearing(plaintext))
    assert keys.asked == 1
    keys.records[record.id] = replace(record, revoked_us=NOW_US)
    clock.at_s += 1
    with pytest.raises(Unauthenticated, match="revoked"):
        await identify.authenticate(bearing(plaintext))


async def test_a_key_made_a_moment_after_it_was_tried_is_known_at_once():
    record, plaintext = a_key()
    keys = Keys()
    identify = Identify(keys=keys, pepper=PEPPER, clock=Clock())
    with pytest.raises(Unauthenticated):
        await identify.authenticate(bearing(plaintext))
    keys.records[record.id] = record
    assert (await identify.authenticate(bearing(plaintext))).key_id == record.id


async def test_a_key_is_worth_nothing_under_another_pepper():
    record, plaintext = a_key()
    with pytest.raises(Unauthenticated):
        await Identify(keys=Keys(record), pepper=b"q" * 32).authenticate(bearing(plaintext))


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Basic {key}",
        "{key}",
        "Bearer {key} x",
        "Bearer {key},Bearer {key}",
        "Bearer\t{key}",
        "Bearer {KEY}",
        "Bearer {key}=",
        "Bearer x{key}",
        "Bearer {key}\n",
    ],
)
async def test_only_the_bearer_header_with_the_exact_key_is_a_proof(header: str | None):
    record, plaintext = a_key()
    identify = Identify(keys=Keys(record), pepper=PEPPER, clock=Clock())
    text = None if header is None else header.format(key=plaintext, KEY=plaintext.upper())
    headers = {"x-api-key": plaintext} | ({} if text is None else {"authorization": text})
    with pytest.raises(Unauthenticated):
        await identify.authenticate(headers)


async def test_the_scheme_is_read_in_any_case():
    record, plaintext = a_key()
    identify = Identify(keys=Keys(record), pepper=PEPPER, clock=Clock())
    assert (await identify.authenticate({"authorization": f"bEaReR {plaintext}"})).key_id == record.id


@given(st.text(max_size=80), st.booleans())
def test_whatever_is_sent_is_refused_and_never_a_crash(text: str, scheme: bool):
    async def run() -> None:
        tokens = Tokens(JwtSettings(issuer=ISSUER, jwks="file:/nowhere", audience=AUDIENCE))
        identify = Identify(keys=Keys(), pepper=PEPPER, tokens=tokens)
        headers = {"authorization": f"Bearer {text}" if scheme else text}
        assert fingerprint(headers)
        with pytest.raises(Unauthenticated):
            await identify.authenticate(headers)

    anyio.run(run)


def test_the_pepper_is_made_once_for_this_user_alone(tmp_path: Path):
    path = tmp_path / "remit.pepper"
    pepper = load_pepper(path)
    assert len(pepper) == 32
    assert load_pepper(path) == pepper
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_servers_that_start_together_agree_on_the_pepper(tmp_path: Path):
    code = "import sys, pathlib, remit.identity as i; print(i.load_pepper(pathlib.Path(sys.argv[1])).hex())"
    path = str(tmp_path / "remit.pepper")
    children = [
        subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE) for _ in range(4)
    ]
    assert len({child.communicate(timeout=60)[0] for child in children}) == 1
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601, 0o777])
def test_a_pepper_that_others_may_touch_is_refused_with_the_fix(tmp_path: Path, mode: int):
    path = tmp_path / "remit.pepper"
    load_pepper(path)
    path.chmod(mode)
    with pytest.raises(SecretUnsafe, match="chmod 600"):
        load_pepper(path)


def test_a_pepper_that_is_a_link_or_cut_short_is_refused(tmp_path: Path):
    path = tmp_path / "remit.pepper"
    load_pepper(path)
    (tmp_path / "link").symlink_to(path)
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for name in ("link", "dangling", "missing/pepper"):
        with pytest.raises(SecretUnsafe, match="plain file"):
            load_pepper(tmp_path / name)
    path.write_bytes(b"short")
    with pytest.raises(SecretUnsafe, match="32 bytes"):
        load_pepper(path)


@pytest.mark.parametrize(
    ("key", "algorithm"), [(RSA, "RS256"), (RSA, "PS256"), (EC, "ES256"), (ED, "EdDSA")], ids=str
)
async def test_a_token_of_the_issuer_for_this_server_is_its_user_and_agent(
    settings: JwtSettings, key: Key, algorithm: str
):
    principal = await Tokens(settings, Clock()).principal(token(claims(), key, alg=algorithm))
    assert principal == Principal(
        tenant="acme",
        agent="agent:support-bot",
        user="user:alice",
        auth="jwt",
        key_id=str(key.kid),
        expires_at=NOW_S + 600,
        scopes=frozenset({"remit:call", "remit:read"}),
    )


def unsigned() -> str:
    return f"{part({'alg': 'none', 'typ': 'JWT'})}.{part(claims())}."


def hmac_with_the_public_key() -> str:
    pem = RSA.public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signed = f"{part({'alg': 'HS256', 'kid': 'rsa', 'typ': 'JWT'})}.{part(claims())}"
    return f"{signed}.{part(hmac.digest(pem, signed.encode(), 'sha256'))}"


def two_of(name: str, first: str, second: str) -> bytes:
    body = json.dumps(claims(**{name: ...}))
    return f'{{"{name}":"{first}",{body[1:-1]},"{name}":"{second}"}}'.encode()


def tampered() -> str:
    header, _, signature = token(claims()).split(".")
    return f"{header}.{part(claims(sub='root'))}.{signature}"


def with_two_algs() -> str:
    header = b'{"alg":"none","alg":"RS256","kid":"rsa"}'
    signed = f"{part(header)}.{part(claims())}"
    model = jws.JWSRegistry.algorithms["RS256"]
    return f"{signed}.{part(model.sign(signed.encode(), RSA))}"


def stretched() -> str:
    return token(claims()).replace(".", ".\n", 1)


@pytest.mark.parametrize(
    "forge",
    [
        unsigned,
        lambda: unsigned() + "AA",
        hmac_with_the_public_key,
        tampered,
        with_two_algs,
        stretched,
        lambda: token(claims(), STRANGER),
        lambda: token(claims(), STRANGER, jwk=STRANGER.as_dict(private=False)),
        lambda: token(claims(), alg="RS512"),
        lambda: token(claims(), alg="ES256"),
        lambda: token(claims(), alg="EdDSA", kid="rsa"),
        lambda: token(claims(), alg=...),
        lambda: token(claims(), alg=["RS256"]),
        lambda: token(claims(), kid=1),
        lambda: token(claims(), crit=["exp"], exp=1),
        lambda: token(claims(), b64=False, crit=["b64"]),
        lambda: token(claims(), typ="logout+jwt"),
        lambda: token(claims(), typ="dpop+jwt"),
        lambda: token(claims(), typ=1),
        lambda: token(two_of("sub", "alice", "root")),
        lambda: token(two_of("aud", AUDIENCE, AUDIENCE)),
        lambda: token(b"[]"),
        lambda: token(b"not json"),
        lambda: token(b"\xff"),
        lambda: token(b'{"exp":1e999}'),
        lambda: token(claims(padding="x" * 17_000)),
        lambda: token(claims()) + ".x.y",
        lambda: token(claims()).rpartition(".")[0] + ".",
        lambda: token(claims()).rpartition(".")[0],
        lambda: "a.b.c",
        lambda: "..",
    ],
)
async def test_a_token_that_is_not_genuine_is_refused_without_saying_why(
    settings: JwtSettings, forge: Callable[[], str]
):
    with pytest.raises(Unauthenticated, match=r"is not (valid|known)\.$"):
        await Tokens(settings, Clock()).principal(forge())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"iss": "https://evil.example.com"}, "another issuer"),
        ({"iss": ISSUER + "/"}, "another issuer"),
        ({"iss": ...}, "another issuer"),
        ({"iss": [ISSUER]}, "another issuer"),
        ({"aud": "https://other.example.com/mcp"}, "is not for"),
        ({"aud": AUDIENCE + "/x"}, "is not for"),
        ({"aud": ["https://other.example.com"]}, "is not for"),
        ({"aud": []}, "is not for"),
        ({"aud": {AUDIENCE: 1}}, "is not for"),
        ({"aud": ...}, "is not for"),
        ({"exp": ...}, "no exp claim"),
        ({"exp": "1900000000"}, "no exp claim"),
        ({"exp": True}, "no exp claim"),
        ({"exp": NOW_S}, "expired"),
        ({"exp": NOW_S - 1, "iat": NOW_S - 10}, "expired"),
        ({"exp": NOW_S + 3601}, "lives longer"),
        ({"exp": NOW_S + 3601, "iat": ...}, "lives longer"),
        ({"exp": NOW_S + 60, "iat": NOW_S - 3600}, "lives longer"),
        ({"iat": NOW_S + 61}, "not valid yet"),
        ({"iat": "now"}, "no iat claim"),
        ({"nbf": NOW_S + 61}, "not valid yet"),
        ({"nbf": None}, "no nbf claim"),
        ({"sub": ...}, "names nobody"),
        ({"sub": ""}, "names nobody"),
        ({"sub": 7}, "names nobody"),
        ({"sub": "auth0|7"}, "names nobody"),
        ({"sub": "al\u0456ce"}, "names nobody"),
        ({"client_id": ...}, "names nobody"),
        ({"client_id": "a b"}, "names nobody"),
        ({"client_id": None, "azp": "bot"}, "names nobody"),
        ({"act": {}}, "names nobody"),
        ({"act": "bot"}, "names nobody"),
        ({"tenant": ...}, "names nobody"),
        ({"tenant": "*"}, "names nobody"),
        ({"tenant": ["acme"]}, "names nobody"),
    ],
)
async def test_a_genuine_token_that_is_not_for_now_and_here_is_refused_with_the_reason(
    settings: JwtSettings, change: dict[str, Any], words: str
):
    with pytest.raises(Unauthenticated, match=words) as caught:
        await Tokens(settings, Clock()).principal(token(claims(**change)))
    assert not caught.value.guessed


@pytest.mark.parametrize(
    ("change", "header"),
    [
        ({"aud": ["https://other.example.com", AUDIENCE]}, {}),
        ({"iat": NOW_S + 60, "nbf": NOW_S + 60}, {}),
        ({"iat": ..., "exp": NOW_S + 3600}, {}),
        ({"exp": NOW_S + 0.5 + 60}, {}),
        ({}, {"typ": "JWT"}),
        ({}, {"typ": "application/at+jwt"}),
        ({}, {"typ": ...}),
        ({}, {"x5t": "abc", "vendor": 1}),
    ],
)
async def test_what_issuers_do_differently_within_the_rules_is_accepted(
    settings: JwtSettings, change: dict[str, Any], header: dict[str, Any]
):
    assert (await Tokens(settings, Clock()).principal(token(claims(**change), **header))).user == "user:alice"


@pytest.mark.parametrize(
    ("change", "agent"),
    [
        ({"azp": "other"}, "agent:support-bot"),
        ({"client_id": ..., "azp": "other"}, "agent:other"),
        ({"act": {"sub": "actor", "act": {"sub": "earlier"}}}, "agent:actor"),
    ],
)
async def test_the_agent_is_the_actor_or_else_the_client(
    settings: JwtSettings, change: dict[str, Any], agent: str
):
    assert (await Tokens(settings, Clock()).principal(token(claims(**change)))).agent == agent


async def test_tenant_user_run_and_scopes_are_read_where_the_settings_say(settings: JwtSettings):
    mapped = replace(settings, tenant_claim="org", tenant="fallback", user_claim="email", run_claim="task")
    payload = claims(
        org="acme2", email="alice@example.com", task="t-1", scope=..., scp=["a", "b"], **{"": "x"}
    )
    principal = await Tokens(mapped, Clock()).principal(token(payload))
    assert (principal.tenant, principal.user, principal.run) == ("acme2", "user:alice@example.com", "t-1")
    assert principal.scopes == {"a", "b"}
    plain = await Tokens(replace(settings, tenant="fallback"), Clock()).principal(
        token(claims(tenant=..., **{"": "x"}))
    )
    assert (plain.tenant, plain.run) == ("fallback", None)


async def test_keys_of_the_set_that_are_weak_or_meant_for_something_else_verify_nothing(
    settings: JwtSettings, tmp_path: Path
):
    with pytest.warns(match="2048"):
        weak = RSAKey.generate_key(1024, {"kid": "weak"})
    encryption = RSAKey.generate_key(2048, {"kid": "enc", "use": "enc"})
    other_use = RSAKey.generate_key(2048, {"kid": "ps", "alg": "PS256"})
    keys = jwks(weak, encryption, other_use)
    keys["keys"] += [
        {"kty": "oct", "kid": "oct", "k": "c2VjcmV0"},
        {"kty": "NEW", "kid": "new"},
        {"kty": []},
        "x",
        {},
    ]
    (tmp_path / "jwks.json").write_text(json.dumps(keys))
    tokens = Tokens(settings, Clock())
    for key in (weak, encryption, other_use):
        with pytest.raises(Unauthenticated):
            await tokens.principal(token(claims(), key))
    assert (await tokens.principal(token(claims(), other_use, alg="PS256"))).key_id == "ps"


async def test_a_token_may_leave_out_the_key_id_only_where_there_is_one_key(
    settings: JwtSettings, tmp_path: Path
):
    with pytest.raises(Unauthenticated, match="not known"):
        await Tokens(settings, Clock()).principal(token(claims(), kid=...))
    (tmp_path / "jwks.json").write_text(json.dumps(jwks(RSA)))
    assert (await Tokens(settings, Clock()).principal(token(claims(), kid=...))).key_id == ""


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"keys":{}}', '{"keys":[]}', '{"keys":[],"keys":[]}', '{"keys":[{"kty":"RSA"}]}'],
)
async def test_without_any_key_of_the_issuer_nobody_is_known_and_it_is_not_the_callers_fault(
    settings: JwtSettings, tmp_path: Path, text: str
):
    (tmp_path / "jwks.json").write_text(text)
    with pytest.raises(IdentityUnavailable, match="check identity"):
        await Tokens(settings, Clock()).principal(token(claims()))


@pytest.mark.parametrize(
    "url",
    [
        "http://id.example.com/jwks",
        "http://127.0.0.1.evil.com/jwks",
        "ftp://x/jwks",
        "jwks.json",
        "file:",
        "file://host/x",
        "https:///x",
    ],
)
def test_keys_come_only_from_a_file_or_over_tls(url: str):
    with pytest.raises(ValueError, match="jwks must be"):
        JwtSettings(issuer=ISSUER, jwks=url, audience=AUDIENCE)


class Issuer:
    """A JWKS endpoint that counts how often it is asked; `/elsewhere` has the keys too."""

    def __init__(self, *keys: Key) -> None:
        self.keys = keys
        self.asked = 0
        self.status = 200
        self.body: bytes | None = None

    async def serve(self, request: web.Request) -> web.Response:
        if request.path == "/jwks":
            self.asked += 1
            if self.status != 200 or self.body is not None:
                return web.Response(status=self.status, body=self.body, headers={"location": "/elsewhere"})
        return web.json_response(jwks(*self.keys))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[JwtSettings]:
        app = web.Application()
        app.router.add_get("/{path}", self.serve)
        runner = web.AppRunner(app)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            port = runner.addresses[0][1]
            yield JwtSettings(issuer=ISSUER, jwks=f"http://127.0.0.1:{port}/jwks", audience=AUDIENCE)
        finally:
            await runner.cleanup()


async def test_keys_are_fetched_once_and_again_after_ten_minutes():
    issuer, clock = Issuer(RSA), Clock()
    async with issuer.running() as settings:
        tokens = Tokens(settings, clock)
        for _ in range(5):
            await tokens.principal(token(claims()))
        assert issuer.asked == 1
        clock.at_s += 599
        await tokens.principal(token(claims(exp=NOW_S + 900)))
        assert issuer.asked == 1
        clock.at_s += 1
        await tokens.principal(token(claims(exp=NOW_S + 900)))
        assert issuer.asked == 2


async def test_a_new_key_is_found_but_unknown_ones_are_asked_for_once_a_minute_at_most():
    issuer, clock = Issuer(RSA), Clock()
    new = RSAKey.generate_key(2048, {"kid": "new"})
    async with issuer.running() as settings:
        tokens = Tokens(settings, clock)
        await tokens.principal(token(claims()))
        issuer.keys = (RSA, new)
        for number in range(20):
            with pytest.raises(Unauthenticated, match="not known"):
                await tokens.principal(token(claims(), kid=f"guess-{number}"))
        assert issuer.asked == 1
        clock.at_s += 60
        assert (await tokens.principal(token(claims(), new))).key_id == "new"
        assert issuer.asked == 2


async def test_an_issuer_that_is_away_for_a_while_locks_nobody_out_and_for_long_everybody():
    issuer, clock = Issuer(RSA), Clock()
    async with issuer.running() as settings:
        tokens = Tokens(replace(settings, lifetime_s_max=10_000), clock)
        await tokens.principal(token(claims()))
        issuer.status = 500
        clock.at_s += 3599
        await tokens.principal(token(claims(exp=NOW_S + 9_000)))
        clock.at_s += 6
        with pytest.raises(IdentityUnavailable):
            await tokens.principal(token(claims(exp=NOW_S + 9_000)))
        issuer.status = 200
        clock.at_s += 5
        await tokens.principal(token(claims(exp=NOW_S + 9_000)))


@pytest.mark.parametrize(
    ("status", "body"),
    [(302, b""), (307, b""), (404, b""), (200, b"x" * 300_000), (200, b"<html>"), (200, b'{"keys":[]}')],
)
async def test_an_answer_that_is_not_a_key_set_from_the_pinned_address_is_not_followed(
    status: int, body: bytes
):
    issuer = Issuer(RSA)
    issuer.status, issuer.body = status, body
    async with issuer.running() as settings:
        with pytest.raises(IdentityUnavailable):
            await Tokens(settings, Clock()).principal(token(claims()))
    assert issuer.asked == 1


async def test_keys_and_tokens_are_told_apart_by_their_form(settings: JwtSettings):
    record, plaintext = a_key()
    identify = Identify(keys=Keys(record), pepper=PEPPER, tokens=Tokens(settings, Clock()), clock=Clock())
    assert (await identify.authenticate(bearing(plaintext))).auth == "api_key"
    assert (await identify.authenticate(bearing(token(claims())))).auth == "jwt"
    with pytest.raises(Unauthenticated, match="credential is not valid"):
        await identify.authenticate(bearing("rk_short_x"))


async def test_without_an_issuer_tokens_are_refused(settings: JwtSettings):
    with pytest.raises(Unauthenticated, match="credential is not valid"):
        await Identify(keys=Keys(), pepper=PEPPER).authenticate(bearing(token(claims())))


def test_a_fingerprint_tells_credentials_apart_and_holds_no_secret():
    record, plaintext = a_key()
    assert fingerprint(bearing(plaintext)) == record.id
    a, b = fingerprint(bearing(token(claims()))), fingerprint(bearing(token(claims(sub="bob"))))
    assert a != b
    assert len(a) == 64


def test_stdio_starts_without_the_libraries_that_only_tokens_need():
    code = (
        "import sys, remit.identity; "
        "print([m for m in ('joserfc', 'cryptography', 'aiohttp', 'starlette', 'mcp') if m in sys.modules])"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert found.stdout.strip() == "[]", found.stderr
