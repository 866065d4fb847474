"""What the pages of one gateway work with."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import ParamSpec, TypeVar

from jinja2 import Environment

from deepseek_gateway.gateway import Gateway
from deepseek_gateway.people.service import PeopleService
from deepseek_gateway.web.accounts import Accounts
from deepseek_gateway.web.assets import Assets, load_assets
from deepseek_gateway.web.messages import Messages, load_messages
from deepseek_gateway.web.oidc import OidcClient, oidc_config
from deepseek_gateway.web.render import load_templates
from deepseek_gateway.web.sessions import Sessions, web_secret

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Web:
    """See the module."""

    gateway: Gateway
    people: PeopleService
    accounts: Accounts
    sessions: Sessions
    secret: bytes
    assets: Assets
    messages: Messages
    templates: Environment
    executor: Executor
    oidc: OidcClient | None

    async def call(
        self, function: Callable[Parameters, Result], *args: Parameters.args, **kwargs: Parameters.kwargs
    ) -> Result:
        """Call what blocks on the store, off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self.executor, partial(function, *args, **kwargs))


def web_of(gateway: Gateway) -> Web:
    """All of it, for one gateway."""
    settings, assets = gateway.settings, load_assets()
    config = oidc_config(settings)
    return Web(
        gateway=gateway,
        people=PeopleService(gateway.store),
        accounts=Accounts(gateway.store),
        sessions=Sessions(gateway.store, settings.web_session_s, settings.web_idle_s),
        secret=web_secret(gateway.pepper),
        assets=assets,
        messages=load_messages(),
        templates=load_templates(assets),
        executor=gateway.page_executor,
        oidc=None if config is None else OidcClient(config),
    )
