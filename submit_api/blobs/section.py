"""Where archives rest: `[blobs]` in the TOML file.

Promise: a bucket is spoken to over TLS, but for loopback, or where an option that says unsafe is set; no credential has a
place here, or in a URL.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator

_BUCKET_URL = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/([A-Za-z0-9_-][A-Za-z0-9._/-]{0,199}))?/?")


class BlobsSection(BaseModel):
    """An empty `url` means the folder `blobs` in the state folder; `s3://bucket/prefix` is a bucket of AWS, or of another
    S3-compatible store at `endpoint`. `credentials_file`: as AWS's tools have it, mode 0600; empty means AWS's variables in the
    environment, or the role of the host. One request may take `request_seconds`, and what `min_bytes_per_second` makes of
    its bytes, all its attempts together; who failed is not asked to take anything for `rest_seconds`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = ""
    endpoint: str = ""
    region: str = Field(default="us-east-1", pattern=r"^[a-z0-9-]{1,40}$")
    credentials_file: str = ""
    connect_seconds: float = Field(default=3, gt=0, le=60)
    request_seconds: float = Field(default=10, gt=0, le=60)
    min_bytes_per_second: int = Field(default=4 * 1024 * 1024, ge=1024)
    rest_seconds: float = Field(default=5, ge=0, le=60)
    unsafe_http: bool = False

    @model_validator(mode="after")
    def _whole(self) -> BlobsSection:
        if not self.url:
            if self.endpoint or self.credentials_file:
                raise ValueError("endpoint and credentials_file are of a bucket: set url = 's3://bucket/prefix' too")
            return self
        if not _BUCKET_URL.fullmatch(self.url) or any(
            part in ("", ".", "..") for part in self.prefix.split("/") if self.prefix
        ):
            raise ValueError("url is to be s3://bucket or s3://bucket/prefix, of plain letters, and nothing else in it")
        if self.endpoint:
            _check_endpoint(self.endpoint, unsafe_http=self.unsafe_http)
        return self

    def seconds_for(self, size: int) -> float:
        """So long may one request take that moves so many bytes."""
        return self.request_seconds + size / self.min_bytes_per_second

    @property
    def bucket(self) -> str:
        return urlsplit(self.url).netloc

    @property
    def prefix(self) -> str:
        return urlsplit(self.url).path.strip("/")


def _check_endpoint(endpoint: str, *, unsafe_http: bool) -> None:
    try:
        parts = urlsplit(endpoint)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError("endpoint is not a URL") from None
    if parts.scheme not in ("https", "http") or not host or parts.username is not None:
        raise ValueError("endpoint is to be https://host[:port], without user or password")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError("endpoint is to be https://host[:port]; bucket and prefix are in url")
    if parts.scheme == "http" and not unsafe_http and not _is_loopback(host):
        raise ValueError("endpoint is to be https://; unsafe_http = true lets everybody on the way read archives")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
