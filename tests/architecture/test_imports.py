"""No module of the common part needs one that needs it: each can be the first that is imported."""

from graphlib import CycleError, TopologicalSorter

import grimp
import pytest

Needs = dict[str, set[str]]


def needs(package: str) -> Needs:
    """What each module needs loaded before it: what it imports, and the packages around that."""
    graph = grimp.build_graph(package, exclude_type_checking_imports=True, cache_dir=None)
    found: Needs = {}
    for module in graph.modules:
        imported = set(graph.find_modules_directly_imported_by(module))
        around = {name.rsplit(".", n)[0] for name in imported for n in range(1, name.count("."))}
        found[module] = ((imported | around) & graph.modules) - {module}
    return found


def test_no_module_is_needed_by_what_it_needs() -> None:
    found = needs("sfumato.common")
    assert len(found) > 100 and "sfumato.common.analyses.catalogue" in found
    TopologicalSorter(found).prepare()  # raises CycleError, which names the modules


def test_a_cycle_would_be_found() -> None:
    found = needs("sfumato.common")
    found["sfumato.common.analyses.analysis"].add("sfumato.common.analyses.catalogue")
    with pytest.raises(CycleError, match="catalogue"):
        TopologicalSorter(found).prepare()
