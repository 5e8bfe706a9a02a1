"""The store of archive bytes: one blob per SHA-512, never changed once it is there; in a folder, or in a bucket."""

from submit_api.blobs.incoming import Upload
from submit_api.blobs.store import BlobStore

__all__ = ["BlobStore", "Upload"]
