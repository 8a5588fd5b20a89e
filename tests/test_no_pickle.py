"""Nothing that this program reads is ever unpickled or executed."""

import ast
import hashlib
import json
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted([*ROOT.glob("cam_pipeline/**/*.py"), *ROOT.glob("stages/**/*.py")])
LOADERS = {
    "pickle": {"load", "loads", "Unpickler"}, "cPickle": {"load", "loads", "Unpickler"},
    "dill": {"load", "loads", "Unpickler"}, "cloudpickle": {"load", "loads"}, "marshal": {"load", "loads"},
    "shelve": {"open"}, "joblib": {"load"}, "pandas": {"read_pickle"}, "pd": {"read_pickle"}, "yaml": {"load"},
}  # fmt: skip


def dangers(source: str) -> Iterator[str]:
    """Every call that could execute what it reads, and every import that would hide one."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in {*LOADERS, "torch"}:
            hidden = {alias.name for alias in node.names} & LOADERS.get(node.module, {"load"})
            yield from (f"line {node.lineno}: from {node.module} import {name}" for name in hidden)
        if not isinstance(node, ast.Call):
            continue
        called, keywords = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        owner, _, name = called.rpartition(".")
        bad = name in LOADERS.get(owner, set()) or called in {
            "eval",
            "exec",
            "compile",
            "builtins.eval",
            "builtins.exec",
        }
        bad = bad or (called in ("torch.load", "torch.hub.load") and keywords.get("weights_only") != "True")
        bad = bad or keywords.get("allow_pickle", "False") != "False"
        bad = bad or keywords.get("weights_only", "True") != "True"
        if bad:
            yield f"line {node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("path", SOURCES, ids=[path.relative_to(ROOT).as_posix() for path in SOURCES])
def test_nothing_unpickles(path: Path) -> None:
    assert list(dangers(path.read_text())) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.load(file)",
        "pickle.loads(b'')",
        "pickle.Unpickler(file).load()",
        "from pickle import loads",
        "from torch import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=trusted)",
        "timm_load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "joblib.load(path)",
        "marshal.loads(b'')",
        "shelve.open(path)",
        "eval(text)",
        "exec(text)",
    ],
)
def test_checker_complains(source: str) -> None:
    assert len(list(dangers(source))) == 1


@pytest.mark.parametrize(
    "source",
    ["torch.load(path, weights_only=True)", "np.load(path)", "json.load(file)", "network.eval()", "re.compile(x)"],
)
def test_checker_is_content(source: str) -> None:
    assert list(dangers(source)) == []


# In whole commands


class Malice:
    """A pickle of this makes a folder as soon as it is loaded by plain `pickle`."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


def malicious(path: Path, victim: Path) -> Path:
    """A file as torch.save makes it, whose loading would make the folder `victim`."""
    plain = path.with_name("plain.pt")  # torch.load goes by the ending
    torch.save({"step": 1, "network": {"x": torch.zeros(1)}, "history": Malice(victim)}, plain)
    torch.load(plain, weights_only=False)
    victim.rmdir()  # it would do harm; else the tests below would prove nothing
    return plain.replace(path)


@pytest.mark.parametrize("name", ["evil.pth", "evil.safetensors", "evil.bin"])
@pytest.mark.parametrize(("command", "section"), [("train-cls", "classifier"), ("train-seg", "segmenter")])
def test_malicious_weights(mistake: Callable[..., str], finished: Path, name: str, command: str, section: str) -> None:
    malicious(finished / name, finished / "victim")
    line = mistake(command, "--set", f"{section}.weights={name}")
    assert line.startswith(f"{name} cannot be read as weights: ")
    assert not (finished / "victim").exists()


def test_malicious_weights_as_a_plain_pickle(mistake: Callable[..., str], finished: Path) -> None:
    (finished / "evil.pth").write_bytes(pickle.dumps(Malice(finished / "victim"), protocol=2))
    assert mistake("train-cls", "--set", "classifier.weights=evil.pth").startswith("evil.pth cannot be read as weights")
    assert not (finished / "victim").exists()


@pytest.mark.parametrize(("name", "command"), [("classifier", "make-cams"), ("segmenter", "evaluate")])
def test_malicious_model(mistake: Callable[..., str], finished: Path, name: str, command: str) -> None:
    path = finished / "run" / f"{name}.safetensors"
    manifest = path.with_name(f"{path.name}.manifest.json")
    malicious(path, finished / "victim")
    forged = {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | forged))
    more = ("--set", "cam.flip=false") if command == "make-cams" else ("--force",)
    line = mistake(command, *more)
    assert line.startswith(f"run/{name}.safetensors is damaged or no cam-pipeline model (")
    assert "make it again with --force" in line
    assert not (finished / "victim").exists()


def test_malicious_checkpoint(commands: Any, workspace: Path) -> None:
    again = ("train-cls", "-c", "tiny.toml")
    moment = {"function": "cam_pipeline.training.trainer.save_checkpoint", "call": 3, "send": "SIGKILL"}
    commands.run(*again, folder=workspace, signal_at=moment)
    (checkpoint,) = (workspace / "run" / "partial").glob("train_cls-*/checkpoint.pt")
    malicious(checkpoint, workspace / "victim")
    ended = commands.run(*again, folder=workspace)
    assert ended.code == 0, ended.stderr
    ignored = [line for line in ended.stderr.splitlines() if "checkpoint.pt cannot be read and is ignored" in line]
    assert len(ignored) == 1
    assert not (workspace / "victim").exists()
