"""`[mirrors]` of the agent's configuration: other places that have the same bytes.

    [mirrors]
    urls = ["https://mirror.example/dagseal", "https://company-dags.s3.eu-west-1.amazonaws.com/production", "http://10.0.0.7:8421"]
    first = true                                # asked before the API; false: only for what the API could not send
    ca_file = "/etc/dagseal/mirrors.pem"        # optional
    unsafe_serve_address = "10.0.0.5:8421"      # be a mirror for others; unset: serve nobody

A base is asked for `<base>/sha512/<two digits>/<hex>`; one that ends in `/v1/blobs` for `<base>/sha512/<hex>`. Plain http is
fine: no token is sent and nothing that comes back is believed, though who listens on the way reads the archives.
"""

from __future__ import annotations

from contextlib import AsyncExitStack

from pydantic import BaseModel, ConfigDict, Field

from integrity.errors import SettingsError
from worker_cache.sources import Source, mirror_source
from worker_cache.transport import Transport, check_url


class MirrorsSection(BaseModel):
    """The table. `unsafe_`: whoever reaches the address and knows a digest reads those bytes, tasks of this host included."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    urls: list[str] = Field(default=[], max_length=16)
    first: bool = True
    ca_file: str | None = None
    unsafe_serve_address: str | None = None

    def check(self) -> None:
        """Raises `SettingsError`."""
        for url in self.urls:
            check_url(url, unsafe_http=True)
        if len(set(self.urls)) < len(self.urls):
            raise SettingsError("mirrors.urls names one of them twice")
        if self.unsafe_serve_address is not None:
            self.serve_at()

    def serve_at(self) -> tuple[str, int] | None:
        """Host and port, or None. Raises `SettingsError`."""
        if self.unsafe_serve_address is None:
            return None
        host, _, port = self.unsafe_serve_address.rpartition(":")
        if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise SettingsError(f"mirrors.unsafe_serve_address {self.unsafe_serve_address!r} is to be HOST:PORT")
        return host.strip("[]"), int(port)


async def open_all(section: MirrorsSection, stack: AsyncExitStack) -> list[Source]:
    """Each with connections of its own, without token and signer, for as long as the stack."""
    return [
        mirror_source(
            url, await stack.enter_async_context(Transport(url, None, unsafe_http=True, ca_file=section.ca_file))
        )
        for url in section.urls
    ]
