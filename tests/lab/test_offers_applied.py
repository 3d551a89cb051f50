"""A plan of offers from its job to the branch's own file: the risk team's model, the branch's customers."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sfumato.client.scoring import Order, score_customers
from sfumato.common.analyses.parts import parts_of
from sfumato.common.contract import load_contract
from sfumato.common.errors import BadInput
from sfumato.common.job import load_job
from sfumato.lab.in_process import open_vaults, run_in_process
from sfumato.lab.samplebank import generate
from sfumato.lab.simulate import bank_branches
from sfumato.server.model_explained import explained
from sfumato.server.onnx_export import onnx_bytes

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "sample_bank" / "offer.toml"


def test_a_branch_gives_its_customers_the_plans_offers(tmp_path: Path) -> None:
    bank = generate(tmp_path / "bank", branches=3, customers_per_branch=100)
    contract, job = load_contract(bank.contract), load_job(EXAMPLE)
    federation = job.federation.model_copy(update={"min_branches": 3})
    privacy = job.privacy.model_copy(update={"target_epsilon": 20.0})
    job = job.model_copy(update={"federation": federation, "privacy": privacy})
    with bank_branches(bank, budget_epsilon=100.0, budget_delta=1e-2) as made:
        outcome = run_in_process(open_vaults(made.homes), job, contract, made.key)
        assert outcome.model is not None and outcome.answer is not None
        inside = explained(outcome.model, outcome.answer)
        plan = next(p for p in parts_of(outcome.answer) if p.name == "plan")
        shown = [(*r.of, r.words["offered_to"]) for r in plan.rows]
        assert shown == [(*r["group"], r["product"], f"{r['fraction']:.1%}") for r in inside["plan"]] != []
        with pytest.raises(BadInput, match="ONNX"):
            onnx_bytes(outcome.model, contract)
        model, home = tmp_path / "model.safetensors", made.homes[0]
        model.write_bytes(outcome.model.to_bytes())
        word = (home.path / "passphrase").read_text()
        file = tmp_path / "offers.parquet"
        scored = score_customers(home, Order(model, file), lambda: word, again=lambda: word)
    offers = pq.read_table(file)
    assert offers.column_names == ["token", "offer_1"] and len(offers) == scored.customers > 30
    products = {r["product"] for r in inside["plan"]}
    given = [o for o in offers["offer_1"].to_pylist() if o is not None]
    assert given and set(given) <= products
