"""Maps of this run and of others -> how far they agree (agreement.h5); only if `train_seg.agreement_power` is set."""

from collections.abc import Generator

from cam_pipeline.config import Config, to_toml
from cam_pipeline.pipeline import Inputs, Output
from cam_pipeline.refinement.merging import agreement, opened_together
from cam_pipeline.store.agreement import agreement_record
from cam_pipeline.store.hdf5 import Record, artefact_attributes
from cam_pipeline.store.parts import PartWriter, in_chunks, write_parts

IMAGES_PER_PART = 256


def compare_cams(config: Config, inputs: Inputs, output: Output) -> None:
    """Write for every image that this run has maps of how far the merged networks agree about its cells."""
    with opened_together(inputs["extract_cams"], config.refine.merge_with) as stores:
        own = stores[0]
        attributes = artefact_attributes(own.classes, output.fingerprint, to_toml(config))
        writer = PartWriter(output.path, "agreement", attributes, in_chunks(own.names, IMAGES_PER_PART))

        def agreements(number: int) -> Generator[Record, None, None]:
            for name in writer.chunks[number]:
                yield agreement_record(name, agreement([store.read(name) for store in stores]))

        write_parts("compare_cams", writer, agreements)
        writer.join(own.names)
