"""The portrait: one cell a table for each customer, a reading that is exact without noise and honest with it."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sfumato.common.analyses import catalogue
from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.analyses.profile import Profile, Question, build
from sfumato.common.contract import Contract
from sfumato.common.errors import BadInput

COLUMNS: list[dict[str, Any]] = [
    {"name": "id", "type": "string", "role": "customer_id"},
    {"name": "name", "type": "string", "role": "pii", "protection": "encrypt"},
    {"name": "town", "type": "category", "categories": ["ash", "elm", "oak"], "nullable": True},
    {
        "name": "job",
        "type": "category",
        "role": "feature",
        "categories": ["clerk", "smith"],
        "out_of_domain": "clip",
    },
    {"name": "active", "type": "boolean", "role": "feature"},
    {"name": "age", "type": "integer", "role": "feature", "bounds": [18, 100], "edges": [30, 50, 70]},
    {"name": "wealth", "type": "number", "role": "amount", "bounds": [0, 1000], "nullable": True},
    {"name": "note", "type": "string"},
    {"name": "since", "type": "date"},
    {"name": "left", "type": "integer", "role": "label"},
]
ROLL_UP = {"name": "visits", "table": "visits", "aggregate": "max", "column": "length", "bounds": [0, 9]}
VISITS = {
    "name": "visits",
    "columns": [
        {"name": "id", "type": "string", "role": "customer_id"},
        {"name": "length", "type": "integer", "bounds": [0, 9]},
    ],
}


def contract(columns: list[dict[str, Any]] = COLUMNS) -> Contract:
    return Contract.model_validate(
        {
            "version": 1,
            "name": "toy",
            "purpose": "to be tested",
            "tables": [{"name": "customers", "columns": columns}, VISITS],
            "features": [ROLL_UP],
        }
    )


def profile(columns: list[str], cross: list[tuple[str, str]] | None = None, **more: Any) -> Profile:
    question = Question(columns=tuple(columns), cross=tuple(cross or ()), **more)
    found = build(question, contract())
    assert isinstance(found, Profile)
    return found


def people(n: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "town": rng.choice(["ash", "elm", "oak", None], n, p=[0.6, 0.3, 0.08, 0.02]),
        "job": rng.choice(["clerk", "smith", "other"], n),
        "active": rng.random(n) < 0.4,
        "age": rng.integers(18, 101, n),
        "wealth": np.where(rng.random(n) < 0.1, np.nan, rng.uniform(0, 1000, n)),
        "visits": rng.choice([0.0, 1.0, 4.0, np.nan], n),
        "left": rng.integers(0, 2, n),
    }


def total_of(asked: Profile, frame: dict[str, Any]) -> np.ndarray:
    cells = asked.contribute(0, frame, None).cells
    return np.bincount(cells[cells >= 0], minlength=asked.length(0)).astype(np.float64)


def groups(answer: dict[str, Any], table: int) -> dict[tuple[tuple[str, ...], ...], dict[str, Any]]:
    return {tuple(tuple(c) for c in g["cells"]): g for g in answer["tables"][table]["groups"]}


# --- contribution ------------------------------------------------------------------------------------------


def test_without_noise_every_count_is_the_naive_one() -> None:
    asked = profile(["town", "job", "active", "age", "left", "visits"], [("town", "left")], min_group=1)
    frame = people(2000, 1)
    answer = asked.read([NoisySum(total_of(asked, frame), 0.0)])
    town = Counter("(none)" if t is None else str(t) for t in frame["town"])
    age = Counter(np.digitize(frame["age"], [30, 50, 70]).tolist())
    naive: list[dict[tuple[str, ...], int]] = [
        {(k,): v for k, v in town.items()},
        {(k,): v for k, v in Counter(str(j).replace("other", "(other)") for j in frame["job"]).items()},
        {(k,): v for k, v in Counter("true" if a else "false" for a in frame["active"]).items()},
        {(n,): age[i] for i, n in enumerate(["18 to 29", "30 to 49", "50 to 69", "70 to 100"])},
        {(k,): v for k, v in Counter(map(str, frame["left"])).items()},
    ]
    assert answer["customers"] == {"value": 2000.0, "low": 2000.0, "high": 2000.0}
    for place, counts in enumerate(naive):
        shown = {c[0]: g["customers"]["value"] for c, g in groups(answer, place).items() if len(c) == 1}
        assert shown == pytest.approx(counts)
    visits = {c[0][0]: g for c, g in groups(answer, 5).items() if len(c) == 1}
    assert visits["(none)"]["customers"]["value"] == np.isnan(frame["visits"]).sum()
    pair = groups(answer, 6)[(("elm", "1"),)]
    both = ((frame["town"] == "elm") & (frame["left"] == 1)).sum()
    assert pair["customers"]["value"] == pytest.approx(both)
    assert pair["share"]["value"] == pytest.approx(both / 2000)
    assert pair["share_of_row"]["value"] == pytest.approx(both / town["elm"])


ANY_COLUMNS = st.lists(
    st.sampled_from(["town", "job", "active", "age", "wealth", "left", "visits"]), min_size=1, unique=True
)


@settings(max_examples=40, deadline=None)
@given(ANY_COLUMNS, st.data())
def test_every_customer_keeps_the_bound_and_counts_once_a_table(
    names: list[str], data: st.DataObject
) -> None:
    pairs = [(a, b) for i, a in enumerate(names) for b in names[:i]]
    cross = data.draw(st.lists(st.sampled_from(pairs), unique=True, max_size=4)) if pairs else []
    asked = profile(names, cross, bins=data.draw(st.integers(2, 64)))
    n = data.draw(st.integers(0, 40))
    found = asked.contribute(0, people(n, data.draw(st.integers(0, 9))), None)
    assert found.length == asked.length(0)
    assert found.cells.shape == (n, len(names) + len(cross))
    assert ((found.cells >= 0) & (found.cells < found.length)).all()
    rows = np.zeros((n, found.length))
    for column, weight in enumerate(found.weights):
        np.add.at(rows, (np.arange(n), found.cells[:, column]), weight)
    assert (np.linalg.norm(rows, axis=1) <= asked.max_norm(0) * (1 + 1e-12)).all()
    assert rows.sum(axis=0) @ np.ones(found.length) == n * len(asked.tables)


def test_what_the_contract_rules_out_counts_nowhere_and_moves_nobody_else() -> None:
    asked = profile(["town", "left"])
    frame = {"town": np.array(["ash", "birch", None]), "left": np.array([0, 1, 7])}
    assert asked.contribute(0, frame, None).cells.tolist() == [[0, 4], [-1, 5], [3, -1]]


def test_a_number_counts_in_its_bin_and_outside_its_bounds_at_the_end() -> None:
    asked = profile(["age", "wealth"], bins=4)
    names = [asked.tables[0].names([p])[0][0] for p in asked.tables[0].places]
    assert names == ["18 to 29", "30 to 49", "50 to 69", "70 to 100"]
    assert [d.cells for d in asked.tables[1].columns] == [
        ("0 to 250", "250 to 500", "500 to 750", "750 to 1000", "(none)")
    ]
    frame = {"age": np.array([18, 29, 30, 100]), "wealth": np.array([-5.0, 250.0, 2000.0, np.nan])}
    assert asked.contribute(0, frame, None).cells.tolist() == [[0, 4], [0, 5], [1, 7], [3, 8]]


# --- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "cross", "says"),
    [
        (["wages"], [], "not declared"),
        (["name"], [], "personal data"),
        (["id"], [], "the customer id"),
        (["note"], [], "no public cells"),
        (["since"], [], "no public cells"),
        (["length"], [], "not declared"),
        (["town"], [("town", "wages")], "not declared"),
        (["town"], [("name", "town")], "personal data"),
        (["town"], [("town", "town")], "crossed with itself"),
        (["town", "town"], [], "named twice"),
        (["town"], [("town", "job"), ("job", "town")], "named twice"),
    ],
)
def test_a_question_that_cannot_be_asked(columns: list[str], cross: list[tuple[str, str]], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        profile(columns, cross)


def test_too_many_cells_are_refused_with_their_number() -> None:
    many = [
        {"name": n, "type": "category", "categories": [f"{n}{i}" for i in range(120)]} for n in ("a", "b")
    ]
    wide = contract([COLUMNS[0], *many])
    with pytest.raises(BadInput, match=r"14,640 cells.*at most 10,000"):
        build(Question(columns=("a", "b"), cross=(("a", "b"),)), wide)


@pytest.mark.parametrize(
    "wrong", [{"columns": []}, {"columns": ["a"], "min_group": 0}, {"columns": ["a"], "x": 1}]
)
def test_a_malformed_question(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        catalogue.build("profile", wrong, contract())


def test_a_profile_is_asked_without_numbers() -> None:
    asked = profile(["left"])
    assert asked.ask(0, []) is None
    with pytest.raises(ValueError, match="without numbers"):
        asked.contribute(0, people(3, 0), np.zeros(2, np.float32))


# --- merging -----------------------------------------------------------------------------------------------


def test_small_groups_are_merged_and_named_and_nobody_is_lost() -> None:
    asked = profile(["town", "age"], [("town", "age")], min_group=50)
    frame = people(1000, 3)
    answer = asked.read([NoisySum(total_of(asked, frame), 0.0)])
    for table, shown in zip(asked.tables, answer["tables"], strict=True):
        named = [tuple(c) for g in shown["groups"] for c in g["cells"]]
        assert sorted(named) == sorted(map(tuple, table.names(table.places)))
        assert sum(g["customers"]["value"] for g in shown["groups"]) == pytest.approx(1000)
    for group in answer["tables"][2]["groups"]:
        assert group["customers"]["value"] >= 50 or group["fewer_than"] >= 50
    oak = next(g for g in answer["tables"][2]["groups"] if len(g["cells"]) > 1)
    assert {c[0] for c in oak["cells"]} == {"oak"}  # of one row, so it has its share there
    assert oak["share_of_row"]["value"] == pytest.approx(len(oak["cells"]) / 4, abs=0.3)


def test_a_group_too_small_even_when_merged_says_so() -> None:
    asked = profile(["town"], min_group=500)
    counts = np.array([900.0, 800.0, 40.0, 3.0])
    (shown,) = asked.read([NoisySum(counts, 0.0)])["tables"]
    last = shown["groups"][-1]
    assert last["cells"] == [["oak"], ["(none)"]]
    assert last["fewer_than"] == 500
    assert (last["customers"]["low"], last["customers"]["high"]) == (0.0, 500.0)
    noisy = asked.read([NoisySum(counts, 200.0)])["tables"][0]["groups"]
    assert all(g["customers"]["value"] >= 0 and g["customers"]["low"] >= 0 for g in noisy)


def test_a_reading_repeats() -> None:
    asked = profile(["town", "left"])
    total = NoisySum(np.array([500.0, 300, 20, 4, 400, 424]), 9.0)
    assert asked.read([total]) == asked.read([total])


# --- reading with noise ------------------------------------------------------------------------------------


@pytest.mark.statistical
def test_nominal_95_intervals_hold_the_truth_alone_merged_and_too_small() -> None:
    """400 draws, truths from nobody to thousands. An answer's numbers depend on each other, so the rate's error
    is taken over draws: a z-test against 95 % (over 95 % for `fewer than`), two-sided 1e-4 a sort."""
    asked = profile(["town", "age", "job", "left"], [("town", "age"), ("age", "left"), ("job", "town")])
    frame, std = people(1500, 5), 15.0
    truth, rng = total_of(asked, frame), np.random.default_rng(6)
    place = [{tuple(n): p for p, n in zip(t.places, t.names(t.places), strict=True)} for t in asked.tables]
    rows = [{p: list(row) for row in t.rows() for p in row} for t in asked.tables]
    rates: dict[str, list[float]] = {"alone": [], "merged": [], "few": [], "share": [], "row": []}
    for _ in range(400):
        answer = asked.read([NoisySum(truth + rng.normal(0, std, truth.size), std)])
        held: dict[str, list[bool]] = {sort: [] for sort in rates}
        for at, table in enumerate(answer["tables"]):
            for group in table["groups"]:
                places = [place[at][tuple(c)] for c in group["cells"]]
                count = truth[places].sum()
                sort = "few" if "fewer_than" in group else "merged" if len(places) > 1 else "alone"
                held[sort].append(_holds(group["customers"], count))
                if sort != "few":
                    held["share"].append(_holds(group["share"], count / 1500))
                if "share_of_row" in group:
                    held["row"].append(
                        _holds(group["share_of_row"], count / truth[rows[at][places[0]]].sum())
                    )
        for sort, found in held.items():
            rates[sort] += [float(np.sum(found) - 0.95 * len(found))] if found else []
    for sort, excess in rates.items():
        z = np.mean(excess) / (np.std(excess) / np.sqrt(len(excess)))
        assert len(excess) > 50, sort
        assert z > -3.9, (sort, z)
        if sort != "few":
            assert z < 3.9, (sort, z)


def _holds(number: dict[str, float], truth: float) -> bool:
    return bool(number["low"] <= truth <= number["high"])


@pytest.mark.statistical
def test_agreeing_tables_have_less_noise_than_plain_counts() -> None:
    """The spread of `left` over 100 draws, three cross-tabs beside it, copies included: below 0.9 of the plain."""
    asked = profile(["left", "town", "age"], [("town", "left"), ("age", "left"), ("active", "left")])
    truth, rng = total_of(asked, people(3000, 8)), np.random.default_rng(9)
    ours, plain = [], []
    for _ in range(100):
        noisy = truth + rng.normal(0, 20, truth.size)
        shown = groups(asked.read([NoisySum(noisy, 20.0)]), 0)
        ours += [shown[((v,),)]["customers"]["value"] - truth[i] for i, v in enumerate(("0", "1"))]
        plain += (noisy - truth)[:2].tolist()
    assert np.std(ours) < 0.9 * np.std(plain)
