"""A report in one HTML file: text, tables and pictures, nothing that has to be loaded."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from recon_ray.figures.canvas import GRID_COLOR, QUIET_COLOR, SERIES_COLORS, TEXT_COLOR

_STYLE = f"""
:root {{ color-scheme: light; }}
body {{ margin: 0; background: #f6f7f9; color: {TEXT_COLOR};
  font: 15px/1.5 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }}
main {{ max-width: 1200px; margin: 0 auto; padding: 28px 24px 60px; }}
h1 {{ font-size: 26px; margin: 0 0 4px; }}
h2 {{ font-size: 18px; margin: 36px 0 10px; }}
p {{ margin: 6px 0; max-width: 90ch; }}
.note {{ color: {QUIET_COLOR}; }}
.bad {{ color: #a3283b; }}
.scroll {{ overflow-x: auto; background: white; border: 1px solid {GRID_COLOR};
  border-radius: 8px; }}
table {{ border-collapse: collapse; width: 100%; font-size: 13.5px;
  font-variant-numeric: tabular-nums; }}
th, td {{ padding: 6px 12px; text-align: right; border-bottom: 1px solid {GRID_COLOR};
  white-space: nowrap; }}
th {{ background: #eef1f5; text-align: right; }}
th:first-child, td:first-child {{ text-align: left; }}
th.text, td.text {{ text-align: left; white-space: normal; }}
tr:last-child td {{ border-bottom: 0; }}
tr.mark td {{ background: #eef6f0; font-weight: 600; }}
.figures {{ display: grid; gap: 16px;
  grid-template-columns: repeat(auto-fill, minmax(500px, 1fr)); }}
figure {{ margin: 0; background: white; border: 1px solid {GRID_COLOR}; border-radius: 8px;
  padding: 8px; }}
figure img {{ width: 100%; height: auto; display: block; }}
pre {{ background: white; border: 1px solid {GRID_COLOR}; border-radius: 8px; padding: 12px;
  overflow-x: auto; font-size: 12.5px; line-height: 1.4; }}
summary {{ cursor: pointer; color: {SERIES_COLORS[0]}; }}
"""


@dataclass
class Report:
    """A page that is put together part by part.

    Attributes:
        title: Heading.
    """

    title: str
    _parts: list[str] = field(default_factory=list)

    def heading(self, text: str) -> None:
        """Begin a section."""
        self._parts.append(f"<h2>{html.escape(text)}</h2>")

    def text(self, text: str, *, kind: str = "") -> None:
        """Add a paragraph; ``note`` is quiet, ``bad`` is red."""
        self._parts.append(f'<p class="{html.escape(kind)}">{html.escape(text)}</p>')

    def table(
        self,
        head: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        marked: Sequence[int] = (),
        texts: Sequence[int] = (),
    ) -> None:
        """Add a table.

        Args:
            head: Names of the columns.
            rows: Cells.
            marked: Rows that stand out.
            texts: Columns of text, which may be broken into lines.
        """

        def line(tag: str, row: Sequence[str]) -> str:
            kinds = [' class="text"' if column in texts else "" for column in range(len(row))]
            return "".join(
                f"<{tag}{kind}>{html.escape(cell)}</{tag}>"
                for kind, cell in zip(kinds, row, strict=True)
            )

        lines = [f"<thead><tr>{line('th', head)}</tr></thead><tbody>"]
        for number, row in enumerate(rows):
            mark = ' class="mark"' if number in marked else ""
            cells = line("td", row)
            lines.append(f"<tr{mark}>{cells}</tr>")
        self._parts.append(f'<div class="scroll"><table>{"".join(lines)}</tbody></table></div>')

    def figures(self, pictures: Sequence[tuple[str, Path]]) -> None:
        """Add PNG pictures side by side.

        Args:
            pictures: What each shows, and its file.
        """
        shown = []
        for alt, path in pictures:
            data = base64.b64encode(path.read_bytes()).decode("ascii")
            source = f"data:image/png;base64,{data}"
            shown.append(f'<figure><img src="{source}" alt="{html.escape(alt)}"></figure>')
        self._parts.append(f'<div class="figures">{"".join(shown)}</div>')

    def folded(self, title: str, text: str) -> None:
        """Add a text that is shown when its title is clicked."""
        self._parts.append(
            f"<details><summary>{html.escape(title)}</summary><pre>{html.escape(text)}</pre>"
            "</details>"
        )

    def render(self) -> str:
        """The page."""
        title = html.escape(self.title)
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{title}</title><style>{_STYLE}</style></head>\n"
            f"<body><main><h1>{title}</h1>\n" + "\n".join(self._parts) + "\n</main></body></html>\n"
        )
