"""Versions of models: registers them, names them (champion, challenger), promotes with a gate, rolls back, signs, backs up.

modelyard models register churn-0001                 # churn 1
modelyard models                                     # all versions; models show churn tells of one
modelyard models promote churn 2                     # champion, unless it is worse than the present one
modelyard models rollback churn
modelyard predict models:/churn@champion data=new.csv

Also: alias NAME VERSION ALIAS, history NAME, pull NAME[@ALIAS] out=FOLDER, verify [NAME] [trust=FILE], gc [keep=5] [apply=true],
keygen out=FILE [for=encryption], sign FOLDER key=FILE, encrypt FOLDER out=FOLDER, decrypt FOLDER out=FOLDER, rewrap FOLDER, backup out=FOLDER,
restore FOLDER. The registry is the folder `registry`, or where `path=` or MODELYARD_REGISTRY say: a folder, or postgresql://HOST/DATABASE with
`store=` or MODELYARD_STORE for the folders (s3://BUCKET/PREFIX).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelyard.errors import GateFailed, UsageError
from modelyard.options import Options
from modelyard.settings import plain

if TYPE_CHECKING:
    from modelyard.store.registry import Registry, Version

NEEDS_PROJECT = False


@dataclass
class Told:
    """What was done, and the versions that it was about."""

    did: str
    versions: list[dict[str, Any]] = field(default_factory=list)
    """`{name, number, version, added, aliases, facts}`."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """`{alias, number, previous, time, why}`, oldest first."""
    problems: list[str] = field(default_factory=list)
    """What `verify` found."""
    removed: list[str] = field(default_factory=list)
    """What `gc` took away, or would."""
    folder: str | None = None
    """What was written, or where the model lies."""

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)

    def show(self) -> str:
        """A few lines."""
        lines = [self.did] if self.did else []
        for v in self.versions:
            metrics = {k: m for k, m in v["facts"]["metrics"].items() if isinstance(m, dict) and "value" in m}
            name, metric = next(iter(metrics.items()), ("", {}))
            score = f"{name} {metric['value']:.4g} [{metric['low']:.4g}, {metric['high']:.4g}]" if metric.get("value") is not None else ""
            lines.append(f"{v['name']} {v['number']}  {v['version']}  {v['added']}  {score}  {' '.join('@' + a for a in v['aliases'])}".rstrip())
        lines += [f"  {h['time']}  @{h['alias']}: {h['previous'] or '—'} → {h['number'] or '—'}  {h['why']}" for h in self.history]
        lines += [f"  {text}" for text in [*self.problems, *self.removed]]
        return "\n".join(lines) or "no models are registered; write: modelyard models register RUN"


Action = Callable[["Registry", list[str], dict[str, Any]], Told]


def run(project: None, *, model: str | None, options: Options) -> Told:
    """Raises `UsageError` for what is no such command, `GateFailed` where a promotion is refused."""
    from modelyard.store.registry import Registry

    args, values = options.args or ["list"], dict(options.values)
    if args[0] not in ACTIONS:
        raise UsageError(f"models has no {args[0]!r}; it takes {', '.join(ACTIONS)}")
    action, least, most, keys = ACTIONS[args[0]]
    given, usage = args[1:], f"modelyard models {args[0]}"
    unknown = sorted(set(values) - {*keys, "path", "store"})
    if unknown or not least <= len(given) <= most:
        words = f"{least} to {most}" if least < most else str(least)
        known = ", ".join((*keys, "path", "store"))
        raise UsageError(f"{usage} takes {words} argument(s) and {known}=; got {len(given)} and {', '.join(unknown) or 'no other key'}")
    registry = Registry(_text(values.pop("path", None)), _text(values.pop("store", None)))
    told = action(registry, given, values)
    if args[0] in MIRRORED:
        from modelyard.store import mirror

        for version in told.versions:
            mirror.version(registry, registry.get(version["name"], version["number"]), options.notice)
    return told


def _register(registry: Registry, args: list[str], values: dict[str, Any]) -> Told:
    from modelyard.store.run import model_folder

    key = Path(str(values["key"])) if "key" in values else None
    encrypt = _flag(values, "encrypt")
    found = registry.register(model_folder(args[0] if args else None, Path("runs")), _text(values.get("name")), key, encrypt)
    return Told(f"{found.name} {found.number} is registered in {registry.told}", [asdict(found)], folder=str(registry.folder(found)))


def _list(registry: Registry, args: list[str], values: dict[str, Any]) -> Told:
    if not registry.records.there():
        return Told("")
    return Told("", [asdict(v) for v in registry.versions(args[0] if args else None)])


def _show(registry: Registry, args: list[str], values: dict[str, Any]) -> Told:
    found = _named(registry, args)
    facts = found.facts
    rows, parents = (facts.get("data") or {}).get("rows"), ", ".join(facts.get("parents") or []) or "none"
    told = f"run {facts.get('run')}, rows {rows}, parents {parents}, {facts.get('size', 0) / 2**20:.1f} MiB, {facts.get('backend')}"
    return Told(told, [asdict(found)], registry.history(found.name), folder=str(registry.folder(found)))


def _history(registry: Registry, args: list[str], values: dict[str, Any]) -> Told:
    return Told(args[0], [], registry.history(registry.get(args[0]).name))


def _alias(registry: Registry, args: list[str], values: dict[str, Any]) -> Told:
    found = registry.get(args[0], args[1])
    registry.point(found, args[2], _text(values.get("why")) or "alias")
    return Told(f"{found.name}@{args[2]} is {found.number} now", [asdict(registry.get(found.name, found.number))])


def _promote(registry: Registry, args: list[str], values: dict[str, Any]) -> Told:
    found = registry.get(args[0], args[1])
    alias = _text(values.get("to")) or "champion"
    force = values.get("force") is True
    present = next((v for v in registry.versions(found.name) if alias in v.aliases), None)
    why = worse(found.facts, present.facts if present else None, _text(values.get("metric")))
    if why and not force:
        raise GateFailed(f"{found.name} {found.number} does not become {alias}: {'; '.join(why)}. With force=true it does, and the history says so")
    registry.point(found, alias, "promoted by force: " + "; ".join(why) if why else "promoted", present.number if present else None)
    was = f" (was {present.number})" if present else ""
    return Told(f"{found.name}@{alias} is {found.number} now{was}", [asdict(registry.get(found.name, found.number))])


def worse(candidate: Mapping[str, Any], present: Mapping[str, Any] | None, metric: str | None = None) -> list[str]:
    """Reasons against a promotion: gates of its own run that failed, and a metric on the wrong side of the present one's interval.

    The metric is the named one, else the first. Scores of other test rows are not compared: then that is the reason.
    """
    found = [f"its gate {g['metric']} {g['limit']} failed ({g['value']})" for g in candidate.get("gate") or [] if not g.get("passed")]
    if present is None:
        return found
    if (candidate.get("data") or {}).get("fingerprint") != (present.get("data") or {}).get("fingerprint"):
        return [*found, "its data are not those of the present one, so their scores do not compare; train or evaluate both on the same data"]
    mine, theirs = candidate.get("metrics") or {}, present.get("metrics") or {}
    name = metric or next((k for k in theirs if k in mine and isinstance(theirs[k], dict) and "low" in theirs[k]), None)
    a, b = mine.get(name or ""), theirs.get(name or "")
    if not isinstance(a, dict) or not isinstance(b, dict) or a.get("value") is None or b.get("value") is None:
        return [*found, f"both have no value of {metric or 'a metric'} to compare"]
    lower = b.get("better") == "lower"
    limit = b.get("high") if lower else b.get("low")
    limit = b["value"] if limit is None else limit
    if (a["value"] > limit) if lower else (a["value"] < limit):
        found.append(f"{name} {a['value']:.4g} is beyond the interval of the present one, {b['value']:.4g} [{b['low']:.4g}, {b['high']:.4g}]")
    return found


def _rollback(registry: Registry, args: list[str], values: dict[str, Any]) -> Told:
    alias = _text(values.get("of")) or "champion"
    found = registry.rollback(args[0], alias)
    return Told(f"{found.name}@{alias} is {found.number} again", [asdict(found)])


def _pull(registry: Registry, args: list[str], values: dict[str, Any]) -> Told:
    found = _named(registry, args)
    out = Path(_text(values.get("out")) or f"{found.name}-{found.number}")
    if out.exists():
        raise UsageError(f"{out} exists already; choose another with out=FOLDER")
    shutil.copytree(registry.folder(found), out)
    return Told(f"{found.name} {found.number} is copied to {out}", [asdict(found)], folder=str(out))


def _verify(registry: Registry, args: list[str], values: dict[str, Any]) -> Told:
    trusted = Path(str(values["trust"])) if "trust" in values else None
    problems = registry.verify(args[0] if args else None, trusted)
    if problems:
        from modelyard.errors import ArtefactError, Problem

        raise ArtefactError(f"{len(problems)} problem(s) in {registry.told}", [Problem(p) for p in problems])
    count = len(registry.versions(args[0] if args else None))
    return Told(f"{count} version(s) are whole" + (f" and signed by a key of {trusted}" if trusted else ""))


def _gc(registry: Registry, args: list[str], values: dict[str, Any]) -> Told:
    keep, apply = values.get("keep", 5), _flag(values, "apply")
    if isinstance(keep, bool) or not isinstance(keep, int) or keep < 0:
        raise UsageError(f"gc takes keep=NUMBER, 0 or more; got keep={keep!r}")
    gone, size = registry.gc(keep, apply)
    done = "went" if apply else "would go; write apply=true"
    return Told(f"{len(gone)} version(s), {size / 2**20:.1f} MiB, {done}", removed=gone)


def _keygen(registry: Registry, args: list[str], values: dict[str, Any]) -> Told:
    from modelyard.store import sealed, signature

    purpose = _text(values.get("for")) or "signing"
    if purpose not in ("signing", "encryption"):
        raise UsageError(f"keygen takes for=signing or for=encryption; got for={purpose}")
    path = Path(_text(values.get("out")) or ("signing.pem" if purpose == "signing" else "encryption.key"))
    if purpose == "encryption":
        number = sealed.keygen(path)
        return Told(f"key {number}: keep {path} secret and safe, without it nothing opens; name it with {sealed.KEY}=file:{path}", folder=str(path))
    number, public = signature.keygen(path)
    return Told(f"key {number}: keep {path} secret; give {public} to those who load models (MODELYARD_TRUST={public})", folder=str(path))


def _sign(registry: Registry, args: list[str], values: dict[str, Any]) -> Told:
    from modelyard.store import signature

    if "key" not in values:
        raise UsageError("sign needs key=FILE; make one with: modelyard models keygen")
    with _changing(registry, args[0]) as folder:
        number = signature.sign(folder, Path(str(values["key"])))
    return Told(f"{args[0]} is signed by {number}", folder=_lies(folder))


def _encrypt(registry: Registry, args: list[str], values: dict[str, Any]) -> Told:
    from modelyard.store import sealed
    from modelyard.store.run import model_folder

    folder, out = model_folder(args[0], Path("runs")), _out("encrypt", values)
    number = sealed.seal(folder, out)
    return Told(f"{out} holds {folder} encrypted with the key {number}", folder=str(out))


def _decrypt(registry: Registry, args: list[str], values: dict[str, Any]) -> Told:
    from modelyard.store import sealed
    from modelyard.store.run import model_folder

    folder, out = model_folder(args[0], Path("runs")), _out("decrypt", values)
    sealed.unseal(folder, out)
    return Told(f"{out} holds {folder} in the clear", folder=str(out))


def _rewrap(registry: Registry, args: list[str], values: dict[str, Any]) -> Told:
    from modelyard.store import sealed

    with _changing(registry, args[0]) as folder:
        before, number = sealed.rewrap(folder)
    return Told(f"{args[0]} opens with the key {number} now (was {before})", folder=_lies(folder))


@contextmanager
def _changing(registry: Registry, given: str) -> Iterator[Path]:
    """The folder that a user means, to be changed; a version's is stored anew where the registry keeps it in storage."""
    from modelyard.store.registry import named
    from modelyard.store.run import model_folder

    reference = named(given)
    if reference is None:
        yield model_folder(given, Path("runs"))
        return
    with registry.changing(registry.get(*reference)) as folder:
        yield folder


def _lies(folder: Path) -> str | None:
    """Where it lies, where that is a folder of this disk and not storage."""
    return str(folder) if folder.is_dir() else None


def _out(command: str, values: dict[str, Any]) -> Path:
    if "out" not in values:
        raise UsageError(f"{command} needs out=FOLDER")
    return Path(str(values["out"]))


def _backup(registry: Registry, args: list[str], values: dict[str, Any]) -> Told:
    from modelyard.store import backup

    if "out" not in values:
        raise UsageError("backup needs out=FOLDER or out=s3://BUCKET/PREFIX")
    count, size = backup.backup(registry, str(values["out"]))
    return Told(f"{count} new file(s), {size / 2**20:.1f} MiB, are in {values['out']}; all versions can be restored from it", folder=str(values["out"]))


def _restore(registry: Registry, args: list[str], values: dict[str, Any]) -> Told:
    from modelyard.store import backup

    count = backup.restore(args[0], registry)
    return Told(f"{count} version(s) are restored in {registry.told}, every file checked", folder=registry.told)


def _named(registry: Registry, args: list[str]) -> Version:
    name, _, alias = args[0].partition("@")
    if alias and len(args) > 1:
        raise UsageError("name a version by an alias or by a number, not by both")
    return registry.get(name, alias or (args[1] if len(args) > 1 else None))


def _flag(values: dict[str, Any], name: str) -> bool:
    value = values.get(name, False)
    if not isinstance(value, bool):
        raise UsageError(f"{name} is true or false; got {name}={value!r}")
    return value


def _text(value: Any) -> str | None:
    return None if value is None else str(plain(value))


ACTIONS: dict[str, tuple[Action, int, int, tuple[str, ...]]] = {
    "list": (_list, 0, 1, ()), "register": (_register, 0, 1, ("name", "key", "encrypt")), "show": (_show, 1, 2, ()), "history": (_history, 1, 1, ()),
    "alias": (_alias, 3, 3, ("why",)), "promote": (_promote, 2, 2, ("to", "metric", "force")), "rollback": (_rollback, 1, 1, ("of",)),
    "pull": (_pull, 1, 2, ("out",)), "verify": (_verify, 0, 1, ("trust",)), "gc": (_gc, 0, 0, ("keep", "apply")),
    "keygen": (_keygen, 0, 0, ("out", "for")), "sign": (_sign, 1, 1, ("key",)), "encrypt": (_encrypt, 1, 1, ("out",)),
    "decrypt": (_decrypt, 1, 1, ("out",)), "rewrap": (_rewrap, 1, 1, ()), "backup": (_backup, 0, 0, ("out",)), "restore": (_restore, 1, 1, ()),
}  # fmt: skip
"""Command → (function, fewest and most arguments, keys)."""
MIRRORED = ("register", "alias", "promote", "rollback")
"""Commands of which MLflow is told, where MLFLOW_TRACKING_URI names a server."""
