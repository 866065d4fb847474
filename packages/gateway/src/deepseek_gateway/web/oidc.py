"""Sign in with OpenID Connect: authorization code with PKCE, at one configured issuer (extra `oidc`).

The gateway asks only addresses that the issuer's own discovery document names, and believes an ID token only with the
issuer's signature by an asymmetric algorithm, for this client, within its time, and with the nonce of this sign-in.
Source: OpenID Connect Core 1.0, RFC 7636 (PKCE), RFC 9207 (issuer in the response).
"""

import asyncio
import base64
import hashlib
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote, urlencode, urlsplit

import orjson
from pydantic import SecretStr

from deepseek_gateway.errors import ConfigurationError, GatewayError, UpstreamError
from deepseek_gateway.settings import Settings
from deepseek_gateway.upstream.address import UpstreamAddress
from deepseek_gateway.upstream.client import UpstreamClient
from deepseek_gateway.web.records import OIDC_PREFIX, Role

if TYPE_CHECKING:
    import jwt

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA")
TIMEOUT_S = 10.0
KEEP_S = 3600.0
REFETCH_S = 10.0
"""Seconds between looks for a signing key that is not among those that are known."""

LEEWAY_S = 60
MAX_ANSWER_BYTES = 2**20
MAX_NAME, MAX_SUBJECT = 60, 255


class OidcError(GatewayError):
    """A sign-in that came to nothing; the message is for the log, and holds no token."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """What one sign-in must come back with."""

    state: str
    nonce: str
    verifier: str

    @classmethod
    def begin(cls) -> "Attempt":
        """A fresh one."""
        return cls(secrets.token_urlsafe(24), secrets.token_urlsafe(24), secrets.token_urlsafe(48))

    @property
    def challenge(self) -> str:
        """What the issuer sees of the verifier."""
        digest = hashlib.sha256(self.verifier.encode()).digest()
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


@dataclass(frozen=True, slots=True)
class Person:
    """Who came back: a name for sessions and the audit log, and a role, or None."""

    name: str
    role: Role | None


@dataclass(frozen=True, slots=True)
class OidcConfig:
    """The client, and which values of a claim have which role."""

    issuer: str
    client_id: str
    client_secret: SecretStr | None
    scopes: str
    role_claim: str
    admins: frozenset[str]
    viewers: frozenset[str]

    def role_of(self, claims: Mapping[str, Any]) -> Role | None:
        """The role that a person's claims give; none where no value is mapped."""
        value: Any = claims
        for part in self.role_claim.split("."):  # Keycloak nests: realm_access.roles
            value = cast("Mapping[str, Any]", value).get(part) if isinstance(value, dict) else None
        values = {str(one) for one in cast("list[Any]", value)} if isinstance(value, list) else {str(value)}
        if values & self.admins:
            return Role.ADMIN
        return Role.VIEWER if values & self.viewers else None


def oidc_config(settings: Settings) -> OidcConfig | None:
    """The configured issuer, if there is one.

    Raises:
        ConfigurationError: a part is missing.
    """
    if not settings.oidc_issuer:
        return None
    if not settings.oidc_client_id:
        raise ConfigurationError("oidc_issuer is set, and oidc_client_id is not: who are we to the issuer?")
    if not settings.oidc_admins and not settings.oidc_viewers:
        raise ConfigurationError("oidc_issuer is set, and neither oidc_admins nor oidc_viewers: nobody could sign in")
    if not _is_safe(settings.oidc_issuer):
        raise ConfigurationError(f"oidc_issuer={settings.oidc_issuer!r} is no https URL")
    _jwt()
    return OidcConfig(
        issuer=settings.oidc_issuer,
        client_id=settings.oidc_client_id,
        client_secret=settings.oidc_client_secret,
        scopes=settings.oidc_scopes,
        role_claim=settings.oidc_role_claim,
        admins=frozenset(settings.oidc_admins),
        viewers=frozenset(settings.oidc_viewers),
    )


class OidcClient:
    """Talks to the issuer. What it publishes is kept for an hour."""

    def __init__(self, config: OidcConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self.config = config
        self._clock = clock
        self._about: dict[str, Any] = {}
        self._about_s = float("-inf")
        self._keys: dict[str, Any] = {}
        self._keys_s = float("-inf")

    async def authorization_url(self, attempt: Attempt, redirect_uri: str) -> str:
        """Where to send the browser.

        Raises:
            OidcError: the issuer cannot be asked.
        """
        about = await self._discovered()
        query = {
            "response_type": "code",
            "client_id": self.config.client_id,
            "redirect_uri": redirect_uri,
            "scope": self.config.scopes,
            "state": attempt.state,
            "nonce": attempt.nonce,
            "code_challenge": attempt.challenge,
            "code_challenge_method": "S256",
        }
        endpoint = _endpoint(about, "authorization_endpoint")
        return f"{endpoint}{'&' if urlsplit(endpoint).query else '?'}{urlencode(query)}"

    async def redeem(self, code: str, attempt: Attempt, redirect_uri: str) -> Person:
        """Who a code stands for.

        Raises:
            OidcError: the issuer refuses it, or its token is not for us and this sign-in.
        """
        about = await self._discovered()
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "client_id": self.config.client_id,
            "code_verifier": attempt.verifier,
        }
        headers = {"content-type": "application/x-www-form-urlencoded", "accept": "application/json"}
        if self.config.client_secret is not None:
            pair = f"{quote(self.config.client_id, '')}:{quote(self.config.client_secret.get_secret_value(), '')}"
            headers["authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        answer = await self._fetch(_endpoint(about, "token_endpoint"), urlencode(form).encode(), headers)
        token = answer.get("id_token")
        if not isinstance(token, str):
            raise OidcError("the issuer's answer has no id_token")
        claims = await self._claims(token, attempt.nonce)
        return Person(_name_of(claims), self.config.role_of(claims))

    async def _claims(self, token: str, nonce: str) -> dict[str, Any]:
        jwt = _jwt()
        try:
            header = jwt.get_unverified_header(token)
            key = await self._key(str(header.get("kid", "")))
            claims = jwt.decode(
                token,
                key,
                algorithms=list(ALGORITHMS),
                audience=self.config.client_id,
                issuer=self.config.issuer,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iat", "iss", "aud", "sub"]},
            )
        except jwt.PyJWTError as error:
            raise OidcError(f"the ID token is not good: {type(error).__name__}: {error}") from error
        if not secrets.compare_digest(str(claims.get("nonce", "")).encode(), nonce.encode()):
            raise OidcError("the ID token is of another sign-in: its nonce differs")
        if not claims["sub"].isprintable() or len(claims["sub"]) > MAX_SUBJECT:
            raise OidcError(f"the ID token's subject is none: {claims['sub'][:80]!r}")
        if claims.get("azp", self.config.client_id) != self.config.client_id:
            raise OidcError("the ID token was made for another client (azp)")
        return claims

    async def _key(self, key_id: str) -> "jwt.PyJWK":
        """The issuer's signing key of a name; the list is read again when a name is new."""
        now = self._clock()
        is_due = now - self._keys_s > KEEP_S or (key_id not in self._keys and now - self._keys_s > REFETCH_S)
        if is_due:
            found = await self._fetch(_endpoint(await self._discovered(), "jwks_uri"))
            self._keys = {
                str(key.get("kid", "")): key for key in found.get("keys", []) if key.get("use", "sig") == "sig"
            }
            self._keys_s = now
        known = self._keys.get(key_id)
        if known is None and not key_id and len(self._keys) == 1:
            (known,) = self._keys.values()
        if known is None:
            raise OidcError(f"the issuer publishes no signing key {key_id[:80]!r}")
        return _jwt().PyJWK.from_dict(known)

    async def _discovered(self) -> dict[str, Any]:
        if self._clock() - self._about_s > KEEP_S:
            about = await self._fetch(f"{self.config.issuer.rstrip('/')}/.well-known/openid-configuration")
            if about.get("issuer") != self.config.issuer:
                raise OidcError(f"the discovery document is of another issuer: {str(about.get('issuer'))[:200]!r}")
            self._about, self._about_s = about, self._clock()
        return self._about

    async def _fetch(
        self, url: str, form: bytes | None = None, headers: dict[str, str] | None = None
    ) -> dict[str, Any]:
        """A JSON object from the issuer."""
        where = urlsplit(url)
        try:
            address = UpstreamAddress.parse(f"{where.scheme}://{where.netloc}")
            async with asyncio.timeout(TIMEOUT_S), UpstreamClient(address, None, TIMEOUT_S) as client:
                if form is None:
                    small = await client.get(url, TIMEOUT_S)
                    status, body = small.status, small.body
                else:
                    answer = await client.post(url, form, headers or {})
                    status, body = answer.status, await answer.read_all(MAX_ANSWER_BYTES)
            value: Any = orjson.loads(body)
        except (UpstreamError, TimeoutError, ValueError) as error:
            raise OidcError(f"the issuer cannot be asked at {where.netloc}{where.path}: {error}") from error
        if status != 200 or not isinstance(value, dict):
            told = cast("dict[str, Any]", value).get("error") if isinstance(value, dict) else None
            raise OidcError(f"the issuer answers {status} at {where.path}: {str(told)[:200]}")
        return cast("dict[str, Any]", value)


def _endpoint(about: Mapping[str, Any], name: str) -> str:
    url = about.get(name)
    if not isinstance(url, str) or not _is_safe(url):
        raise OidcError(f"the discovery document has no https URL as {name}")
    return url


def _is_safe(url: str) -> bool:
    """https; plain http on this machine alone."""
    parts = urlsplit(url)
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in {"localhost", "127.0.0.1", "::1"})


def _name_of(claims: Mapping[str, Any]) -> str:
    """`oidc:ada#u-1`: no local account begins so, and the subject is nobody else's, whatever people call themselves.

    Source: OpenID Connect Core 1.0, section 5.7.
    """
    name = "".join(character for character in str(claims.get("preferred_username") or "") if character.isprintable())
    return f"{OIDC_PREFIX}{name[:MAX_NAME]}#{claims['sub']}"


def _jwt() -> Any:
    try:
        import jwt  # an extra
    except ImportError as error:
        raise ConfigurationError("oidc_issuer needs an extra: pip install 'deepseek-gateway[oidc]'") from error
    return jwt
