"""Maps of this run and of others -> their mean (merged_cams.h5); only if `refine.merge_with` names files."""

from collections.abc import Generator

from cam_pipeline.config import Config, to_toml
from cam_pipeline.pipeline import Inputs, Output
from cam_pipeline.refinement.merging import merged, opened_together
from cam_pipeline.store.cams import cam_record
from cam_pipeline.store.hdf5 import Record, artefact_attributes
from cam_pipeline.store.parts import PartWriter, in_chunks, write_parts

IMAGES_PER_PART = 256


def merge_cams(config: Config, inputs: Inputs, output: Output) -> None:
    """Write mean maps for every image that this run has maps of."""
    with opened_together(inputs["extract_cams"], config.refine.merge_with) as stores:
        own = stores[0]
        attributes = artefact_attributes(own.classes, output.fingerprint, to_toml(config))
        writer = PartWriter(output.path, "cams", attributes, in_chunks(own.names, IMAGES_PER_PART))

        def mean_maps(number: int) -> Generator[Record, None, None]:
            for name in writer.chunks[number]:
                yield cam_record(merged([store.read(name) for store in stores]))

        write_parts("merge_cams", writer, mean_maps)
        writer.join(own.names)
