"""Configuration, read once at the edge: arguments, then BROKER_* variables, then broker.toml, then defaults with reasons.

The only module that reads the environment. Every value is frozen and checked; secrets do not print.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from broker.errors import InvalidSettings

CONFIG_FILE = "broker.toml"
HOME_FOLDER = ".broker"


class Settings(BaseSettings):
    """All settings of one process. Sizes are bytes, times are seconds."""

    model_config = SettingsConfigDict(env_prefix="BROKER_", frozen=True, extra="forbid", toml_file=None, env_ignore_empty=True)

    # --- where
    redis: str = Field(
        "", repr=False, description="redis://, rediss:// or unix:// URL; empty: an embedded server under ./.broker"
    )
    rq_url: str = Field(
        "", repr=False, description="plain Redis for RQ (it has no hash tags); empty: the same server as `redis`"
    )
    store: str = Field("", description="file:///folder, s3://bucket/prefix?endpoint=…, memory://name; empty: ./.broker/store")
    home: Path | None = Field(None, description="folder of the embedded server and store; empty: the nearest .broker upwards")
    shards: int = Field(1, ge=1, le=1024, description="hash slots a domain's tenants are spread over; fixed for a deployment")

    # --- S3: keys never come from a URL, which ends in logs and process lists
    s3_access_key: SecretStr | None = None
    s3_secret_key: SecretStr | None = None
    s3_session_token: SecretStr | None = None
    s3_region: str = Field("us-east-1", description="explicit, so the client never asks the server (rclone refuses that call)")
    s3_ca: Path | None = Field(None, description="CA bundle for a private certificate")
    s3_part_bytes: int = Field(
        16 << 20, ge=5 << 20, description="multipart size: S3's minimum is 5 MiB; 16 MiB allows 160 GB objects"
    )
    s3_timeout_seconds: float = Field(30.0, gt=0, description="one HTTP exchange; a write that outlives it is read back")

    # --- memory and disk
    memory_limit_bytes: int = Field(1 << 30, ge=64 << 20, description="DuckDB's budget; what exceeds it spills to temp_folder")
    temp_folder: Path | None = Field(None, description="spill and download cache; empty: the system's temporary folder")
    embedded_maxmemory_bytes: int = Field(512 << 20, ge=16 << 20, description="embedded Redis' maxmemory, noeviction")
    embedded_idle_seconds: int = Field(600, ge=1, description="an embedded server nobody uses stops itself")
    max_memory_ratio: float = Field(
        0.7, gt=0, le=1, description="submit refuses above it, so that answering and trimming keep room"
    )

    # --- requests
    lease_seconds: float = Field(
        10.0, ge=0.2, description="a silent worker loses its flight after this; beats come at a third of it"
    )
    max_attempts: int = Field(5, ge=1, description="a request that fails so often is poison and goes to the dead letters")
    backoff_seconds: float = Field(1.0, ge=0, description="before the second attempt; doubles with jitter each time")
    backoff_max_seconds: float = Field(300.0, ge=0, description="the longest wait between attempts")
    attempt_seconds: float = Field(3600.0, gt=0, description="a producer that runs longer is killed: it hangs")
    attempt_max_bytes: int = Field(
        4 << 30, ge=64 << 20, description="a producer that grows larger is killed before the kernel chooses"
    )
    result_seconds: int = Field(86400, ge=60, description="files of a completion stay readable at least this long")
    history_seconds: int = Field(7 * 86400, ge=60, description="finished requests, idempotency keys and events live this long")
    tenant_inflight: int = Field(10_000, ge=1, description="requests of one tenant in work; more wait in the tenant's own line")
    tenant_backlog: int = Field(100_000, ge=0, description="requests of one tenant waiting in its line; more are refused")
    max_unread_responses: int = Field(
        10_000, ge=1, description="unread completions and open requests of one target; more are refused"
    )
    flight_members: int = Field(1_000, ge=1, description="requests that may join one production")

    # --- the change log and its micro-batches
    log_slots: int = Field(
        4, ge=1, le=64, description="change logs of a shard, which as many processes may share; fixed for a deployment"
    )
    max_age_seconds: float = Field(1.0, gt=0, description="a change is visible so long after it was appended, at the latest")
    batch_rows: int = Field(500_000, ge=1, description="a micro-batch is closed at so many changes")
    batch_bytes: int = Field(64 << 20, ge=1 << 10, description="and at so many bytes: what one process holds in memory of it")
    unbatched_bytes: int = Field(
        128 << 20, ge=1 << 10, description="of one dataset and log slot: append is refused above it until batches catch up"
    )

    # --- what is kept for whom
    retain_versions: int = Field(10, ge=1, description="deltas to the newest versions stay for who follows without a cursor")
    retain_seconds: float = Field(
        86_400.0, ge=0, description="and to younger versions; both only up to the bytes of the newest snapshot"
    )
    retain_edges: int = Field(
        1_000, ge=0, description="and up to so many edges: each is an entry in Redis and a step of every plan"
    )
    cursor_seconds: float = Field(
        7 * 86_400.0, ge=0, description="a silent consumer keeps its road so long; nothing is given up sooner after a rebuild"
    )

    snapshot_least_bytes: int = Field(
        1 << 20,
        ge=0,
        description="compaction makes no fresh snapshot for fewer bytes of deltas, and no room beside a smaller one",
    )

    # --- guards, for datasets that have none of their own
    min_rows: int = Field(0, ge=0, description="a version with fewer rows is refused")
    max_rows: int | None = Field(None, ge=0, description="and one with more")
    max_delete_ratio: float = Field(
        1.0, ge=0, le=1, description="and one in which a larger part of the rows before is gone; 1: all may go"
    )

    # --- consumers
    lag_seconds: float = Field(3600.0, gt=0, description="a consumer behind for so long is told of as lagging")
    digest_every: int = Field(
        100, ge=1, description="a replica proves its content with small snapshots, and after so many deltas: a scan of its rows"
    )

    # --- data
    max_file_rows: int = Field(5_000_000, ge=1, description="rows of one canonical file; a snapshot is cut beyond it")
    checkpoint_every: int = Field(1_000, ge=2, description="commit records between sealed checkpoints")
    orphan_seconds: int = Field(
        86_400, ge=120, description="the sweep spares younger objects; an upload must be committed within half of it"
    )
    reservation_seconds: float = Field(2.0, ge=0, description="the janitor helps reservations older than this")

    @property
    def upload_max_age_seconds(self) -> int:
        """Older files cannot be reserved. The other half of `orphan_seconds` is for what lies between that and the sweep: two
        clocks, and a listing that goes on for long."""
        return self.orphan_seconds // 2

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments win over variables, variables over broker.toml."""
        del dotenv_settings, file_secret_settings
        return init_settings, env_settings, _Toml(settings_cls, find_upwards(CONFIG_FILE))


class _Toml(TomlConfigSettingsSource):
    """The top-level keys of broker.toml; its tables (sources, producers) belong to other modules."""

    def __call__(self) -> dict[str, Any]:
        return {key: value for key, value in super().__call__().items() if not isinstance(value, dict | list)}


def find_upwards(name: str, start: Path | None = None) -> Path | None:
    """The nearest file or folder called `name` from `start` (default: the current folder) upwards."""
    here = (start or Path.cwd()).absolute()
    return next((folder / name for folder in (here, *here.parents) if (folder / name).exists()), None)


def home_folder(settings: Settings) -> Path:
    """Where the embedded server and store live: the setting, else the nearest .broker upwards, else here."""
    return (settings.home or find_upwards(HOME_FOLDER) or Path.cwd() / HOME_FOLDER).absolute()


def load(**overrides: object) -> Settings:
    """Read and check everything once. Raises InvalidSettings naming the field or the file. None means: not given."""
    given: dict[str, Any] = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InvalidSettings(
            "settings are invalid", of=field, why=first["msg"], hint=f"Set BROKER_{field.upper()} or {CONFIG_FILE}"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise InvalidSettings(
            "the configuration file cannot be read",
            of=str(find_upwards(CONFIG_FILE)),
            why=str(error),
            hint="Correct or move it",
        ) from None


def s3_credentials(settings: Settings) -> tuple[str, str, str | None]:
    """Access key, secret key and session token: BROKER_S3_*, else AWS_*. Raises InvalidSettings when there are none."""
    access = settings.s3_access_key.get_secret_value() if settings.s3_access_key else os.environ.get("AWS_ACCESS_KEY_ID", "")
    secret = (
        settings.s3_secret_key.get_secret_value() if settings.s3_secret_key else os.environ.get("AWS_SECRET_ACCESS_KEY", "")
    )
    token = settings.s3_session_token.get_secret_value() if settings.s3_session_token else os.environ.get("AWS_SESSION_TOKEN")
    if not access or not secret:
        raise InvalidSettings(
            "no S3 credentials", of=settings.store, why="neither BROKER_S3_ACCESS_KEY/_SECRET_KEY nor AWS_* are set",
            hint="Export BROKER_S3_ACCESS_KEY and BROKER_S3_SECRET_KEY",
        )  # fmt: skip
    return access, secret, token or None
