"""Secrets from files: where a setting comes from besides the environment and `.env`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_settings import PydanticBaseSettingsSource

SECRETS = (
    "redis_url",
    "redis_username",
    "redis_password",
    "database_url",
    "database_direct_url",
    "mqtt_url",
    "mqtt_username",
    "mqtt_password",
    "query_token",
    "query_delete_token",
    "dashboard_password",
    "dashboard_token",
)


class ConfigError(Exception):
    """A setting that cannot be used. The message is complete: variable, value, remedy."""


class SecretFiles(PydanticBaseSettingsSource):
    """Reads NAME_FILE for each secret; NAME itself wins where both are set."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002
        path = os.environ.get(f"{field_name.upper()}_FILE")
        if field_name not in SECRETS or not path:
            return None, field_name, False
        try:
            return Path(path).read_text(encoding="utf-8").strip(), field_name, False
        except (OSError, UnicodeDecodeError) as error:
            variable = f"{field_name.upper()}_FILE"
            raise ConfigError(
                f"{variable} is {path!r}, which cannot be read ({error}); "
                f"it takes the path of a text file that holds the value of {field_name.upper()}"
            ) from None

    def __call__(self) -> dict[str, Any]:
        found = {
            name: self.get_field_value(field, name)[0]
            for name, field in self.settings_cls.model_fields.items()
        }
        return {name: value for name, value in found.items() if value is not None}
