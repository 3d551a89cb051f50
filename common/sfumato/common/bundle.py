"""The app bundle (FAB) that Flower carries: three public files, no code, always the same bytes.

Coordinator and branches each build it from their own installation and compare hashes, so "the approved
bundle" needs no key and no download. `flwr build` is not used: it compresses, and zlib does not promise the
same bytes on every build of Python. Here everything is stored, in a fixed order, with a fixed date.
"""

import hashlib
import io
import zipfile
from functools import cache
from importlib.resources import files

NAMES = ("pyproject.toml", "LICENSE", "README.md")
_DATE = (2024, 10, 1, 0, 0, 0)


@cache
def build_bundle() -> bytes:
    """The bundle of this installation, byte for byte the same everywhere."""
    folder = files("sfumato.common").joinpath("bundle")
    contents = {name: folder.joinpath(name).read_bytes() for name in NAMES}
    # Flower's manifest: path, SHA-256, size in bits.
    manifest = "\n".join(f"{n},{hashlib.sha256(c).hexdigest()},{len(c) * 8}" for n, c in contents.items())
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, content in [*contents.items(), (".info/CONTENT", manifest.encode())]:
            entry = zipfile.ZipInfo(name, date_time=_DATE)
            entry.create_system = 3  # otherwise Windows would write another byte than Unix
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content)
    return out.getvalue()


def bundle_hash(content: bytes) -> str:
    """Hex SHA-256 of a bundle's bytes: taken of what arrived, never of what was claimed."""
    return hashlib.sha256(content).hexdigest()


def approved_hash() -> str:
    """The hash of the one bundle that this installation runs."""
    return bundle_hash(build_bundle())
