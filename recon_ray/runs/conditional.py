"""Conditional writes of one object on S3: it is replaced only as it was last read.

pyarrow's file systems have none (its S3 sends neither If-Match nor If-None-Match), boto3 has. It is
used where it is installed; credentials are those of the URI or of boto3's usual chain.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

#: Codes of S3 for an object that is not there, and for one that is another than expected.
MISSING, CHANGED = {"NoSuchKey", "404"}, {"PreconditionFailed", "ConditionalRequestConflict"}


def conditional_object(uri: str) -> ConditionalObject | None:
    """Return an object on S3; None for another store, or without a boto3 that can do it."""
    if urlsplit(uri).scheme != "s3" or find_spec("boto3") is None:
        return None
    import boto3

    if not urlsplit(uri).username and boto3.Session().get_credentials() is None:
        return None
    client = _client(uri)
    known = client.meta.service_model.operation_model("PutObject").input_shape.members
    return ConditionalObject(client, uri) if {"IfMatch", "IfNoneMatch"} <= known.keys() else None


def _client(uri: str) -> Any:  # noqa: ANN401 - boto3's
    import boto3
    from botocore.config import Config

    parts = urlsplit(uri)
    options = {name: values[0] for name, values in parse_qs(parts.query).items()}
    address = options.get("endpoint_override")
    if address is not None and "://" not in address:
        address = f"{options.get('scheme', 'https')}://{address}"
    config = Config(
        connect_timeout=10,
        read_timeout=20,
        retries={"max_attempts": 2},
        s3={"addressing_style": "path" if address else "auto"},
    )
    return boto3.client(
        "s3",
        endpoint_url=address,
        region_name=options.get("region"),
        aws_access_key_id=unquote(parts.username) if parts.username else None,
        aws_secret_access_key=unquote(parts.password) if parts.password else None,
        config=config,
    )


class ConditionalObject:
    """An object that nobody replaces without having seen it.

    Args:
        client: S3 client of boto3.
        uri: Its place.
    """

    def __init__(self, client: Any, uri: str) -> None:  # noqa: ANN401 - boto3's
        self._client = client
        parts = urlsplit(uri)
        self._place = {"Bucket": str(parts.hostname), "Key": parts.path.lstrip("/")}
        self._seen: str | None = None

    def read(self) -> bytes | None:
        """Return the content, None for a missing object.

        Raises:
            OSError: If the storage does not answer.
        """
        self._seen = None
        answer = self._call("get_object", MISSING)
        if answer is None:
            return None
        content = bytes(answer["Body"].read())
        self._seen = answer["ETag"]
        return content

    def write(self, content: bytes) -> bool:
        """Write the content unless another process has done so since the last look.

        Raises:
            OSError: If the storage refuses.
        """
        condition = {"IfNoneMatch": "*"} if self._seen is None else {"IfMatch": self._seen}
        answer = self._call("put_object", CHANGED | MISSING, Body=content, **condition)
        if answer is not None:
            self._seen = answer["ETag"]
        return answer is not None

    def _call(self, operation: str, expected: set[str], **more: Any) -> Any:  # noqa: ANN401
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return getattr(self._client, operation)(**self._place, **more)
        except ClientError as error:
            if error.response["Error"]["Code"] in expected:
                return None
            raise OSError(str(error)) from error
        except BotoCoreError as error:
            raise OSError(str(error)) from error
