"""Settings of Redis: one server, sentinels or a cluster, and how to get in."""

from __future__ import annotations

from typing import Self
from urllib.parse import quote, urlencode

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings
from redis.connection import parse_url

from redis_servers import RedisMode, RedisServers
from setting_types import AnyCaseRedisMode, PresentFile, RedisAddress, RedisNodes, host_and_port


class RedisSettings(BaseSettings):
    """Which Redis, and as whom. Raises: see `config.load`."""

    redis_host: str = Field("localhost", description="host of Redis or Valkey")
    redis_port: int = Field(6379, ge=1, le=65535, description="port of Redis or Valkey")
    redis_db: int = Field(0, ge=0, description="database number")
    redis_username: SecretStr | None = Field(None, description="ACL user")
    redis_password: SecretStr | None = Field(None, description="password")
    redis_tls: bool = Field(False, description="true: TLS")
    redis_url: RedisAddress | None = Field(
        None, description="redis://, rediss:// (TLS) or unix:// address; takes the place of the six above"
    )
    redis_ca_certificate: PresentFile | None = Field(
        None,
        description="file of an authority that may vouch for Redis, beside those of the system, PEM",
    )
    redis_certificate: PresentFile | None = Field(
        None, description="file of this client's certificate, PEM, where Redis asks for one"
    )
    redis_key: PresentFile | None = Field(
        None, description="file of that certificate's key, PEM, where it is not in the same file"
    )
    redis_mode: AnyCaseRedisMode = Field(
        RedisMode.SINGLE,
        description="single: one server; sentinel: whichever the sentinels say is master; cluster: "
        "Redis Cluster",
    )
    redis_sentinels: RedisNodes = Field(
        (), description="the sentinels, host:26379,host:26379,…, where REDIS_MODE is sentinel"
    )
    redis_sentinel_master: str = Field(
        "mymaster", min_length=1, description="name of the master at the sentinels"
    )
    redis_sentinel_username: SecretStr | None = Field(None, description="ACL user at the sentinels")
    redis_sentinel_password: SecretStr | None = Field(None, description="password at the sentinels")
    redis_cluster_nodes: RedisNodes = Field(
        (),
        description="nodes of the cluster to ask for the others, host:6379,…; default the one of "
        "REDIS_HOST or REDIS_URL",
    )
    redis_allow_eviction: bool = Field(
        False, description="start although Redis may evict streams with unread entries"
    )

    @model_validator(mode="after")
    def _redis_together(self) -> Self:
        mode = self.redis_mode
        named = {RedisMode.SENTINEL: "redis_sentinels", RedisMode.CLUSTER: "redis_cluster_nodes"}
        for needed, field in named.items():
            if getattr(self, field) and mode is not needed:
                raise ValueError(
                    f"{field.upper()} is set, but REDIS_MODE is {mode.value}; set REDIS_MODE={needed.value}"
                )
        if mode is RedisMode.SENTINEL and not self.redis_sentinels:
            raise ValueError(
                "REDIS_MODE is sentinel, but REDIS_SENTINELS is not set; it takes host:26379,host:26379,…"
            )
        address = self.redis_address()
        if mode is not RedisMode.SINGLE and address.startswith("unix:"):
            raise ValueError(
                f"REDIS_URL begins with unix:, but REDIS_MODE is {mode.value}; it takes redis:// or rediss://"
            )
        if mode is RedisMode.CLUSTER and parse_url(address).get("db"):  # type: ignore[no-untyped-call]
            raise ValueError("a database number is set, but REDIS_MODE is cluster; REDIS_DB takes 0 there")
        return self

    @model_validator(mode="after")
    def _redis_tls_together(self) -> Self:
        if self.redis_key and not self.redis_certificate:
            raise ValueError("REDIS_KEY is set without a certificate; set REDIS_CERTIFICATE beside it")
        given = self.redis_url.get_secret_value().partition("://")[0] if self.redis_url else ""
        tls = given == "rediss" if given else self.redis_tls
        if not tls and (self.redis_ca_certificate or self.redis_certificate):
            found = f"REDIS_URL begins with {given}://" if given else "REDIS_TLS is false"
            remedy = "write rediss://" if given else "set REDIS_TLS=true"
            raise ValueError(
                f"{found}, which is without TLS, but a certificate is set; {remedy}, or leave "
                "REDIS_CA_CERTIFICATE and REDIS_CERTIFICATE out"
            )
        return self

    def redis_servers(self) -> RedisServers:
        """Which servers are Redis: with passwords, so never log it."""
        user, password = self.redis_sentinel_username, self.redis_sentinel_password
        nodes, port = self.redis_sentinels, 26379
        if self.redis_mode is RedisMode.CLUSTER:
            nodes, port = self.redis_cluster_nodes, 6379
        return RedisServers(
            url=self.redis_address(),
            mode=self.redis_mode,
            nodes=tuple(host_and_port(node, port) for node in nodes),
            master=self.redis_sentinel_master,
            sentinel_username=user.get_secret_value() if user else None,
            sentinel_password=password.get_secret_value() if password else None,
        )

    def redis_address(self) -> str:
        """The address of Redis as one URL, password and files of certificates included: never log it."""
        address = self.redis_url.get_secret_value() if self.redis_url else self._made_address()
        files = {
            "ssl_ca_certs": self.redis_ca_certificate,
            "ssl_certfile": self.redis_certificate,
            "ssl_keyfile": self.redis_key,
        }
        options = urlencode({name: str(path) for name, path in files.items() if path})
        return f"{address}{'&' if '?' in address else '?'}{options}" if options else address

    def _made_address(self) -> str:
        user = quote(self.redis_username.get_secret_value(), safe="") if self.redis_username else ""
        password = self.redis_password.get_secret_value() if self.redis_password else ""
        login = f"{user}:{quote(password, safe='')}@" if user or password else ""
        scheme = "rediss" if self.redis_tls else "redis"
        return f"{scheme}://{login}{self.redis_host}:{self.redis_port}/{self.redis_db}"
