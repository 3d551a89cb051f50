"""What `query` may be asked: groups, measures, and which customers and rows. `sfumato query` makes it of SQL."""

from pydantic import BaseModel, ConfigDict, Field

from sfumato.common.analyses.conditions import Between, Condition
from sfumato.common.analyses.measures import Measure, Name
from sfumato.common.errors import BadInput


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Group(_Strict):
    """A column to group by, and what it is called in the answer."""

    column: str
    name: Name


class Order(_Strict):
    """By a group's or a measure's name."""

    by: Name
    down: bool = False


class Question(_Strict):
    """`having` compares measures by name; `order` and `limit` are of the answer's rows."""

    groups: tuple[Group, ...] = Field(default=(), max_length=8)
    measures: tuple[Measure, ...] = Field(min_length=1, max_length=50)
    where: Condition | None = None
    having: tuple[Between, ...] = Field(default=(), max_length=20)
    order: tuple[Order, ...] = Field(default=(), max_length=20)
    limit: int | None = Field(default=None, ge=1)


def check_names(question: Question) -> None:
    """Raises BadInput on a name that is used twice, and one that nothing has."""
    measures = {m.name for m in question.measures}
    named = [m.name for m in question.measures] + [g.name for g in question.groups]
    if len(set(named)) < len(named) or "of" in named:
        raise BadInput("question: a name is used twice, or is 'of'", hint="Name it otherwise, with AS.")
    if len({g.column for g in question.groups}) < len(question.groups):
        raise BadInput("question.groups: a column is named twice")
    if not {b.column for b in question.having} <= measures or not {o.by for o in question.order} <= set(
        named
    ):
        raise BadInput(
            "question: `having` compares measures of the question, `order` names measures or groups"
        )
