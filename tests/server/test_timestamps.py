"""Checkpoints are stamped with the time by a real RFC 3161 authority; what is not its word is not kept."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio.to_thread
import pytest
from aiohttp import web
from tests.server.builders import Clock, a_database, a_remit

from remit.anchors import Anchored, seal_and_anchor
from remit.config import Anchor

pytest.importorskip("rfc3161_client")
if shutil.which("openssl") is None:
    pytest.skip("openssl is the authority here", allow_module_level=True)

#: Each test runs on SQLite, and on PostgreSQL.
pytestmark = pytest.mark.usefixtures("every_database")
CONFIG = """\
[tsa]
default_tsa = it
[it]
serial = serial
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256, sha384, sha512
ess_cert_id_alg = sha256
"""
NEW_ROOT = "req -x509 -newkey rsa:2048 -noenc -keyout root.key -out root.pem -days 9 -subj /CN=root"
NEW_TSA = "req -newkey rsa:2048 -noenc -keyout tsa.key -out tsa.csr -subj /CN=tsa"
SIGNED = "x509 -req -in tsa.csr -CA root.pem -CAkey root.key -out tsa.pem -days 9 -extfile usage"
REPLY = "ts -reply -config tsa.cnf -queryfile query -signer tsa.pem -inkey tsa.key -out reply"


def openssl(folder: Path, words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["openssl", *words.split()], cwd=folder, capture_output=True, check=True, timeout=60
    )


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The keys and certificates of an authority."""
    folder = tmp_path_factory.mktemp("tsa")
    (folder / "tsa.cnf").write_text(CONFIG)
    (folder / "serial").write_text("01\n")
    (folder / "usage").write_text("extendedKeyUsage = critical, timeStamping\n")
    for words in (NEW_ROOT, NEW_TSA, SIGNED):
        openssl(folder, words)
    return folder


@asynccontextmanager
async def answering(authority: Path, *, instead: bytes | None = None) -> AsyncGenerator[str]:
    """The authority over HTTP; or one that answers something else."""

    async def reply(request: web.Request) -> web.Response:
        assert request.content_type == "application/timestamp-query"
        if instead is not None:
            return web.Response(body=instead)
        (authority / "query").write_bytes(await request.read())
        await anyio.to_thread.run_sync(openssl, authority, REPLY)
        return web.Response(body=(authority / "reply").read_bytes())

    app = web.Application()
    app.router.add_post("/tsr", reply)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/tsr"
    finally:
        await runner.cleanup()


async def stamped(folder: Path, url: str, roots: Path, clock: Clock) -> Anchored:
    """Have what is on record sealed, and the checkpoint stamped."""
    stamps = folder / "stamps"
    stamps.mkdir(exist_ok=True)
    timestamp = {"url": url, "roots": roots, "folder": stamps, "every": "1h"}
    async with a_remit(folder, clock=clock) as remit:
        await remit.done("shop.look", {"thing": "pen"})
        anchor = Anchor.model_validate({"timestamp": timestamp})
        _, (anchored,) = await seal_and_anchor(remit.path, [anchor], clock=clock)
    return anchored


async def test_a_checkpoint_is_stamped_and_anybody_can_verify_when(tmp_path: Path, authority: Path) -> None:
    a_database(tmp_path)
    roots, clock = authority / "root.pem", Clock()
    async with answering(authority) as url:
        first = await stamped(tmp_path, url, roots, clock)
        assert first.error is None
        # Not before its time again.
        assert (await stamped(tmp_path, url, roots, clock)).size == first.size
        clock.advance(s=3600)
        second = await stamped(tmp_path, url, roots, clock)
        assert second.size > first.size
    files = {f"{each.size}.{kind}" for each in (first, second) for kind in ("checkpoint", "tsr")}
    assert {file.name for file in (tmp_path / "stamps").iterdir()} == files
    told = openssl(
        tmp_path / "stamps",
        f"ts -verify -in {first.size}.tsr -data {first.size}.checkpoint -CAfile {roots}",
    )
    assert b"Verification: OK" in told.stdout + told.stderr


async def test_an_answer_that_cannot_be_relied_on_is_not_kept(tmp_path: Path, authority: Path) -> None:
    a_database(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    openssl(other, NEW_ROOT)
    clock = Clock()
    async with answering(authority) as url:
        refused = [await stamped(tmp_path, url, other / "root.pem", clock)]
    async with answering(authority, instead=b"no") as url:
        refused.append(await stamped(tmp_path, url, authority / "root.pem", clock))
        replayed = (authority / "reply").read_bytes()
    async with answering(authority, instead=replayed) as url:
        refused.append(await stamped(tmp_path, url, authority / "root.pem", clock))
    refused.append(await stamped(tmp_path, url, authority / "root.pem", clock))  # it is gone
    (other / "damaged.pem").write_text("-----BEGIN CERTIFICATE-----\n")
    refused.append(await stamped(tmp_path, url, other / "damaged.pem", clock))
    assert all(each.size == 0 for each in refused)
    said = [str(each.error) for each in refused]
    assert all("cannot be relied on" in error for error in said[:3]), said
    assert "cannot be reached" in said[3]
    assert "damaged.pem cannot be read as certificates in PEM" in said[4]
    assert list((tmp_path / "stamps").iterdir()) == []
