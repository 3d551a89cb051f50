"""`sfumato coordinator …` and `sfumato job …`: what the risk team and its operators type."""

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

from sfumato.common.errors import BadInput, Unavailable

coordinator = typer.Typer(help="The coordinator: set up, invite, enrol branches, run.", no_args_is_help=True)
job = typer.Typer(help="Jobs: submit, watch, list, stop, report.", no_args_is_help=True)
console = Console(highlight=False, soft_wrap=True)

Home = Annotated[Path, typer.Argument(help="The coordinator's directory.", show_default=False)]
Coordinator = Annotated[Path, typer.Option("--coordinator", help="The coordinator's directory.")]
RunId = Annotated[int, typer.Argument(help="The run's number, as `job submit` and `job list` print it.")]


@coordinator.command("init")
def coordinator_init(
    home: Home,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the SuperLink.")] = 9092,
    session_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port for sessions (fast rounds).")
    ] = 9093,
    name: Annotated[
        list[str] | None,
        typer.Option(
            help="DNS name or address by which branches reach it; repeat; the first is in invitations."
        ),
    ] = None,
    ledger_url: Annotated[
        str | None,
        typer.Option(
            help="Keep the ledger in PostgreSQL (postgresql://…, no password in it), not in a file."
        ),
    ] = None,
) -> None:
    """Make a coordinator: own CA, server certificate, control token, signing keys, a ledger, and an invitation."""
    from sfumato.server.home import CoordinatorHome

    made = CoordinatorHome.init(
        home,
        host=host,
        port=port,
        session_port=session_port,
        names=tuple(name or ()),
        ledger_url=ledger_url,
    )
    console.print(f"Coordinator is set up in {made.path}.")
    console.print(f"Hand {made.path / 'invitation.json'} to every branch (it is public).")


@coordinator.command("enrol")
def coordinator_enrol(
    home: Home,
    enrolment: Annotated[list[Path], typer.Argument(help="enrolment.json of a branch; several are fine.")],
) -> None:
    """Admit branches by their enrolment files; at once if the coordinator is running, else at its next start."""
    from sfumato.server.control import ControlClient, register_branches
    from sfumato.server.home import CoordinatorHome

    loaded = CoordinatorHome.load(home)
    for path in enrolment:
        console.print(f"Enrolled {loaded.enrol(path).name}.")
    control = ControlClient.of(loaded)
    try:
        register_branches(loaded, control)
    except Unavailable:
        console.print("The coordinator is not running: they are admitted at its next start.")
    finally:
        control.close()


@coordinator.command("roster")
def coordinator_roster(
    home: Home,
    out: Annotated[Path, typer.Option(help="The JSON file to write; it is public.")],
) -> None:
    """Write every enrolled branch's name and key, for all of them to pin (`sfumato branch pin`)."""
    from sfumato.common.enrolment import fingerprint
    from sfumato.common.private_files import replace
    from sfumato.server.home import CoordinatorHome

    members = CoordinatorHome.load(home).members()
    replace(out, members.dump(), mode=0o644)
    table = Table("branch", "fingerprint of its key", box=None)
    for member in members.members:
        table.add_row(member.name, fingerprint(member.key))
    console.print(table)
    console.print(f"Wrote {out}. Each branch pins it, and compares fingerprints with the others.")


@coordinator.command("ledger")
def coordinator_ledger(
    home: Home,
    verify: Annotated[
        bool, typer.Option("--verify", help="Recompute every hash; name the first bad entry.")
    ] = False,
    export: Annotated[
        Path | None,
        typer.Option(help="Write it whole, with its signed checkpoint, for `sfumato audit verify`."),
    ] = None,
) -> None:
    """Show, verify or export the coordinator's own record: jobs, what they left, each branch's checkpoints."""
    from sfumato.privacy.cli import show_ledger
    from sfumato.server.home import CoordinatorHome
    from sfumato.server.ledger import describe_entry

    loaded = CoordinatorHome.load(home)
    kept = [note] if export is not None and (note := loaded.cosigned.note) else []
    show_ledger(loaded.open_ledger(), console, describe_entry, verify=verify, export=export, kept=kept)


@coordinator.command("start")
def coordinator_start(home: Home) -> None:
    """Run the SuperLink and the executor for jobs until Ctrl-C."""
    import signal
    import time

    from sfumato.server.coordinator import Coordinator
    from sfumato.server.home import CoordinatorHome

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    loaded = CoordinatorHome.load(home)
    try:
        with Coordinator(loaded) as running:
            console.print(
                f"Coordinator is ready on {loaded.local_address} ({len(loaded.branches())} branches)."
            )
            _name_waiting(running.waiting)
            while True:
                for process in running.tend():
                    console.print(f"The {process} had ended and was started again.")
                    _name_waiting(running.waiting if process == "executor" else [])
                time.sleep(0.5)
    except KeyboardInterrupt:
        console.print("Coordinator stopped.")


def _name_waiting(runs: list[int]) -> None:
    for run_id in runs:
        console.print(f"Run {run_id} was cut short. Go on with it: sfumato job resume {run_id}")


@job.command("submit")
def job_submit(
    job_file: Annotated[Path, typer.Argument(help="The job (TOML).")],
    contract: Annotated[Path, typer.Option(help="The data contract it is written for (TOML).")],
    home: Coordinator,
    valid_hours: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=24 * 366 * 6,
            help="The signature's validity: 24, or of a standing question until three months after its last month.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Check and print the job's hash; submit nothing.")] = False,
    watch: Annotated[bool, typer.Option(help="Follow it until it ends.")] = False,
) -> None:
    """Sign a job and start it through Flower's control API."""
    from sfumato.common.contract import load_contract
    from sfumato.common.job import load_job, sign_job
    from sfumato.server.control import ControlClient
    from sfumato.server.home import CoordinatorHome
    from sfumato.server.standing import valid_for
    from sfumato.server.watching import watch_run

    loaded = CoordinatorHome.load(home)
    checked, agreed = load_job(job_file), load_contract(contract)
    validity = valid_for(checked, agreed) if valid_hours is None else timedelta(hours=valid_hours)
    signed = sign_job(checked, agreed, loaded.job_key(), valid_for=validity)
    if dry_run:
        console.print(f"{checked.name}: epsilon {checked.privacy.target_epsilon:g}, hash {signed.job_hash}")
        return
    control = ControlClient.of(loaded)
    try:
        run_id = control.submit(signed)
        console.print(
            f"Submitted {checked.name} as run {run_id} (job {signed.job_id}, hash {signed.job_hash})."
        )
        if watch:
            watch_run(control, run_id, console)
    finally:
        control.close()


@job.command("resume")
def job_resume(
    run_id: RunId,
    home: Coordinator,
    watch: Annotated[bool, typer.Option(help="Follow it until it ends.")] = False,
) -> None:
    """Go on with a run that was cut short, or ask a standing question for its next months; what was paid for is not
    asked again."""
    from sfumato.server.control import ControlClient
    from sfumato.server.home import CoordinatorHome
    from sfumato.server.interrupted import job_to_resume
    from sfumato.server.watching import watch_run

    loaded = CoordinatorHome.load(home)
    signed = job_to_resume(loaded.directory("runs"), run_id)
    control = ControlClient.of(loaded)
    try:
        new = control.submit(signed)
        console.print(f"Run {run_id} of {signed.job.name} goes on as run {new} (job {signed.job_id}).")
        if watch:
            watch_run(control, new, console)
    finally:
        control.close()


@job.command("watch")
def job_watch(
    run_id: RunId,
    home: Coordinator,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
) -> None:
    """Follow a run with live progress; exit code 0 only if it finished with a result."""
    from sfumato.server.control import ControlClient
    from sfumato.server.home import CoordinatorHome
    from sfumato.server.run_files import write_whole
    from sfumato.server.watching import watch_run

    control = ControlClient.of(CoordinatorHome.load(home))
    try:
        result = watch_run(control, run_id, console)
    finally:
        control.close()
    if json_file is not None:
        write_whole(json_file, json.dumps(result, indent=1).encode())


@job.command("list")
def job_list(home: Coordinator) -> None:
    """The latest runs: state, job, when, and why one failed."""
    from sfumato.server.control import ControlClient
    from sfumato.server.home import CoordinatorHome
    from sfumato.server.run_files import run_directory, waits_for

    loaded = CoordinatorHome.load(home)
    control = ControlClient.of(loaded)
    try:
        runs = control.list_runs()
    finally:
        control.close()
    number, state = (
        Column("run", no_wrap=True),
        Column("state", no_wrap=True),
    )  # a number that is cut names no run
    table = Table(number, "job", state, "submitted", "why", box=None)
    for run in runs:
        said = run.sub_status if run.finished else run.status
        if day := waits_for(run_directory(loaded, run.run_id)):
            said = f"waits for {day}"
        table.add_row(str(run.run_id), _job_name(run.job), said, _short_time(run.submitted_at), run.details)
    console.print(table)


@job.command("stop")
def job_stop(run_id: RunId, home: Coordinator) -> None:
    """Stop a run, or give up one that waits to be resumed. What was released stays released and charged;
    reservations end with the job."""
    from sfumato.server.control import ControlClient
    from sfumato.server.home import CoordinatorHome
    from sfumato.server.interrupted import give_up

    loaded = CoordinatorHome.load(home)
    if give_up(loaded.directory("runs"), run_id):
        console.print(
            f"Run {run_id} is given up. The next run has its branches give back what they reserved."
        )
        return
    control = ControlClient.of(loaded)
    try:
        control.stop(run_id)
    finally:
        control.close()
    console.print(f"Run {run_id} is stopped.")


@job.command("show")
def job_show(run_id: RunId, home: Coordinator) -> None:
    """Print what a finished analysis found, with its intervals and its cost."""
    from sfumato.server.answers import print_answer
    from sfumato.server.home import CoordinatorHome
    from sfumato.server.reading import Reading

    reading = Reading.of_run(CoordinatorHome.load(home), run_id)
    if reading.answer is None:
        raise BadInput(f"run {run_id} made a model", hint=f"See it with: sfumato model show {run_id}")
    print_answer(reading.summary, reading.answer, console)


@job.command("export")
def job_export(
    run_id: RunId,
    home: Coordinator,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write a table here.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write JSON here.")] = None,
) -> None:
    """Write a finished run's numbers for other programs: each with its interval, unit and epsilon."""
    from sfumato.server.answer_export import as_csv, as_json
    from sfumato.server.home import CoordinatorHome
    from sfumato.server.reading import Reading
    from sfumato.server.run_files import write_whole

    wanted = [(p, make) for p, make in ((csv_file, as_csv), (json_file, as_json)) if p is not None]
    if not wanted:
        raise BadInput("nothing to write", hint="Give --csv FILE, --json FILE or both.")
    reading = Reading.of_run(CoordinatorHome.load(home), run_id)
    for path, make in wanted:
        write_whole(path, make([reading]))
        console.print(f"Wrote {path}.")


@job.command("report")
def job_report(
    run_id: RunId,
    home: Coordinator,
    out: Annotated[Path, typer.Option(help="The HTML page to write.")],
) -> None:
    """Write a finished or failed run's report as one self-contained page."""
    from sfumato.server.home import CoordinatorHome
    from sfumato.server.report import write_report
    from sfumato.server.run_files import read_answer, read_histogram, read_result, run_directory

    directory = run_directory(CoordinatorHome.load(home), run_id)
    write_report(out, read_result(directory), read_histogram(directory), portrait=read_answer(directory))
    console.print(f"Wrote {out}.")


def _job_name(signed: str) -> str:
    try:
        data: dict[str, Any] = json.loads(signed)
        return str(data["job"]["name"])
    except (ValueError, KeyError, TypeError):
        return "(not a Sfumato job)"


def _short_time(iso: str) -> str:
    try:
        return datetime.fromisoformat(iso).strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        raise BadInput("the SuperLink gave a time that is none") from None
