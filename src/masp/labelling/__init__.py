"""Labels for any number of images: a manifest, Ray Data over it, one Parquet row for each image.

The manifest is divided into chunks. A chunk is labelled as a whole, always in the same batches, and becomes one file
that is there or is not; so a run that was killed anywhere goes on with the same command and ends with the same bytes.
"""
