"""Writes the summary page of a run: one HTML file with embedded figures."""

import base64
import html
import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmrl import files

# Forbids scripts and external resources, even if text from the data contained them.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

_STYLE = """
:root { color-scheme: light dark; --text: #1c1e21; --quiet: #5c6370; --page: #ffffff;
  --line: #d8dbe0; --panel: #f4f5f7; --warn: #9a3b00; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e6ea; --quiet: #a2a8b3; --page: #16181c; --line: #3a3f47; --panel: #202329;
    --warn: #ffb27a; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 62rem; background: var(--page);
  color: var(--text); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 1rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .25rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .3rem .9rem .3rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); overflow-wrap: normal; }
td.number { text-align: right; white-space: nowrap; }
th.number { text-align: right; }
figure { margin: 1.5rem 0; }
figure img { display: block; max-width: 100%; height: auto; background: #ffffff; padding: .5rem;
  border: 1px solid var(--line); border-radius: 6px; }
figcaption, .quiet { color: var(--quiet); font-size: .9rem; }
.missing { border-left: 4px solid var(--warn); padding: .5rem .75rem; background: var(--panel); }
pre { padding: .75rem; background: var(--panel); border-radius: 6px; font-size: .8rem;
  white-space: pre-wrap; }
summary { cursor: pointer; }
"""


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    summary: Sequence[tuple[str, Any, str]],
    results: Mapping[str, Mapping[str, Any]],
    figures: Sequence[tuple[str, str | os.PathLike[str] | None, str]],
    config: Mapping[str, Any],
    provenance: Mapping[str, Any],
    left_out: Mapping[str, str] | None = None,
) -> None:
    """Writes a self-contained page with inline style and images, no scripts and escaped text.

    Args:
      path: of the HTML file, written atomically.
      title: of the page.
      summary: (name, value, note) rows of the first table.
      results: evaluator name -> `Results.to_dict()`.
      figures: (title, PNG path, caption). If the path is None or the file is missing, the page
        states that and gives the caption as the reason.
      config: the run's configuration, JSON-able.
      provenance: step, data digests, package versions; may be nested.
      left_out: evaluator -> why it could not run.
    """
    limits = (
        '<p class="quiet">docs/limits.md of mmrl says what these figures do not show; none of them '
        "is clinical evidence.</p>"
    )
    sections = [
        section("Summary", table(("", "value", "note"), summary, numbers=(1,)), limits),
        section("Results", *(_result(name, result) for name, result in results.items())),
        *_left_out(left_out or {}),
        section("Excluded examples", _excluded(results)),
        section("Figures", *(figure(*one) for one in figures)),
        section("Preprocessing", _preprocessing(results)),
        section("Provenance", table(("", ""), _flat(provenance))),
        section("Configuration", f"<pre>{escaped(_json(config))}</pre>"),
    ]
    write_page(path, title=title, sections=sections)


def write_page(
    path: str | os.PathLike[str], *, title: str, sections: Sequence[str], style: str = ""
) -> None:
    """Writes a page of HTML `sections` atomically; `style` is additional CSS.

    Use `section` for sections and `table`, `figure` and `folded` for their parts; pass all other
    text through `escaped`.
    """
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(title)}</title>\n<style>{_STYLE}{style}</style>\n</head>\n<body>\n"
        f"<h1>{escaped(title)}</h1>\n" + "\n".join(sections) + "\n</body>\n</html>\n"
    )
    files.write(path, page)


def escaped(value: Any) -> str:
    """Escapes text for HTML."""
    return html.escape(str(value), quote=True)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def section(title: str, *parts: str) -> str:
    """A titled section of HTML parts; "None." if all are empty."""
    body = "\n".join(part for part in parts if part) or '<p class="quiet">None.</p>'
    return f"<section>\n<h2>{escaped(title)}</h2>\n{body}\n</section>"


def folded(title: str, *parts: str) -> str:
    """HTML parts that are hidden until the title is clicked."""
    body = "\n".join(parts)
    return f"<details><summary>{escaped(title)}</summary>\n{body}\n</details>"


def table(
    header: Sequence[str], rows: Iterable[Sequence[Any]], *, numbers: Sequence[int] = ()
) -> str:
    """An HTML table that scrolls sideways on small screens; columns `numbers` align right."""
    attribute = [' class="number"' if i in numbers else "" for i in range(len(header))]
    body = [
        "".join(
            f"<td{attribute[i]}>{escaped(_shown(cell) if i in numbers else cell)}</td>"
            for i, cell in enumerate(row)
        )
        for row in rows
    ]
    if not body:
        return ""
    head = ""
    if any(header):
        cells = zip(attribute, header, strict=True)
        named = "".join(f'<th scope="col"{kind}>{escaped(name)}</th>' for kind, name in cells)
        head = f"<thead><tr>{named}</tr></thead>\n"
    lines = "\n".join(f"<tr>{cells}</tr>" for cells in body)
    return f'<div class="scroll"><table>\n{head}<tbody>\n{lines}\n</tbody>\n</table></div>'


def _shown(value: Any) -> str:
    """Formats floats with three decimals, or one from 10 up; None and NaN as a dash."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "\N{EN DASH}"
    if not isinstance(value, float) or math.isinf(value):
        return str(value)
    if 0 < abs(value) < 0.001:
        return f"{value:.1e}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _result(name: str, result: Mapping[str, Any]) -> str:
    """One evaluator: its main values, and its breakdown and details, folded."""
    rows = [
        (
            value_name,
            value["value"],
            _interval(value),
            value["chance"],
            value["n"],
            result["protocol"],
        )
        for value_name, value in result["values"].items()
    ]
    header = ("measure", "value", "95 % interval", "chance", "N", "protocol")
    main = [row for row in rows if row[0].count("/") < 2]
    breakdown = [row for row in rows if row[0].count("/") >= 2]
    numbers = (1, 2, 3, 4)
    parts = [
        f"<h3>{escaped(name)}</h3>",
        f'<p class="quiet">{escaped(_examples(result))}</p>',
        table(header, main, numbers=numbers) or "<p>No values: there was nothing to evaluate.</p>",
    ]
    for title, body in (
        (f"Breakdown, {len(breakdown)} rows", table(header, breakdown, numbers=numbers)),
        ("Details", f"<pre>{escaped(_json(result['details']))}</pre>"),
    ):
        if body and (breakdown or title == "Details"):
            parts.append(folded(title, body))
    return "\n".join(parts)


def _examples(result: Mapping[str, Any]) -> str:
    """Name, number and digest of the evaluated examples."""
    data = result["data"]
    return f"{data['name']}, N = {result['n']:,}, sha256 {data['sha256'][:16]}"


def _interval(value: Mapping[str, Any]) -> str:
    if value["low"] is None or value["high"] is None:
        return "\N{EN DASH}"
    return f"[{_shown(value['low'])}, {_shown(value['high'])}]"


def _left_out(reasons: Mapping[str, str]) -> list[str]:
    """A section of evaluators that could not run, if there are any."""
    rows = table(("evaluator", "reason"), reasons.items())
    return [section("Left out", rows)] if reasons else []


def _excluded(results: Mapping[str, Mapping[str, Any]]) -> str:
    return table(
        ("evaluator", "reason", "examples"),
        [
            (name, reason, count)
            for name, result in results.items()
            for reason, count in result["excluded"].items()
        ],
        numbers=(2,),
    )


def figure(title: str, path: str | os.PathLike[str] | None, caption: str) -> str:
    """A PNG file with its caption, or a notice if it is missing; see `write_report`."""
    heading = f"<h3>{escaped(title)}</h3>\n"
    if path is None or not pathlib.Path(path).is_file():
        reason = caption or "no reason was given"
        if path is not None:
            reason = f"no file {pathlib.Path(path).name}. {caption}"
        return f'{heading}<p class="missing">Missing figure: {escaped(reason)}</p>'
    encoded = base64.b64encode(pathlib.Path(path).read_bytes()).decode("ascii")
    return (
        f'{heading}<figure><img alt="{escaped(title)}" src="data:image/png;base64,{encoded}">\n'
        f"<figcaption>{escaped(caption)}</figcaption></figure>"
    )


def _preprocessing(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Tables of preprocessing; evaluators with equal preprocessing share one."""
    shared: dict[str, list[str]] = {}
    for name, result in results.items():
        shared.setdefault(_json(result["preprocessing"]), []).append(name)
    return "\n".join(
        f'<p class="quiet">{escaped(", ".join(names))}</p>\n'
        + table(("", ""), _flat(results[names[0]]["preprocessing"]))
        for names in shared.values()
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Flattens nested mappings to rows such as ("packages.jax", "0.8")."""
    rows: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", value))
    return rows
