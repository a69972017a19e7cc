"""Where objects lie that have names and no order: a folder, or S3-compatible storage.

A backup and the folders of a registry by URL are kept there under `objects/<sha256>`. What an upload in parts leaves behind when its process is killed is
invisible in a bucket and is paid for all the same: `tidy` ends such uploads.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from modelyard.errors import MachineError, MissingExtra, UsageError
from modelyard.store import atomic

ENDPOINT = "AWS_ENDPOINT_URL"
ABANDONED = 24 * 3600.0
"""Seconds after which what is half uploaded belongs to a process that died: S3's own largest objects take hours."""
AT_ONCE = 1000
"""Names that S3 deletes in one request, at most."""


class Place(Protocol):
    """Where objects lie."""

    def have(self, prefix: str, older: float = 0.0) -> dict[str, int]:
        """Names that begin so and are `older` seconds old at least, with their sizes."""

    def size(self, name: str) -> int | None:
        """Bytes of one; None where it is not there."""

    def put(self, name: str, path: Path) -> None:
        """Stores a file; it is there whole or not at all."""

    def get(self, name: str, path: Path) -> None:
        """Fetches one."""

    def remove(self, names: list[str]) -> None:
        """Takes these away; what is not there is no mistake."""

    def tidy(self, older: float = ABANDONED) -> int:
        """Ends uploads that were begun so many seconds ago and never ended; how many."""


class Folder:
    """A folder, best on another disk."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def have(self, prefix: str, older: float = 0.0) -> dict[str, int]:
        """As the protocol says."""
        base = self.root / prefix
        found = {p: p.stat() for p in (base.rglob("*") if base.is_dir() else ()) if p.is_file() and not p.name.startswith(".")}
        return {p.relative_to(self.root).as_posix(): s.st_size for p, s in found.items() if time.time() - s.st_mtime >= older}

    def size(self, name: str) -> int | None:
        """As the protocol says."""
        path = self.root / name
        return path.stat().st_size if path.is_file() else None

    def put(self, name: str, path: Path) -> None:
        """As the protocol says."""
        target = self.root / name
        atomic.make_folder(target.parent)
        atomic.replace_file(target, path.read_bytes())

    def get(self, name: str, path: Path) -> None:
        """As the protocol says."""
        try:
            path.write_bytes((self.root / name).read_bytes())
        except FileNotFoundError:
            raise MachineError(f"{self}: fetching {name} failed: it is not there") from None

    def remove(self, names: list[str]) -> None:
        """As the protocol says."""
        for name in names:
            (self.root / name).unlink(missing_ok=True)

    def tidy(self, older: float = ABANDONED) -> int:
        """As the protocol says: files written aside by a process that was killed before their renaming."""
        left = [p for p in self.root.rglob(".*") if re.fullmatch(r"\..+\.\d+", p.name) and p.is_file() and time.time() - p.stat().st_mtime >= older]
        for path in left:
            path.unlink(missing_ok=True)
        return len(left)


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

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def _do(self, what: str, work: Any) -> Any:
        try:
            return work()
        except self.errors as error:
            raise MachineError(f"{self}: {what} failed: {str(error)[:200]}") from None
        except Exception as error:  # boto3's transfers wrap some failures in a class of their own
            if type(error).__module__.startswith(("boto3", "s3transfer")):
                raise MachineError(f"{self}: {what} failed: {str(error)[:200]}") from None
            raise

    def have(self, prefix: str, older: float = 0.0) -> dict[str, int]:
        """As the protocol says."""

        def work() -> dict[str, int]:
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix + prefix)
            every = [o for page in pages for o in page.get("Contents", []) if not older or time.time() - o["LastModified"].timestamp() >= older]
            return {o["Key"].removeprefix(self.prefix): o["Size"] for o in every}

        return self._do("listing", work)  # type: ignore[no-any-return]

    def size(self, name: str) -> int | None:
        """As the protocol says."""

        def work() -> int | None:
            try:
                return int(self.client.head_object(Bucket=self.bucket, Key=self.prefix + name)["ContentLength"])
            except self.errors as error:
                if getattr(error, "response", {}).get("Error", {}).get("Code") in ("404", "NoSuchKey", "NotFound"):
                    return None
                raise

        return self._do(f"looking for {name}", work)  # type: ignore[no-any-return]

    def put(self, name: str, path: Path) -> None:
        """As the protocol says."""
        self._do(f"storing {name}", lambda: self.client.upload_file(str(path), self.bucket, self.prefix + name))

    def get(self, name: str, path: Path) -> None:
        """As the protocol says."""
        self._do(f"fetching {name}", lambda: self.client.download_file(self.bucket, self.prefix + name, str(path)))

    def remove(self, names: list[str]) -> None:
        """As the protocol says."""
        for start in range(0, len(names), AT_ONCE):
            keys = [{"Key": self.prefix + name} for name in names[start : start + AT_ONCE]]
            answer = self._do("deleting", lambda keys=keys: self.client.delete_objects(Bucket=self.bucket, Delete={"Objects": keys, "Quiet": True}))
            if answer.get("Errors"):
                raise MachineError(f"{self}: deleting {len(answer['Errors'])} object(s) failed: {str(answer['Errors'][0].get('Message'))[:200]}")

    def tidy(self, older: float = ABANDONED) -> int:
        """As the protocol says: uploads in parts, whose parts no listing of objects shows."""

        def work() -> int:
            pages = self.client.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket, Prefix=self.prefix)
            left = [u for page in pages for u in page.get("Uploads", []) if time.time() - u["Initiated"].timestamp() >= older]
            for upload in left:
                self.client.abort_multipart_upload(Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"])
            return len(left)

        return self._do("ending abandoned uploads", work)  # type: ignore[no-any-return]


def place_of(text: str) -> Place:
    """The place of `s3://BUCKET/PREFIX` or a folder. Raises `UsageError`, `MissingExtra`."""
    parts = urlsplit(text)
    if parts.scheme == "s3":
        if "@" in parts.netloc:
            raise UsageError("s3://…@… holds a key; write s3://BUCKET/PREFIX, and give keys by AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
        if not parts.netloc:
            raise UsageError(f"{text} names no bucket; write s3://BUCKET/PREFIX")
        return Bucket(parts.netloc, parts.path)
    if "://" in text:
        raise UsageError(f"{parts.scheme}://…: files are kept in a folder or in s3://BUCKET/PREFIX")
    return Folder(Path(text))
