"""Check of the sizes that a file of torch.save declares, before memory is allocated for them."""

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import _weights_only_unpickler

from scalablevit.config.errors import UserError

FIX = "get the file again from where it comes, or save the state dict alone with torch.save or as .safetensors"


def check_sizes(path: Path) -> None:
    """Refuse an archive whose entries or tensors are larger than the file can hold; no tensor is read.

    torch.save stores entries uncompressed. A compressed one may unpack to any size, and torch takes the size of a
    tensor from the pickle without checking that its entry has as many bytes. Files of another form or with other damage
    pass here: torch.load refuses them itself.

    Args:
        path: of a .pth or .pt file.

    Raises:
        UserError: a declared size is larger than the file, or differs from the bytes of the tensor's entry.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check(archive, path)
    except (zipfile.BadZipFile, NotImplementedError, OSError, struct.error):
        return


def _check(archive: zipfile.ZipFile, path: Path) -> None:
    entries = archive.infolist()
    file_size = path.stat().st_size
    declared = sum(entry.file_size for entry in entries)
    if declared > file_size:
        raise UserError(
            f"declares {_size(declared)} of content in a file of {_size(file_size)}: compressed or damaged",
            where=str(path),
            fix=FIX,
        )
    pickles = [entry.filename for entry in entries if entry.filename.endswith("/data.pkl")]
    if not pickles:
        return
    folder = pickles[0].removesuffix("data.pkl")
    sizes = {entry.filename.removeprefix(f"{folder}data/"): entry.file_size for entry in entries}
    content = io.BytesIO(archive.read(pickles[0]))

    def storage(saved_id: tuple[Any, ...]) -> torch.storage.TypedStorage:
        """Return a storage without memory, in place of the one that the pickle refers to."""
        _, kind, key, _, count = saved_id
        dtype = torch.uint8 if kind is torch.UntypedStorage else kind.dtype
        declared_size, stored_size = count * dtype.itemsize, sizes.get(key, 0)
        if declared_size != stored_size:
            raise UserError(
                f"declares a tensor of {_size(declared_size)} and holds {_size(stored_size)} of it, "
                f"in a file of {_size(file_size)}",
                where=str(path),
                fix=FIX,
            )
        untyped = torch.UntypedStorage(declared_size, device="meta")
        return torch.storage.TypedStorage(wrap_storage=untyped, dtype=dtype, _internal=True)

    unpickler = _weights_only_unpickler.Unpickler(content, encoding="utf-8")
    unpickler.persistent_load = storage  # type: ignore[method-assign]
    try:
        unpickler.load()
    except UserError:
        raise
    except Exception:  # torch.load itself refuses objects other than tensors, and gives the reason
        return


def _size(nbytes: int) -> str:
    """Return bytes as text in decimal units, such as `8.8 TB`."""
    size, unit = float(nbytes), "bytes"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
