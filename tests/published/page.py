"""Read and write the tables of docs/reference/published-figures.md, which `python -m tests.published` computes."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/reference/published-figures.md"
HEAD = ["| documentation of | figure | rows | published | plain | keepfit |", "|---|---|---|---|---|---|"]
TABLE = r"(?<=<!-- {} -->\n).*?(?=\n<!-- end -->)"


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a table: the rows that were learned for the figure, and its value from three sources."""

    source: str
    figure: str
    rows: int
    published: str
    plain: str
    keepfit: str

    def cells(self) -> tuple[str, ...]:
        """Return the cells of the line."""
        return (self.source, self.figure, str(self.rows), self.published, self.plain, self.keepfit)

    @property
    def differs(self) -> bool:
        """Whether two of the three values differ."""
        return len({self.published, self.plain, self.keepfit}) > 1


def read(name: str) -> list[Line]:
    """Return the lines of the table `name`."""
    table = re.search(TABLE.format(name), PAGE.read_text(), re.DOTALL)
    assert table is not None, f"{PAGE} has no table {name}"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[0].splitlines()[len(HEAD) :]]
    return [Line(source, figure, int(rows), *values) for source, figure, rows, *values in cells]


def write(tables: Mapping[str, Sequence[Line]], versions: Mapping[str, str]) -> None:
    """Put the tables into the page, each between its markers, and the versions of the libraries."""
    text = PAGE.read_text()
    for name, lines in tables.items():
        table = "\n".join([*HEAD, *(f"| {' | '.join(line.cells())} |" for line in lines)])
        text, count = re.subn(TABLE.format(name), lambda _, t=table: t, text, flags=re.DOTALL)
        assert count == 1, f"{PAGE} has no table {name}"
    for library, version in versions.items():
        text = re.sub(rf"({library} )\d[\d.]*\d", rf"\g<1>{version}", text)
    PAGE.write_text(text)


def read_versions() -> dict[str, str]:
    """Return the versions of the libraries that the page names."""
    return dict(re.findall(r"(river|scikit-learn) (\d[\d.]*\d)", PAGE.read_text()))
