"""Stores on an S3 server, with s3fs as a user has it."""

from __future__ import annotations

import fsspec

from donna_ray.storage.files import Storage


def test_what_others_wrote_since_a_listing_is_there(bucket: str) -> None:
    others = fsspec.filesystem("s3", skip_instance_cache=True)
    store = Storage(f"{bucket}/run")
    store.write("old", b"1")
    assert set(store.listing()) == {"old"}
    others.pipe_file(f"{bucket}/run/new", b"2")
    assert store.read("new") == b"2"
    assert set(store.listing()) == {"old", "new"}
    others.rm_file(f"{bucket}/run/old")
    assert store.read("old") is None
    assert set(store.listing()) == {"new"}
