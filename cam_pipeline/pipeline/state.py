"""Whether a stage's result is current, and if not, why.

A result is current if the facts in its manifest give the same fingerprint as the present config and data, and its file
has the content of which the manifest states the digest.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cam_pipeline.config import FILES, Config
from cam_pipeline.data.dataset import Dataset
from cam_pipeline.data.digest import FileDigests
from cam_pipeline.errors import ConfigError, StageNotReady
from cam_pipeline.machine.atomic import read_json
from cam_pipeline.pipeline.stage import Earlier, Stage, load_stages

FROM = "# from "
"""Begins the first line of a run folder's config.toml, before the file that the config was read from."""
LIBRARIES = ("torch", "torchvision", "timm", "segmentation-models-pytorch", "numpy", "pydensecrf2")


@dataclass(frozen=True)
class State:
    """State of a stage, as `status` shows it. `kind` is current, stale, damaged, partial or missing."""

    stage: str
    kind: str
    reason: str
    run_id: str
    fingerprint: str
    facts: Mapping[str, Any]


@dataclass
class Results:
    """The results of one config's stages, as its run folder holds them.

    `same`: the options that name this config on the command line, for commands that messages offer.
    """

    config: Config
    stages: Mapping[str, Stage] = field(default_factory=lambda: load_stages())
    same: str = ""

    def __post_init__(self) -> None:
        self.folder = self.config.folder
        self.dataset = Dataset(self.config.data, FileDigests(self.folder / "digests.json"))

    def path(self, name: str) -> Path:
        """Final place of a stage's result."""
        return self.folder / self.stages[name].makes

    def _manifest_path(self, name: str) -> Path:
        return self.folder / f"{self.stages[name].makes}.manifest.json"

    def _manifest(self, name: str) -> dict[str, Any]:
        """The manifest of a stage's result; empty if there is none, or it is incomplete."""
        manifest = read_json(self._manifest_path(name))
        complete = {"fingerprint", "run_id", "facts", "bytes", "made"} <= manifest.keys()
        return manifest if complete and isinstance(manifest["facts"], dict) else {}

    def command(self, name: str) -> str:
        """The command that makes a stage's result, as a user types it."""
        return f"cam-pipeline {self.stages[name].command} {self.same}".strip()

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

    def finals(self) -> list[str]:
        """The stages for which a run with this config is made."""
        return [name for name, stage in self.stages.items() if stage.final(self.config)]

    def shown(self) -> list[str]:
        """`finals`, and stages that this config asks for and of which there is a result."""
        known = [name for name, stage in self.stages.items() if stage.applies(self.config) and self._manifest(name)]
        return list(dict.fromkeys([*self.order(self.finals()), *known]))

    def made_by(self, command: str) -> list[str]:
        """The stages that a command makes with this config, upstream first."""
        own = [name for name, stage in self.stages.items() if stage.command == command and stage.applies(self.config)]
        return [name for name in self.order(own) if name in own]

    def states(self, names: Iterable[str]) -> dict[str, State]:
        """State of the named stages and of all that they need, upstream first."""
        self.dataset.digests.look_again()
        states: dict[str, State] = {}
        for name in self.order(names):
            states[name] = self._state(name, states)
        if self.folder.is_dir():
            self.dataset.digests.save()
        return states

    def _state(self, name: str, states: Mapping[str, State]) -> State:
        stage = self.stages[name]
        upstream = {need: states[need] for need in stage.needs(self.config)}
        facts: dict[str, Any] = {
            "stage": name,
            "version": stage.version,
            "params": self.config.pick(stage.params, stage.ignores),
            "data": stage.data(self.config, self.dataset),
            "needs": {need: state.run_id for need, state in upstream.items()},
        }
        fingerprint = fingerprint_of(facts)
        partial = self._partial(name, fingerprint)
        manifest = self._manifest(name)
        made_from = self._that_matter(manifest["facts"]) if manifest else {}
        matches = bool(manifest) and fingerprint_of(made_from) == fingerprint
        # If the file is gone, the same is expected to be made again.
        run_id = str(manifest["run_id"]) if matches else run_id_of(partial, fingerprint)
        path = self.path(name)
        if matches and path.is_file():
            kind, reason = self._look_at(path, manifest)
        elif progress := _progress(partial):
            kind, reason = "partial", progress
        elif manifest and path.is_file():
            kind, reason = "stale", explain_change(made_from, facts)
        else:
            kind, reason = "missing", "not made yet"
        waiting = next((need for need, state in upstream.items() if state.kind != "current"), None)
        if kind == "current" and waiting:
            kind, reason = "stale", f"{waiting} is {upstream[waiting].kind}"
        return State(name, kind, reason, run_id, fingerprint, facts)

    def _look_at(self, path: Path, manifest: Mapping[str, Any]) -> tuple[str, str]:
        """Current, or damaged if the file is not the one that the manifest was written for."""
        size = path.stat().st_size
        if size != manifest["bytes"]:
            return "damaged", f"{path} has {size} bytes, its manifest says {manifest['bytes']}"
        stated = manifest.get("sha256")  # earlier versions did not state it
        if stated and self.dataset.digests.of(path) != stated:
            return "damaged", f"{path} has another content than when it was made"
        return "current", f"made {manifest['made']}{_with_other_libraries(manifest)}"

    def earlier(self, name: str, state: State) -> Earlier | None:
        """The stage's stale result, if it differs from what is now asked for by its data alone; else None."""
        manifest, path = self._manifest(name), self.path(name)
        if not manifest or not path.is_file() or self.dataset.digests.of(path) != manifest.get("sha256"):
            return None
        facts = self._that_matter(manifest["facts"])
        same = all(facts.get(key) == state.facts[key] for key in ("version", "params", "needs"))
        return Earlier(path, manifest) if same else None

    def _that_matter(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """The facts of a manifest without settings that have no effect now; earlier versions stored some of these."""
        idle = self.config.idle()
        params: dict[str, Any] = {}
        for path, value in self._made_as(facts).items():
            if isinstance(value, dict):
                value = {key: item for key, item in value.items() if f"{path}.{key}" not in idle}
                if value:
                    params[path] = value
            elif path not in idle:
                params[path] = value
        return {**facts, "params": params}

    def _made_as(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """The settings among the facts of a manifest; those that an earlier version did not have as their defaults.

        So the default of a new setting must be what was done before, or the version of its stages must rise.
        """
        params, ignores = _table(facts, "params"), self.stages[str(facts["stage"])].ignores
        for name, value in params.items():
            if isinstance(value, dict) and name in Config.model_fields:
                defaults = Config.model_fields[name].default.model_dump(mode="json")
                left_out = {key for key in defaults if key in FILES or f"{name}.{key}" in ignores}
                params = params | {name: {key: defaults[key] for key in defaults.keys() - left_out} | value}
        return params

    def _partial(self, name: str, fingerprint: str) -> Path:
        return self.folder / "partial" / f"{name}-{fingerprint}"

    def made_with(self) -> Config:
        """The config that the results in the run folder were made with, which may differ from the present one.

        Files, and settings that no result depends on, are those of the present config. Raises ConfigError for results
        of another version, and for results made from other inputs than this config says (`_check_sources`).
        """
        values = self.config.model_dump(mode="json")
        manifests = {name: found for name in self.stages if (found := self._manifest(name))}
        for manifest in manifests.values():
            for path, value in self._made_as(manifest["facts"]).items():
                section, _, key = path.partition(".")
                made = {key: value} if key else value
                values[section] |= {key: value for key, value in made.items() if key not in FILES}
        try:
            made_with = Config.model_validate(values)
        except ValueError as error:
            raise ConfigError(f"{self.folder} was made by another version; make its results again with --force") from (
                error
            )
        for name, manifest in manifests.items():
            self._check_sources(name, manifest["facts"], made_with)
        return made_with

    def _check_sources(self, name: str, facts: Mapping[str, Any], made_with: Config) -> None:
        """Raise ConfigError if a result was made from other results, or more or fewer files, than a config says."""
        stage = self.stages[name]
        config_file = self.folder / "config.toml"
        if not stage.applies(made_with):
            return  # left from an earlier config; nothing is made from it
        remedy = f"correct it, or run cam-pipeline {stage.command}"
        then, now = _table(facts, "needs").keys(), {*stage.needs(made_with)}
        if then != now:
            raise ConfigError(
                f"{config_file}: {stage.makes} is made from {', '.join(now)}, "
                f"but was made from {', '.join(then)}; {remedy}"
            )
        for key, count in made_with.pick(stage.params).items():
            used = _table(facts, "params").get(key)
            if key.rpartition(".")[2] in FILES and count != used:
                raise ConfigError(
                    f"{config_file}: the number of files in {key} is {count}, but was {used} when {stage.makes} was "
                    f"made; {remedy}"
                )

    def ensure(self, name: str) -> Path:
        """Path of a current result. Raises StageNotReady, naming the command to run, if it is not current."""
        state = self.states([name])[name]
        if state.kind != "current":
            force = " --force" if state.kind == "damaged" else ""
            raise StageNotReady(f"{self.path(name)} is {state.kind} ({state.reason}). Run: {self.command(name)}{force}")
        return self.path(name)


def source_of(folder: Path) -> str:
    """The file that a run folder's config was read from (see `Pipeline`); empty if that is not known."""
    try:
        with (folder / "config.toml").open(encoding="utf-8") as file:
            first = file.readline()
    except (OSError, ValueError):
        return ""
    return first.removeprefix(FROM).strip() if first.startswith(FROM) else ""


def fingerprint_of(facts: Mapping[str, Any]) -> str:
    """The fingerprint of a result: a digest of all that it is made from."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def explain_change(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Why a result is stale, in words: the first setting, input or version that differs."""
    if before.get("version") != now["version"]:
        return f"the stage's code changed (version {before.get('version')} to {now['version']})"
    if _table(before, "needs").keys() != now["needs"].keys():
        return f"it is now made from {', '.join(now['needs'])}" if now["needs"] else "it now needs no other result"
    old, new = _settings(before), _settings(now)
    for path, value in new.items():
        if path in old and old[path] != value:
            return f"{path} was {old[path]}, is {value}"
    if before.get("data") != now["data"]:  # after the settings, which decide what data is read
        return "the data changed"
    for need, run_id in now["needs"].items():
        if _table(before, "needs").get(need) != run_id:
            return f"made from an earlier {need}"
    for path in (*new, *old):
        if path not in old or path not in new:
            return f"an earlier version made it, {'with' if path in old else 'without'} the setting {path}"
    return "its inputs have changed"


def _settings(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The settings among facts, as one value per key."""
    settings: dict[str, Any] = {}
    for path, value in _table(facts, "params").items():
        settings |= {f"{path}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {path: value}
    return settings


def _table(facts: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A table among stored facts; empty if there is none."""
    found = facts.get(key)
    return found if isinstance(found, dict) else {}


def _progress(partial: Path) -> str:
    """How far work in progress is, in words; empty if there is none."""
    progress = read_json(partial / "progress.json")
    known = {"done", "total", "unit"} <= progress.keys()
    return f"{progress['done']} of {progress['total']} {progress['unit']} done" if known else ""


def libraries() -> dict[str, str]:
    """Versions of the libraries on which the last digits of results depend; read without importing them.

    An optional library that is not installed is left out.
    """
    found = {}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _with_other_libraries(manifest: Mapping[str, Any]) -> str:
    """What `status` says of a result that was made with other versions of libraries; usually nothing."""
    now = libraries()
    others = [
        f"{name} {made} (now {now.get(name, 'not installed')})"
        for name, made in _table(manifest, "libraries").items()
        if name in LIBRARIES and now.get(name) != made
    ]
    return f" with {', '.join(others)}" if others else ""


def run_id_of(partial: Path, fingerprint: str) -> str:
    """The run id that `--force` noted in the folder of work in progress, else the fingerprint."""
    noted = read_json(partial / "run.json").get("run_id")
    return noted if isinstance(noted, str) and noted else fingerprint
