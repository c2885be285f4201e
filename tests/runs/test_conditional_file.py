"""Addresses as both libraries see them; tests/cluster/test_object_storage.py writes by them."""

import pytest

from scalablevit.runs.conditional_file import open_store
from scalablevit.training.storage import open_filesystem


@pytest.mark.parametrize(
    ("location", "bucket", "prefix"),
    [("s3://bucket/folder/run", "bucket", "folder/run"), ("gs://bucket/folder/run", "bucket", "folder/run"),
     ("gcs://bucket/run", "bucket", "run"), ("abfss://account.blob.core.windows.net/box/run", "box", "run")],
)  # fmt: skip
def test_an_address_of_pyarrow_is_the_same_place_for_obstore(location, bucket, prefix, monkeypatch):
    """No request is made; nothing of Google Cloud Storage and Azure was run besides this."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # else pyarrow would ask for the bucket's region
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    store = open_store(location, *open_filesystem(location))
    config = dict(store.config)
    assert config.get("bucket", config.get("container_name")) == bucket and store.prefix == prefix
    assert config.get("account_name", "account") == "account" and config.get("region", "eu-central-1") == "eu-central-1"


def test_what_is_no_object_store_is_refused(tmp_path):
    with pytest.raises(OSError, match="local is no object store"):
        open_store(str(tmp_path), *open_filesystem(str(tmp_path)))
