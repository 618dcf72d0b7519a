"""Settings of the dashboard."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings

from setting_types import HostNames, Password, PresentFile, Token


class DashboardSettings(BaseSettings):
    """Who may look, where, and how many. Raises: see `config.load`."""

    dashboard_host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="address to listen at; off loopback DASHBOARD_PASSWORD or DASHBOARD_TOKEN is needed",
    )
    dashboard_port: int = Field(8050, ge=1, le=65535, description="port to listen at")
    dashboard_password: Password | None = Field(
        None, description="password that people log in with, 12 characters or more; none: no login"
    )
    dashboard_token: Token | None = Field(
        None, description="bearer token that programs may show instead, 16 characters or more"
    )
    dashboard_certificate: PresentFile | None = Field(
        None, description="file of the server's certificate, PEM; with it the page comes over https"
    )
    dashboard_key: PresentFile | None = Field(None, description="file of that certificate's key, PEM")
    dashboard_allowed_hosts: HostNames = Field(
        (),
        description="comma-separated names by which browsers ask for the page, where a proxy stands before "
        "it; on loopback its own names are always allowed",
    )
    dashboard_clients: int = Field(100, ge=1, le=2000, description="most pages that are open at once")
    dashboard_timeout_sec: float = Field(
        10.0, gt=0, le=3600, description="longest time that one question to the database may take"
    )

    @model_validator(mode="after")
    def _dashboard_together(self) -> Self:
        if (self.dashboard_certificate is None) != (self.dashboard_key is None):
            missing = "DASHBOARD_KEY" if self.dashboard_key is None else "DASHBOARD_CERTIFICATE"
            raise ValueError(f"DASHBOARD_CERTIFICATE and DASHBOARD_KEY belong together; set {missing} too")
        return self
