"""The report as one HTML file: no script, no network, readable on a phone.

A content security policy forbids every load but images inside the file, so even a value that smuggles a URL loads
nothing. Everything is escaped here except the fragments that kinds draw (`worst[].inputs`), which escape themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from modelyard.verbs.report._board import board_data, board_rows, failed_rows
from modelyard.verbs.report._promises import section as promises
from modelyard.verbs.report._promises import tried_data
from modelyard.verbs.report._report import Report
from modelyard.verbs.report._search import section as search
from modelyard.verbs.report._stages import section as stages
from modelyard.verbs.report._style import STYLE
from modelyard.verbs.report._svg import number
from modelyard.verbs.report._words import Say, words
from modelyard.verbs.report.pictures import PICTURES, draw, learning_data
from modelyard.verbs.report.segments import section as segments
from modelyard.verbs.report.taught import section as taught

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
FRAGMENTS = 3_000_000
"""Characters of drawn values on one page; with the pictures it stays below 5 MB."""
PICTURE_CHARACTERS = 1_500_000
SET_ASIDE_SHOWN = 100
WORST_SHOWN = 48
NAMED = 8
"""Columns named at the top; the section of the data has all of them."""
WIDE = 25
"""Classes from which the confusion matrix takes the whole width."""


def render(report: Report, lang: str = "en") -> str:
    """The HTML text of a report, in English or Chinese (`lang="zh"`)."""
    say = words(lang)
    sections = [
        ("search", search(report.search, say, _figure, table)),
        ("stages", stages(report.stages, report.pictures, say, _figure, table)),
        ("training", _training(report, say)),
        ("leaderboard", _leaderboard(report, say)),
        ("folds", _folds(report, say)),
        ("evaluation", _evaluation(report, say)),
        ("promises", promises(report.promises, say, _figure, table)),
        ("data", _data(report, say)),
        ("configuration", _configuration(report, say)),
        ("card", _card(report, say)),
    ]
    shown = [(key, html) for key, html in sections if html]
    links = "".join(f'<a href="#{key}">{say(key)}</a>' for key, _ in shown)
    body = "".join(f'<section id="{key}"><h2>{say(key)}</h2>{html}</section>' for key, html in shown)
    inner = f'<header id="summary">{_summary(report, say)}<nav>{links}</nav></header>{body}'
    return document(f"{report.title} · {say('report')}", lang, inner)


def document(title: str, lang: str, inner: str) -> str:
    """The HTML text around a page's own: no script, no load, readable on a phone."""
    tag = "zh-Hans" if lang == "zh" else "en"
    return (
        f'<!doctype html>\n<html lang="{tag}"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)}</title><style>{STYLE}</style></head>'
        f'<body><main>{inner}<p class="soft">{words(lang)("made_by")}</p></main></body></html>\n'
    )


def headline_split(evaluation: Mapping[str, Any]) -> str | None:
    """The split that speaks for the model: test, else validation, else the first."""
    return next((s for s in ("test", "valid") if s in evaluation), next(iter(evaluation), None))


def headline_metric(output: Mapping[str, Any]) -> str | None:
    """The output's `headline`, else its first metric that is defined."""
    metrics = output.get("metrics", {})
    return output.get("headline") or next((n for n, m in metrics.items() if _known(m.get("value"))), None)


def _summary(report: Report, say: Say) -> str:
    split = headline_split(report.evaluation)
    outputs = report.evaluation.get(split, {}) if split else {}
    cards = [_headline(name, output, len(outputs) > 1, split or "", say) for name, output in outputs.items()]
    few = lambda v: [*v[:NAMED], f"… +{len(v) - NAMED}"] if isinstance(v, list) and len(v) > NAMED + 1 else v  # noqa: E731
    facts = _list({say(k): few(v) for k, v in report.model.items()})
    what = f'<div class="card">{facts}</div>' if report.model else ""
    return f'<h1>{escape(report.title)}</h1><div class="cards">{what}{"".join(cards)}{_gate(report, say)}</div>'


def _headline(name: str, output: Mapping[str, Any], several: bool, split: str, say: Say) -> str:
    metric = headline_metric(output)
    if metric is None:
        return f'<div class="card"><div class="soft">{escape(name)}</div>{say("not_defined")}</div>'
    found, base = output["metrics"].get(metric, {}), output.get("baseline", {}).get(metric, {})
    where = " · ".join(
        filter(None, [escape(name) if several and name else "", escape(say(metric)), escape(say(split))])
    )
    lines = [
        f'<div class="soft">{where}</div>',
        f'<div class="big">{_value(found)}</div>',
        f"<div>{_interval(found)}</div>",
    ]
    if _known(base.get("value")):
        lines.append(f'<div class="soft">{say("baseline_is", value=_value(base))} {_interval(base)}</div>')
        lines.append(_verdict(found, base, say))
    return f'<div class="card">{"".join(lines)}</div>'


def _verdict(found: Mapping[str, Any], base: Mapping[str, Any], say: Say) -> str:
    """Better only where the whole interval is beyond the baseline."""
    sign = -1 if found.get("better") == "lower" else 1
    worst, best = (found.get("low"), found.get("high")) if sign > 0 else (found.get("high"), found.get("low"))
    worst, best = (x if _known(x) else found.get("value") for x in (worst, best))
    if worst is None or best is None or not _known(worst) or not _known(best):
        return ""
    if sign * worst > sign * base["value"]:
        return f'<div class="good">✓ {say("better_than_baseline")}</div>'
    key = "worse" if sign * best < sign * base["value"] else "not_better"
    return f'<div class="bad">✗ {say(key)}</div>'


def _gate(report: Report, say: Say) -> str:
    if not report.gate:
        return f'<div class="card"><span class="badge soft">{say("no_gate")}</span></div>'
    passed = all(g.get("passed") for g in report.gate)
    badge = (
        f'<span class="badge {"good" if passed else "bad"}">{say("gate_passed" if passed else "gate_failed")}</span>'
    )
    lines = [
        f'<div class="{"good" if g.get("passed") else "bad"}">'
        + escape(
            say(
                "gate_line",
                metric=_metric_name(str(g.get("metric", "")), say),
                value=number(float(g["value"])) if _known(g.get("value")) else "—",
                limit=g.get("limit", ""),
            )
        )
        + "</div>"
        for g in report.gate
    ]
    return f'<div class="card">{badge}{"".join(lines)}</div>'


def _training(report: Report, say: Say) -> str:
    drawn = [_figure(name, data, say) for name, data in learning_data(report.events).items()]
    return f'<div class="pictures">{"".join(drawn)}</div>' if drawn else ""


def _leaderboard(report: Report, say: Say) -> str:
    if not report.leaderboard:
        return ""
    several = board_data(report.leaderboard)
    drawn = [_figure("leaderboard", data, say, caption=name if len(several) > 1 else "") for name, data in several.items()]
    head, rows = board_rows(report.leaderboard, say)
    board = table(head, rows, numbers=(1, 2, 3, 4, 5, 6), prose=(7,))
    head, rows = failed_rows(report.leaderboard, say)
    board += f"<h3>{say('no_score')}</h3>{table(head, rows, numbers=(3,), prose=(1, 2))}" if rows else ""
    return f'<p class="soft">{say("leaderboard_note")}</p><div class="pictures">{"".join(drawn)}</div>{board}'


def _folds(report: Report, say: Say) -> str:
    """Mean, interval and spread of every metric over the folds."""
    several = not any("value" in e for e in report.folds.values())
    tables = report.folds.items() if several else [("", report.folds)]
    whole = "".join((f"<h3>{escape(name)}</h3>" if name else "") + _metrics_table({"metrics": found}, say) for name, found in tables if found)
    return whole + (_chosen(report, say) if report.chosen else "")


def _chosen(report: Report, say: Say) -> str:
    """The settings that the search of each fold chose, their value on its validation rows and on the rows held out."""
    metric = str(report.search.get("metric", ""))
    rows = []
    for entry in report.chosen:
        params, scores = dict(entry.get("params", {})), dict(entry.get("scores", {}))
        held = scores if metric in scores else next((s for s in scores.values() if isinstance(s, Mapping) and metric in s), {})
        told = ", ".join(f"{k}: {number(v) if isinstance(v, float) else v}" for k, v in params.items())
        name = f"{entry.get('repeat', 0) + 1}.{entry.get('fold', 0) + 1}"
        rows.append([name, escape(told), _value(entry), _value(dict(held.get(metric, {})))])
    head = [say("fold"), say("settings"), f"{_metric_name(metric, say)}, {say('valid')}", f"{_metric_name(metric, say)}, {say('held_out')}"]
    return f'<p class="soft">{say("chosen_note")}</p>' + table(head, rows, numbers=(2, 3), prose=(1,))


def _evaluation(report: Report, say: Say) -> str:
    """The headline split in full, with its pictures; the other splits as tables."""
    main = headline_split(report.evaluation)
    order = sorted(report.evaluation, key=lambda split: split != main)
    budget = {"fragments": FRAGMENTS, "pictures": PICTURE_CHARACTERS, "left_out": 0}
    parts = [_split(report.evaluation[split], split, split == main, say, budget) for split in order]
    drawn = "".join(_figure(name, data, say) for name, data in report.pictures.items() if name in PICTURES and name not in ("pareto", "sensitivity"))
    whole = f'<div class="pictures" style="margin-top:12px">{drawn}</div>' if drawn else ""
    return "".join([*parts[:1], whole, *parts[1:]])


def _split(outputs: Mapping[str, Any], split: str, full: bool, say: Say, budget: dict[str, int]) -> str:
    html = ""
    for name, output in outputs.items():
        title = " · ".join(filter(None, [escape(name), escape(say(split))]))
        html += f"<h3>{title}</h3>{_metrics_table(output, say)}" + (_details(output, say, budget) if full else "")
    return html


def _metrics_table(output: Mapping[str, Any], say: Say) -> str:
    base = output.get("baseline", {})
    rows = []
    for name, found in output.get("metrics", {}).items():
        better = "↑" if found.get("better") == "higher" else "↓" if found.get("better") == "lower" else ""
        label = (
            f'{escape(say(name))}&nbsp;<span class="soft" title="{say(found.get("better", "higher"))}">{better}</span>'
        )
        rows.append([label, _value(found), _value(base.get(name, {})), _interval(found), escape(_beside(found))])
    head = [say("metric"), say("value"), say("baseline"), say("interval"), say("note")]
    return table(head, rows, numbers=(1, 2, 3), prose=(4,)) if rows else ""


def _beside(found: Mapping[str, Any]) -> str:
    """What stands beside a value: its note, and the signature of a score that papers quote."""
    return "; ".join(filter(None, [found.get("note", ""), found.get("signature", "")]))


def _details(output: Mapping[str, Any], say: Say, budget: dict[str, int]) -> str:
    pictures = dict(output.get("pictures", {}))
    if tried := tried_data(output.get("groups") or {}):
        pictures["groups_tried"] = tried
    if "metrics" not in pictures and (bars := metric_bars_data(output)):
        pictures["metrics"] = bars
    drawn = []
    for name in PICTURES:
        if name in pictures:
            figure = _figure(name, pictures[name], say)
            budget["pictures"] -= len(figure)
            drawn += [figure] if budget["pictures"] > 0 else []
    html = f'<div class="pictures" style="margin-top:12px">{"".join(drawn)}</div>' if drawn else ""
    return segments(output, say) + html + _slices(output, say) + _worst(output, say, budget) + _samples(output, say, budget)


def metric_bars_data(output: Mapping[str, Any]) -> dict[str, Any] | None:
    """Data of the picture `metrics`: those between 0 and 1."""
    items = []
    base = output.get("baseline", {})
    for name, found in output.get("metrics", {}).items():
        value = found.get("value")
        if _known(value) and 0 <= value <= 1 and name not in ("mse", "rmse", "mae", "log_loss"):
            items.append(
                {
                    "name": name,
                    "value": value,
                    "low": found.get("low"),
                    "high": found.get("high"),
                    "baseline": base.get(name, {}).get("value"),
                    "better": found.get("better"),
                }
            )
    return {"items": items} if len(items) > 1 else None


def _slices(output: Mapping[str, Any], say: Say) -> str:
    slices = sort_slices(output.get("slices") or [])
    rows = [
        [
            escape(str(s["slice"])),
            f"{s['rows']:,}",
            escape(_metric_name(s["metric"], say)),
            _value(s),
            _interval(s),
            escape(s.get("note", "")),
        ]
        for s in slices[:100]
    ]
    head = [say("slice"), say("rows"), say("metric"), say("value"), say("interval"), say("note")]
    return f"<h3>{say('slices')}</h3>{table(head, rows, numbers=(1, 3, 4), prose=(5,))}" if rows else ""


def sort_slices(slices: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Worst first by the direction of the metric; undefined ones last."""

    def key(s: Mapping[str, Any]) -> tuple[bool, float]:
        value = s.get("value")
        known = _known(value)
        return (not known, (float(value) if s.get("better", "higher") == "higher" else -float(value)) if known else 0.0)  # type: ignore[arg-type]

    return sorted(slices, key=key)


def _worst(output: Mapping[str, Any], say: Say, budget: dict[str, int]) -> str:
    worst = (output.get("worst") or [])[:WORST_SHOWN]
    if not worst:
        return ""
    cards, note = _cards(worst, say, budget)
    odd = "score" in worst[0]  # nobody knows the truth: the rows with the highest scores
    said, of = ("oddest_rows", "oddest_of") if odd else ("worst_rows", "worst_of")
    title = f'<h3>{say(said)} <span class="soft">({say(of, n=len(worst))})</span></h3>'
    return f"{title}{cards}{note}"


def _samples(output: Mapping[str, Any], say: Say, budget: dict[str, int]) -> str:
    """Answers beside what was asked and what is true."""
    samples = (output.get("samples") or [])[:WORST_SHOWN]
    return f"<h3>{say('samples')}</h3>{''.join(_cards(samples, say, budget))}" if samples else ""


def _cards(rows: Sequence[Mapping[str, Any]], say: Say, budget: dict[str, int]) -> tuple[str, str]:
    """(a card for each row, a note on what was left out)."""
    left_out, cards = 0, []
    for row in rows:
        facts = []
        for column, html in (row.get("inputs") or {}).items():
            budget["fragments"] -= len(html)
            if budget["fragments"] < 0:
                left_out += 1
                continue
            facts.append(f'<dt>{escape(column)}</dt><dd><div class="value">{html}</div></dd>')
        along = row.get("along") or {}
        for key, html in along.items():
            budget["fragments"] -= len(html)
            left_out += budget["fragments"] < 0
            facts += [f'<dt>{say(key)}</dt><dd><div class="value">{html}</div></dd>'] if budget["fragments"] >= 0 else []
        for key in ("truth", "prediction", "confidence", "loss", "error", "score", "why"):
            if key not in along and row.get(key) not in (None, ""):
                facts.append(f"<dt>{say(key)}</dt><dd><b>{escape(_show(row[key]))}</b></dd>")
        name = say("row", n=escape(_show(row["row"]))) if row.get("row") is not None else ""
        cards.append(f'<div class="card worst"><div class="soft">{name}</div><dl>{"".join(facts)}</dl></div>')
    note = f'<p class="soft">{say("too_big", n=left_out)}</p>' if left_out else ""
    return f'<div class="cards">{"".join(cards)}</div>', note


def _data(report: Report, say: Say) -> str:
    data = report.data
    facts: dict[str, Any] = {}
    if "rows_in" in data:
        facts[say("rows_in")] = f"{data['rows_in']:,}"
    if isinstance(data.get("rows"), Mapping):
        facts[say("rows_used")] = ", ".join(f"{say(split)} {n:,}" for split, n in data["rows"].items())
    elif isinstance(data.get("rows"), int):
        facts[say("rows_used")] = f"{data['rows']:,}"
    aside = data.get("set_aside")
    rows = aside if isinstance(aside, list) else []
    count = data.get("set_aside_count", aside if isinstance(aside, int) else len(rows))
    if data:
        facts[say("set_aside")] = f"{count:,}"
    parts = [f'<div class="card">{_list(facts)}</div>'] if facts else []
    if rows:
        columns = ("file", "line", "column", "reason", "value")
        cells = [[escape(_show(r.get(c, ""))) for c in columns] for r in rows[:SET_ASIDE_SHOWN]]
        parts.append(f"<h3>{say('set_aside')}</h3>{table([say(c) for c in columns], cells, prose=(3,))}")
        if count > len(cells):
            parts.append(f'<p class="soft">{say("set_aside_more", n=f"{count - len(cells):,}")}</p>')
    drawn = [
        _figure("balance", {"labels": list(b), "counts": list(b.values())}, say, caption=name)
        for name, b in (data.get("balance") or {}).items()
    ]
    drawn += [_figure("lengths", one, say, caption=name) for name, one in (data.get("lengths") or {}).items()]
    pictures = f'<div class="pictures" style="margin-top:12px">{"".join(drawn)}</div>' if drawn else ""
    return "".join(parts) + pictures + taught(report.events, say)


def _configuration(report: Report, say: Say) -> str:
    commands = "".join(f"<pre>{escape(command)}</pre>" for command in report.commands)
    parts = f"<h3>{say('reproduce')}</h3>{commands}" if commands else ""
    return parts + (f"<h3>config.yaml</h3><pre>{escape(report.config)}</pre>" if report.config else "")


def _card(report: Report, say: Say) -> str:
    return f'<div class="card">{_list({say(k): v for k, v in report.facts.items()})}</div>' if report.facts else ""


def _figure(name: str, data: Mapping[str, Any], say: Say, caption: str = "") -> str:
    wide = ' class="wide"' if name == "confusion" and len(data["labels"]) >= WIDE else ""
    head = f'<figcaption class="soft">{escape(caption)}</figcaption>' if caption else ""
    return f"<figure{wide}>{head}{draw(name, data, say)}</figure>"


def _metric_name(path: str, say: Say) -> str:
    """`test.churn.accuracy` with its last part in the reader's language."""
    *before, last = path.split(".")
    return ".".join([*before, say(last)])


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = (), prose: Sequence[int] = ()
) -> str:
    """A table that scrolls inside itself; columns that are empty throughout are left out. Cells are HTML."""
    rows = list(rows)
    used = [i for i in range(len(head)) if any(row[i] not in ("", "—") for row in rows)]
    mark = {i: ' class="n"' for i in numbers} | {i: ' class="p"' for i in prose}
    top = "".join(f"<th{mark.get(i, '')}>{head[i]}</th>" for i in used)
    body = "".join("<tr>" + "".join(f"<td{mark.get(i, '')}>{row[i]}</td>" for i in used) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _list(facts: Mapping[str, Any]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(_show(v))}</dd>" for k, v in facts.items()) + "</dl>"


def _show(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "—" if value is None else str(value).lower()
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return number(value, 6 if abs(value) >= 1 else 4)
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {_show(v)}" for k, v in value.items())
    return ", ".join(_show(v) for v in value) if isinstance(value, list | tuple) else str(value)


def _known(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _value(found: Mapping[str, Any]) -> str:
    if not _known(found.get("value")):
        return "—"
    value = float(found["value"])
    return number(0.0 if abs(value) < 1e-12 else value)  # 4e-17 is rounding noise, not a finding


def _interval(found: Mapping[str, Any]) -> str:
    if not _known(found.get("low")) or not _known(found.get("high")):
        return "—"
    return f"[{number(found['low'])}, {number(found['high'])}]"
