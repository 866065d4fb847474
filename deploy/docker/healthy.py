"""The health check of the gateway's image: ends with 0 if the gateway of this container answers.

It imports nothing of the gateway, because it runs every few seconds.
"""

import http.client
import os
import socket
import ssl
import sys

TIMEOUT_S = 2.0


def answers_http(port: int) -> bool:
    """Whether `/health` says 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def answers_tls(port: int) -> bool:
    """Whether a handshake succeeds: more is not to be had where callers need a certificate."""
    context = ssl._create_unverified_context()  # noqa: S323, SLF001 - the certificate is for another name than 127.0.0.1
    try:
        with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as plain, context.wrap_socket(plain):
            return True
    except OSError:
        return False


if __name__ == "__main__":
    number = int(os.environ.get("GATEWAY_PORT", "8080"))
    # The configuration's file, which is not read here, may name a certificate as well.
    has_certificate = "GATEWAY_TLS_CERTIFICATE" in os.environ
    sys.exit(not ((not has_certificate and answers_http(number)) or answers_tls(number)))
