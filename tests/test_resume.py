from pathlib import Path
import pytest


def test_x(commands, undisturbed, workspace, differences):
    e = commands.run("run", "-c", "tiny.toml", folder=workspace)
    assert e.code == 0, e.stderr
    print(e.stderr)
    assert differences(undisturbed / "run", workspace / "run") == []


def test_y(commands, undisturbed, workspace, differences):
    e = commands.run(
        "run",
        "-c",
        "tiny.toml",
        folder=workspace,
        signal_at={
            "function": "cam_pipeline.training.save_checkpoint",
            "holds": "train_seg-",
            "send": "SIGKILL",
            "call": 2,
        },
    )
    assert e.code == -9, e.stderr
    e = commands.run("run", "-c", "tiny.toml", folder=workspace)
    print(e.stderr)
    assert differences(undisturbed / "run", workspace / "run") == []
