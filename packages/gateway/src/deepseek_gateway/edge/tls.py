"""TLS at the listener: certificate and key, and the authority that callers' certificates must come from (mTLS)."""

import ssl
from dataclasses import dataclass
from pathlib import Path

from deepseek_gateway.errors import ConfigurationError

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""For TLS 1.2: forward secrecy and authenticated encryption only. TLS 1.3 has nothing else."""


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


def _reason(error: OSError) -> str:
    return error.strerror or getattr(error, "reason", None) or str(error) or type(error).__name__
