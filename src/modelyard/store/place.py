"""Where objects lie: a folder, or a bucket of S3-compatible storage."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from modelyard.errors import MachineError, MissingExtra, UsageError
from modelyard.store import atomic

ENDPOINT = "AWS_ENDPOINT_URL"


class Place(Protocol):
    """Where objects lie."""

    def have(self, prefix: str) -> dict[str, int]:
        """Names that begin so, with their sizes."""

    def put(self, name: str, path: Path) -> None:
        """Stores a file; it is there whole or not at all."""

    def get(self, name: str, path: Path) -> None:
        """Fetches one. Raises `MachineError` where it is not there."""

    def drop(self, name: str) -> None:
        """Takes one away, if it is there."""


class Folder:
    """A folder, best on another disk."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def have(self, prefix: str) -> dict[str, int]:
        """As the protocol says."""
        found = (self.root / prefix).rglob("*") if (self.root / prefix).is_dir() else iter(())
        return {p.relative_to(self.root).as_posix(): p.stat().st_size for p in found if p.is_file() and not p.name.startswith(".")}

    def put(self, name: str, path: Path) -> None:
        """As the protocol says."""
        target = self.root / name
        atomic.make_folder(target.parent)
        atomic.replace_file(target, path.read_bytes())

    def get(self, name: str, path: Path) -> None:
        """As the protocol says."""
        try:
            path.write_bytes((self.root / name).read_bytes())
        except OSError as error:
            raise MachineError(f"{self.root / name} cannot be read: {error.strerror}") from None

    def drop(self, name: str) -> None:
        """As the protocol says."""
        (self.root / name).unlink(missing_ok=True)


class Bucket:
    """An S3-compatible bucket through boto3, which reads AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT_URL."""

    def __init__(self, bucket: str, prefix: str) -> None:
        try:
            import boto3
            from botocore.exceptions import BotoCoreError, ClientError
        except ImportError:
            raise MissingExtra("s3:// needs boto3", "s3") from None
        self.bucket, self.prefix, self.errors = bucket, prefix.strip("/") + "/" if prefix.strip("/") else "", (BotoCoreError, ClientError)
        self.client = boto3.client("s3", endpoint_url=os.environ.get(ENDPOINT))

    def _do(self, what: str, work: Any) -> Any:
        try:
            return work()
        except self.errors as error:
            raise MachineError(f"s3://{self.bucket}/{self.prefix}: {what} failed: {str(error)[:200]}") from None

    def have(self, prefix: str) -> dict[str, int]:
        """As the protocol says."""

        def work() -> dict[str, int]:
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix + prefix)
            return {o["Key"].removeprefix(self.prefix): o["Size"] for page in pages for o in page.get("Contents", [])}

        return self._do("listing", work)  # type: ignore[no-any-return]

    def put(self, name: str, path: Path) -> None:
        """As the protocol says."""
        self._do(f"storing {name}", lambda: self.client.upload_file(str(path), self.bucket, self.prefix + name))

    def get(self, name: str, path: Path) -> None:
        """As the protocol says."""
        self._do(f"fetching {name}", lambda: self.client.download_file(self.bucket, self.prefix + name, str(path)))

    def drop(self, name: str) -> None:
        """As the protocol says."""
        self._do(f"removing {name}", lambda: self.client.delete_object(Bucket=self.bucket, Key=self.prefix + name))


def place_of(text: str) -> Place:
    """The place of `s3://BUCKET/PREFIX` or a folder."""
    parts = urlsplit(text)
    if parts.scheme == "s3":
        if not parts.netloc:
            raise UsageError(f"{text} names no bucket; write s3://BUCKET/PREFIX")
        return Bucket(parts.netloc, parts.path)
    if "://" in text:
        raise UsageError(f"{text}: files go to a folder or to s3://BUCKET/PREFIX")
    return Folder(Path(text))
