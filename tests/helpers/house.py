"""Count modules, lines and module docstrings of the package: `python tests/helpers/house.py`."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

from repository import ROOT

PACKAGE = ROOT / "dask_slicer"
# A docstring that opens with one of these is a clause, not the noun phrase that a reader looks for.
CLAUSES = {"What", "How", "Which", "Who", "Where", "Whether"}


def opens_with_a_clause(path: Path) -> bool:
    """Return whether the docstring of a module begins with one of `CLAUSES`."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "?"
    return docstring.split()[0] in CLAUSES


def counts() -> dict[str, tuple[int, int, int, int]]:
    """Return for each folder: modules, lines, lines of the longest module, docstrings to mend."""
    folders: defaultdict[str, list[Path]] = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        folders[path.parent.relative_to(ROOT).as_posix()].append(path)
    table = {}
    for folder, paths in sorted(folders.items()):
        lines = [len(path.read_text(encoding="utf-8").splitlines()) for path in paths]
        n_modules = sum(path.name != "__init__.py" for path in paths)
        table[folder] = (n_modules, sum(lines), max(lines), sum(map(opens_with_a_clause, paths)))
    return table


if __name__ == "__main__":
    table = counts()
    print(f"{'folder':<32}{'modules':>8}{'lines':>8}{'longest':>9}{'clauses':>9}")
    for folder, row in table.items():
        print(f"{folder:<32}{row[0]:>8}{row[1]:>8}{row[2]:>9}{row[3]:>9}")
    totals = list(zip(*table.values(), strict=True))
    print(
        f"{'all':<32}{sum(totals[0]):>8}{sum(totals[1]):>8}{max(totals[2]):>9}{sum(totals[3]):>9}"
    )
