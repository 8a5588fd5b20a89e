"""The stage engine under any history of changes, forced runs, deleted files and crashes between two file operations.

Whatever happened, a result called current was made from exactly what the config of today says, and a plain run makes
everything current. What a stage writes here tells everything it was made from, its run id included, so that a result
of other inputs, another config or another forced run cannot pass for it.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cam_pipeline.config import Config, load_config
from cam_pipeline.machine.atomic import read_json
from cam_pipeline.pipeline import Inputs, Output, Pipeline, Stage

MAKES = {"grow": "wheat.bin", "mill": "flour.bin", "bake": "bread.bin"}
NEEDS: dict[str, tuple[str, ...]] = {"grow": (), "mill": ("grow",), "bake": ("mill",)}
PARAMS = {"grow": ("cam.max_side",), "mill": ("refine.crf_iterations",), "bake": ("run.seed",)}


class Crash(BaseException):
    """The process dies here: from now on no file changes."""


class CrashingFiles:
    """Lets so many file operations pass; the next and all later ones raise Crash and do nothing."""

    def __init__(self, operations: int) -> None:
        self.left = operations

    def guarded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise Crash
            return function(*arguments, **named)

        return call

    def __enter__(self) -> None:
        self.patches = [
            patch.object(os, "replace", self.guarded(os.replace)),
            patch.object(Path, "unlink", self.guarded(Path.unlink)),
            patch.object(Path, "write_text", self.guarded(Path.write_text)),
            patch.object(shutil, "rmtree", self.guarded(shutil.rmtree)),
        ]
        for each in self.patches:
            each.start()

    def __exit__(self, *_: object) -> None:
        for each in self.patches:
            each.stop()


def content(config: Config, name: str, run_id: str, inputs: Mapping[str, str]) -> str:
    """What a stage writes: a function of everything that may change its result."""
    return json.dumps([name, config.pick(PARAMS[name]), run_id, inputs])


def work(config: Config, inputs: Inputs, output: Output) -> None:
    """In two pieces that outlive a crash, as the real stages work; a piece is trusted when it is there."""
    name = next(name for name, file in MAKES.items() if file == output.path.name)
    run_id = read_json(output.folder / "run.json").get("run_id", output.fingerprint)
    text = content(config, name, run_id, {need: path.read_text() for need, path in inputs.results.items()})
    middle = len(text) // 2
    for piece, part in (("piece-0", text[:middle]), ("piece-1", text[middle:])):
        if not (output.folder / piece).exists():
            aside = output.folder / f".{piece}.tmp"
            aside.write_text(part)
            os.replace(aside, output.folder / piece)
    output.path.write_text("".join((output.folder / piece).read_text() for piece in ("piece-0", "piece-1")))


def stage(name: str) -> Stage:
    return Stage(name, MAKES[name], name, work, PARAMS[name], needs=lambda config: NEEDS[name])


names = st.sampled_from(list(MAKES))
crashes = st.none() | st.integers(0, 40)


class Histories(RuleBasedStateMachine):
    """Any order of what users and machines do to a run folder."""

    @initialize()
    def empty_folder(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="histories-"))
        self.settings = {"cam.max_side": 64, "refine.crf_iterations": 1, "run.seed": 0}

    def teardown(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def pipeline(self) -> Pipeline:
        overrides = [f"{key}={value}" for key, value in self.settings.items()]
        config = load_config("demo", [f"output.dir={json.dumps(str(self.folder / 'run'))}", *overrides])
        return Pipeline(config, {name: stage(name) for name in MAKES})

    def run(self, wanted: list[str], force: bool, crash: int | None) -> None:
        try:
            with CrashingFiles(10**9 if crash is None else crash):
                self.pipeline().run(wanted, force=force, announce=lambda line: None)
        except Crash:
            assert crash is not None

    @rule(key=st.sampled_from(["cam.max_side", "refine.crf_iterations", "run.seed"]), change=st.integers(0, 1))
    def set_a_key(self, key: str, change: int) -> None:
        self.settings[key] = {"cam.max_side": 64, "refine.crf_iterations": 1, "run.seed": 0}[key] + change

    @rule(crash=crashes)
    def run_all(self, crash: int | None) -> None:
        self.run(list(MAKES), False, crash)

    @rule(name=names, crash=crashes)
    def force(self, name: str, crash: int | None) -> None:
        if all(state.kind == "current" for need, state in self.states().items() if need in self.before(name)):
            self.run([name], True, crash)

    @rule(crash=crashes)
    def force_all(self, crash: int | None) -> None:
        self.run(list(MAKES), True, crash)

    @rule(name=names, manifest=st.booleans())
    def delete_a_file(self, name: str, manifest: bool) -> None:
        (self.folder / "run" / f"{MAKES[name]}{'.manifest.json' if manifest else ''}").unlink(missing_ok=True)

    @invariant()
    def what_is_called_current_is(self) -> None:
        if not hasattr(self, "folder"):
            return
        config, known = self.pipeline().config, {}
        for name, state in self.states().items():
            if state.kind == "current":
                inputs = {need: known[need] for need in NEEDS[name]}
                known[name] = (self.folder / "run" / MAKES[name]).read_text()
                plain = f"{state.fingerprint}-{hashlib.sha256(known[name].encode()).hexdigest()[:8]}"
                run_id = state.fingerprint if state.run_id == plain else state.run_id
                assert known[name] == content(config, name, run_id, inputs)

    @rule()
    def a_plain_run_makes_all_current(self) -> None:
        self.run(list(MAKES), False, None)
        assert {state.kind for state in self.states().values()} == {"current"}

    def states(self) -> Mapping[str, Any]:
        return self.pipeline().states(["bake"])

    def before(self, name: str) -> list[str]:
        return list(MAKES)[: list(MAKES).index(name)]


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=40, stateful_step_count=15, deadline=None)
