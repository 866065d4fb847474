"""TLS at the listener: certificate and key, and the authority that callers' certificates must come from (mTLS)."""

import contextlib
import logging
import ssl
import time
from dataclasses import dataclass
from pathlib import Path

from deepseek_gateway.errors import ConfigurationError

logger = logging.getLogger(__name__)

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""For TLS 1.2: forward secrecy and authenticated encryption only. TLS 1.3 has nothing else."""


RENEW_S = 14 * 86400.0
"""How long before its end a certificate is spoken of. ACME clients renew theirs 30 days before."""

TELL_EVERY_S = 10.0


class _Failures:
    """Handshakes that failed, told of once in a while: whoever scans ports makes thousands."""

    def __init__(self) -> None:
        self._told_s, self._untold = float("-inf"), 0

    def note(self, error: ssl.SSLError) -> None:
        now = time.monotonic()
        if now - self._told_s < TELL_EVERY_S:
            self._untold += 1
            return
        more = f" ({self._untold} more since the last such line)" if self._untold else ""
        logger.warning("TLS: a caller did not get in: %s%s", _why(error), more)
        self._told_s, self._untold = now, 0


_failures = _Failures()


class TellingConnection(ssl.SSLObject):
    """One handshake, whose failure is told to the caller and to the log.

    asyncio and uvloop drop a connection at such a failure without sending what OpenSSL has to say: its caller sees an
    end without a reason. Here they hear first that more must come, so that the alert goes out; then they get the error.
    """

    _error: ssl.SSLError | None = None

    def do_handshake(self) -> None:
        """Go on with the handshake."""
        if self._error is not None:
            raise self._error
        try:
            super().do_handshake()
        except ssl.SSLWantReadError:
            raise
        except ssl.SSLError as error:
            self._error = error
            _failures.note(error)
            raise ssl.SSLWantReadError from None


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files. `client_ca` None asks callers for no certificate."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def load(self) -> ssl.SSLContext:
        """A context of what the files hold now.

        Raises:
            ConfigurationError: a file is missing or holds something else, or the two do not match.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.sslobject_class = TellingConnection
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(CIPHERS)
        context.set_alpn_protocols(["http/1.1"])
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
        try:
            # An encrypted key would make OpenSSL ask on the terminal: an empty password fails instead.
            context.load_cert_chain(self.certificate, self.key, password="")
        except (OSError, ssl.SSLError) as error:
            message = f"TLS: {self.certificate} and {self.key} cannot be used: {_reason(error)}"
            raise ConfigurationError(message) from error
        if self.client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            try:
                context.load_verify_locations(self.client_ca)
            except (OSError, ssl.SSLError) as error:
                raise ConfigurationError(f"TLS: {self.client_ca} cannot be used: {_reason(error)}") from error
        return context

    def warning(self, now: float) -> str | None:
        """What to do about the certificate's end, if it is near or past. Callers see what this asks for."""
        server, asking = self.load(), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        server.sslobject_class, server.verify_mode, asking.check_hostname = ssl.SSLObject, ssl.CERT_NONE, False
        asking.verify_flags |= (
            ssl.VERIFY_X509_PARTIAL_CHAIN
        )  # the certificate vouches for itself: its dates are asked for
        asking.load_verify_locations(self.certificate)
        try:
            ends = ssl.cert_time_to_seconds(str(_shown_by(server, asking)["notAfter"]))
        except ssl.SSLCertVerificationError as error:
            return f"TLS: callers will not take {self.certificate}: {error.verify_message}"
        except ssl.SSLError as error:
            return f"TLS: callers will not get on with {self.certificate}: {_why(error)}"
        if ends - now > RENEW_S:
            return None
        return f"TLS: {self.certificate} ends in {max(0, ends - now) / 86400:.1f} days: renew it, and send SIGHUP"


def _shown_by(server: ssl.SSLContext, asking: ssl.SSLContext) -> dict[str, object]:
    """The certificate that a server shows, by a handshake in memory.

    Raises:
        ssl.SSLError: it is not valid now, or cannot be shown.
    """
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = asking.wrap_bio(back, there), server.wrap_bio(there, back, server_side=True)
    for _ in range(4):
        for end in ends:
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
        found = ends[0].getpeercert() if ends[0].version() else None
        if found:
            return dict(found)
    raise AssertionError("a handshake in memory does not end")


def tls_files(certificate: Path | None, key: Path | None, client_ca: Path | None) -> TlsFiles | None:
    """What the settings name; None is plain HTTP.

    Raises:
        ConfigurationError: half of it is missing.
    """
    if certificate is not None and key is not None:
        return TlsFiles(certificate, key, client_ca)
    if certificate is None and key is None and client_ca is None:
        return None
    raise ConfigurationError(
        "TLS needs both a certificate and its key: set GATEWAY_TLS_CERTIFICATE and GATEWAY_TLS_KEY"
    )


def _why(error: ssl.SSLError) -> str:
    """OpenSSL's reason in words: `peer did not return a certificate`, `certificate verify failed: …`."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not good: {error.verify_message}"
    return (error.reason or str(error)).replace("_", " ").lower()


def _reason(error: OSError) -> str:
    return error.strerror or getattr(error, "reason", None) or str(error) or type(error).__name__
