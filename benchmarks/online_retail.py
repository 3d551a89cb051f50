"""Online retail as branches: the United Kingdom in eight parts, other countries in groups; both years' invoices."""

import hashlib

import numpy as np
import numpy.typing as npt
import pandas as pd
from analytics_harness import DATA

FILES = tuple(
    DATA / "online_retail" / f"online_retail_{years}.parquet" for years in ("2009_2010", "2010_2011")
)
HOME, HOME_PARTS = "United Kingdom", 8
GROUPS = {
    "central": ("Germany", "Austria", "Switzerland", "Poland", "Czech Republic"),
    "west": ("France", "Belgium", "Netherlands", "Channel Islands", "EIRE"),
    "south": ("Spain", "Portugal", "Italy", "Greece", "Cyprus", "Malta"),
}
REST = "rest"


def invoices() -> pd.DataFrame | None:
    """One row an invoice of a known customer: `customer`, `country`, `day`, `amount` (goods sold at a price). None
    where the data is not at hand. Nine days are in both files, and counted once."""
    if not all(f.exists() for f in FILES):
        print("SKIPPED online_retail: the data files are not beside the project")
        return None
    first, second = (pd.read_parquet(f) for f in FILES)
    lines = pd.concat([first, second[~second["InvoiceNo"].isin(first["InvoiceNo"])]])
    sold = lines[lines["CustomerID"].notna() & (lines["Quantity"] > 0) & (lines["UnitPrice"] > 0)]
    sold = sold.assign(
        amount=sold["Quantity"] * sold["UnitPrice"],
        day=pd.to_datetime(sold["InvoiceDate"]).dt.normalize(),
        customer=sold["CustomerID"].astype(int),
    )
    grouped = sold.groupby(["customer", "InvoiceNo"], as_index=False)
    return grouped.agg(country=("Country", "first"), day=("day", "min"), amount=("amount", "sum")).rename(
        columns={"Country": "country"}
    )


def branches(customers: pd.Series, countries: pd.Series) -> npt.NDArray[np.str_]:
    """The branch of each customer, by country; at home by a fixed hash."""
    group = {country: name for name, members in GROUPS.items() for country in members}
    return np.array(
        [
            f"{HOME} {hashlib.sha256(b'%d' % c).digest()[0] % HOME_PARTS}"
            if country == HOME
            else group.get(country, REST)
            for c, country in zip(customers, countries, strict=True)
        ]
    )
