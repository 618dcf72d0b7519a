"""Secrets from files, and where each setting comes from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
)

SECRETS = (
    "redis_url",
    "redis_username",
    "redis_password",
    "redis_sentinel_username",
    "redis_sentinel_password",
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
    """Settings that cannot be used: a sentence for each, complete with variable, value and remedy."""

    def __str__(self) -> str:
        return "; ".join(map(str, self.args))

    def told(self, program: str) -> str:
        """A line for each sentence, as `program` says it."""
        return "\n".join(f"{program}: {sentence}" for sentence in self.args)


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


def origins(settings_class: type[BaseSettings]) -> dict[str, str]:
    """Where each setting comes from, by its name: `environment`, `NAME_FILE`, the path of a `.env`, or
    `default`. The first of these that has it is the one that counts.
    """
    files = [str(path) for path in _dotenv_files(settings_class)]
    found: dict[str, str] = {}
    for path in files:  # a later one has the last word
        found |= dict.fromkeys(DotEnvSettingsSource(settings_class, env_file=path)(), path)
    found |= {name: f"{name.upper()}_FILE" for name in SecretFiles(settings_class)()}
    found |= dict.fromkeys(EnvSettingsSource(settings_class)(), "environment")
    return {name: found.get(name, "default") for name in settings_class.model_fields}


def unknown_names(settings_class: type[BaseSettings]) -> list[tuple[str, str]]:
    """Names in a `.env` that are no settings, each with the path of the file: misspelled, perhaps."""
    found: list[tuple[str, str]] = []
    for path in _dotenv_files(settings_class):
        names = DotEnvSettingsSource(settings_class, env_file=path).env_vars
        found += [
            (name.upper(), str(path)) for name in names if name.lower() not in settings_class.model_fields
        ]
    return found


def _dotenv_files(settings_class: type[BaseSettings]) -> list[Path]:
    """Those that are there, each once, in the order in which they are read."""
    files = settings_class.model_config.get("env_file") or ()
    several = files if isinstance(files, list | tuple) else (files,)
    return list(dict.fromkeys(path.resolve() for path in map(Path, several) if path.is_file()))
