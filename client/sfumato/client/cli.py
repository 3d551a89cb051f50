"""`sfumato branch …`: what a branch's operator and its compliance officer type."""

from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from sfumato.common.errors import BadInput
from sfumato.common.private_files import read_private

app = typer.Typer(
    help="A branch: set up, ingest, run, look at what was asked and spent.", no_args_is_help=True
)
console = Console(highlight=False, soft_wrap=True)

Home = Annotated[Path, typer.Argument(help="The branch's directory.", show_default=False)]
PassphraseFile = Annotated[
    Path | None,
    typer.Option(help="File (0600) that holds the vault's passphrase; asked for at the terminal if absent."),
]


def _passphrase(file: Path | None, *, confirm: bool = False) -> str:
    if file is not None:
        return read_private(file, "passphrase").decode().rstrip("\n")
    return str(typer.prompt("Vault passphrase", hide_input=True, confirmation_prompt=confirm))


@app.command()
def init(
    home: Home,
    name: Annotated[str, typer.Option(help="The branch's name, as the others will see it (a-z, 0-9, -).")],
    invitation: Annotated[Path, typer.Option(help="invitation.json from the coordinator.")],
    contract: Annotated[Path, typer.Option(help="The data contract (TOML).")],
    budget_epsilon: Annotated[
        float, typer.Option(min=0.01, help="Total epsilon that customers may lose here.")
    ] = 8.0,
    budget_delta: Annotated[float, typer.Option(min=1e-12, max=1e-3)] = 1e-5,
    max_epsilon_per_job: Annotated[float, typer.Option(min=0.01)] = 3.0,
    approval: Annotated[
        Literal["automatic", "operator"],
        typer.Option(
            help="automatic: any signed job inside the limits; operator: each one by `branch approve`."
        ),
    ] = "automatic",
    min_secure_set: Annotated[
        int, typer.Option(min=3, help="Fewest branches that a secure sum may be over.")
    ] = 3,
    min_colluders: Annotated[
        int, typer.Option(min=0, help="Colluding branches that a secure sum must at least withstand.")
    ] = 1,
    vault_user: Annotated[
        str | None, typer.Option(help="System user that runs the vault (needs root).")
    ] = None,
    courier_user: Annotated[
        str | None, typer.Option(help="System user that runs the courier (needs root).")
    ] = None,
    ledger_url: Annotated[
        str | None,
        typer.Option(
            help="Keep the ledger in PostgreSQL (postgresql://…, no password in it), not in a file."
        ),
    ] = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Make a branch: keys, an empty sealed store, a ledger with its budget, and an enrolment to hand over."""
    from sfumato.client.policy import Policy
    from sfumato.client.setup import init_branch

    made = init_branch(
        home,
        name=name,
        invitation=invitation,
        contract=contract,
        passphrase=_passphrase(passphrase_file, confirm=True),
        budget_epsilon=budget_epsilon,
        budget_delta=budget_delta,
        policy=Policy(
            max_epsilon_per_job=max_epsilon_per_job,
            approval=approval,
            min_secure_set=min_secure_set,
            min_colluders=min_colluders,
        ),
        vault_user=vault_user,
        courier_user=courier_user,
        ledger_url=ledger_url,
    )
    console.print(f"Branch {made.name} is set up in {home}.")
    console.print(
        f"Hand {home / 'enrolment.json'} to the coordinator (it holds public keys only), then ingest."
    )


@app.command()
def ingest(
    home: Home,
    source: Annotated[
        Path | None,
        typer.Argument(
            help="A CSV or Parquet file, or a directory with one file a table; or use --query.",
            show_default=False,
        ),
    ] = None,
    table: Annotated[
        str | None, typer.Option(help="The contract's table; the customers table if absent.")
    ] = None,
    mode: Annotated[
        Literal["create", "replace", "append"],
        typer.Option(help="create refuses when the table holds rows; replace and append say what they do."),
    ] = "create",
    quarantine: Annotated[
        Path | None,
        typer.Option(help="Put bad rows in this new CSV (0600, holds PII) and load the good ones."),
    ] = None,
    delimiter: Annotated[str, typer.Option(help="What separates cells in a CSV.")] = ",",
    query: Annotated[str | None, typer.Option(help="A PostgreSQL SELECT instead of a file.")] = None,
    dsn_file: Annotated[
        Path | None, typer.Option(help="File (0600) with the PostgreSQL connection string.")
    ] = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Load a table, checked against the contract. All of it or nothing; every finding by row and column."""
    from sfumato.client.home import BranchHome
    from sfumato.client.ingest.load import ingest as load
    from sfumato.client.ingest.load import open_source
    from sfumato.client.vault.store import Store

    branch = BranchHome(home)
    contract = branch.contract()
    if source is not None and source.is_dir():
        if table is not None or quarantine is not None:
            raise BadInput("--table and --quarantine go with one file", hint="Ingest the tables one by one.")
        files = {t.name: _table_file(source, t.name) for t in contract.tables}
        sources = {name: open_source(file, delimiter=delimiter) for name, file in files.items()}
    else:
        name = table or contract.customers
        sources = {name: open_source(source, query=query, dsn_file=dsn_file, delimiter=delimiter)}
    keyring = branch.open_keyring(_passphrase(passphrase_file))
    ledger = branch.open_ledger(keyring)
    store = Store.open(branch.store, contract, keyring)
    try:
        with Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        ) as progress:
            for name, opened in sources.items():
                task = progress.add_task(f"{name}: reading", total=None)

                def show(rows: int, task: TaskID = task, name: str = name) -> None:
                    progress.update(task, description=f"{name}: {rows:,} rows")

                report = load(opened, name, contract, store, mode=mode, quarantine=quarantine, progress=show)
                ledger.append("ingest", {"table": name, "mode": mode})
                progress.console.print(str(report), markup=False)
    finally:
        store.close()


def _table_file(directory: Path, table: str) -> Path:
    found = [p for p in sorted(directory.iterdir()) if p.stem == table]
    if len(found) != 1:
        raise BadInput(
            f"{directory}: {len(found)} files are named {table}.*", hint="One .csv or .parquet file a table."
        )
    return found[0]


@app.command()
def start(home: Home, passphrase_file: PassphraseFile = None) -> None:
    """Run the vault and the courier until Ctrl-C. What fails is started again; what is insecure is not."""
    from sfumato.client.home import BranchHome
    from sfumato.client.launch import Launcher

    Launcher(
        BranchHome(home), _passphrase(passphrase_file), lambda line: console.print(line, markup=False)
    ).run()


@app.command()
def status(home: Home) -> None:
    """Is it running, what has been loaded, what was asked and what is left of the budget."""
    from sfumato.client.status import read_status

    s = read_status(home)
    grid = Table(show_header=False, box=None)
    grid.add_row("branch", s.name)
    grid.add_row("vault", s.vault)
    grid.add_row("courier", s.courier)
    grid.add_row("contract", s.contract)
    grid.add_row("loaded", ", ".join(s.loaded) or "nothing yet")
    grid.add_row("reaches", str(s.reaches) if s.reaches else "no day: the contract has no as_of")
    grid.add_row("pinned", f"{s.pinned} other branches" if s.pinned != 1 else "1 other branch")
    grid.add_row("budget", f"epsilon {s.spending.budget:g} at delta {s.spending.delta:g}")
    grid.add_row("spent", f"epsilon {s.spending.spent:.4f} (filter), {s.spending.reported:.4f} (report, PLD)")
    grid.add_row("reserved", f"epsilon {max(0.0, s.spending.reserved - s.spending.spent):.4f} for open jobs")
    grid.add_row("left", f"epsilon {s.spending.remaining:.4f}")
    console.print(grid)
    for job in s.jobs:
        console.print(
            f"  job {job.job_id[:12]}  {job.name}  {job.state}  {job.releases} releases", markup=False
        )


@app.command()
def ledger(
    home: Home,
    verify: Annotated[
        bool, typer.Option("--verify", help="Recompute every hash; name the first bad entry.")
    ] = False,
    export: Annotated[
        Path | None,
        typer.Option(help="Write it whole, with its signed checkpoint, for `sfumato audit verify`."),
    ] = None,
) -> None:
    """Show, verify or export the record of everything released, refused and opened."""
    from sfumato.client.home import BranchHome
    from sfumato.client.status import describe_entry
    from sfumato.privacy.cli import show_ledger
    from sfumato.privacy.ledger import Ledger

    record = Ledger.read(BranchHome(home).ledger)
    show_ledger(record, console, describe_entry, verify=verify, export=export)


@app.command()
def reach(
    home: Home,
    day: Annotated[
        datetime, typer.Argument(formats=["%Y-%m-%d"], help="The last day of which all rows are loaded.")
    ],
) -> None:
    """Say to which day the data reach, once a new month is loaded: standing questions are then told that month."""
    from sfumato.client.home import BranchHome

    branch = BranchHome(home)
    before = branch.reach(day.date(), date.today())
    console.print(f"The data of {branch.name} reach {day.date()} (before: {before}).")


@app.command()
def approve(
    home: Home,
    job_hash: Annotated[
        str, typer.Argument(help="The job's hash, from `job submit` or a refusal in the ledger.")
    ],
) -> None:
    """Approve one job (its exact parameters) when the branch's policy asks for an operator."""
    from sfumato.client.home import BranchHome

    if len(job_hash) != 64 or set(job_hash) - set("0123456789abcdef"):
        raise BadInput("a job hash is 64 hex digits", hint="`sfumato job submit --dry-run` prints it.")
    BranchHome(home).approve(job_hash)
    console.print(f"Approved {job_hash}.")


@app.command()
def pin(
    home: Home,
    file: Annotated[
        list[Path],
        typer.Argument(help="The coordinator's list of members, or enrolment.json of other branches."),
    ],
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Take this list for the whole: changed keys in, other names out."),
    ] = False,
) -> None:
    """Pin the other branches' keys: only with them does this branch join a secure sum. Needs no restart."""
    from sfumato.client.home import BranchHome
    from sfumato.client.pinning import pin as pin_members
    from sfumato.client.pinning import read_members
    from sfumato.common.enrolment import fingerprint

    branch = BranchHome(home)
    done = pin_members(branch, read_members(file), replace=replace)
    table = Table("branch", "fingerprint of its key", "", box=None)
    for name, key in done.members.items():
        own = ", this branch" if name == branch.name else ""
        table.add_row(name, fingerprint(key), done.news(name) + own)
    for name in sorted(done.removed):
        table.add_row(name, "", "removed")
    console.print(table)
    console.print("Compare each fingerprint with its branch, by telephone, before the next secure sum.")


@app.command()
def score(
    home: Home,
    model: Annotated[
        Path, typer.Argument(help="model.safetensors, as the risk team handed it out.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="The file to write: .csv or .parquet, readable by you only.")],
    reasons: Annotated[
        int | None,
        typer.Option(min=0, max=20, help="So many reasons a customer; 3 for models that give any."),
    ] = None,
    reveal: Annotated[
        str | None,
        typer.Option(
            help="Columns of the customers table to open, with commas between. Asks for the passphrase again."
        ),
    ] = None,
    purpose: Annotated[
        str | None, typer.Option(help="What the opened columns are for: stands in the ledger.")
    ] = None,
    ids: Annotated[
        Path | None,
        typer.Option(help="A CSV or Parquet file with your customers' ids, to --reveal the customer id."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Score the branch's own customers with a trained model. Nothing leaves the branch; the ledger notes it."""
    from sfumato.client.home import BranchHome
    from sfumato.client.scoring import Order, Reveal, score_customers

    if reveal is None and (purpose is not None or ids is not None):
        raise BadInput("--purpose and --ids go with --reveal")
    columns = tuple(c.strip() for c in reveal.split(",")) if reveal is not None else ()
    opened = Reveal(columns, purpose or "", ids) if reveal is not None else None

    def again() -> str:
        shown = f"Vault passphrase again, to open {', '.join(columns)} of all customers"
        return str(typer.prompt(shown, hide_input=True))

    bar = (TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    progress = Progress(*bar, console=console, transient=True)
    task = progress.add_task("", total=None)

    def show(customers: int, all_: int) -> None:
        progress.start()  # not before: a passphrase may be asked for
        progress.update(task, completed=customers, total=all_)

    try:
        done = score_customers(
            BranchHome(home),
            Order(model, out, reasons, opened, force),
            lambda: _passphrase(passphrase_file),
            again=again,
            progress=show,
        )
    finally:
        if progress.live.is_started:
            progress.stop()
    text = f"Scored {done.customers:,} customers with {done.name} ({done.kind}, {done.model[:12]}): {out}"
    console.print(text, markup=False)
    if columns:
        console.print("It holds personal data in the clear. The ledger says who opened what, and for what.")


@app.command()
def reveal(
    home: Home,
    table: Annotated[str, typer.Option(help="Table of the contract.")],
    column: Annotated[str, typer.Option(help="A PII column with protection = encrypt.")],
    customer_id: Annotated[list[str], typer.Option(help="Customer id; give it again for more.")],
    reason: Annotated[str, typer.Option(help="Why: stands in the ledger.")],
    passphrase_file: PassphraseFile = None,
) -> None:
    """Open sealed fields of named customers. The act stands in the ledger before anything is opened."""
    from sfumato.client.home import BranchHome
    from sfumato.client.vault.store import Store

    branch = BranchHome(home)
    keyring = branch.open_keyring(_passphrase(passphrase_file))
    record = branch.open_ledger(keyring)
    store = Store.open(branch.store, branch.contract(), keyring, read_only=True)

    def audit(table: str, column: str, count: int) -> None:
        record.append("reveal", {"table": table, "column": column, "customers": count, "reason": reason})

    try:
        for customer, values in store.reveal(table, column, customer_id, audit=audit).items():
            console.print(customer, *[v if v is not None else "(empty)" for v in values], markup=False)
    finally:
        store.close()
        branch.restore_owner()


@app.command("rotate-key")
def rotate_key(
    home: Home,
    passphrase_file: PassphraseFile = None,
    new_passphrase_file: Annotated[
        Path | None, typer.Option(help="File (0600) with the new passphrase.")
    ] = None,
) -> None:
    """Change the passphrase: data keys are wrapped anew, no data is rewritten."""
    from sfumato.client.home import BranchHome
    from sfumato.privacy.keys import PassphraseKeyProvider

    branch = BranchHome(home)
    keyring = branch.open_keyring(_passphrase(passphrase_file))
    record = branch.open_ledger(keyring)
    if new_passphrase_file is None:
        console.print("The new passphrase:")
    keyring.rotate(PassphraseKeyProvider(_passphrase(new_passphrase_file, confirm=True)))
    branch.restore_owner()
    record.append("rotate-key", {"keys": len(keyring.names())})
    console.print("Rotated. The old passphrase no longer opens this branch.")
