"""The data contract: what a branch promises its tables look like, in public.

A contract is public by construction: bounds, categories and bin edges are written down before anyone looks
at the data, so using them costs no epsilon. It is read from TOML; `Contract.hash` names it in jobs.
"""

import math
import tomllib
from collections.abc import Iterator
from datetime import date
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sfumato.common.canonical import content_hash
from sfumato.common.errors import BadInput

Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_ .\-/]{0,63}$")]


class ColumnType(StrEnum):
    STRING = "string"
    INTEGER = "integer"
    NUMBER = "number"
    BOOLEAN = "boolean"
    CATEGORY = "category"
    DATE = "date"
    DATETIME = "datetime"


class Role(StrEnum):
    CUSTOMER_ID = "customer_id"
    PII = "pii"
    FEATURE = "feature"
    LABEL = "label"
    TIME = "time"
    AMOUNT = "amount"
    BRANCH = "branch"
    TEXT = "text"  # what a customer wrote: stored, read by text analyses alone, shown nowhere
    ATTRIBUTE = "attribute"  # stored, usable by analyses and roll-ups, not a model feature by itself


class Protection(StrEnum):
    ENCRYPT = "encrypt"  # AES-256-GCM at rest, opened only by an audited act
    TOKEN = "token"  # noqa: S105 - keyed deterministic token; the value itself is not kept
    DROP = "drop"  # not stored at all


class Scale(StrEnum):
    LINEAR = "linear"
    LOG = "log"  # sign(x) * log(1 + |x|): for heavy-tailed amounts


class OutOfDomain(StrEnum):
    REJECT = "reject"  # the row is bad
    CLIP = "clip"  # a number is clipped to its bounds, a category becomes "other"


NUMERIC = (ColumnType.INTEGER, ColumnType.NUMBER)
CLIPPED_CATEGORY = "other"  # what ingest writes for an unknown category that the contract clips


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Bounded(_Strict):
    """A public numeric domain. `edges` are public cut points inside the bounds, for binning."""

    bounds: tuple[float, float] | None = None
    scale: Scale = Scale.LINEAR
    edges: tuple[float, ...] | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.bounds is not None and not self.bounds[0] < self.bounds[1]:
            raise ValueError(f"bounds must be [low, high] with low < high, got {list(self.bounds)}")
        if self.bounds is not None and not all(map(math.isfinite, self.bounds)):
            raise ValueError(f"bounds must be finite, got {list(self.bounds)}")
        if self.edges is not None:
            if self.bounds is None:
                raise ValueError("edges need bounds")
            if list(self.edges) != sorted(set(self.edges)):
                raise ValueError("edges must be strictly increasing")
            if not all(self.bounds[0] < e < self.bounds[1] for e in self.edges):
                raise ValueError("edges must lie strictly inside the bounds")
        return self


class Column(_Bounded):
    """One column: its type, what it is for, its public domain, and how it is protected."""

    name: Name
    type: ColumnType
    role: Role = Role.ATTRIBUTE
    categories: tuple[str, ...] | None = None
    positive: str | None = None  # label only: the value that counts as 1
    nullable: bool = False
    out_of_domain: OutOfDomain = OutOfDomain.REJECT
    protection: Protection | None = None
    description: str = ""

    @model_validator(mode="after")
    def _coherent(self) -> Self:  # noqa: PLR0912 - one rule a line reads better than a table
        name = self.name
        if self.type is ColumnType.CATEGORY and not self.categories:
            raise ValueError(f"column {name!r}: a category needs its public list `categories`")
        if self.categories is not None:
            if self.type is not ColumnType.CATEGORY:
                raise ValueError(f'column {name!r}: `categories` goes with type = "category"')
            if len(set(self.categories)) != len(self.categories):
                raise ValueError(f"column {name!r}: categories repeat")
        if self.bounds is not None and self.type not in NUMERIC:
            raise ValueError(f"column {name!r}: `bounds` goes with integer or number")
        if self.role is Role.PII and self.protection is None:
            raise ValueError(f"column {name!r}: PII needs `protection` = encrypt, token or drop")
        if self.role is Role.CUSTOMER_ID and self.protection not in (None, Protection.TOKEN):
            raise ValueError(f"column {name!r}: the customer id is always kept as a token")
        if self.role not in (Role.PII, Role.CUSTOMER_ID) and self.protection is not None:
            raise ValueError(f'column {name!r}: `protection` goes with role = "pii"')
        if self.role in (Role.FEATURE, Role.AMOUNT):
            if self.type in NUMERIC and self.bounds is None:
                raise ValueError(f"column {name!r}: a numeric {self.role.value} needs public `bounds`")
            if self.type not in (*NUMERIC, ColumnType.CATEGORY, ColumnType.BOOLEAN):
                raise ValueError(
                    f"column {name!r}: a {self.role.value} is an integer, number, category or boolean"
                )
        if self.role is Role.TEXT and self.type is not ColumnType.STRING:
            raise ValueError(f"column {name!r}: a text is a string")
        if self.role is Role.LABEL:
            if self.type not in (ColumnType.CATEGORY, ColumnType.BOOLEAN, ColumnType.INTEGER):
                raise ValueError(f"column {name!r}: a label is a category, a boolean or a 0/1 integer")
            if self.type is ColumnType.CATEGORY and self.positive not in (self.categories or ()):
                raise ValueError(f"column {name!r}: `positive` must be one of the label's categories")
            if self.nullable:
                raise ValueError(f"column {name!r}: a label cannot be nullable")
        elif self.positive is not None:
            raise ValueError(f'column {name!r}: `positive` goes with role = "label"')
        if self.role is Role.CUSTOMER_ID and self.nullable:
            raise ValueError(f"column {name!r}: the customer id cannot be nullable")
        return self


class Aggregate(StrEnum):
    COUNT = "count"
    SUM = "sum"
    MEAN = "mean"
    MIN = "min"
    MAX = "max"
    DISTINCT = "distinct"
    DAYS_SINCE_LAST = "days_since_last"
    DAYS_SINCE_FIRST = "days_since_first"


ZERO_WITHOUT_ROWS = (Aggregate.COUNT, Aggregate.SUM, Aggregate.DISTINCT)  # the others are null then
DAYS_SINCE = (Aggregate.DAYS_SINCE_LAST, Aggregate.DAYS_SINCE_FIRST)


class Feature(_Bounded):
    """A per-customer roll-up of another table, clipped to public bounds; computed inside the vault.

    `days` counts back from the contract's `as_of`; `where` keeps rows whose columns have these values.
    """

    name: Name
    table: Name
    aggregate: Aggregate
    column: Name | None = None
    where: dict[str, str] = Field(default_factory=dict)
    days: int | None = Field(default=None, gt=0)
    bounds: tuple[float, float]


class Table(_Strict):
    name: Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]{0,62}$")]
    columns: tuple[Column, ...] = Field(min_length=1)
    description: str = ""

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        names = [c.name for c in self.columns]
        for repeated in sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"table {self.name!r}: column {repeated!r} is declared twice")
        ids = [c.name for c in self.columns if c.role is Role.CUSTOMER_ID]
        if len(ids) != 1:
            raise ValueError(f"table {self.name!r}: needs exactly one customer_id, has {len(ids)}")
        return self

    def column(self, name: str) -> Column:
        """The column of that name. Raises KeyError."""
        for c in self.columns:
            if c.name == name:
                return c
        raise KeyError(f"table {self.name!r} has no column {name!r}")

    def has(self, name: str) -> bool:
        return any(c.name == name for c in self.columns)

    def with_role(self, role: Role) -> tuple[Column, ...]:
        return tuple(c for c in self.columns if c.role is role)

    @property
    def customer_id(self) -> Column:
        return self.with_role(Role.CUSTOMER_ID)[0]


class Contract(_Strict):
    """A whole contract. `customers` names the table with one row a customer, which holds the label.

    `holdout_fraction` of a branch's customers is never trained on, by any job, for good: they only evaluate.
    """

    version: Literal[1]
    name: Name
    purpose: Annotated[str, Field(min_length=8)]
    unit: Literal["customer"] = "customer"
    max_branches_per_customer: int = Field(default=1, ge=1, le=100)
    holdout_fraction: float = Field(default=0.2, gt=0, lt=1)
    customers: str = "customers"
    as_of: date | None = None
    tables: tuple[Table, ...] = Field(min_length=1)
    features: tuple[Feature, ...] = ()

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        names = [t.name for t in self.tables]
        if len(set(names)) != len(names):
            raise ValueError("a table is declared twice")
        if self.customers not in names:
            raise ValueError(f"`customers` names table {self.customers!r}, which is not declared")
        labels = [(t.name, c.name) for t in self.tables for c in t.with_role(Role.LABEL)]
        if len(labels) > 1 or any(t != self.customers for t, _ in labels):
            raise ValueError(f"at most one label, and in table {self.customers!r}; found {labels}")
        for f in self.features:
            self._check_feature(f)
        return self

    def _check_feature(self, f: Feature) -> None:
        if f.table not in [t.name for t in self.tables] or f.table == self.customers:
            raise ValueError(f"feature {f.name!r}: table {f.table!r} must be declared, and not the customers")
        table = self.table(f.table)
        for column in [*([f.column] if f.column else []), *f.where]:
            if not table.has(column):
                raise ValueError(f"feature {f.name!r}: table {f.table!r} has no column {column!r}")
            if table.column(column).role is Role.TEXT:
                raise ValueError(
                    f"feature {f.name!r}: column {column!r} is free text, which is not rolled up"
                )
        if f.aggregate in (Aggregate.SUM, Aggregate.MEAN, Aggregate.MIN, Aggregate.MAX) and (
            f.column is None or table.column(f.column).type not in NUMERIC
        ):
            raise ValueError(f"feature {f.name!r}: {f.aggregate.value} needs a numeric `column`")
        if f.aggregate is Aggregate.DISTINCT and f.column is None:
            raise ValueError(f"feature {f.name!r}: distinct needs a `column`")
        if (f.days or f.aggregate in DAYS_SINCE) and (self.as_of is None or not table.with_role(Role.TIME)):
            raise ValueError(f"feature {f.name!r}: needs the contract's `as_of` and a column with role time")
        if self.table(self.customers).has(f.name):
            raise ValueError(f"feature {f.name!r}: the customers table has a column of that name")

    def table(self, name: str) -> Table:
        """The table of that name. Raises KeyError."""
        for t in self.tables:
            if t.name == name:
                return t
        raise KeyError(f"no table {name!r} in the contract")

    @property
    def customer_table(self) -> Table:
        return self.table(self.customers)

    @property
    def label(self) -> Column | None:
        labels = self.customer_table.with_role(Role.LABEL)
        return labels[0] if labels else None

    def on(self, day: date | None) -> Self:
        """The same, as of another day; None: of its own. Raises BadInput where it has none."""
        if day is None:
            return self
        if self.as_of is None:
            raise BadInput(f"contract {self.name!r} has no as_of, so nothing in it depends on the day {day}")
        return self.model_copy(update={"as_of": day})

    @property
    def hash(self) -> str:
        """Hex SHA-256 of the contract's canonical bytes: what a job names."""
        return content_hash(self.model_dump(mode="json"))


def validation_lines(error: ValidationError, data: object = None) -> str:
    """A pydantic error as lines 'place: what is wrong', without echoing the offending value.

    With the `data` that was checked, members of a list are called by their name: tables.customers, not tables.0.
    """
    lines = []
    for e in error.errors(include_input=False, include_url=False, include_context=False):
        place = ".".join(_place(e["loc"], data))
        lines.append(f"{place + ': ' if place else ''}{e['msg'].removeprefix('Value error, ')}")
    return "\n  ".join(lines)


def _place(location: tuple[int | str, ...], data: object) -> Iterator[str]:
    for part in location:
        if isinstance(part, int):
            data = data[part] if isinstance(data, list) and part < len(data) else None
            name = data.get("name") if isinstance(data, dict) else None
            yield name if isinstance(name, str) and name.isidentifier() else f"#{part + 1}"
        else:
            data = data.get(part) if isinstance(data, dict) else None
            yield part


def read_toml(path: Path, what: str) -> dict[str, object]:
    """Parse a TOML file. Raises BadInput that names the file and what it should be."""
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file", hint=f"Give the path of a {what}.") from None
    except OSError as e:
        raise BadInput(f"{path}: cannot be read ({e.strerror})", hint=f"Give the path of a {what}.") from None
    except UnicodeDecodeError as e:
        raise BadInput(f"{path}: not UTF-8 (byte {e.start})", hint=f"Save the {what} as UTF-8.") from None
    except tomllib.TOMLDecodeError as e:
        raise BadInput(f"{path}: not TOML: {e}", hint=f"Mend the {what}'s syntax.") from None


def load_contract(path: Path) -> Contract:
    """Read and check a contract. Raises BadInput naming the file and each fault."""
    data = read_toml(path, "data contract")
    try:
        return Contract.model_validate(data)
    except ValidationError as e:
        raise BadInput(
            f"{path}: not a valid data contract\n  {validation_lines(e, data)}",
            hint="See docs/data-contract.md for every key.",
        ) from None
