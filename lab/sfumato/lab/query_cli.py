"""`sfumato query`: SQL over customers that nobody sees, of the branches or, to try it, of files on this machine."""

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from sfumato.common.contract import Contract, load_contract
from sfumato.common.errors import BadInput

if TYPE_CHECKING:  # read when a question is asked, and not at every start of the command
    from sfumato.common.job import AnalysisJob
    from sfumato.server.job_run import JobOutcome
    from sfumato.server.query.estimate import Estimate

console = Console(highlight=False, soft_wrap=True)


def query(
    sql: Annotated[str, typer.Argument(help="One SELECT, in quotes.")],
    home: Annotated[
        Path | None, typer.Option("--coordinator", help="Ask its branches: the coordinator's directory.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Ask files instead, as `sfumato simulate` takes them: one, or a folder of branches."
        ),
    ] = None,
    contract: Annotated[
        Path | None,
        typer.Option(help="The data contract (TOML); with --coordinator by default that of its runs."),
    ] = None,
    epsilon: Annotated[float, typer.Option(help="What the answer may cost any customer.")] = 0.5,
    delta: Annotated[float, typer.Option(help="Its delta.")] = 1e-6,
    mode: Annotated[
        str, typer.Option(help="secure-sum, or local: each branch adds all the noise.")
    ] = "secure-sum",
    colluders: Annotated[int, typer.Option(help="Branches that may work against the others.")] = 1,
    repeats: Annotated[
        int | None, typer.Option(help="Sums that may be asked again when a branch drops; 0 gives less noise.")
    ] = None,
    purpose: Annotated[
        str, typer.Option(help="For the branches' operators.")
    ] = "Answer one question of the risk team.",
    as_of: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], help="As of another day than the contract's.", show_default=False),
    ] = None,
    branches: Annotated[int, typer.Option(min=1, help="With --data, one file: split into so many.")] = 4,
    branch_column: Annotated[
        str | None, typer.Option(help="With --data, one file: split by this column.")
    ] = None,
    estimate: Annotated[bool, typer.Option("--estimate", help="Say what it would cost; ask nobody.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the answer, or estimate, here.")
    ] = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write the answer's table here.")] = None,
) -> None:
    """Answer a SELECT by a secure sum over the branches, every number with its interval; or say why not."""
    from sfumato.server.answer_export import as_csv, as_json
    from sfumato.server.answers import print_answer
    from sfumato.server.home import CoordinatorHome
    from sfumato.server.query.asking import Asking, ask_branches, known_contract, left_at
    from sfumato.server.query.estimate import Estimate
    from sfumato.server.reading import Reading
    from sfumato.server.run_files import write_whole

    if (home is None) is (data is None):
        raise BadInput(
            "say whom to ask", hint="Give --coordinator HOME, or --data PATH with --contract FILE."
        )
    day = as_of.date() if as_of is not None else None
    asking = Asking.of(epsilon, delta, mode, colluders, repeats, purpose, day)
    if home is not None:
        loaded = CoordinatorHome.load(home)
        declared = load_contract(contract) if contract is not None else known_contract(loaded)
        job = asking.job(sql, declared)
        if estimate:
            _show(Estimate.of(job, declared, len(loaded.branches())), left_at(loaded), json_file)
            return
        reading = ask_branches(loaded, job, declared, console)
    else:
        assert data is not None
        if contract is None:
            raise BadInput("--data needs the contract of that data", hint="Give --contract FILE.")
        declared = load_contract(contract)
        job = asking.job(sql, declared)
        if estimate:
            _show(Estimate.of(job, declared, _branches(data, declared, branches)), {}, json_file)
            return
        outcome = query_files(job, contract, data, branches=branches, branch_column=branch_column)
        reading = Reading.of(data.name, outcome.summary, outcome.answer)
    assert reading.answer is not None
    print_answer(reading.summary, reading.answer, console)
    for path, make in ((csv_file, as_csv), (json_file, as_json)):
        if path is not None:
            write_whole(path, make([reading]))
            console.print(f"Wrote {path}.")


def _branches(data: Path, contract: Contract, asked: int) -> int:
    """How many a folder has, or a file will be split into."""
    from sfumato.lab.simulate import branch_folders

    return len(branch_folders(data, contract)) if data.is_dir() else asked


def query_files(
    job: "AnalysisJob", contract_file: Path, data: Path, *, branches: int, branch_column: str | None
) -> "JobOutcome":
    """One job over simulated branches, vaults and all, in this process. Raises BadInput, or JobFailed."""
    from sfumato.lab.in_process import open_vaults, run_in_process
    from sfumato.lab.simulate import BUDGET_FACTOR, simulated_branches

    with (
        console.status("branches take in their customers"),
        simulated_branches(
            contract_file,
            data,
            branch_column=branch_column,
            branches=branches,
            at_least=job.federation.min_branches,
            budget_epsilon=BUDGET_FACTOR * job.privacy.target_epsilon,
            budget_delta=job.privacy.delta,
        ) as made,
    ):
        return run_in_process(open_vaults(made.homes), job, load_contract(contract_file), made.key)


def _show(found: "Estimate", left: Mapping[str, float], json_file: Path | None) -> None:
    found.show(console)
    for name, epsilon in sorted(left.items()):
        console.print(f"{name} had epsilon {epsilon:.4f} left after its latest run.", markup=False)
    if json_file is not None:
        from sfumato.server.run_files import write_whole

        write_whole(json_file, json.dumps(found.as_dict() | {"left": dict(left)}, indent=1).encode())
        console.print(f"Wrote {json_file}.")
