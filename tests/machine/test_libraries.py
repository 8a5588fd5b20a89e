"""Libraries: installed, new enough, whole."""

import sys
from importlib import metadata
from pathlib import Path

import pytest

from cam_pipeline.machine.libraries import installed, unmet, why_broken

NEEDED = ["numpy>=1.26", "torch (>=2.6)", "nobody >= 1", "ray>=2.9 ; extra == 'ray'", "old; python_version < '3'"]


def test_versions_without_import() -> None:
    found = installed(["numpy", "no-such-library"])
    assert found == {"numpy": metadata.version("numpy"), "no-such-library": None}


def test_what_is_missing_or_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "nobody":
            raise metadata.PackageNotFoundError(name)
        return {"numpy": "1.25.2", "torch": "2.7.0a0+cu126"}[name]

    monkeypatch.setattr(metadata, "requires", lambda name: NEEDED)
    monkeypatch.setattr(metadata, "version", version)
    assert list(unmet()) == [("numpy>=1.26", "1.25.2"), ("nobody>=1", "")]


def test_this_environment_has_all() -> None:
    assert list(unmet()) == []


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("print('loaded')", ""),
        ("raise RuntimeError('operator torchvision::nms\\ndoes not exist')",
         "RuntimeError: operator torchvision::nms does not exist"),
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("import sys; print('half', file=sys.stderr); 1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit('no license')", "SystemExit: no license"),
    ],
)  # fmt: skip
def test_why_a_module_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], source: str, reason: str
) -> None:
    (tmp_path / "damaged_module.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    why_broken.cache_clear()
    assert why_broken("damaged_module") == reason
    assert capsys.readouterr() == ("", "")
    sys.modules.pop("damaged_module", None)
    why_broken.cache_clear()
