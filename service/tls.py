"""The certificate of HTTPS and gRPC: read at the start, and again when its files have changed.

Certificates are renewed every few weeks, and a restart for each would be a stop for nothing. Connections that are open
keep what they began with; new ones get the new certificate.
"""

import logging
import ssl
from pathlib import Path
from typing import Any

from fold.errors import BnfoldError
from service.settings import Settings

LOOK_SECONDS = 5.0
"""Between two looks at the dates of the files."""

log = logging.getLogger("bnfold")

Stamp = tuple[object, ...]


class Certificate:
    """A certificate chain and its key, in PEM. Only one thread at a time calls `renew`."""

    def __init__(self, chain: Path, key: Path) -> None:
        """Raises `BnfoldError` if the files are no such pair."""
        self._files = (chain, key)
        self._loaded = self._seen = self._stamp()
        self.context, self.pem = self._read()
        """For the port, and the bytes of the key and of the chain. Each handshake gets the certificate of its time."""
        self._serving = self.context
        self.context.sni_callback = self._answer

    @classmethod
    def of(cls, settings: Settings) -> "Certificate | None":
        """Raises `BnfoldError` if only one of the files is given, or if they are no pair."""
        chain, key = settings.tls_certificate, settings.tls_key
        if chain is None and key is None:
            return None
        if chain is None or key is None:
            raise BnfoldError("settings: tls_certificate and tls_key go together; expected both or neither")
        return cls(chain, key)

    def renew(self, *, at_once: bool = False) -> None:
        """Take over what is in the files now, if they have changed and then rested since the last look. `at_once`
        reads them in any case. A pair that does not fit is told once, and the one before serves on."""
        stamp = self._stamp()
        rested, self._seen = stamp == self._seen, stamp
        if not at_once and (stamp == self._loaded or not rested):
            return
        self._loaded = stamp
        try:
            context, pem = self._read()
        except BnfoldError as error:
            log.warning("bnfold: %s; the certificate from before serves on", error)
            return
        if pem != self.pem:
            self._serving, self.pem = context, pem
            log.info("bnfold: TLS: %s was renewed", self._files[0])

    def _read(self) -> tuple[ssl.SSLContext, tuple[bytes, bytes]]:
        """A context with the pair, and the bytes of the key and of the chain."""
        chain, key = self._files
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(chain, key, _no_password)
            return context, (key.read_bytes(), chain.read_bytes())
        except (OSError, ValueError) as error:  # ssl's errors are of the system's class
            reason = getattr(error, "strerror", None) or error
            pair = f"{chain} and {key} are no certificate chain with its key, in PEM"
            raise BnfoldError(f"TLS: {pair}: {reason}") from error

    def _answer(self, connection: Any, name: str | None, context: ssl.SSLContext) -> None:
        """Called by OpenSSL in each handshake, with or without a name of the server."""
        connection.context = self._serving

    def _stamp(self) -> Stamp:
        return tuple(_stamp(file) for file in self._files)


def _stamp(file: Path) -> object:
    try:
        found = file.stat()
    except OSError as error:
        return error.errno
    return found.st_ino, found.st_size, found.st_mtime_ns


def _no_password() -> str:
    """In place of OpenSSL's question on the terminal."""
    raise ValueError("the key is encrypted; expected one without a password")
