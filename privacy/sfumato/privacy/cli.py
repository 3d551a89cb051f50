"""`sfumato audit …`: what a compliance officer checks without asking anybody."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sfumato.common.errors import BadInput
from sfumato.common.private_files import write_new

if TYPE_CHECKING:
    from sfumato.privacy.audit import Finding, Verdict
    from sfumato.privacy.entries import Entry
    from sfumato.privacy.ledger import Ledger

audit = typer.Typer(help="Check what was promised: the record, and the running code.", no_args_is_help=True)
console = Console(highlight=False)

CONTRADICTED = 8  # exit code
LONG = 40  # findings; of more, only those that are not consistent are listed


@audit.callback()
def _audit() -> None:
    """Check what was promised: the record, and the running code."""


@audit.command("verify")
def audit_verify(
    file: Annotated[Path, typer.Argument(help="A ledger, as `branch ledger --export` wrote it.")],
    since: Annotated[
        list[Path] | None,
        typer.Option(help="What you kept: a checkpoint, an earlier export, a run's result.json; repeat."),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(help="The ledger's key, from elsewhere: base64, enrolment.json or invitation.json."),
    ] = None,
    cosigner: Annotated[
        list[Path] | None, typer.Option(help="enrolment.json of a branch that co-signed; repeat.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the finding as JSON.")] = False,
) -> None:
    """Check an exported ledger offline: every hash, signature and sum. Exit code 4 names the first bad entry."""
    from sfumato.privacy import ledger_report

    verified = ledger_report.verify_file(file, since=since or (), key=key, cosigners=cosigner or ())
    spent = verified.account.spent()
    if as_json:
        typer.echo(ledger_report.as_json(verified, spent=spent))
        return
    for line in ledger_report.report(verified, spent=spent):
        console.print(line, markup=False, soft_wrap=True)


@audit.command("privacy")
def audit_privacy(
    run: Annotated[
        str, typer.Argument(help="A run's number (with --coordinator), its directory, or its audit.json.")
    ],
    home: Annotated[
        Path | None, typer.Option("--coordinator", help="The coordinator's directory.", show_default=False)
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="List every test of a long audit.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdict as JSON.")] = False,
) -> None:
    """Hold a run's phantom slots against its claim. Exit code 8 if they contradict it, else 0."""
    from sfumato.privacy.audit import assess, from_json

    verdict = assess(from_json(_evidence_file(run, home).read_bytes()))
    if as_json:
        typer.echo(verdict.to_json())
    else:
        _print(verdict, everything=everything)
    if verdict.contradicted:
        raise typer.Exit(CONTRADICTED)


def _evidence_file(run: str, home: Path | None) -> Path:
    if home is not None and run.isdecimal():
        path = home / "runs" / run / "audit.json"
    else:
        path = Path(run) / "audit.json" if Path(run).is_dir() else Path(run)
    if not path.is_file():
        raise BadInput(
            f"{path}: no evidence of an audit here",
            hint="Give a run's directory, its audit.json, or its number with --coordinator.",
        )
    return path


def _print(verdict: "Verdict", *, everything: bool) -> None:
    if not verdict.findings:
        console.print("Unaudited: the job had no phantom slots (audit.empty_slots, audit.canaries).")
        return
    short = everything or len(verdict.findings) <= LONG
    shown = [f for f in verdict.findings if short or f.outcome != "consistent"]
    for what in dict.fromkeys(f.what for f in shown):
        _print_answer(what, [f for f in shown if f.what == what])
    tests, outcome = len(verdict.findings), verdict.outcome
    if len(shown) < tests:
        console.print(f"{tests - len(shown)} more tests are consistent with the claim (--all lists them).")
    such = sum(f.outcome == outcome for f in verdict.findings)
    counted = f"{such} of {_count(tests, 'test')}, on {_count(verdict.releases, 'answer')}"
    meaning = _MEANING[outcome].format(tests / 1000)
    console.print(f"Verdict: [bold]{outcome}[/] ({counted}). {meaning}")


def _print_answer(what: str, findings: list["Finding"]) -> None:
    table = Table(
        "test", "measured quantity", "claim", "measured", "p", "verdict", title=escape(what), box=None
    )
    table.title_justify = "left"
    for f in findings:
        row = (f.test, f.quantity, f"{f.claimed:.3g}", f"{f.measured:.3g}", f"{f.p:.2g}", f.outcome)
        table.add_row(*row, style="" if f.outcome == "consistent" else "bold red")
    console.print(table)
    console.print("  It would have contradicted, 95 times in 100:")
    for f in findings:
        console.print(f"    {f.test}: {f.power}")
    console.print()


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


_MEANING = {
    "consistent": "What was seen fits the claim; no more is proven.",
    "flagged": "Correct code is flagged by {:.2g} of so many tests on average: look again, nothing is withheld.",
    "contradicted": "The code did not do what was claimed: the coordinator publishes nothing of this run.",
}


def show_ledger(
    record: "Ledger",
    console: Console,
    describe: "Callable[[Entry], str]",
    *,
    verify: bool,
    export: Path | None,
    kept: Sequence[str] = (),
) -> None:
    """What every role's `ledger` command does: write the record whole (with `kept` notes), check it, or list it."""
    if export is not None:
        write_new(export, "".join(f"{line}\n" for line in record.export(*kept)).encode())
        console.print(f"{export}: {record.verify()} entries")
    elif verify:
        console.print(f"The ledger verifies: {record.verify()} entries, root {record.signed_head().root}.")
    else:
        table = Table("#", "time (UTC)", "what", "job", "detail", box=None)
        for entry in record.entries():
            when = entry.time.strftime("%Y-%m-%d %H:%M:%S")
            table.add_row(str(entry.seq), when, entry.kind, (entry.job_id or "")[:12], describe(entry))
        console.print(table)
