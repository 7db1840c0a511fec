"""Timestamps of checkpoints (RFC 3161): an authority's word that the log stood so at a time.

Each is a pair of files, the checkpoint and the authority's answer to it, in a folder that had better be
elsewhere; any tool for RFC 3161 verifies the one against the other. An answer is verified before it is kept.
Needs the `timestamps` extra.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio.to_thread

from remit.errors import RemitError
from remit.files import put_whole
from remit.outside import asking

if TYPE_CHECKING:
    from remit.config import Timestamp

_TIMEOUT_S = 10
_ANSWER_BYTES_MAX = 65536
_QUERY = {"content-type": "application/timestamp-query"}


class NotStamped(RemitError):
    """The authority gave no timestamp, or none that can be relied on; `str()` says why."""


async def stamp(note: str, size: int, by: Timestamp) -> None:
    """Have the checkpoint of this size stamped, and keep both. Raises NotStamped, OSError, TimeoutError."""
    answer = await _answer(note.encode(), by)
    await anyio.to_thread.run_sync(put_whole, by.folder / f"{size}.checkpoint", note.encode())
    await anyio.to_thread.run_sync(put_whole, by.folder / f"{size}.tsr", answer)


async def _answer(note: bytes, by: Timestamp) -> bytes:
    try:
        import rfc3161_client as rfc3161
    except ModuleNotFoundError:
        raise NotStamped("timestamps need the timestamps extra: pip install 'remit[timestamps]'") from None
    from cryptography.x509 import load_pem_x509_certificates

    try:
        roots = load_pem_x509_certificates(await anyio.to_thread.run_sync(by.roots.read_bytes))
    except ValueError:
        raise NotStamped(f"{by.roots} cannot be read as certificates in PEM") from None
    request = rfc3161.TimestampRequestBuilder().data(note).build()
    async with (
        asking(NotStamped, timeout_s=_TIMEOUT_S) as client,
        client.stream("POST", by.url, content=request.as_bytes(), headers=_QUERY) as response,
    ):
        answer = b""
        async for chunk in response.aiter_bytes():
            answer += chunk
            if len(answer) > _ANSWER_BYTES_MAX:
                raise NotStamped("its answer is too long")
    if response.status_code != 200:
        raise NotStamped(f"it answered {response.status_code}")
    verifier = rfc3161.VerifierBuilder.from_request(request)
    for root in roots:
        verifier = verifier.add_root_certificate(root)
    try:
        verifier.build().verify_message(rfc3161.decode_timestamp_response(answer), note)
    except (rfc3161.VerificationError, ValueError) as error:
        raise NotStamped(f"its answer cannot be relied on: {error}") from None
    return answer
