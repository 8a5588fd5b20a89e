"""Run stages so that they can be resumed.

Work grows in `partial/<stage>-<fingerprint>/`, is renamed when whole, and the manifest
is written last: it is the "done" bit. See docs/stages.md.
"""

import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from cam_pipeline.config import to_toml
from cam_pipeline.data.digest import content_digest
from cam_pipeline.errors import DamagedFile
from cam_pipeline.machine.atomic import write_text
from cam_pipeline.machine.distributed import check_shares, from_first, group, is_first, world_size
from cam_pipeline.machine.interrupt import graceful_stop
from cam_pipeline.machine.threads import use_threads
from cam_pipeline.pipeline.lock import held
from cam_pipeline.pipeline.stage import Earlier, Inputs, Output, Stage
from cam_pipeline.pipeline.state import FROM, Results, State, libraries, run_id_of, source_of
from cam_pipeline.version import __version__

logger = logging.getLogger(__name__)

KEPT_PARTIALS = 2
"""Number of other settings whose interrupted work is kept when a stage is done: they may come back."""


@dataclass
class Pipeline(Results):
    """The stages of one config in one run folder, and how they are run.

    `source`: the file that the config was read from, as a path from the run folder, or the name of a shipped config; it
    is noted in the folder's own config.toml. Empty: not known.
    """

    source: str = ""

    def run(self, names: Iterable[str], force: bool = False, announce: Callable[[str], None] = logger.info) -> None:
        """Run the named stages that are not current, in order; what they need must be current or among them.

        With `force` the named stages are made again and get new run ids, so all that is made from them becomes stale.
        """
        names = list(names)
        with graceful_stop(), self._all_processes(), held(self.folder) if is_first() else nullcontext():
            from_first(lambda: self._prepare(names, force, announce), stoppable=True)
            for name in names:
                self._run_stage(name, force, announce)

    def _all_processes(self) -> AbstractContextManager[None]:
        if world_size() == 1:
            return nullcontext()
        from cam_pipeline.machine.device import pick_device  # late: it imports torch, and mistakes come first

        return group(pick_device(self.config.run))

    def _prepare(self, names: list[str], force: bool, announce: Callable[[str], None]) -> None:
        """Before the first stage: raise what is known to be wrong, say what is replaced, write the config down."""
        for key in (self.stages[name].divides for name in names if self.stages[name].divides):
            parts = getattr(getattr(self.config, key.partition(".")[0]), "accumulate", 1)
            check_shares(key, self.config.pick((key,))[key], parts)
        source = self.source or source_of(self.folder)
        write_text(self.folder / "config.toml", (f"{FROM}{source}\n" if source else "") + to_toml(self.config))
        for name in (name for name in self.order(names) if name not in names):
            self.ensure(name)
        states = self.states(names)
        to_make = [name for name in names if force or states[name].kind != "current"]
        self._check_later([name for name in to_make if name != names[0]])
        replaced = [name for name in to_make if states[name].kind == "stale"]
        if any(self._manifest(name).get("fingerprint") != states[name].fingerprint for name in replaced):
            makes = ", ".join(self.stages[name].makes for name in replaced)
            keep = f"to keep them, stop now (Ctrl-C), copy {self.folder} and name the copy in output.dir"
            announce(f"{states[replaced[0]].reason}: {makes} in {self.folder} will be replaced; {keep}")

    def _check_later(self, names: list[str]) -> None:
        """Raise the UserError at which one of these stages would stop after the earlier ones have worked for hours."""
        for name in names:
            if check := self.stages[name].check:
                check(self.config)

    def _run_stage(self, name: str, force: bool, announce: Callable[[str], None]) -> None:
        """Make one stage's result unless it is current. The first process decides and publishes; the others follow."""
        stage = self.stages[name]
        state = self._decide(name, force, announce) if is_first() else None
        fingerprint = from_first(lambda: state.fingerprint if state else "", stoppable=True)
        if not fingerprint:
            return
        from cam_pipeline.machine.device import keep_freed_memory, memory_errors_named  # late: it imports torch

        keep_freed_memory()
        use_threads(self.config.run.threads)
        output = self._output(stage, fingerprint, self.earlier(name, state) if state else None)
        started = time.monotonic()
        if stage.shared or is_first():
            key = stage.memory or stage.divides or "run.workers"
            instead = f"or raise {name}.accumulate, for the same batch in parts" if stage.divides else ""
            with memory_errors_named(name, key, self.config.pick((key,))[key], instead):
                results = {need: self.path(need) for need in stage.needs(self.config)}
                stage.run(self.config, Inputs(self.dataset, results), output)
        if state:
            self._publish(stage, state, output, time.monotonic() - started)
            announce(f"{name}: done in {time.monotonic() - started:.0f} s -> {self.path(name)}")

    def _decide(self, name: str, force: bool, announce: Callable[[str], None]) -> State | None:
        """Prepare a stage that has to run, and return its state; None if its result is current."""
        state = self.states([name])[name]
        if state.kind == "current" and not force:
            announce(f"{name}: current, nothing to do ({self.path(name)})")
            self._discard_partial(name, state.fingerprint)
            return None
        if state.kind == "damaged" and not force:
            raise DamagedFile(f"{state.reason}: it is damaged. Make it again with: {self.command(name)} --force")
        self._begin(self.stages[name], state, force)
        announce(f"{name}: starts" + (f" ({state.reason})" if state.kind in ("stale", "partial") else ""))
        self.dataset.warn_once()
        return state

    def _output(self, stage: Stage, fingerprint: str, earlier: Earlier | None) -> Output:
        path = self._partial(stage.name, fingerprint) / stage.makes
        return Output(path, self.folder / "logs", fingerprint, earlier=earlier)

    def _begin(self, stage: Stage, state: State, force: bool) -> None:
        folder = self._partial(stage.name, state.fingerprint)
        if force:
            shutil.rmtree(folder, ignore_errors=True)
            run_id = f"{state.fingerprint}-{secrets.token_hex(4)}"
            write_text(folder / "run.json", json.dumps({"run_id": run_id}))
            self._manifest_path(stage.name).unlink(missing_ok=True)  # from now on a killed `--force` can be resumed
        folder.mkdir(parents=True, exist_ok=True)

    def _publish(self, stage: Stage, state: State, output: Output, seconds: float) -> None:
        """Put the result in place. The old manifest goes first, so that it never stands beside a newer result."""
        manifest_path = self._manifest_path(stage.name)
        manifest_path.unlink(missing_ok=True)
        noted = run_id_of(output.folder, state.fingerprint)
        digest = content_digest(output.path)
        content = stage.content(output.path) if stage.content else digest
        os.replace(output.path, self.path(stage.name))
        self.dataset.digests.note(self.path(stage.name), digest)
        manifest = {
            "stage": stage.name,
            "fingerprint": state.fingerprint,
            "run_id": noted if noted != state.fingerprint else f"{state.fingerprint}-{content[:8]}",
            "facts": state.facts,
            "bytes": self.path(stage.name).stat().st_size,
            "sha256": digest,
            "made": time.strftime("%Y-%m-%d %H:%M:%S"),
            "seconds": round(seconds, 1),
            "cam_pipeline": __version__,
            "libraries": libraries(),
            **output.notes,
        }
        write_text(manifest_path, json.dumps(manifest, indent=1))
        self.dataset.digests.save()
        self._discard_partial(stage.name, state.fingerprint)

    def _discard_partial(self, name: str, fingerprint: str) -> None:
        """Remove work in progress of a stage whose result is in place, and all but the newest with other settings."""
        shutil.rmtree(self._partial(name, fingerprint), ignore_errors=True)
        others = sorted((self.folder / "partial").glob(f"{name}-*"), key=_last_change, reverse=True)
        for old in others[KEPT_PARTIALS:]:
            shutil.rmtree(old, ignore_errors=True)


def _last_change(folder: Path) -> float:
    """Time of the last change to work in progress."""
    return max((path.stat().st_mtime for path in (folder, *folder.iterdir())), default=0.0)
