"""A self-contained HTML page: text, tables and pictures without a single external request."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

_CSS = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; color: #1b1b1b;
       background: #fff; margin: 0 auto; max-width: 1080px; padding: 1.5rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; } h2 { font-size: 1.25rem; margin: 2.4rem 0 .6rem;
     padding-bottom: .25rem; border-bottom: 2px solid #e4e4e4; } h3 { font-size: 1.02rem; margin: 1.4rem 0 .4rem; }
p.lead { color: #555; margin: 0 0 1rem; } p.note { color: #555; font-size: .92rem; }
img { max-width: 100%; height: auto; display: block; margin: .6rem 0 1rem; }
div.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; margin: .4rem 0 1rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .8rem; text-align: right; border-bottom: 1px solid #e8e8e8; white-space: nowrap; }
th { background: #f5f6f8; font-weight: 600; } th:first-child, td:first-child { text-align: left; }
td.text, th.text { text-align: left; }
div.tiles { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1rem 0; }
div.tile { background: #f5f6f8; border-radius: 6px; padding: .6rem 1rem; min-width: 8.5rem; }
div.tile b { display: block; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
div.tile span { color: #555; font-size: .85rem; }
div.warning { background: #fdf3e7; border-left: 4px solid #D55E00; padding: .6rem 1rem; margin: 1rem 0; }
pre { background: #f5f6f8; padding: .8rem 1rem; overflow-x: auto; font-size: .85rem; border-radius: 6px; }
summary { cursor: pointer; font-weight: 600; margin: .5rem 0; }
@media print { div.scroll { overflow: visible; } details { display: block; } }
"""


class Page:
    """Sections in order; `text()` is the whole document."""

    def __init__(self, title: str, lead: str) -> None:
        self.title = title
        self._parts = [f"<h1>{html.escape(title)}</h1>", f'<p class="lead">{html.escape(lead)}</p>']

    def section(self, title: str) -> None:
        self._parts.append(f"<h2>{html.escape(title)}</h2>")

    def subsection(self, title: str) -> None:
        self._parts.append(f"<h3>{html.escape(title)}</h3>")

    def paragraph(self, text: str, kind: str = "note") -> None:
        self._parts.append(f'<p class="{kind}">{html.escape(text)}</p>')

    def warning(self, text: str) -> None:
        self._parts.append(f'<div class="warning">{html.escape(text)}</div>')

    def tiles(self, values: Sequence[tuple[str, str]]) -> None:
        """Big numbers with what they are below."""
        tiles = "".join(
            f'<div class="tile"><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>'
            for name, value in values
        )
        self._parts.append(f'<div class="tiles">{tiles}</div>')

    def picture(self, uri: str, description: str) -> None:
        self._parts.append(f'<img src="{uri}" alt="{html.escape(description, quote=True)}">')

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], text_columns: Sequence[int] = ()) -> None:
        """Numbers with three significant digits; NaN and None as a dash."""
        if not rows:
            return

        def cell(tag: str, position: int, value: Any) -> str:
            style = ' class="text"' if position in text_columns else ""
            return f"<{tag}{style}>{html.escape(shown(value))}</{tag}>"

        head = "".join(cell("th", i, name) for i, name in enumerate(columns))
        body = "".join("<tr>" + "".join(cell("td", i, v) for i, v in enumerate(row)) + "</tr>" for row in rows)
        self._parts.append(
            f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )

    def details(self, title: str, text: str) -> None:
        """Text that opens on a click."""
        self._parts.append(f"<details><summary>{html.escape(title)}</summary><pre>{html.escape(text)}</pre></details>")

    def text(self) -> str:
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            # Nothing in the page may load anything, whatever text of the user's it contains.
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
            "style-src 'unsafe-inline'\">"
            f"<title>{html.escape(self.title)}</title><style>{_CSS}</style></head>\n<body>\n"
            + "\n".join(self._parts)
            + "\n</body></html>\n"
        )


def shown(value: Any) -> str:
    """A table cell: three significant digits, thousands separated, a dash for what is not there."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.2e}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}"
