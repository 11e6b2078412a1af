"""moto's S3 server, whose conditional writes are atomic: moto looks and writes in two steps, between which others write."""

from __future__ import annotations

from threading import Lock
from typing import Any, Final

from moto.s3.responses import S3Response
from moto.server import main

ONE_AT_A_TIME: Final = Lock()
_put_object: Final = S3Response.put_object


def put_object(response: S3Response) -> Any:
    with ONE_AT_A_TIME:
        return _put_object(response)


S3Response.put_object = put_object

if __name__ == "__main__":
    main()
