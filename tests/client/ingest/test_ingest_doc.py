"""docs/data-contract.md names every kind of finding."""

from pathlib import Path

from sfumato.client.ingest.findings import FaultKind


def test_every_kind_has_its_line() -> None:
    page = (Path(__file__).parents[3] / "docs" / "data-contract.md").read_text(encoding="utf-8")
    assert [k.value for k in FaultKind if f"| `{k.value}` |" not in page] == []
