"""A model as files for whoever uses it: the tensors, ONNX, the card, and what proves where it comes from."""

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from sfumato.common.contract import Contract
from sfumato.common.errors import BadInput
from sfumato.server.model_card import card
from sfumato.server.model_page import card_page
from sfumato.server.onnx_export import onnx_bytes
from sfumato.server.registry import MODEL, Entry
from sfumato.server.run_files import write_whole


def bundle(entry: Entry, contract: Contract | None = None) -> dict[str, bytes]:
    """The files by name. `contract` where the run does not hold its own. Raises BadInput unless it is verified."""
    model = entry.require()
    if contract is None and entry.signed is not None:
        contract = entry.signed.contract
    made = card(entry)
    files = {
        MODEL: entry.files[MODEL],
        "model.onnx": onnx_bytes(model, contract),
        "card.json": as_json(made),
        "card.html": card_page(made).encode("utf-8", "replace"),
    }
    if "schema.json" in entry.files:
        files["schema.json"] = entry.files["schema.json"]
    if entry.witnessed is not None:
        files["checkpoint"] = entry.witnessed.note.encode()
    return files


def as_json(value: Any) -> bytes:
    return json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False).encode() + b"\n"


def write_bundle(directory: Path, files: dict[str, bytes], *, force: bool = False) -> None:
    """Every file whole; of a new directory all or nothing. Raises BadInput where one is there, unless `force`, and
    where nothing can be written."""
    directory = directory.resolve()
    if not directory.name or (directory.exists() and not directory.is_dir()):
        raise BadInput(f"{directory}: is not a directory to write into")
    there = [name for name in sorted(files) if (directory / name).exists()]
    if there and not force:
        raise BadInput(
            f"{directory}: holds {', '.join(there)} already",
            hint="Nothing was written. Give another directory, or --force to replace them.",
        )
    temporary = directory.with_name(f".{directory.name}.{os.getpid()}.part")
    try:
        temporary.mkdir(parents=True)
        for name, content in files.items():
            write_whole(temporary / name, content)
        if not directory.exists():
            temporary.rename(directory)
            return
        for name in files:
            _place(temporary / name, directory / name, force)
    except OSError as e:
        raise BadInput(f"{directory}: cannot be written ({e.strerror or e})") from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(temporary)


def _place(source: Path, target: Path, force: bool) -> None:
    if force:
        source.replace(target)
        return
    try:
        os.link(source, target)
    except FileExistsError:
        raise BadInput(f"{target}: is there already", hint="Somebody wrote it just now.") from None
