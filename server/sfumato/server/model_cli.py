"""`sfumato model …`: the models at the coordinator, for the risk team."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from sfumato.server.registry import Registry

model = typer.Typer(
    help="Models: list, show, compare, export; each is held against the ledger.", no_args_is_help=True
)
# No markup: names and categories come from contracts, and may hold brackets.
console = Console(highlight=False, soft_wrap=True, markup=False)

Home = Annotated[Path, typer.Option("--coordinator", "--home", help="The coordinator's directory.")]
Run = Annotated[str, typer.Argument(help="The run that made it, as `model list` prints it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
STATES = {"verified": "green", "altered": "bold red", "unlisted": "bold red", "unreadable": "yellow"}


@model.command("list")
def model_list(home: Home, as_json: AsJson = False) -> None:
    """Every model that a run left, the latest last, and whether its files are those that the ledger states."""
    from sfumato.server.model_card import summary

    found = [summary(entry) for entry in _registry(home).entries()]
    if as_json:
        _print_json(found)
        return
    if not found:
        console.print("No run has left a model yet.")
        return
    table = Table("run", "name", "kind", "epsilon", "AUC", "branches", "made (UTC)", "state", box=None)
    for s in found:
        table.add_row(*_cells(s), style=None if s["state"] == "verified" else STATES[s["state"]])
    console.print(table)
    for s in found:
        if s["problems"]:
            console.print(f"Run {s['run']} is {s['state']}: {'; '.join(s['problems'])}.")


@model.command("show")
def model_show(run: Run, home: Home, as_json: AsJson = False) -> None:
    """All that is known of a model, as on its card. Writes nothing."""
    from sfumato.server.model_card import card

    entry = _registry(home).entry(run)
    made = card(entry)
    if as_json:
        _print_json(made)
        return
    for key, value in _facts(made):
        console.print(f"{key:<12} ", style="bold", end="")
        console.print(value)
    for title, table in _tables(made):
        console.print()
        console.print(title, style="bold")
        console.print(table)
    console.print("\nWhat it must not be used for", style="bold")
    for limit in made["limits"]:
        console.print(f"- {limit}")


@model.command("compare")
def model_compare(
    runs: Annotated[list[str], typer.Argument(help="Two runs or more.")], home: Home, as_json: AsJson = False
) -> None:
    """The models' measures side by side; where intervals overlap, no difference is shown."""
    from sfumato.server.model_comparison import comparison

    registry = _registry(home)
    made = comparison([registry.entry(run) for run in runs])
    if as_json:
        _print_json(made)
        return
    heads = [f"{s['name']} (run {s['run']})" for s in made["runs"]]
    table = Table("", *heads, "difference", box=None)
    for label, key in (
        ("kind", "kind"),
        ("epsilon", "epsilon"),
        ("branches", "branches"),
        ("state", "state"),
    ):
        table.add_row(label, *(_text(s[key]) for s in made["runs"]), "")
    for name, row in made["metrics"].items():
        table.add_row(name, *(_estimate(name, row["of"][run]) for run in runs), _difference(row))
    console.print(table)
    for warning in made["warnings"]:
        console.print(f"Beware: {warning}")


@model.command("export")
def model_export(
    run: Run,
    home: Home,
    out: Annotated[Path, typer.Option(help="The directory to write; made when needed.")],
    contract: Annotated[
        Path | None, typer.Option(help="The contract (TOML), where the run does not hold its own.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
) -> None:
    """Write a verified model: model.safetensors, model.onnx, its card (HTML, JSON), its schema, the checkpoint."""
    from sfumato.common.contract import load_contract
    from sfumato.server.model_export import bundle, write_bundle

    entry = _registry(home).entry(run)
    files = bundle(entry, load_contract(contract) if contract is not None else None)
    write_bundle(out, files, force=force)
    console.print(f"Wrote {', '.join(sorted(files))} to {out}.")


def _registry(home: Path) -> "Registry":
    from sfumato.server.home import CoordinatorHome
    from sfumato.server.registry import Registry

    return Registry.of(CoordinatorHome.load(home))


def _print_json(value: Any) -> None:
    from sfumato.server.model_export import as_json

    typer.echo(as_json(value).decode(), nl=False)


# --- tables ------------------------------------------------------------------------------------------------


def _cells(s: Mapping[str, Any]) -> list[str]:
    from sfumato.server.report_words import rounded_up

    made = str(s["made"] or "")[:16].replace("T", " ")
    epsilon = "" if s["epsilon"] is None else rounded_up(s["epsilon"])
    cells = (
        s["run"],
        s["name"],
        s["kind"],
        epsilon,
        _estimate("auc", s["auc"]),
        s["branches"],
        made,
        s["state"],
    )
    return [_text(cell) for cell in cells]


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _estimate(name: str, given: Mapping[str, float] | None) -> str:
    from sfumato.server.model_page import UNITS
    from sfumato.server.report_words import Estimate

    found = Estimate.of(given, unit=UNITS.get(name, ""))
    return found.full if found else ""


def _difference(row: Mapping[str, Any]) -> str:
    if sum(v is not None for v in row["of"].values()) < 2:
        return ""
    pairs = ", ".join(f"{a} and {b}" for a, b in row["apart"])
    return f"apart: {pairs}" if pairs else "intervals overlap"


def _facts(made: Mapping[str, Any]) -> list[tuple[str, str]]:
    job, contract, ledger = made["job"], made["contract"], made["ledger"]
    mode = str(job["mode"] or "not known")
    if job["colluders"] is not None:
        mode += f", against {job['colluders']} colluding"
    facts = [
        ("Model", f"{made['name']}, {made['kind']}"),
        ("Purpose", made["purpose"]),
        ("State", "; ".join([made["state"], *made["problems"]])),
        ("Run", f"{made['run']}, made {made['made']}"),
        ("Contract", f"{contract['name']}, {contract['hash']}"),
        ("Label", contract["label"] or "none"),
        ("Job", f"{job['id']}, hash {job['hash']}"),
        ("Mode", mode),
        ("Privacy", f"epsilon {made['privacy']['epsilon']:.4g}, delta {made['privacy']['delta']:g}"),
        ("", made["privacy"]["meaning"]),
        ("Branches", ", ".join(str(b["name"]) for b in made["branches"]) or "not known"),
        ("Audit", made["audit"] or "none"),
        ("File", f"SHA-256 {made['sha256']}"),
    ]
    if ledger is None:
        return [*facts, ("Ledger", "knows nothing of this run")]
    facts.append(("Ledger", f"entry {ledger['entry']}, {ledger['entry_hash']}"))
    if (point := ledger["checkpoint"]) is None:
        return [*facts, ("Checkpoint", "none: no branch has signed for it")]
    signed = ", ".join(c["branch"] for c in point["cosigned"]) or "no branch"
    return [*facts, ("Checkpoint", f"{point['size']} entries, root {point['root']}, co-signed by {signed}")]


def _tables(made: Mapping[str, Any]) -> list[tuple[str, Table]]:
    found = []
    if whole := made["evaluation"]["metrics"]:
        table = Table("measure", "value", box=None)
        for name, e in whole.items():
            table.add_row(name, _estimate(name, e))
        found.append(("How good it is", table))
    for column, groups in made["fairness"].items():
        names = list(dict.fromkeys(n for g in groups.values() for n in g))
        table = Table(column, *names, box=None)
        for group, of_group in groups.items():
            table.add_row(group, *(_estimate(n, of_group.get(n)) for n in names))
        found.append((f"By {column}", table))
    for drift in made["drift"][-1:]:
        table = Table("column", "stability index", "verdict", box=None)
        for c in drift["columns"]:
            table.add_row(c["column"], _estimate("", c["psi"]), c["verdict"])
        found.append((f"Customers since then, by run {drift['run']} of {drift['time'][:10]}", table))
    kind, inside = made["kind"], made["explanation"]
    return found + _inside(kind, inside) + _of_lifetime(kind, inside)


def _of_lifetime(kind: str, inside: Mapping[str, Any]) -> list[tuple[str, Table]]:
    table = Table("parameter", "value", box=None)
    for name, value in inside.get("parameters", {}).items():
        table.add_row(name, f"{value:.5g}")
    says = "How often customers buy (BG/NBD), and for how much (gamma-gamma)"
    return [(says, table)] if kind == "clv" else []


def _inside(kind: str, inside: Mapping[str, Any]) -> list[tuple[str, Table]]:
    found = []
    if kind == "scorecard":
        for column in inside["columns"]:
            table = Table("bin", "points", "WOE", "bad rate", box=None)
            for line in column["bins"]:
                rate = _estimate("precision", line["bad_rate"])  # a percentage, as that
                table.add_row(str(line["bin"]), str(line["points"]), _estimate("", line["woe"]), rate)
            found.append((f"{column['column']}, information value {_estimate('', column['iv'])}", table))
    elif kind == "boosted-trees":
        table = Table("column", "log-odds, std over customers", box=None)
        for column in inside["columns"]:
            table.add_row(column["column"], f"{column['moves']:.3f}")
        found.append((f"{inside['trees']} trees; what each column moves", table))
    elif kind == "segments":
        segments = inside["segments"]  # a column each: there are few, and many numbers
        table = Table("", *(f"segment {s['segment']}" for s in segments), box=None)
        table.add_row("customers", *(_estimate("", s["customers"]) for s in segments))
        for name in inside["names"]:
            table.add_row(name, *(_estimate("", s["centre"].get(name)) for s in segments))
        for column, values in (segments[0].get("mix") or {} if segments else {}).items():
            for value in values:
                shares = (s["mix"][column].get(value) for s in segments)
                table.add_row(f"{column}: {value}", *(_estimate("base_rate", share) for share in shares))
        found.append((f"{inside['count']} segments", table))
    elif kind == "sentiment":
        table = Table("text", "buckets", "right, of customers never trained on", box=None)
        right = _estimate("precision", inside["accuracy"])
        table.add_row(inside["text"], str(inside["buckets"]), right)
        found.append(("A classifier of hashed words", table))
    elif kind == "offer":
        table = Table(*inside["groups"], "product", "offered to", box=None)
        for row in inside["plan"]:
            table.add_row(*row["group"], row["product"], f"{row['fraction']:.1%}")
        found.append((f"Who is offered what, at most {inside['most_offers']} a customer", table))
    return found
