"""TLS of commands that ask a gateway over HTTP: whom to believe, and who we are."""

import argparse
import ssl
from pathlib import Path

from deepseek_gateway.errors import ConfigurationError


def add_tls_flags(parser: argparse.ArgumentParser) -> None:
    """`--ca`, `--cert` and `--key`."""
    parser.add_argument("--ca", type=Path, metavar="FILE", help="authority of the gateway's certificate, as PEM")
    parser.add_argument(
        "--cert", type=Path, metavar="FILE", help="our certificate, where the gateway asks for one (mTLS)"
    )
    parser.add_argument("--key", type=Path, metavar="FILE", help="its key, if the certificate's file does not hold it")


def tls_context(url: str, parsed: argparse.Namespace) -> ssl.SSLContext | None:
    """What the flags say; None for plain HTTP.

    Raises:
        ConfigurationError: a file is missing or holds something else, or the flags do not go together.
    """
    given = [f"--{name}" for name in ("ca", "cert", "key") if getattr(parsed, name) is not None]
    if not url.startswith("https://"):
        if given:
            raise ConfigurationError(f"{' and '.join(given)} need an https:// URL, not {url}")
        return None
    if parsed.key is not None and parsed.cert is None:
        raise ConfigurationError("--key is of the certificate in --cert, which is missing")
    try:
        context = ssl.create_default_context(cafile=parsed.ca)
        if parsed.cert is not None:
            # An encrypted key would make OpenSSL ask on the terminal: an empty password fails instead.
            context.load_cert_chain(parsed.cert, parsed.key, password="")
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or getattr(error, "reason", None) or type(error).__name__
        raise ConfigurationError(f"{' and '.join(given)} cannot be used: {reason}") from error
    return context
