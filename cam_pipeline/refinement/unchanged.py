"""Images whose scores need not be made anew: new clicks on a few images leave all others as they are."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cam_pipeline.config import RefineSettings
from cam_pipeline.data.dataset import Dataset
from cam_pipeline.data.table import Sample
from cam_pipeline.errors import UserError
from cam_pipeline.store.scores import ScoreStore

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Unchanged:
    """The scores of an earlier run that still hold: those of `names`, in the file `path`."""

    path: Path = Path()
    names: frozenset[str] = field(default_factory=frozenset)


def made_of(dataset: Dataset, samples: Iterable[Sample], settings: RefineSettings) -> dict[str, str]:
    """What each image is refined from: two digests, of the image and a mask that helps to choose the background score,
    and of the image and its marks."""
    chosen_on = settings.background_split if settings.background == "from-split" else None

    def of(sample: Sample) -> str:
        masks = sample.split == chosen_on
        chosen_by = dataset.digest([sample], labels=False, masks=masks)
        return f"{chosen_by[:32]} {dataset.digest([sample], labels=False, marks=True)[:32]}"

    return {sample.id: of(sample) for sample in samples}


def background_before(earlier: Path | None, now: Mapping[str, str]) -> float | None:
    """The background score that an earlier run chose on the same images, maps and masks; None if there is none."""
    if earlier is None:
        return None
    try:
        with ScoreStore.open(earlier) as store:
            same = _first_halves(store.made_of) == _first_halves(now)
            return store.background if same else None
    except UserError:
        return None


def unchanged(earlier: Path | None, now: Mapping[str, str], background: float) -> Unchanged:
    """The images that an earlier run refined from the same image, maps and marks at the same background score."""
    if earlier is None:
        return Unchanged()
    try:
        with ScoreStore.open(earlier) as store:
            if store.background != background:
                return Unchanged()
            same = frozenset(name for name, digests in store.made_of.items() if now.get(name) == digests)
    except UserError:
        return Unchanged()
    logger.info("refine_cams: %d of %d images are as before and keep their scores", len(same), len(now))
    return Unchanged(earlier, same)


def _first_halves(digests: Mapping[str, str]) -> dict[str, str]:
    return {name: both.partition(" ")[0] for name, both in digests.items()}
