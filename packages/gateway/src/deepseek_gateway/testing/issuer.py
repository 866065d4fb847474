"""An OpenID Connect issuer for tests of sign-ins; it needs `pyjwt[crypto]`."""

import base64
import hashlib
import json
import time
from typing import Any
from urllib.parse import parse_qsl

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm
from starlette.types import Receive, Scope, Send

from deepseek_gateway.edge.body import read_body
from deepseek_gateway.edge.respond import send_body

KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
MAX_FORM_BYTES = 10_000


class Issuer:
    """An OpenID Connect issuer that checks what a real one checks, and lies where a test wants it to."""

    def __init__(self) -> None:
        self.url = ""
        self.claims: dict[str, Any] = {"sub": "u-1", "preferred_username": "ada", "groups": ["staff", "ops"]}
        self.key: Any = KEY
        self.algorithm, self.kid = "RS256", "k1"
        self.asked: dict[str, str] = {}
        self.codes: dict[str, dict[str, str]] = {}
        self.authorizations: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        path = scope["path"]
        if path == "/.well-known/openid-configuration":
            names = {"authorization_endpoint": "authorize", "token_endpoint": "token", "jwks_uri": "keys"}
            answer: dict[str, Any] = {"issuer": self.url, **{name: f"{self.url}/{end}" for name, end in names.items()}}
        elif path == "/keys":
            public = json.loads(RSAAlgorithm.to_jwk(KEY.public_key()))
            answer = {"keys": [{**public, "kid": "k1", "use": "sig", "alg": "RS256"}]}
        elif path == "/authorize":
            self.asked = dict(parse_qsl(scope["query_string"].decode()))
            self.codes["code-1"] = self.asked
            target = f"{self.asked['redirect_uri']}?code=code-1&state={self.asked['state']}"
            await send_body(send, 302, b"", headers={"location": target})
            return
        else:
            form = dict(parse_qsl((await read_body(scope, receive, MAX_FORM_BYTES, 5)).decode()))
            self.authorizations += [value.decode() for name, value in scope["headers"] if name == b"authorization"]
            answer = self._token(form)
        await send_body(send, 400 if "error" in answer else 200, json.dumps(answer).encode())

    def _token(self, form: dict[str, str]) -> dict[str, Any]:
        asked = self.codes.pop(form["code"], None)
        digest = hashlib.sha256(form["code_verifier"].encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        if asked is None or challenge != asked["code_challenge"] or form["redirect_uri"] != asked["redirect_uri"]:
            return {"error": "invalid_grant"}
        now = int(time.time())
        claims = {"iss": self.url, "aud": "gw", "iat": now, "exp": now + 300, "nonce": asked["nonce"], **self.claims}
        token = jwt.encode(claims, self.key, self.algorithm, {"kid": self.kid})
        return {"access_token": "a", "token_type": "Bearer", "id_token": token}
