"""Sources that broker.toml names.

[[sources]]
dataset = "*/catalog/offers"
kind = "sql"
url = "postgresql://reader@db/shop"          # the password: PGPASSWORD or ~/.pgpass, as libpq reads them
query = "SELECT * FROM offers"
watermark = "updated_at"
full_every = "24h"                           # "never": deletes are then never seen

[[sources]]
dataset = "debian/catalog/packages"
kind = "files"
glob = "feeds/*.csv.gz"                      # relative to the folder of broker.toml
"""

from __future__ import annotations

import glob as globbing
import os
import tomllib
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, TypeAdapter, ValidationError

from broker.errors import BrokerError, InvalidSettings, NotFound
from broker.model.dataset import Frozen
from broker.producers import Producers
from broker.sources.files import Files
from broker.sources.readers import FileFormat
from broker.sources.sql import SQL

NEVER: Final = "never"
"""What `full_every` says for Python's None, which TOML has not."""
SQLITE: Final = "sqlite:///"


class SqlEntry(Frozen):
    dataset: str
    kind: Literal["sql"]
    url: str
    query: str
    watermark: str | None = None
    overlap_seconds: float = 300
    full_every: str = "24h"

    def source(self, folder: Path) -> SQL:
        full_every = None if self.full_every == NEVER else self.full_every
        return SQL(_beside(folder, self.url), self.query, self.watermark, self.overlap_seconds, full_every)


class FilesEntry(Frozen):
    dataset: str
    kind: Literal["files"]
    glob: str = Field(min_length=1)
    format: FileFormat | None = None

    def source(self, folder: Path) -> Files:
        return Files(os.path.join(globbing.escape(str(folder)), self.glob), self.format)


_ENTRY: TypeAdapter[SqlEntry | FilesEntry] = TypeAdapter(Annotated[SqlEntry | FilesEntry, Field(discriminator="kind")])


def _beside(folder: Path, url: str) -> str:
    """A relative `sqlite:///file` means one beside broker.toml, as a relative `glob` does."""
    path = url.removeprefix(SQLITE)
    return f"{SQLITE}{folder / path}" if path not in ("", url) else url


def load_sources(path: Path) -> Producers:
    """The registry of all `[[sources]]`; empty when the file has none.

    Raises NotFound (no file) and InvalidSettings naming the entry, counted from 1, and the field.
    """
    producers = Producers()
    for number, fields in enumerate(_entries(path), 1):
        of = f"{path.name}: sources[{number}]"
        try:
            entry = _ENTRY.validate_python(fields)
            producers.add(entry.dataset, entry.source(path.absolute().parent))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"] if part not in ("sql", "files")) or "kind"
            raise InvalidSettings("a source is invalid", of=f"{of}.{field}", why=first["msg"]) from None
        except BrokerError as error:
            why = f"{error.of}: {error.why}" if error.of and error.why else error.of or error.why
            raise InvalidSettings(f"a source is invalid: {error.what}", of=of, why=why, hint=error.hint) from None
    return producers


def _entries(path: Path) -> list[object]:
    try:
        found = tomllib.loads(path.read_text("utf-8")).get("sources", [])
    except FileNotFoundError:
        raise NotFound("no such file", of=str(path), hint="Write it, or pass --config") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidSettings("not TOML", of=str(path), why=str(error)) from None
    if not isinstance(found, list):
        raise InvalidSettings("sources is not a list of tables", of=str(path), hint="Begin each with [[sources]]")
    return found
