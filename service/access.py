"""Access control: bearer tokens for requests, and admin tokens for loading and unloading models.

A token is looked up by its SHA-256 and compared in constant time, so that timing does not reveal how much of a guess is
right. Tokens never appear in a log, an error or a repr.
"""

import hashlib
import hmac
import re
from pathlib import Path
from typing import Literal

from pydantic import SecretStr

from fold.errors import BnfoldError
from service.errors import ForbiddenError, UnauthorizedError
from service.headers import Headers
from service.settings import Settings

OPEN_PATHS = frozenset({"/v2/health/live", "/v2/health/ready"})
"""Load balancers and container engines ask these paths, and have no token."""
PAGE_FILES = "/static/"
"""The script and style of the page, which asks for a token. They hold no data."""

Kind = Literal["user", "admin"]


class Access:
    def __init__(self, settings: Settings) -> None:
        """Reads the token files. Raises `BnfoldError` for a file that cannot be read or holds no token: a service that
        should be guarded must not start open."""
        users = _tokens("tokens", settings.tokens, settings.tokens_file)
        admins = _tokens("admin_token", settings.admin_token, settings.admin_token_file)
        self._known: dict[bytes, tuple[bytes, Kind]] = {}
        self._known |= {_digest(token): (token, "user") for token in users}
        self._known |= {_digest(token): (token, "admin") for token in admins}
        self.guarded = bool(users)
        """Whether all paths but the open ones need a token."""
        self._has_admin = bool(admins)
        self._open = OPEN_PATHS if settings.metrics_need_token else OPEN_PATHS | {"/metrics"}

    def __str__(self) -> str:
        """Who has access, for the log."""
        if not self.guarded:
            return "open: whoever reaches the port may send requests; set BNFOLD_TOKENS to require a token"
        return f"by token, except for {', '.join(sorted(self._open))}"

    def check(self, path: str, headers: Headers) -> None:
        """Raises `UnauthorizedError` if the path needs a token and the request brings none that is known."""
        if self.guarded and path not in self._open and not path.startswith(PAGE_FILES):
            self._kind(headers)

    def check_token(self, headers: Headers) -> None:
        """The same, for paths that are never open."""
        if self.guarded:
            self._kind(headers)

    def check_admin(self, headers: Headers) -> None:
        """Raises `UnauthorizedError` without a known token; `ForbiddenError` if the token is not an admin's, or if no
        admin token is configured."""
        if not self._has_admin:
            raise ForbiddenError("load and unload are off: no admin token is set; set BNFOLD_ADMIN_TOKEN")
        if self._kind(headers) != "admin":
            raise ForbiddenError("this token is not an admin's; load and unload need one of BNFOLD_ADMIN_TOKEN")

    def _kind(self, headers: Headers) -> Kind:
        given = next((value for name, value in headers if name == b"authorization"), b"")
        scheme, _, token = given.partition(b" ")
        if scheme.lower() != b"bearer":
            raise UnauthorizedError("a token is needed here; expected the header Authorization: Bearer TOKEN")
        token = token.strip()
        known = self._known.get(_digest(token))
        if known is None or not hmac.compare_digest(known[0], token):
            raise UnauthorizedError("the token is not known here")
        return known[1]


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def _tokens(name: str, given: SecretStr | None, file: Path | None) -> list[bytes]:
    texts = []
    if given is not None:
        texts.append((f"{name} (or BNFOLD_{name.upper()})", given.get_secret_value()))
    if file is not None:
        try:
            texts.append((str(file), file.read_text("ascii")))
        except OSError as error:
            raise BnfoldError(f"{file}: cannot be read ({error.strerror}); expected a file of tokens") from error
        except UnicodeDecodeError:
            raise BnfoldError(f"{file}: is not ASCII; expected a file of tokens") from None
    found = []
    for source, text in texts:
        tokens = text.replace(",", " ").split()
        if not tokens:
            raise BnfoldError(f"{source}: holds no token; expected at least one")
        if not all(re.fullmatch(r"[!-~]+", token) for token in tokens):
            raise BnfoldError(f"{source}: a token holds what no header can; expected printable ASCII without spaces")
        found += [token.encode() for token in tokens]
    return found
