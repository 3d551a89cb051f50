"""Cells that a spreadsheet would run: CSV injection, after OWASP.

A cell is a *formula cell* when, after leading white space (also no-break, zero-width and full-width), it
begins with ``=``, ``+``, ``-``, ``@`` or their full-width forms, or when that white space contains a tab,
a carriage return or a line feed. Three things are exempt, since they call no function and real files are
full of them: a plain number (``-5``, ``+3.2e4``, ``-12%``), a phone number (``+41 79 123 45 67``: a plus,
a digit, then digits, spaces and ``( ) . - /``), and one to three bare signs (``-``, ``--``).
"""

import re

import pyarrow as pa
import pyarrow.compute as pc

_SPACE = " \t\n\r\f\v\u00a0\u200b\u3000\ufeff"
_SIGN = "=+\\-@＝＋－＠"
# The same text is read by RE2 (Arrow) and by Python's `re`; both read [0-9] and \Z-free anchors alike.
_SUSPECT = f"^[{_SPACE}]*[{_SIGN}]|^[{_SPACE}]*[\t\n\r]"
_NUMBER = r"[+-]?([0-9]+([.,][0-9]*)?|[.,][0-9]+)([eE][+-]?[0-9]+)?%?"
_PHONE = r"\+[0-9][0-9 ()./-]{4,30}"
_BARE = r"[+-]{1,3}"
_HARMLESS = f" *({_NUMBER}|{_PHONE}|{_BARE}) *"

_SUSPECT_RE = re.compile(_SUSPECT)
_HARMLESS_RE = re.compile(_HARMLESS)


def formula_cells(text: pa.Array) -> pa.Array:
    """Boolean mask of the formula cells of a string array; a null is none."""
    suspect = pc.fill_null(pc.match_substring_regex(text, _SUSPECT), False)
    if not pc.any(suspect).as_py():
        return suspect
    harmless = pc.fill_null(pc.match_substring_regex(text, f"^({_HARMLESS})$"), False)
    return pc.and_not(suspect, harmless)


def is_formula(cell: str) -> bool:
    """The same rule for one cell."""
    return _SUSPECT_RE.search(cell) is not None and _HARMLESS_RE.fullmatch(cell) is None


def neutralise(cell: str) -> str:
    """The cell with a leading apostrophe if it is a formula cell: spreadsheets then show it as text."""
    return f"'{cell}" if is_formula(cell) else cell
