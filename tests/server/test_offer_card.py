"""The card of a plan of offers: who is offered what, on the page and in the terminal."""

from datetime import UTC, datetime
from typing import Any

import numpy as np
from rich.console import Console

from sfumato.common.learners.models import ModelHeader, SavedModel
from sfumato.server.home import CoordinatorHome
from sfumato.server.model_card import card
from sfumato.server.model_cli import _inside
from sfumato.server.model_explained import explained
from sfumato.server.model_page import card_page
from sfumato.server.registry import Registry


def plan() -> dict[str, Any]:
    header = ModelHeader(
        kind="offer",
        name="offers",
        purpose="to offer",
        job_id="0" * 32,
        job_hash="h",
        contract="c",
        contract_name="bank",
        inputs="i",
        label=None,
        epsilon=1.0,
        delta=1e-5,
        made=datetime(2026, 1, 1, tzinfo=UTC),
        parameters={
            "groups": [{"name": "town", "cells": ["<ash>", "elm"]}, {"name": "app", "cells": ["0", "1"]}],
            "bins": 8,
            "products": "held.product",
            "opened": "held.since",
            "offers": ["card", "loan"],
            "most_offers": 2,
        },
    )
    fractions = np.array([[0, 0.25], [0, 0], [1, 0.125], [0, 0]], np.float32)
    return explained(SavedModel(header, {"fractions": fractions}), None)


def test_the_plan_is_read_by_group_and_product() -> None:
    assert plan() == {
        "groups": ["town", "app"],
        "most_offers": 2,
        "plan": [
            {"group": ["<ash>", "0"], "product": "loan", "fraction": 0.25},
            {"group": ["elm", "0"], "product": "card", "fraction": 1.0},
            {"group": ["elm", "0"], "product": "loan", "fraction": 0.125},
        ],
    }


def test_page_and_terminal_show_it(full_home: CoordinatorHome) -> None:
    of_segments = card(Registry.of(full_home).entry("13"))
    page = card_page({**of_segments, "kind": "offer", "explanation": plan()})
    rows = [row for row in page.split("<tr>") if '<th scope="row">loan</th>' in row]
    assert len(rows) == 2 and "&lt;ash&gt;" in rows[0] and "25.0 %" in rows[0] and "12.5 %" in rows[1]
    assert "a plan of offers" in page and "at most 2 a customer" in page
    ((title, table),) = _inside("offer", plan())
    console = Console(width=100, record=True)
    console.print(table)
    assert "at most 2" in title and "12.5%" in console.export_text()
