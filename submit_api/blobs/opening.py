"""Which store the settings ask for."""

from __future__ import annotations

from integrity.errors import SettingsError
from submit_api.blobs.local import LocalStore
from submit_api.blobs.store import BlobStore
from submit_api.settings import Settings


def open_store(settings: Settings, owner: str) -> BlobStore:
    """Nothing is asked of a bucket yet. `owner` names this service in it. Raises `SettingsError`."""
    limits = settings.limits
    sizes = {
        "inline_bytes": limits.inline_bytes,
        "cached_blob_bytes": limits.cached_blob_bytes,
        "cache_bytes": limits.blob_cache_bytes,
    }
    if not settings.blobs.url:
        return LocalStore(settings.blobs_folder, **sizes)
    try:
        from submit_api.blobs.bucket import Bucket
        from submit_api.blobs.remote import BucketStore
    except ImportError:
        raise SettingsError("blobs.url is a bucket and obstore is missing: pip install dagseal[s3]") from None
    bucket = Bucket(settings.blobs)
    return BucketStore(settings.blobs_folder, bucket, owner=owner, section=settings.blobs, **sizes)
