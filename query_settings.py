"""Settings of the query service."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings

from setting_types import PresentFile, Token


class QuerySettings(BaseSettings):
    """Who may ask, where, and how much. Raises: see `config.load`."""

    query_host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="address to listen at; off loopback QUERY_TOKEN or QUERY_CLIENT_CA is needed",
    )
    query_port: int = Field(50054, ge=1, le=65535, description="port to listen at")
    query_token: Token | None = Field(
        None,
        description="bearer token that calls need, 16 characters or more; none: they need none",
    )
    query_delete_token: Token | None = Field(
        None,
        description="bearer token for DeleteReadings, which allows all else too; none: nobody may delete",
    )
    query_certificate: PresentFile | None = Field(
        None, description="file of the server's certificate, PEM; with it callers must use TLS"
    )
    query_key: PresentFile | None = Field(None, description="file of that certificate's key, PEM")
    query_client_ca: PresentFile | None = Field(
        None,
        description="file of the authorities that may vouch for callers, PEM; with it every caller needs a "
        "certificate",
    )
    query_workers: int = Field(8, ge=1, le=200, description="most calls that use the database at once")
    query_streams: int = Field(100, ge=1, le=1000, description="most streams of new readings at once")
    query_timeout_sec: float = Field(
        10.0, gt=0, le=3600, description="longest time that one question to the database may take"
    )

    @model_validator(mode="after")
    def _query_together(self) -> Self:
        if (self.query_certificate is None) != (self.query_key is None):
            missing = "QUERY_KEY" if self.query_key is None else "QUERY_CERTIFICATE"
            raise ValueError(f"QUERY_CERTIFICATE and QUERY_KEY belong together; set {missing} too")
        if self.query_client_ca and not self.query_certificate:
            raise ValueError(
                "QUERY_CLIENT_CA is set without TLS; set QUERY_CERTIFICATE and QUERY_KEY beside it"
            )
        if self.query_token and self.query_token == self.query_delete_token:
            raise ValueError(
                "QUERY_TOKEN and QUERY_DELETE_TOKEN are the same, so that whoever may ask may delete; "
                "QUERY_DELETE_TOKEN takes a token of its own"
            )
        return self
