"""The servers that other tests lean on."""

import pytest
import redis

from deepseek_gateway.testing.redis_server import RedisServer


def test_every_test_gets_an_empty_server(redis_url: str) -> None:
    with redis.from_url(redis_url) as client:
        assert client.dbsize() == 0
        client.set("a", 1)


def test_every_other_test_too(redis_url: str) -> None:
    with redis.from_url(redis_url) as client:
        assert client.dbsize() == 0


def test_a_server_of_ones_own_can_be_killed_and_comes_back_empty(redis_server: RedisServer) -> None:
    with redis.from_url(redis_server.url) as client:
        client.set("a", 1)
        redis_server.kill()
        with pytest.raises(redis.ConnectionError):
            client.get("a")
        redis_server.restart()
        assert client.get("a") is None
