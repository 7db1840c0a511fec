"""The key of a witness, and what it signs, as c2sp.org/tlog-cosignature has it."""

from __future__ import annotations

import hashlib
import struct
from base64 import b64decode, b64encode

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

#: When it signs: 2033-05-18 03:33:20 UTC.
AT_S = 2_000_000_000


class WitnessKey:
    def __init__(self, kind: int = 4, name: str = "witness.example/w", seed: bytes = bytes(32)) -> None:
        self.kind, self.name = kind, name
        private = Ed25519PrivateKey.from_private_bytes if kind == 4 else MLDSA44PrivateKey.from_seed_bytes
        self._private = private(seed)
        material = bytes([kind]) + self._private.public_key().public_bytes_raw()
        self._id = hashlib.sha256(name.encode() + b"\n" + material).digest()[:4]
        self.key = f"{name}+{self._id.hex()}+{b64encode(material).decode()}"

    def line(self, text: str, at_s: int = AT_S) -> str:
        """Its signature line for the text of a checkpoint."""
        if self.kind == 4:
            message = f"cosignature/v1\ntime {at_s}\n{text}".encode()
        else:
            origin, size, root = text.split("\n")[:3]
            message = b"subtree/v1\n\0"
            message += struct.pack(f">B{len(self.name)}sQ", len(self.name), self.name.encode(), at_s)
            message += struct.pack(f">B{len(origin)}sQQ", len(origin), origin.encode(), 0, int(size))
            message += b64decode(root)
        signed = self._id + struct.pack(">Q", at_s) + self._private.sign(message)
        return f"\N{EM DASH} {self.name} {b64encode(signed).decode()}\n"
