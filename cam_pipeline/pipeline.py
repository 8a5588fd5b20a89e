"""The stage engine: what a stage is, when its result is current, and how it is run so that it can be resumed.

A result is current when its manifest states the fingerprint that the config and data of today give, and the file has
the size the manifest states. Work grows in `partial/<stage>-<fingerprint>/`, is renamed when whole, and the manifest
is written last: it is the "done" bit. See docs/stages.md.
"""

import hashlib
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from cam_pipeline.config import FILES, Config, to_toml
from cam_pipeline.data.digest import FileDigests
from cam_pipeline.errors import ConfigError, DamagedFile, StageNotReady
from cam_pipeline.machine.atomic import write_text
from cam_pipeline.machine.device import keep_freed_memory, memory_errors_named, pick_device
from cam_pipeline.machine.distributed import check_shares, from_first, group, is_first, world_size
from cam_pipeline.machine.interrupt import graceful_stop
from cam_pipeline.store.lock import held
from cam_pipeline.version import __version__

logger = logging.getLogger(__name__)

STAGES = {
    "train_cls": "cam_pipeline.stages.train_cls",
    "extract_cams": "cam_pipeline.stages.extract_cams",
    "refine_cams": "cam_pipeline.stages.refine_cams",
    "make_labels": "cam_pipeline.stages.make_labels",
    "train_seg": "cam_pipeline.stages.train_seg",
}
COMMANDS = {
    "train_cls": "train-cls",
    "extract_cams": "make-cams",
    "refine_cams": "make-cams",
    "make_labels": "make-cams",
    "train_seg": "train-seg",
}


KEPT_PARTIALS = 2
"""For how many other settings a stage's interrupted work is kept when a result is made: they may come back."""


@dataclass(frozen=True)
class Output:
    """Where a stage writes: `path` is renamed to its final place when the stage returns.

    `folder` holds work in progress and outlives a kill; `logs` is kept. `fingerprint` belongs into the file.
    """

    path: Path
    logs: Path
    fingerprint: str

    @property
    def folder(self) -> Path:
        """The folder for part files and checkpoints."""
        return self.path.parent


@dataclass(frozen=True)
class Stage:
    """One cached step.

    `params` are the config sections and keys that change the result, but for `ignores`, keys in them that only say how
    to work; `data` digests what the stage reads outside the run folder; `needs` names upstream stages. `version` is
    raised by hand when the code computes something else. Of several processes the first alone calls `run`, or all do
    where the stage is `shared`; `divides` names the batch size that they then divide among them. `memory` names the
    setting to lower when memory does not suffice. `check` raises UserError for a config that the stage would stop at;
    stages behind the first of a run are checked before it.
    """

    name: str
    makes: str
    run: Callable[[Config, Mapping[str, Path], Output], None]
    params: tuple[str, ...]
    ignores: tuple[str, ...] = ()
    needs: Callable[[Config], tuple[str, ...]] = lambda config: ()
    data: Callable[[Config, FileDigests], str] = lambda config, digests: ""
    check: Callable[[Config], None] | None = None
    version: int = 1
    shared: bool = False
    divides: str = ""
    memory: str = ""


@dataclass(frozen=True)
class State:
    """What `status` shows of a stage. `kind` is current, stale, damaged, partial or missing."""

    stage: str
    kind: str
    reason: str
    run_id: str
    fingerprint: str
    facts: Mapping[str, Any]


@dataclass
class Pipeline:
    """The stages of one config in one run folder."""

    config: Config
    stages: Mapping[str, Stage] = field(default_factory=lambda: load_stages())

    def __post_init__(self) -> None:
        self.folder = self.config.folder
        self.digests = FileDigests(self.folder / "digests.json")

    def path(self, name: str) -> Path:
        """Final place of a stage's result."""
        return self.folder / self.stages[name].makes

    def _manifest_path(self, name: str) -> Path:
        return self.folder / f"{self.stages[name].makes}.manifest.json"

    def _manifest(self, name: str) -> dict[str, Any]:
        """What is stated of a stage's result; empty when there is no manifest that states everything."""
        manifest = read_json(self._manifest_path(name))
        complete = {"fingerprint", "run_id", "facts", "bytes", "made"} <= manifest.keys()
        return manifest if complete and isinstance(manifest["facts"], dict) else {}

    def order(self, names: Iterable[str]) -> list[str]:
        """The named stages and all that they need, upstream first."""
        found: list[str] = []

        def visit(name: str) -> None:
            for upstream in self.stages[name].needs(self.config):
                visit(upstream)
            if name not in found:
                found.append(name)

        for name in names:
            visit(name)
        return found

    def states(self, names: Iterable[str]) -> dict[str, State]:
        """State of the named stages and of all that they need, upstream first."""
        states: dict[str, State] = {}
        for name in self.order(names):
            states[name] = self._state(name, states)
        if self.folder.is_dir():
            self.digests.save()
        return states

    def _state(self, name: str, states: Mapping[str, State]) -> State:
        stage = self.stages[name]
        upstream = {need: states[need] for need in stage.needs(self.config)}
        facts: dict[str, Any] = {
            "stage": name,
            "version": stage.version,
            "params": self.config.pick(stage.params, stage.ignores),
            "data": stage.data(self.config, self.digests),
            "needs": {need: state.run_id for need, state in upstream.items()},
        }
        fingerprint = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        partial = self._partial(name, fingerprint)
        run_id = _run_id(partial, fingerprint)
        kind, reason = self._compare(name, fingerprint, facts, partial)
        if kind in ("current", "damaged"):
            run_id = self._manifest(name)["run_id"]
        waiting = next((need for need, state in upstream.items() if state.kind != "current"), None)
        if kind == "current" and waiting:
            kind, reason = "stale", f"{waiting} is {upstream[waiting].kind}"
        return State(name, kind, reason, run_id, fingerprint, facts)

    def _compare(self, name: str, fingerprint: str, facts: Mapping[str, Any], partial: Path) -> tuple[str, str]:
        """Kind and reason of a stage's state, by its own manifest alone."""
        manifest, path = self._manifest(name), self.path(name)
        if manifest and path.is_file() and manifest["fingerprint"] == fingerprint:
            size = path.stat().st_size
            if size != manifest["bytes"]:
                return "damaged", f"{path} has {size} bytes, its manifest says {manifest['bytes']}"
            return "current", f"made {manifest['made']}"
        progress = read_json(partial / "progress.json")
        if {"done", "total", "unit"} <= progress.keys():
            return "partial", f"{progress['done']} of {progress['total']} {progress['unit']} done"
        if manifest and path.is_file():
            return "stale", explain_change(manifest["facts"], facts)
        return "missing", "not made yet"

    def _partial(self, name: str, fingerprint: str) -> Path:
        return self.folder / "partial" / f"{name}-{fingerprint}"

    def made_with(self) -> Config:
        """The config with which the results in the run folder were made, which need not be the one of today.

        Files, and settings that no result depends on, are those of today. Raises ConfigError for results of an older
        version, and where not so many maps were merged as today's config names.
        """
        values = self.config.model_dump(mode="json")
        for manifest in filter(None, map(self._manifest, self.stages)):
            for path, value in manifest["facts"]["params"].items():
                section, _, key = path.partition(".")
                made = {key: value} if key else value
                if section == "refine" and made.get("merge_with", 0) != len(self.config.refine.merge_with):
                    raise ConfigError(
                        f"{self.folder / 'config.toml'}: the number of files in refine.merge_with is "
                        f"{len(self.config.refine.merge_with)}, but was {made.get('merge_with', 0)} when the results "
                        "were made; name those, or run cam-pipeline make-cams"
                    )
                values[section] |= {key: value for key, value in made.items() if key not in FILES}
        try:
            return Config.model_validate(values)
        except ValueError as error:
            raise ConfigError(f"{self.folder} was made by another version; make its results again with --force") from (
                error
            )

    def ensure(self, name: str) -> Path:
        """Path of a current result. Raises StageNotReady, naming the command to run, when it is not current."""
        state = self.states([name])[name]
        if state.kind != "current":
            raise StageNotReady(
                f"{self.path(name)} is {state.kind} ({state.reason}). Run: cam-pipeline {COMMANDS.get(name, name)}"
            )
        return self.path(name)

    def run(self, names: Iterable[str], force: bool = False, announce: Callable[[str], None] = logger.info) -> None:
        """Run the named stages that are not current, in order; what they need must be current or among them.

        With `force` the named stages are made anew and get new run ids, so that everything behind them becomes stale.
        """
        names = list(names)
        keep_freed_memory()
        with graceful_stop(), self._all_processes(), held(self.folder) if is_first() else nullcontext():
            from_first(lambda: self._prepare(names, force), stoppable=True)
            for name in names:
                self._run_stage(name, force, announce)

    def _all_processes(self) -> AbstractContextManager[None]:
        return group(pick_device(self.config.run)) if world_size() > 1 else nullcontext()

    def _prepare(self, names: list[str], force: bool) -> None:
        """Before the first stage: what can be known to be wrong, and the config in the run folder."""
        for key in (self.stages[name].divides for name in names if self.stages[name].divides):
            check_shares(key, self.config.pick((key,))[key])
        write_text(self.folder / "config.toml", to_toml(self.config))
        for name in (name for name in self.order(names) if name not in names):
            self.ensure(name)
        self._check_later(names[1:], force)

    def _check_later(self, names: list[str], force: bool) -> None:
        """Raise UserError for what these stages would stop at after the ones before them have worked for hours."""
        checks = {name: check for name in names if (check := self.stages[name].check)}
        states = self.states(checks)
        for name, check in checks.items():
            if force or states[name].kind != "current":
                check(self.config)

    def _run_stage(self, name: str, force: bool, announce: Callable[[str], None]) -> None:
        """Make one stage's result if need be. The first process decides and publishes; the others follow."""
        stage, state = self.stages[name], self._decide(name, force, announce) if is_first() else None
        fingerprint = from_first(lambda: state.fingerprint if state else "", stoppable=True)
        if not fingerprint:
            return
        output = self._output(stage, fingerprint)
        started = time.monotonic()
        if stage.shared or is_first():
            key = stage.memory or stage.divides or "run.workers"
            with memory_errors_named(name, key, self.config.pick((key,))[key]):
                stage.run(self.config, {need: self.path(need) for need in stage.needs(self.config)}, output)
        if state:
            self._publish(stage, state, output, time.monotonic() - started)
            announce(f"{name}: done in {time.monotonic() - started:.0f} s -> {self.path(name)}")

    def _decide(self, name: str, force: bool, announce: Callable[[str], None]) -> State | None:
        """The state of a stage that has to run, all ready for it; None when its result is current."""
        state = self.states([name])[name]
        if state.kind == "current" and not force:
            announce(f"{name}: current, nothing to do ({self.path(name)})")
            self._discard_partial(name, state.fingerprint)
            return None
        if state.kind == "damaged" and not force:
            raise DamagedFile(
                f"{state.reason}: it is damaged. Make it again with: cam-pipeline {COMMANDS.get(name, name)} --force"
            )
        self._begin(self.stages[name], state, force)
        announce(f"{name}: starts" + (f" ({state.reason})" if state.kind in ("stale", "partial") else ""))
        return state

    def _output(self, stage: Stage, fingerprint: str) -> Output:
        return Output(self._partial(stage.name, fingerprint) / stage.makes, self.folder / "logs", fingerprint)

    def _begin(self, stage: Stage, state: State, force: bool) -> None:
        folder = self._partial(stage.name, state.fingerprint)
        if force:
            shutil.rmtree(folder, ignore_errors=True)
            run_id = f"{state.fingerprint}-{secrets.token_hex(4)}"
            write_text(folder / "run.json", json.dumps({"run_id": run_id}))
            self._manifest_path(stage.name).unlink(missing_ok=True)  # now a killed `--force` goes on at the next run
        folder.mkdir(parents=True, exist_ok=True)

    def _publish(self, stage: Stage, state: State, output: Output, seconds: float) -> None:
        """Put the result in place. The old manifest goes first, so that it never stands beside a newer result."""
        manifest_path = self._manifest_path(stage.name)
        manifest_path.unlink(missing_ok=True)
        run_id = _run_id(output.folder, state.fingerprint)
        os.replace(output.path, self.path(stage.name))
        manifest = {
            "stage": stage.name,
            "fingerprint": state.fingerprint,
            "run_id": run_id,
            "facts": state.facts,
            "bytes": self.path(stage.name).stat().st_size,
            "made": time.strftime("%Y-%m-%d %H:%M:%S"),
            "seconds": round(seconds, 1),
            "cam_pipeline": __version__,
        }
        write_text(manifest_path, json.dumps(manifest, indent=1))
        self._discard_partial(stage.name, state.fingerprint)

    def _discard_partial(self, name: str, fingerprint: str) -> None:
        """Remove work in progress of a stage whose result is in place, and all but the newest with other settings."""
        shutil.rmtree(self._partial(name, fingerprint), ignore_errors=True)
        others = sorted((self.folder / "partial").glob(f"{name}-*"), key=_last_change, reverse=True)
        for old in others[KEPT_PARTIALS:]:
            shutil.rmtree(old, ignore_errors=True)


def load_stages() -> dict[str, Stage]:
    """All stages, in order. Imports their modules (and with them torch)."""
    return {name: import_module(module).STAGE for name, module in STAGES.items()}


def explain_change(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Why a result is stale, in words: the first setting, input or version that differs."""
    if before.get("version") != now["version"]:
        return f"the stage's code changed (version {before.get('version')} to {now['version']})"
    for section, value in now["params"].items():
        old = _table(before, "params").get(section)
        if isinstance(value, dict) and isinstance(old, dict):
            for key, item in value.items():
                if old.get(key) != item:
                    return f"{section}.{key} was {old.get(key)}, is {item}"
        elif old != value:
            return f"{section} was {old}, is {value}"
    if before.get("data") != now["data"]:  # what is read of it is a matter of the settings, too
        return "the data changed"
    for need, run_id in now["needs"].items():
        if _table(before, "needs").get(need) != run_id:
            return f"{need} was made anew or will be"
    return "what it needs is other than before"


def _last_change(folder: Path) -> float:
    """When work in progress was last gone on with."""
    return max((path.stat().st_mtime for path in (folder, *folder.iterdir())), default=0.0)


def _table(facts: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A table among stored facts; empty where there is none."""
    found = facts.get(key)
    return found if isinstance(found, dict) else {}


def _run_id(partial: Path, fingerprint: str) -> str:
    """The run id that `--force` noted in the folder of work in progress; else the fingerprint."""
    noted = read_json(partial / "run.json").get("run_id")
    return noted if isinstance(noted, str) and noted else fingerprint


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty when there is none or it can not be read."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
